"""`warp()`: Algorithm 1 on a task, in memory or in a folder, with a record of its steps and merges."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb.algorithm.merge import Weights, liti, load_, weights_of
from warp_nb.algorithm.warp import algorithm_1
from warp_nb.config import WarpConfig
from warp_nb.fast.devices import training_dtype
from warp_nb.paths import expanded
from warp_nb.runs.durable import DurableRuns, Runs
from warp_nb.runs.facts import Row
from warp_nb.runs.folder import FINAL, MERGED
from warp_nb.runs.geometry import merge_facts, pairwise_angles
from warp_nb.runs.interrupts import signals_unwind
from warp_nb.runs.model_card import Checked, Evaluated
from warp_nb.runs.trained_policy import TrainedPolicy, point_of_front
from warp_nb.runs.training import FAST, OnStep, Parts
from warp_nb.tasks.task import Task

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedModel


@dataclass
class WarpResult:
    """Result of `warp()`.

    Args:
        policy: the model with θ_init after the last line 13.
        merged: θ_slerp of the last iteration, the end of the front that starts at θ_sft.
        ingredients: θ^1 … θ^M of the last iteration, which line 12 merged.
        history: one row per step: iteration, run, step (from 1), reward, kl (to the anchor, nats per sequence),
            objective (r_beta) and others.
        geometry: one row per block and pair of runs: iteration, run_a, run_b, block, cosine, omega (degrees), norm_a,
            norm_b.
        runs: one row per run: measurements for the checks; `loaded` is the share of steps from an earlier call.
        merges: one row per iteration: liti_ratio (should be eta), delta_cosine (over all weights, of the closest pair).
        snapshots: (i, m, step) -> weights, every `config.snapshot_every` steps; (i, m, "anchor") -> the final
            anchor, with `config.keep_anchors`.
        config: the parameters, with `dtype` resolved.
        task: the task; its policy is θ_sft.
    """

    policy: PreTrainedModel
    merged: Weights
    ingredients: list[Weights]
    history: pd.DataFrame
    geometry: pd.DataFrame
    runs: pd.DataFrame
    merges: pd.DataFrame
    snapshots: Mapping[tuple[int, int, int | str], Weights]
    config: WarpConfig
    task: Task

    def at(
        self, eta: float | None = None, *, evaluation: Evaluated | None = None, checks: Sequence[Checked] | None = None
    ) -> TrainedPolicy:
        """Return the policy at a point, with what its model card is to say.

        Args:
            eta: the point (1 - eta) θ_sft + eta θ_slerp of the front: 0 is θ_sft, 1 is `merged`, up to 2 extrapolates.
                None, the default: `policy`, with which the algorithm ended (the last line 13 begins at the last
                θ_init, so that for I > 1 this policy is not on the front).
            evaluation: an evaluation of this very policy, `evaluate(result.at(eta).model(), task.policy, task, …)`;
                without it the card says that nothing was measured.
            checks: as `check_result` returns them; without them the card says that they were not run.

        Raises:
            ValueError: eta is out of range.
        """
        if eta is None:
            weights, point = weights_of(self.policy), "The policy after the last line 13 of Algorithm 1."
        else:
            weights = liti(weights_of(self.task.policy), self.merged, eta)
            point = point_of_front(eta)
        return TrainedPolicy(
            weights=weights,
            task=self.task,
            point=point,
            config=self.config,
            eta=eta,
            evaluation=evaluation,
            checks=checks,
        )

    def save(self, folder: str | Path, eta: float | None = None, **measured: Any) -> Path:
        """Save the policy at a point to a new folder that `transformers.pipeline` loads, with a model card.

        Args:
            folder: a folder that does not exist or is empty (see `TrainedPolicy.save`).
            eta, measured: the point, and `evaluation` and `checks` of it (see `at`).

        Example:
            result.save("policy")           # the policy with which the algorithm ended
            result.save("point", eta=0.7)   # a point between θ_sft and the merged policy
            pipeline("text-generation", "point")("This film")
        """
        return self.at(eta, **measured).save(folder)


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
        out_dir: folder of a durable run. A second call resumes: finished runs are loaded, a run that an error or an
            interrupt stopped continues at its next step, and a killed run loses less than k steps if
            `config.save_every` = k. The result is bit-identical to an uninterrupted call. While a run goes on,
            `run_<i>_<m>.steps.jsonl` gets a line of JSON for every step; at the end the folders `final` and `merged`
            hold `policy` and `merged` of the result, as `WarpResult.save` writes them. Without a folder and an
            executor nothing is written to disk.
        executor: trains an iteration's runs in parallel, bit-identically for equal `config.threads`:
            `process_pool(workers)`, or Dask's `client.get_executor(pure=False, retries=2)` with an `out_dir` on a
            disk that all workers share. Its workers load the task by `task.rebuild`. With `config.threads` = 0 each
            run gets 1/M of torch's threads.
        progress: True (a bar), False, or a function that is called with every history row, for a run of an executor
            when the run has ended.
        parts: the functions that a run calls.

    Raises:
        ValueError: a prompt leaves no room for a completion; the task's `run_rewards` are not M; `out_dir` holds runs
            of another configuration or task, or cannot be written; the executor is not one of processes, the task has
            no usable `rebuild`, or `parts` are not the defaults, which workers use.
        RuntimeError: another call is using the folder; both checkpoints of a run are damaged; a worker lacks the
            files of the folder, rebuilds another task, or dies with its pool.
        FloatingPointError: a loss, a measurement or a gradient is not finite. For a bad reward see `call_reward`.
    """
    geometry: list[Mapping[str, float | str]] = []
    merges: list[Row] = []
    last: list[Weights] = []

    def seen(i: int, init: Weights, policies: list[Weights], merged: Weights, updated: Weights) -> None:
        rows = pairwise_angles(init, policies, config.merge_by)
        geometry.extend({"iteration": i} | row for row in rows)
        merges.append({"iteration": i} | merge_facts(init, rows, merged, updated))
        last[:] = policies

    task.check_lengths(config.max_new_tokens)
    task.check_runs(config.M)
    config = config.replace(dtype=training_dtype(config.dtype, task.policy))
    merge = partial(parts.merge, method=config.merge, by=config.merge_by, lam=config.lam)
    with ExitStack() as stack:
        stack.enter_context(signals_unwind())
        on_step = stack.enter_context(reporting(progress, config.I * config.M * config.T))
        if out_dir is None and executor is None:
            runs: Runs = Runs(config, task, parts, on_step)
        else:
            folder = expanded(out_dir or stack.enter_context(tempfile.TemporaryDirectory()))
            runs = DurableRuns(config, task, parts, on_step, folder=folder, executor=executor)
            stack.enter_context(runs.claimed())
        end, merged = algorithm_1(
            weights_of(task.policy), runs, I=config.I, M=config.M, eta=config.eta, merge=merge, seen=seen
        )
        import pandas as pd  # here, so that the first step need not wait for it

        policy = copy.deepcopy(task.policy).eval()
        load_(policy, end)
        results = [runs.results[key] for key in sorted(runs.results)]
        result = WarpResult(
            policy=policy,
            merged=merged,
            ingredients=last,
            history=pd.DataFrame([row for one in results for row in one.history]),
            geometry=pd.DataFrame(geometry),
            runs=pd.DataFrame([one.facts for one in results]),
            merges=pd.DataFrame(merges),
            snapshots=runs.snapshots if out_dir or executor is None else dict(runs.snapshots),
            config=runs.config,
            task=task,
        )
        if out_dir is not None:
            result.at().keep(folder / FINAL)
            result.at(eta=1.0).keep(folder / MERGED)
    return result


@contextmanager
def reporting(progress: bool | OnStep, total: int) -> Iterator[OnStep]:
    """Yield a function to call with every row: `progress` itself, or one that advances a bar of `total` steps."""
    if callable(progress):
        yield progress
        return
    from tqdm import tqdm

    bar_format = "{percentage:3.0f}%|{bar}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}]"
    with tqdm(total=total, disable=not progress, leave=False, bar_format=bar_format) as bar:
        yield lambda row: bar.update() and None
