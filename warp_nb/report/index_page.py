"""The starting page of a task's reports: the document, the pages of the experiments, the notebooks in order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from warp_nb.notebook.story import outcome_words
from warp_nb.report.catalogue import Experiment, Result, rows_of, sections_of
from warp_nb.report.gathered import ComparedResult, TrainedResult, say
from warp_nb.report.guide import Step
from warp_nb.report.page import CONTENT_POLICY, rendered, stylesheet
from warp_nb.studies.result_files import FAILED, OK


def index(
    task: str,
    experiments: Sequence[Experiment],
    results: dict[str, Result],
    *,
    steps: Sequence[Step] = (),
    notebooks: str = "",
    shared: str = "",
) -> str:
    """Render the starting page of a task.

    Args:
        task: name of the task.
        experiments: the experiments on the page, in this order.
        results: name of an experiment -> its result file.
        steps: the notebooks to link to; `notebooks` is their folder, relative to the page.
        shared: folder of the document and of reports that all tasks share, relative to the page.
    """
    rows = [(one, results[one.name]) for one in rows_of(experiments)]
    return rendered(
        "index.html.j2",
        say=say,
        task=task,
        entries=[
            entry(one, task, results[one.name], shared) for one in (*rows_of(experiments), *sections_of(experiments))
        ],
        shared=shared,
        steps=steps,
        notebooks=notebooks,
        together=together(rows),
        content_policy=CONTENT_POLICY,
        stylesheet=stylesheet(),
    )


def entry(one: Experiment, task: str, result: Result, shared: str) -> dict[str, Any]:
    """Return what the page says of an experiment: «Итог», how policies compare, or the first of its conclusion."""
    facts: dict[str, Any] = {
        "name": f"{shared}{one.name}" if one.once else one.name,
        "title": one.title if one.section else f"Эксперимент {one.title}: {one.change}",
        "command": f"warp-nb report {one.name}" + ("" if one.once else f" --task {task}"),
        "result": result,
        "outcome": "",
        "compared": None,
        "conclusion": "",
    }
    if result["status"] != OK:
        return facts
    if not one.section:
        return facts | {"outcome": outcome_words(TrainedResult(one.title, task, result).result)}
    if one.section == "comparison":
        return facts | {"compared": ComparedResult(one.name, task, result)}
    return facts | {"conclusion": next(iter(result.get("conclusion", [])), "")}


def together(rows: Sequence[tuple[Experiment, Result]]) -> Result:
    """Merge results for the footer: the last finished experiment, with commands, seconds, runs and memory of all."""
    done = [(one.name, found) for one, found in rows if found["status"] == OK]
    if not done:
        return {"status": FAILED, "error": "ни один эксперимент не закончен"}
    commands = [found["run"]["command"].replace(f" {name} ", " ", 1) for name, found in done]
    seconds = sum(found["run"]["seconds"] for _, found in done)
    last = done[-1][1]
    return last | {
        "run": last["run"] | {"command": "; ".join(dict.fromkeys(commands)), "seconds": seconds},
        "runs": [run for _, found in done for run in found["runs"]],
        "peak_rss_mb": max(found["peak_rss_mb"] for _, found in done),
    }
