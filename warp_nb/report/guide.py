"""The guide to the notebooks, and the command that runs them in place and times them.

    warp-nb guide                                     # all committed notebooks but experiment 5
    warp-nb guide notebooks/lessons/lesson1.ipynb     # these; the index after them

The question of a notebook and its needs are written by hand in its metadata, `warp_nb.sentence` and `warp_nb.needs`,
and a lesson's `warp_nb.minutes`, a reader's usual time; this command adds `warp_nb.seconds` and `warp_nb.cores`. The
index of the notebooks and the reports' index show them, so that nothing about a notebook is stated twice.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import nbformat
from IPython.display import HTML, Markdown
from nbclient import NotebookClient
from nbformat import NotebookNode

from warp_nb.config import WarpConfig
from warp_nb.course.exercises import KEPT
from warp_nb.notebook.numbers import format_duration, plural
from warp_nb.notebook.prose import ENVIRONMENT, visible
from warp_nb.paths import expanded
from warp_nb.report.catalogue import EXPERIMENTS, Experiment
from warp_nb.report.execution import cause
from warp_nb.report.kernels import EncryptedKernelManager
from warp_nb.report.page import rendered
from warp_nb.report.scrubbing import write_scrubbed

NOTEBOOKS = Path("notebooks")
"""The folder of the notebooks, relative to the current one."""
KEY = "warp_nb"
"""Key of a notebook's metadata."""


class Step(NamedTuple):
    """A notebook of the guide: path in its folder, title, the question it answers, duration, needs."""

    path: str
    title: str
    sentence: str
    duration: str
    needs: str


def steps(folder: Path = NOTEBOOKS, experiments: Sequence[Experiment] = EXPERIMENTS) -> list[Step]:
    """List the notebooks that are in `folder`, in reading order: lessons, experiments, diagnosis."""
    named = [folder / f"{one.name}.ipynb" for one in experiments]
    paths = [*sorted(folder.glob("lessons/*.ipynb")), *(path for path in named if path.exists())]
    return [step(path, folder) for path in paths]


def step(path: Path, folder: Path) -> Step:
    """Read the title and the metadata of a notebook."""
    notebook = nbformat.read(path, as_version=4)
    about = notebook.metadata.get(KEY, {})
    duration = about_duration(about["seconds"], about["cores"]) if "seconds" in about else "не измерено"
    if "minutes" in about:
        duration = f"≈ {about['minutes']} мин работы; вычисления {duration}"
    place = path.relative_to(folder).as_posix()
    return Step(place, title(notebook), about.get("sentence", ""), duration, about.get("needs", ""))


def title(notebook: NotebookNode) -> str:
    """Return the text of the first heading without Markdown; empty if there is none."""
    text = "\n".join(cell.source for cell in notebook.cells if cell.cell_type == "markdown")
    found = re.search(r"^# +(.+)$", text, re.MULTILINE)
    return re.sub(r"[`*$]", "", found[1]).strip() if found else ""


def about_duration(seconds: float, cores: int) -> str:
    """около 20 с на 2 ядрах."""
    return f"около {format_duration(seconds)} на {cores} {plural(cores, 'ядре', 'ядрах', 'ядрах')}"


def way() -> HTML:
    """Return the list that notebooks/index.ipynb shows: the notebooks of the current folder, where it is executed."""
    return HTML(rendered("way.html.j2", steps=steps(Path.cwd())).rstrip("\n"))


def notation() -> Markdown:
    """Return the table of the paper's symbols and our names, with the defaults of WarpConfig."""
    return Markdown(ENVIRONMENT.get_template("notation.md.j2").render(default=WarpConfig()))


def run_in_place(path: Path, timeout: int | None) -> tuple[float, str]:
    """Execute a notebook in place; return seconds and the error, empty if none. A notebook that failed is not written.

    It runs without a GPU and without a reader's saved functions. Outputs are saved as `scrubbed` leaves them; seconds
    and cores go into the metadata of a notebook that states its question there.
    """
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(
        notebook,
        timeout=timeout,
        kernel_name="python3",
        kernel_manager_class=EncryptedKernelManager,
        record_timing=False,
        resources=resources,
    )
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as nothing_kept:
        try:
            client.execute(env=os.environ | {"CUDA_VISIBLE_DEVICES": "", KEPT: nothing_kept})
        except Exception as error:  # nbclient passes on many kinds: of a cell, a kernel that died or never started
            return time.perf_counter() - started, cause(error)
    seconds = time.perf_counter() - started
    if notebook.metadata.get(KEY):
        notebook.metadata[KEY] |= {"seconds": round(seconds, 1), "cores": os.cpu_count()}
    write_scrubbed(path, notebook)
    return seconds, ""


def chosen(named: Sequence[Path], folder: Path) -> list[Path]:
    """List the notebooks to run: those named, else all but experiment 5; the index, which lists them, comes last."""
    index = folder / "index.ipynb"
    long = {f"{one.name}.ipynb" for one in EXPERIMENTS if not one.short}
    listed = [folder / row.path for row in steps(folder) if row.path not in long]
    return [path for path in named or listed if path.resolve() != index.resolve()] + [index] * index.exists()


def main(argv: Sequence[str] | None = None) -> int:
    """Run, time and write notebooks; return exit code 1 if one stopped with an error."""
    parser = argparse.ArgumentParser(prog="warp-nb guide", description="Run committed notebooks in place.")
    parser.add_argument(
        "notebooks", nargs="*", type=expanded, metavar="NOTEBOOK", help="by default all but experiment 5"
    )
    parser.add_argument("--folder", type=expanded, default=NOTEBOOKS, help="folder of the notebooks and their index")
    parser.add_argument("--timeout", type=int, default=7200, metavar="SECONDS", help="most a cell may take")
    given = parser.parse_args(argv)
    missing = [str(path) for path in given.notebooks if not path.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}; name files, e.g. notebooks/exp4.ipynb")
    if not given.notebooks and not steps(given.folder):
        parser.error(f"no notebooks in {given.folder}; pass --folder, or name files")
    bad = 0
    for path in chosen(given.notebooks, given.folder):
        seconds, error = run_in_place(path, given.timeout)
        print(visible(f"{path.name}: {error or f'{seconds:.1f} s'}"), file=sys.stderr if error else None)
        bad += bool(error)
    return 1 if bad else 0
