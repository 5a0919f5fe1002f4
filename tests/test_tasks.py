"""A task refuses what would fail later or silently; a reward is checked at every call."""

from __future__ import annotations

import math
import pickle
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import gates
import numpy as np
import pytest
import tiny
import torch
from transformers import MambaConfig

from warp_nb.algorithm.objective import Sampling
from warp_nb.config import WarpConfig
from warp_nb.measure.best_of_n import best_of_n
from warp_nb.measure.evaluation import evaluate
from warp_nb.runs.warp import warp
from warp_nb.tasks import hub, imdb, imdb_gate, reward_model
from warp_nb.tasks.identity import task_identity
from warp_nb.tasks.prepared import LOADERS, PROMPT_TOKENS, load_task, resolve
from warp_nb.tasks.reward_interface import call_reward, describe_reward
from warp_nb.tasks.task import describe
from warp_nb.tasks.text import context_length, first_tokens, pad_id

# Rewards


def scores(values: Any, count: int = 2) -> list[float]:
    def constant(prompts: list[str], completions: list[str], **kwargs: Any) -> Any:
        return values

    return call_reward(constant, ["first prompt", "second prompt"][:count], ["x"] * count, "step 3")


@pytest.mark.parametrize(
    "values", [[1, 2], (1.0, 2.0), np.array([1.0, 2.0]), torch.tensor([1.0, 2.0]), [torch.tensor(1.0), np.float32(2)]]
)
def test_rewards_of_any_number_type_become_floats(values: Any) -> None:
    found = scores(values)
    assert found == [1.0, 2.0] and {type(value) for value in found} == {float}


