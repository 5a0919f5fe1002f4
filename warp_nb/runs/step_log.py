"""The steps of a run as lines of JSON, `run_{i}_{m}.steps.jsonl`, written while the run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import TextIO

from warp_nb.files import json_values, write_text
from warp_nb.runs.facts import Row


class StepLog:
    """Writes a line for every row that it is called with, and flushes it, so that other programs can follow the run.

    A resumed run reports its restored steps again, and the first row replaces the file: every step is there once.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file: TextIO | None = None

    def __call__(self, row: Row) -> None:
        if self._file is None:
            self._file = self.path.open("w", encoding="utf-8")
        self._file.write(as_line(row))
        self._file.flush()

    def close(self) -> None:
        """Close the file; a further row would begin it anew."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def finish(self, history: Iterable[Row]) -> None:
        """Write all steps of a finished run atomically, also where two workers wrote to one file."""
        self.close()
        write_text(self.path, "".join(map(as_line, history)))


def as_line(row: Row) -> str:
    """Return a row as one line of standard JSON, as it stands in a result file."""
    return f"{json.dumps(json_values(row), allow_nan=False)}\n"
