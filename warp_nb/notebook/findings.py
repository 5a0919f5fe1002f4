"""What the words about an experiment depend on: how far the policy moved, whether its reward changed, the angles.

Every border of a word has its one home here, so that no two texts of a page contradict each other.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

from warp_nb.measure.estimates import Estimate, detectable
from warp_nb.notebook.tables import ALL_WEIGHTS
from warp_nb.runs.geometry import norm_shares, with_whole

if TYPE_CHECKING:
    import pandas as pd

    from warp_nb.studies.experiment import ExperimentResult

KL_STILL = 0.01
"""Nats: a shift this small cannot be seen in the reward of a few hundred prompts."""
KL_TINY = math.log(2) - 0.5
"""Nats: less than choosing the better of two completions would cost (log N - (N - 1) / N at N = 2)."""
KL_FAR = 10.0
"""Nats: more than choosing the best of about sixty thousand completions would cost."""
SHIFTS = {"still": KL_STILL, "near": KL_TINY, "moved": KL_FAR}
"""Nats: upper borders of how far a policy moved; above them it is far."""
EFFECT_SIZES = {"немного": 0.2, "заметно": 0.8}
"""Upper borders of a change of the reward in standard deviations of the reward (Cohen's small and large effect)."""
STRONGLY = "сильно"
WARM = 0.5
"""Share of `lr` below which the warm-up decided how far the policy moved."""
RIGHT_ANGLE = 15.0
"""Degrees from 90 within which task vectors count as near orthogonal: |cosine| < 0.26."""
HEAVY = 0.5
"""Share of the squared norm above which one block decides the angle over all weights."""
KL_WANTED = 1.0
"""Nats at which a mean reward may change by more than its spread, so that a change of it would be seen."""


def lr_share(result: ExperimentResult) -> float:
    """Return the mean learning rate of the run as a share of `lr`."""
    return float(result.history["lr"].mean()) / result.config.lr


def warming(result: ExperimentResult) -> bool:
    """Return whether the warm-up kept the learning rate below half of `lr` on average."""
    return lr_share(result) < WARM


def shift_of(kl: float) -> str:
    """Return how far a policy has moved by its KL in nats: still, near, moved or far."""
    return next((name for name, most in SHIFTS.items() if kl < most), "far")


def size_of(change: Estimate, result: ExperimentResult) -> str:
    """Return the adverb of a change of the mean reward, by the spread of single rewards."""
    spread = reward_spread(result)
    return next((word for word, most in EFFECT_SIZES.items() if abs(change.value) < most * spread), STRONGLY)


def reward_spread(result: ExperimentResult) -> float:
    """Return the standard deviation of single rewards: the gate's, or without one θ_sft's, from its interval."""
    sft, count = result.summary["reward_reference"], result.config.n_eval_prompts
    return result.gate.spread if result.gate else (sft.high - sft.low) / 4 * math.sqrt(count)


def wanted_lr(result: ExperimentResult) -> float:
    """Return the lr at which the KL would be about KL_WANTED, as the KL grows with lr² while steps are small."""
    kl = farther(result)
    return result.config.lr * math.sqrt(KL_WANTED / kl) if 0 < kl < math.inf else math.nan


def reward_bound(result: ExperimentResult) -> float:
    """Bound the difference of the mean reward from θ_sft's at the measured KL, to first order.

    |E_p r - E_q r| <= sd(r) * sqrt(chi²(p, q)), and chi² is about 2 KL for close p and q.
    """
    return reward_spread(result) * math.sqrt(2 * max(0.0, farther(result)))


def least_change(result: ExperimentResult) -> float:
    """Return the smallest change of the mean reward that this experiment would show, NaN if unknown (`detectable`)."""
    config = result.config
    count = config.n_seeds if config.n_seeds > 1 else config.n_eval_prompts
    return detectable(result.summary["reward_difference"], count)


def believable_change(result: ExperimentResult) -> Estimate:
    """Return the change of the reward; its interval includes zero if it exceeds twice the bound by the KL."""
    change = result.summary["reward_difference"]
    if change.excludes_zero and abs(change.value) > 2 * reward_bound(result):
        return Estimate(change.value, -abs(change.value), abs(change.value))
    return change


def farther(result: ExperimentResult) -> float:
    """Return the larger of the two KLs, nats; infinite if one of them is unknown."""
    both = [result.summary[name].value for name in ("kl_reference_policy", "kl_policy_reference")]
    return max(both) if all(map(math.isfinite, both)) else math.inf


def angle_facts(table: pd.DataFrame) -> dict[str, Any] | None:
    """Describe the angles between task vectors, degrees; empty if none is defined, None for M = 1.

    whole: iteration -> mean angle over all weights; farthest: the one farthest from 90; middle, least, most: of the
    blocks; heavy: the block with most of the squared norm, its share, and its angles as in `whole`; None without one.
    """
    if table.empty:
        return None
    by_block = with_whole(table, ALL_WEIGHTS).groupby(["block", "iteration"])["omega"].mean().dropna()
    if ALL_WEIGHTS not in by_block:
        return {}
    whole, blocks, shares = by_block[ALL_WEIGHTS].to_dict(), table["omega"].dropna(), norm_shares(table)
    name = str(shares.idxmax())
    heavy = {"name": name, "share": float(shares[name]), "angles": by_block[name].to_dict() if name in by_block else {}}
    return {
        "whole": whole,
        "farthest": max(whole.values(), key=lambda angle: abs(angle - 90)),
        "middle": blocks.median(),
        "least": blocks.min(),
        "most": blocks.max(),
        "heavy": heavy if len(shares) > 1 and heavy["share"] > HEAVY and heavy["angles"] else None,
    }
