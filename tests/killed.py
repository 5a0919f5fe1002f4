"""A process that calls `warp()` of the tiny task, dies at a given point, and calls it again: `python killed.py FOLDER`.

Every call is a child, forked before torch has begun threads. Standard input holds the points, a JSON list a line:
[function, number, when, save_every], SIGKILL before or after that call of the function. The functions are parts of a
run, the reward, the caller's progress, and of the system: `replace` (a rename), `unlink`, and `fsync`, which stands
amid a write: there the file is cut to its half first. Standard output: a line of JSON a point.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas  # noqa: F401  what a call imports when it is first used is imported once, before the children
import tiny
import torch
import transformers.models.llama.modeling_llama  # noqa: F401
from faulty import FOUR_RUNS

from warp_nb.files import fingerprint, unseal
from warp_nb.runs.training import FAST, Training
from warp_nb.runs.warp import warp

CONFIG = FOUR_RUNS.replace(T=2, snapshot_every=1, keep_anchors=True)
BOTH = ("before", "after")
PARTS = {"ema_update_": BOTH, "merge": BOTH, "train_run": ("after",)}
SYSTEM = {"replace": BOTH, "unlink": ("after",), "fsync": ("before",)}
WHEN = PARTS | SYSTEM | {"reward": ("before",), "progress": ("before",)}
"""Where a call of each function is killed; what a step does between two of them leaves the folder as it is."""


class Deadly:
    """Wraps functions so that calls are counted and the process is killed at one of them."""

    def __init__(self, name: str, number: int, when: str) -> None:
        self.point, self.calls = (name, number, when), dict.fromkeys(WHEN, 0)

    def counted(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function` under its own name, deadly at the point."""

        def call(*args: Any, **kwargs: Any) -> Any:
            self.calls[name] += 1
            self.reached(name, "before", args)
            try:
                return function(*args, **kwargs)
            finally:
                self.reached(name, "after", args)

        call.__name__ = getattr(function, "__name__", name)
        return call

    def reached(self, name: str, when: str, args: tuple[Any, ...]) -> None:
        """Die here, if this is the point."""
        if self.point == (name, self.calls[name], when):
            if name == "fsync":
                path = Path(f"/proc/self/fd/{args[0]}").resolve()
                os.truncate(path, path.stat().st_size // 2)
            os.kill(os.getpid(), signal.SIGKILL)


def whole(folder: Path, deadly: Deadly, save_every: int) -> dict[str, Any]:
    """One call of `warp()` in `folder`: how often things were called, the files, the last state of every run."""
    torch.set_num_threads(1)
    states: dict[str, str] = {}

    def remembering(*args: Any, watch: Training, **settings: Any) -> Any:
        weights = FAST.train_run(*args, watch=watch, **settings)
        states["{iteration}_{run}".format(**watch.place)] = fingerprint(watch.state_dict())
        return weights

    parts = replace(FAST, train_run=remembering)
    parts = replace(parts, **{name: deadly.counted(name, getattr(parts, name)) for name in PARTS})
    for name in SYSTEM:  # no seam of the package: these are the system's own
        setattr(os, name, deadly.counted(name, getattr(os, name)))
    task = tiny.task(reward=deadly.counted("reward", tiny.opinion))
    progress = deadly.counted("progress", lambda row: None)
    result = warp(CONFIG.replace(save_every=save_every), task, folder, progress=progress, parts=parts)
    ends = {"policy": fingerprint(dict(result.policy.named_parameters())), "merged": fingerprint(result.merged)}
    return {"calls": deadly.calls, "files": files(folder) | ends, "states": states}


def files(folder: Path) -> dict[str, str]:
    """Name of every file -> a digest of what it holds, times and the share that was loaded left out."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.parent == folder and path.suffix == ".safetensors":
            tensors, record = unseal(path)
            rows = [*record["history"], record["facts"]] if isinstance(record, dict) else []
            found[name] = fingerprint(tensors) + timeless(rows)
        elif path.suffix == ".jsonl":
            found[name] = timeless([json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()])
        else:
            found[name] = hashlib.sha256(path.read_bytes()).hexdigest()
    return found


def timeless(rows: list[dict[str, Any]]) -> str:
    """Rows of figures as JSON, without times and the share that was loaded."""
    kept = [{k: v for k, v in row.items() if k not in ("seconds", "loaded")} for row in rows]
    return json.dumps(kept, sort_keys=True)


def in_a_child(folder: Path, point: tuple[str, int, str], save_every: int) -> tuple[int, dict[str, Any]]:
    """(the signal that ended the child or its exit code, what it left)."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        found = json.dumps(whole(folder, Deadly(*point), save_every)).encode()
        with os.fdopen(into, "wb") as answers:
            answers.write(found)
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as answers:
        text = answers.read()
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), json.loads(text or "{}")


def main() -> None:
    """A line of JSON a point: [signal of the first call, what the first or else the second call left]."""
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        name, number, when, save_every = json.loads(line)
        shutil.rmtree(folder, ignore_errors=True)
        ended, found = in_a_child(folder, (name, number, when), save_every)
        if ended:
            found = in_a_child(folder, ("", 0, ""), save_every)[1]
        print(json.dumps([ended, found]), flush=True)


if __name__ == "__main__":
    main()
