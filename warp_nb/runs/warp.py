"""`warp()`: Algorithm 1 on a task, in memory or in a folder, with a record of everything it did."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from warp_nb.algorithm.merge import Weights, load_, weights_of
from warp_nb.algorithm.warp import algorithm_1
from warp_nb.config import WarpConfig
from warp_nb.runs.durable import DurableRuns, Runs
from warp_nb.runs.facts import Row
from warp_nb.runs.geometry import merge_facts, pairwise_angles
from warp_nb.runs.training import FAST, OnStep, Parts
from warp_nb.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel


@dataclass
class WarpResult:
    """What `warp()` returns.

    Args:
        policy: the model after the last line 13, θ_init of the algorithm's end.
        merged: θ_slerp of the last iteration, which the front interpolates to from θ_sft.
        ingredients: θ^1 … θ^M of the last iteration, which line 12 merged.
        history: a row a step: iteration, run, step (from 1), reward, kl (to the anchor, nats a sequence),
            objective (r_beta) and others.
        geometry: a row a block and pair of runs: iteration, run_a, run_b, block, cosine, omega (degrees), norm_a,
            norm_b.
        runs: a row a run: figures for the checks; `loaded` is the share of its steps that an earlier call made.
        merges: a row an iteration: liti_ratio (should be eta), delta_cosine (largest over pairs of runs).
        snapshots: (i, m, step) -> weights, every `config.snapshot_every` steps; (i, m, "anchor") -> the final
            anchor, with `config.keep_anchors`.
    """

    policy: PreTrainedModel
    merged: Weights
    ingredients: list[Weights]
    history: pd.DataFrame
    geometry: pd.DataFrame
    runs: pd.DataFrame
    merges: pd.DataFrame
    snapshots: Mapping[tuple[int, int, int | str], Weights]


def warp(
    config: WarpConfig,
    task: Task,
    out_dir: str | Path | None = None,
    executor: Executor | None = None,
    *,
    progress: bool | OnStep = True,
    parts: Parts = FAST,
) -> WarpResult:
    """Run Algorithm 1 on `task`; θ_sft is `task.policy`, which is not changed.

    Args:
        config: the parameters.
        task: policy, tokenizer, reward and prompts.
        out_dir: folder of a durable run. A second call resumes: finished runs are loaded, one that an error or an
            interrupt stopped continues at its next step, and with `config.save_every` = k one that was killed loses
            less than k steps. The result is bit-identical to an uninterrupted call. Without a folder nothing is
            written to disk.
        executor: does an iteration's runs side by side, with the same bits at the same `config.threads`:
            `process_pool(workers)`, or Dask's `client.get_executor(pure=False, retries=2)` with an `out_dir` on a
            disk that all workers share. Its workers make the task by `task.rebuild`. Where `config.threads` is 0, a
            run has its share of torch's own number: 1/M.
        progress: True (a bar), False, or a function that is called with every history row; rows of an executor's
            run come when it ends.
        parts: the functions that a run is made of.

    Raises:
        ValueError: `out_dir` holds runs of another configuration or task or cannot be written; the executor is one
            of threads, the task has no `rebuild`, or `parts` are not the default ones, which workers use.
        RuntimeError: another call is using the folder; both checkpoints of a run are damaged; a worker lacks the
            files of the folder, makes another task, or dies with its pool.
    """
    import pandas as pd

    geometry: list[Mapping[str, float | str]] = []
    merges: list[Row] = []
    last: list[Weights] = []

    def seen(i: int, init: Weights, policies: list[Weights], merged: Weights, updated: Weights) -> None:
        geometry.extend({"iteration": i} | row for row in pairwise_angles(init, policies, config.merge_by))
        merges.append({"iteration": i} | merge_facts(init, policies, merged, updated))
        last[:] = policies

    merge = partial(parts.merge, method=config.merge, by=config.merge_by, lam=config.lam)
    with ExitStack() as stack:
        on_step = stack.enter_context(reporting(progress, config.I * config.M * config.T))
        if out_dir is None and executor is None:
            runs: Runs = Runs(config, task, parts, on_step)
        else:
            folder = Path(out_dir or stack.enter_context(tempfile.TemporaryDirectory()))
            runs = DurableRuns(config, task, parts, on_step, folder=folder, executor=executor)
            stack.enter_context(runs.claimed())
        end, merged = algorithm_1(
            weights_of(task.policy), runs, I=config.I, M=config.M, eta=config.eta, merge=merge, seen=seen
        )
        snapshots = runs.snapshots if out_dir or executor is None else dict(runs.snapshots)
    policy = copy.deepcopy(task.policy).eval()
    load_(policy, end)
    results = [runs.results[key] for key in sorted(runs.results)]
    history = pd.DataFrame([row for result in results for row in result.history])
    facts = pd.DataFrame([result.facts for result in results])
    return WarpResult(policy, merged, last, history, pd.DataFrame(geometry), facts, pd.DataFrame(merges), snapshots)


@contextmanager
def reporting(progress: bool | OnStep, total: int) -> Iterator[OnStep]:
    """A function to call with every row: the caller's own, or one that moves a bar of `total` steps."""
    if callable(progress):
        yield progress
        return
    from tqdm import tqdm

    bar_format = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
    with tqdm(total=total, disable=not progress, leave=False, bar_format=bar_format) as bar:
        yield lambda row: bar.update() and None
