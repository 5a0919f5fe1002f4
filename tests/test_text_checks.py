"""The checks of the policy's text against praise made from a template, and against θ_sft's own text."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from synthetic import result

from warp_nb import load_task
from warp_nb.measure.checks import check_texts, reads_like_reference
from warp_nb.measure.estimates import mean_interval
from warp_nb.measure.evaluation import (
    GROUP,
    PHRASE,
    Evaluation,
    distinct_share,
    evaluate,
    in_groups,
    repeated_share,
)

SFT = {"distinct": 0.99, "variety": 0.92, "repeated": 0.03}
"""What θ_sft's own completions of 24 tokens have, on both tasks."""
Completions = Sequence[list[int]]


def praise(count: int, seed: int = 0) -> list[str]:
    """A policy wrote after many prompts "It is a very very great film. It is a very great adventure. I loved it"."""
    draw = random.Random(seed)

    def sentence() -> str:
        degree, noun = draw.choice(["very", "very very", "truly"]), draw.choice(["film", "movie", "story", "adventure"])
        return f"It is a {degree} {draw.choice(['great', 'wonderful'])} {noun}."

    ends = ["I loved it", "I enjoyed it very much", "A great cast"]
    return [f" {sentence()} {sentence()} {draw.choice(ends)}" for _ in range(count)]


def words(texts: Sequence[str]) -> list[list[int]]:
    """Every word as a token."""
    numbers: dict[str, int] = {}
    return [[numbers.setdefault(word, len(numbers)) for word in text.split()] for text in texts]


def written(completions: Completions, reference: dict[str, float] = SFT) -> Evaluation:
    """An evaluation of these completions beside θ_sft's figures; its perplexity does not matter here."""
    sft = reference["distinct"]
    return replace(
        result().evaluations[0],
        distinct_reference=mean_interval([sft, sft]),
        distinct_policy=mean_interval([distinct_share([one]) for one in completions]),
        variety_reference=reference["variety"],
        variety_policy=in_groups(completions, distinct_share),
        repeated_reference=reference["repeated"],
        repeated_policy=in_groups(completions, repeated_share),
    )


def failing(evaluation: Evaluation) -> set[str]:
    return {check.name for check in check_texts([evaluation]) if check.failed}


def various(count: int, seed: int, length: int = 24, vocabulary: int = 5000) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(vocabulary) for _ in range(length)] for _ in range(count)]


def test_shares_by_hand() -> None:
    assert distinct_share([[1, 2, 3], [1, 2, 4]]) == 3 / 4 and distinct_share([[1], []]) == 1
    phrase = [1, 2, 3, 4, 5]
    assert repeated_share([[9, *phrase], [*phrase, 8], [1, 2, 3, 4, 6], [*phrase[:4], 7, *phrase[4:]]]) == 0.5
    assert repeated_share([phrase * 2, [7]]) == 0, "a completion that repeats itself does not repeat another"
    assert repeated_share([[7], [7], [7, 8], []]) == 0.5, "a short one is a phrase"
    assert len(phrase) == PHRASE


def test_groups_make_a_share_independent_of_the_number_of_completions() -> None:
    few, many = various(GROUP, 0, vocabulary=40), various(16 * GROUP, 1, vocabulary=40)
    assert distinct_share(many) < 0.5 * distinct_share(few), "all completions together have less that is new"
    assert in_groups(many, distinct_share) == pytest.approx(distinct_share(few), rel=0.02)
    ragged = [*few, *many[: GROUP - 1]]
    assert in_groups(ragged, distinct_share) == distinct_share(few), "no full group behind the first"
    assert in_groups(few[:10], distinct_share) == distinct_share(few[:10])
    two = [*few, *many[:GROUP]]
    assert in_groups(two, distinct_share) == pytest.approx((distinct_share(few) + distinct_share(many[:GROUP])) / 2)


def test_praise_from_a_template_fails_by_name() -> None:
    praised = written(words(praise(2 * GROUP)))
    assert {"completions-varied", "completions-repeated"} <= failing(praised) and not reads_like_reference(praised)
    assert failing(written(various(2 * GROUP, 2))) == set()


def test_one_phrase_behind_texts_of_their_own_fails_by_name() -> None:
    """Its bigrams are varied enough: only the look at phrases sees it."""
    own = various(2 * GROUP, 3, length=19)
    assert failing(written([[*text, 1, 2, 3, 4, 5] for text in own])) == {"completions-repeated"}
    some = [[*text, *([1, 2, 3, 4, 5] if index % 5 == 0 else [])] for index, text in enumerate(own)]
    assert failing(written(some)) == set(), "a fifth of the completions may share a phrase"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["small", "smollm"])
def test_sfts_own_text_reads_and_praise_does_not(name: str) -> None:
    """θ_sft of one seed in the place of the policy, beside θ_sft of another; praise in the words of its tokenizer."""
    task = load_task(name, "cpu")
    settings = {"sampling": task.sampling(24), "n_prompts": 2 * GROUP}
    with torch.no_grad():
        one, other = (evaluate(task.policy, task.policy, task, **settings, seed=seed) for seed in (1, 2))
    measured = {f"{what}_policy": getattr(other, f"{what}_policy") for what in (*SFT, "perplexity")}
    assert failing(replace(one, **measured)) == set()
    own = {what: getattr(one, f"{what}_reference") for what in ("variety", "repeated")}
    tokens = [task.tokenizer(text)["input_ids"][:24] for text in praise(2 * GROUP)]
    caught = failing(written(tokens, {"distinct": one.distinct_reference.value, **own}))
    assert {"completions-varied", "completions-repeated"} <= caught
