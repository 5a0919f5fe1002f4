"""A folder of runs belongs to one caller at a time, one configuration and one task."""

from __future__ import annotations

import os
import re
import shutil
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from filelock import Timeout

from warp_nb.config import WarpConfig
from warp_nb.files import DamagedFile, locked, read_record, unseal, unusable, write_json
from warp_nb.runs.trained_policy import RECORD
from warp_nb.tasks.identity import task_identity
from warp_nb.tasks.task import Task

FREE = {"save_every"}
"""Parameters that change no bit of a result, so they may differ when a folder is used again."""
OWNER, CONFIG, LOCK = "owner.json", "config.json", ".lock"
FINAL, MERGED = "final", "merged"
"""Folders with the results of a call: a saved policy each."""
TENSORS = r"(?:init_\d+|run_\d+_\d+(?:\.state|\.state-before|\.at-(?:\d+|anchor))?)\.safetensors"
STEPS = r"run_\d+_\d+\.steps\.jsonl"
TEMPORARY = re.compile(rf"\.(?:{TENSORS}|{STEPS}|owner\.json|config\.json)\.[0-9a-f]{{32}}\.new")
"""Names of the temporary files that a killed process of this package may leave in a folder of runs."""
TEMPORARY_FOLDER = re.compile(rf"\.(?:{FINAL}|{MERGED})-[0-9a-f]{{32}}")
"""Names of such folders."""
ANOTHER_FOLDER = "pass another out_dir"


def identity(config: WarpConfig, task: Task, replaced: list[str]) -> dict[str, Any]:
    """Return what the runs of a folder depend on, as plain JSON values; `replaced` names the non-default parts."""
    settings = config.model_dump(include=set(WarpConfig.model_fields))
    return settings | task_identity(task) | {"parts": replaced}


