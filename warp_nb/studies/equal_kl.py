"""Policies compared at equal KL: every front is read at KLs that are fixed here, linearly in √KL between its points.

No outcome chooses the KL. A front is never extrapolated: a KL beyond its farthest point is missing (NaN).

One training: intervals are percentiles of a bootstrap over prompts, of KL and reward together. Several: t over
trainings. Two policies of a training are always paired.

Reward and judge are trained by one recipe on different reviews, so what both see is in the text, and what the reward
alone sees is an error of the reward. Choosing by a reward exploits its errors too, without any training: so a gap
between the two counts as reward hacking only beyond what best-of-N shows at the same KL.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from warp_nb.files import json_values
from warp_nb.measure.estimates import NO_ESTIMATE, Estimate, holm, mean_interval, two_sided_p

if TYPE_CHECKING:
    from warp_nb.measure.best_of_n import BestOfN
    from warp_nb.measure.evaluation import Evaluation

Array = NDArray[np.float64]

GRID = (1.0, 2.0, 4.0, 8.0)
"""KL(policy || sft) at which fronts are compared, nats per sequence."""
DECLARED_KL = 4.0
"""The KL of the grid at which the declared comparisons are made; all others are exploratory."""
AT_SFT = {"gain": 0.0, "judge": 0.0, "gap": 0.0, "variety": 1.0}
"""What is compared, with its value at θ_sft: gain by the reward, gain by the judge, the first minus the second (each in
units of its model's spread), and distinct bigrams of all completions as a share of θ_sft's."""
RESAMPLES, BOOTSTRAP_SEED = 2000, 0
WARP, OWN_RUNS, SINGLE, REINFORCE, RLOO = "WARP", "own runs", "M = 1", "REINFORCE", "WARP, RLOO"
FRONTS = (WARP, OWN_RUNS, SINGLE, REINFORCE, RLOO)
"""Fronts of the table; OWN_RUNS is the mean of the fronts of WARP's last runs, before they are merged."""
DECLARED = (SINGLE, REINFORCE, OWN_RUNS)
"""The fronts that WARP's is compared with in the declared comparisons."""
END, BEST_OF_N = "end", "best-of-N"
"""Single policies beside WARP's front: that after the last line 13, and those that need no training."""


@dataclass(frozen=True)
class Points:
    """Policies of one training, from the nearest to θ_sft to the farthest; θ_sft itself is not among them.

    Args:
        means: "kl" (nats) and the names of AT_SFT -> the mean of each policy, NaN where it was not measured.
        prompts: of the same names -> [policies, prompts]; a name is missing where single prompts are not known.
    """

    means: Mapping[str, Sequence[float]]
    prompts: Mapping[str, Array] = field(default_factory=dict)

    def mean(self, name: str, weights: Array | None = None) -> Array:
        """Return the means [policies], or with weights of prompts [resamples, prompts] those [resamples, policies]."""
        if weights is None:
            return np.asarray(self.means[name], dtype=np.float64)
        if name not in self.prompts:
            return np.full((len(weights), len(self.means[name])), math.nan)
        return weights @ self.prompts[name].T


Units = tuple[float, float]
"""Spreads of the reward and of the judge over held-out texts; NaN where a model tells no texts apart."""
OneTraining = Sequence[Points]
"""Fronts of one training whose readings are averaged: one, or those of M runs."""


# Reading a front


def at_kl(kls: ArrayLike, values: ArrayLike, kl: ArrayLike, start: float = 0.0) -> Array:
    """Interpolate a front linearly in √KL, at the place where it first reaches `kl`.

    Args:
        kls, values: of the points of a front [..., points], whose first point (KL 0, `start`) is added.
        kl: nats, a number or [...].

    Returns:
        The values [...]; NaN where the front does not reach the KL.
    """
    roots, wanted = np.sqrt(np.clip(_led(kls, 0.0), 0.0, None)), np.sqrt(np.clip(kl, 0.0, None))
    heights = _led(values, start)
    reached = roots[..., 1:] >= wanted[..., None]
    before = reached.argmax(-1)[..., None]
    low, high = (np.take_along_axis(roots, before + step, -1)[..., 0] for step in (0, 1))
    first, last = (np.take_along_axis(heights, before + step, -1)[..., 0] for step in (0, 1))
    with np.errstate(divide="ignore", invalid="ignore"):
        found = first + (last - first) * (wanted - low) / (high - low)
    return np.where(reached.any(-1), found, math.nan)


def _led(values: ArrayLike, first: float) -> Array:
    """Put a value before those of the last dimension."""
    array = np.asarray(values, dtype=np.float64)
    return np.concatenate([np.full((*array.shape[:-1], 1), first), array], -1)


def read(training: OneTraining, measure: str, kls: ArrayLike, weights: Array | None = None) -> Array:
    """Read the fronts of a training at KLs [kls], or with weights at KLs [kls] or [resamples, kls]; average them."""
    wanted = np.asarray(kls, dtype=np.float64)
    found = []
    for points in training:
        x, y = points.mean("kl", weights), points.mean(measure, weights)
        found.append(np.stack([at_kl(x, y, one, AT_SFT[measure]) for one in np.moveaxis(wanted, -1, 0)], -1))
    return np.mean(found, axis=0)


@cache
def resampling(prompts: int) -> Array:
    """Return the weights [RESAMPLES, prompts] of the bootstrap over prompts; they are the same in every call."""
    drawn = np.random.default_rng(BOOTSTRAP_SEED).multinomial(prompts, np.full(prompts, 1 / prompts), RESAMPLES)
    return drawn / prompts


# Intervals


@dataclass(frozen=True)
class Tested:
    """An estimate, and the two-sided p of its being zero; NaN where it is not known."""

    estimate: Estimate
    p: float = math.nan


def estimated(values: Sequence[float], draws: ArrayLike = ()) -> Tested:
    """Estimate a quantity from its value in every training, or from one value and its bootstrap draws.

    A value that is missing in one training is missing. Draws that are not all known give no interval.
    """
    if not all(map(math.isfinite, values)):
        return Tested(NO_ESTIMATE)
    if len(values) > 1:
        return Tested(mean_interval(values), two_sided_p(values))
    known = np.asarray(draws, dtype=np.float64)
    if not known.size or not np.isfinite(known).all():
        return Tested(Estimate(values[0]))
    tail = min(int((known <= 0).sum()), int((known >= 0).sum()))
    low, high = np.quantile(known, (0.025, 0.975))
    return Tested(Estimate(values[0], float(low), float(high)), min(1.0, 2 * (tail + 1) / (known.size + 1)))


def weights_of_prompts(trainings: Sequence[OneTraining]) -> Array | None:
    """Return the bootstrap's weights for a single training whose prompts are known, else None."""
    first = trainings[0][0] if trainings else None
    if len(trainings) != 1 or first is None or "kl" not in first.prompts:
        return None
    return resampling(first.prompts["kl"].shape[1])


def along_grid(
    trainings: Sequence[OneTraining], measure: str, other: Sequence[OneTraining] | None = None
) -> list[Tested]:
    """Estimate a measure at every KL of GRID; with `other`, the difference from its fronts, paired."""

    def reading(index: int, weights: Array | None = None) -> Array:
        mine = read(trainings[index], measure, GRID, weights)
        return mine if other is None else mine - read(other[index], measure, GRID, weights)

    values = np.stack([reading(index) for index in range(len(trainings))])
    weights = weights_of_prompts(trainings)
    draws = np.empty((0, len(GRID))) if weights is None else reading(0, weights)
    return [estimated(values[:, place].tolist(), draws[:, place]) for place in range(len(GRID))]


def beside_front(
    policies: Sequence[Points], fronts: Sequence[OneTraining], measure: str, place: int
) -> dict[str, Estimate]:
    """Compare the policy at `place` of every training with a front at the KL of that policy.

    Returns:
        value: of the policy; front: of the front at its KL; difference: the policy minus the front.
    """

    def reading(index: int, weights: Array | None = None) -> Array:
        mine = policies[index].mean(measure, weights)[..., place]
        kl = policies[index].mean("kl", weights)[..., [place]]
        theirs = read(fronts[index], measure, kl, weights)[..., 0]
        return np.stack([mine, theirs, mine - theirs], -1)

    values = np.stack([reading(index) for index in range(len(policies))])
    weights = weights_of_prompts(fronts)
    draws = np.empty((0, 3)) if weights is None else reading(0, weights)
    names = ("value", "front", "difference")
    return {name: estimated(values[:, at].tolist(), draws[:, at]).estimate for at, name in enumerate(names)}


# From evaluations and result files


def points_of(evaluations: Sequence[Evaluation], units: Units = (1.0, 1.0)) -> Points:
    """Return the policies that were evaluated on the same prompts of one training."""
    prompts = {
        "kl": np.array([one.kls_policy for one in evaluations]),
        "gain": np.array([np.subtract(one.rewards_policy, one.rewards_reference) for one in evaluations]),
        "judge": np.array([np.subtract(one.judges_policy, one.judges_reference) for one in evaluations]),
    }
    means = {
        "kl": [one.kl_policy_reference.value for one in evaluations],
        "gain": [one.reward_difference.value for one in evaluations],
        "judge": [one.judge_difference.value for one in evaluations],
        "variety": [one.variety_policy / one.variety_reference for one in evaluations],
    }
    return with_gap(means, prompts, units)


def points_of_best(found: Sequence[BestOfN], units: Units = (1.0, 1.0)) -> Points:
    """Return best-of-N at the bounds of its KL; its diversity is not measured."""
    means = {
        "kl": [one.kl_bound for one in found],
        "gain": [one.gain.value for one in found],
        "judge": [one.judge_gain.value for one in found],
        "variety": [math.nan] * len(found),
    }
    prompts = {"gain": np.array([one.gains for one in found]), "judge": np.array([one.judge_gains for one in found])}
    prompts["kl"] = np.repeat(np.array(means["kl"])[:, None], prompts["gain"].shape[1], 1)
    return with_gap(means, prompts, units)


def with_gap(means: Mapping[str, Sequence[float]], prompts: Mapping[str, Array], units: Units) -> Points:
    """Add the gap between reward and judge; drop what is not known of single prompts."""
    gap = np.divide(means["gain"], units[0]) - np.divide(means["judge"], units[1])
    known = {name: values for name, values in prompts.items() if values.size}
    if "gain" in known and "judge" in known:
        known["gap"] = known["gain"] / units[0] - known["judge"] / units[1]
    return Points({**means, "gap": gap.tolist()}, known)


def points_of_figures(rows: Sequence[Mapping[str, Any]]) -> Points:
    """Return the policies of which a result file of an earlier version holds the means alone."""
    return Points(
        {
            "kl": [row["kl_policy_reference"]["value"] for row in rows],
            "gain": [row["reward_difference"]["value"] for row in rows],
            "judge": [math.nan] * len(rows),
            "gap": [math.nan] * len(rows),
            "variety": [row["variety_policy"] / row["variety_reference"] for row in rows],
        }
    )


def summary(
    fronts: Mapping[str, Sequence[OneTraining]], end: Sequence[Points], best: Sequence[Points], ns: Sequence[int] = ()
) -> dict[str, Any]:
    """Return all comparisons at equal KL as plain JSON values; null is missing or unknown.

    `excess` is the gap between reward and judge beyond that of best-of-N; empty where best-of-N was not measured, and
    null beyond its largest N.

    Args:
        fronts: by the names of FRONTS, WARP's among them; what was not measured is left out.
        end: WARP's policy after the last line 13, one entry per training.
        best: best-of-N for the `ns`, one entry per training; empty where it was not measured.
    """
    warped = fronts[WARP]
    against = {
        name: {measure: along_grid(warped, measure, other) for measure in AT_SFT}
        for name, other in fronts.items()
        if name != WARP
    }
    place = GRID.index(DECLARED_KL)
    ps = [against[name]["gain"][place].p if name in against else math.nan for name in DECLARED]
    points = [_beside(END, end, warped, 0) | {"n": None}] if end else []
    points += [_beside(BEST_OF_N, best, warped, at) | {"n": n} for at, n in enumerate(ns)]
    return json_values(
        {
            "grid": GRID,
            "declared_kl": DECLARED_KL,
            "trainings": len(warped),
            "earlier": False,
            "excess": {
                name: [_plain(one) for one in along_grid(trainings, "gap", [[one] for one in best])] if best else []
                for name, trainings in fronts.items()
            },
            "fronts": {
                name: {measure: [_plain(one) for one in along_grid(trainings, measure)] for measure in AT_SFT}
                for name, trainings in fronts.items()
            },
            "against": {
                name: {measure: [_plain(one) for one in found] for measure, found in measures.items()}
                for name, measures in against.items()
            },
            "declared": [
                {"name": name, "p": p, "p_holm": adjusted if math.isfinite(p) else math.nan}
                for name, p, adjusted in zip(DECLARED, ps, holm(ps), strict=True)
            ],
            "points": points,
        }
    )


def summary_of_record(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return `summary` for a result file of an earlier version: no judge, no best-of-N, means without their prompts.

    It is marked as `earlier`: its comparisons were declared after it was measured.
    """
    measured = {name: arm["measured"] for name, arm in record["arms"].items()}
    fronts = {name: [[points_of_figures(one["front"])] for one in seeds] for name, seeds in measured.items()}
    ends = [points_of_figures([one["end"]]) for one in measured[WARP] if one["end"]]
    return summary(fronts, ends, []) | {"earlier": True}


def _plain(one: Tested) -> dict[str, float]:
    return asdict(one.estimate)


def _beside(name: str, policies: Sequence[Points], fronts: Sequence[OneTraining], place: int) -> dict[str, Any]:
    """Return a single policy beside WARP's front at its KL, by reward and by judge."""
    kls = estimated([one.means["kl"][place] for one in policies]).estimate
    found = {measure: beside_front(policies, fronts, measure, place) for measure in ("gain", "judge")}
    plain = {measure: {key: asdict(value) for key, value in sides.items()} for measure, sides in found.items()}
    return {"name": name, "kl": asdict(kls)} | plain
