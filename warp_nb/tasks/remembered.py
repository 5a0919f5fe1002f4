"""Values that take seconds to compute and follow from known facts: computed once, then read from the cache folder."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from warp_nb.files import DamagedFile, cache_dir, file_sha256, read_record, write_bytes
from warp_nb.tasks.identity import sha256


def remembered(kind: str, facts: Any, make: Callable[[], Any]) -> Any:
    """Return what `make` returns, computed once for equal `facts`.

    The file is written atomically and verified when it is read; a damaged one is made again, with a warning. Where the
    cache folder cannot be written, a warning says so and the value is computed each time.

    Args:
        kind: folder in the cache folder.
        facts: all that the value depends on, plain JSON values.
        make: computes the value, of plain JSON values: finite numbers, and lists in place of tuples.
    """
    path = cache_dir() / kind / f"{sha256(json.dumps(facts, sort_keys=True))[:32]}.json"
    if os.path.exists(path):  # noqa: PTH110  False also where a folder above may not be entered
        try:
            return _read(path)
        except DamagedFile as error:
            warnings.warn(f"{error}; it is made again", stacklevel=2)
    value = make()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, json.dumps({"sha256": sha256(json.dumps(value)), "value": value}, allow_nan=False).encode())
    except OSError as error:
        warnings.warn(
            f"{path.parent} cannot be written ({error}), so the {kind} are computed again next time; WARP_NB_CACHE "
            f"moves the cache",
            stacklevel=2,
        )
    return value


def _read(path: Path) -> Any:
    """Read the value of a file that `remembered` wrote, or raise DamagedFile."""
    found = read_record(path)
    if "value" not in found or found.get("sha256") != sha256(json.dumps(found["value"])):
        raise DamagedFile(f"{path} is damaged (its sha256 is not the one written into it)")
    return found["value"]


def code_of(*modules: str) -> list[str]:
    """Return the sha256 of the file of each imported module, for the facts of what its code computes."""
    return [file_sha256(Path(str(sys.modules[name].__file__))) for name in modules]
