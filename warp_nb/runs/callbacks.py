"""Callbacks for `progress=` that report every step to TensorBoard, trackio or Weights & Biases.

    with TensorBoard("logs") as tracker:
        warp(config, task, progress=tracker)

Every run (i, m) of Algorithm 1 is a run of the tracker, so that it draws their curves over each other. A call that
resumes reports the steps that it restored again. The packages are optional: `pip install 'warp-nb[tensorboard]'`.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from warp_nb.paths import expanded
from warp_nb.runs.facts import Row

PLACE = ("seed", "iteration", "run", "step")
"""Columns of a row that say which step it is; the others are what was measured."""


class Tracker:
    """Opens a run of the tracker for every run of Algorithm 1, and closes it when the next one begins or at the end."""

    def __init__(self) -> None:
        self._place: tuple[float, ...] = ()
        self._step = 0.0

    def __call__(self, row: Row) -> None:
        place = tuple(row[name] for name in PLACE[:-1] if name in row)
        if place != self._place or row["step"] <= self._step:
            self.close()
            self.begin(run_name(row))
            self._place = place
        self._step = row["step"]
        self.log({name: value for name, value in row.items() if name not in PLACE}, int(row["step"]))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the open run, if there is one."""
        if self._place:
            self.end()
        self._place = ()

    def begin(self, name: str) -> None:
        """Open a run."""
        raise NotImplementedError

    def log(self, figures: Row, step: int) -> None:
        """Report a step of the open run."""
        raise NotImplementedError

    def end(self) -> None:
        """Close the open run."""
        raise NotImplementedError


class TensorBoard(Tracker):
    """Reports to TensorBoard: event files in `log_dir`, a folder for every run."""

    def __init__(self, log_dir: str | Path) -> None:
        super().__init__()
        required("tensorboard")
        self.log_dir = expanded(log_dir)

    def begin(self, name: str) -> None:
        self.writer: Any = import_module("torch.utils.tensorboard").SummaryWriter(
            str(self.log_dir / name), flush_secs=5
        )

    def log(self, figures: Row, step: int) -> None:
        for name, value in figures.items():
            self.writer.add_scalar(name, value, step)

    def end(self) -> None:
        self.writer.close()


class Trackio(Tracker):
    """Reports to trackio; `settings` are keywords of `trackio.init`, e.g. group, config, space_id."""

    module = "trackio"

    def __init__(self, project: str, **settings: Any) -> None:
        super().__init__()
        self.tracker = required(self.module)
        self.settings = {"project": project} | settings

    def begin(self, name: str) -> None:
        self.tracker.init(name=name, **self.settings)

    def log(self, figures: Row, step: int) -> None:
        self.tracker.log(figures, step=step)

    def end(self) -> None:
        self.tracker.finish()


class WandB(Trackio):
    """Reports to Weights & Biases, whose functions trackio has as well; `settings` are keywords of `wandb.init`."""

    module = "wandb"


def run_name(row: Row) -> str:
    """Name a run as the plots do: theta1_2 is run 1 of iteration 2; of several trainings the seed is added."""
    name = f"theta{row['run']:.0f}_{row['iteration']:.0f}"
    return f"{name}_seed{row['seed']:.0f}" if "seed" in row else name


def required(package: str) -> Any:
    """Import an optional package, whose extra has its name.

    Raises:
        ImportError: it is not installed, or does not load.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ImportError(
            f"this callback needs the package {package}, which does not load ({error}); install the extra {package}: "
            f"pip install 'warp-nb[{package}]', or pip install {package}"
        ) from error
