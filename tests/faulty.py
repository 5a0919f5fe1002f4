"""A short run of the tiny task, the faults that are injected into it, and what is compared afterwards."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny

from warp_nb.algorithm.merge import weights_of
from warp_nb.config import WarpConfig
from warp_nb.files import fingerprint
from warp_nb.runs.warp import WarpResult, warp

CONFIG = WarpConfig(
    I=1, M=1, T=4, lr=1e-2, warmup_steps=2, beta=0.5, mu=0.1, eta=0.3, batch_size=4, max_new_tokens=5, threads=1
)
"""One run of four steps."""
FOUR_RUNS = CONFIG.replace(I=2, M=2, T=3)
STATE, BEFORE = "run_1_1.state.safetensors", "run_1_1.state-before.safetensors"


def quick(config: WarpConfig = CONFIG, task: Any = None, **settings: Any) -> WarpResult:
    """`warp()` of the tiny task without a bar; its reward is of the class of all faulty ones, as a folder knows it."""
    return warp(config, task or tiny.task(reward=Opinion(0, fail)), **({"progress": False} | settings))


def everything(result: WarpResult) -> list[Any]:
    """All of a result that is not time, to be compared bit by bit."""
    frames = result.history, result.runs, result.geometry, result.merges
    tables = [frame.drop(columns=["seconds", "loaded"], errors="ignore").to_csv(index=False) for frame in frames]
    snapshots = {key: fingerprint(result.snapshots[key]) for key in sorted(result.snapshots, key=str)}
    return [fingerprint(weights_of(result.policy)), fingerprint(result.merged), *tables, snapshots]


class Opinion:
    """`tiny.opinion` that does something else at one of its calls."""

    __name__ = "opinion"

    def __init__(self, at: int, instead: Callable[[list[float]], Any]) -> None:
        self.at, self.instead, self.calls = at, instead, 0

    def describe(self) -> dict[str, Any]:
        """It counts as the same reward wherever it fails."""
        return {}

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> Any:
        self.calls += 1
        scores = tiny.opinion(prompts, completions)
        return self.instead(scores) if self.calls == self.at else scores


def fail(scores: list[float]) -> list[float]:
    """A reward that has gone."""
    raise OSError("the scoring service is gone")


def stopped(folder: Path, after: int, **changes: Any) -> None:
    """A run of CONFIG in `folder` whose reward fails after `after` steps."""
    with pytest.raises(RuntimeError, match="service is gone"):
        quick(CONFIG.replace(**changes), tiny.task(reward=Opinion(after + 1, fail)), out_dir=folder)


def flip(path: Path, place: float = 0.7) -> None:
    """Change one bit of the byte at a share of the file."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def cut(path: Path, place: float = 0.7) -> None:
    """Cut a file short."""
    os.truncate(path, int(place * path.stat().st_size))


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock and the lines of steps, which grow while a run goes on."""
    paths = [path for path in sorted(folder.iterdir()) if path.name != ".lock" and path.suffix != ".jsonl"]
    return {path.name: path.read_bytes() for path in paths}
