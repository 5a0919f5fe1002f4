"""The diagnosis' faults are planted as they are named, beside parts that stay as they were."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

import pytest
import tiny
import torch
from transformers import BertConfig, BertForSequenceClassification

from warp_nb.algorithm.merge import Weights, load_, weights_of
from warp_nb.config import WarpConfig
from warp_nb.files import fingerprint
from warp_nb.runs.training import FAST, PLAIN
from warp_nb.runs.warp import WarpResult, warp
from warp_nb.studies.faults import FAULTS, constant_reward, in_fp16, planted, raw_logit, rounded_to_bf16
from warp_nb.tasks.reward_model import RewardModel

CONFIG = WarpConfig(I=1, T=2, lr=1e-2, warmup_steps=0, batch_size=4, max_new_tokens=4, threads=1)
TASK = tiny.task()
SECOND_ALONE = replace(FAST, run_seed=lambda seed, i, m: FAST.run_seed(seed, i, 2))
"""The first run then has the seed of the second."""


def trained(*names: str, **settings: Any) -> WarpResult:
    return warp(CONFIG, TASK, progress=False, parts=planted(names, **settings))


def curves(result: WarpResult) -> list[Any]:
    """What each run recorded, but for its number and its seconds."""
    return [rows.drop(columns=["run", "seconds"]).to_numpy().tolist() for _, rows in result.history.groupby("run")]


def test_nothing_planted_is_nothing_changed() -> None:
    assert planted([]) is FAST
    assert fingerprint(weights_of(trained().policy)) == fingerprint(
        weights_of(warp(CONFIG, TASK, progress=False).policy)
    )
    first, second = curves(trained())
    assert first != second


def test_a_scheduler_never_stepped_leaves_every_weight() -> None:
    found = trained("never-stepped")
    assert fingerprint(weights_of(found.policy)) == fingerprint(weights_of(TASK.policy))
    assert (found.runs.unmoved == 1).all() and (found.history.lr == 0).all()


def test_one_seed_makes_one_run() -> None:
    found = trained("one-seed")
    assert found.runs.run_seed.nunique() == 1 and found.merges.delta_cosine.min() > 0.9999
    first, second = curves(found)
    assert first == second


def test_one_model_is_merged_with_itself() -> None:
    found = trained("one-model")
    assert found.geometry.omega.abs().max() < 0.1 and found.merges.delta_cosine.min() > 0.9999
    first, second = curves(found)
    assert first != second, "the runs themselves are independent"
    alone = warp(CONFIG.replace(M=1), TASK, progress=False, parts=SECOND_ALONE)
    assert fingerprint(found.merged) == fingerprint(alone.merged), "what is merged is the last run"


def test_greedy_runs_in_order_are_one_run() -> None:
    asked: list[list[str]] = []

    def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        asked.append(prompts)
        return tiny.opinion(prompts, completions)

    found = warp(CONFIG, tiny.task(reward=reward), progress=False, parts=planted(["greedy"]))
    first, second = curves(found)
    assert first == second
    assert asked == [TASK.train_prompts[:4], TASK.train_prompts[4:8]] * 2


@pytest.mark.parametrize("warmup_steps", [0, 10])
def test_a_rebuilt_optimizer_steps_as_its_first_step_does(warmup_steps: int) -> None:
    """Adam's first step is lr in the sign of the gradient, so no weight moves further than lr a step."""
    config = CONFIG.replace(T=3, M=1, warmup_steps=warmup_steps)
    found = warp(config, TASK, progress=False, parts=planted(["rebuilt"]))
    lr = CONFIG.lr / max(1, warmup_steps)
    assert (found.history.lr == lr).all()
    start, (end,) = weights_of(TASK.policy), found.ingredients
    steps = torch.cat([((end[name] - start[name]) / lr).flatten() for name in start])
    moved = steps[steps.abs() > 0.5].abs()
    assert moved.max() < 3.01 and ((moved - moved.round()).abs() < 0.01).float().mean() > 0.9, "1 or 3 signs remain"
    usual = warp(config, TASK, progress=False)
    assert fingerprint(usual.ingredients[0]) != fingerprint(end)


def test_a_scheduler_stepped_once_a_run_knows_the_number_of_the_run() -> None:
    config = CONFIG.replace(I=2, warmup_steps=3)
    for _ in range(2):
        found = warp(config, TASK, progress=False, parts=planted(["once-a-run"]))
        rates = found.history.groupby(["iteration", "run"]).lr.unique().tolist()
        assert [rate.tolist() for rate in rates] == [[pytest.approx(config.lr * min(1, k / 3))] for k in (1, 2, 3, 4)]