def flattened(nested: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Return the values of nested dicts by their path, `config.n_head`."""
    found: dict[str, Any] = {}
    for name, value in nested.items():
        found |= flattened(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def differences(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """Describe how `mine` differs from `theirs`; empty when it does not."""
    there, here = flattened(theirs), flattened(mine)
    names = [name for name in here | there if name not in FREE and there.get(name) != here.get(name)]
    return "; ".join(f"{name}: {abridged(there.get(name))} there, {abridged(here.get(name))} here" for name in names)


def abridged(value: Any) -> str:
    """Return a value for a message, at most 200 characters."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}…"


@contextmanager
def claimed(folder: Path, mine: dict[str, Any], alone: bool = True) -> Iterator[None]:
    """Lock `folder` for one call, creating it if it is missing, and write `mine` to config.json or compare it.

    With `alone` (no workers elsewhere) temporary files of a killed process are deleted. The operating system
    releases the lock when its process ends in any way.

    Raises:
        ValueError: the folder cannot be written, its disk has no locks, it holds files of our names that are not
            ours, or runs of another configuration or task (all that differs is listed).
        RuntimeError: another call is using it; the message names its process and start time.
    """
    with ExitStack() as stack:
        try:
            refuse_foreign_lock(folder / LOCK)
            stack.enter_context(locked(folder / LOCK, remedy=ANOTHER_FOLDER, blocking=False))
        except Timeout:
            raise RuntimeError(f"{folder} is in use by {owner(folder)}; wait for it, or {ANOTHER_FOLDER}") from None
        except OSError as error:
            raise ValueError(str(error)) from error
        try:
            refuse_foreign(folder)
            stack.callback((folder / OWNER).unlink, missing_ok=True)
            started = datetime.now().astimezone().isoformat(timespec="seconds")
            write_json(folder / OWNER, {"pid": os.getpid(), "host": socket.gethostname(), "started": started})
            agree(folder / CONFIG, mine)
            if alone:
                delete_temporaries(folder)
        except OSError as error:
            raise ValueError(str(unusable(folder, error, ANOTHER_FOLDER))) from error
        yield


def refuse_foreign_lock(path: Path) -> None:
    """Raise ValueError if the file is no lock: one is empty, or begins with a process id where there is no flock."""
    with suppress(OSError):  # what cannot be read cannot be locked, which says why
        if path.is_file() and not re.match(rb"\d+\s|$", path.read_bytes()[:40]):
            raise ValueError(f"{path} is no lock of a run, since it is not empty; move it, or {ANOTHER_FOLDER}")


def refuse_foreign(folder: Path) -> None:
    """Raise ValueError if a file has a name of ours and is not ours: runs would overwrite or delete it.

    In a folder that has a config.json, files with the names of runs are ours, also damaged ones.
    """
    wrong = ""
    if (folder / OWNER).exists() and not read_owner(folder):
        wrong = f"{folder / OWNER} does not name a process"
    elif not (folder / CONFIG).exists():
        for path in folder.iterdir():
            if re.fullmatch(TENSORS, path.name) and path.is_file():
                try:
                    unseal(path)
                except DamagedFile as error:
                    wrong = str(error)
            elif re.fullmatch(STEPS, path.name):
                wrong = f"{folder / CONFIG} is missing and {path.name} is there"
    for path in (folder / FINAL, folder / MERGED):
        if path.exists() and not (path / RECORD).is_file():
            wrong = f"{path} is no policy that was saved here"
    if wrong:
        raise ValueError(f"{wrong}, so it is not of a run in this folder; move it, or {ANOTHER_FOLDER}")


def delete_temporaries(folder: Path) -> None:
    """Delete the temporary files and folders that a killed process of this package left, and nothing else."""
    for path in folder.iterdir():
        if TEMPORARY.fullmatch(path.name) and path.is_file():
            path.unlink(missing_ok=True)
        elif TEMPORARY_FOLDER.fullmatch(path.name) and path.is_dir():
            shutil.rmtree(path)


def agree(path: Path, mine: dict[str, Any]) -> None:
    """Write what the runs depend on to `path`, or raise ValueError if the file there differs."""
    try:
        theirs = read_record(path)
        if not {"task_name", "policy_sha256"} <= theirs.keys():
            raise DamagedFile(f"{path} is damaged (it describes no runs, or it is another program's)")
    except FileNotFoundError:
        write_json(path, mine)
        return
    except DamagedFile as error:
        raise ValueError(
            f"{error}; put it back, or {ANOTHER_FOLDER}: it alone says which configuration its runs belong to"
        ) from error
    differing = differences(theirs, mine)
    if differing:
        raise ValueError(f"{path.parent} holds a run of another configuration ({differing}); {ANOTHER_FOLDER}")
    if theirs != mine:
        write_json(path, mine)


def read_agreed(folder: Path) -> tuple[WarpConfig, dict[str, Any]]:
    """Read config.json in a worker: the configuration, and the record that holds it.

    Raises:
        FileNotFoundError: there is none.
        DamagedFile: it is damaged, or holds no valid configuration.
    """
    found = read_record(folder / CONFIG)
    try:
        return WarpConfig(**{name: found[name] for name in WarpConfig.model_fields}), found
    except (KeyError, ValueError) as error:
        raise DamagedFile(f"{folder / CONFIG} is damaged (it holds no valid configuration: {error})") from error


def owner(folder: Path) -> str:
    """Describe the process that holds the lock; a dead one on this host, which left its record, is not named."""
    found = read_owner(folder)
    if not found or (found["host"] == socket.gethostname() and not alive(found["pid"])):
        return "another process"
    return f"process {found['pid']} on {found['host']} since {found['started']}"


def read_owner(folder: Path) -> dict[str, Any]:
    """Read the record of the process that uses the folder; empty if there is no valid one."""
    try:
        found = read_record(folder / OWNER)
    except (OSError, DamagedFile):
        return {}
    kinds = {"pid": int, "host": str, "started": str}
    sound = found.keys() == kinds.keys() and all(type(found[name]) is kind for name, kind in kinds.items())
    return found if sound and found["pid"] > 0 else {}


def alive(pid: int) -> bool:
    """Return whether a process with this id exists here; True where the system cannot tell without disturbing it."""
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:  # another user's
        return True
    return True
