"""Held-out evaluation against exact values; the front and the trajectory against evaluations of the same weights."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from brute import FOUR, exact_kl
from synthetic import HELD_OUT, VARIETY, equal, result

from warp_nb.algorithm.merge import Weights, load_, weights_of
from warp_nb.algorithm.objective import completion_logits
from warp_nb.config import WarpConfig
from warp_nb.files import fingerprint
from warp_nb.measure.estimates import Estimate, mean_interval
from warp_nb.measure.evaluation import (
    JUDGE_MEASURES,
    MEASURES,
    Evaluation,
    distinct_share,
    evaluate,
    over_trainings,
    token_nll,
    trajectory,
)
from warp_nb.measure.front import pareto_front
from warp_nb.runs.warp import warp
from warp_nb.tasks.task import Task
from warp_nb.tasks.text import completion_tokens

TASK = tiny.task()
SETTINGS: dict[str, Any] = {"sampling": TASK.sampling(6), "n_prompts": 40, "seed": 1}
FEW = SETTINGS | {"n_prompts": 8}


def with_weights(weights: Weights) -> Any:
    """θ_sft with other weights."""
    policy = copy.deepcopy(TASK.policy)
    load_(policy, weights)
    return policy


# Figures


def test_distinct_bigrams_and_nll_by_hand() -> None:
    given = tiny.rollout([0], [[1, 2, 1, 2, 1], [3], [1, 2]])
    tokens = completion_tokens(given)
    assert tokens == [[1, 2, 1, 2, 1], [3], [1, 2]]
    assert [distinct_share([one]) for one in tokens] == [0.5, 1.0, 1.0] and distinct_share(tokens) == 0.4
    policy = tiny.gpt2(4)
    with torch.no_grad():
        found = token_nll(completion_logits(policy, given), replace(given, temperature=0.5))
        loss = policy(torch.tensor([[0, 1, 2]]), labels=torch.tensor([[-100, 1, 2]])).loss.item()
    assert found[2] == pytest.approx(loss, rel=1e-5), "of temperature 1, whatever the completions were drawn at"


@pytest.mark.parametrize("temperature", [pytest.param(1.0, marks=pytest.mark.slow), 0.7])
def test_both_kls_against_brute_force(temperature: float) -> None:
    """On 1500 prompts that are one prompt to the model: words beyond the vocabulary all are token 0."""
    words = tiny.tokenizer(FOUR)
    p, q = tiny.gpt2(4, seed=1), tiny.gpt2(4, seed=2)
    task = Task(p, words, tiny.counted("a"), ["b"], [f"w{i} b" for i in range(1500)])
    found = evaluate(q, p, task, sampling=task.sampling(3, temperature), n_prompts=1500)
    for estimate, wanted in (
        (found.kl_reference_policy, exact_kl(p, q, [0, 1], temperature)),
        (found.kl_policy_reference, exact_kl(q, p, [0, 1], temperature)),
    ):
        error = (estimate.high - estimate.low) / 4
        assert abs(estimate.value - wanted) < 3 * error < 0.2 * wanted


def test_a_policy_beside_itself() -> None:
    found = evaluate(copy.deepcopy(TASK.policy), TASK.policy, TASK, sampling=TASK.sampling(6, 0.9), n_prompts=64)
    assert found.reward_difference == Estimate(0, 0, 0) and found.reward_policy == found.reward_reference
    for kl in (found.kl_policy_reference, found.kl_reference_policy):
        assert abs(kl.value) < 1e-5 and 0 <= kl.low <= kl.high < 1e-5
    assert found.perplexity_policy == found.perplexity_reference and found.distinct_policy == found.distinct_reference
    assert found.variety_policy == found.variety_reference < 1
    assert found.repeated_policy == found.repeated_reference
    assert 1 < found.perplexity_reference.value < 3 * 39 and set(found.measures()) == set(MEASURES)


def test_rewards_are_the_tasks_and_samples_show_them() -> None:
    found = evaluate(tiny.gpt2(39, seed=3), TASK.policy, TASK, **SETTINGS, n_samples=5)
    assert len(found.samples) == 5 and len(found.rewards_policy) == 40
    for place, sample in enumerate(found.samples):
        assert sample["prompt"] in TASK.eval_prompts and sample["reward_policy"] == found.rewards_policy[place]
        for side in ("reference", "policy"):
            assert tiny.opinion([""], [sample[side]]) == [sample[f"reward_{side}"]]
    difference = found.reward_policy.value - found.reward_reference.value
    assert found.reward_difference.value == pytest.approx(difference)
    assert found.reward_policy.value == pytest.approx(sum(found.rewards_policy) / 40)


def test_a_judge_scores_the_same_completions() -> None:
    policy, judge = tiny.gpt2(39, seed=3), tiny.counted("film")
    plain = evaluate(policy, TASK.policy, TASK, **SETTINGS)
    found = evaluate(policy, TASK.policy, replace(TASK, judge=judge), **SETTINGS, n_samples=40)
    assert not plain.judged and plain.judges_policy == [] and "judge_policy" not in plain.samples[0]
    assert found.judged and [*found.measures()] == [*MEASURES, *JUDGE_MEASURES]
    assert [found.measures()[name] for name in MEASURES] == [*plain.measures().values()]
    for side, judges in (("reference", found.judges_reference), ("policy", found.judges_policy)):
        assert judges == [sample[f"judge_{side}"] for sample in found.samples] and len(set(judges)) > 1
        assert judges == judge([], [sample[side] for sample in found.samples])
        assert getattr(found, f"judge_{side}") == mean_interval(judges)
    pairs = zip(found.judges_reference, found.judges_policy, strict=True)
    assert found.judge_difference == mean_interval([after - before for before, after in pairs])


def test_what_was_measured_on_each_prompt_gives_the_means() -> None:
    found = evaluate(tiny.gpt2(39, seed=3), TASK.policy, TASK, **SETTINGS)
    assert mean_interval(found.rewards_reference) == found.reward_reference
    assert mean_interval(found.rewards_policy) == found.reward_policy
    assert mean_interval(found.kls_policy).value == found.kl_policy_reference.value


def test_evaluation_repeats_and_follows_its_seed() -> None:
    policy = tiny.gpt2(39, seed=3)
    first, again, other = (evaluate(policy, TASK.policy, TASK, **SETTINGS | {"seed": seed}) for seed in (1, 1, 2))
    assert first == again and first.kl_policy_reference != other.kl_policy_reference
    assert [one["prompt"] for one in first.samples] != [one["prompt"] for one in other.samples]


@pytest.mark.parametrize("count", [1, 65])
def test_a_number_of_prompts_that_the_task_lacks_is_refused(count: int) -> None:
    told = rf"^n_prompts must be 2 to 64, the held-out prompts of task tiny, got {count}; pass e.g. n_prompts = 64$"
    with pytest.raises(ValueError, match=told):
        evaluate(TASK.policy, TASK.policy, TASK, **SETTINGS | {"n_prompts": count})


@pytest.mark.parametrize("side", [0, 1])
def test_a_model_in_low_precision_is_refused(side: int) -> None:
    models = [TASK.policy, TASK.policy]
    models[side] = copy.deepcopy(TASK.policy).bfloat16()
    with pytest.raises(ValueError, match=r"evaluation is always in fp32; call model\.float\(\) first"):
        evaluate(*models, TASK, **SETTINGS)


def test_settings_and_figures_are_given_by_name() -> None:
    with pytest.raises(TypeError, match="positional"):
        evaluate(TASK.policy, TASK.policy, TASK, TASK.sampling(6))  # type: ignore[misc]
    with pytest.raises(TypeError, match="positional"):
        Evaluation(*HELD_OUT.values(), *VARIETY.values(), [])  # type: ignore[call-arg]


# Over several trainings


@pytest.mark.parametrize("measure", ["perplexity_policy", "kl_policy_reference", "kl_reference_policy"])
def test_perplexities_and_kls_of_several_trainings_are_averaged_in_the_log(measure: str) -> None:
    one, two = (
        replace(result().evaluations[0], **{measure: equal(value)}, reward_policy=equal(value))
        for value in (10.0, 1000.0)
    )
    found = over_trainings([one, two], measure)
    assert found.value == pytest.approx(100) and 0 < found.low < 10
    assert over_trainings([one, two], "reward_policy").value == pytest.approx(505)
    assert over_trainings([one], measure) is getattr(one, measure)


# The front


def test_a_point_of_the_front_is_the_evaluation_of_its_weights() -> None:
    sft, merged = weights_of(TASK.policy), weights_of(tiny.gpt2(39, seed=3))
    before, etas = fingerprint(sft), [1.0, 0.0, 0.3, 2.0]
    rows = pareto_front(TASK.policy, merged, etas, TASK, **SETTINGS)
    assert [row["eta"] for row in rows] == etas, "in the order asked for"
    for row in rows:
        eta = row["eta"]
        wanted = {name: torch.lerp(sft[name], merged[name], eta) for name in sft}
        assert row["evaluation"] == evaluate(with_weights(wanted), TASK.policy, TASK, **SETTINGS)
        assert row["reward"] == row["evaluation"].reward_policy
        assert row["kl"] == row["evaluation"].kl_policy_reference
    kls = {row["eta"]: row["kl"].value for row in rows}
    assert abs(kls[0.0]) < 1e-5 < kls[0.3] < kls[1.0] < kls[2.0]
    assert fingerprint(weights_of(TASK.policy)) == before


def test_an_eta_beyond_two_is_refused() -> None:
    with pytest.raises(ValueError, match=r"eta must be in \[0, 2\], got 2\.5"):
        pareto_front(TASK.policy, weights_of(TASK.policy), [0.5, 2.5], TASK, **SETTINGS)


# The trajectory


@pytest.mark.slow
@pytest.mark.parametrize("durable", [False, True])
def test_the_trajectory_has_a_row_a_snapshot_in_the_order_of_training(durable: bool, tmp_path: Path) -> None:
    config = WarpConfig(T=12, lr=1e-2, warmup_steps=0, batch_size=2, max_new_tokens=4, snapshot_every=5, threads=1)
    config = config.replace(keep_anchors=True)
    made = warp(config, TASK, tmp_path if durable else None, progress=False)
    rows = trajectory(made.snapshots, TASK, **FEW)
    runs = [(i, m) for i in (1, 2) for m in (1, 2)]
    found = [(row["iteration"], row["run"], row["step"]) for row in rows]
    assert found == [(i, m, at) for i, m in runs for at in (5, 10, "anchor")], "10 comes after 5, the anchor last"
    for row in rows:
        key = (row["iteration"], row["run"], row["step"])
        wanted = evaluate(with_weights(made.snapshots[key]), TASK.policy, TASK, **FEW)
        assert row["evaluation"] == wanted
        assert (row["reward"], row["kl"]) == (wanted.reward_policy, wanted.kl_policy_reference)
    assert len({row["kl"].value for row in rows}) == len(rows), "two snapshots are the same weights"


def test_the_last_snapshot_of_a_run_is_what_it_left() -> None:
    config = WarpConfig(I=1, T=4, lr=1e-2, warmup_steps=0, batch_size=2, max_new_tokens=4, snapshot_every=2, threads=1)
    made = warp(config, TASK, progress=False)
    rows = trajectory(made.snapshots, TASK, **FEW)
    ends = [row["evaluation"] for row in rows if row["step"] == 4]
    assert ends == [evaluate(with_weights(one), TASK.policy, TASK, **FEW) for one in made.ingredients]


def test_without_snapshots_there_is_no_trajectory() -> None:
    assert trajectory({}, TASK, **FEW) == []
