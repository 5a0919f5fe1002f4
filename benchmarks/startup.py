"""Part startup: the time of a fresh process to import the package, and to finish its first step."""

from __future__ import annotations

import sys
from collections.abc import Callable

from benchmarks.figures import Figure, alone, compare
from benchmarks.sides import fresh

IMPORTS = {
    "import warp_nb": "import warp_nb",
    "import torch": "import torch",
    "Python alone": "pass",
}
FIRST_STEP = {
    "first step of small": "from benchmarks.startup import first_step; first_step()",
    "import of torch and transformers' Llama": "import torch; from transformers import AutoTokenizer, LlamaForCausalLM",
}


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
    return {"comparisons": found, "alone": own}


def first_step() -> None:
    """Run a user's first step: task small with its reward model, loaded from the cache."""
    from warp_nb import WarpConfig, load_task, warp

    warp(WarpConfig(I=1, M=1, T=1, batch_size=32), load_task("small"), progress=False)
