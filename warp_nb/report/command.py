"""Notebooks of experiments -> reports: executed notebooks, HTML, result files, one document, README tables.

    warp-nb report                         # the experiments of the original report, on the task that suits the machine:
                                           # with a GPU smollm -> reports/, without one small, trained once
    warp-nb report --task smollm           # on a task of your choice -> reports/
    warp-nb report --task small            # three trainings an experiment -> reports/small/
    warp-nb report exp4 --task small -p T 50
    warp-nb report exp5 --task small       # the experiment that the original asks for
    warp-nb report diagnosis               # from the package's table; -p table_file FILE: that of `warp-nb diagnosis`
    warp-nb report --task small --render   # the pages again, from what was run
    warp-nb report --pdf                   # report.html printed to report.pdf, by Chromium
    warp-nb report --readme                # the figures and tables of README.md

`python -m warp_nb.report` is the same. All arguments are checked before anything is replaced. An interrupted command
resumes when it is repeated: finished runs (i, m) stay in `.runs/` beside the reports until their experiment has a
result. `result.json`, which merges the results, is deleted first and written last. `report.html`, the document of all
tasks in the folder, is written at the end of every command that runs or renders.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import nbformat

from warp_nb.files import loading, write_bytes, write_json, write_text
from warp_nb.notebook.prose import visible
from warp_nb.paths import expanded
from warp_nb.report.catalogue import EXPERIMENTS, Experiment, Result, results_of
from warp_nb.report.document import document, main_picture
from warp_nb.report.execution import run
from warp_nb.report.gathered import Findings
from warp_nb.report.guide import steps
from warp_nb.report.index_page import index
from warp_nb.report.introduction import introduction
from warp_nb.report.page import footer, notebook_html
from warp_nb.report.printing import print_pdf
from warp_nb.report.readme import filled_readme
from warp_nb.report.request import REPORTS, check_options, mode_of, notebook_parameters, task_of
from warp_nb.studies.result_files import FAILED, OK, read_result_of, reports_of, result_path
from warp_nb.tasks.prepared import LOADERS

LONG = ("history", "geometry", "runs", "merges", "arms", "samples", "gate")
"""Tables that are only in the result file of an experiment."""


def summarise(task: str, out: Path, experiments: Sequence[Experiment] = EXPERIMENTS) -> dict[str, Any]:
    """Merge the results of a task and those shared by all tasks into index.html and result.json.

    The page links to the notebooks beside `out`, if there are any.
    """
    folder = reports_of(task, out)
    reported = [one for one in experiments if one.reported]
    results = results_of(task, out, reported)
    way = "" if folder == out else "../"
    listed = steps(out.parent / "notebooks", experiments)
    page = index(task, reported, results, steps=listed, notebooks=f"{way}../notebooks/", shared=way)
    write_text(folder / "index.html", page)
    complete = all(results[one.name]["status"] == OK for one in reported if one.by_default)
    merged = {
        "status": OK if complete else FAILED,
        "task": task,
        "experiments": {
            name: {key: value for key, value in result.items() if key not in LONG} for name, result in results.items()
        },
    }
    write_json(folder / "result.json", merged)
    return merged


def write_document(out: Path, experiments: Sequence[Experiment] = EXPERIMENTS) -> None:
    """Write report.html, the document of all tasks that have reports in `out`, and its main figure, main.png."""
    found = Findings.read(out, experiments)
    if picture := main_picture(found):
        write_bytes(out / "main.png", picture)
    write_text(out / "report.html", document(found))


def arguments(argv: Sequence[str] | None, experiments: Sequence[Experiment] = EXPERIMENTS) -> argparse.Namespace:
    """Parse and check the command line; `wanted` has the parameters of the notebooks that are to be run."""
    reported = [one.name for one in experiments if one.reported]
    default = [one.name for one in experiments if one.by_default]
    parser = argparse.ArgumentParser(prog="warp-nb report", description="Run experiments and write their reports.")
    parser.add_argument(
        "experiments", nargs="*", metavar="NAME", help=f"{', '.join(reported)}; by default {', '.join(default)}"
    )
    parser.add_argument(
        "--task", default="auto", help="smollm, small, gpt2, or auto: smollm with a GPU, else small, trained once"
    )
    parser.add_argument("--out", type=expanded, default=REPORTS, help="folder of the reports; by default reports")
    parser.add_argument(
        "--notebooks", type=expanded, default=notebooks_folder(), help="folder of the notebooks; by default notebooks"
    )
    parser.add_argument("--seeds", type=int, default=0, help="trainings an experiment; 3 for --task small, else 1")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="most a cell may take; no limit by default")
    instead = parser.add_mutually_exclusive_group()
    instead.add_argument("--render", action="store_true", help="run nothing, make the pages again")
    instead.add_argument("--readme", action="store_true", help="run nothing, fill the figures of README.md")
    instead.add_argument("--pdf", action="store_true", help="run nothing, print report.html to report.pdf")
    chosen = parser.parse_args(argv)
    unknown = set(chosen.experiments) - set(reported)
    if unknown:
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}; choose from {', '.join(reported)}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", chosen.task):
        parser.error(f"--task names a folder of the reports: letters, digits, dots, dashes; got {chosen.task!r}")
    chosen.named = chosen.experiments
    chosen.experiments = [one for one in experiments if one.name in (chosen.experiments or default)]
    try:
        chosen.task, chosen.why = task_of(chosen)
        check_options(chosen)
        chosen.wanted = {} if mode_of(chosen) else notebook_parameters(chosen)
    except ValueError as wrong:
        parser.error(str(wrong))
    return chosen


def notebooks_folder() -> Path:
    """Return the folder `notebooks` in the current one, else the notebooks that the package ships."""
    here = Path("notebooks")
    return here if here.is_dir() else Path(str(files("warp_nb"))) / "notebooks"


def main(argv: Sequence[str] | None = None, experiments: Sequence[Experiment] = EXPERIMENTS) -> int:
    """Run, render and merge; return exit code 1 if a requested experiment did not end with a result."""
    chosen = arguments(argv, experiments)
    if chosen.readme:
        return fill_readme(Path("README.md"), chosen.out, experiments)
    if chosen.pdf:
        return write_pdf(chosen.out)
    if chosen.wanted and chosen.why:
        print(*introduction(chosen), sep="\n", flush=True)
    out = chosen.out.resolve()
    tasks = indexed(chosen, out)
    for task in tasks:
        (reports_of(task, out) / "result.json").unlink(missing_ok=True)
    found = {one.name: make_report(one, chosen, out) for one in chosen.experiments}
    for task in tasks:
        summarise(task, out, experiments)
    write_document(out, experiments)
    print(reports_of(chosen.task, chosen.out) / "index.html", chosen.out / "report.html", sep="\n")
    bad = {name: result for name, result in found.items() if result["status"] != OK}
    for name, result in bad.items():
        print(visible(f"{name} has no result: {result.get('error', 'never run')}"), file=sys.stderr)
    return 1 if bad else 0


def indexed(chosen: argparse.Namespace, out: Path) -> list[str]:
    """List the tasks whose index changes: the chosen one; with a report of all tasks also those that have an index."""
    shared = any(one.once for one in chosen.experiments)
    others = [task for task in LOADERS if shared and (reports_of(task, out) / "index.html").exists()]
    return list(dict.fromkeys([chosen.task, *others]))


def fill_readme(readme: Path, out: Path, experiments: Sequence[Experiment]) -> int:
    """Fill the figures of a README from the reports in `out`; return exit code 1 if there is no README."""
    if not readme.is_file():
        print("--readme fills README.md of the current folder, and there is none", file=sys.stderr)
        return 1
    write_text(readme, filled_readme(readme.read_text(encoding="utf-8"), out, experiments))
    return 0


def write_pdf(out: Path) -> int:
    """Print the document in `out`; return exit code 1, with the remedy, if that cannot be done."""
    try:
        print_pdf(out / "report.html", out / "report.pdf")
    except ValueError as wrong:
        print(wrong, file=sys.stderr)
        return 1
    print(out / "report.pdf")
    return 0


def make_report(experiment: Experiment, chosen: argparse.Namespace, out: Path) -> Result:
    """Run a notebook, unless only pages are wanted, render it, and return its result."""
    name, place, words = experiment.name, out, ["warp-nb", "report", experiment.name]
    parameters = chosen.wanted.get(name, {})
    if not experiment.once:
        place = reports_of(chosen.task, out)
        words += ["--task", chosen.task, "--seeds", str(parameters.get("n_seeds", 0))]
    words += [word for pair in chosen.parameters for word in ("-p", *pair)]
    if not chosen.render:
        print(f"{name}: running", *(f"{key} = {value}" for key, value in parameters.items()), flush=True)
        status = run(name, chosen.notebooks, place, parameters, command=shlex.join(words), timeout=chosen.timeout)
        print(f"{name}: {status}", flush=True)
    result = read_result_of(experiment.section, result_path(place, name))
    notebook = place / f"{name}.ipynb"
    if notebook.exists():
        with loading(notebook, "notebook"):
            executed = nbformat.read(notebook, as_version=4)
        page = notebook_html(executed, name, footer(result))
        write_text(place / f"{name}.html", page)
    return result
