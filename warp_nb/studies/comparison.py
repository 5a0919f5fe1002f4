"""Experiment 5: WARP compared with M = 1 (no merging) and with one long run of the same compute, each with its front.

The arms differ only in their loops. The arm "M = 1" reuses run (1, 1) of WARP, because it is the same run.
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from warp_nb.algorithm.merge import Weights
from warp_nb.config import ExperimentConfig
from warp_nb.fast.devices import training_dtype
from warp_nb.files import json_values, replacing
from warp_nb.measure.checks import Check, reads_like_reference, run_checks
from warp_nb.measure.estimates import NO_ESTIMATE, Estimate, mean_interval
from warp_nb.measure.evaluation import (
    MEASURES,
    Evaluation,
    check_eval_prompts,
    evaluate,
    evaluate_weights,
    over_trainings,
    pareto_front,
)
from warp_nb.measure.machine import machine, peak_rss_mb
from warp_nb.paths import expanded
from warp_nb.runs.training import OnStep
from warp_nb.runs.warp import WarpResult, reporting, warp
from warp_nb.studies.experiment import TABLES, check_loaded, evaluation_settings, stacked
from warp_nb.tasks.gate import RewardGate
from warp_nb.tasks.task import Task, describe

if TYPE_CHECKING:
    import pandas as pd

ETAS = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Points of a front, without θ_sft itself."""
WARP, SINGLE, REINFORCE = "WARP", "M = 1", "REINFORCE"
ARMS = (WARP, SINGLE, REINFORCE)
KL_TOLERANCE = 0.05
"""A policy is at the common KL if its KL differs from it by at most this share."""
SEARCH_STEPS = 4
"""Largest number of policies that are evaluated to find one at the common KL."""


@dataclass
class Measured:
    """Evaluations of one arm and seed on held-out prompts; all arms of a seed share prompts and noise.

    Args:
        front: evaluations at every eta of ETAS.
        end: the policy after the last line 13; only of WARP.
        unmerged: θ^1 … θ^M of the last iteration, before line 12; only of WARP.
        matched: (eta, evaluation) at the seed's common KL; None where the arms have none.
    """

    front: list[Evaluation]
    end: Evaluation | None = None
    unmerged: list[Evaluation] = field(default_factory=list)
    matched: tuple[float, Evaluation] | None = None


@dataclass
class Arm:
    """One way to spend the steps, over all seeds; `measured` has one entry per seed."""

    config: ExperimentConfig
    history: pd.DataFrame
    geometry: pd.DataFrame
    runs: pd.DataFrame
    merges: pd.DataFrame
    measured: list[Measured]

    @property
    def steps(self) -> int:
        """Steps of one training."""
        return self.config.I * self.config.M * self.config.T


