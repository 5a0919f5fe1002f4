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


def non_negative(values: Sequence[float]) -> Estimate:
    """Return the mean of values whose true mean is not negative, such as a KL, with a t interval in log scale.

    By the delta method the ends are mean * exp(∓ t * error / mean). Where the plain interval mean ∓ t * error would
    reach zero, the logarithm says nothing: the interval begins at 0 and ends where the plain one does. The mean
    itself is not changed, so that a negative one, by rounding or by a fault, is seen.
    """
    plain = mean_interval(values)
    if not plain.low > 0:
        return _from_zero(plain)
    factor = math.exp((plain.high - plain.value) / plain.value)
    return Estimate(plain.value, plain.value / factor, plain.value * factor)


def geometric(values: Sequence[float]) -> Estimate:
    """Return the geometric mean with a t interval in log scale.

    Values that are not all positive and finite have no geometric mean: theirs is the plain mean, its interval cut at 0.
    """
    if all(0 < value < math.inf for value in values):
        return exponential(mean_interval([math.log(value) for value in values]))
    return _from_zero(mean_interval(values))


def _from_zero(plain: Estimate) -> Estimate:
    """Return an estimate whose interval does not go below zero; an unknown end stays unknown."""
    low, high = (end if math.isnan(end) else max(0.0, end) for end in (plain.low, plain.high))
    return Estimate(plain.value, low, high)


def detectable(estimate: Estimate, count: int) -> float:
    """Return the smallest true mean that the two-sided t test at 5 % finds with a power of 80 %.

    (t_0.975 + t_0.8) * error, with the error that the estimate's interval implies.

    Args:
        estimate: a mean with its t interval (`mean_interval`); an unknown interval gives NaN.
        count: the number of values behind it, at least 2.
    """
    from scipy.stats import t

    reach, power = (float(t.ppf(share, count - 1)) for share in (0.975, 0.8))
    return (estimate.high - estimate.low) / 2 * (1 + power / reach)


def two_sided_p(values: Sequence[float]) -> float:
    """Return the p-value of "the mean is zero" by the t test of one sample; NaN for fewer than two values.

    It is below 0.05 exactly where `mean_interval` excludes zero.
    """
    return p_value(mean_interval(values), len(values))


def p_value(estimate: Estimate, count: int) -> float:
    """Return the p-value of "the mean is zero" from the t interval of `count` values; NaN if it is unknown."""
    from scipy.stats import t

    half = (estimate.high - estimate.low) / 2
    if math.isnan(half):
        return math.nan
    if half == 0:
        return 0.0 if estimate.value else 1.0
    return float(2 * t.sf(abs(estimate.value) / half * t.ppf(0.975, count - 1), count - 1))


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
    """Return the mean change of `column` per step over runs: one least-squares slope a run, the t interval over runs.

    A run (seed, iteration, run) is the unit, because the steps of a run are not independent. Runs of one training
    share their initialisation, which the interval leaves out. It is unknown for one run; None if runs have one step.
    """
    rates = []
    for _, run in history.groupby(["seed", "iteration", "run"]):
        step = run["step"] - run["step"].mean()
        square = float((step**2).sum())
        if square == 0:
            return None
        rates.append(float((step * run[column]).sum(skipna=False)) / square)
    return mean_interval(rates)


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
