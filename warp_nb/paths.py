"""Paths that a user gives: `~` is the home folder, where no shell has replaced it."""

from __future__ import annotations

from pathlib import Path


def expanded(path: str | Path) -> Path:
    """Return the path with a leading `~` or `~user` replaced by the home folder.

    Raises:
        ValueError: that home folder is unknown.
    """
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise ValueError(f"{path} names a home folder that is unknown ({error}); pass a path without ~") from error
