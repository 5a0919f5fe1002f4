"""Functions that the cells of an experiment's notebook call after its run: words, figures, limits, file."""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from IPython.display import Markdown
from matplotlib.figure import Figure

from warp_nb.files import write_json
from warp_nb.measure.checks import broken_instrument
from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.check_words import WORDS
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.findings import KL_STILL, KL_TINY, believable_change
from warp_nb.notebook.plots import BLOCK_INCHES, geometry, panels, summary_forest, training_curves
from warp_nb.notebook.prose import paragraphs
from warp_nb.notebook.story import curves_reading, outcome_words
from warp_nb.paths import expanded
from warp_nb.studies.comparison import Arm
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.studies.original import ROWS, match

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


def rewards(result: ExperimentResult) -> Figure:
    """Plot held-out rewards before and after, and their difference, with intervals."""
    with panels(1, 2.6) as (figure, (ax,)):
        summary_forest(ax, result.summary)
    return figure


def block_angles(result: ExperimentResult) -> Figure:
    """Plot the angles between the runs' task vectors by block; the figure grows with the number of blocks."""
    lines = 1 + result.geometry["block"].nunique() if len(result.geometry) else 0  # the blocks and all weights
    height = max(3.0, 0.5 + BLOCK_INCHES * lines)
    with panels(1, height) as (figure, (ax,)):
        geometry(ax, result.geometry)
        ax.tick_params(axis="y", labelsize="medium" if height == 3.0 else "small")
    return figure


def outcome(result: ExperimentResult) -> Markdown:
    """Return «Итог» in two sentences as Markdown."""
    return Markdown(outcome_words(result))


def reading(result: ExperimentResult) -> Markdown:
    """Return what the curves show as Markdown."""
    return Markdown(curves_reading(result))


def conclusion(result: Any) -> Markdown:
    """Return the paragraphs of `conclude` as Markdown."""
    return Markdown("\n\n".join(conclude(result)))


@singledispatch
def record(result: Any) -> dict[str, Any]:
    """Return the contents of a result file without its conclusion, plain JSON values."""
    return result.to_json()


@record.register
def record_experiment(result: ExperimentResult) -> dict[str, Any]:
    """Return the result of an experiment, its outcome and the reading of its curves."""
    return result.to_json() | {"outcome": outcome_words(result), "reading": curves_reading(result)}


def save(result: Any, path: str) -> None:
    """Write a result and its conclusion as JSON, atomically; an empty path writes nothing."""
    if path:
        write_json(expanded(path), record(result) | {"conclusion": conclude(result)})


def limits(result: ExperimentResult) -> Markdown:
    """Write what the conclusion does not cover, from the parameters and the task."""
    kl, middle = result.summary["kl_policy_reference"].value, float(result.history["kl"].median())
    original = ROWS.get(match(result.config) or 0)
    facts = {"config": result.config, "about": result.about, "original": original, "kl": kl, "kl_on_curves": middle}
    points = paragraphs("limits", **facts)
    return Markdown("\n".join(points))


def reproducible(result: ExperimentResult) -> Markdown:
    """Say what must be equal on any machine: structure, and verdicts far from their borders.

    Within MARGIN standard errors of a border nothing is said of its side. Only checks of the measurement are named,
    because those of the text depend on the samples.
    """
    kl, change = result.summary["kl_policy_reference"], believable_change(result)
    points = paragraphs(
        "reproducible",
        steps=len(result.history),
        runs=len(result.runs),
        blocks=result.geometry["block"].nunique() if len(result.geometry) else 0,
        broken=[WORDS[check.name].title for check in broken_instrument(result.checks)],
        shift=against(kl.value, standard_error(kl), {"still": KL_STILL, "near": KL_TINY}, "moved"),
        reward=against(change.value, standard_error(change), {"down": 0.0}, "up"),
        KL_STILL=KL_STILL,
        KL_TINY=KL_TINY,
    )
    return Markdown("\n".join(points))


def standard_error(estimate: Estimate) -> float:
    """Return the standard error that a 95 % interval implies, about half its half-width."""
    return (estimate.high - estimate.low) / 4


def against(value: float, error: float, borders: dict[str, float], above: str) -> str:
    """Return the name of the range of `value`; empty within MARGIN standard errors of a border."""
    for name, border in borders.items():
        if abs(value - border) <= MARGIN * error:
            return ""
        if value < border:
            return name
    return above
