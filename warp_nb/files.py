"""Atomic writes of JSON, text, tensors with a checksum, and folders; what is read is verified; the cache folder."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any
from uuid import uuid4

import platformdirs
import torch
from filelock import FileLock, Timeout
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from warp_nb.paths import expanded

SURROGATE = re.compile("[\ud800-\udfff]")
"""A lone surrogate of UTF-16, which UTF-8 cannot encode."""
DEEPEST = 50
"""Levels of nesting that a JSON file may have; no file of this package has more than ten."""
MANIFEST = "sha256.json"
"""File of a built folder: the sha256 of each other file in it, by its path."""
WITHOUT_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}
"""Errors of a lock on a disk that has none (SMB, some FUSE mounts)."""


class DamagedFile(RuntimeError):
    """A file exists but does not hold what was written."""


def cache_dir() -> Path:
    """Return the folder of prepared parts: `$WARP_NB_CACHE`, else the user's cache folder.

    Raises:
        ValueError: that path begins with an unknown home folder, or its links lead in a circle.
    """
    try:
        return expanded(os.environ.get("WARP_NB_CACHE") or platformdirs.user_cache_dir("warp_nb")).resolve()
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{error}; WARP_NB_CACHE names the cache folder") from error


# Atomic writes


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`, then fsync it and rename it to `path`; delete it after an error.

    Every writer has a unique temporary name, so two writers of one file cannot mix: the last to finish wins. The file
    gets the permissions that the umask gives.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.new")
    try:
        temporary.touch()
        mode = temporary.stat().st_mode
        yield temporary
        with open(temporary, "r+b") as handle:  # Windows syncs only what may be written
            os.fsync(handle.fileno())
        with suppress(OSError):  # a disk without permissions
            temporary.chmod(mode)  # safetensors makes files that only their owner can read
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
def new_folder(target: Path, *, replace: bool = False) -> Iterator[Path]:
    """Yield an empty folder beside `target`, which becomes `target` when the block ends and is deleted if it raises.

    Raises:
        OSError: `target` holds files, and `replace` is False.
    """
    temporary = target.with_name(f".{target.name}-{uuid4().hex}")
    temporary.mkdir(parents=True)
    try:
        yield temporary
        if replace and target.exists():
            shutil.rmtree(target)
        elif target.is_dir():
            target.rmdir()
        os.replace(temporary, target)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


# Reading


def read_record(path: Path) -> dict[str, Any]:
    """Read a JSON object.

    Raises:
        FileNotFoundError: there is no file.
        DamagedFile: the file cannot be read, or is anything else than an object of at most DEEPEST levels.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise
    except (OSError, UnicodeDecodeError) as error:
        raise DamagedFile(f"{path} is damaged ({error})") from error
    found = _parsed(text, path)
    if not isinstance(found, dict):
        raise DamagedFile(f"{path} is damaged (it holds {text[:20]!r} where an object is expected)")
    return found


def _parsed(text: str, path: Path) -> Any:
    """Parse JSON that stands in `path`."""
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise DamagedFile(f"{path} is damaged ({error})") from error
    layer = [found] if isinstance(found, dict | list) else []
    for _ in range(DEEPEST):
        inner = [list(one.values()) if isinstance(one, dict) else one for one in layer]
        layer = [value for values in inner for value in values if isinstance(value, dict | list)]
    if layer:
        raise DamagedFile(f"{path} is damaged (it is nested more than {DEEPEST} levels deep)")
    return found


@contextmanager
def loading(folder: Path, kind: str) -> Iterator[None]:
    """Turn any error of a library that loads `kind` from `folder` in the block into a DamagedFile."""
    try:
        yield
    except (DamagedFile, ImportError, MemoryError):
        raise
    except Exception as error:  # libraries pass on their parsers' errors, of no common kind
        raise DamagedFile(
            f"{folder} holds no sound {kind} ({type(error).__name__}: {str(error)[:300]}); put it back, or delete it "
            f"if it lies in a cache: it is made again"
        ) from error


# Locks and prepared folders


@contextmanager
def locked(path: Path, *, remedy: str, blocking: bool = True) -> Iterator[None]:
    """Hold the system's lock of the file `path` in the block; make its folder if it is missing.

    `remedy` says, as an imperative, how the user moves the folder.

    Raises:
        OSError: the folder cannot be made or written, or its disk has no locks; the message names it.
        filelock.Timeout: another process holds the lock, and `blocking` is False.
    """
    lock = FileLock(path, blocking=blocking)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:  # an OSError as well
        raise
    except (OSError, NotImplementedError) as error:
        raise unusable(path.parent, error, remedy) from error
    try:
        yield
    finally:
        lock.release()