@dataclass(kw_only=True)
class Comparison:
    """Result of experiment 5; `checks` cover WARP's runs, `seconds` this call alone."""

    config: ExperimentConfig
    about: dict[str, Any]
    arms: dict[str, Arm]
    gate: RewardGate | None
    checks: list[Check]
    seconds: float
    peak_rss_mb: float
    seeds: list[int]

    @property
    def training_seconds(self) -> float:
        """Seconds of all steps, including those of earlier calls; the shared run counts once."""
        histories = {name: arm.history for name, arm in self.arms.items()}
        histories[SINGLE] = histories[SINGLE][own_rows(histories[SINGLE])]
        return float(sum(rows["seconds"].sum() for rows in histories.values()))

    def over_seeds(self, arm: str, measure: str) -> list[Estimate]:
        """Return a measure at every eta of ETAS (see `over_trainings`)."""
        fronts = [measured.front for measured in self.arms[arm].measured]
        return [over_trainings(points, measure) for points in zip(*fronts, strict=True)]

    def front(self, arm: str) -> list[dict[str, Any]]:
        """Return rows (eta, reward, kl) of the arm's front: reward is the gain over θ_sft, which is the first row."""
        zero = Estimate(0.0, 0.0, 0.0)
        gains, kls = (self.over_seeds(arm, name) for name in ("reward_difference", "kl_policy_reference"))
        rows = [{"eta": eta, "reward": r, "kl": k} for eta, r, k in zip(ETAS, gains, kls, strict=True)]
        return [{"eta": 0.0, "reward": zero, "kl": zero}, *rows]

    def end(self) -> dict[str, Estimate]:
        """Return gain and KL of the policy after the last line 13 of WARP."""
        ends = [measured.end for measured in self.arms[WARP].measured if measured.end]
        gain, kl = (over_trainings(ends, name) for name in ("reward_difference", "kl_policy_reference"))
        return {"reward": gain, "kl": kl}

    def readable(self, arm: str, place: int) -> bool:
        """Return whether the text at ETAS[place] reads like θ_sft's in every seed."""
        return all(reads_like_reference(measured.front[place]) for measured in self.arms[arm].measured)

    def matched(self, arm: str) -> list[tuple[float, Evaluation]] | None:
        """Return (eta, evaluation) of every seed at its common KL; None if a seed has no common KL."""
        found = [measured.matched for measured in self.arms[arm].measured]
        known = [point for point in found if point is not None]
        return known if len(known) == len(found) else None

    def gain_at_equal_kl(self, arm: str) -> Estimate:
        """Return the reward minus θ_sft's at the common KL; NaN if there is none."""
        points = self.matched(arm)
        return over_trainings([e for _, e in points], "reward_difference") if points else NO_ESTIMATE

    def advantage(self, arm: str, other: str) -> Estimate:
        """Return how much more reward one arm has than another at the common KL; NaN if there is none.

        Arms are paired by seed. A single training is paired by prompt, which ignores the variation of trainings.
        """
        one, two = self.matched(arm), self.matched(other)
        if not one or not two:
            return NO_ESTIMATE
        sides = [[evaluation for _, evaluation in points] for points in (one, two)]
        if len(self.seeds) == 1:
            values = [evaluations[0].rewards_policy for evaluations in sides]
        else:
            values = [[evaluation.reward_policy.value for evaluation in evaluations] for evaluations in sides]
        return mean_interval([a - b for a, b in zip(*values, strict=True)])

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; NaN becomes null."""
        return json_values(
            {
                "status": "ok",
                "task": self.about,
                "config": self.config.model_dump(exclude={"out_dir"}),
                "seeds": self.seeds,
                "summary": {name: self.arm_summary(name) for name in self.arms},
                "advantage": {name: asdict(self.advantage(WARP, name)) for name in self.arms if name != WARP},
                "checks": [check.to_json() for check in self.checks],
                "gate": self.gate and asdict(self.gate),
                "arms": {
                    name: {
                        "measured": [measured_record(measured) for measured in arm.measured],
                        **{table: getattr(arm, table).to_dict("records") for table in TABLES if table != "runs"},
                    }
                    for name, arm in self.arms.items()
                },
                "runs": [row for name, arm in self.arms.items() for row in own_runs(name, arm)],
                "seconds": self.seconds,
                "training_seconds": self.training_seconds,
                "peak_rss_mb": self.peak_rss_mb,
                "machine": machine(),
            }
        )

    def arm_summary(self, arm: str) -> dict[str, Any]:
        """Return the measures along the arm's front and at equal KL."""
        front = {measure: [asdict(e) for e in self.over_seeds(arm, measure)] for measure in MEASURES}
        return front | {
            "gain_at_equal_kl": asdict(self.gain_at_equal_kl(arm)),
            "equal_kl": [e.kl_policy_reference.value for _, e in self.matched(arm) or []],
            "readable": [self.readable(arm, place) for place in range(len(ETAS))],
            "etas": ETAS,
            "steps": self.arms[arm].steps,
        }


def measured_record(measured: Measured) -> dict[str, Any]:
    """Return all measures of one arm and seed, and samples at the common KL."""
    return {
        "front": [figures(evaluation) for evaluation in measured.front],
        "end": measured.end and figures(measured.end),
        "unmerged": [figures(evaluation) for evaluation in measured.unmerged],
        "matched": measured.matched
        and {"eta": measured.matched[0], "samples": measured.matched[1].samples} | figures(measured.matched[1]),
    }


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """Return an evaluation without its texts."""
    varieties = {name: getattr(evaluation, name) for name in ("variety_reference", "variety_policy")}
    return {name: asdict(estimate) for name, estimate in evaluation.measures().items()} | varieties


def own_runs(name: str, arm: Arm) -> list[dict[str, Any]]:
    """Return rows of the arm's runs; M = 1 leaves out the run that it shares with WARP."""
    runs = arm.runs.assign(arm=name)
    rows: list[dict[str, Any]] = (runs[own_rows(runs)] if name == SINGLE else runs).to_dict("records")
    return rows


def own_rows(rows: pd.DataFrame) -> pd.Series:
    """Return a mask of the rows that are not of run (1, 1)."""
    return (rows["iteration"] != 1) | (rows["run"] != 1)


# Training


def arm_config(config: ExperimentConfig, arm: str) -> ExperimentConfig:
    """Set the arm's loops: one run of I·M·T steps for REINFORCE, one run per iteration for M = 1."""
    alone = {"M": 1, "lam": 0.5}
    changes = {WARP: {}, SINGLE: alone, REINFORCE: alone | {"I": 1, "T": config.I * config.M * config.T}}
    return config.replace(**changes[arm])


def total_steps(config: ExperimentConfig) -> int:
    """Count the steps of all arms and seeds; the shared run counts twice, as in the progress bar."""
    return config.n_seeds * sum(c.I * c.M * c.T for c in (arm_config(config, arm) for arm in ARMS))


