"""Experiments 5 that never ran: fronts of (gain, KL, perplexity, variety) at ETAS, a list a seed."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

from synthetic import ABOUT, GATE, HELD_OUT, VARIETY, around, result

from warp_nb.config import ExperimentConfig
from warp_nb.measure.best_of_n import BestOfN
from warp_nb.measure.estimates import NO_ESTIMATE, mean_interval
from warp_nb.measure.evaluation import Evaluation
from warp_nb.studies.comparison import ARMS, WARP, Arm, Comparison, Measured, arm_config
from warp_nb.studies.experiment import TABLES

Front = list[tuple[float, ...]]
PROMPTS = 16
KLS = (0.25, 1.0, 2.25, 4.0, 6.25, 9.0, 16.0)
LINE: Front = [(math.sqrt(kl), kl) for kl in KLS]
"""A gain of √KL, which interpolation in √KL returns exactly."""
FLAT: Front = [(0.01, kl) for kl in KLS]
DOUBLE: Front = [(2 * gain, kl) for gain, kl in LINE]
SHORT: Front = [(gain / 4, kl / 16) for gain, kl in LINE]
"""It ends at KL 1."""
SALAD: Front = [(gain, kl, 500.0) for gain, kl in LINE]


def evaluation(
    gain: float, kl: float, perplexity: float = 50.0, variety: float = 0.54, *, judged: float | None = None
) -> Evaluation:
    """A policy of this gain and KL; θ_sft's perplexity is 50, its variety 0.6; the judge sees the share `judged`."""
    measures: dict[str, Any] = HELD_OUT | {
        "reward_policy": around(gain, 0.1),
        "reward_difference": around(gain, 0.1),
        "kl_policy_reference": around(kl, 0.01),
        "perplexity_policy": around(perplexity, 1.0),
    }
    signs = [(-1) ** prompt for prompt in range(PROMPTS)]
    lists = {"rewards_reference": [0.0] * PROMPTS, "rewards_policy": [gain + 0.01 * sign for sign in signs]}
    lists["kls_policy"] = [kl * (1 + 0.01 * sign) for sign in signs]
    if judged is not None:
        measures |= {name: around(judged * gain, 0.1) for name in ("judge_policy", "judge_difference")}
        measures["judge_reference"] = around(0.0, 0.1)
        lists["judges_reference"] = [0.0] * PROMPTS
        lists["judges_policy"] = [judged * gain - 0.01 * sign for sign in signs]
    return Evaluation(**measures, **VARIETY | {"variety_policy": variety}, samples=[], **lists)


def comparison(
    warp: list[Front],
    single: list[Front],
    plain: list[Front],
    *,
    rloo: list[Front] | None = None,
    own: Front = LINE,
    judged: float | None = None,
    **settings: Any,
) -> Comparison:
    """A healthy experiment 5 with these fronts; `own` is that of both runs before the merge."""
    config = ExperimentConfig(**{"T": 2, "lr": 3e-3, "dtype": "float32", "n_seeds": len(warp)} | settings)
    arms = {}
    for arm, fronts in zip(ARMS, (warp, single, plain, rloo or warp), strict=True):
        loops = arm_config(config, arm)
        made = result(I=loops.I, M=loops.M, T=loops.T, n_seeds=loops.n_seeds)
        tables = (getattr(made, name) for name in TABLES)
        arms[arm] = Arm(loops, *tables, measured=[measured(arm, one, own, judged) for one in fronts])
    checks = result(n_seeds=len(warp)).checks
    figures: dict[str, Any] = {"about": dict(ABOUT), "gate": GATE, "seconds": 1.0, "peak_rss_mb": 900.0}
    figures["judge_gate"] = None if judged is None else GATE
    return Comparison(config=config, arms=arms, checks=checks, seeds=list(range(len(warp))), **figures)


def measured(arm: str, front: Front, own: Front, judged: float | None) -> Measured:
    """The front; of WARP also its fifth point as the end, two equal runs before the merge, and best-of-N."""
    points = [evaluation(*point, judged=judged) for point in front]
    if arm != WARP:
        return Measured(points)
    runs = [[evaluation(*point, judged=judged) for point in own]] * 2
    return Measured(points, end=points[4], own_runs=runs, best=best_of([(4, 0.5), (16, 1.5)], judged))


def best_of(gains: Sequence[tuple[int, float]], judged: float | None = None) -> list[BestOfN]:
    """Best of n with these gains at every prompt."""
    made = []
    for n, gain in gains:
        lists = [[gain] * PROMPTS, [] if judged is None else [judged * gain] * PROMPTS]
        estimates = [mean_interval(values) if values else NO_ESTIMATE for values in lists]
        made.append(BestOfN(n, math.log(n) - (n - 1) / n, *estimates, *lists))
    return made


def earlier(found: Comparison) -> dict[str, Any]:
    """Return the result file that the version before wrote of this."""
    record = json.loads(json.dumps(found.to_json()))
    for name in ("equal_kl", "judge_gate"):
        del record[name]
    for arm in record["arms"].values():
        for measured in arm["measured"]:
            for name in ("own_runs", "best_of_n", "samples"):
                del measured[name]
    return record | {"conclusion": ["впереди WARP"]}
