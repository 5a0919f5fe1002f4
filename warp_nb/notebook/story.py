"""«Итог» of an experiment in two sentences, and what its curves show, in Russian and from the measurements alone.

The texts are in `templates/outcome.md.j2` and `templates/reading.md.j2`; what they depend on is decided here.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from warp_nb.measure.checks import broken_instrument, broken_text
from warp_nb.measure.estimates import Estimate, between_iterations, slope
from warp_nb.notebook.check_words import WORDS, headline
from warp_nb.notebook.findings import (
    KL_FAR,
    KL_STILL,
    believable_change,
    farther,
    least_change,
    lr_share,
    reward_bound,
    shift_of,
    size_of,
    warming,
)
from warp_nb.notebook.prose import paragraphs

if TYPE_CHECKING:
    import pandas as pd

    from warp_nb.studies.experiment import ExperimentResult

SAME_SCALE = 2.0
"""Runs whose distance is within this factor of a curve's own step count as apart by noise only."""


def outcome_words(result: ExperimentResult) -> str:
    """Say in two sentences what happened and what it means."""
    change = believable_change(result)
    return paragraphs(
        "outcome",
        config=result.config,
        headline=headline(result.checks),
        broken=bool(broken_instrument(result.checks)),
        faults=[WORDS[check.name].brief for check in broken_text(result.checks)],
        measured=result.summary["reward_difference"],
        change=change,
        size=size_of(change, result),
        far=farther(result),
        shift=shift_of(farther(result)),
        bound=reward_bound(result),
        least=least_change(result),
        warm=warming(result),
        lr_share=lr_share(result),
    )[0]


def curves_reading(result: ExperimentResult) -> str:
    """Say in two to four sentences what the curves of the training show; it begins with «Мы видим»."""
    config, history = result.config, result.history
    rates = {column: slope(history, column) for column in ("objective", "reward", "penalty")}
    slopes = {column: rate for column, rate in rates.items() if rate is not None}
    checks = {check.name: check for check in result.checks}
    last = history[history["step"] == history["step"].max()]
    return paragraphs(
        "reading",
        config=config,
        shift=shift_of(farther(result)),
        warm=warming(result),
        lines=min(len(result.runs), config.I * config.M),
        lr_last=float(last["lr"].mean()),
        slopes=slopes,
        eaten=share_eaten(slopes),
        jitter=jitter(history),
        gap=gap(history),
        SAME_SCALE=SAME_SCALE,
        equal=checks["runs-differ"].figures.get("equal", 0) > 0,
        start=between_iterations(history[history["step"] <= math.ceil(config.T / 3)]),
        kl=float(last["kl"].mean()),
        kl_most=float(history["kl"].max()),
        KL_FAR=KL_FAR,
        KL_STILL=KL_STILL,
    )[0]


def share_eaten(slopes: dict[str, Estimate]) -> float:
    """Return the share of the reward's rise that the penalty takes away, NaN without a rise."""
    rise = slopes["reward"].value if slopes else 0.0
    return -slopes["penalty"].value / rise if rise else math.nan


def jitter(history: pd.DataFrame) -> float:
    """Return by how much a curve of the objective changes from one step to the next, the mean of absolute values."""
    ordered = history.sort_values(["seed", "iteration", "run", "step"])
    return float(ordered.groupby(["seed", "iteration", "run"])["objective"].diff().abs().mean())


def gap(history: pd.DataFrame) -> float:
    """Return how far the runs of an iteration lie apart at the same step: the mean absolute difference of two runs."""
    steps = history.groupby(["seed", "iteration", "step"])["objective"]
    apart = [abs(a - b) for _, values in steps for i, a in enumerate(values) for b in list(values)[:i]]
    return sum(apart) / len(apart) if apart else math.nan