def test_a_live_init_moves_with_every_run() -> None:
    found = trained("live-init")
    assert (found.runs.delta_norm == 0).all() and (found.runs.unmoved == 1).all(), "theta_init went along"
    first, second = found.ingredients
    assert fingerprint(weights_of(found.policy)) != fingerprint(weights_of(TASK.policy))
    begun = warp(CONFIG.replace(M=1), tiny.task(policy=with_weights(first)), progress=False, parts=SECOND_ALONE)
    assert fingerprint(begun.ingredients[0]) == fingerprint(second), "the second run begins where the first ended"
    assert fingerprint(weights_of(TASK.policy)) == fingerprint(weights_of(tiny.task().policy)), "the task is intact"


def with_weights(weights: Weights) -> Any:
    policy = tiny.task().policy
    load_(policy, weights)
    return policy


def test_bf16_weights_are_those_of_bf16() -> None:
    found = trained("bf16-weights")
    assert all(value.equal(value.bfloat16().float()) for one in found.ingredients for value in one.values())
    assert not all(value.equal(value.bfloat16().float()) for one in trained().ingredients for value in one.values())
    low = tiny.task(policy=rounded_to_bf16(TASK.policy))
    tiny_lr = CONFIG.replace(lr=1e-6)
    usual, rounded = (warp(tiny_lr, low, progress=False, parts=planted(names)) for names in ([], ["bf16-weights"]))
    assert usual.runs.unmoved.max() < 0.5 < 0.9 < rounded.runs.unmoved.min() < 1, "most steps are rounded away"


def test_a_policy_rounded_to_bf16_is_a_copy_in_its_own_dtype() -> None:
    before = fingerprint(weights_of(TASK.policy))
    low = rounded_to_bf16(TASK.policy)
    pairs = zip(low.parameters(), TASK.policy.parameters(), strict=True)
    assert all(mine.dtype == torch.float32 and mine.equal(its.bfloat16().float()) for mine, its in pairs)
    assert fingerprint(weights_of(TASK.policy)) == before != fingerprint(weights_of(low))


@pytest.mark.parametrize(
    ("name", "changed"),
    [
        ("never-stepped", ["learning_rate"]),
        ("once-a-run", ["train_run", "learning_rate"]),
        ("rebuilt", ["train_run", "learning_rate"]),
        ("one-seed", ["run_seed"]),
        ("one-model", ["train_run"]),
        ("live-init", ["train_run"]),
        ("bf16-weights", ["train_run"]),
        ("greedy", ["sample", "prompt_batches"]),
    ],
)
def test_a_fault_changes_its_parts_and_no_other(name: str, changed: list[str]) -> None:
    for parts in (FAST, PLAIN):
        found = planted([name], parts)
        assert [
            part.name for part in fields(parts) if getattr(found, part.name) != getattr(parts, part.name)
        ] == changed
        assert planted([name], parts).replaced() == sorted({*parts.replaced(), *changed}, key=ORDER.index)
    assert FAST.replaced() == []


ORDER = [part.name for part in fields(FAST)]


def test_faults_are_planted_together() -> None:
    found = trained("one-seed", "never-stepped")
    assert (found.history.lr == 0).all() and found.runs.run_seed.nunique() == 1
    assert set(planted(FAULTS).replaced()) == {"learning_rate", "run_seed", "train_run", "sample", "prompt_batches"}
    both = trained("greedy", "rebuilt")
    first, second = curves(both)
    assert first == second and fingerprint(both.merged) != fingerprint(trained("greedy").merged)


def test_an_unknown_fault_is_refused() -> None:
    with pytest.raises(ValueError, match=f"unknown fault gremlin; choose from {', '.join(FAULTS)}"):
        planted(["greedy", "gremlin"])


def test_the_constant_reward_is_constant() -> None:
    assert constant_reward(["a", "b"], ["c", "d"]) == [0.0438, 0.0438]


@pytest.fixture
def calibrated() -> RewardModel:
    """A small BERT whose zero was shifted by 0.5."""
    words = tiny.tokenizer(pad=True)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    config = BertConfig(vocab_size=len(words), num_labels=1, initializer_range=0.5, **sizes)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return RewardModel(BertForSequenceClassification(config), words, offset=0.5)


def test_a_raw_logit_keeps_its_zero(calibrated: RewardModel) -> None:
    texts = [["the film"] * 2, [" superb", " awful"]]
    raw = raw_logit(calibrated)
    assert raw(*texts) == pytest.approx([value + 0.5 for value in calibrated(*texts)]) and raw.offset == 0


def test_a_reward_in_fp16_has_the_steps_of_fp16(calibrated: RewardModel) -> None:
    texts = [["the film"] * 3, [" superb", " awful", " was boring"]]
    exact, raw = torch.tensor(raw_logit(calibrated)(*texts)), raw_logit(calibrated)
    found = torch.tensor(in_fp16(raw)(*texts))
    assert found.equal(found.half().float()) and not exact.equal(exact.half().float())
    torch.testing.assert_close(found, exact, rtol=0.01, atol=1e-3)
    assert raw(*texts) == exact.tolist(), "the model itself stays as it was"
