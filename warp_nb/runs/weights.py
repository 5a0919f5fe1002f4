"""Weights and records on disk: safetensors (tied tensors once), JSON and text, written atomically."""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from warp_nb.algorithm.average import StateDict, check_same, first_names, tied_to

SURROGATE = re.compile("[\ud800-\udfff]")
"""Half a character of UTF-16, which UTF-8 has not."""


def snapshot(module: torch.nn.Module) -> StateDict:
    """A detached copy of a module's state dict, on the CPU, ties kept as ties."""
    state = module.state_dict()
    copies = {name: state[name].detach().cpu().clone() for name in first_names(state).values()}
    return {name: copies[source] for name, source in tied_to(state).items()}


def fingerprint(state: StateDict) -> str:
    """sha256 over the distinct tensors of `state`: equal for equal names, dtypes, shapes and bits."""
    digest = hashlib.sha256()
    for name in first_names(state).values():
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary name beside `path`: fsync and rename to `path` at the end, deleted after an error.

    The name is this writer's own, so two writers of one file cannot mix: the last one's is left, whole.
    """
    temporary = path.with_name(f".{path.name}.{uuid4().hex}.new")
    try:
        yield temporary
        with open(temporary, "rb") as handle:
            os.fsync(handle.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def save_weights(path: Path, state: StateDict) -> None:
    """Write the distinct tensors of `state` to `path` atomically."""
    with replacing(path) as temporary:
        write_tensors(temporary, {name: state[name] for name in first_names(state).values()})


def write_tensors(path: Path, tensors: StateDict, metadata: dict[str, str] | None = None) -> None:
    """Write distinct tensors to `path`. Raises OSError when the disk does not take them."""
    try:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path, metadata)
    except SafetensorError as error:
        raise OSError(f"{path} could not be written ({error})") from error


def load_weights(path: Path, like: StateDict) -> StateDict:
    """Read what `save_weights` wrote, with the ties of `like` restored.

    Raises ValueError when names or shapes differ from `like`.
    """
    stored = load_file(path)
    full = {name: stored[source] for name, source in tied_to(like).items() if source in stored}
    check_same(like, full)
    return full


def write_json(path: Path, value: Any) -> None:
    """Write JSON atomically; NaN and infinities as null, lone surrogates escaped, so that any reader takes it."""
    with replacing(path) as temporary:
        text = json.dumps(plain(value), ensure_ascii=False, indent=1, allow_nan=False)
        text = SURROGATE.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
        temporary.write_text(text, encoding="utf-8")


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, half characters as question marks."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def plain(value: Any) -> Any:
    """Nested lists and dicts with NaN and infinities replaced by None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value
