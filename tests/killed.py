"""A process that makes `warp()` of the tiny task and dies at given points, then goes on: `python killed.py FOLDER`.

Every point is a child of its own, forked before torch has begun threads. Standard input holds the points as
JSON lists [function, number, when]: SIGKILL before or after the call of that number, or amid it: then the file
written is half there. Standard output: a digest a point of all that the finished folder holds.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import tiny
import torch

from warp_nb.config import WarpConfig
from warp_nb.runs import checkpoint, sealed, weights
from warp_nb.runs import warping as algorithm

CONFIG = WarpConfig(
    I=2, M=2, T=2, lr=1e-2, warmup_steps=2, beta=0.5, mu=0.1, eta=0.3, batch_size=4, max_new_tokens=5, threads=1
)
HOLDERS: dict[str, list[Any]] = {
    "replace": [os],
    "write_tensors": [sealed, weights],
    "merge": [algorithm],
    "liti": [algorithm],
    "call_reward": [sys.modules["warp_nb.runs.policy_gradient"]],
    "ema_update_": [sys.modules["warp_nb.runs.policy_gradient"]],
}


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def counted(calls: dict[str, int], name: str, function: Callable[..., Any], point: tuple[str, int, str]) -> Any:
    """`function` that counts its calls and dies at the point."""

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[name] = calls.get(name, 0) + 1
        here = point[:2] == (name, calls[name])
        if here and point[2] == "before":
            die()
        found = function(*args, **kwargs)
        if here and point[2] == "amid":
            os.truncate(args[0], args[0].stat().st_size // 2)
        if here:
            die()
        return found

    return call


def whole(folder: Path, point: tuple[str, int, str], save_every: int) -> dict[str, Any]:
    """One call of `warp()` in `folder`, states of runs are left there: how often things were called, what is there."""
    torch.set_num_threads(1)
    calls: dict[str, int] = {}
    for name, holders in HOLDERS.items():
        for holder in holders:
            setattr(holder, name, counted(calls, name, getattr(holder, name), point))
    checkpoint.RunStates.clear = lambda self: None  # type: ignore[method-assign]
    algorithm.warp(CONFIG.replace(save_every=save_every), tiny.task(), folder, progress=False)
    return {"calls": calls, "digest": digest(folder)}


def digest(folder: Path) -> dict[str, str]:
    """sha256 of every weight file, of every last state's tensors, and of all histories without times."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        if ".state" not in path.name:
            found[path.name] = hashlib.sha256(path.read_bytes()).hexdigest()
        elif ".state." in path.name:
            found[path.name] = weights.fingerprint(sealed.unseal(path)[0])
    for path in sorted(folder.glob("run_*.json")):
        rows = [{k: v for k, v in row.items() if k != "seconds"} for row in json.loads(path.read_text())["history"]]
        found[path.name] = hashlib.sha256(json.dumps(rows, sort_keys=True).encode()).hexdigest()
    return found


def in_a_child(folder: Path, point: tuple[str, int, str], save_every: int) -> tuple[int, dict[str, Any]]:
    """(the signal that ended it or 0, what it left)."""
    out, into = os.pipe()
    child = os.fork()
    if not child:
        found = json.dumps(whole(folder, point, save_every)).encode()
        os.write(into, found)
        os._exit(0)
    os.close(into)
    with os.fdopen(out, "rb") as answers:
        text = answers.read()
    status = os.waitpid(child, 0)[1]
    return os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status), json.loads(text or "{}")


def main() -> None:
    """A line of JSON a point: [signal, digest after going on, files left]."""
    folder = Path(sys.argv[1])
    for line in sys.stdin:
        name, number, when, save_every = json.loads(line)
        shutil.rmtree(folder, ignore_errors=True)
        ended, first = in_a_child(folder, (name, number, when), save_every)
        again = first if not ended else in_a_child(folder, ("", 0, ""), save_every)[1]
        left = sorted(path.name for path in folder.iterdir() if path.name.endswith(".new"))
        print(json.dumps([ended, again, left]), flush=True)


if __name__ == "__main__":
    main()
