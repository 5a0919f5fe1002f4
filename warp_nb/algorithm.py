"""`warp()`: I iterations of M runs, merge, LITI (Algorithm 1); the front over eta.

A run (i, m) is a job of its own: it reads `init_{i}.safetensors` and the configuration, and
leaves `run_{i}_{m}.safetensors` and `run_{i}_{m}.json`. `warp()` only orchestrates: a job
whose files are there is loaded and not repeated.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.assets import file_sha256
from warp_nb.average import StateDict, angles, liti, merge, tied_to
from warp_nb.config import WarpConfig
from warp_nb.policy_gradient import Row, RunResult, train_run
from warp_nb.tasks import Task, describe_reward
from warp_nb.weights import fingerprint, load_weights, save_weights, snapshot, write_json

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
    """A row a run: facts for the checks (see `train_run`)."""
    merges: pd.DataFrame
    """A row an iteration: liti_ratio (should be eta), delta_cosine (largest over pairs of runs)."""


def warp(
    config: WarpConfig,
    task: Task,
    out_dir: str | Path | None = None,
    executor: None = None,
    progress: bool | Progress = True,
) -> WarpResult:
    """Run Algorithm 1 on `task`; θ_sft is `task.policy`, which is not changed.

    With `out_dir` finished runs are kept there and not repeated by a second call. `progress`
    is True (a bar), False, or a function called with every history row.
    Raises ValueError when `out_dir` holds runs of another configuration, θ_sft, reward or prompts.
    """
    import pandas as pd

    if executor is not None:
        raise ValueError("executor must be None: runs are done one after the other in this process")
    with tempfile.TemporaryDirectory() as scratch, reporting(progress, config.I * config.M * config.T) as on_step:
        folder = Path(out_dir) if out_dir else Path(scratch)
        claim(folder, config, task)
        history: list[Row] = []
        runs: list[Row] = []
        geometry: list[dict[str, Any]] = []
        merges: list[Row] = []
        init = merged = snapshot(task.policy)  # line 1
        for iteration in range(1, config.I + 1):  # line 2
            save_weights(folder / f"init_{iteration}.safetensors", init)
            results = [run_job(folder, config, task, iteration, run, on_step) for run in range(1, config.M + 1)]  # 3
            states = [result.state for result in results]
            merged = merge(init, states, config.merge, config.merge_by)  # line 11
            updated = liti(init, merged, config.eta)  # line 12
            history += [row for result in results for row in result.history]
            runs += [result.facts for result in results]
            geometry += pairwise_angles(init, states, config, iteration)
            merges.append({"iteration": iteration} | merge_facts(init, states, merged, updated))
            init = updated
        policy = copy.deepcopy(task.policy).eval()
        policy.load_state_dict(init)
        frames = [pd.DataFrame(rows) for rows in (history, geometry, runs, merges)]
        return WarpResult(policy, merged, *frames)


def run_job(
    folder: Path, config: WarpConfig, task: Task, iteration: int, run: int, on_step: Progress = lambda row: None
) -> RunResult:
    """Run (i, m) from its files, or load it where it was finished (facts: loaded = 1)."""
    like, start = task.policy.state_dict(), folder / f"init_{iteration}.safetensors"
    weights, record = folder / f"run_{iteration}_{run}.safetensors", folder / f"run_{iteration}_{run}.json"
    if record.exists():
        saved = json.loads(record.read_text())
        if saved["init_sha256"] == file_sha256(start):
            for row in saved["history"]:
                on_step(row)
            return RunResult(load_weights(weights, like), saved["history"], denull(saved["facts"]) | {"loaded": 1.0})
    with torch_threads(config.threads):
        result = train_run(task, config, load_weights(start, like), iteration, run, on_step)
    save_weights(weights, result.state)
    write_json(record, {"history": result.history, "facts": result.facts, "init_sha256": file_sha256(start)})
    return result


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """`count` CPU threads of torch inside (0: as many as it has), the former number after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def final_front(sft: StateDict, merged: StateDict, etas: Sequence[float]) -> list[StateDict]:
    """The output of Algorithm 1: {(1 - eta) * θ_sft + eta * θ_slerp^I}, a state dict an eta."""
    return [liti(sft, merged, eta) for eta in etas]


def claim(folder: Path, config: WarpConfig, task: Task) -> None:
    """Write what the runs depend on into `folder`, or check that it is what is already there.

    Configuration, task, θ_sft, training prompts, what the reward says of itself, number of threads.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "config.json"
    mine = config.model_dump(include=set(WarpConfig.model_fields))
    mine |= {"task_name": task.name, "policy_sha256": fingerprint(task.policy.state_dict())}
    mine |= {"prompts_sha256": hashlib.sha256("\0".join(task.train_prompts).encode()).hexdigest()}
    mine |= {"reward": describe_reward(task.reward), "threads": config.threads or torch.get_num_threads()}
    mine = json.loads(json.dumps(mine))
    if not path.exists():
        write_json(path, mine)
        return
    theirs = json.loads(path.read_text())
    differing = [f"{k}: {theirs.get(k)!r} there, {mine.get(k)!r} here" for k in mine if theirs.get(k) != mine.get(k)]
    if differing:
        raise ValueError(
            f"{folder} holds a run of another configuration ({'; '.join(differing)}); pass another out_dir"
        )


def denull(facts: dict[str, Any]) -> Row:
    """Facts read back from JSON, None as NaN again."""
    return {name: math.nan if value is None else value for name, value in facts.items()}


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
        from tqdm.auto import tqdm

        if callable(self.progress):
            return self.progress
        self.bar = tqdm(total=self.total, disable=not self.progress, unit="шаг", leave=False)
        return lambda row: self.bar.update() and None

    def __exit__(self, *_: object) -> None:
        if not callable(self.progress):
            self.bar.close()
