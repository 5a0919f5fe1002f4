"""`warp()`: I iterations of M runs, merge, LITI (Algorithm 1); the front over eta.

A run (i, m) is a job of its own (`parallel`): it reads `init_{i}.safetensors` and the
configuration, and leaves `run_{i}_{m}.safetensors` and `run_{i}_{m}.json`. `warp()` only
orchestrates: a job whose files are there is loaded and not repeated.
"""

from __future__ import annotations

import copy
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.average import StateDict, angles, liti, merge, tied_to
from warp_nb.config import WarpConfig
from warp_nb.runs.folder import claimed
from warp_nb.runs.jobs import (
    Job,
    default_threads,
    device_name,
    load_run,
    make_run,
    pickled_rebuild,
    send,
)
from warp_nb.runs.policy_gradient import Row, RunResult
from warp_nb.runs.weights import load_weights, save_weights, snapshot
from warp_nb.tasks.task import Task
from warp_nb.tasks.wheels import file_sha256

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel

Progress = Callable[[Row], None]


@dataclass
class WarpResult:
    """What `warp()` leaves."""

    policy: PreTrainedModel
    """The model after the last line 12, θ_init of the algorithm's end."""
    merged: StateDict
    """θ_slerp of the last iteration: what the front interpolates to from θ_sft."""
    history: pd.DataFrame
    """A row a step: iteration, run, step (from 1), reward, kl (to the anchor, nats a sequence), objective (r_beta) …"""
    geometry: pd.DataFrame
    """A row a block and pair of runs: iteration, run_a, run_b, block, cosine, omega (degrees), norm_a, norm_b."""
    runs: pd.DataFrame
    """A row a run: facts for the checks (see `train_run`); loaded is the share of its steps that was not made now."""
    merges: pd.DataFrame
    """A row an iteration: liti_ratio (should be eta), delta_cosine (largest over pairs of runs)."""


