"""Results of any number of experiments beside each other: a table, and the plane of reward and KL."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.check_words import WORDS
from warp_nb.notebook.numbers import format_number
from warp_nb.notebook.palette import styles
from warp_nb.notebook.plots import dressed, error_arms, panels
from warp_nb.notebook.tables import filled_table
from warp_nb.studies.run_table import MEASURED, run_table

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

FIXED = {"file", "task", "scored_by", "n_seeds", "failed"}
"""Columns of a table that are neither settings nor measures."""


@dataclass(frozen=True, repr=False)
class ComparedRuns:
    """Result files that were read; a notebook shows the table.

    Args:
        table: one row per file (see `run_table`).
    """

    table: pd.DataFrame

    @property
    def names(self) -> list[str]:
        """Labels that tell the rows apart: the differing settings, and the file where they are equal."""
        measures = {f"{name}{end}" for name in MEASURED for end in ("", "_low", "_high")}
        varied = [name for name in self.table if name not in FIXED | measures]
        rows = self.table.to_dict("records")
        said = ["; ".join(f"{name} = {setting_text(row[name])}" for name in varied) for row in rows]
        return [
            name if name and said.count(name) == 1 else f"{name} ({row['file']})".strip()
            for name, row in zip(said, rows, strict=True)
        ]

    def __repr__(self) -> str:
        return f"ComparedRuns({self.names})"

    def _repr_html_(self) -> str:
        rows = [
            {
                "name": name,
                "row": row,
                "failed": [WORDS[one].title for one in row["failed"].split(", ") if one in WORDS],
            }
            | {measure: interval_of(row, measure) for measure in MEASURED}
            for name, row in zip(self.names, self.table.to_dict("records"), strict=True)
        ]
        tasks = self.table["task"].nunique() > 1
        return str(filled_table("compared-runs", rows, tasks=tasks).data)

    def plane(self) -> Figure:
        """Plot reward against KL(policy || sft), a point with intervals for every file, the legend below.

        Raises:
            ValueError: the files are of several tasks or rewards, whose scales differ.
        """
        scales = sorted({f"{row['task']} ({row['scored_by']})" for row in self.table.to_dict("records")})
        if len(scales) > 1:
            raise ValueError(
                f"rewards of {', '.join(scales)} have no common scale; pass the files of one task and reward to compare"
            )
        lines = -(-len(self.table) // 2)
        with panels(1, 3.8 + 0.2 * lines) as (figure, axes):
            for name, row, (color, _, marker) in zip(self.names, self.table.to_dict("records"), styles(), strict=False):
                kl, reward = interval_of(row, "kl"), interval_of(row, "reward")
                settings: dict[str, Any] = {"fmt": marker, "color": color, "capsize": 3, "label": name}
                axes[0].errorbar(
                    [kl.value], [reward.value], xerr=error_arms([kl]), yerr=error_arms([reward]), **settings
                )
            dressed(axes[0], xlabel="KL(warp‖sft), нат на последовательность", ylabel="награда на отложенных промптах")
            figure.legend(loc="outside lower center", ncols=2, fontsize="small")
        return figure


def compare(files: Sequence[str | Path]) -> ComparedRuns:
    """Read result files of experiments, to be compared in one table and one plane of reward against KL.

    Example:
        runs = notebook.compare(["reports/small/exp2.result.json", "reports/small/exp4.result.json"])
        runs            # the table in a notebook; `runs.table` is a DataFrame
        runs.plane()

    Raises:
        ValueError: there is none, or one is missing, damaged or of something else than an experiment.
    """
    return ComparedRuns(run_table(files))


def setting_text(value: Any) -> str:
    """Return a setting's value as Russian text."""
    return format_number(value) if isinstance(value, int | float) and not isinstance(value, bool) else str(value)


def interval_of(row: dict[str, Any], measure: str) -> Estimate:
    """Return a measure of a row with its interval."""
    return Estimate(row[measure], row[f"{measure}_low"], row[f"{measure}_high"])
