"""Experiments 5 that never ran: fronts of (gain, KL, perplexity, variety) at ETAS, a list a seed."""

from __future__ import annotations

from typing import Any

from synthetic import ABOUT, GATE, HELD_OUT, VARIETY, around, result

from warp_nb.config import ExperimentConfig
from warp_nb.measure.evaluation import Evaluation
from warp_nb.studies.comparison import ARMS, Arm, Comparison, Measured, arm_config
from warp_nb.studies.experiment import TABLES

Front = list[tuple[float, ...]]
LINE: Front = [(0.2, 0.5), (0.5, 1.0), (1.0, 2.0), (1.5, 3.0), (2.0, 4.0)]
FLAT: Front = [(0.01, kl) for _, kl in LINE]
DOUBLE: Front = [(2 * gain, kl) for gain, kl in LINE]
SALAD: Front = [(gain, kl, 500.0) for gain, kl in LINE]


def evaluation(gain: float, kl: float, perplexity: float = 50.0, variety: float = 0.58) -> Evaluation:
    """A policy of this gain and KL; θ_sft's own perplexity is 50 and its variety 0.6."""
    measures: dict[str, Any] = HELD_OUT | {
        "reward_policy": around(gain, 0.1),
        "reward_difference": around(gain, 0.1),
        "kl_policy_reference": around(kl, 0.01),
        "perplexity_policy": around(perplexity, 1.0),
    }
    rewards = [gain + (-1) ** prompt * 0.01 for prompt in range(16)]
    return Evaluation(**measures, **VARIETY | {"variety_policy": variety}, samples=[], rewards_policy=rewards)


def comparison(warp: list[Front], single: list[Front], plain: list[Front], **settings: Any) -> Comparison:
    """A healthy experiment 5 with these fronts, matched at their ends."""
    config = ExperimentConfig(**{"T": 2, "lr": 3e-3, "dtype": "float32", "n_seeds": len(warp)} | settings)
    arms = {}
    for arm, fronts in zip(ARMS, (warp, single, plain), strict=True):
        loops = arm_config(config, arm)
        made = result(I=loops.I, M=loops.M, T=loops.T, n_seeds=loops.n_seeds)
        arms[arm] = Arm(loops, *(getattr(made, name) for name in TABLES), measured=[measured(one) for one in fronts])
    checks = result(n_seeds=len(warp)).checks
    figures: dict[str, Any] = {"about": dict(ABOUT), "gate": GATE, "seconds": 1.0, "peak_rss_mb": 900.0}
    return Comparison(config=config, arms=arms, checks=checks, seeds=list(range(len(warp))), **figures)


def measured(front: Front) -> Measured:
    """The front, matched at its end; two runs before the merge gain 0.7 at a KL of 4."""
    points = [evaluation(*point) for point in front]
    return Measured(points, end=points[2], matched=(1.0, points[-1]), unmerged=[evaluation(0.7, 4.0)] * 2)