def unusable(folder: Path, error: Exception, remedy: str) -> OSError:
    """Return an OSError that says why `folder` cannot be used and what to do."""
    if isinstance(error, NotImplementedError) or getattr(error, "errno", None) in WITHOUT_LOCKS:
        return OSError(f"{folder} lies on a disk without locks ({error}); {remedy} to a folder on another disk")
    return OSError(f"{folder} cannot be written ({error}); {remedy}, or make it writable")


@contextmanager
def building(target: Path) -> Iterator[Path | None]:
    """Build the folder `target` once and atomically, even if two processes try.

    Yields None when `target` is complete; nothing is written then, and its files are verified. Otherwise yields an
    empty temporary folder beside it, which is renamed to `target` when the block ends and deleted when the block
    raises. Temporary folders of killed processes are deleted first.

    Raises:
        OSError: the folder beside cannot be written, or its disk has no locks.
        DamagedFile: a file in `target` is not the one that was written.
    """
    if not _complete(target):
        with locked(target.with_name(f"{target.name}.lock"), remedy="set WARP_NB_CACHE"):
            if not _complete(target):
                with _replacing_folder(target) as temporary:
                    yield temporary
                return
    verify(target)
    yield None


def _complete(target: Path) -> bool:
    with suppress(OSError):  # a folder above may not be entered
        return target.is_dir()
    return False


@contextmanager
def _replacing_folder(target: Path) -> Iterator[Path]:
    """Yield an empty folder beside `target`, then write its manifest and rename it to `target`; the lock is held."""
    left = re.compile(rf"\.{re.escape(target.name)}-[0-9a-z_]+")
    for path in target.parent.iterdir():
        if left.fullmatch(path.name):
            shutil.rmtree(path, ignore_errors=True)
    temporary = target.with_name(f".{target.name}-{uuid4().hex}")
    try:
        try:
            temporary.mkdir()
        except OSError as error:
            raise unusable(target.parent, error, "set WARP_NB_CACHE") from error
        yield temporary
        files = sorted(path for path in temporary.rglob("*") if path.is_file())
        mode = temporary.stat().st_mode & 0o666
        for path in files:
            with suppress(OSError):  # a disk without permissions
                path.chmod(mode)  # safetensors makes files that only their owner can read
        write_json(temporary / MANIFEST, {path.relative_to(temporary).as_posix(): file_sha256(path) for path in files})
        os.replace(temporary, target)
    except Exception as error:
        error.add_note(f"{target} was not made; WARP_NB_CACHE moves its folder to another disk")
        raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def verify(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Compare the files of a built folder with its manifest; a folder of an earlier version has none and passes.

    Args:
        folder: the folder.
        known: sha256 of files, by their path in it, to compare with in the manifest's place.

    Raises:
        DamagedFile: a file is missing or has changed.
    """
    try:
        compare_sha256(folder, read_record(folder / MANIFEST) if known is None else known)
    except FileNotFoundError:
        return
    except DamagedFile as error:
        raise DamagedFile(f"{error}; delete the folder {folder}, it is made again") from error


def compare_sha256(folder: Path, wanted: Mapping[str, str]) -> None:
    """Raise DamagedFile unless the files of `wanted`, path in `folder` -> sha256, are there and unchanged."""
    for name, sha256 in wanted.items():
        path = folder / name
        try:
            status = path.stat()
            found = _sha256_of(path, status.st_size, status.st_mtime_ns)
        except OSError as error:
            raise DamagedFile(f"{path} cannot be read ({error})") from error
        if found != sha256:
            raise DamagedFile(f"{path} is damaged (its sha256 is {found}, it was {sha256})")


@cache
def _sha256_of(path: Path, size: int, changed: int) -> str:
    """Return the sha256 of a file, computed once for each of its sizes and times of change."""
    return file_sha256(path)


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
    try:
        if not path.exists():
            raise FileNotFoundError(path)
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            # copies: the tensors of safe_open are pages of the file, which another process may change after the check
            tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118  it is no dict
        text = metadata.get("record", "")
        sealed = metadata.get("sha256") == _seal_of(tensors, text)
    except FileNotFoundError:
        raise
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise DamagedFile(f"{path} is damaged ({error})") from error
    if not sealed:
        raise DamagedFile(f"{path} is damaged (its sha256 is not the one written into it)")
    return tensors, _parsed(text, path)


def _seal_of(tensors: Mapping[str, torch.Tensor], text: str) -> str:
    return hashlib.sha256(f"{fingerprint(tensors)} {text}".encode()).hexdigest()
