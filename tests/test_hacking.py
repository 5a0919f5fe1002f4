"""Reward hacking by hand: gains in spreads, the gap to expect from best-of-N, and when hacking is called."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic import GATE, HELD_OUT, VARIETY, equal

from warp_nb.measure.best_of_n import BestOfN
from warp_nb.measure.estimates import Estimate, mean_interval
from warp_nb.measure.evaluation import Evaluation
from warp_nb.measure.hacking import hacking

PROMPTS = 50
NOISE = np.random.default_rng(0).normal(size=PROMPTS)
NOISE = (NOISE - NOISE.mean()) / NOISE.std()


def judged(reward: float, judge: float, kl: float, noise: float = 0.1) -> Evaluation:
    """A policy that gained `reward` and `judge` on average; the gap varies by `noise` between prompts."""
    measures: dict[str, Any] = HELD_OUT | {"kl_policy_reference": equal(kl), "judge_difference": equal(judge)}
    lists = {
        "rewards_reference": NOISE.tolist(),
        "rewards_policy": (NOISE + reward + noise * NOISE).tolist(),
        "judges_reference": (2 * NOISE).tolist(),
        "judges_policy": (2 * NOISE + judge).tolist(),
    }
    return Evaluation(**measures, **VARIETY, samples=[], **lists)


def best(points: Sequence[tuple[float, float, float]]) -> list[BestOfN]:
    """Points of (KL, gain by the reward, gain by the judge), equal on every prompt."""
    return [BestOfN(2, kl, equal(r), equal(j), [r] * PROMPTS, [j] * PROMPTS) for kl, r, j in points]


LINE = best([(1.0, 1.0, 0.8), (4.0, 2.0, 1.4)])
"""A gap of 0.2 at a KL of 1, of 0.6 at a KL of 4."""


def test_gains_and_gap_are_paired_and_in_spreads() -> None:
    gates = {"reward": replace(GATE, spread=2.0), "judge": replace(GATE, spread=0.5)}
    found = hacking(judged(3.0, 0.5, 1.0), LINE, gates)
    assert (
        found.kl == 1.0 and found.reward_gain.value == pytest.approx(1.5) and found.judge_gain.value == pytest.approx(1)
    )
    assert found.gap.value == pytest.approx(0.5)
    wanted = mean_interval((3.0 / 2 + 0.1 / 2 * NOISE - 0.5 / 0.5).tolist())
    assert (found.gap.low, found.gap.high) == pytest.approx((wanted.low, wanted.high))
    assert found.best_of_n_gap.value == pytest.approx(1.0 / 2 - 0.8 / 0.5), "in the same units"


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(-1e-6, 0.0), (0.0, 0.0), (0.25, 0.1), (1.0, 0.2), (2.25, 0.4), (4.0, 0.6), (4.001, math.nan)],
)
def test_the_gap_to_expect_is_linear_in_the_root_of_kl(kl: float, expected: float) -> None:
    found = hacking(judged(3.0, 1.0, kl), LINE, {})
    assert found.best_of_n_gap.value == pytest.approx(expected, nan_ok=True)
    assert found.excess.value == pytest.approx(2.0 - expected, nan_ok=True)
    assert hacking(judged(3.0, 1.0, kl), LINE[::-1], {}) == found or math.isnan(expected)


@pytest.mark.parametrize(
    ("reward", "judge", "kl", "noise", "hacked"),
    [
        pytest.param(2.0, 1.0, 1.0, 0.1, True, id="a gap of 1 where best-of-N has 0.2"),
        pytest.param(1.15, 1.0, 1.0, 0.1, False, id="a gap below that of best-of-N"),
        pytest.param(1.25, 1.0, 1.0, 1.0, False, id="above that of best-of-N, by chance"),
        pytest.param(2.0, 1.0, 1.0, 5.0, False, id="a gap that may be zero"),
        pytest.param(1.0, 2.0, 1.0, 0.1, False, id="the judge gains more"),
        pytest.param(1.15, 1.0, 9.0, 0.1, True, id="beyond best-of-N any gap counts"),
        pytest.param(1.15, 1.0, 9.0, 5.0, False, id="but not one that may be zero"),
    ],
)
def test_when_hacking_is_called(reward: float, judge: float, kl: float, noise: float, hacked: bool) -> None:
    assert hacking(judged(reward, judge, kl, noise), LINE, {}).hacked is hacked


def test_a_gap_below_zero_is_no_hacking_where_best_of_n_has_a_wider_one() -> None:
    found = hacking(judged(0.5, 1.0, 1.0), best([(1.0, 1.0, 3.0)]), {})
    assert found.gap.high < 0 < found.excess.low and not found.hacked


def test_without_best_of_n_the_interval_of_the_gap_decides() -> None:
    found = hacking(judged(1.2, 1.0, 1.0), [], {})
    assert found.hacked and math.isnan(found.excess.value) and math.isnan(found.best_of_n_gap.value)


def test_what_cannot_be_compared_is_refused() -> None:
    sound = judged(1.0, 1.0, 1.0)
    unjudged = BestOfN(2, 1.0, Estimate(1.0), gains=[1.0] * PROMPTS)
    for evaluation, points in ((replace(sound, judges_policy=[], judges_reference=[]), LINE), (sound, [unjudged])):
        with pytest.raises(ValueError, match=r"hacking needs a judge's scores, and there are none; .*Task\(judge="):
            hacking(evaluation, points, {})
    fewer = [replace(one, gains=one.gains[:9], judge_gains=one.judge_gains[:9]) for one in LINE]
    with pytest.raises(
        ValueError, match=r"must have the same prompts, got \[50, 50, 9, 9\]; pass one n_prompts to both"
    ):
        hacking(sound, fewer, {})
    with pytest.raises(ValueError, match=r"spread of reward and judge must be positive, got .*'judge': 0\.0"):
        hacking(sound, LINE, {"reward": GATE, "judge": replace(GATE, spread=0.0)})
