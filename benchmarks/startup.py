"""Part startup: the time of a fresh process to import the package, to finish its first step, and that of a notebook."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.figures import Figure, alone, compare
from benchmarks.sides import ROOT, fresh

IMPORTS = {
    "import warp_nb": "import warp_nb",
    "import torch": "import torch",
    "Python alone": "pass",
}
FIRST_STEP = {
    "first step of small": "from benchmarks.startup import first_step; first_step()",
    "import of torch and transformers' Llama": "import torch; from transformers import AutoTokenizer, LlamaForCausalLM",
}

NOTEBOOK = ("notebooks/exp4.ipynb", "-p", "task", "small")
NOTEBOOK_STEP = "papermill exp4 -p task small, to the end of the first step"
STEP_SHOWN = re.compile(r"\b[1-9]\d*/\d+ \[")
"""The bar of an experiment once a step is counted: `1/40 [`."""


def run(say: Callable[[str], None], rounds: int, step_rounds: int, target: float, threads: int) -> Figure:
    """Time every command in turn, `rounds` times; the first in each table is ours, the others are its peers."""
    found, own = [], []
    for commands, count in ((IMPORTS, rounds), (FIRST_STEP, step_rounds)):
        times: dict[str, list[float]] = {title: [] for title in commands}
        for number in range(count + 1):  # the first round fills the disk cache
            for title, code in commands.items():
                seconds = fresh(sys.executable, "-c", code)["seconds"]
                if number:
                    times[title].append(seconds)
                    say(f"{title}, {number}/{count}: {seconds:.2f} s")
        mine, *peers = times
        found += [compare(mine, "s", peer, times[mine], times[peer]) for peer in peers]
        own.append(alone(mine, "s", times[mine], target if commands is IMPORTS else None))
    starts = []
    for number in range(step_rounds + 1):
        seconds = notebook_start(*NOTEBOOK)
        if number:
            starts.append(seconds)
            say(f"{NOTEBOOK_STEP}, {number}/{step_rounds}: {seconds:.2f} s")
    own.append(alone(NOTEBOOK_STEP, "s", starts))
    return {"comparisons": found, "alone": own}


def first_step() -> None:
    """Run a user's first step: task small with its reward model, loaded from the cache."""
    from warp_nb import WarpConfig, load_task, warp

    warp(WarpConfig(I=1, M=1, T=1, batch_size=32), load_task("small"), progress=False)


def notebook_start(notebook: str, *parameters: str) -> float:
    """Execute a notebook by papermill until its bar counts the first step; return the seconds from papermill's start.

    The bar is what a reader sees, so the notebook is executed as it is.
    """
    with tempfile.TemporaryDirectory() as scratch:
        shown = Path(scratch) / "stderr"
        command = [sys.executable, "-m", "papermill", notebook, f"{scratch}/executed.ipynb", *parameters]
        return until_step(*command, "--stderr-file", str(shown), "--no-progress-bar", shown=shown)


def until_step(*command: str, shown: Path) -> float:
    """Run a program until the bar in its file `shown` counts a step, then kill it; return the seconds from its start.

    Raises:
        RuntimeError: the program ended before a step was shown; the message has the end of its output.
    """
    with tempfile.TemporaryFile("w+") as printed:
        start = time.perf_counter()
        process = psutil.Popen(command, cwd=ROOT, stdin=subprocess.DEVNULL, stdout=printed, stderr=printed)
        try:
            while process.poll() is None:
                if shown.exists() and STEP_SHOWN.search(shown.read_text(encoding="utf-8")):
                    return time.perf_counter() - start
                time.sleep(0.02)
        finally:
            if process.is_running():
                _kill(process)
        printed.seek(0)
        raise RuntimeError(f"{' '.join(command)} ended before its first step:\n{printed.read()[-2000:]}")


def _kill(process: psutil.Process) -> None:
    """Kill a process and all that it started, and wait for their end."""
    everyone = [*process.children(recursive=True), process]
    for one in everyone:
        with suppress(psutil.NoSuchProcess):
            one.kill()
    psutil.wait_procs(everyone, timeout=10)
