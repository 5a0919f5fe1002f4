"""Best-of-N against the enumeration of all choices, and on a tiny policy."""

from __future__ import annotations

import copy
import math
from dataclasses import replace
from itertools import combinations
from typing import Any

import numpy as np
import pytest
import tiny
from scipy.special import xlogy

from warp_nb.measure.best_of_n import best_of_n, completions, kl_bound, mean_of_best
from warp_nb.measure.estimates import mean_interval
from warp_nb.measure.evaluation import evaluate, held_out
from warp_nb.runs.training import derive_seed

TASK = tiny.task(judge=tiny.counted("film"))
SETTINGS: dict[str, Any] = {"sampling": TASK.sampling(6), "n_prompts": 40, "seed": 1, "ns": (1, 2, 5)}


@pytest.mark.parametrize("n", [1, 2, 3, 6])
def test_the_mean_over_all_choices_by_enumeration(n: int) -> None:
    rng = np.random.default_rng(0)
    rewards, judges = rng.normal(size=(4, 6)), rng.normal(size=(4, 6))
    rewards[3] = [1, 0, 1, 1, 0, 2]
    wanted: dict[str, list[float]] = {"rewards": [], "judges": []}
    for reward, judge in zip(rewards, judges, strict=True):
        best = [max(choice, key=lambda i: (reward[i], i)) for choice in combinations(range(6), n)]
        wanted["rewards"].append(float(np.mean(reward[best])))
        wanted["judges"].append(float(np.mean(judge[best])))
    assert mean_of_best(rewards, rewards, n) == pytest.approx(wanted["rewards"])
    assert mean_of_best(rewards, judges, n) == pytest.approx(wanted["judges"])


def test_the_estimate_is_unbiased_for_the_maximum_of_uniform_numbers() -> None:
    uniform = np.random.default_rng(0).random((20_000, 8))
    for n in (2, 4):
        assert mean_of_best(uniform, uniform, n).mean() == pytest.approx(n / (n + 1), abs=0.004)


def test_the_bound_is_the_exact_kl_of_distinct_rewards() -> None:
    """Of a continuous reward best-of-n has density n u^(n-1) over the quantile u, so its KL is the bound."""
    u = (np.arange(1_000_000) + 0.5) / 1_000_000
    for n in (1, 2, 4, 64):
        density = n * u ** (n - 1)
        assert kl_bound(n) == pytest.approx(float(xlogy(density, density).mean()), abs=1e-4)


def test_gains_are_those_of_the_completions_that_were_drawn() -> None:
    found = best_of_n(TASK, **SETTINGS)
    prompts = held_out(TASK, 40, 1)
    evaluation = evaluate(TASK.policy, TASK.policy, TASK, sampling=TASK.sampling(6), n_prompts=40, seed=1, n_samples=40)
    assert prompts == [sample["prompt"] for sample in evaluation.samples]
    drawn = [completions(TASK, prompts, TASK.sampling(6), derive_seed(1, "best-of-n", draw))[0] for draw in range(5)]
    rewards = np.array([tiny.opinion([], texts) for texts in drawn]).T
    judges = np.array([TASK.score_judge(prompts, texts, "here") for texts in drawn]).T
    assert [(point.n, point.kl_bound) for point in found] == [(n, math.log(n) - (n - 1) / n) for n in (1, 2, 5)]
    one, two, five = found
    assert one.gains == pytest.approx([0.0] * 40) and one.judge_gains == pytest.approx([0.0] * 40)
    assert five.gains == pytest.approx((rewards.max(1) - rewards.mean(1)).tolist())
    best = [max(range(5), key=lambda i: (row[i], i)) for row in rewards]
    assert five.judge_gains == pytest.approx((judges[np.arange(40), best] - judges.mean(1)).tolist())
    assert five.gain == mean_interval(five.gains) and five.judge_gain == mean_interval(five.judge_gains)
    assert 0 < two.gain.value < five.gain.value and two.gain.low > 0
    assert len({tuple(texts) for texts in drawn}) == 5, "every draw has noise of its own"


def test_it_repeats_follows_its_seed_and_leaves_the_policy_alone() -> None:
    before = copy.deepcopy(TASK.policy.state_dict())
    first, again, other = (best_of_n(TASK, **SETTINGS | {"seed": seed}) for seed in (1, 1, 2))
    assert first == again and first[1].gains != other[1].gains
    assert all((TASK.policy.state_dict()[name] == value).all() for name, value in before.items())


def test_without_a_judge_there_is_no_judges_gain() -> None:
    judged, plain = best_of_n(TASK, **SETTINGS), best_of_n(replace(TASK, judge=None), **SETTINGS)
    assert [point.gain for point in plain] == [point.gain for point in judged]
    assert all(math.isnan(point.judge_gain.value) and point.judge_gains == [] for point in plain)


@pytest.mark.parametrize("ns", [(), (0, 2)])
def test_no_number_of_completions_is_refused(ns: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"ns must be numbers of completions, each at least 1, got \("):
        best_of_n(TASK, **SETTINGS | {"ns": ns})


def test_more_prompts_than_are_held_out_are_refused() -> None:
    with pytest.raises(ValueError, match="n_prompts must be 2 to 64"):
        best_of_n(TASK, **SETTINGS | {"n_prompts": 65})
