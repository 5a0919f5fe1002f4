"""Part states-*: what it costs to keep the state of a run between two steps (`save_every`)."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.figures import Figure, alone
from benchmarks.sides import Turns, once


def run(say: Callable[[str], None], **settings: Any) -> Figure:
    """Seconds of a save, and the share of a step that this is."""
    say("steps, each with a save after it")
    found = once("benchmarks.states:measure", **settings)
    share = median(found["saves"]) / median(found["steps"])
    title = f"keeping a state of {settings['task']} ({found['bytes'] / 1e9:.2f} GB), {share:.0%} of a step"
    return {"alone": [alone(title, "s", found["saves"])]}


def measure(
    turns: Turns, task: str, batch: int, completion: int, dtype: str, steps: int, warmup: int, threads: int
) -> None:
    """The side: steps of a run, after each settled one its state is written, fsynced and renamed into place."""
    import time

    import torch

    from benchmarks import work
    from benchmarks.step import BETA, LR, MU
    from warp_nb import WarpConfig
    from warp_nb.runs.checkpoint import RunStates
    from warp_nb.runs.policy_gradient import Run

    torch.set_num_threads(threads)
    work_task = work.task(task)
    config = WarpConfig(T=warmup + steps, lr=LR, warmup_steps=0, beta=BETA, mu=MU, dtype=dtype)
    config = config.replace(batch_size=batch, max_new_tokens=completion)
    here, saves = Run(work_task, config, work_task.policy.state_dict(), 1, 1), list[float]()
    with tempfile.TemporaryDirectory() as folder:
        states = RunStates(Path(folder) / "run_1_1.state.safetensors", "start")
        for _ in range(warmup):
            here.step()
        for _ in range(steps):
            here.step()
            started = time.perf_counter()
            states.save(here)
            saves.append(time.perf_counter() - started)
        size = states.path.stat().st_size
    turns.next(saves=saves, steps=[row["seconds"] for row in here.history[warmup:]], bytes=size)
