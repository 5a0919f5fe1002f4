"""A folder of runs belongs to one caller at a time, one configuration and one task."""

from __future__ import annotations

import hashlib
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
from warp_nb.files import fingerprint, write_json
from warp_nb.tasks.reward_interface import describe_reward
from warp_nb.tasks.task import Task

FREE = {"save_every"}
"""Parameters that change no bit of a result, so they may differ when a folder is used again."""


def identity(config: WarpConfig, task: Task, replaced: list[str]) -> dict[str, Any]:
    """Return what the runs of a folder depend on, as plain JSON values; `replaced` names the non-default parts."""
    settings = config.model_dump(include=set(WarpConfig.model_fields))
    return settings | task_identity(task) | {"parts": replaced}


def task_identity(task: Task) -> dict[str, Any]:
    """Return the task's part of `identity`; a worker that rebuilds the task must get the same."""
    prompts = hashlib.sha256("\0".join(task.train_prompts).encode()).hexdigest()
    weights = fingerprint(dict(task.policy.named_parameters()))
    found = {"task_name": task.name, "policy_sha256": weights, "prompts_sha256": prompts}
    return json.loads(json.dumps(found | {"reward": describe_reward(task.reward)}))


def differences(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Describe how `mine` differs from `theirs`; empty when it does not."""
    return "; ".join(f"{k}: {theirs.get(k)!r} there, {mine[k]!r} here" for k in mine if theirs.get(k) != mine[k])


@contextmanager
def claimed(folder: Path, mine: dict[str, Any], alone: bool = True) -> Iterator[None]:
    """Lock `folder` for one call, creating it if it is missing, and write `mine` to config.json or compare it.

    With `alone` (no workers elsewhere) temporary files of a killed process are deleted. The operating system
    releases the lock when its process ends in any way.

    Raises:
        ValueError: the folder cannot be written, or holds runs of another configuration or task (all that differs
            is listed).
        RuntimeError: another call is using it; the message names its process and start time.
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
        agree(folder / "config.json", mine)
        yield
    finally:
        (folder / "owner.json").unlink(missing_ok=True)
        lock.release()


def agree(path: Path, mine: dict[str, Any]) -> None:
    """Write what the runs depend on to `path`, or raise ValueError if the file there differs."""
    if path.exists():
        try:
            theirs = json.loads(path.read_text(encoding="utf-8"))
        except ValueError as error:
            raise ValueError(
                f"{path} is damaged ({error}); put it back, or pass another out_dir: it "
                f"alone says which configuration its runs belong to"
            ) from error
        differing = differences(theirs, {name: value for name, value in mine.items() if name not in FREE})
        if differing:
            raise ValueError(f"{path.parent} holds a run of another configuration ({differing}); pass another out_dir")
        if theirs == mine:
            return
    write_json(path, mine)


def _owner(folder: Path) -> str:
    """Describe the process that holds the lock, as far as it is recorded."""
    try:
        told = json.loads((folder / "owner.json").read_text(encoding="utf-8"))
        return f"process {told['pid']} on {told['host']} since {told['started']}"
    except (OSError, ValueError, KeyError):
        return "another process"
