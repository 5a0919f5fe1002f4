"""Colours, lines and markers of all figures: a thing has the same style wherever it is drawn.

The colours suit colour blindness; lines and markers suit grey print.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import cycle, islice
from typing import Any, NamedTuple


class Style(NamedTuple):
    """How a series is drawn: colour, dashes and marker, in matplotlib's notation."""

    color: str
    line: Any
    marker: str


OKABE_ITO = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINES: tuple[Any, ...] = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)), (0, (1, 3)), (0, (8, 3)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
RUNS = {
    "theta1_1": Style("#0072B2", "-", "o"),
    "theta2_1": Style("#D55E00", "--", "s"),
    "theta1_2": Style("#009E73", "-.", "^"),
    "theta2_2": Style("#CC79A7", ":", "D"),
}
"""Runs of an experiment: theta2_1 is run 2 of iteration 1."""
POLICIES = {
    "SFT": Style("#7A7A7A", ":", "o"),
    "WARP": Style("#000000", "-", "o"),
    "M = 1": Style("#E69F00", "--", "s"),
    "REINFORCE": Style("#56B4E9", "-.", "^"),
    "WARP, RLOO": Style("#882255", (0, (5, 1, 1, 1, 1, 1)), "D"),
    "best-of-N": Style("#6B6B00", "", "P"),
    "WARP end": Style("#000000", "", "*"),
}
"""Policies that are compared; the last two are points without a line."""


def styles() -> Iterator[Style]:
    """Yield styles without end: the first seven differ in all three parts, the first 42 in some."""
    for index, color in enumerate(cycle(OKABE_ITO)):
        turn = index // len(OKABE_ITO)
        yield Style(color, LINES[(index + turn) % len(LINES)], MARKERS[(index + turn) % len(MARKERS)])


def run_styles(names: Sequence[str]) -> dict[str, Style]:
    """Return name -> style of runs; those beyond two iterations of two runs take the next free styles in turn."""
    free = islice(styles(), len(RUNS), None)
    return {name: RUNS.get(name) or next(free) for name in names}