def warp(
    config: WarpConfig,
    task: Task,
    out_dir: str | Path | None = None,
    executor: Executor | None = None,
    progress: bool | Progress = True,
) -> WarpResult:
    """Run Algorithm 1 on `task`; θ_sft is `task.policy`, which is not changed.

    With `out_dir` a second call goes on where the first one ended, however it ended, to the same bits: finished
    runs are kept there and not repeated, one that an error or an interrupt stopped goes on at its next step, and
    with `config.save_every` = k one that was killed loses less than k steps. `progress` is True (a bar), False, or
    a function called with every history row.

    `executor` does an iteration's runs side by side, with the same bits at the same `config.threads`:
    `process_pool(workers)`, or Dask's `client.get_executor(pure=False, retries=2)`, with `out_dir` on a
    disk that all workers share. Its workers make the task by `task.rebuild`; rows of `progress` come
    when a run ends. Where `config.threads` is 0, a run has its share of torch's own number: 1/M.

    Raises ValueError when `out_dir` holds runs of another configuration, θ_sft, reward or prompts or cannot be
    written, and for an executor of threads or a task without `rebuild`; RuntimeError when another call is using
    the folder, when both kept states of a run are damaged, and when a worker lacks the files of the folder,
    makes another task, or dies with its pool.
    """
    import pandas as pd

    rebuild, device = pickled_rebuild(executor, task), device_name(task.policy.device)
    config = config.replace(threads=config.threads or default_threads(executor, config.M))
    with ExitStack() as stack:
        on_step = stack.enter_context(reporting(progress, config.I * config.M * config.T))
        folder = Path(out_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        stack.enter_context(claimed(folder, config, task, alone=executor is None))
        tables: dict[str, list[Row]] = {name: [] for name in ("history", "geometry", "runs", "merges")}
        init = merged = snapshot(task.policy)  # line 1
        for iteration in range(1, config.I + 1):  # line 2
            path = folder / f"init_{iteration}.safetensors"
            save_weights(path, init)
            init = merged = load_weights(path, init)  # from here on read from the disk, like the runs' weights
            start = str(folder.absolute()), iteration
            sha256 = file_sha256(path)
            keep = bool(out_dir)
            jobs = [Job(*start, run, sha256, device, rebuild, keep) for run in range(1, config.M + 1)]  # line 3
            results = do_jobs(jobs, config, task, executor, on_step)  # lines 4 to 9
            init, merged, rows = merge_runs(init, results, config, iteration)  # lines 11 and 12
            for name in tables:
                tables[name] += rows[name]
            del results
        policy = copy.deepcopy(task.policy).eval()
        policy.load_state_dict(init)
        return WarpResult(policy, merged, **{name: pd.DataFrame(rows) for name, rows in tables.items()})


def merge_runs(
    init: StateDict, results: Sequence[RunResult], config: WarpConfig, iteration: int
) -> tuple[StateDict, StateDict, dict[str, list[Row]]]:
    """Lines 11 and 12: (the next θ_init, θ_slerp, the iteration's rows of each table of `WarpResult`)."""
    states = [result.state for result in results]
    merged = merge(init, states, config.merge, config.merge_by)  # line 11
    updated = liti(init, merged, config.eta)  # line 12
    rows: dict[str, list[Row]] = {
        "history": [row for result in results for row in result.history],
        "geometry": pairwise_angles(init, states, config, iteration),
        "runs": [result.facts for result in results],
        "merges": [{"iteration": iteration} | merge_facts(init, states, merged, updated)],
    }
    return updated, merged, rows


def do_jobs(
    jobs: Sequence[Job], config: WarpConfig, task: Task, executor: Executor | None, on_step: Progress
) -> list[RunResult]:
    """The runs in the order of `jobs`: loaded where finished, else made here or by `executor`.

    Raises RuntimeError when a job is reported done and its result is not in the folder or not whole.
    """
    like = task.policy.state_dict()
    # a listing: a network disk may go on saying for a minute that a name once looked up is not there
    present = {path.name for path in Path(jobs[0].folder).iterdir()}
    found = {job: load_run(job, like) for job in jobs if job.record.name in present}
    results = {job: result for job, result in found.items() if result is not None}
    for result in results.values():
        result.facts["loaded"] = 1.0
        tell(result, on_step)
    missing = [job for job in jobs if job not in results]
    for job in send(executor, missing) if executor else make_here(missing, config, task, on_step):
        made = load_run(job, like)
        if made is None:
            raise RuntimeError(
                f"run {job.run} of iteration {job.iteration} was reported done, but {job.weights} and its record "
                f"are not here or do not agree by sha256; pass an out_dir on a disk that all workers share"
            )
        results[job] = made
        if executor:
            tell(made, on_step)
    return [results[job] for job in jobs]


def make_here(jobs: Sequence[Job], config: WarpConfig, task: Task, on_step: Progress) -> Iterator[Job]:
    """Do the jobs in this process; each comes back when its files are written."""
    for job in jobs:
        make_run(job, config, task, on_step)
        yield job


def tell(result: RunResult, on_step: Progress) -> None:
    """The history of a run, row by row."""
    for row in result.history:
        on_step(row)


def final_front(sft: StateDict, merged: StateDict, etas: Sequence[float]) -> list[StateDict]:
    """The output of Algorithm 1: {(1 - eta) * θ_sft + eta * θ_slerp^I}, a state dict an eta."""
    return [liti(sft, merged, eta) for eta in etas]


def pairwise_angles(
    init: StateDict, states: list[StateDict], config: WarpConfig, iteration: int
) -> list[dict[str, Any]]:
    """The angle of every block between every two runs of an iteration."""
    return [
        {"iteration": iteration, "run_a": a + 1, "run_b": b + 1} | row
        for a, b in combinations(range(len(states)), 2)
        for row in angles(init, states[a], states[b], config.merge_by)
    ]


def merge_facts(init: StateDict, states: list[StateDict], merged: StateDict, updated: StateDict) -> Row:
    """liti_ratio = <θ_new - θ_init, θ_slerp - θ_init> / |θ_slerp - θ_init|²; largest cosine of two runs."""
    distinct = [name for name, source in tied_to(init).items() if name == source and init[name].is_floating_point()]
    dot = square = 0.0
    for name in distinct:
        direction = (merged[name] - init[name]).double().flatten()
        dot += torch.dot((updated[name] - init[name]).double().flatten(), direction).item()
        square += torch.dot(direction, direction).item()
    cosines = [angles(init, a, b, "global")[0]["cosine"] for a, b in combinations(states, 2)]
    known = [float(value) for value in cosines if not math.isnan(float(value))]
    return {"liti_ratio": dot / square if square else math.nan, "delta_cosine": max(known, default=math.nan)}


class reporting:
    """A progress bar over all steps, or the caller's own function, or nothing."""

    def __init__(self, progress: bool | Progress, total: int) -> None:
        self.progress, self.total = progress, total

    def __enter__(self) -> Progress:
        from tqdm import tqdm

        if callable(self.progress):
            return self.progress
        self.bar = tqdm(total=self.total, disable=not self.progress, unit="шаг", leave=False)
        return lambda row: self.bar.update() and None

    def __exit__(self, *_: object) -> None:
        if not callable(self.progress):
            self.bar.close()
