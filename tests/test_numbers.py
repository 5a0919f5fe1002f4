"""Numbers as Russian text."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.numbers import (
    counted,
    fixed,
    format_bracketed,
    format_duration,
    format_estimate,
    format_interval,
    format_number,
    format_range,
    format_share,
    nats,
    plural,
)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1.5678, "1,57"),
        (-0.00312, "−0,00312"),
        (0.5, "0,5"),
        (100.0, "100"),
        (9999.4, "9999"),
        (12345.6, "12\u00a0346"),
        (3.14e-6, "3,14·10⁻⁶"),
        (1e-6, "10⁻⁶"),
        (-1e-5, "−10⁻⁵"),
        (2e12, "2·10¹²"),
        (0.0, "0"),
        (-0.0, "0"),
        (math.nan, "не определено"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
    ],
)
def test_number(value: float, text: str) -> None:
    assert format_number(value) == text


@pytest.mark.parametrize(
    ("estimate", "text"),
    [
        (Estimate(1.5612, 1.42, 1.7), "1,56 (95\u00a0% интервал от\u00a01,42 до\u00a01,70)"),
        (Estimate(-0.003, -0.01, 0.004), "−0,0030 (95\u00a0% интервал от\u00a0−0,0100 до\u00a00,0040)"),
        (Estimate(-1e-4, -0.3, 0.3), "0,00 (95\u00a0% интервал от\u00a0−0,30 до\u00a00,30)"),
        (Estimate(123.4, 100, 145), "123 (95\u00a0% интервал от\u00a0100 до\u00a0145)"),
        (Estimate(2e-6, 1e-6, 3e-6), "2·10⁻⁶ (95\u00a0% интервал от\u00a010⁻⁶ до\u00a03·10⁻⁶)"),
        (Estimate(5.0, 5.0, 5.0), "5 (95\u00a0% интервал от\u00a05 до\u00a05)"),
        (Estimate(5.0, math.nan, math.nan), "5 (интервал неизвестен)"),
        (Estimate(math.inf, 1.0, math.inf), "∞ (интервал неизвестен)"),
    ],
)
def test_estimate(estimate: Estimate, text: str) -> None:
    assert format_estimate(estimate) == text


@pytest.mark.parametrize(("value", "start"), [(1.5, "+1,50 ("), (-1.5, "−1,50 ("), (0.001, "0,00 (")])
def test_signed_estimate_writes_a_plus_only_where_the_value_shows_one(value: float, start: str) -> None:
    assert format_estimate(Estimate(value, value - 0.5, value + 0.5), signed=True).startswith(start)


@pytest.mark.parametrize(
    ("say", "given", "text"),
    [
        (format_interval, [Estimate(1.5612, 1.42, 1.7)], "1,56 [1,42; 1,7]"),
        (format_interval, [Estimate(1.5612)], "1,56 [не определено; не определено]"),
        (format_bracketed, [Estimate(1.5612, 1.4212, 1.7012)], "1,56 [1,42; 1,70]"),
        (format_bracketed, [Estimate(1.5612, 1.4212, 1.7012), True], "+1,56 [1,42; 1,70]"),
        (format_bracketed, [Estimate(5e-6, 4e-6, 6e-6)], "5·10⁻⁶ [4·10⁻⁶; 6·10⁻⁶]"),
        (format_bracketed, [Estimate(1.5612)], "1,56"),
        (nats, [0.183], "ната"),
        (nats, [1.0], "нат"),
        (nats, [2.0], "ната"),
        (nats, [12.3], "нат"),
        (nats, [21.0], "нат"),
        (nats, [3e-6], "ната"),
        (format_share, [0.857], "85,7\u00a0%"),
        (format_share, [0.857, 2], "86\u00a0%"),
        (format_share, [math.nan], "не определено"),
        (format_duration, [17.4], "17 с"),
        (format_duration, [60], "1 мин"),
        (format_duration, [150], "2,5 мин"),
        (format_range, [[2.0, 1.0, 1.5]], "от 1 до 2"),
        (format_range, [[0.02931, 0.02932]], "0,0293"),
        (fixed, [0.0438411, 7], "0,0438411"),
        (fixed, [-0.001, 2], "0,00"),
        (fixed, [12345.6, 2], "12\u00a0345,60"),
    ],
)
def test_other_forms(say: Callable[..., str], given: list[Any], text: str) -> None:
    assert say(*given) == text


@pytest.mark.parametrize(
    ("count", "form"), [(1, "шаг"), (2, "шага"), (5, "шагов"), (11, "шагов"), (12, "шагов"), (21, "шаг"), (104, "шага")]
)
def test_plural(count: int, form: str) -> None:
    assert plural(count, "шаг", "шага", "шагов") == form
    assert counted(count, "шаг", "шага", "шагов") == f"{count} {form}"
