"""Experiment 5: WARP beside one run without merging and beside one long run of the same compute, each with its front.

The arms share all but their loops. «M = 1» takes run (1, 1) over from WARP: it is the same run.
"""

from __future__ import annotations

import copy
import math
import shutil
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb.algorithm.average import StateDict
from warp_nb.config import ExperimentConfig
from warp_nb.fast.devices import training_dtype
from warp_nb.measure.checks import Check, reads_like_reference, run_checks
from warp_nb.measure.evaluation import (
    MEASURES,
    Estimate,
    Evaluation,
    check_eval_prompts,
    evaluate,
    mean_interval,
    over_trainings,
    pareto_front,
)
from warp_nb.runs.policy_gradient import derive_seed
from warp_nb.runs.warping import Progress, WarpResult, reporting, warp
from warp_nb.runs.weights import load_weights, plain
from warp_nb.studies.experiment import machine, peak_rss_mb
from warp_nb.tasks.reward_model import RewardGate, gate_pairs, measure_gate
from warp_nb.tasks.task import Task, describe

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("history", "runs", "merges", "geometry")
"""Of a WarpResult."""
ETAS = (0.1, 0.25, 0.5, 0.75, 1.0)
"""Points of a front beside θ_sft itself."""
WARP, SINGLE, PLAIN = "WARP", "M = 1", "REINFORCE"
ARMS = (WARP, SINGLE, PLAIN)
KL_TOLERANCE = 0.05
"""A policy is at the common KL when its own differs by no more than this share."""
SEARCH_STEPS = 4
"""Policies that are evaluated at the most to find one at the common KL."""


@dataclass
class Measured:
    """One arm and seed on the held-out prompts; the prompts and the noise are those of the seed's other arms."""

    front: list[Evaluation]
    """At every eta of ETAS."""
    end: Evaluation | None = None
    """The policy after the last line 12; only of WARP."""
    unmerged: list[Evaluation] = field(default_factory=list)
    """θ^1 … θ^M of the last iteration, before line 11; only of WARP."""
    matched: tuple[float, Evaluation] | None = None
    """(eta, evaluation) at the seed's common KL; None where the arms have none."""


@dataclass
class Arm:
    """One way to spend the steps, over all seeds."""

    config: ExperimentConfig
    history: pd.DataFrame
    runs: pd.DataFrame
    merges: pd.DataFrame
    geometry: pd.DataFrame
    measured: list[Measured]
    """A seed each."""

    @property
    def steps(self) -> int:
        """Of one training."""
        return self.config.I * self.config.M * self.config.T


