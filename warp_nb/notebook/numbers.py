"""Numbers as Russian text: decimal comma, real minus sign, as many digits as the interval supports."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from warp_nb.measure.evaluation import Estimate

MINUS = "\u2212"
THIN_SPACE = "\u202f"
NO_BREAK = "\u00a0"
UNKNOWN = "не определено"
SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
DECIMALS_AT_MOST = 6


def format_number(value: float, digits: int = 3) -> str:
    """`value` with up to `digits` significant digits: 1,56 or −0,3 or 12 346 or 3,1·10⁻⁶."""
    if math.isnan(value):
        return UNKNOWN
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    if abs(value) < 1e-3 or abs(value) >= 1e7:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        mantissa = _trimmed(_russian(mantissa))
        times = {"1": "", f"{MINUS}1": MINUS}.get(mantissa, f"{mantissa}·")
        return f"{times}10{str(int(power)).translate(SUPERSCRIPTS)}"
    return _trimmed(fixed(value, decimals_for(value, digits)))


def format_estimate(estimate: Estimate, signed: bool = False) -> str:
    """1,56 (95 % интервал от 1,42 до 1,70): two significant digits of the interval's half-width.

    `signed` writes the plus of a positive change.
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


def format_share(share: float) -> str:
    """A share between 0 and 1 as per cent."""
    return UNKNOWN if math.isnan(share) else f"{format_number(100 * share)}{NO_BREAK}%"


def format_duration(seconds: float) -> str:
    """17 с or 2,5 мин: two digits."""
    if seconds < 60:
        return f"{format_number(seconds, 2)} с"
    return f"{format_number(seconds / 60, 2)} мин"


def fixed(value: float, decimals: int) -> str:
    """`value` with a fixed number of decimals, thousands apart from 10 000 on."""
    text = f"{value:,.{decimals}f}" if abs(value) >= 1e4 else f"{value:.{decimals}f}"
    if float(text.replace(",", "")) == 0:
        text = text.lstrip("-")
    return _russian(text.replace(",", THIN_SPACE))


def decimals_for(value: float, digits: int) -> int:
    """Decimals that show `digits` significant digits of a non-zero `value`; never negative."""
    return max(0, digits - 1 - math.floor(math.log10(abs(value))))


def plural(count: int, one: str, few: str, many: str) -> str:
    """The Russian form of a noun after a number: 1 шаг, 2 шага, 5 шагов."""
    if count % 10 == 1 and count % 100 != 11:
        return one
    return few if 2 <= count % 10 <= 4 and not 12 <= count % 100 <= 14 else many


def _russian(text: str) -> str:
    return text.replace("-", MINUS).replace(".", ",")


def _trimmed(text: str) -> str:
    """Without zeros at the end of the decimals."""
    return text.rstrip("0").rstrip(",") if "," in text else text


def _signed(text: str, value: float, signed: bool) -> str:
    shows_zero = not text.strip("0,")
    return f"+{text}" if signed and value > 0 and not shows_zero else text
