"""A pack for a machine without a network: which wheels, whole pieces, and what stops the unpacking."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from importlib.metadata import PackageNotFoundError
from pathlib import Path

import pytest

from scripts.packing import closure, markers, packages

ROOT = Path(__file__).resolve().parents[1]
KNOWN = {
    "trl": ("1.16", ["accelerate>=1.4", "transformers", 'peft; extra == "peft"']),
    "accelerate": ("1.15", ["torch>=2.0", "psutil"]),
    "transformers": ("5.23", ["numpy", "tokenizers"]),
    "torch": ("2.13.0+cpu", ["numpy", 'triton; sys_platform == "linux"', "nvidia-cublas"]),
    "papermill": ("2.7", ['aiohttp; python_version >= "3.12"', 'tomli; python_version < "3.11"', "requests[socks]"]),
    "requests": ("2.34", ['pysocks; extra == "socks"', "idna"]),
    "pysocks": ("1.7", []),
    "idna": ("3.2", []),
    "psutil": ("7.2", []),
    "numpy": ("2.4", []),
    "tokenizers": ("0.23", []),
    "peft": ("0.21", []),
}


def known(name: str) -> tuple[str, list[str]]:
    if name not in KNOWN:
        raise PackageNotFoundError(name)
    return KNOWN[name]


def test_a_pack_has_what_is_needed_beyond_the_base_and_no_torch() -> None:
    wanted = ["trl>=1.0", "papermill", "numpy"]
    found = packages(wanted, ["torch", "transformers"], "3.12", lookup=known)
    assert found == [
        "accelerate==1.15",
        "aiohttp",
        "idna==3.2",
        "papermill==2.7",
        "psutil==7.2",
        "pysocks==1.7",
        "requests==2.34",
        "trl==1.16",
    ]
    spare = packages(wanted, ["torch", "transformers"], "3.12", spare=True, lookup=known)
    assert spare == ["numpy==2.4", "tokenizers==0.23"]


def test_the_targets_python_decides_and_a_smaller_base_leaves_more() -> None:
    assert "aiohttp" not in packages(["papermill"], [], "3.11", lookup=known)
    assert "transformers==5.23" in packages(["trl"], ["torch"], "3.12", lookup=known)
    assert closure(["requests"], markers("3.12"), known) == {"requests": "2.34", "idna": "3.2"}


@pytest.mark.slow
def test_the_packages_of_this_project_are_packed() -> None:
    found = {line.partition("==")[0] for line in packages(["trl", "papermill"], ["torch", "transformers"], "3.12")}
    assert {"trl", "papermill", "datasets", "nbclient", "accelerate"} <= found
    assert not {name for name in found if name.startswith(("torch", "nvidia", "triton", "transformers"))}


# The scripts, with a Python whose pip fetches nothing

PYTHON = """#!/bin/bash
case "$*" in
  *"pip download"*"--requirement"*known.txt*) exec cp "{wheel}" "$(sed -E "s/.*--dest ([^ ]+).*/\\1/" <<<"$*")" ;;
  *"pip download"*) exit 0 ;;
  *"scripts.packing parts"*) echo assets/one ;;
  *) exec "{python}" "$@" ;;
