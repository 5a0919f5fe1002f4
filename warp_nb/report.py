"""Experiment notebooks -> reports: executed notebooks, HTML, result files, index, README tables.

    python -m warp_nb.report                         # experiments 1 to 4 on smollm -> reports/
    python -m warp_nb.report --task small            # on another task -> reports/small/
    python -m warp_nb.report exp4 --task small -p T 50
    python -m warp_nb.report --task small --render   # pages again from what was run
    python -m warp_nb.report --task small --readme   # the table in README.md
    python -m warp_nb.report --scrub                 # notebooks/ without progress bars and paths of this machine

An interrupted command goes on where it was when it is given again: finished runs (i, m) lie in
`.runs/` beside the reports until their experiment has its result. `result.json` of all of them is deleted first and
written last.
"""

from __future__ import annotations

import argparse
import re
import shlex
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from warp_nb.execution import run
from warp_nb.index_page import PANELS, draw, footer, index
from warp_nb.page import notebook_html
from warp_nb.readme import filled
from warp_nb.results import DEFAULT_TASK, EXPERIMENTS, FAILED, OK, ROOT, read_result, reports_of, result_path
from warp_nb.scrubbing import scrubbed
from warp_nb.weights import write_bytes, write_json, write_text

MERGED = ("status", "config", "summary", "checks", "conclusion", "seconds", "peak_rss_mb", "machine", "run")


def render(name: str, folder: Path) -> None:
    """<name>.ipynb and its result file -> <name>.html; nothing where the notebook never came to be."""
    import nbformat

    path = folder / f"{name}.ipynb"
    if path.exists():
        notebook = nbformat.read(path, as_version=4)
        write_text(
            folder / f"{name}.html", notebook_html(notebook, name, footer(read_result(result_path(folder, name))))
        )


def summarise(task: str, folder: Path) -> dict[str, Any]:
    """Merge the experiments of `folder` into curves.png, index.html and, last, result.json."""
    results = {name: read_result(result_path(folder, name)) for name in EXPERIMENTS}
    curves = {column: draw(results, [column]) for column in PANELS}
    write_bytes(folder / "curves.png", draw(results, PANELS))
    write_text(folder / "index.html", index(task, results, curves))
    merged = {
        "status": OK if all(result["status"] == OK for result in results.values()) else FAILED,
        "task": task,
        "experiments": {name: _short(result) for name, result in results.items()},
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
    parser.add_argument("experiments", nargs="*", metavar="expN", help="which to run; all four by default")
    parser.add_argument("--task", default=DEFAULT_TASK, help="smollm, small or gpt2")
    parser.add_argument("--out", type=Path, default=ROOT / "reports", help="folder of the reports")
    parser.add_argument("--notebooks", type=Path, default=ROOT / "notebooks", help="folder of the notebooks")
    parser.add_argument("--seeds", type=int, default=0, help="trainings an experiment; 3 for the task small, else 1")
    parser.add_argument("-p", nargs=2, action="append", default=[], metavar=("NAME", "VALUE"), dest="parameters")
    parser.add_argument("--timeout", type=int, metavar="SECONDS", help="most a cell may take; no limit by default")
    parser.add_argument("--render", action="store_true", help="run nothing, make the pages again")
    parser.add_argument("--readme", action="store_true", help="run nothing, fill the tables of README.md")
    parser.add_argument("--scrub", action="store_true", help="run nothing, clean the outputs of notebooks/")
    chosen = parser.parse_args(argv)
    unknown = set(chosen.experiments) - set(EXPERIMENTS)
    if unknown:
        parser.error(f"unknown experiment {', '.join(sorted(unknown))}; choose from {', '.join(EXPERIMENTS)}")
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", chosen.task):
        parser.error(f"--task names a folder of the reports: letters, digits, dots, dashes; got {chosen.task!r}")
    return chosen


def main(argv: Sequence[str] | None = None) -> int:
    """Run, render, merge; exit code 1 when a requested experiment did not end with a result."""
    import nbformat

    chosen = arguments(argv)
    if chosen.readme:
        readme = ROOT / "README.md"
        write_text(readme, filled(readme.read_text(encoding="utf-8"), chosen.out))
        return 0
    if chosen.scrub:
        for path in sorted(chosen.notebooks.glob("*.ipynb")):
            write_text(path, nbformat.writes(scrubbed(nbformat.read(path, as_version=4))) + "\n")
        return 0
    folder = reports_of(chosen.task, chosen.out.resolve())
    folder.mkdir(parents=True, exist_ok=True)
    names: Iterable[str] = chosen.experiments or EXPERIMENTS
    seeds = chosen.seeds or (3 if chosen.task == "small" else 1)
    parameters = {"task": chosen.task, "n_seeds": seeds} | {k: number_or_text(v) for k, v in chosen.parameters}
    (folder / "result.json").unlink(missing_ok=True)
    for name in names:
        if not chosen.render:
            words = ["python", "-m", "warp_nb.report", name, "--task", chosen.task, "--seeds", str(seeds)]
            words += [word for pair in chosen.parameters for word in ("-p", *pair)]
            print(f"{name}: running, task {chosen.task}, {seeds} trainings", flush=True)
            status = run(name, chosen.notebooks, folder, parameters, shlex.join(words), chosen.timeout)
            print(f"{name}: {status}", flush=True)
        render(name, folder)
    merged = summarise(chosen.task, folder)
    print((folder.relative_to(ROOT) if folder.is_relative_to(ROOT) else folder) / "index.html")
    bad = [name for name in names if merged["experiments"][name]["status"] != OK]
    for name in bad:
        print(f"{name} has no result: {merged['experiments'][name].get('error', 'never run')}", file=sys.stderr)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
