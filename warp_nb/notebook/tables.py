"""Tables in Russian by `templates/tables.toml`; every cell is escaped, so text of a model cannot inject."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd
from IPython.display import HTML

from warp_nb.measure.checks import Check
from warp_nb.measure.evaluation import Evaluation
from warp_nb.notebook.check_words import WORDS, measured
from warp_nb.notebook.prose import filled, words
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.studies.original import ROWS, match

TABLES = words("tables")
MEASURES: dict[str, str] = TABLES["measures"]
"""The nine measures of an evaluation in words."""
CLASSES = ("warp-nb", "tex2jax_ignore", "mathjax_ignore")
"""Of a table: our style, and no formulas in the text of a model."""


def results_table(result: ExperimentResult) -> HTML:
    """The nine measures with their intervals, beside the original report's figures if it ran these settings."""
    number = match(result.config)
    original = ROWS[number].measures() if number else {}
    rows = [{"measure": name, "estimate": result.summary[name]} for name in MEASURES]
    return filled_table("results", rows, words=MEASURES, original=original)


def geometry_table(result: ExperimentResult) -> HTML:
    """Angle and norms of the runs' task vectors, a row a pair and block."""
    return filled_table("geometry", result.geometry.to_dict("records"), several=result.config.n_seeds > 1)


def samples_table(evaluation: Evaluation, count: int = 5, name: str = "WARP") -> HTML:
    """Completions of the reference and of the policy, called `name`, after the same held-out beginnings."""
    return filled_table("samples", evaluation.samples[:count], name=name)


def checks_table(checks: Sequence[Check]) -> HTML:
    """«Проверки»: what failed stands first, with what a failure means."""
    ordered = sorted(checks, key=lambda check: not check.failed)
    rows = [{"check": check, "words": WORDS[check.name], "measured": measured(check)} for check in ordered]
    return filled_table("checks", rows)


def filled_table(kind: str, rows: Iterable[Mapping[str, Any]], /, **facts: Any) -> HTML:
    """A table of `templates/tables.toml`, a row for each mapping; `facts` are those of all rows and of the headings."""
    columns = {filled(heading, facts): cell for heading, cell in TABLES[kind]["columns"].items()}
    columns.pop("", None)
    cells = [{heading: filled(cell, {**facts, **row}) for heading, cell in columns.items()} for row in rows]
    return table(cells, TABLES[kind].get("empty", ""))


def table(rows: Sequence[Mapping[str, Any]], empty: str = "") -> HTML:
    """Rows as an escaped HTML table that MathJax leaves alone; `empty` stands for no rows."""
    frame = pd.DataFrame(rows or [{"": empty}])
    with pd.option_context("display.max_colwidth", None):
        return HTML(frame.to_html(escape=True, index=False, border=0, classes=CLASSES))
