"""Figures of the document and of README.md, drawn from result files, as PNG."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import pandas as pd

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.palette import styles
from warp_nb.notebook.plots import dressed, error_arms, panels, png, training_curves

DOCUMENT_WIDTH = 5.2
"""Inches: the letters are still legible where the figure is as wide as a phone."""
SMALLEST_KL = 1e-8
"""Nats: below it the logarithmic axis of the main figure is linear, so that a KL of 0 has a place."""


class PolicyPoint(NamedTuple):
    """A policy in the main figure: its label, KL(warp‖sft) in nats, gain over SFT, whether its text is broken."""

    name: str
    kl: Estimate
    gain: Estimate
    broken: bool = False


def curves_png(history: pd.DataFrame) -> bytes:
    """Draw r_β, the reward and the KL to the anchor over the steps, one curve per run."""
    with panels(3, 6.6, width=DOCUMENT_WIDTH, sharex=False) as (figure, axes):
        for ax, column in zip(axes, ("objective", "reward", "kl"), strict=True):
            training_curves(ax, history, column)
        return png(figure)


def main_png(series: Mapping[str, Sequence[PolicyPoint]], original: Sequence[tuple[str, float, float]]) -> bytes:
    """Draw the gain over KL(warp‖sft) of every experiment, a series per task, and the original's rows in grey.

    Args:
        series: task -> its experiments. A hollow marker is a broken text.
        original: the number of an experiment, its KL(warp‖sft) and its change of the reward, on another scale.
    """
    with panels(1, 4.0, width=DOCUMENT_WIDTH) as (figure, (ax,)):
        for (task, points), (color, _, marker) in zip(series.items(), styles(), strict=False):
            for place, point in enumerate(points):
                arms = error_arms([point.gain])
                face = "white" if point.broken else color
                ax.errorbar(point.kl.value, point.gain.value, yerr=arms, fmt=marker, color=color, markerfacecolor=face,
                            capsize=3, markersize=8, label="" if place else task)  # fmt: skip
                ax.annotate(point.name, (point.kl.value, point.gain.value), xytext=(8, 4), textcoords="offset points")
        if original:
            _, kls, changes = zip(*original, strict=True)
            ax.plot(kls, changes, "x", color="0.45", markersize=7, label="исходный отчёт · original")
            for name, kl, change in original:
                ax.annotate(name, (kl, change), xytext=(0, -13), textcoords="offset points", color="0.45", ha="center")
        ax.set_xscale("symlog", linthresh=SMALLEST_KL)
        ax.axhline(0, color="0.6", linewidth=0.8, zorder=0)
        dressed(
            ax,
            xlabel="KL(warp‖sft), нат · nats a sequence",
            ylabel="прирост награды · reward gain",
            xticks=[0, *(10.0**power for power in range(-6, 3, 2))],
        )
        figure.legend(loc="outside upper center", ncols=3, frameon=False)
        return png(figure)
