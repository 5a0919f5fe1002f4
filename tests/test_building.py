"""A prepared folder (`files.building`) is there whole or not at all, whoever makes it, and where the cache lies."""

from __future__ import annotations

import errno
import multiprocessing
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from faulty import cut, flip
from filelock import FileLock, Timeout
from safetensors.torch import save_file

from warp_nb import files
from warp_nb.files import MANIFEST, DamagedFile, building, cache_dir, loading


def files_below(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()} - {MANIFEST}


def built(target: Path) -> Path:
    """A folder of two files, one of them in a folder of its own."""
    with building(target) as folder:
        assert folder is not None
        (folder / "deep").mkdir()
        (folder / "deep" / "table.csv").write_text("text,label\nfine,1\npoor,0\n")
        save_file({"a": torch.arange(40.0)}, folder / "model.safetensors")
    return target


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


def test_a_complete_folder_needs_no_lock_and_no_write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a read-only disk, where neither is possible."""
    target = built(tmp_path / "part")
    before = {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]}

    def refuse(*args: Any, **settings: Any) -> Any:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr(files, "FileLock", refuse)
    with building(target) as folder:
        assert folder is None
    assert {path: path.stat().st_mtime_ns for path in [tmp_path, *tmp_path.rglob("*")]} == before


@pytest.mark.parametrize("damage", [flip, cut, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["deep/table.csv", "model.safetensors"])
def test_a_damaged_file_is_named_with_the_remedy(damage: Callable[[Path], None], name: str, tmp_path: Path) -> None:
    target = built(tmp_path / "part")
    with building(target):
        pass
    damage(target / name)
    with (
        pytest.raises(DamagedFile, match=rf"{name} .*; delete the folder {target}, it is made again"),
        building(target),
    ):
        pass


@pytest.mark.parametrize("text", ["", "[]", "null", "\xff", "[" * 100_000])
def test_a_damaged_manifest_is_named(text: str, tmp_path: Path) -> None:
    target = built(tmp_path / "part")
    (target / MANIFEST).write_bytes(text.encode("latin-1"))
    with pytest.raises(DamagedFile, match=rf"{MANIFEST} is damaged .*; delete the folder {target}"), building(target):
        pass


def test_a_folder_of_an_earlier_version_has_no_manifest_and_is_taken(tmp_path: Path) -> None:
    target = built(tmp_path / "part")
    (target / MANIFEST).unlink()
    with building(target) as folder:
        assert folder is None


def test_the_error_of_a_library_names_the_folder_that_it_read(tmp_path: Path) -> None:
    with (
        pytest.raises(DamagedFile, match=rf"{tmp_path} holds no sound model \(KeyError: 'x'\); put it back, or delete"),
        loading(tmp_path, "model"),
    ):
        {}["x"]


@pytest.mark.parametrize("umask", [0o002, 0o022, 0o077])
def test_files_have_the_permissions_that_the_umask_gives(umask: int, tmp_path: Path) -> None:
    before = os.umask(umask)
    try:
        target = built(tmp_path / "part")
        files.seal(target / "sealed", {"a": torch.zeros(1)}, None)
    finally:
        os.umask(before)
    for path in [target, *target.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o777 if path.is_dir() else 0o666) & ~umask, path


def test_what_killed_processes_left_of_this_folder_is_deleted(tmp_path: Path) -> None:
    left = [".part-0123abcd", ".part-" + "f" * 32]
    others = [".part-two-0123abcd", ".other-0123abcd", "part-0123abcd"]
    for name in left + others:
        (tmp_path / name / "deep").mkdir(parents=True)
    built(tmp_path / "part")
    assert {path.name for path in tmp_path.iterdir()} == {"part", "part.lock", *others}


def test_a_cache_that_cannot_be_made_is_named_and_how_to_move_it(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    target = tmp_path / "file" / "cache" / "part"
    said = rf"{target.parent} cannot be written .*; set WARP_NB_CACHE"
    with pytest.raises(OSError, match=said), building(target):
        pytest.fail("it was not refused")


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_told_from_one_that_cannot_be_written(
    code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refused(handle: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    with (
        pytest.raises(
            OSError, match=rf"{tmp_path} lies on a disk without locks .* WARP_NB_CACHE to a folder on another"
        ),
        building(tmp_path / "part"),
    ):
        pytest.fail("it was not refused")


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
    monkeypatch.setenv("WARP_NB_CACHE", "~nobody-of-this-name/x")
    with pytest.raises(
        ValueError, match=r"^~nobody-of-this-name/x names a home folder .* WARP_NB_CACHE names the cache"
    ):
        cache_dir()
    monkeypatch.delenv("WARP_NB_CACHE")
    assert cache_dir().name == "warp_nb"
