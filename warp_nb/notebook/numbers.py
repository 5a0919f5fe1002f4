"""Numbers as Russian text: decimal comma, real minus sign, as many digits as the interval supports."""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import TYPE_CHECKING

from babel import Locale
from babel.numbers import format_decimal

if TYPE_CHECKING:
    from warp_nb.measure.estimates import Estimate

RUSSIAN = Locale("ru")
MINUS = "\u2212"
NO_BREAK = "\u00a0"
UNKNOWN = "не определено"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DECIMALS_AT_MOST = 6


def format_number(value: float | None, digits: int = 3) -> str:
    """Format up to `digits` significant digits: 1,56 or −0,3 or 12 346 or 3,1·10⁻⁶; None, as in JSON, is NaN."""
    if value is None or math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e7:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        shown = _decimal(float(mantissa), digits - 1, "#")
        times = {"1": "", f"{MINUS}1": MINUS}.get(shown, f"{shown}·")
        return f"{times}10{str(int(power)).translate(SUPERSCRIPTS)}"
    return _decimal(value, decimals_for(value, digits), "#")


def format_estimate(estimate: Estimate, signed: bool = False) -> str:
    """Format 1,56 (95 % интервал от 1,42 до 1,70), to two significant digits of the half-width.

    `signed` writes a plus before a positive change.
    """
    half = (estimate.high - estimate.low) / 2
    if not math.isfinite(half):
        return f"{_signed(format_number(estimate.value), estimate.value, signed)} (интервал неизвестен)"
    if half == 0 or max(abs(estimate.low), abs(estimate.high)) < 1e-3 or half < 10.0**-DECIMALS_AT_MOST:
        value, low, high = (format_number(x) for x in (estimate.value, estimate.low, estimate.high))
    else:
        places = decimals_for(half, 2)
        value, low, high = (fixed(x, places) for x in (estimate.value, estimate.low, estimate.high))
    return f"{_signed(value, estimate.value, signed)} (95{NO_BREAK}% интервал от{NO_BREAK}{low} до{NO_BREAK}{high})"


def format_interval(estimate: Estimate) -> str:
    """Format 1,56 [1,42; 1,70], three significant digits each."""
    value, low, high = (format_number(x) for x in (estimate.value, estimate.low, estimate.high))
    return f"{value} [{low}; {high}]"


def format_brief(estimate: Estimate) -> str:
    """Format a change as +1,56 [1,42; 1,70], as +1,56 where the interval is unknown, as a dash where the value is."""
    return "—" if math.isnan(estimate.value) else format_bracketed(estimate, signed=True)


def format_bracketed(estimate: Estimate, signed: bool = False) -> str:
    """Format 1,56 [1,42; 1,70], to two significant digits of the half-width; an unknown interval is left out.

    `signed` writes a plus before a positive change.
    """
    half = (estimate.high - estimate.low) / 2
    if not math.isfinite(half):
        return _signed(format_number(estimate.value), estimate.value, signed)
    if half == 0 or max(abs(estimate.low), abs(estimate.high)) < 1e-3 or half < 10.0**-DECIMALS_AT_MOST:
        value, low, high = (format_number(x) for x in (estimate.value, estimate.low, estimate.high))
    else:
        places = decimals_for(half, 2)
        value, low, high = (fixed(x, places) for x in (estimate.value, estimate.low, estimate.high))
    return f"{_signed(value, estimate.value, signed)} [{low}; {high}]"


def format_share(share: float, digits: int = 3) -> str:
    """Format a share between 0 and 1 in per cent."""
    return UNKNOWN if math.isnan(share) else f"{format_number(100 * share, digits)}{NO_BREAK}%"


def format_duration(seconds: float) -> str:
    """Format 17 с or 2,5 мин, two significant digits."""
    if seconds < 60:
        return f"{format_number(seconds, 2)} с"
    return f"{format_number(seconds / 60, 2)} мин"


def format_range(values: list[float]) -> str:
    """Format the smallest and the largest value, or one number if both look the same."""
    low, high = format_number(min(values)), format_number(max(values))
    return low if low == high else f"от {low} до {high}"


def fixed(value: float, decimals: int) -> str:
    """Format with a fixed number of decimals; thousands are separated from 10 000 on."""
    return _decimal(value, decimals, "0")


def reported(value: float, measure: str) -> str:
    """Format as the original report did: five decimals for a KL, seven for a reward."""
    return fixed(value, 5 if measure.startswith("kl") else 7)


def decimals_for(value: float, digits: int) -> int:
    """Return the decimals that show `digits` significant digits of a non-zero `value`; never negative."""
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def plural(count: int, one: str, few: str, many: str) -> str:
    """Return the Russian form of a noun after a number: 1 шаг, 2 шага, 5 шагов."""
    return {"one": one, "few": few}.get(RUSSIAN.plural_form(count), many)


def counted(count: int, one: str, few: str, many: str) -> str:
    """Return a number and the noun after it: 2 шага."""
    return f"{count} {plural(count, one, few, many)}"


def nats(value: float) -> str:
    """Return the unit after a value of two significant digits: 2,5 ната, 2 ната, 12 нат, 21 нат."""
    shown = format_number(value, 2)
    if not re.fullmatch(r"\d+", shown):
        return "ната"
    return plural(int(shown), "нат", "ната", "нат")


def _decimal(value: float, decimals: int, digit: str) -> str:
    """Round `value` to `decimals`; `digit` is "0" to write all of them, "#" to omit trailing zeros."""
    pattern = ("#,##0" if abs(value) >= 1e4 else "0") + f".{digit * decimals}" * bool(decimals)
    rounded = Decimal(f"{value:.{decimals}f}") + 0  # no negative zero
    return format_decimal(rounded, pattern, locale=RUSSIAN).replace("-", MINUS)


def _signed(text: str, value: float, signed: bool) -> str:
    shows_zero = not text.strip("0,")
    return f"+{text}" if signed and value > 0 and not shows_zero else text
