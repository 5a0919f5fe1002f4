"""Files of a run fit the policy and the run they are read for: names, shapes and dtypes of tensors, rows of figures.

A seal shows that a file is as it was written; it does not show for which model.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from warp_nb.algorithm.merge import Weights
from warp_nb.files import DamagedFile

STEP_FIGURES = (
    "iteration", "run", "step", "reward", "kl", "objective", "penalty", "tokens", "sampling_gap", "grad_norm",
    "empty", "after_end", "lr", "seconds",
)  # fmt: skip
"""Figures of a step in a history."""
RUN_FACTS = (
    "iteration", "run", "run_seed", "loaded", "delta_norm", "unmoved", "anchor_moved", "anchor_error",
    "scored_after_end", "empty_completions", "sampling_gap", "seconds",
)  # fmt: skip
"""Measurements of a whole run."""


class Misfit(ValueError):
    """Something that was read does not fit the run that it is read for."""


@contextmanager
def read_from(path: Path) -> Iterator[None]:
    """Turn a Misfit in the block into a DamagedFile that names `path`."""
    try:
        yield
    except Misfit as error:
        raise DamagedFile(f"{path} is damaged ({error})") from error


def check_record(record: Any, names: set[str]) -> None:
    """Raise Misfit unless a file's record is an object with these names."""
    if not isinstance(record, dict) or not record.keys() >= names:
        raise Misfit(f"its record lacks {', '.join(sorted(names))}")


def check_tensors(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    """Raise Misfit, with the first three differences, unless names, shapes and dtypes are equal."""
    layouts = [{name: f"{value.dtype} {list(value.shape)}" for name, value in side.items()} for side in (found, wanted)]
    theirs, ours = layouts
    faults = [
        f"{name} {theirs.get(name, 'missing')}, the policy has {ours.get(name, 'none of that name')}"
        for name in sorted({**theirs, **ours})
        if theirs.get(name) != ours.get(name)
    ]
    if faults:
        raise Misfit(f"its tensors are not the policy's: {'; '.join(faults[:3])}")


def check_history(history: Any, i: int, m: int, steps: int) -> None:
    """Raise Misfit unless `history` holds rows of finite figures of the first steps, at most `steps`, of (i, m)."""
    if not isinstance(history, list) or not 0 < len(history) <= steps:
        raise Misfit(f"its history is no list of 1 to {steps} steps")
    for step, row in enumerate(history, start=1):
        if not isinstance(row, dict) or not row.keys() >= set(STEP_FIGURES) or not all(map(is_number, row.values())):
            raise Misfit(f"row {step} of its history lacks a figure")
        if (row["iteration"], row["run"], row["step"]) != (i, m, step):
            raise Misfit(f"row {step} of its history is of another step or run")


def check_facts(facts: Any) -> None:
    """Raise Misfit unless `facts` holds the measurements of a run, each a number or None (unknown)."""
    if not isinstance(facts, dict) or not facts.keys() >= set(RUN_FACTS):
        raise Misfit("its measurements of the run are incomplete")
    if not all(value is None or is_number(value) for value in facts.values()):
        raise Misfit("one of its measurements of the run is no number")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite number and no boolean."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_moments(moments: Mapping[int, Weights], parameters: list[torch.Tensor], names: set[str]) -> None:
    """Raise Misfit unless each set of an optimizer's moments has these names and its parameter's shape."""
    for index, found in moments.items():
        if not 0 <= index < len(parameters):
            raise Misfit(f"it has moments of parameter {index}, the policy trains {len(parameters)}")
        wanted = {name: torch.empty(()) if name == "step" else parameters[index] for name in names}
        check_tensors(found, wanted)


def check_noise(state: torch.Tensor) -> None:
    """Raise Misfit unless `state` is the state of a generator of noise."""
    try:
        torch.Generator().set_state(state.cpu())
    except (RuntimeError, TypeError) as error:
        raise Misfit(f"its state of the noise is none ({error})") from error
