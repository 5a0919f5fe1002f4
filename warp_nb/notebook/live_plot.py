"""A figure that grows while a notebook's cell trains, in JupyterLab and Colab."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pandas as pd
from IPython.display import display

from warp_nb.notebook.plots import panels, training_curves
from warp_nb.runs.facts import Row

LEAST_SECONDS = 1.0
"""Shortest time between two drawings."""
DRAWING_SHARE = 0.05
"""Largest share of the training's time that drawing takes."""
LIVE_COLUMNS = ("objective", "kl")


class LivePlot:
    """A callback for `progress=` that draws the curves of training again at most once a second.

    Drawing takes at most about a twentieth of the time. The figure is one output of the cell, replaced in place; with
    `with` the last steps are drawn at the end.

    Example:
        with notebook.LivePlot() as plot:
            result = run_experiment(config, task, progress=plot)
    """

    def __init__(self, *, clock: Callable[[], float] = time.perf_counter) -> None:
        self.rows: list[Row] = []
        self._clock = clock
        self._handle: Any = None
        self._due = -float("inf")
        self._drawn = 0

    def __call__(self, row: Row) -> None:
        self.rows.append({"seed": 0} | row)
        if self._clock() >= self._due:
            self.draw()

    def __enter__(self) -> LivePlot:
        return self

    def __exit__(self, *error: object) -> None:
        if len(self.rows) > self._drawn:
            self.draw()

    def draw(self) -> None:
        """Draw all steps so far; the first drawing makes the output, the others replace it."""
        started = self._clock()
        history = pd.DataFrame(self.rows)
        with panels(len(LIVE_COLUMNS), 5.6, sharex=False) as (figure, axes):
            for ax, column in zip(axes, LIVE_COLUMNS, strict=True):
                training_curves(ax, history, column, legend=ax is axes[0])
            if self._handle is None:
                self._handle = display(figure, display_id=True)
            else:
                self._handle.update(figure)
        ended = self._clock()
        self._drawn, self._due = len(self.rows), ended + max(LEAST_SECONDS, (ended - started) / DRAWING_SHARE)
