"""The gate by hand, on planted rewards, and what IMDb's own is made of."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from gates import PAIRS, gate
from transformers import BertConfig, BertForSequenceClassification

from warp_nb.tasks import imdb
from warp_nb.tasks.gate import RewardGate, measure_gate
from warp_nb.tasks.imdb_gate import PRAISE_AND_BLAME, PROMPT_WORDS, SENTENCES, imdb_gate, imdb_pairs, judge_correlation
from warp_nb.tasks.reward_model import SCORED_WORDS, RewardModel, held_out_excerpts


def spoken(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """The number that the text ends with, plus ten times that of the prompt."""
    return [10 * float(p) + float(c) for p, c in zip(prompts, completions, strict=True)]


def test_the_gate_by_hand() -> None:
    pairs = [(("0", "3"), ("1", "1")), (("0", "2"), ("0", "2")), (("1", "1"), ("0", "4"))]
    sentences = [(("0", "2"), ("0", "1")), (("0", "1"), ("0", "1"))]
    found = measure_gate(spoken, pairs, sentences)
    assert found.pair_accuracy == pytest.approx((0 + 0.5 + 1) / 3), "a tie counts half"
    assert found.swap_change == pytest.approx((abs(1 - 3) + 0 + abs(14 - 11)) / 3)
    assert (found.good_above_bad, found.n_pairs) == (0.5, 3), "a tie is not above"
    mean = (3 + 11 + 2 + 2 + 11 + 4) / 6
    spread = sum((value - mean) ** 2 for value in (3, 11, 2, 2, 11, 4)) / 6
    assert found.spread == pytest.approx(spread**0.5)


def test_a_sound_reward() -> None:
    assert gate(tiny.opinion) == RewardGate(1.0, len(PAIRS), 1.0, 0.75, 2.0)


def collapsed(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return [0.25] * len(prompts)


def of_the_prompt(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return [float(len(prompt)) for prompt in prompts]


def negated(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return [-value for value in tiny.opinion(prompts, completions)]


@pytest.mark.parametrize(
    ("reward", "figures"),
    [
        (collapsed, {"pair_accuracy": 0.5, "spread": 0.0, "good_above_bad": 0.0, "swap_change": 0.0}),
        (of_the_prompt, {"pair_accuracy": 0.5, "good_above_bad": 0.0, "swap_change": 0.0}),
        (negated, {"pair_accuracy": 0.0, "spread": 1.0, "good_above_bad": 0.0, "swap_change": 2.0}),
    ],
)
def test_a_faulty_reward_shows(reward: Callable[..., list[float]], figures: dict[str, float]) -> None:
    assert vars(gate(reward)) | figures == vars(gate(reward))


def test_a_reward_that_misbehaves_is_named() -> None:
    with pytest.raises(ValueError, match="reward <lambda> at the gate returned 0 values for 9 completions"):
        gate(lambda prompts, completions: [])


# IMDb's


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, str]]:
    """What is asked of `imdb.reviews`, which gives twenty reviews of each label, numbered word by word."""
    rows = [(" ".join(f"{kind}{i}.{k}" for k in range(60)), int(kind == "p")) for kind in "pn" for i in range(20)]
    calls: list[tuple[str, str]] = []

    def reviews(part: str, source: str) -> pd.DataFrame:
        calls.append((part, source))
        return pd.DataFrame(rows, columns=["text", "label"])

    monkeypatch.setattr(imdb, "reviews", reviews)
    return calls


def test_pairs_are_held_out_beginnings_cut_at_the_prompt(asked: list[tuple[str, str]]) -> None:
    pairs = imdb_pairs(n=15)
    assert asked == [("reward_test", "embedded")] and len(pairs) == 15
    assert pairs == imdb_pairs(n=15) != imdb_pairs(n=15, seed=1)
    lengths = set()
    for side, kind in enumerate("pn"):
        texts = [prompt + completion for prompt, completion in (pair[side] for pair in pairs)]
        assert len({text.split()[0] for text in texts}) == 15, "no review twice"
        assert all(text.startswith(kind) and ".0 " in text for text in texts), "positive first, from the beginning"
        assert all(len(pair[side][0].split()) == PROMPT_WORDS and pair[side][1].startswith(" ") for pair in pairs)
        lengths |= {len(text.split()) for text in texts}
    assert min(lengths) >= SCORED_WORDS[0] and max(lengths) <= SCORED_WORDS[1] and len(lengths) > 5


def test_the_gate_of_a_source_reads_that_source(asked: list[tuple[str, str]]) -> None:
    def positive(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(prompt.startswith("p")) for prompt in prompts]

    found = imdb_gate(positive, source="hub")
    assert asked == [("reward_test", "hub")] and (found.pair_accuracy, found.n_pairs) == (1.0, 20)


def classifier(folder: Path | None, seed: int = 0, offset: float = 0.0) -> RewardModel:
    """An untrained BERT of one layer as a reward model."""
    words = tiny.tokenizer(pad=True)
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = BertForSequenceClassification(BertConfig(vocab_size=len(words), num_labels=1, **shape))
    return RewardModel(model, words, offset, folder)


def test_a_reward_model_is_measured_once(
    asked: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    plain = imdb_gate(classifier(None))
    assert plain == imdb_gate(classifier(None)) == imdb_gate(classifier(tmp_path)) and len(asked) == 3
    asked.clear()
    assert imdb_gate(classifier(tmp_path)) == plain and not asked


def retrained(model: RewardModel) -> None:
    next(model.model.parameters()).data[0] += 1e-3


def scoring_otherwise(model: RewardModel) -> None:
    model.score = lambda texts: [float(len(text)) for text in texts]  # type: ignore[method-assign]


def with_another_tokenizer(model: RewardModel) -> None:
    model.tokenizer = tiny.tokenizer(tiny.WORDS[::-1], pad=True)


@pytest.mark.parametrize(
    "change",
    [
        retrained,
        scoring_otherwise,
        with_another_tokenizer,
        lambda model: vars(model).update(offset=0.5),
        lambda model: vars(model).update(folder=None),
        lambda model: model.model.train(),
        lambda model: torch.set_num_threads(torch.get_num_threads() + 1),
        lambda model: setattr(model, "__class__", type("Another", (RewardModel,), {})),
    ],
)
def test_a_reward_model_that_may_score_otherwise_is_measured_again(
    change: Callable[[RewardModel], None],
    asked: list[tuple[str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    imdb_gate(classifier(tmp_path))
    model, threads = classifier(tmp_path), torch.get_num_threads()
    try:
        change(model)
        imdb_gate(model)
    finally:
        torch.set_num_threads(threads)
    assert len(asked) == 2
    imdb_gate(classifier(tmp_path), source="hub")
    assert len(asked) == 3, "the other source's reviews"


def test_reward_and_judge_are_correlated_on_the_held_out_reviews(
    asked: list[tuple[str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    reward, other, judge = classifier(tmp_path), classifier(tmp_path, offset=3.0), classifier(tmp_path, seed=1)
    assert judge_correlation(reward, other, "hub") == pytest.approx(1.0, abs=0.01), "the same scores, moved and rounded"
    found = judge_correlation(reward, judge, "hub")
    texts = [text for side in held_out_excerpts(imdb.reviews("reward_test", "hub"), SCORED_WORDS) for text in side]
    assert len(texts) == 40 and abs(found) < 0.99
    assert found == pytest.approx(statistics.correlation(reward.score(texts), judge.score(texts)), abs=1e-6)
    asked.clear()
    assert judge_correlation(reward, judge, "hub") == found and not asked, "read from the cache"
    assert judge_correlation(reward, classifier(tmp_path, seed=2), "hub") != found and asked


def test_sentences_differ_after_the_prompt() -> None:
    assert len(SENTENCES) == len(PRAISE_AND_BLAME) == 12
    assert all(good[0] == bad[0] and good[1] != bad[1] and good[1][0] == " " for good, bad in SENTENCES)


@pytest.mark.slow
@pytest.mark.parametrize("part", ["reward_train", "judge_train"])
def test_reviews_of_the_gate_were_not_trained_on(part: imdb.Part) -> None:
    def head(text: str) -> str:
        return " ".join(text.split()[: SCORED_WORDS[0]])

    trained = {head(text) for text in imdb.reviews(part)["text"]}
    texts = {head(prompt + rest) for pair in imdb_pairs() for prompt, rest in pair}
    assert len(texts) == 512 and not trained & texts
