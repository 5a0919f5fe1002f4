"""Held-out evaluation against exact values and hand-made intervals."""

from __future__ import annotations

import copy
import math
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import ttest_1samp
from synthetic import equal, result
from test_rollout import FOUR
from test_scoring import exact_kl

from warp_nb.fast.scoring import completion_logits
from warp_nb.measure.evaluation import (
    MEASURES,
    Estimate,
    completion_bigrams,
    distinct_share,
    evaluate,
    exponential,
    mean_interval,
    over_trainings,
    pareto_front,
    token_nll,
)
from warp_nb.runs.weights import fingerprint, snapshot
from warp_nb.tasks.task import Task


def test_interval_against_scipy_and_its_coverage() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1, 2, size=7)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_interval(list(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    covered = [(lambda e: e.low < 1 < e.high)(mean_interval(list(rng.normal(1, 2, size=5)))) for _ in range(2000)]
    assert 0.93 < np.mean(covered) < 0.97


def test_one_value_has_no_interval_and_excludes_nothing() -> None:
    found = mean_interval([3.0])
    assert found.value == 3 and math.isnan(found.low) and not found.excludes_zero
    assert Estimate(1, 0.1, 2).excludes_zero and Estimate(-1, -2, -0.1).excludes_zero
    assert not Estimate(1, -0.1, 2).excludes_zero


def test_perplexity_interval_is_the_exponential_of_the_mean() -> None:
    found = exponential(Estimate(1.0, 0.5, 1.5))
    assert (found.value, found.low, found.high) == pytest.approx((math.e, math.exp(0.5), math.exp(1.5)))
    assert exponential(Estimate(1e9, 1e9, 1e9)).value < math.inf
    assert math.isnan(exponential(mean_interval([1.0])).low)


def test_distinct_bigrams_and_nll_by_hand() -> None:
    given = tiny.rollout([0], [[1, 2, 1, 2, 1], [3], [1, 2]])
    bigrams = completion_bigrams(given)
    assert bigrams == [[(1, 2), (2, 1), (1, 2), (2, 1)], [], [(1, 2)]]
    assert [*map(distinct_share, bigrams)] == [0.5, 1.0, 1.0] and distinct_share([*bigrams[0], *bigrams[2]]) == 0.4
    policy = tiny.gpt2(4)
    with torch.no_grad():
        found = token_nll(completion_logits(policy, given), given)
        loss = policy(torch.tensor([[0, 1, 2]]), labels=torch.tensor([[-100, 1, 2]])).loss.item()
    assert found[2] == pytest.approx(loss, rel=1e-5)


def test_both_kls_against_brute_force() -> None:
    """On 1500 prompts that are one prompt to the model: words beyond the vocabulary all are token 0."""
    words = tiny.tokenizer(FOUR)
    p, q = tiny.gpt2(4, seed=1), tiny.gpt2(4, seed=2)
    task = Task(p, words, tiny.counted("a"), ["b"], [f"w{i} b" for i in range(1500)])
    found = evaluate(q, p, task, 1500, 0, 3, 1.0)
    for estimate, wanted in (
        (found.kl_reference_policy, exact_kl(p, q, [0, 1], 1.0)),
        (found.kl_policy_reference, exact_kl(q, p, [0, 1], 1.0)),
    ):
        error = (estimate.high - estimate.low) / 4
        assert abs(estimate.value - wanted) < 3 * error < 0.2 * wanted


def test_a_policy_beside_itself() -> None:
    task = tiny.task()
    found = evaluate(copy.deepcopy(task.policy), task.policy, task, 64, 0, 6, 0.9)
    assert found.reward_difference == Estimate(0, 0, 0) and found.reward_policy == found.reward_reference
    assert abs(found.kl_policy_reference.value) < 1e-5 and abs(found.kl_reference_policy.value) < 1e-5
    assert found.perplexity_policy == found.perplexity_reference and found.distinct_policy.value <= 1
    assert 1 < found.perplexity_reference.value < 3 * 39 and set(found.measures()) == set(MEASURES)


def test_rewards_are_the_tasks_and_samples_show_them() -> None:
    task = tiny.task()
    found = evaluate(tiny.gpt2(39, seed=3), task.policy, task, 40, 1, 6, 1.0)
    assert len(found.samples) == 8
    for sample in found.samples:
        assert sample["prompt"] in task.eval_prompts
        for side in ("reference", "policy"):
            assert tiny.opinion([""], [sample[side]]) == [sample[f"reward_{side}"]]
    difference = found.reward_policy.value - found.reward_reference.value
    assert found.reward_difference.value == pytest.approx(difference)


def test_evaluation_repeats_and_follows_its_seed() -> None:
    task, policy = tiny.task(), tiny.gpt2(39, seed=3)
    first, again, other = (evaluate(policy, task.policy, task, 40, seed, 6, 1.0) for seed in (1, 1, 2))
    assert first == again and first.kl_policy_reference != other.kl_policy_reference


def test_refusals() -> None:
    task = tiny.task()
    for count in (1, 65):
        with pytest.raises(ValueError, match=rf"n_eval_prompts must be 2 to 64, .* got {count}; pass e.g. -p n_eval"):
            evaluate(task.policy, task.policy, task, count, 0, 4, 1.0)
    with pytest.raises(ValueError, match=r"always in fp32; call model\.float\(\)"):
        evaluate(copy.deepcopy(task.policy).bfloat16(), task.policy, task, 8, 0, 4, 1.0)


def test_the_front_starts_at_theta_sft_and_ends_at_the_merge() -> None:
    task, other = tiny.task(), tiny.gpt2(39, seed=3)
    before = fingerprint(task.policy.state_dict())
    rows = pareto_front(task.policy, snapshot(other), [0.0, 0.5, 1.0], task, 32, 0, 5, 1.0)
    assert [row["eta"] for row in rows] == [0.0, 0.5, 1.0]
    assert abs(rows[0]["kl"].value) < 1e-5 < rows[1]["kl"].value < rows[2]["kl"].value
    alone = evaluate(other, task.policy, task, 32, 0, 5, 1.0)
    assert rows[2]["kl"] == alone.kl_policy_reference and rows[2]["reward"] == alone.reward_policy
    assert fingerprint(task.policy.state_dict()) == before


def test_perplexities_of_several_trainings_are_averaged_in_the_log() -> None:
    one, two = (
        replace(result().evaluations[0], perplexity_policy=equal(value), reward_policy=equal(value))
        for value in (10.0, 1000.0)
    )
    found = over_trainings([one, two], "perplexity_policy")
    assert found.value == pytest.approx(100) and 0 < found.low < 10
    assert over_trainings([one, two], "reward_policy").value == pytest.approx(505)
    assert over_trainings([one], "perplexity_policy") is one.perplexity_policy