esac
"""


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a pack of this checkout, one wheel and one part, in pieces of 1 MB; beside it the cache."""
    tmp_path = tmp_path_factory.mktemp("packed")
    wheel = tmp_path / "planted_for_the_test-1.0-py3-none-any.whl"
    about = "planted_for_the_test-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("planted_for_the_test.py", "HERE = 1\n")
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: planted-for-the-test\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    part = tmp_path / "cache" / "assets" / "one" / "file"
    part.parent.mkdir(parents=True)
    part.write_bytes(os.urandom(3 << 20))
    python = tmp_path / "python"
    python.write_text(PYTHON.replace("{wheel}", str(wheel)).replace("{python}", sys.executable))
    python.chmod(0o755)
    version = f"{sys.version_info[0]}.{sys.version_info[1]}"
    given = {"PYTHON": str(python), "WARP_NB_CACHE": str(tmp_path / "cache"), "TARGET_PYTHON": version}
    command = ["bash", ROOT / "scripts" / "pack.sh", tmp_path / "pack", "1M"]
    done = subprocess.run(command, env=os.environ | given, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return tmp_path


@pytest.fixture
def pack(packed: Path, tmp_path: Path) -> Path:
    """A copy of the pack, to be damaged."""
    return Path(shutil.copytree(packed / "pack", tmp_path / "pack"))


def unpack(pack: Path, target: Path) -> subprocess.CompletedProcess[str]:
    given = os.environ | {"PYTHON": sys.executable}
    command = ["bash", pack / "unpack.sh", target]
    return subprocess.run(command, env=given, capture_output=True, text=True, check=False)


@pytest.mark.slow
def test_a_pack_is_unpacked_as_it_was(packed: Path, pack: Path, tmp_path: Path) -> None:
    pieces = sorted(pack.glob("piece-*"))
    assert len(pieces) > 3 and {piece.stat().st_size for piece in pieces[:-1]} == {1 << 20}
    target = tmp_path / "there"
    done = unpack(pack, target)
    assert done.returncode == 0, done.stderr
    sent, arrived = (folder / "assets" / "one" / "file" for folder in (packed / "cache", target / "cache"))
    assert sent.read_bytes() == arrived.read_bytes()
    assert (target / "site-packages" / "planted_for_the_test.py").read_text() == "HERE = 1\n"
    assert (target / "project" / "warp_nb" / "config.py").read_text() == (ROOT / "warp_nb" / "config.py").read_text()
    assert (target / "project" / "warp_nb" / "notebooks").is_symlink()
    last = done.stdout.splitlines()[-1]
    assert last.startswith(
        f"PYTHON={sys.executable} PYTHONPATH={target}/site-packages WARP_NB_CACHE={target}/cache bash "
    )
    assert last.endswith(f"{target}/project/scripts/gpu.sh")
    assert "not empty" in unpack(pack, target).stderr


@pytest.mark.slow
def test_a_damaged_or_missing_piece_and_another_python_are_noticed(pack: Path, tmp_path: Path) -> None:
    target, piece = tmp_path / "there", pack / "piece-001"
    whole = piece.read_bytes()
    piece.write_bytes(whole[:1000] + bytes([whole[1000] ^ 1]) + whole[1001:])
    done = unpack(pack, target)
    assert done.returncode == 1 and "piece-001: FAILED" in done.stdout and "copy it again" in done.stderr
    piece.unlink()
    done = unpack(pack, target)
    assert done.returncode == 1 and "piece-001" in done.stdout + done.stderr
    piece.write_bytes(whole)
    contents = pack / "contents.txt"
    contents.write_text(contents.read_text().replace("python: 3.", "python: 2."))
    assert "contents.txt: FAILED" in unpack(pack, target).stdout and not target.exists()
    sums = subprocess.run(
        "sha256sum contents.txt unpack.sh piece-*", shell=True, cwd=pack, capture_output=True, text=True
    )
    (pack / "SHA256SUMS").write_text(sums.stdout)
    done = unpack(pack, target)
    assert done.returncode == 1 and "the wheels are for Python 2." in done.stderr and not target.exists()


def test_an_unknown_kind_of_parts_and_a_full_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    command = ["bash", ROOT / "scripts" / "pack.sh", tmp_path]
    for parts, said in (("all", "PARTS must be sources or trained, got all"), ("sources", "is not empty")):
        given = os.environ | {"PARTS": parts, "PYTHON": sys.executable}
        done = subprocess.run(command, env=given, capture_output=True, text=True, check=False)
        assert done.returncode == 2 and said in done.stderr
