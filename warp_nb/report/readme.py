"""The figures of README.md, made from the experiments' result files by `templates/*.md.j2`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from warp_nb.report.catalogue import EXPERIMENTS, Experiment, declared, results_of, rows_of, sections_of
from warp_nb.report.document import main_facts
from warp_nb.report.gathered import Findings
from warp_nb.report.page import rendered
from warp_nb.studies.equal_kl import OWN_RUNS, REINFORCE, RLOO, SINGLE, WARP
from warp_nb.studies.original import ROWS
from warp_nb.studies.result_files import MISSING

FRONT_TITLES = {
    WARP: "WARP",
    OWN_RUNS: "mean of WARP's own runs, not merged",
    SINGLE: "M = 1",
    REINFORCE: "REINFORCE",
    RLOO: "WARP with the baseline RLOO, K = 4",
}
"""Titles of the fronts of experiment 5."""
MARKS = re.compile(r"(<!-- (\w+) (\w+) -->\n).*?(<!-- /\2 -->)", re.DOTALL)
"""The markers of a table: its kind, which is the name of its template, and its task."""
HIGHLIGHTS = "highlights"
"""The kind that tells of all tasks; the task of its markers is of no effect."""


def filled_readme(readme: str, reports: Path, experiments: Sequence[Experiment] = EXPERIMENTS) -> str:
    """Return the README with all that is marked rendered again from the result files of its task in `reports`."""

    def table(found: re.Match[str]) -> str:
        before, kind, task, after = found.groups()
        results = results_of(task, reports, experiments)
        rows = [(one, results[one.name]) for one in rows_of(experiments)]
        result = next(
            (results[one.name] for one in sections_of(experiments) if one.section == kind), {"status": MISSING}
        )
        facts = {"rows": rows, "result": result, "original": ROWS, "declared": declared(rows), "fronts": FRONT_TITLES}
        if kind == HIGHLIGHTS:
            facts["main"] = main_facts(Findings.read(reports, experiments))
        return before + rendered(f"{kind}.md.j2", task=task, **facts) + after

    return MARKS.sub(table, readme)
