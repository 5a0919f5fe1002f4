"""A task refuses what would fail later or silently; a reward is checked at every call."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tiny
import torch

from warp_nb.tasks.task import Task, call_reward, describe, first_tokens, load_task, resolve


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
        (None, "returned None; it must return a list of numbers, one a completion"),
        (1.0, "returned 1.0; it must return a list of numbers, one a completion"),
        ([1.0, None], "returned None for prompt 'second prompt'; every value must be one finite number"),
        ([1.0, "0.5"], "returned '0.5' for prompt 'second prompt'; every value must be one finite number"),
        ([[1.0], [2.0]], "returned [1.0] for prompt 'first prompt'; every value must be one finite number"),
        ([1.0], "returned 1 values for 2 completions"),
        ([1.0, 2.0, 3.0], "returned 3 values for 2 completions"),
        ([1.0, math.nan], "returned nan for prompt 'second prompt'; every value must be one finite"),
        ([math.inf, 1.0], "returned inf for prompt 'first prompt'; every value must be one finite"),
    ],
)
def test_a_misbehaving_reward_is_named_with_its_place(values: Any, words: str) -> None:
    with pytest.raises(ValueError) as caught:
        scores(values)
    assert "reward constant at step 3" in str(caught.value) and words in str(caught.value)


def test_a_rewards_own_error_is_named_with_its_place() -> None:
    def broken(**kwargs: Any) -> list[float]:
        raise KeyError("its own fault")

    with pytest.raises(
        RuntimeError, match=r"reward broken at here raised KeyError: 'its own fault' \(first of 1"
    ) as caught:
        call_reward(broken, ["the film"], ["c"], "here")
    assert isinstance(caught.value.__cause__, KeyError) and "'the film'" in str(caught.value)


def test_an_object_with_call_is_a_reward() -> None:
    class Scorer:
        def __call__(self, prompts: list[str], completions: list[str]) -> list[float]:
            return [0.0] * 5

    with pytest.raises(ValueError, match="reward Scorer at here returned 5 values for 1"):
        call_reward(Scorer(), ["p"], ["c"], "here")


def test_prompts_of_training_and_evaluation_are_disjoint_and_present() -> None:
    with pytest.raises(ValueError, match=r"1 prompts are in both .* 'the film'; the evaluation must be held out"):
        tiny.task(train_prompts=["the film", "we"], eval_prompts=["story", "the film"])
    for name in ("train_prompts", "eval_prompts"):
        with pytest.raises(ValueError, match=f"{name} is empty"):
            tiny.task(**{name: []})


def test_a_policy_with_dropout_on_or_in_low_precision_is_refused() -> None:
    with pytest.raises(ValueError, match=r"training mode.*call policy\.eval\(\)"):
        tiny.task(policy=tiny.gpt2(39).train())
    with pytest.raises(ValueError, match=r"must be float32, transformer\.wte\.weight is torch\.bfloat16"):
        tiny.task(policy=tiny.gpt2(39).bfloat16())


def test_a_task_is_frozen() -> None:
    with pytest.raises(AttributeError):
        tiny.task().reward = None  # type: ignore[misc]


def test_first_tokens_are_distinct_beginnings() -> None:
    words = tiny.tokenizer()
    assert first_tokens(words, ["the film was best", "the film is", "we"], count=2) == ["the film", "we"]


def test_describe_says_what_a_banner_needs() -> None:
    task = tiny.task()
    assert describe(task) == {
        "task": "tiny", "parameters": task.policy.num_parameters(), "reward": "opinion",
        "reward_model": {"name": "opinion"}, "train_prompts": 48,
        "eval_prompts": 64,
    }  # fmt: skip


def test_unknown_tasks_are_refused_with_the_known_ones() -> None:
    for call in (resolve, load_task):
        with pytest.raises(ValueError, match=r"task must be one of auto, small.*got 'large'; or build a Task"):
            call("large")
    assert [resolve(name, "cpu")[0] for name in ("auto", "small", "smollm", "gpt2")] == [
        "small", "small", "smollm", "gpt2"
    ]  # fmt: skip
    assert isinstance(tiny.task(), Task)
