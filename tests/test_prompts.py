"""Prompts are validated where they enter: what a list of texts may be, and that every prompt can be completed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import datasets
import numpy as np
import pandas as pd
import pytest
import tiny
from faulty import CONFIG, quick

from warp_nb.config import ExperimentConfig
from warp_nb.measure.evaluation import evaluate
from warp_nb.studies.comparison import run_comparison
from warp_nb.studies.experiment import run_experiment

TEXTS = tiny.prompts(24, seed=5)
LISTS = ("train_prompts", "eval_prompts")
OTHER = {"train_prompts": tiny.prompts(60, seed=6)[40:], "eval_prompts": tiny.prompts(60, seed=7)[40:]}


def task_of(name: str, texts: Any, **changes: Any) -> Any:
    return tiny.task(**OTHER | {name: texts}, **changes)


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    "form",
    [
        list,
        tuple,
        np.array,
        lambda texts: np.array(texts, dtype=object),
        pd.Series,
        lambda texts: pd.Series(texts, index=range(100, 124)),
        lambda texts: pd.Series(texts, dtype="string"),
        lambda texts: datasets.Dataset.from_dict({"prompt": texts})["prompt"],
        iter,
    ],
    ids=["list", "tuple", "numpy", "objects", "pandas", "index", "string", "datasets", "iterator"],
)
def test_a_column_of_texts_becomes_a_list_of_str(name: str, form: Callable[[list[str]], Any]) -> None:
    found = getattr(task_of(name, form(TEXTS)), name)
    assert found == TEXTS and type(found) is list and {type(text) for text in found} == {str}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize(
    ("given", "told"),
    [
        ("The film was", "is one text, 'The film was'; pass a list of texts, e.g. "),
        (b"The film was", "is of type bytes"),
        ({"prompt": TEXTS}, "is of type dict"),
        (None, "is of type NoneType"),
        (7, "is of type int"),
        ([], "is empty; pass at least one prompt"),
        (np.array([]), "is empty; pass at least one prompt"),
        ([*TEXTS, None], r"\[24\] is of type NoneType, None; drop it"),
        ([*TEXTS, float("nan")], r"\[24\] is of type float, nan; drop it"),
        (pd.Series([*TEXTS, None]), r"\[24\] is of type \w+, (None|nan); drop it"),
        ([b"the film"], r"\[0\] is of type bytes"),
        ([[{"role": "user", "content": "we"}]], r"\[0\] is of type list.*tokenizer\.apply_chat_template\("),
        ([{"role": "user", "content": "we"}], r"\[0\] is of type dict.*tokenizer\.apply_chat_template\("),
        ([[1, 2, 3]], r"\[0\] is of type list.*tokenizer\.decode\(ids\)"),
        ([*TEXTS, ""], r"\[24\] '' has no tokens and the tokenizer no begin token; drop it"),
        ([*TEXTS, " "], r"\[24\] ' ' has no tokens"),
    ],
    ids=lambda value: str(value)[:24] if isinstance(value, str) else type(value).__name__,
)
def test_anything_else_is_refused_by_its_name(name: str, given: Any, told: str) -> None:
    with pytest.raises(ValueError, match=name + r" ?" + told) as caught:
        task_of(name, given)
    assert len(str(caught.value)) < 400


def test_a_token_beyond_the_vocabulary_is_refused() -> None:
    words = tiny.tokenizer()
    with pytest.raises(
        ValueError, match=r"eval_prompts\[1\] 'very' has token 37, .* vocabulary ends at 30; pass the pol"
    ):
        tiny.task(tokenizer=words, policy=tiny.gpt2(31), train_prompts=["the"], eval_prompts=["best", "very"])


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("how", ["warp", "experiment", "comparison", "evaluate"])
def test_a_prompt_that_leaves_no_room_is_refused_before_the_first_step(name: str, how: str) -> None:
    def never(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return pytest.fail("a completion was made")

    task = task_of(name, [*TEXTS, " ".join(["the"] * 28)], reward=never)
    settings = CONFIG.model_dump() | {"n_eval_prompts": 8}
    calls: dict[str, Callable[[], Any]] = {
        "warp": lambda: quick(CONFIG, task),
        "experiment": lambda: run_experiment(ExperimentConfig(**settings), task, progress=False),
        "comparison": lambda: run_comparison(ExperimentConfig(**settings | {"I": 2}), task, progress=False),
        "evaluate": lambda: evaluate(task.policy, task.policy, task, sampling=task.sampling(5), n_prompts=8),
    }
    with pytest.raises(
        ValueError, match=rf"{name}\[24\] has 28 tokens .* context of 32 leaves 4 for .* pass max_new_tokens = 4"
    ):
        calls[how]()


def test_a_task_is_shown_in_one_short_line() -> None:
    assert len(repr(tiny.task())) < 300
