"""Tensors and a JSON record in one safetensors file that tells by sha256 when it is damaged."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from warp_nb.algorithm.average import StateDict
from warp_nb.runs.weights import fingerprint, replacing, write_tensors


class DamagedFile(RuntimeError):
    """A file that is there and is not what was written."""


def seal(path: Path, tensors: StateDict, record: Any, before_rename: Callable[[], None] = lambda: None) -> None:
    """Write both atomically; `before_rename` is called when all bytes are written under a temporary name."""
    text = json.dumps(record, allow_nan=False)
    with replacing(path) as temporary:
        write_tensors(temporary, tensors, {"record": text, "sha256": _sha256(tensors, text)})
        before_rename()


def unseal(path: Path) -> tuple[StateDict, Any]:
    """(tensors, record) as `seal` wrote them.

    Raises FileNotFoundError when there is no file, DamagedFile when it is cut short or a byte of it has changed.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  no dict
    except (SafetensorError, OSError, ValueError) as error:
        raise DamagedFile(f"{path} is damaged ({error})") from error
    text = metadata.get("record", "")
    if metadata.get("sha256") != _sha256(tensors, text):
        raise DamagedFile(f"{path} is damaged (its sha256 is not the one written into it)")
    return tensors, json.loads(text)


def _sha256(tensors: StateDict, text: str) -> str:
    """Over names, dtypes, shapes and bits of the tensors, whatever their order, and the text."""
    ordered = {name: tensors[name] for name in sorted(tensors)}
    return hashlib.sha256(f"{fingerprint(ordered)} {text}".encode()).hexdigest()
