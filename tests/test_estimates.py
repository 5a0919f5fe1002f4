"""Means and slopes with their intervals, against scipy, least squares by numpy, and repeated samples."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy.stats import t, ttest_1samp, ttest_ind
from synthetic import result

from warp_nb.measure.estimates import (
    Estimate,
    between_iterations,
    detectable,
    exponential,
    geometric,
    holm,
    mean_interval,
    non_negative,
    slope,
    two_sided_p,
)


def test_an_interval_is_scipys_and_covers_what_it_says() -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(1, 2, size=7)
    low, high = ttest_1samp(values, 0).confidence_interval(0.95)
    found = mean_interval(list(values))
    assert (found.value, found.low, found.high) == pytest.approx((values.mean(), low, high))
    covered = [(lambda e: e.low < 1 < e.high)(mean_interval(list(rng.normal(1, 2, size=5)))) for _ in range(2000)]
    assert 0.93 < np.mean(covered) < 0.97


def test_one_value_has_no_interval() -> None:
    found = mean_interval([3.0])
    assert found.value == 3 and math.isnan(found.low) and math.isnan(found.high)


def test_a_p_value_is_scipys_and_agrees_with_the_interval() -> None:
    rng = np.random.default_rng(3)
    for _ in range(50):
        values = list(rng.normal(1, 1, size=4))
        assert two_sided_p(values) == pytest.approx(ttest_1samp(values, 0).pvalue)
        assert (two_sided_p(values) < 0.05) == mean_interval(values).excludes_zero
    assert math.isnan(two_sided_p([1.0])) and two_sided_p([2.0, 2.0]) == 0 and two_sided_p([0.0, 0.0]) == 1


def test_a_mean_that_cannot_be_negative_has_an_interval_above_zero() -> None:
    rng = np.random.default_rng(5)
    values = list(rng.exponential(size=20))
    plain, found = mean_interval(values), non_negative(values)
    assert found.value == plain.value and found.low > 0
    assert math.log(found.high / found.value) == pytest.approx((plain.high - plain.value) / plain.value)
    assert found.low * found.high == pytest.approx(found.value**2), "symmetric in the logarithm"
    covered = [(lambda e: e.low < 1 < e.high)(non_negative(list(rng.exponential(size=100)))) for _ in range(1000)]
    assert 0.92 < np.mean(covered) < 0.97


@pytest.mark.parametrize("values", [[1.0, 0.0, 0.0, 30.0], [-1e-7, 1e-7, -2e-7], [0.0, 0.0], [1e-9, 1e-6, -1e-7]])
def test_an_interval_that_would_reach_zero_begins_there(values: list[float]) -> None:
    for found in (non_negative(values), geometric(values)):
        assert found.value == np.mean(values) and found.low == 0
        assert found.high == max(0.0, mean_interval(values).high)


@pytest.mark.filterwarnings("ignore:invalid value")  # numpy, of infinity minus infinity
@pytest.mark.parametrize("values", [[1.0, math.nan], [2.0], [1.0, math.inf]])
def test_what_is_not_known_stays_unknown(values: list[float]) -> None:
    for found in (non_negative(values), geometric(values)):
        assert not found.known and (math.isnan(found.value) or found.value == np.mean(values))


def test_a_geometric_mean_has_its_interval_in_the_log() -> None:
    found, logs = geometric([1.0, 10.0, 100.0]), mean_interval([0.0, math.log(10), math.log(100)])
    assert (found.value, found.low, found.high) == pytest.approx((10, math.exp(logs.low), math.exp(logs.high)))


@pytest.mark.parametrize("count", [3, 10, 200])
def test_the_detectable_mean_is_found_in_four_of_five_samples(count: int) -> None:
    """The approximation by two t quantiles, against samples whose true mean it is."""
    rng = np.random.default_rng(6)
    error = 1 / math.sqrt(count)
    half = float(t.ppf(0.975, count - 1)) * error
    least = detectable(Estimate(0.3, 0.3 - half, 0.3 + half), count)
    found = [mean_interval(list(rng.normal(least, 1, size=count))).excludes_zero for _ in range(2000)]
    assert 0.76 < np.mean(found) < 0.84
    assert math.isnan(detectable(Estimate(1.0), count))


@pytest.mark.parametrize(
    ("p_values", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # 4 * .005, 3 * .01, 2 * .03, max(.06, 1 * .04)
        ([0.015, 0.086], [0.03, 0.086]),
        ([0.4, 0.5, 0.9], [1.0, 1.0, 1.0]),
        ([0.01, math.nan], [0.02, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm_steps_down(p_values: list[float], adjusted: list[float]) -> None:
    assert holm(p_values) == pytest.approx(adjusted)


def test_holm_is_between_the_p_value_and_bonferroni_and_keeps_their_order() -> None:
    rng = np.random.default_rng(4)
    for _ in range(100):
        p_values = list(rng.uniform(size=5) ** 3)
        found = holm(p_values)
        assert all(p <= q <= min(1, 5 * p) for p, q in zip(p_values, found, strict=True))
        assert sorted(found) == [found[i] for i in np.argsort(p_values)]


@pytest.mark.parametrize(
    ("low", "high", "excludes"),
    [(0.1, 2, True), (-2, -0.1, True), (-0.1, 2, False), (0, 2, False), (math.nan, math.nan, False)],
)
def test_zero_is_excluded_by_a_known_interval_beside_it(low: float, high: float, excludes: bool) -> None:
    assert Estimate(1.0, low, high).excludes_zero == excludes


def test_the_interval_of_an_exponential_is_the_exponential_of_its_ends() -> None:
    found = exponential(Estimate(1.0, 0.5, 1.5))
    assert (found.value, found.low, found.high) == pytest.approx((math.e, math.exp(0.5), math.exp(1.5)))
    assert exponential(Estimate(1e9, 1e9, 1e9)).value < math.inf
    assert math.isnan(exponential(mean_interval([1.0])).low)


def test_slope_is_the_mean_of_the_runs_slopes_with_an_interval_over_runs() -> None:
    history = result(T=6, n_seeds=2).history
    history["objective"] = np.random.default_rng(1).normal(size=len(history)) + 10 * history.run * history.step
    runs = history.groupby(["seed", "iteration", "run"])
    rates = [np.polyfit(run["step"], run["objective"], 1)[0] for _, run in runs]
    found, wanted = slope(history, "objective"), mean_interval(rates)
    assert len(rates) == 8 and found is not None
    assert (found.value, found.low, found.high) == pytest.approx((wanted.value, wanted.low, wanted.high))


def test_many_steps_do_not_make_a_slope_certain() -> None:
    """Runs of slopes .141, .022, .028 and .007: their steps are certain and their mean is not."""
    history = result(T=100).history
    rates = np.repeat([0.141, 0.022, 0.028, 0.007], 100)
    found = slope(history.assign(reward=rates * history["step"]), "reward")
    assert found is not None and found.value == pytest.approx(0.0495) and not found.excludes_zero
    assert (found.low, found.high) == pytest.approx((-0.048, 0.147), abs=1e-3)


def test_slopes_of_reward_and_penalty_add_up_to_the_objective() -> None:
    history = result(n_seeds=2).history
    whole, *parts = (slope(history, column).value for column in ("objective", "reward", "penalty"))  # type: ignore[union-attr]
    assert whole == pytest.approx(sum(parts)) != 0


def test_a_slope_needs_two_steps_and_its_interval_two_runs() -> None:
    assert slope(result(T=1).history, "reward") is None
    single, pair = (slope(result(T=2, I=1, M=M).history, "reward") for M in (1, 2))
    assert single is not None and math.isfinite(single.value) and not single.known
    assert pair is not None and pair.known


def test_a_slope_of_what_is_not_finite_is_not_finite() -> None:
    history = result().history
    history.loc[3, "reward"] = math.nan
    found = slope(history, "reward")
    assert found is not None and math.isnan(found.value)


def test_iterations_are_compared_by_the_means_of_their_runs() -> None:
    history = result(M=3).history
    rng = np.random.default_rng(2)
    history["objective"] = rng.normal(size=len(history)) + (history.iteration == 2) * (3 + history.run)
    means = [[rows["objective"].mean() for _, rows in history[history.iteration == i].groupby("run")] for i in (1, 2)]
    wanted = ttest_ind(means[1], means[0], equal_var=False).confidence_interval(0.95)
    found = between_iterations(history)
    assert found is not None and found.value == pytest.approx(np.mean(means[1]) - np.mean(means[0]))
    assert (found.low, found.high) == pytest.approx((wanted.low, wanted.high))


@pytest.mark.parametrize("settings", [{"M": 1}, {"I": 1}])
def test_iterations_of_fewer_than_two_runs_are_not_compared(settings: dict[str, int]) -> None:
    history: pd.DataFrame = result(**settings).history
    assert between_iterations(history) is None
