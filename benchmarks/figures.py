"""From measured values to figures: medians with their spread, ratios of interleaved pairs, exponents."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import linear_regression, median
from typing import Any

Figure = dict[str, Any]


def spread(values: Sequence[float]) -> Figure:
    """Return median, smallest and largest of the values, and their number."""
    if not values:
        raise ValueError("no values to summarise; measure at least once")
    return {"median": median(values), "low": min(values), "high": max(values), "count": len(values)}


def ratio(upper: Sequence[float], lower: Sequence[float]) -> Figure:
    """Return the ratio of the medians; low and high are the extremes of the pairwise ratios, which enclose it.

    Raises ValueError unless both sides have equally many values and all are positive.
    """
    if len(upper) != len(lower):
        raise ValueError(f"{len(upper)} values against {len(lower)}; pairs need as many of either side")
    if min([*upper, *lower], default=0.0) <= 0:
        raise ValueError(f"a ratio needs positive values, got {list(upper)} against {list(lower)}; measure again")
    pairs = [a / b for a, b in zip(upper, lower, strict=True)]
    return spread(pairs) | {"median": median(upper) / median(lower)}


def compare(
    what: str, unit: str, peer: str, ours: Sequence[float], theirs: Sequence[float], target: float | None = None
) -> Figure:
    """Build one comparison as it is saved in results.json.

    unit "s": the ratio says how many times as fast ours is, and a target is its lower limit.
    unit "bytes": the ratio is ours over the peer's, and a target is its upper limit.
    """
    if unit not in ("s", "bytes"):
        raise ValueError(f"unit must be s or bytes, got {unit!r}")
    found = ratio(theirs, ours) if unit == "s" else ratio(ours, theirs)
    sides = {"ours": list(ours), "theirs": list(theirs)}
    return {"what": what, "unit": unit, "peer": peer, **sides, "ratio": found, "target": target}


def compare_units(
    what: str,
    peer: str,
    mine: Sequence[Figure],
    other: Sequence[Figure],
    targets: Mapping[str, float],
    steps: int = 1,
) -> list[Figure]:
    """Compare time (per step, with `steps` in a unit) and peak memory of the units of two sides, pair by pair."""
    fast, slow = ([unit["seconds"] / steps for unit in side] for side in (mine, other))
    small, large = ([unit["peak_rss"] for unit in side] for side in (mine, other))
    return [
        compare(what, "s", peer, fast, slow, targets.get("s")),
        compare(f"{what}, peak memory", "bytes", peer, small, large, targets.get("bytes")),
    ]


def exponent(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """Return k of cost ~ size^k, the slope of the logarithms by least squares.

    Raises ValueError for fewer than three sizes or values that have no logarithm.
    """
    if len(sizes) < 3:
        raise ValueError(f"an exponent needs three sizes or more, got {len(sizes)}")
    if min(*sizes, *costs) <= 0:
        raise ValueError(f"sizes and costs must be positive, got {list(sizes)} and {list(costs)}")
    return linear_regression([math.log(x) for x in sizes], [math.log(y) for y in costs]).slope


def alone(
    what: str, unit: str, values: Sequence[float], target: float | None = None, floor: float | None = None
) -> Figure:
    """Build a figure without a peer: its spread, its upper limit, and the least that the machine allows."""
    return {"what": what, "unit": unit, **spread(values), "target": target, "floor": floor}
