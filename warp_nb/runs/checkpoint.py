"""The state of a run on disk, between two steps: the last one and the one before it.

A state is one file, so it is there whole or not at all. Killed at any moment, a run goes on from one of the two,
to the same bits as one that was never stopped.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from warp_nb.runs.sealed import DamagedFile, seal, unseal

if TYPE_CHECKING:
    from warp_nb.runs.policy_gradient import Run


class RunStates:
    """The kept states of one run; `start` is the sha256 of the θ_init it began at."""

    def __init__(self, path: Path, start: str) -> None:
        self.path, self.start = path, start
        self.before = path.with_name(path.name.replace(".state.", ".state-before."))
        self.kept_at = 0
        """Steps of the state that was kept or restored last; 0, the start itself, needs no file."""
        self._damaged = False

    def save(self, run: Run) -> None:
        """Keep the state of `run`; what was the last one is then the one before."""
        if self.kept_at == len(run.history):
            return
        record = {"start": self.start, "history": run.history, "facts": run.facts}
        seal(self.path, run.tensors(), record, self._make_way)
        self.kept_at, self._damaged = len(run.history), False

    def _make_way(self) -> None:
        if self.path.exists() and not self._damaged:  # a damaged one must not take the sound one's place
            os.replace(self.path, self.before)

    def restore(self, run: Run) -> None:
        """Take `run`, which is at its start, to the last kept state, or to the one before when that is damaged.

        Warns of a damaged file, and of states of another start, which are left out. Raises DamagedFile when
        both are damaged; nothing is deleted.
        """
        damaged: list[str] = []
        for path in (self.path, self.before):
            try:
                tensors, record = unseal(path)
            except FileNotFoundError:
                continue
            except DamagedFile as error:
                damaged.append(str(error))
                self._damaged = path == self.path
                continue
            if record["start"] != self.start:
                warnings.warn(f"{path} belongs to a run of another start; it is not used", stacklevel=3)
                continue
            run.restore(tensors, record["history"], record["facts"])
            self.kept_at = len(run.history)
            break
        if len(damaged) == 2:
            raise DamagedFile(f"{'; '.join(damaged)}; put one of them back, or delete both: the run then begins anew")
        if damaged:
            warnings.warn(f"{damaged[0]}; the run goes on after step {len(run.history)}", stacklevel=3)

    def clear(self) -> None:
        """Delete both: the run is finished and its result written."""
        for path in (self.path, self.before):
            path.unlink(missing_ok=True)


@contextmanager
def kept_on_error(run: Run, states: RunStates | None) -> Iterator[None]:
    """Keep the state of `run` when an error or an interrupt ends the block, unless it came amid an update.

    A state that cannot be kept is told in a note to the error, which stays what it was.
    """
    try:
        yield
    except BaseException as error:
        if states is not None and run.whole:
            try:
                states.save(run)
                error.add_note(
                    f"The state after step {len(run.history)} is kept in {states.path}; the run goes on there"
                )
            except OSError as fault:
                error.add_note(f"The state after step {len(run.history)} could not be kept: {fault}")
        raise
