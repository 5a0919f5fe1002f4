"""The reviews: cleaned, deduplicated, and split into parts that share none, whatever the file's order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny

from warp_nb.tasks import hub, imdb, prepared, wheels
from warp_nb.tasks.prepared import beginnings
from warp_nb.tasks.text import first_tokens

PARTS = (*imdb.SIZES, "sft")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("One.<br /><br />Two.", "One. Two."),
        ("One<br>two<br/>three", "One two three"),
        ("  tabs\tand\n\nlines  ", "tabs and lines"),
        ("a < b and c > d", "a < b and c > d"),
        ("no\xa0break\x1cand\x85a <br\n/> <br / >line\u3000", "no break and a <br / >line"),
        ("<br />first<b r>\u200blast<br/>", "first<b r>\u200blast"),
        ("", ""),
    ],
)
def test_clean(raw: str, cleaned: str) -> None:
    assert imdb.clean(raw) == cleaned
    assert imdb.clean(cleaned) == cleaned


@pytest.fixture
def reviews(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pd.DataFrame]:
    """Files shaped like the real ones: sorted by label, duplicates (also after cleaning), two sources."""
    texts = [f"review number {i}<br /><br />and its end" for i in range(12_500)]
    rows = [(text, int(i >= 6_000), "imdb") for i, text in enumerate(texts)]
    rows += [(text.replace("<br /><br />", " "), label, "imdb") for text, label, _ in rows[:700]]
    rows += [(f"short opinion {i}", 1, "rotten_tomatoes") for i in range(300)]
    frame = pd.DataFrame(rows, columns=["text", "label", "source"]).sort_values("label", kind="stable")
    frame.to_csv(tmp_path / "reviews.csv", index=False)
    monkeypatch.setattr(wheels, "imdb_csv", lambda: tmp_path / "reviews.csv")
    (tmp_path / hub.IMDB.files[0]).parent.mkdir()
    frame[frame["source"] == "imdb"][["text", "label"]].to_parquet(tmp_path / hub.IMDB.files[0])
    monkeypatch.setattr(hub, "fetch_from_hub", lambda part: tmp_path)
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path / "cache"))
    imdb._reviews.cache_clear()
    yield frame
    imdb._reviews.cache_clear()


def test_parts_are_disjoint_deduplicated_and_complete(reviews: pd.DataFrame) -> None:
    parts = {name: imdb.reviews(name)["text"].tolist() for name in PARTS}
    assert {name: len(parts[name]) for name in imdb.SIZES} == imdb.SIZES
    together = [text for texts in parts.values() for text in texts]
    assert len(together) == len(set(together)) == 12_500
    assert not any("<br" in text or "opinion" in text for text in together)


def test_the_judges_reviews_are_others_than_the_rewards_and_the_prompts(
    reviews: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(imdb, "SIZES", {"eval": 100, "reward_test": 90, "reward_train": 600, "prompts": 400})
    parts = {name: set(imdb.reviews(name)["text"]) for name in PARTS}
    judge = imdb.reviews("judge_train")
    assert len(judge) == len(parts["reward_train"]) == 600
    assert judge["text"].tolist() == imdb.reviews("sft")["text"].tolist()[:600]
    assert [name for name, texts in parts.items() if texts & set(judge["text"])] == ["sft"]


def test_a_review_keeps_its_part_when_the_file_is_reordered(
    reviews: pd.DataFrame, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {name: imdb.reviews(name) for name in PARTS}
    reviews.sample(frac=1, random_state=1).to_csv(tmp_path / "reviews.csv", index=False)
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path / "another cache"))
    imdb._reviews.cache_clear()
    for name, frame in before.items():
        pd.testing.assert_frame_equal(imdb.reviews(name), frame)


def test_the_hubs_file_is_split_alike(reviews: pd.DataFrame) -> None:
    for name in PARTS:
        pd.testing.assert_frame_equal(imdb.reviews(name, "hub"), imdb.reviews(name, "embedded"))


def unread(*_: Any) -> Path:
    raise AssertionError("the source is read again")


def test_a_part_is_read_from_the_cache_as_it_was_made(reviews: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    table, start = imdb._reviews("embedded"), 0
    made = {name: imdb.reviews(name) for name in PARTS}
    monkeypatch.setattr(wheels, "imdb_csv", unread)
    monkeypatch.setattr(hub, "fetch_from_hub", unread)
    imdb._reviews.cache_clear()
    for name in PARTS:
        wanted = table.iloc[start:][: imdb.SIZES.get(name)].reset_index(drop=True)
        pd.testing.assert_frame_equal(imdb.reviews(name), wanted)
        pd.testing.assert_frame_equal(made[name], wanted)
        start += len(wanted)
    with pytest.raises(AssertionError, match="read again"):
        imdb.reviews("eval", "hub")
    for sizes in (imdb.SIZES | {"eval": 999}, dict(reversed(imdb.SIZES.items()))):
        monkeypatch.setattr(imdb, "SIZES", sizes)
        with pytest.raises(AssertionError, match="read again"):
            imdb.reviews("prompts")


def test_prompts_are_the_same_from_the_cache_and_for_every_tokenizer_its_own(
    reviews: pd.DataFrame, monkeypatch: pytest.MonkeyPatch
) -> None:
    def prompts(tokenizer: Any, count: int | None = 50) -> list[str]:
        return beginnings(tokenizer, "eval", "embedded", count)

    monkeypatch.setattr(prepared, "PROMPT_TOKENS", 3)
    words = [*imdb.reviews("eval")["text"].str.split().str[2].drop_duplicates()]
    short, long = (tiny.tokenizer(["review", "number", *words, *more]) for more in (["and"], ["and", "its"]))
    made = prompts(short)
    assert made == first_tokens(short, imdb.reviews("eval")["text"].tolist()[:50], 3) and len(made) == 50
    with monkeypatch.context() as patched:
        patched.setattr(imdb, "reviews", unread)
        assert prompts(short) == made
        for changed in (lambda: prompts(long), lambda: prompts(short, 51), lambda: prompts(short, None)):
            with pytest.raises(AssertionError, match="read again"):
                changed()
        patched.setattr(prepared, "PROMPT_TOKENS", 4)
        with pytest.raises(AssertionError, match="read again"):
            prompts(short)


def test_parts_mix_the_labels_of_a_sorted_file(reviews: pd.DataFrame) -> None:
    share = 6_500 / 12_500
    for name, size in imdb.SIZES.items():
        deviation = abs(imdb.reviews(name)["label"].mean() - share)
        assert deviation < 4 * (share * (1 - share) / size) ** 0.5, name


@pytest.mark.parametrize(
    ("part", "source", "told"),
    [
        (
            "train",
            "embedded",
            "part must be one of eval, reward_test, reward_train, prompts, sft, judge_train, got 'train'",
        ),
        ("eval", "disk", "source must be one of embedded, hub, got 'disk'"),
    ],
)
def test_an_unknown_part_or_source_is_refused(part: imdb.Part, source: imdb.Source, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        imdb.reviews(part, source)
