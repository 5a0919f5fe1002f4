"""Experiment 5: WARP compared with M = 1 (no merging), with one long run, and with a baseline, each with its front.

The arms differ only in their loops and in the baseline. The arm "M = 1" reuses run (1, 1) of WARP, because it is the
same run. Fronts are compared at fixed KLs (see `equal_kl.py`).
"""

from __future__ import annotations

import math
import shutil
import tempfile
import time
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from warp_nb.algorithm.merge import weights_of
from warp_nb.config import ExperimentConfig
from warp_nb.files import json_values, replacing
from warp_nb.measure.best_of_n import BestOfN
from warp_nb.measure.checks import Check, reads_like_reference, run_checks
from warp_nb.measure.estimates import Estimate
from warp_nb.measure.evaluation import MEASURES, Evaluation, check_eval_prompts, over_trainings
from warp_nb.measure.machine import machine, peak_rss_mb
from warp_nb.paths import expanded
from warp_nb.runs.training import OnStep
from warp_nb.runs.warp import WarpResult, reporting, warp
from warp_nb.studies.equal_kl import (
    DECLARED_KL,
    OWN_RUNS,
    REINFORCE,
    RLOO,
    SINGLE,
    WARP,
    points_of,
    points_of_best,
    summary,
)
from warp_nb.studies.evaluation_store import EvaluationStore, evaluation_identity
from warp_nb.studies.experiment import TABLES, check_loaded, evaluation_settings, resolved, stacked
from warp_nb.tasks.gate import RewardGate
from warp_nb.tasks.task import Task, describe

if TYPE_CHECKING:
    import pandas as pd

ETAS = (0.1, 0.2, 0.3, 0.45, 0.6, 0.8, 1.0)
"""Points of a front, without θ_sft itself."""
ARMS = (WARP, SINGLE, REINFORCE, RLOO)
RLOO_SAMPLES = 4
"""Completions of one prompt in a batch of the arm RLOO."""


@dataclass
class Measured:
    """Evaluations of one arm and seed on held-out prompts; all arms of a seed share prompts and noise.

    Args:
        front: evaluations at every eta of ETAS.
        end: the policy after the last line 13; only of WARP.
        own_runs: the fronts of θ^1 … θ^M of the last iteration, which line 12 merged; only of WARP.
        best: best-of-N from θ_sft; only of WARP.
    """

    front: list[Evaluation]
    end: Evaluation | None = None
    own_runs: list[list[Evaluation]] = field(default_factory=list)
    best: list[BestOfN] = field(default_factory=list)

    @property
    def unmerged(self) -> list[Evaluation]:
        """The runs of the last iteration themselves, at eta = 1."""
        return [front[-1] for front in self.own_runs]


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
    """Result of experiment 5; `checks` cover WARP's runs, `judge_gate` the judge, `seconds` this call alone."""

    config: ExperimentConfig
    about: dict[str, Any]
    arms: dict[str, Arm]
    gate: RewardGate | None
    judge_gate: RewardGate | None
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

    def nearest(self, arm: str) -> int:
        """Return the place in ETAS where the arm's KL, averaged over seeds, is nearest to DECLARED_KL."""
        kls = [one.value for one in self.over_seeds(arm, "kl_policy_reference")]
        return min(range(len(kls)), key=lambda place: abs(kls[place] - DECLARED_KL))

    @cached_property
    def equal_kl(self) -> dict[str, Any]:
        """The comparisons at equal KL, as plain JSON values (see `summary` of equal_kl.py)."""
        units = (self.spread(self.gate), self.spread(self.judge_gate))
        fronts = {name: [[points_of(one.front, units)] for one in arm.measured] for name, arm in self.arms.items()}
        warped = self.arms[WARP].measured
        if all(one.own_runs for one in warped):
            fronts[OWN_RUNS] = [[points_of(front, units) for front in one.own_runs] for one in warped]
        ends = [points_of([one.end], units) for one in warped if one.end]
        best = [points_of_best(one.best, units) for one in warped if one.best]
        return summary(fronts, ends, best, [one.n for one in warped[0].best])

    @staticmethod
    def spread(gate: RewardGate | None) -> float:
        """Return the unit of a reward's gains: its spread, 1 without a gate, NaN if it tells no texts apart."""
        return gate.spread or math.nan if gate else 1.0

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; NaN becomes null."""
        return json_values(
            {
                "status": "ok",
                "task": self.about,
                "config": self.config.model_dump(exclude={"out_dir"}),
                "seeds": self.seeds,
                "summary": {name: self.arm_summary(name) for name in self.arms},
                "equal_kl": self.equal_kl,
                "checks": [check.to_json() for check in self.checks],
                "gate": self.gate and asdict(self.gate),
                "judge_gate": self.judge_gate and asdict(self.judge_gate),
                "arms": {
                    name: {
                        "measured": [measured_record(measured, self.nearest(name)) for measured in arm.measured],
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
        """Return the measures along the arm's front, and where its text reads."""
        front = {measure: [asdict(e) for e in self.over_seeds(arm, measure)] for measure in MEASURES}
        readable = [self.readable(arm, place) for place in range(len(ETAS))]
        return front | {"readable": readable, "etas": ETAS, "steps": self.arms[arm].steps}