@dataclass
class Comparison:
    """What experiment 5 measured."""

    config: ExperimentConfig
    about: dict[str, Any]
    arms: dict[str, Arm]
    gate: RewardGate
    checks: list[Check]
    """Of WARP's runs."""
    seconds: float
    """Of this call; of a call that went on, only what was left."""
    peak_rss_mb: float
    seeds: list[int]

    @property
    def training_seconds(self) -> float:
        """Of all steps, also of those that an earlier call made; the run that M = 1 shares counts once."""
        histories = {name: arm.history for name, arm in self.arms.items()}
        histories[SINGLE] = histories[SINGLE][own_rows(histories[SINGLE])]
        return float(sum(rows["seconds"].sum() for rows in histories.values()))

    def over_seeds(self, arm: str, measure: str) -> list[Estimate]:
        """A measure at every eta of ETAS: over the seeds by the t interval, of a single one over its prompts."""
        fronts = [measured.front for measured in self.arms[arm].measured]
        return [over_trainings(points, measure) for points in zip(*fronts, strict=True)]

    def front(self, arm: str) -> list[dict[str, Any]]:
        """Rows (eta, reward, kl) for `plots.reward_kl_plane`: the gain over θ_sft, which stands first, at zero."""
        zero = Estimate(0.0, 0.0, 0.0)
        gains, kls = (self.over_seeds(arm, name) for name in ("reward_difference", "kl_policy_reference"))
        rows = [{"eta": eta, "reward": r, "kl": k} for eta, r, k in zip(ETAS, gains, kls, strict=True)]
        return [{"eta": 0.0, "reward": zero, "kl": zero}, *rows]

    def end(self) -> dict[str, Any]:
        """Row (name, reward, kl) for `plots.reward_kl_plane`: the policy after the last line 12 of WARP."""
        ends = [measured.end for measured in self.arms[WARP].measured if measured.end]
        gain, kl = (over_trainings(ends, name) for name in ("reward_difference", "kl_policy_reference"))
        return {"name": "конец", "reward": gain, "kl": kl}

    def readable(self, arm: str, place: int) -> bool:
        """Whether the text at this place of ETAS reads like θ_sft's in every seed."""
        return all(reads_like_reference(measured.front[place]) for measured in self.arms[arm].measured)

    def matched(self, arm: str) -> list[tuple[float, Evaluation]] | None:
        """(eta, evaluation) of every seed at its common KL; None where a seed has no common KL."""
        found = [measured.matched for measured in self.arms[arm].measured]
        known = [point for point in found if point is not None]
        return known if len(known) == len(found) else None

    def gain_at_equal_kl(self, arm: str) -> Estimate:
        """Reward over θ_sft's at the common KL; NaN where there is none."""
        points = self.matched(arm)
        return over_trainings([e for _, e in points], "reward_difference") if points else Estimate(*[math.nan] * 3)

    def advantage(self, arm: str, other: str) -> Estimate:
        """How much more reward one arm has than another at the common KL; NaN where there is none.

        Paired by seed; of a single training by prompt, which leaves out what another training would give.
        """
        one, two = self.matched(arm), self.matched(other)
        if not one or not two:
            return Estimate(*[math.nan] * 3)
        sides = [[evaluation for _, evaluation in points] for points in (one, two)]
        if len(self.seeds) == 1:
            values = [evaluations[0].rewards_policy for evaluations in sides]
        else:
            values = [[evaluation.reward_policy.value for evaluation in evaluations] for evaluations in sides]
        return mean_interval([a - b for a, b in zip(*values, strict=True)])

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; NaN as null."""
        return plain(
            {
                "status": "ok",
                "task": self.about,
                "config": self.config.model_dump(exclude={"out_dir"}),
                "seeds": self.seeds,
                "summary": {
                    name: {measure: [asdict(e) for e in self.over_seeds(name, measure)] for measure in MEASURES}
                    | {
                        "gain_at_equal_kl": asdict(self.gain_at_equal_kl(name)),
                        "equal_kl": [e.kl_policy_reference.value for _, e in self.matched(name) or []],
                        "readable": [self.readable(name, place) for place in range(len(ETAS))],
                        "etas": ETAS,
                        "steps": arm.steps,
                    }
                    for name, arm in self.arms.items()
                },
                "advantage": {name: asdict(self.advantage(WARP, name)) for name in self.arms if name != WARP},
                "checks": [asdict(check) for check in self.checks],
                "gate": asdict(self.gate),
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


def measured_record(measured: Measured) -> dict[str, Any]:
    """All figures of one arm and seed, and samples at the common KL."""
    return {
        "front": [figures(evaluation) for evaluation in measured.front],
        "end": measured.end and figures(measured.end),
        "unmerged": [figures(evaluation) for evaluation in measured.unmerged],
        "matched": measured.matched
        and {"eta": measured.matched[0], "samples": measured.matched[1].samples} | figures(measured.matched[1]),
    }


def figures(evaluation: Evaluation) -> dict[str, Any]:
    """An evaluation without its texts."""
    varieties = {name: getattr(evaluation, name) for name in ("variety_reference", "variety_policy")}
    return {name: asdict(estimate) for name, estimate in evaluation.measures().items()} | varieties


def own_runs(name: str, arm: Arm) -> list[dict[str, Any]]:
    """Rows of the arm's runs; the one that M = 1 shares with WARP is WARP's."""
    runs = arm.runs.assign(arm=name)
    rows: list[dict[str, Any]] = (runs[own_rows(runs)] if name == SINGLE else runs).to_dict("records")
    return rows


def own_rows(rows: pd.DataFrame) -> pd.Series:
    """Which rows are not of run (1, 1)."""
    return (rows["iteration"] != 1) | (rows["run"] != 1)


def arm_config(config: ExperimentConfig, arm: str) -> ExperimentConfig:
    """The arm's loops: I·M·T steps in one run for REINFORCE, one run an iteration for M = 1."""
    changes = {WARP: {}, SINGLE: {"M": 1}, PLAIN: {"I": 1, "M": 1, "T": config.I * config.M * config.T}}
    return config.replace(**changes[arm])


def total_steps(config: ExperimentConfig) -> int:
    """Steps of all arms and seeds, the shared run counted twice as it is shown."""
    return config.n_seeds * sum(c.I * c.M * c.T for c in (arm_config(config, arm) for arm in ARMS))


def run_comparison(config: ExperimentConfig, task: Task, progress: bool = True) -> Comparison:
    """Train all arms `n_seeds` times with independent seeds and evaluate the front of each.

    With `out_dir` finished runs are kept in seed_*/ARM and a second call goes on, as in `warp`.
    """
    started = time.perf_counter()
    config = config.replace(dtype=training_dtype(config.dtype, task.policy))
    check_eval_prompts(config.n_eval_prompts, task)
    gate = measure_gate(task.reward, pairs=gate_pairs(source=task.reviews))
    seeds = [config.seed + index for index in range(config.n_seeds)]
    with ExitStack() as stack:
        on_step = stack.enter_context(reporting(progress, total_steps(config)))
        home = Path(config.out_dir or stack.enter_context(tempfile.TemporaryDirectory()))
        found = [train_seed(config.replace(seed=seed), task, home / f"seed_{seed}", on_step) for seed in seeds]
    arms = {arm: gathered(arm_config(config, arm), [trained[arm] for trained in found], seeds) for arm in ARMS}
    warped = arms[WARP]
    ends = [measured.end for measured in warped.measured if measured.end]
    return Comparison(
        config=config,
        about=describe(task),
        arms=arms,
        gate=gate,
        checks=run_checks(gate, warped.history, warped.runs, warped.merges, ends, config),
        seconds=time.perf_counter() - started,
        peak_rss_mb=peak_rss_mb(),
        seeds=seeds,
    )


