"""The reviews: cleaned, deduplicated, and split into parts that share none, whatever the file's order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest

from warp_nb.tasks import hub, imdb, wheels

PARTS = (*imdb.SIZES, "sft")


@pytest.mark.parametrize(
    ("raw", "cleaned"),
    [
        ("One.<br /><br />Two.", "One. Two."),
        ("One<br>two<br/>three", "One two three"),
        ("  tabs\tand\n\nlines  ", "tabs and lines"),
        ("a < b and c > d", "a < b and c > d"),
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
    imdb._reviews.cache_clear()
    yield frame
    imdb._reviews.cache_clear()


def test_parts_are_disjoint_deduplicated_and_complete(reviews: pd.DataFrame) -> None:
    parts = {name: imdb.reviews(name)["text"].tolist() for name in PARTS}
    assert {name: len(parts[name]) for name in imdb.SIZES} == imdb.SIZES
    together = [text for texts in parts.values() for text in texts]
    assert len(together) == len(set(together)) == 12_500
    assert not any("<br" in text or "opinion" in text for text in together)


def test_a_review_keeps_its_part_when_the_file_is_reordered(reviews: pd.DataFrame, tmp_path: Path) -> None:
    before = {name: imdb.reviews(name) for name in PARTS}
    reviews.sample(frac=1, random_state=1).to_csv(tmp_path / "reviews.csv", index=False)
    imdb._reviews.cache_clear()
    for name, frame in before.items():
        pd.testing.assert_frame_equal(imdb.reviews(name), frame)


def test_the_hubs_file_is_split_alike(reviews: pd.DataFrame) -> None:
    for name in PARTS:
        pd.testing.assert_frame_equal(imdb.reviews(name, "hub"), imdb.reviews(name, "embedded"))


def test_parts_mix_the_labels_of_a_sorted_file(reviews: pd.DataFrame) -> None:
    share = 6_500 / 12_500
    for name, size in imdb.SIZES.items():
        deviation = abs(imdb.reviews(name)["label"].mean() - share)
        assert deviation < 4 * (share * (1 - share) / size) ** 0.5, name


@pytest.mark.parametrize(
    ("part", "source", "told"),
    [
        ("train", "embedded", "part must be one of eval, reward_test, reward_train, prompts, sft, got 'train'"),
        ("eval", "disk", "source must be one of embedded, hub, got 'disk'"),
    ],
)
def test_an_unknown_part_or_source_is_refused(part: imdb.Part, source: imdb.Source, told: str) -> None:
    with pytest.raises(ValueError, match=told):
        imdb.reviews(part, source)
