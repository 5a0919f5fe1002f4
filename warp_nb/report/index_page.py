"""The index page of a task's reports: our rows and the original's, curves, sections, notebooks."""

from __future__ import annotations

import base64
from collections.abc import Sequence

import pandas as pd
from matplotlib.figure import Figure

from warp_nb.notebook.check_words import WORDS
from warp_nb.notebook.equal_kl_words import FRONT_WORDS
from warp_nb.notebook.plots import compare_experiments, png
from warp_nb.report.catalogue import Experiment, Result, declared, rows_of, sections_of
from warp_nb.report.guide import Step
from warp_nb.report.page import CONTENT_POLICY, rendered, stylesheet
from warp_nb.studies.original import ASSUMED_TASK
from warp_nb.studies.result_files import FAILED, OK

PANELS = ("objective", "reward", "kl")


def index(
    task: str,
    experiments: Sequence[Experiment],
    results: dict[str, Result],
    curves: dict[str, bytes],
    *,
    steps: Sequence[Step] = (),
    notebooks: str = "",
    shared: str = "",
) -> str:
    """Render the page of all experiments of a task.

    Args:
        task: name of the task.
        experiments: the experiments on the page, in this order.
        results: name of an experiment -> its result file.
        curves: column of the history -> PNG.
        steps: the notebooks to link to; `notebooks` is their folder, relative to the page.
        shared: folder of reports that all tasks share, relative to the page.
    """
    rows = [(one, results[one.name]) for one in rows_of(experiments)]
    return rendered(
        "index.html.j2",
        task=task,
        assumed=ASSUMED_TASK,
        words=WORDS,
        fronts=FRONT_WORDS,
        rows=rows,
        orders=kl_orders(rows),
        declared=declared(rows),
        curves={column: base64.b64encode(picture).decode() for column, picture in curves.items()},
        sections=[(one, results[one.name]) for one in sections_of(experiments)],
        shared=shared,
        steps=steps,
        notebooks=notebooks,
        together=together(rows),
        content_policy=CONTENT_POLICY,
        stylesheet=stylesheet(),
    )


def kl_orders(rows: Sequence[tuple[Experiment, Result]]) -> tuple[list[str], list[str]] | None:
    """Sort the experiments by KL(sft‖warp), ours and the original's; None if one lacks a result or there is one."""
    compared = [(one.title, found, one.original.kl_reference_policy) for one, found in rows if one.original]
    if len(compared) < 2 or any(found["status"] != OK for _, found, _ in compared):
        return None
    ours = sorted(compared, key=lambda row: row[1]["summary"]["kl_reference_policy"]["value"])
    theirs = sorted(compared, key=lambda row: row[2])
    return [title for title, _, _ in ours], [title for title, _, _ in theirs]


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


def draw_curves(experiments: Sequence[Experiment], results: dict[str, Result], columns: Sequence[str]) -> bytes:
    """Draw the curves of all experiments as a PNG, one panel per column of the history."""
    done = {
        f"эксперимент {one.title}": pd.DataFrame(results[one.name]["history"])
        for one in rows_of(experiments)
        if results[one.name]["status"] == OK
    }
    figure = Figure(figsize=(6.4 * len(columns), 4), layout="constrained")
    for ax, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        if done:
            compare_experiments(ax, done, column)
        else:
            ax.text(0.5, 0.5, "Законченных прогонов нет", ha="center", transform=ax.transAxes)
            ax.set_axis_off()
    return png(figure, dpi=110)
