"""What is read off the records of the diagnosis' cells, and the borders between what is alike and what is not.

The borders were fixed before the runs.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from statistics import fmean, median
from typing import Any

import pandas as pd

from warp_nb.studies.original import ROWS

Record = dict[str, Any]
Table = dict[str, Record]
Curves = Sequence[Sequence[float]]
"""Those of one plot: the runs in the order (iteration, run)."""
STILL = 1e-5
"""Largest change of the reward that agrees with the original, where it is at most 7.1e-6."""
_REFERENCES = [found.reward_reference for found in ROWS.values()]
SFT_MOVED = round(max(_REFERENCES) - min(_REFERENCES), 9)
"""By how much the reward of θ_sft differs between the original's experiments."""
MOVED_FACTOR = 10.0
"""A movement of the reward of θ_sft agrees with the original's within this factor."""
ZERO = 5e-6
"""Nats: less is printed as 0.00000."""
FACTOR = 3.0
"""A KL of another model agrees with the original's within this factor."""
ALIKE = 0.02
"""Curves coincide in a plot if they differ by at most this share of the range of all curves in it: a line's width."""
RISE = 0.2
"""A curve rises if its line of best fit climbs by at least this share of the plot's range."""
ABOVE = 0.05
"""Curves lie above others if they do so on average by this share of the plot's range."""
RIGHT = 0.1
"""Degrees: a smaller angle counts as zero."""
PLOTTED = ("objective", "surrogate")
"""What the report may have plotted: r_β, or minus the loss, the mean of r_β·log π."""


def kls(record: Record, scoring: str) -> dict[str, float]:
    """Return both KLs in a precision; in fp32 where it alone was taken, as in experiments 3 and 4."""
    found: dict[str, float] = record["kl"].get(scoring, record["kl"]["float32"])
    return found


def kl(record: Record, scoring: str = "float32") -> float:
    """Return the larger of the two KLs, nats."""
    return max(kls(record, scoring).values())


def ratio(part: float, whole: float) -> float:
    """Return part / whole; NaN if rounding leaves nothing of the whole."""
    return part / whole if whole > 0 else math.nan


def close(value: float, wanted: float) -> bool:
    """Return whether the two are within FACTOR of each other."""
    return wanted / FACTOR <= value <= wanted * FACTOR


def resampled(record: Record) -> float:
    """Return by how much the mean reward of θ_sft is expected to move when its texts are sampled again.

    It is √2 times the standard error of the mean, which is read off its interval of 95 %.
    """
    estimate = record["evaluation"]["reward_reference"]
    return math.sqrt(2) * (estimate["high"] - estimate["low"]) / 2 / 1.96


def moves_alike(moved: float) -> bool:
    """Return whether a movement of the reward of θ_sft agrees with the original's."""
    return SFT_MOVED / MOVED_FACTOR <= moved <= SFT_MOVED * MOVED_FACTOR


def span(curves: Curves) -> float:
    """Return the range of all curves of a plot: the height of its axis."""
    values = [value for curve in curves for value in curve]
    return max(values) - min(values)


def share_apart(curves: Curves) -> float:
    """Return the largest distance between two curves at one step, as a share of the range of all; 0 if it is 0."""
    return apart(curves) / span(curves) if apart(curves) else 0.0


def share_of_pairs(curves: Curves) -> float:
    """Return the largest distance between the two runs of an iteration, as a share of the range of all curves."""
    most = max((apart([curves[one], curves[other]]) for one, other in pairs_of(curves)), default=0.0)
    return most / span(curves) if most else 0.0


def rise(curves: Curves) -> float:
    """Return the median climb of the curves' lines of best fit over the plot, as a share of its range."""
    height = span(curves)
    return median(climb(curve) for curve in curves) / height if height else 0.0


def climb(curve: Sequence[float]) -> float:
    """Return by how much the line of best fit climbs from the first step to the last."""
    middle, mean = (len(curve) - 1) / 2, fmean(curve)
    squares = sum((step - middle) ** 2 for step in range(len(curve)))
    return (len(curve) - 1) * sum((step - middle) * (value - mean) for step, value in enumerate(curve)) / squares


def first_above(curves: Curves) -> float:
    """Return by how much the first half of the curves lies above the second on average, as a share of the range."""
    half, height = len(curves) // 2, span(curves)
    first, second = (fmean(value for curve in part for value in curve) for part in (curves[:half], curves[half:]))
    return (first - second) / height if height else 0.0


def same_curves(record: Record) -> bool:
    """Return whether the runs of each iteration are bit-identical in every column."""
    return all(pair_equal(record, first, second) for first, second in pairs(record))


def pairs(record: Record) -> list[tuple[int, int]]:
    """Return the indices of the two runs of each iteration among the curves, for M = 2; none for a single run."""
    return pairs_of(record["curves"]["objective"])


def pairs_of(curves: Curves) -> list[tuple[int, int]]:
    """Return the indices of the two runs of each iteration, for M = 2; none for a single run."""
    return [(place, place + 1) for place in range(0, len(curves) - 1, 2)]


def pair_equal(record: Record, first: int, second: int) -> bool:
    """Return whether two runs are bit-identical in every column."""
    return all(curves[first] == curves[second] for curves in record["curves"].values())


def first_apart(records: Sequence[Record]) -> list[int]:
    """Return the earliest and the latest step at which runs of an iteration begin to differ; empty if they never do."""
    steps = [step_apart(r, *pair) for r in records for pair in pairs(r) if not pair_equal(r, *pair)]
    return [min(steps), max(steps)] if steps else []


def step_apart(record: Record, first: int, second: int) -> int:
    """Return the step at which two runs begin to differ in any column."""
    columns = [zip(curves[first], curves[second], strict=True) for curves in record["curves"].values()]
    return next(step for step, at in enumerate(zip(*columns, strict=True), 1) if any(a != b for a, b in at))


def apart(curves: Curves) -> float:
    """Return the largest distance between two curves at one step."""
    return max(
        (abs(a - b) for one, other in combinations(curves, 2) for a, b in zip(one, other, strict=True)), default=0.0
    )


def history(record: Record) -> pd.DataFrame:
    """Return the curves as a table, one row per step."""
    return pd.DataFrame(
        {"seed": record["seed"], "iteration": place // 2, "run": place % 2, "step": step + 1}
        | {column: runs[place][step] for column, runs in record["curves"].items()}
        for place in range(len(record["curves"]["objective"]))
        for step in range(len(record["curves"]["objective"][place]))
    )
