"""Parts of task `gpt2` from the Hugging Face hub: pinned, safetensors and plain tables only.

Files that are in the local hub cache are taken from there, so a prepared machine needs no network.
Only the files named here are ever requested, so no pickle is downloaded.
"""

from __future__ import annotations

import errno
import threading
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

TIMEOUT = 10.0
"""Seconds that the hub has to answer the first request."""
PATIENCE = 5.0
"""Seconds that task `auto` waits for the hub in all, with looking up its name and connecting."""


@dataclass(frozen=True)
class HubPart:
    """Files of one repository at one commit.

    `commit` is the commit, or its first digits where `revision` is a name that could move. Eight digits tell a moved
    name; they are no proof against somebody who may push to the repository and looks for a commit that begins so.
    """

    repo: str
    kind: str
    revision: str
    commit: str
    files: tuple[str, ...]
    licence: str


TOKENIZER_FILES = ("tokenizer_config.json", "special_tokens_map.json")
GPT2_IMDB = HubPart(
    "lvwerra/gpt2-imdb",
    "model",
    "refs/pr/1",  # the hub's own conversion to safetensors; the main branch holds a pickle only
    "f0c412a6",
    ("config.json", "model.safetensors", "vocab.json", "merges.txt", *TOKENIZER_FILES),
    "none stated by its author; GPT-2 itself is MIT",
)
DISTILBERT = HubPart(
    "distilbert/distilbert-base-uncased",
    "model",
    "12040accade4e8a0f71eabdb258fecc2e7e948be",
    "12040accade4e8a0f71eabdb258fecc2e7e948be",
    ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "vocab.txt"),
    "Apache-2.0",
)
IMDB = HubPart(
    "stanfordnlp/imdb",
    "dataset",
    "e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
    "e6281661ce1c48d982bc483cf8a173c1bbeb5d31",
    ("plain_text/train-00000-of-00001.parquet",),
    "reviews: Maas et al. 2011, research use",
)


PARTS = (GPT2_IMDB, DISTILBERT, IMDB)
"""All parts of task `gpt2`."""


@cache
def at_hand() -> bool:
    """Return whether task `gpt2` can be had: its parts are in the local hub cache, or the hub answers within PATIENCE.

    It is asked once in a process, so that every later call gives the same answer. Any error is a no.
    """
    return all(map(is_local, PARTS)) or answers()


def is_local(part: HubPart) -> bool:
    """Return whether all files of the part, at its commit, are in the local hub cache."""
    try:
        folder = snapshot(part, local=True)
    except (OSError, ValueError):  # not there; or its folder cannot be read, or is none
        return False
    return folder.name.startswith(part.commit) and not lacking(part, folder)


def answers() -> bool:
    """Return whether the hub says within PATIENCE that it has GPT-2 at the pinned commit.

    One request, which heeds HF_ENDPOINT, HF_HUB_OFFLINE and proxies. It is made in a thread that is left behind when
    its time is up: the client's own timeout does not count the look-up of the hub's name, which can take minutes.
    """
    from huggingface_hub import HfApi

    found: list[bool] = []

    def ask() -> None:
        try:
            info = HfApi().repo_info(GPT2_IMDB.repo, revision=GPT2_IMDB.revision, timeout=PATIENCE)
            found.append(str(info.sha).startswith(GPT2_IMDB.commit))
        except Exception:  # the hub's client passes on its transport's errors, of no common kind
            found.append(False)

    asking = threading.Thread(target=ask, name="hub", daemon=True)
    asking.start()
    asking.join(PATIENCE)
    return found == [True]


def fetch_from_hub(part: HubPart) -> Path:
    """Return the folder of the part's files, from the local hub cache or downloaded into it.

    Raises RuntimeError when the hub does not answer, holds another commit under that name, or
    lacks a file.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = snapshot(part, local=True)
        incomplete = bool(lacking(part, folder))
    except LocalEntryNotFoundError:
        incomplete = True
    if incomplete:
        try:
            HfApi().repo_info(part.repo, repo_type=part.kind, revision=part.revision, timeout=TIMEOUT)
            folder = snapshot(part, local=False)
        except Exception as error:  # the hub's client passes on its transport's errors, of no common kind
            remedy = "HF_HOME moves the hub's cache" if on_disk(error) else "Connect the machine to the hub"
            raise RuntimeError(
                f"could not fetch {part.repo} from the Hugging Face hub ({type(error).__name__}: {first_line(error)}). "
                f"{remedy}, or run the task that needs none: -p task smollm"
            ) from error
    if not folder.name.startswith(part.commit):
        raise RuntimeError(
            f"{part.repo} at {part.revision} is commit {folder.name}, expected {part.commit}: not the files this "
            f"was written for, so they are not used. Run another task: -p task smollm"
        )
    if missing := lacking(part, folder):
        raise RuntimeError(f"{part.repo} lacks {', '.join(missing)}; run another task: -p task smollm")
    return folder


def snapshot(part: HubPart, *, local: bool) -> Path:
    """Return the folder of the part's revision; unless `local`, what it lacks is downloaded."""
    from huggingface_hub import snapshot_download

    wanted: dict[str, Any] = {"repo_type": part.kind, "revision": part.revision, "allow_patterns": list(part.files)}
    return Path(snapshot_download(part.repo, local_files_only=local, **wanted))


def lacking(part: HubPart, folder: Path) -> list[str]:
    """List the part's files that the folder lacks."""
    return [name for name in part.files if not (folder / name).exists()]


def on_disk(error: Exception) -> bool:
    """Return whether an error is of writing a file: without permission, on a read-only or full disk."""
    return isinstance(error, OSError) and error.errno in {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC}


def first_line(error: Exception) -> str:
    """Return the first line of an error's text, at most 200 characters."""
    return (str(error).strip().splitlines() or ["no text"])[0][:200]
