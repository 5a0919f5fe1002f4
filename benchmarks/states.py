"""Part states-*: the cost of a checkpoint between two steps of a run (`save_every`)."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figure, alone
from benchmarks.sides import Turns, once

if TYPE_CHECKING:
    from warp_nb.runs.checkpoint import Resumable


def run(say: Callable[[str], None], **settings: Any) -> Figure:
    """Measure the seconds of a save, and their share of a step."""
    say("steps, each with a save after it")
    found = once("benchmarks.states:measure", **settings)
    share = median(found["saves"]) / median(found["steps"])
    title = f"checkpoint of {settings['task']} ({found['bytes'] / 1e9:.2f} GB), {share:.0%} of a step"
    return {"alone": [alone(title, "s", found["saves"])]}


def measure(turns: Turns, *, steps: int, warmup: int, **shape: Any) -> None:
    """Run the side: a checkpoint after every step of a run is written, fsynced and renamed into place."""
    from benchmarks import work
    from warp_nb.runs.checkpoint import Checkpoints

    saves: list[float] = []

    class Timed(Checkpoints):
        def save(self, training: Resumable) -> None:
            started = time.perf_counter()
            super().save(training)
            saves.append(time.perf_counter() - started)

    setup = work.setup(steps=warmup + steps, **shape)
    setup = replace(setup, config=setup.config.replace(save_every=1))
    with tempfile.TemporaryDirectory() as folder:
        checkpoints = Timed(Path(folder) / "run_1_1.state.safetensors", "start")
        history = setup.run(checkpoints=checkpoints).history
        size = checkpoints.path.stat().st_size
    turns.next(saves=saves[warmup:], steps=[row["seconds"] for row in history[warmup:]], bytes=size)
