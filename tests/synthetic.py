"""Results of experiments that never ran: healthy by default, with one fault planted where a test asks."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from warp_nb.config import ExperimentConfig
from warp_nb.measure.checks import run_checks
from warp_nb.measure.estimates import Estimate, mean_interval
from warp_nb.measure.evaluation import MEASURES, Evaluation
from warp_nb.notebook.conclusions import conclude
from warp_nb.report.catalogue import EXPERIMENTS, rows_of
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.tasks.gate import RewardGate

GATE = RewardGate(pair_accuracy=0.86, n_pairs=400, spread=1.2, good_above_bad=1.0, swap_change=0.9)
AS_IT_IS: Mapping[str, Any] = {}
HELD_OUT = {
    "reward_reference": Estimate(0.1, 0.0, 0.2),
    "reward_policy": Estimate(0.9, 0.8, 1.0),
    "reward_difference": Estimate(0.8, 0.7, 0.9),
    "kl_reference_policy": Estimate(2.0, 1.8, 2.2),
    "kl_policy_reference": Estimate(2.1, 1.9, 2.3),
    "perplexity_reference": Estimate(50.0, 45.0, 55.0),
    "perplexity_policy": Estimate(60.0, 55.0, 65.0),
    "distinct_reference": Estimate(0.98, 0.97, 0.99),
    "distinct_policy": Estimate(0.97, 0.96, 0.98),
}
VARIETY: dict[str, Any] = {
    "variety_reference": 0.6,
    "variety_policy": 0.58,
    "repeated_reference": 0.03,
    "repeated_policy": 0.05,
}
ABOUT = {"task": "small", "parameters": 10_537_344, "reward": "imdb_sentiment"}
SAMPLE = {
    "prompt": "This film",
    "reference": " is long.",
    "policy": " is great!",
    "reward_reference": -0.3,
    "reward_policy": 2.1,
}


def history(
    config: ExperimentConfig, reward: float = 0.1, penalty: float = -0.005, noise: float = 0.05
) -> pd.DataFrame:
    """Curves with the given slopes a step and independent noise."""
    rng = np.random.default_rng(0)
    rows = []
    for seed in range(config.n_seeds):
        for iteration in range(1, config.I + 1):
            for run in range(1, config.M + 1):
                for step in range(1, config.T + 1):
                    gained, paid = reward * step + noise * rng.normal(), penalty * step
                    share = min(1.0, step / config.warmup_steps) if config.warmup_steps else 1.0
                    row = {"seed": seed, "iteration": iteration, "run": run, "step": step, "reward": gained}
                    row |= {"penalty": paid, "objective": gained + paid, "kl": 0.01 * step, "lr": config.lr * share}
                    rows.append(row | {"grad_norm": 1 + 0.1 * rng.random(), "seconds": 0.1})
    return pd.DataFrame(rows)


def result(
    held_out: Mapping[str, Estimate] | None = None,
    curves: Mapping[str, float] | None = None,
    gate: Mapping[str, Any] | None = AS_IT_IS,
    runs: Mapping[str, Any] | None = None,
    merges: Mapping[str, Any] | None = None,
    omega: float = 89.0,
    **settings: Any,
) -> ExperimentResult:
    """A healthy result of `settings`, with the given fields replaced; `gate=None` is a task without a gate."""
    config = ExperimentConfig(**({"lr": 3e-4, "warmup_steps": 0, "dtype": "float32"} | settings))
    evaluation = Evaluation(**(HELD_OUT | VARIETY | dict(held_out or {})), samples=[SAMPLE])
    keys = [
        {"seed": seed, "iteration": iteration} for seed in range(config.n_seeds) for iteration in range(1, config.I + 1)
    ]
    run_facts = {
        "delta_norm": 0.3,
        "unmoved": 0.01,
        "anchor_error": 1e-4,
        "anchor_moved": 0.01 if config.anchor == "ema" else 0.0,
        "sampling_gap": 1e-5,
        "scored_after_end": 0.0,
        "empty_completions": 0.0,
        "loaded": 0.0,
    }
    merge_facts = {"liti_ratio": config.eta, "delta_cosine": 0.02 if config.M > 1 else float("nan")}
    blocks = ["wte", "h.0", "h.1"] if config.M > 1 else []
    pair = {"run_a": 1, "run_b": 2, "cosine": np.cos(np.radians(omega)), "omega": omega, "norm_a": 0.2, "norm_b": 0.21}
    evaluations = [evaluation] * config.n_seeds
    several = {
        name: mean_interval([getattr(e, name).value + 0.01 * i for i, e in enumerate(evaluations)]) for name in MEASURES
    }
    tables = {
        "history": history(config, **dict(curves or {})),
        "runs": pd.DataFrame(
            [key | {"run": m + 1} | run_facts | dict(runs or {}) for key in keys for m in range(config.M)]
        ),
        "merges": pd.DataFrame([key | merge_facts | dict(merges or {}) for key in keys]),
    }
    measured = None if gate is None else replace(GATE, **gate)
    return ExperimentResult(
        config=config,
        about=dict(ABOUT),
        evaluations=evaluations,
        summary=evaluation.measures() if config.n_seeds == 1 else several,
        geometry=pd.DataFrame([key | {"block": block} | pair for key in keys for block in blocks]),
        gate=measured,
        checks=run_checks(measured, *tables.values(), evaluations=evaluations, config=config),
        seconds=12.0,
        peak_rss_mb=900.0,
        **tables,
    )


def rechecked(made: ExperimentResult) -> ExperimentResult:
    """The result with its checks made again, for a test that has changed its tables or evaluations."""
    tables = (made.history, made.runs, made.merges)
    return replace(made, checks=run_checks(made.gate, *tables, evaluations=made.evaluations, config=made.config))


def failed(made: ExperimentResult) -> set[str]:
    """Names of the checks that failed."""
    return {check.name for check in made.checks if check.failed}


def equal(value: float) -> Estimate:
    """A value with no spread at all."""
    return Estimate(value, value, value)


def around(value: float, half: float) -> Estimate:
    """An interval of the given half-width."""
    return Estimate(value, value - half, value + half)


def record() -> dict[str, Any]:
    """The result file of an experiment that never ran."""
    made = result()
    return made.to_json() | {"conclusion": conclude(made)}


def results() -> dict[str, dict[str, Any]]:
    """Of the experiments in the common table, as `report` keeps them."""
    one = record() | {"run": {"command": "x", "seconds": 1.0, "cores": 2, "memory_gb": 8.0}}
    return {experiment.name: json.loads(json.dumps(one)) for experiment in rows_of(EXPERIMENTS)}


def comparison_record() -> dict[str, Any]:
    """What the reports take of an experiment 5 that never ran: fronts of WARP and M = 1, three trainings, a judge."""
    first, estimate = ({"value": value, "low": value - 0.1, "high": value + 0.1} for value in (0.25, 0.5))
    missing = {"value": None, "low": None, "high": None}
    front = {name: [first, first, estimate, missing] for name in ("gain", "judge", "gap", "variety")}
    sides = dict.fromkeys(("value", "front", "difference"), estimate)
    point = {"kl": first, "gain": sides, "judge": sides}
    equal_kl = {
        "grid": [1.0, 2.0, 4.0, 8.0],
        "declared_kl": 4.0,
        "trainings": 3,
        "earlier": False,
        "excess": {"WARP": [], "M = 1": []},
        "fronts": {"WARP": front, "M = 1": front},
        "against": {"M = 1": front},
        "declared": [{"name": "M = 1", "p": 0.01, "p_holm": 0.03}, {"name": "own runs", "p": None, "p_holm": None}],
        "points": [point | {"name": "end", "n": None}, point | {"name": "best-of-N", "n": 16}],
    }
    return {
        "status": "ok",
        "config": {"T": 100, "lr": 1e-4, "warmup_steps": 20, "n_seeds": 3},
        "summary": {"WARP": {"steps": 400}, "M = 1": {"steps": 200}},
        "equal_kl": equal_kl,
        "conclusion": ["**WARP**: <script>x</script>вывод"],
    }


def diagnosis_record() -> dict[str, Any]:
    """What the reports take of a diagnosis that never ran."""
    verdict = {"name": "гипотеза", "english": "a hypothesis", "prediction": "", "measured": ""}
    return {
        "status": "ok",
        "verdicts": [
            verdict | {"verdict": "не различить", "verdict_english": "undecided", "outcomes": [True, True, False]}
        ],
        "tried": 36,
        "as_good": 2,
        "missing": 0,
        "best": {
            "task": "smollm",
            "reward": "collapsed",
            "runs": "greedy",
            "warm_up": "5",
            "lr": "0.0006",
            "scoring": "mixed",
            "plotted": "surrogate",
            "traits": {"a": True, "b": None},
            "matched": 1,
            "judged": 1,
        },
        "conclusion": ["- **Награда.** лучшее <script>x</script>"],
    }