@pytest.mark.parametrize(
    ("values", "words"),
    [
        (None, "returned None; it must return a list of numbers, one per completion"),
        (1.0, "returned 1.0; it must return a list of numbers, one per completion"),
        ([1.0, None], "returned None for prompt 'second prompt', and at least one reward must apply to a prompt; "),
        ([1.0, "0.5"], "returned '0.5' for prompt 'second prompt'; every value must be one number, finite in float32"),
        ([[1.0], [2.0]], "returned [1.0] for prompt 'first prompt'; every value must be one number, finite in float32"),
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 values for 2 completions"),
        ([1.0, math.nan], "returned nan for prompt 'second prompt'; every value must be one number, finite"),
        ([math.inf, 1.0], "returned inf for prompt 'first prompt'; every value must be one number, finite"),
        ([1.0, 1e39], "returned 1e+39 for prompt 'second prompt'; every value must be one number, finite in float32"),
        ([1.0, 10**400], f"returned {10**400} for prompt 'second prompt'; every value must be one number, finite"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_a_misbehaving_reward_is_named_with_its_place(values: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        scores(values)
    assert str(caught.value).startswith(f"reward constant at step 3 {words}")


def test_a_rewards_own_error_is_named_with_its_place() -> None:
    def broken(**kwargs: Any) -> list[float]:
        raise KeyError("its own fault")

    with pytest.raises(RuntimeError) as caught:
        call_reward(broken, ["the film", "we"], ["c", "d"], "here")
    said = "reward broken at here raised KeyError: 'its own fault' (first of 2 prompts: 'the film')"
    assert str(caught.value) == said and isinstance(caught.value.__cause__, KeyError)


class Scorer:
    """A reward that is an object and knows what it is."""

    def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
        return [float(len(text)) for text in completions]

    def describe(self) -> dict[str, Any]:
        return {"parameters": 3}


def test_an_object_with_call_is_a_reward() -> None:
    assert call_reward(Scorer(), ["p"], ["four"], "here") == [4.0]
    assert describe_reward(Scorer()) == {"name": "Scorer", "parameters": 3}
    assert describe_reward(tiny.opinion) == {"name": "opinion"}


# Texts (what becomes of prompts and completions: test_text.py)


def test_first_tokens_are_distinct_beginnings_in_order() -> None:
    texts = ["the film was best", "we", "the film is", "film the"]
    assert first_tokens(tiny.tokenizer(), texts, count=2) == ["the film", "we", "film the"]


@pytest.mark.parametrize(
    ("special", "token"), [({"pad": True}, "<pad>"), ({}, tiny.END), ({"end": False}, tiny.WORDS[0])], ids=str
)
def test_padding_is_the_pad_token_else_the_end_else_zero(special: dict[str, bool], token: str) -> None:
    words = tiny.tokenizer(**special)
    assert words.convert_ids_to_tokens(pad_id(words, tiny.gpt2(len(words)))) == token


def test_a_padding_id_beyond_the_vocabulary_is_not_used() -> None:
    words = tiny.tokenizer(pad=True)
    assert pad_id(words, tiny.gpt2(len(words) - 1)) == words.eos_token_id
    assert pad_id(words, tiny.gpt2(len(words) - 2)) == 0


def test_a_model_without_positions_has_no_limit() -> None:
    assert context_length(tiny.gpt2(4)) == 32
    assert context_length(SimpleNamespace(config=MambaConfig())) > 10**9


# The task


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            lambda: {"train_prompts": ["the film", "we"], "eval_prompts": ["story", "the film"]},
            "1 prompts are in both train_prompts and eval_prompts, e.g. 'the film'; the evaluation must be held out",
        ),
        (lambda: {"train_prompts": []}, "train_prompts is empty; pass at least one prompt"),
        (lambda: {"eval_prompts": []}, "eval_prompts is empty; pass at least one prompt"),
        (lambda: {"policy": tiny.gpt2(39).train()}, r"the policy is in training mode, .*; call policy\.eval\(\)"),
        (
            lambda: {"policy": tiny.gpt2(39).bfloat16()},
            r"the policy must be float32, transformer\.wte\.weight is torch\.bfloat16; call policy\.float\(\)",
        ),
    ],
)
def test_a_task_that_would_fail_later_is_refused(changes: Callable[[], dict[str, Any]], told: str) -> None:
    with pytest.raises(ValueError, match=told):
        tiny.task(**changes())


def test_a_task_is_frozen() -> None:
    with pytest.raises(AttributeError):
        tiny.task().reward = None  # type: ignore[misc]


def test_sampling_takes_the_ids_of_the_tokenizer() -> None:
    words = tiny.tokenizer(pad=True)
    task = tiny.task(tokenizer=words)
    assert task.sampling(5) == Sampling(5, 1.0, (words.eos_token_id,), words.pad_token_id)
    assert tiny.task(tokenizer=tiny.tokenizer(end=False)).sampling(5, 0.7) == Sampling(5, 0.7, (), 0)


def test_prompts_leave_room_for_the_completion() -> None:
    task = tiny.task()
    ids, mask = task.encode(["the film", "we"], task.sampling(8))
    assert task.tokenizer.decode(ids[0]) == "the film" and mask.tolist() == [[1, 1], [0, 1]]
    task.encode(["the " * 24], task.sampling(8))
    with pytest.raises(ValueError, match="prompt of 25 tokens, at most 24 fit beside the completion"):
        task.encode(["the " * 25], task.sampling(8))


def test_a_task_decodes_and_scores() -> None:
    task = tiny.task()
    best, bad = task.tokenizer.convert_tokens_to_ids(["best", "awful"])
    texts = task.decode(tiny.rollout([0], [[best, best], [bad, task.tokenizer.eos_token_id]]))
    assert texts == [" best best", " awful"] and task.score(["the"] * 2, texts, "here") == [2.0, -1.0]
    with pytest.raises(ValueError, match="reward short at here returned 0 values for 1 completions"):
        tiny.task(reward=short).score(["the"], ["film"], "here")


def test_a_task_scores_by_its_judge() -> None:
    task = tiny.task(judge=tiny.counted("awful"))
    assert task.score_judge(["the"] * 2, [" awful awful", " best"], "here") == [2.0, 0.0]
    assert describe(task)["judge"] == {"name": "count"}
    with pytest.raises(ValueError, match="reward short at here, as the judge returned 0 values for 1 completions"):
        tiny.task(judge=short).score_judge(["the"], ["film"], "here")
    found = replace(task, gate=gates.gate).gates()
    assert found == {"reward": gates.gate(tiny.opinion), "judge": gates.gate(task.judge)} and task.gates() == {}
    with pytest.raises(ValueError, match=r"task tiny has no judge; pass Task\(judge=\.\.\.\)"):
        tiny.task().score_judge(["the"], ["film"], "here")


def short(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return []


STOP = "movie"


def ends_with_stops(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """A reward that sees nothing after a stop string."""
    assert all(text.endswith(STOP) for text in completions if STOP in text)
    return [float(STOP in text) for text in completions]


def test_stop_strings_end_completions_wherever_they_are_sampled() -> None:
    """In training, evaluation and best-of-N; most completions of 20 tokens from 39 words are without."""
    task = tiny.task(reward=ends_with_stops, stop_strings=[STOP], tokenizer=tiny.tokenizer(end=False))
    plain = tiny.task(reward=tiny.counted(STOP), tokenizer=tiny.tokenizer(end=False))
    config = WarpConfig(I=1, M=1, T=2, batch_size=16, max_new_tokens=20, warmup_steps=0)
    cut, whole = (warp(config, one, progress=False).history for one in (task, plain))
    assert (cut["reward"] > 0).all() and (cut["tokens"] < 20).all() and (whole["tokens"] == 20).all()
    assert cut["sampling_gap"].max() < 1e-4
    settings = {"sampling": task.sampling(20), "n_prompts": 40}
    found = evaluate(task.policy, task.policy, task, **settings)
    assert 0 < found.reward_policy.value < 1 and found.kl_policy_reference.value == 0
    (best,) = best_of_n(task, ns=[4], **settings)
    assert best.gain.value > 0


def test_the_fewest_tokens_hold_in_training_and_evaluation() -> None:
    """Of 39 equally likely tokens one ends a completion: without `min_new_tokens` some are short."""

    def long_enough(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        lengths = [len(text.split()) for text in completions]
        assert min(lengths) >= 10
        return list(map(float, lengths))

    task = tiny.task(reward=long_enough, min_new_tokens=10)
    config = WarpConfig(I=1, M=1, T=2, batch_size=32, max_new_tokens=20, warmup_steps=0)
    history = warp(config, task, progress=False).history
    assert history["sampling_gap"].max() < 1e-4 and history["tokens"].min() > 10
    settings = {"sampling": task.sampling(20), "n_prompts": 40}
    found = evaluate(task.policy, task.policy, task, **settings)
    assert found.kl_policy_reference.value == 0 and found.reward_policy.value >= 10
    assert best_of_n(task, ns=[2], **settings)[0].gain.value > 0
    with pytest.raises(ValueError, match=r"^min_new_tokens = 10 of the task is more than max_new_tokens = 9; pass"):
        warp(config.replace(max_new_tokens=9), task)
    for wrong in (-1, 1.0, True):
        with pytest.raises(ValueError, match=rf"^min_new_tokens must be a whole number, at least 0, got {wrong}"):
            tiny.task(min_new_tokens=wrong)


def test_stop_strings_are_texts_and_belong_to_the_identity_of_a_run() -> None:
    with pytest.raises(ValueError, match=r"^stop_strings is one text, 'film'; pass a list of texts"):
        tiny.task(stop_strings="film")
    with pytest.raises(ValueError, match=r"^stop_strings has an empty text, with which every completion would end"):
        tiny.task(stop_strings=["film", ""])
    assert "stop_strings" not in task_identity(tiny.task())
    identity = task_identity(tiny.task(stop_strings=("film",), min_new_tokens=2))
    assert identity["stop_strings"] == ["film"] and identity["min_new_tokens"] == 2


def test_describe_says_what_a_banner_needs() -> None:
    task = tiny.task(facts={"perplexity_after": 30.0})
    assert describe(task) == {
        "task": "tiny", "parameters": task.policy.num_parameters(), "reward": "opinion",
        "reward_model": {"name": "opinion"}, "train_prompts": 48, "eval_prompts": 64, "perplexity_after": 30.0,
    }  # fmt: skip


# The prepared tasks


def test_unknown_tasks_are_refused_with_the_known_ones() -> None:
    for call in (resolve, load_task):
        with pytest.raises(ValueError, match=r"task must be one of auto, small, smollm, gpt2, got 'large'; or build a"):
            call("large")


@pytest.mark.parametrize(
    ("name", "device", "chosen"),
    [
        *((name, "cpu", (name, "cpu", "named")) for name in LOADERS),
        ("auto", "cpu", ("small", "cpu", "no-gpu")),
        ("auto", "", ("gpt2", "cuda", "gpu")),
    ],
)
def test_auto_is_the_hubs_task_with_a_gpu(
    name: str, device: str, chosen: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without the hub: test_at_hand.py."""
    monkeypatch.setattr(hub, "at_hand", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert resolve(name, device) == chosen


@pytest.mark.slow
def test_a_prepared_task_has_a_judge_where_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    judge, asked = tiny.counted("film"), []
    monkeypatch.setattr(reward_model, "load_reward", lambda device, **_: tiny.opinion)
    monkeypatch.setattr(reward_model, "load_judge", lambda device, **given: asked.append(given["source"]) or judge)
    monkeypatch.setattr(imdb_gate, "judge_correlation", lambda *given: (given, 0.5)[1])
    plain = load_task("small", "cpu")
    assert plain.judge is None and not asked and not plain.facts
    task = load_task("small", "cpu", judge=True)
    assert task.judge is judge and asked == ["embedded"] and task.facts == {"judge_correlation": 0.5}
    assert [*task.gates()] == ["reward", "judge"] and [*plain.gates()] == ["reward"]
    assert task.rebuild is not None and task.rebuild.keywords == {}, "a worker trains and needs no judge"
    assert task_identity(task) == task_identity(plain)


@pytest.mark.slow
def test_the_shipped_task_is_whole() -> None:
    task = load_task("small", "cpu")
    assert task.name == "small" and describe(task)["reward"] == "imdb_sentiment" and not task.facts
    assert task.gate is not None and task.gate(task.reward).pair_accuracy > 0.7
    for prompts, part in ((task.train_prompts, "prompts"), (task.eval_prompts, "eval")):
        texts = imdb.reviews(part)["text"].tolist()
        assert len(prompts) > 0.95 * len(texts)
        assert prompts[:5] == first_tokens(task.tokenizer, texts[:5], PROMPT_TOKENS)
    again = pickle.loads(pickle.dumps(task.rebuild))
    assert again.func is load_task and again.args == ("small",)
