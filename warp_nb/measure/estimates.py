"""Means with 95 % intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Estimate:
    """A value and its 95 % interval; both ends are NaN where the interval is unknown."""

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def known(self) -> bool:
        """Whether the interval is known."""
        return math.isfinite(self.low + self.high)

    @property
    def excludes_zero(self) -> bool:
        """Whether zero lies outside the interval; an unknown interval excludes nothing."""
        return self.low > 0 or self.high < 0


NO_ESTIMATE = Estimate(math.nan)
"""Nothing was measured."""


def mean_interval(values: Sequence[float]) -> Estimate:
    """Return the mean of independent values with its t interval (n - 1 degrees of freedom), unknown for one value."""
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    mean = float(array.mean())
    if len(array) < 2:
        return Estimate(mean)
    half = float(t.ppf(0.975, len(array) - 1) * array.std(ddof=1) / math.sqrt(len(array)))
    return Estimate(mean, mean - half, mean + half)


def exponential(estimate: Estimate) -> Estimate:
    """Apply exp to a mean and to both ends of its interval."""
    return Estimate(*(math.exp(min(value, 700.0)) for value in astuple(estimate)))


def slope(history: pd.DataFrame, column: str) -> Estimate | None:
    """Fit the change of `column` per step by least squares: one slope for all runs, an intercept for each.

    None if it cannot be estimated: one step per run, or as many unknowns as points.
    """
    from scipy.stats import t

    runs = history.groupby(["seed", "iteration", "run"])
    step = history["step"] - runs["step"].transform("mean")
    value = history[column] - runs[column].transform("mean")
    free, square = len(history) - runs.ngroups - 1, float((step**2).sum())
    if free < 1 or square == 0:
        return None
    rate = float((step * value).sum(skipna=False)) / square
    half = float(t.ppf(0.975, free)) * math.sqrt(float(((value - rate * step) ** 2).sum()) / free / square)
    return Estimate(rate, rate - half, rate + half)


def between_iterations(history: pd.DataFrame) -> Estimate | None:
    """Return the mean objective of iteration 2 minus that of iteration 1, with a Welch interval over the runs' means.

    None with fewer than two runs in either iteration.
    """
    from scipy.stats import ttest_ind

    means = history.groupby(["seed", "iteration", "run"])["objective"].mean()
    iteration = means.index.get_level_values("iteration")
    first, second = means[iteration == 1], means[iteration == 2]
    if min(len(first), len(second)) < 2:
        return None
    interval = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    return Estimate(float(second.mean() - first.mean()), float(interval.low), float(interval.high))
