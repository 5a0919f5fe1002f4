"""A folder of runs: whose it is, for what configuration, and for one caller at a time."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from warp_nb.config import WarpConfig
from warp_nb.runs.jobs import differences, task_facts
from warp_nb.runs.weights import write_json
from warp_nb.tasks.task import Task

FREE = {"save_every"}
"""Parameters that change no bit of a result, so they may be others when a folder is used again."""


@contextmanager
def claimed(folder: Path, config: WarpConfig, task: Task, alone: bool = True) -> Iterator[None]:
    """Hold `folder` for one call of `warp()`: made where it is missing, locked, its configuration written or compared.

    With `alone` (no workers elsewhere) temporary files that a killed process left are deleted. The lock is the
    system's, so it ends with its process however that ends.

    Raises ValueError when the folder cannot be written, and when it holds runs of another configuration, task,
    θ_sft, reward, prompts or number of threads (all differing ones are listed); RuntimeError when another call
    is using it, with its process id and start.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / ".lock", blocking=False)
        lock.acquire()
    except Timeout:
        raise RuntimeError(f"{folder} is in use by {_owner(folder)}; wait for it, or pass another out_dir") from None
    except OSError as error:
        raise ValueError(f"{folder} cannot be written ({error}); pass another out_dir, or make it writable") from error
    try:
        started = datetime.now().astimezone().isoformat(timespec="seconds")
        write_json(folder / "owner.json", {"pid": os.getpid(), "host": socket.gethostname(), "started": started})
        if alone:
            for left in folder.glob(".*.new"):
                left.unlink(missing_ok=True)
        agree(folder / "config.json", config.model_dump(include=set(WarpConfig.model_fields)) | task_facts(task))
        yield
    finally:
        (folder / "owner.json").unlink(missing_ok=True)
        lock.release()


def agree(path: Path, mine: dict[str, Any]) -> None:
    """Write what the runs depend on to `path`, or check that it is what is already there."""
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}); put it back, or pass another out_dir: without it nobody can tell "
                f"what the runs beside it belong to"
            ) from error
        differing = differences(theirs, {name: value for name, value in mine.items() if name not in FREE})
        if differing:
            raise ValueError(f"{path.parent} holds a run of another configuration ({differing}); pass another out_dir")
        if theirs == mine:
            return
    write_json(path, mine)


def _owner(folder: Path) -> str:
    """Who holds the lock, as far as it is written."""
    try:
        told = json.loads((folder / "owner.json").read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']} since {told['started']}"
    except (OSError, ValueError, KeyError):
        return "another process"
