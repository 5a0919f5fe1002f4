"""A prepared folder (`files.building`) is there whole or not at all, whoever makes it, and where the cache lies."""

from __future__ import annotations

import multiprocessing
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock, Timeout

from warp_nb.files import building, cache_dir


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_the_target_appears_only_when_it_is_complete(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "artefact"
    with building(target) as folder:
        assert folder is not None
        (folder / "half").write_text("1")
        assert not target.exists()
        (folder / "rest").write_text("2")
    assert files_below(target) == {"half", "rest"}
    with building(target) as again:
        assert again is None


def test_an_error_leaves_nothing_behind(tmp_path: Path) -> None:
    target = tmp_path / "artefact"
    with pytest.raises(OSError, match="disk full"), building(target) as folder:
        assert folder is not None
        (folder / "half").write_text("1")
        raise OSError("disk full")
    assert [path for path in tmp_path.iterdir() if path.suffix != ".lock"] == []
    with building(target) as folder:
        assert folder is not None, "a failed build must not block the next one"
    assert target.is_dir()


def build_first(target: Path, inside: Any, refused: Any, results: Any) -> None:
    """The process that builds; it does not end before the other one has found the target taken."""
    with building(target) as folder:
        if folder is not None:
            (folder / "first").write_text("x")
            inside.set()
            refused.wait(60)
            (folder / "second").write_text("x")
    results.put(("first", folder is not None, files_below(target)))


def build_second(target: Path, inside: Any, refused: Any, results: Any) -> None:
    """The process that comes while the other one builds."""
    inside.wait(60)
    try:
        with FileLock(f"{target}.lock", blocking=False):
            results.put(("second", "the target is not locked", set()))
    except Timeout:
        refused.set()
        with building(target) as folder:
            results.put(("second", folder is not None, files_below(target)))


@pytest.mark.slow
def test_two_processes_at_once_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    shared = (tmp_path / "a", context.Event(), context.Event(), context.Queue())
    jobs = [context.Process(target=job, args=shared) for job in (build_first, build_second)]
    for job in jobs:
        job.start()
    seen = sorted(shared[3].get(timeout=60) for _ in jobs)
    for job in jobs:
        job.join(60)
    assert seen == [("first", True, {"first", "second"}), ("second", False, {"first", "second"})]


def test_the_cache_lies_where_the_environment_says(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path / "x" / ".." / "moved"))
    assert cache_dir() == tmp_path / "moved"
    monkeypatch.setenv("WARP_NB_CACHE", "~/elsewhere")
    assert cache_dir() == Path.home() / "elsewhere"
    monkeypatch.delenv("WARP_NB_CACHE")
    assert cache_dir().name == "warp_nb"
