"""Atomic writes of JSON, text, tensors with a checksum, and folders; the cache folder; fingerprints of tensors."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import platformdirs
import torch
from filelock import FileLock
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

SURROGATE = re.compile("[\ud800-\udfff]")
"""A lone surrogate of UTF-16, which UTF-8 cannot encode."""


class DamagedFile(RuntimeError):
    """A file exists but does not hold what was written."""


def cache_dir() -> Path:
    """Return the folder of prepared parts: `$WARP_NB_CACHE`, else the user's cache folder."""
    named = os.environ.get("WARP_NB_CACHE")
    return Path(named).expanduser().resolve() if named else Path(platformdirs.user_cache_dir("warp_nb"))


# Atomic writes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, then fsync it and rename it to `path`; delete it after an error.

    Every writer has a unique temporary name, so two writers of one file cannot mix: the last to finish wins.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.new")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 file atomically; lone surrogates become question marks."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_json(path: Path, value: Any) -> None:
    """Write standard JSON atomically: NaN and infinities become null, lone surrogates are escaped."""
    text = json.dumps(json_values(value), ensure_ascii=False, indent=1, allow_nan=False)
    text = SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    write_bytes(path, text.encode("utf-8"))


def json_values(value: Any) -> Any:
    """Replace NaN and infinities by None in nested lists and dicts; tuples become lists, keys become text."""
    if isinstance(value, dict):
        return {str(key): json_values(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_values(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """Build the folder `target` once and atomically, even if two processes try.

    Yields None when `target` is complete. Otherwise yields an empty temporary folder beside it, which is renamed to
    `target` when the block ends and deleted when the block raises.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{target}.lock"):
        if target.exists():
            yield None
            return
        temporary = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
        try:
            yield temporary
            os.replace(temporary, target)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


# Fingerprints and sealed tensors


def file_sha256(path: Path) -> str:
    """Return the hex sha256 of a file."""
    with open(path, "rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def fingerprint(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the hex sha256 of tensors: equal for equal names, dtypes, shapes and bits, in any order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def seal(
    path: Path, tensors: Mapping[str, torch.Tensor], record: Any, before_rename: Callable[[], None] = lambda: None
) -> None:
    """Write distinct tensors and a JSON record to one safetensors file, atomically and with a sha256 of both.

    `before_rename` is called after all bytes are written under a temporary name.

    Raises:
        OSError: the file could not be written.
    """
    text = json.dumps(record, allow_nan=False)
    with replacing(path) as temporary:
        try:
            contiguous = {name: tensor.contiguous() for name, tensor in tensors.items()}
            save_file(contiguous, temporary, {"record": text, "sha256": _seal_of(tensors, text)})
        except SafetensorError as error:
            raise OSError(f"{temporary} could not be written ({error})") from error
        before_rename()


def unseal(path: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Read the (tensors, record) that `seal` wrote, and verify their sha256.

    Raises:
        FileNotFoundError: there is no file.
        DamagedFile: the file is cut short, or a byte of it has changed.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # copies: the tensors of safe_open are pages of the file, which another process may change after the check
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  it is no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged ({error})") from error
    text = metadata.get("record", "")
    if metadata.get("sha256") != _seal_of(tensors, text):
        raise DamagedFile(f"{path} is damaged (its sha256 is not the one written into it)")
    return tensors, json.loads(text)


def _seal_of(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    return hashlib.sha256(f"{fingerprint(tensors)} {text}".encode()).hexdigest()