def run_comparison(config: ExperimentConfig, task: Task, *, progress: bool = True) -> Comparison:
    """Train all arms `n_seeds` times with independent seeds and evaluate the front of each.

    With `out_dir` runs are durable in seed_*/ARM, and a second call resumes, as in `warp`.
    """
    started = time.perf_counter()
    check_loaded(config, task)
    config = config.replace(dtype=training_dtype(config.dtype, task.policy))
    check_eval_prompts(config.n_eval_prompts, task, config.max_new_tokens)
    gate = task.gate(task.reward) if task.gate else None
    seeds = [config.seed + index for index in range(config.n_seeds)]
    with ExitStack() as stack:
        on_step = stack.enter_context(reporting(progress, total_steps(config)))
        home = expanded(config.out_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        found = [train_seed(config.replace(seed=seed), task, home / f"seed_{seed}", on_step) for seed in seeds]
    arms = {}
    for arm in ARMS:
        tables = stacked([trained[arm][0] for trained in found], seeds)
        arms[arm] = Arm(arm_config(config, arm), **tables, measured=[trained[arm][1] for trained in found])
    warped = arms[WARP]
    ends = [measured.end for measured in warped.measured if measured.end]
    return Comparison(
        config=config,
        about=describe(task),
        arms=arms,
        gate=gate,
        checks=run_checks(gate, warped.history, warped.runs, warped.merges, evaluations=ends, config=config),
        seconds=time.perf_counter() - started,
        peak_rss_mb=peak_rss_mb(),
        seeds=seeds,
    )


def train_seed(
    config: ExperimentConfig, task: Task, folder: Path, on_step: OnStep
) -> dict[str, tuple[SimpleNamespace, Measured]]:
    """Train and evaluate every arm with one seed; return the tables of its `WarpResult` and its evaluations."""
    settings = evaluation_settings(config, task)
    tables: dict[str, SimpleNamespace] = {}
    merged: dict[str, Weights] = {}
    measured: dict[str, Measured] = {}
    for arm in ARMS:
        result = train_arm(arm_config(config, arm), task, folder, arm, on_step=on_step)
        tables[arm] = SimpleNamespace(**{name: getattr(result, name) for name in TABLES})
        merged[arm] = result.merged
        measured[arm] = Measured(front_at(ETAS, merged[arm], task, settings))
        if arm == WARP:
            measured[arm].end = evaluate(result.policy, task.policy, task, **settings)
            measured[arm].unmerged = [
                evaluate_weights(weights, task.policy, task, **settings) for weights in result.ingredients
            ]
    kl = common_kl([measured[arm].front for arm in ARMS])
    if kl is not None:
        for arm in ARMS:

            def evaluate_at(eta: float, weights: Weights = merged[arm]) -> Evaluation:
                return front_at([eta], weights, task, settings)[0]

            measured[arm].matched = at_kl(kl, measured[arm].front, evaluate_at)
    return {arm: (tables[arm], measured[arm]) for arm in ARMS}


def train_arm(config: ExperimentConfig, task: Task, folder: Path, arm: str, *, on_step: OnStep) -> WarpResult:
    """Train the arm's runs; M = 1 copies run (1, 1) of WARP, which has the same θ_sft and seed."""
    home = folder / arm.replace(" ", "")
    if arm == SINGLE:
        home.mkdir(parents=True, exist_ok=True)
        name = "run_1_1.safetensors"
        if (folder / WARP / name).exists() and not (home / name).exists():
            with replacing(home / name) as temporary:
                shutil.copyfile(folder / WARP / name, temporary)
    return warp(config, task, home, progress=on_step)


def front_at(etas: Sequence[float], merged: Weights, task: Task, settings: dict[str, Any]) -> list[Evaluation]:
    """Evaluate (1 - eta) θ_sft + eta θ_slerp^I at every eta."""
    return [row["evaluation"] for row in pareto_front(task.policy, merged, etas, task, **settings)]


# Equal KL


def common_kl(fronts: Sequence[Sequence[Evaluation]]) -> float | None:
    """Return the largest KL(policy || sft) that every front reaches with readable text; None if one never does."""
    reached = [[e.kl_policy_reference.value for e in front if reads_like_reference(e)] for front in fronts]
    kl = min(max(kls, default=0.0) for kls in reached)
    return kl if kl > 0 else None


def at_kl(
    kl: float, front: Sequence[Evaluation], evaluate_at: Callable[[float], Evaluation]
) -> tuple[float, Evaluation]:
    """Return (eta, evaluation) with KL(policy || sft) within KL_TOLERANCE of `kl`, else the nearest one tried."""
    points = dict(zip(ETAS, front, strict=True))

    def away(eta: float) -> float:
        return abs(points[eta].kl_policy_reference.value - kl)

    for _ in range(SEARCH_STEPS):
        if min(map(away, points)) <= KL_TOLERANCE * kl:
            break
        eta = eta_at(kl, {eta: point.kl_policy_reference.value for eta, point in points.items()})
        points[eta] = evaluate_at(eta)
    nearest = min(points, key=away)
    return nearest, points[nearest]


def eta_at(kl: float, kls: Mapping[float, float]) -> float:
    """Return the eta where a front with these KLs (eta -> nats) first reaches `kl`, √KL being linear in between."""
    points = sorted({0.0: 0.0, **kls}.items())
    for (low, below), (high, above) in pairwise(points):
        if below <= kl <= above and above > below:
            start, end = math.sqrt(max(below, 0.0)), math.sqrt(above)
            return low + (high - low) * (math.sqrt(kl) - start) / (end - start)
    return points[-1][0]