Tables = dict[str, "pd.DataFrame"]


def train_seed(
    config: ExperimentConfig, task: Task, folder: Path, on_step: Progress
) -> dict[str, tuple[Tables, Measured]]:
    """Of every arm the tables of its runs and what was measured on the held-out prompts."""
    tables: dict[str, Tables] = {}
    merged: dict[str, StateDict] = {}
    measured: dict[str, Measured] = {}
    for arm in ARMS:
        result = train_arm(arm_config(config, arm), task, folder, arm, on_step)
        tables[arm] = {name: getattr(result, name) for name in TABLES}
        merged[arm] = result.merged
        measured[arm] = Measured(front_at(ETAS, result.merged, task, config))
        if arm == WARP:
            measured[arm].end = evaluate(result.policy, task.policy, task, *evaluation_settings(config))
            measured[arm].unmerged = unmerged(config, task, folder / WARP)
    kl = common_kl([measured[arm].front for arm in ARMS])
    if kl is not None:
        for arm in ARMS:

            def evaluate_at(eta: float, state: StateDict = merged[arm]) -> Evaluation:
                return front_at([eta], state, task, config)[0]

            measured[arm].matched = at_kl(kl, measured[arm].front, evaluate_at)
    return {arm: (tables[arm], measured[arm]) for arm in ARMS}


def train_arm(config: ExperimentConfig, task: Task, folder: Path, arm: str, on_step: Progress) -> WarpResult:
    """The arm's runs, M = 1 with the first of WARP's."""
    home = folder / arm.replace(" ", "")
    if arm == SINGLE:
        share_first_run(folder / WARP, home)
    return warp(config, task, home, progress=on_step)


def share_first_run(source: Path, target: Path) -> None:
    """Give `target` run (1, 1) of `source`, which begins at the same θ_sft with the same seed; not over its own."""
    target.mkdir(parents=True, exist_ok=True)
    for name in ("run_1_1.safetensors", "run_1_1.json"):
        if (source / name).exists() and not (target / name).exists():
            shutil.copyfile(source / name, target / name)


def gathered(config: ExperimentConfig, found: Sequence[tuple[Tables, Measured]], seeds: Sequence[int]) -> Arm:
    """The results of all seeds as one arm."""
    import pandas as pd

    frames = {
        name: pd.concat(
            [tables[name].assign(seed=seed) for (tables, _), seed in zip(found, seeds, strict=True)], ignore_index=True
        )
        for name in TABLES
    }
    return Arm(config=config, measured=[measured for _, measured in found], **frames)


# Evaluation


def evaluation_settings(config: ExperimentConfig) -> tuple[int, int, int, float]:
    """What `evaluate` takes after the task; the same for all arms of a seed."""
    seed = derive_seed(config.seed, "evaluation")
    return config.n_eval_prompts, seed, config.max_new_tokens, config.temperature


def front_at(etas: Sequence[float], merged: StateDict, task: Task, config: ExperimentConfig) -> list[Evaluation]:
    """Of every eta the policy (1 - eta) θ_sft + eta θ_slerp^I."""
    rows = pareto_front(task.policy, merged, etas, task, *evaluation_settings(config))
    return [row["evaluation"] for row in rows]


def unmerged(config: ExperimentConfig, task: Task, home: Path) -> list[Evaluation]:
    """Of every run of the last iteration, as it stands in the folder."""
    policy, found = copy.deepcopy(task.policy).eval(), []
    for run in range(1, config.M + 1):
        path = home / f"run_{config.I}_{run}.safetensors"
        policy.load_state_dict(load_weights(path, policy.state_dict()))
        found.append(evaluate(policy, task.policy, task, *evaluation_settings(config)))
    return found


def common_kl(fronts: Sequence[Sequence[Evaluation]]) -> float | None:
    """The largest KL(policy || sft) that every front reaches where its text reads; None where one never does."""
    reached = [[e.kl_policy_reference.value for e in front if reads_like_reference(e)] for front in fronts]
    kl = min(max(kls, default=0.0) for kls in reached)
    return kl if kl > 0 else None


def at_kl(
    kl: float, front: Sequence[Evaluation], evaluate_at: Callable[[float], Evaluation]
) -> tuple[float, Evaluation]:
    """(eta, evaluation) whose KL(policy || sft) is `kl` within KL_TOLERANCE, or the nearest of SEARCH_STEPS tries."""
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
    """The eta at which a front with these KLs (eta -> nats) first reaches `kl`: √KL linear between its points."""
    points = sorted({0.0: 0.0, **kls}.items())
    for (low, below), (high, above) in pairwise(points):
        if below <= kl <= above and above > below:
            start, end = math.sqrt(max(below, 0.0)), math.sqrt(above)
            return low + (high - low) * (math.sqrt(kl) - start) / (end - start)
    return points[-1][0]
