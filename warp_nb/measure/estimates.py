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


def two_sided_p(values: Sequence[float]) -> float:
    """Return the p-value of "the mean is zero" by the t test of one sample; NaN for fewer than two values.

    It is below 0.05 exactly where `mean_interval` excludes zero.
    """
    from scipy.stats import t

    array = np.asarray(values, dtype=np.float64)
    if len(array) < 2:
        return math.nan
    error = array.std(ddof=1) / math.sqrt(len(array))
    if error == 0:
        return 0.0 if array[0] else 1.0
    return float(2 * t.sf(abs(array.mean()) / error, len(array) - 1))


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust the p-values of one family of declared comparisons by Holm's step-down method.

    The k-th smallest of n is multiplied by n - k + 1, and no adjusted value is below the one before it or above 1.

    Args:
        p_values: one for each declared comparison; NaN if it could not be made, which counts as 1.

    Returns:
        The adjusted p-values in the order of `p_values`; a comparison holds at 5 % if its value is below 0.05.
    """
    known = [1.0 if math.isnan(p) else p for p in p_values]
    adjusted, least = [1.0] * len(known), 0.0
    for rank, index in enumerate(sorted(range(len(known)), key=known.__getitem__)):
        least = max(least, min(1.0, (len(known) - rank) * known[index]))
        adjusted[index] = least
    return adjusted


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