def measured_record(measured: Measured, shown: int) -> dict[str, Any]:
    """Return all measures of one arm and seed, and samples of the policy at ETAS[shown]."""
    return {
        "front": [evaluation.figures() for evaluation in measured.front],
        "end": measured.end and measured.end.figures(),
        "own_runs": [[evaluation.figures() for evaluation in front] for front in measured.own_runs],
        "best_of_n": [
            {"n": one.n, "kl_bound": one.kl_bound, "gain": asdict(one.gain), "judge_gain": asdict(one.judge_gain)}
            for one in measured.best
        ],
        "samples": {"eta": ETAS[shown], "samples": measured.front[shown].samples},
    }


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
    """Set what the arm changes: its loops, or the baseline.

    REINFORCE is one run of I·M·T steps, M = 1 has one run per iteration, RLOO is WARP with that baseline.

    Raises:
        ValueError: the batch cannot be divided into RLOO's completions of one prompt.
    """
    if arm == RLOO and config.batch_size % RLOO_SAMPLES:
        raise ValueError(
            f"batch_size must be a multiple of {RLOO_SAMPLES}, the completions per prompt of the arm {RLOO!r}, got "
            f"{config.batch_size}; pass e.g. -p batch_size {4 * RLOO_SAMPLES}"
        )
    alone = {"M": 1, "lam": 0.5}
    changes: dict[str, dict[str, Any]] = {
        WARP: {},
        SINGLE: alone,
        REINFORCE: alone | {"I": 1, "T": config.I * config.M * config.T},
        RLOO: {"baseline": "rloo", "samples_per_prompt": RLOO_SAMPLES},
    }
    return config.replace(**changes[arm])


def total_steps(config: ExperimentConfig) -> int:
    """Count the steps of all arms and seeds; the shared run counts twice, as in the progress bar."""
    return config.n_seeds * sum(c.I * c.M * c.T for c in (arm_config(config, arm) for arm in ARMS))


def run_comparison(config: ExperimentConfig, task: Task, *, progress: bool = True) -> Comparison:
    """Train all arms `n_seeds` times with independent seeds and evaluate the front of each.

    With `out_dir` runs are durable in seed_*/ARM, evaluations are saved in seed_*/evaluations, and a second call
    resumes, as in `warp`.
    """
    started = time.perf_counter()
    check_loaded(config, task)
    total = total_steps(config)
    config = resolved(config, task)
    check_eval_prompts(config.n_eval_prompts, task, config.max_new_tokens)
    for arm in ARMS:
        task.check_runs(arm_config(config, arm).M)
    gates = task.gates()
    seeds = [config.seed + index for index in range(config.n_seeds)]
    with ExitStack() as stack:
        on_step = stack.enter_context(reporting(progress, total))
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
        gate=gates.get("reward"),
        judge_gate=gates.get("judge"),
        checks=run_checks(
            gates.get("reward"), warped.history, warped.runs, warped.merges, evaluations=ends, config=config
        ),
        seconds=time.perf_counter() - started,
        peak_rss_mb=peak_rss_mb(),
        seeds=seeds,
    )


def train_seed(
    config: ExperimentConfig, task: Task, folder: Path, on_step: OnStep
) -> dict[str, tuple[SimpleNamespace, Measured]]:
    """Train and evaluate every arm with one seed; return the tables of its `WarpResult` and its evaluations."""
    settings = evaluation_settings(config, task)
    store = EvaluationStore(folder / "evaluations", task, settings, evaluation_identity(task, settings))
    found = {}
    for arm in ARMS:
        result = train_arm(arm_config(config, arm), task, folder, arm, on_step=on_step)
        tables = SimpleNamespace(**{name: getattr(result, name) for name in TABLES})
        measured = Measured(store.front(folder_name(arm), result.merged, ETAS))
        if arm == WARP:
            measured.end = store.policy("end", weights_of(result.policy))
            runs = enumerate(result.ingredients, 1)
            measured.own_runs = [store.front(f"run-{m}", weights, ETAS) for m, weights in runs]
            measured.best = store.best_of_n("best-of-n")
        found[arm] = (tables, measured)
    return found


def train_arm(config: ExperimentConfig, task: Task, folder: Path, arm: str, *, on_step: OnStep) -> WarpResult:
    """Train the arm's runs; M = 1 copies run (1, 1) of WARP, which has the same θ_sft and seed."""
    home = folder / folder_name(arm)
    if arm == SINGLE:
        home.mkdir(parents=True, exist_ok=True)
        name = "run_1_1.safetensors"
        if (folder / WARP / name).exists() and not (home / name).exists():
            with replacing(home / name) as temporary:
                shutil.copyfile(folder / WARP / name, temporary)
    return warp(config, task, home, progress=on_step)


def folder_name(arm: str) -> str:
    """Return the name of the arm's folder of runs."""
    return arm.replace(", ", "-").replace(" ", "")
