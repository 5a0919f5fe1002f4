"""Experiment notebooks -> reports: executed notebooks, HTML, result files, index, README tables.

    python -m warp_nb.report                         # experiments 1 to 4 on smollm -> reports/
    python -m warp_nb.report --task small            # on another task -> reports/small/
    python -m warp_nb.report exp4 --task small -p T 50
    python -m warp_nb.report exp5 --task small       # the experiment that the original asks for
    python -m warp_nb.report diagnosis               # from the table of python -m warp_nb diagnosis
    python -m warp_nb.report --task small --render   # pages again from what was run
    python -m warp_nb.report --task small --readme   # the table in README.md

An interrupted command goes on where it was when it is given again: finished runs (i, m) lie in
`.runs/` beside the reports until their experiment has its result. `result.json` of all of them is deleted first and
written last.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from warp_nb.report.execution import run
from warp_nb.report.footer import footer
from warp_nb.report.guide import NOTEBOOKS, steps
from warp_nb.report.index_page import PANELS, draw, index
from warp_nb.report.page import notebook_html
from warp_nb.report.readme import filled
from warp_nb.report.results import (
    COMPARISON,
    DEFAULT_TASK,
    DIAGNOSIS,
    EXPERIMENTS,
    FAILED,
    OK,
    ROOT,
    read_result,
    reports_of,
    result_path,
)
from warp_nb.runs.weights import write_bytes, write_json, write_text

MERGED = (
    "status",
    "config",
    "summary",
    "advantage",
    "checks",
    "conclusion",
    "seconds",
    "peak_rss_mb",
    "machine",
    "run",
)
"""What the merged result.json takes of an experiment's own; only experiment 5 has an advantage."""


def render(name: str, folder: Path) -> None:
    """<name>.ipynb and its result file -> <name>.html; nothing where the notebook never came to be."""
    import nbformat

    path = folder / f"{name}.ipynb"
    if path.exists():
        notebook = nbformat.read(path, as_version=4)
        write_text(
            folder / f"{name}.html", notebook_html(notebook, name, footer(read_result(result_path(folder, name))))
        )


def summarise(task: str, out: Path) -> dict[str, Any]:
    """Merge a task's experiments, and the diagnosis of `out`, into curves.png, index.html and result.json.

    The page leads to the notebooks that lie beside `out`, if any do.
    """
    folder = reports_of(task, out)
    results = {name: read_result(result_path(folder, name)) for name in EXPERIMENTS}
    curves = {column: draw(results, [column]) for column in PANELS}
    write_bytes(folder / "curves.png", draw(results, PANELS))
    comparison, diagnosis = read_result(result_path(folder, COMPARISON)), read_result(result_path(out, DIAGNOSIS))
    way = "" if folder == out else "../"
    notebooks = steps(out.parent / NOTEBOOKS.name)
    write_text(folder / "index.html", index(task, results, curves, comparison, diagnosis, notebooks, way))
    merged = {
        "status": OK if all(result["status"] == OK for result in results.values()) else FAILED,
        "task": task,
        "experiments": {name: _short(result) for name, result in results.items()},
        COMPARISON: _short(comparison),
        DIAGNOSIS: diagnosis,
    }
    write_json(folder / "result.json", merged)
    return merged


def _short(result: dict[str, Any]) -> dict[str, Any]:
    """Without the long tables; they stay in the experiment's own file."""
    return {key: result[key] for key in (*MERGED, "error") if key in result}


def number_or_text(text: str) -> Any:
    """A value of `-p` as the papermill command line reads it."""
    from papermill.cli import _resolve_type

    return _resolve_type(text)


def arguments(argv: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m warp_nb.report", description="Run experiments, write reports.")
    parser.add_argument(
        "experiments", nargs="*", metavar="NAME", help="exp1 to exp5, diagnosis; exp1 to exp4 by default"
    )
    parser.add_argument("--task", default=DEFAULT_TASK, help="smollm, small or gpt2")
    parser.add_argument("--out", type=Path, default=ROOT / "reports", help="folder of the reports")
    parser.add_argument("--notebooks", type=Path, default=NOTEBOOKS, help="folder of the notebooks")
    parser.add_argument("--seeds", type=int, default=0, help="trainings an experiment; 3 for the task small, else 1")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="most a cell may take; no limit by default")
    parser.add_argument("--render", action="store_true", help="run nothing, make the pages again")
    parser.add_argument("--readme", action="store_true", help="run nothing, fill the tables of README.md")
    chosen = parser.parse_args(argv)
    known = (*EXPERIMENTS, COMPARISON, DIAGNOSIS)
    unknown = set(chosen.experiments) - set(known)
    if unknown:
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}; choose from {', '.join(known)}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", chosen.task):
        parser.error(f"--task names a folder of the reports: letters, digits, dots, dashes; got {chosen.task!r}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run, render, merge; exit code 1 when a requested experiment did not end with a result."""
    chosen = arguments(argv)
    if chosen.readme:
        readme = ROOT / "README.md"
        write_text(readme, filled(readme.read_text(encoding="utf-8"), chosen.out))
        return 0
    out = chosen.out.resolve()
    (reports_of(chosen.task, out) / "result.json").unlink(missing_ok=True)
    found = {name: make(name, chosen, out) for name in chosen.experiments or EXPERIMENTS}
    summarise(chosen.task, out)
    index_file = reports_of(chosen.task, out) / "index.html"
    print(index_file.relative_to(ROOT) if index_file.is_relative_to(ROOT) else index_file)
    bad = {name: result for name, result in found.items() if result["status"] != OK}
    for name, result in bad.items():
        print(f"{name} has no result: {result.get('error', 'never run')}", file=sys.stderr)
    return 1 if bad else 0


def make(name: str, chosen: argparse.Namespace, out: Path) -> dict[str, Any]:
    """Run a notebook unless pages alone are wanted, render it; what it left as its result."""
    folder, words, parameters = out, ["python", "-m", "warp_nb.report", name], dict[str, Any]()
    if name != DIAGNOSIS:
        folder = reports_of(chosen.task, out)
        seeds = chosen.seeds or (3 if chosen.task == "small" else 1)
        words += ["--task", chosen.task, "--seeds", str(seeds)]
        parameters = {"task": chosen.task, "n_seeds": seeds}
    words += [word for pair in chosen.parameters for word in ("-p", *pair)]
    parameters |= {k: number_or_text(v) for k, v in chosen.parameters}
    folder.mkdir(parents=True, exist_ok=True)
    if not chosen.render:
        print(f"{name}: running", *(f"{key} = {value}" for key, value in parameters.items()), flush=True)
        status = run(name, chosen.notebooks, folder, parameters, shlex.join(words), chosen.timeout)
        print(f"{name}: {status}", flush=True)
    render(name, folder)
    return read_result(result_path(folder, name))


if __name__ == "__main__":
    raise SystemExit(main())
