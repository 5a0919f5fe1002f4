"""Checkpoints of one run: the last one and the one before.

A checkpoint is one file that is written atomically. A run that is killed at any moment resumes from one of the two,
and its result is bit-identical to an uninterrupted run.
"""

from __future__ import annotations

import os
import warnings
from pathlib import Path
from typing import Protocol

from warp_nb.algorithm.merge import Weights
from warp_nb.files import DamagedFile, seal, unseal
from warp_nb.runs.facts import Row
from warp_nb.runs.layout import check_record, read_from


class Resumable(Protocol):
    """A training that can be checkpointed: its tensors and the history of its finished steps."""

    history: list[Row]

    def state_dict(self) -> Weights: ...
    def load_state_dict(self, state: Weights, history: list[Row]) -> None: ...


class Checkpoints:
    """The two checkpoint files of a run; `start` is the fingerprint of its θ_init."""

    def __init__(self, path: Path, start: str) -> None:
        self.path, self.start = path, start
        self.before = path.with_name(path.name.replace(".state.", ".state-before."))
        self.saved_at = 0
        """Step of the last checkpoint that was saved or restored; 0 needs no file."""
        self._damaged = False

    def save(self, training: Resumable) -> None:
        """Save the state of `training` unless it is saved already; keep the previous checkpoint as the one before."""
        if self.saved_at == len(training.history):
            return
        record = {"start": self.start, "history": training.history}
        seal(self.path, training.state_dict(), record, self._make_way)
        self.saved_at, self._damaged = len(training.history), False

    def _make_way(self) -> None:
        if self.path.exists() and not self._damaged:  # a damaged file must not replace the good one
            os.replace(self.path, self.before)

    def restore(self, training: Resumable) -> None:
        """Load the last checkpoint into `training`, or the one before if the last is damaged or missing.

        Warns about a damaged file, and about a checkpoint of a run from another θ_init, which is ignored.

        Raises:
            DamagedFile: both are damaged; nothing is deleted.
        """
        damaged: list[str] = []
        for path in (self.path, self.before):
            try:
                tensors, record = unseal(path)
                with read_from(path):
                    check_record(record, {"start", "history"})
                    if record["start"] != self.start:
                        warnings.warn(f"{path} belongs to a run from another θ_init; it is ignored", stacklevel=3)
                        continue
                    training.load_state_dict(tensors, record["history"])
            except FileNotFoundError:
                continue
            except DamagedFile as error:
                damaged.append(str(error))
                self._damaged = path == self.path
                continue
            self.saved_at = len(training.history)
            break
        if len(damaged) == 2:
            raise DamagedFile(f"{'; '.join(damaged)}; restore one of them, or delete both to start the run again")
        if damaged:
            warnings.warn(f"{damaged[0]}; the run resumes after step {len(training.history)}", stacklevel=3)

    def save_after(self, error: BaseException, training: Resumable) -> None:
        """Save the state after an error or an interrupt, and add a note about it to the error."""
        step = len(training.history)
        if not step:
            return
        try:
            self.save(training)
            error.add_note(f"The state after step {step} is saved in {self.path}; the same call resumes there")
        except OSError as fault:
            error.add_note(f"The state after step {step} could not be saved: {fault}")

    def clear(self) -> None:
        """Delete both files, after the result of the run has been written."""
        for path in (self.path, self.before):
            path.unlink(missing_ok=True)
