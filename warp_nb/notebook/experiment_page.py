"""Functions that the cells of an experiment's notebook call after its run: figures, conclusion, facts, limits, file."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from IPython.display import Markdown
from matplotlib.figure import Figure

from warp_nb.files import write_json
from warp_nb.measure.checks import broken_instrument
from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.conclusions import believable_change, conclude
from warp_nb.notebook.plots import BLOCK_INCHES, geometry, panels, summary_forest, training_curves
from warp_nb.notebook.prose import paragraphs
from warp_nb.paths import expanded
from warp_nb.studies.comparison import Arm
from warp_nb.studies.experiment import ExperimentResult

SHIFTS = {"почти нет": 0.01, "умеренный": 3.0}
"""Nats: upper bounds of the ranges of the policy's shift."""
MARGIN = 3.0
"""A verdict counts as a fact if it is more than this many standard errors from a border."""


def curves(result: ExperimentResult | Arm) -> Figure:
    """Plot the maximised functional, the reward and the KL over the steps, one curve per run.

    The panels are narrow and one below another, so that labels stay readable on a phone.
    """
    with panels(3, 8.4, sharex=False) as (figure, axes):
        for ax, column in zip(axes, ("objective", "reward", "kl"), strict=True):
            training_curves(ax, result.history, column, legend=ax is axes[0])
    return figure


def outcome(result: ExperimentResult) -> Figure:
    """Plot held-out rewards with intervals, and the angles between the runs' task vectors."""
    lines = 1 + result.geometry["block"].nunique() if len(result.geometry) else 0  # the blocks and all weights
    heights = [3.0, max(3.0, 0.5 + BLOCK_INCHES * lines)]
    with panels(2, sum(heights), sharex=False, height_ratios=heights) as (figure, axes):
        summary_forest(axes[0], result.summary)
        geometry(axes[1], result.geometry)
        axes[1].tick_params(axis="y", labelsize="medium" if heights[1] == 3.0 else "small")
    return figure


def conclusion(result: Any) -> Markdown:
    """Return the paragraphs of `conclude` as Markdown."""
    return Markdown("\n\n".join(conclude(result)))


@singledispatch
def record(result: Any) -> dict[str, Any]:
    """Return the contents of a result file without the conclusion, plain JSON values."""
    return result.to_json()


def save(result: Any, path: str) -> None:
    """Write a result and its conclusion as JSON, atomically; an empty path writes nothing."""
    if path:
        write_json(expanded(path), record(result) | {"conclusion": conclude(result)})


def limits(result: ExperimentResult) -> Markdown:
    """Write what the conclusion does not cover, from the parameters and the task."""
    kl, middle = result.summary["kl_policy_reference"].value, float(result.history["kl"].median())
    points = paragraphs("limits", config=result.config, about=result.about, kl=kl, kl_on_curves=middle)
    return Markdown("\n".join(points))


def facts(result: ExperimentResult) -> dict[str, Any]:
    """Return what must be equal on any machine: structure, and verdicts far from their borders.

    A verdict within MARGIN standard errors of a border is «у границы». «Не пройдены» lists checks of the measurement
    only, because those of the text depend on the samples.
    """
    kl, change = result.summary["kl_policy_reference"], believable_change(result)
    return {
        "шагов": len(result.history),
        "прогонов": len(result.runs),
        "блоков": result.geometry["block"].nunique() if len(result.geometry) else 0,
        "не пройдены": sorted(check.name for check in broken_instrument(result.checks)),
        "сдвиг политики": against(kl.value, standard_error(kl), SHIFTS, "большой"),
        "награда": against(change.value, standard_error(change), {"упала": 0.0}, "выросла"),
    }


def standard_error(estimate: Estimate) -> float:
    """Return the standard error that a 95 % interval implies, about half its half-width."""
    return (estimate.high - estimate.low) / 4


def against(value: float, error: float, borders: dict[str, float], above: str) -> str:
    """Return the name of the range of `value`, or «у границы» within MARGIN standard errors of a border."""
    for name, border in borders.items():
        if abs(value - border) <= MARGIN * error:
            return "у границы"
        if value < border:
            return name
    return above
