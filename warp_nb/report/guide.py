"""The way through the notebooks, and the command that runs them in place and measures them.

    python -m warp_nb guide                                     # all committed notebooks but experiment 5
    python -m warp_nb guide notebooks/lessons/lesson1.ipynb     # these; the index after them

What a notebook answers and what it needs is written by hand in its metadata, `warp_nb.sentence` and `warp_nb.needs`;
`warp_nb.seconds` and `warp_nb.cores` are put beside them here. The index of the notebooks and the reports' index show
these four, so that nothing about a notebook stands in two places.
"""

from __future__ import annotations

import argparse
import html
import os
import re
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from warp_nb.config import WarpConfig
from warp_nb.course.exercises import KEPT
from warp_nb.notebook.numbers import format_duration, format_number, plural
from warp_nb.notebook.tables import CLASSES
from warp_nb.report.results import COMPARISON, DIAGNOSIS, EXPERIMENTS, ROOT
from warp_nb.report.scrubbing import scrubbed
from warp_nb.runs.weights import write_text

if TYPE_CHECKING:
    from IPython.display import HTML, Markdown
    from nbformat import NotebookNode

NOTEBOOKS = ROOT / "notebooks"
INDEX = "index"
OWN = "exp"
"""The page of an experiment for the reader's parameters."""
AFTER_LESSONS = (*EXPERIMENTS, COMPARISON, OWN, DIAGNOSIS)
KEY = "warp_nb"
"""Of a notebook's metadata."""
COLUMNS = ("Тетрадь", "О чём", "Время", "Что нужно")
TIMED = "Время измерено без GPU, вместе с запуском тетради."


class Step(NamedTuple):
    """A notebook on the way: path in its folder, title, what question it answers, duration, what it needs."""

    path: str
    title: str
    sentence: str
    duration: str
    needs: str


def steps(folder: Path = NOTEBOOKS) -> list[Step]:
    """The notebooks of `folder` in the order of reading: lessons, experiments, diagnosis; those that are there."""
    named = [folder / f"{name}.ipynb" for name in AFTER_LESSONS]
    paths = [*sorted(folder.glob("lessons/*.ipynb")), *(path for path in named if path.exists())]
    return [step(path, folder) for path in paths]


def step(path: Path, folder: Path) -> Step:
    """What a notebook says of itself."""
    import nbformat

    notebook = nbformat.read(path, as_version=4)
    about = notebook.metadata.get(KEY, {})
    duration = about_duration(about["seconds"], about["cores"]) if "seconds" in about else "не измерено"
    place = path.relative_to(folder).as_posix()
    return Step(place, title(notebook), about.get("sentence", ""), duration, about.get("needs", ""))


def title(notebook: NotebookNode) -> str:
    """The text of the first heading, without marks of Markdown; empty when there is none."""
    texts = [cell.source for cell in notebook.cells if cell.cell_type == "markdown"]
    found = next(filter(None, (re.search(r"^# +(.+)$", text, re.MULTILINE) for text in texts)), None)
    return re.sub(r"[`*$]", "", found[1]).strip() if found else ""


def about_duration(seconds: float, cores: int) -> str:
    """около 20 с на 2 ядрах."""
    return f"около {format_duration(seconds)} на {cores} {plural(cores, 'ядре', 'ядрах', 'ядрах')}"


def as_table(rows: Sequence[Step], folder: str = "") -> str:
    """HTML of the way, escaped; links are relative to a page from which the notebooks lie in `folder`."""
    head = "".join(f"<th>{column}</th>" for column in COLUMNS)
    body = "\n".join(
        f'<tr><td><a href="{html.escape(folder + row.path)}">{html.escape(row.title)}</a></td>'
        + "".join(f"<td>{html.escape(text)}</td>" for text in row[2:])
        + "</tr>"
        for row in rows
    )
    return f'<table class="{" ".join(CLASSES)}"><thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody></table>'


def way() -> HTML:
    """The way as notebooks/index.ipynb shows it; installed away from its notebooks, the package cannot list them."""
    from IPython.display import HTML

    rows = steps()
    nothing = "<p>Рядом с пакетом тетрадей нет: их список есть в README проекта.</p>"
    return HTML(f"<p>{TIMED}</p>\n{as_table(rows)}" if rows else nothing)


class Symbol(NamedTuple):
    """A letter of the paper: LaTeX, our name, meaning, where the paper has it, its value there, ours if no field."""

    latex: str
    name: str
    meaning: str
    where: str
    paper: str = "—"
    ours: str = "—"


NOTATION = (
    Symbol(r"\theta_{sft}", "sft", "веса, с которых всё начинается: политика после SFT", "строка 1"),
    Symbol("I", "I", "итераций внешнего цикла", "строка 2", "5"),
    Symbol("M", "M", "независимых прогонов в итерации", "строка 3", "2"),
    Symbol(r"\theta_{init}", "init", "веса, с которых начинаются прогоны одной итерации", "строки 1, 4, 12"),
    Symbol(r"\theta^m", "policy, policies", "веса политики прогона $m$", "строки 4, 8"),
    Symbol(r"\theta^m_{ema}", "anchor", "веса якоря этого прогона", "строки 4, 9"),
    Symbol("T", "T", "шагов обучения в прогоне", "строка 5", "9000 (в пяти итерациях: 9, 7, 7, 5 и 5 тысяч)"),
    Symbol("x", "prompts", "начало: то, что политика продолжает", "строка 6"),
    Symbol("y", "completions", "продолжение, выбранное политикой", "строка 6"),
    Symbol(r"\pi_\theta(y \mid x)", "log_probs", "вероятность продолжения у политики; в коде логарифм", "строки 6–8"),
    Symbol("r(x, y)", "rewards", "награда: оценка продолжения моделью награды", "строка 7"),
    Symbol(r"\beta", "beta", "сила штрафа за отход от якоря", "строка 7", "0,1"),
    Symbol(r"r_\beta", "objective", "награда со штрафом: её среднее увеличивает обучение", "строка 7"),
    Symbol("", "lr", "скорость обучения (шаг Adam), наибольшая после прогрева", "строка 8", "10⁻⁶"),
    Symbol("", "warmup_steps", "шагов прогрева lr, заново в каждом прогоне", "строка 8", "100"),
    Symbol("", "batch_size", "продолжений на шаг", "строка 6", "128"),
    Symbol("", "temperature", "температура выборки и всех log-вероятностей", "строка 6", "0,9"),
    Symbol(r"\mu", "mu", "доля новых весов в якоре на каждом шаге (EMA)", "строка 9", "0,01"),
    Symbol(r"\delta^m", "deltas", r"вектор задачи: $\theta^m - \theta_{init}$", "строка 11"),
    Symbol(r"\Omega", "omega", "угол между двумя векторами задачи, свой в каждом слое", "строка 11"),
    Symbol(
        r"\lambda",
        "lam",
        "место между двумя векторами задачи при слиянии",
        "строка 11, ур. 26 статьи",
        "0,5",
        "$1/m$ для $m$-го",
    ),
    Symbol(r"\theta_{slerp}", "merged", "слитые веса итерации", "строка 11"),
    Symbol(
        r"\eta",
        "eta",
        r"доля пути к $\theta_{slerp}$ (LITI): от $\theta_{init}$, а на фронте от $\theta_{sft}$",
        "строка 12, выход",
        "0,3",
    ),
)


def notation() -> Markdown:
    """The paper's letters beside our names; our defaults are read from WarpConfig."""
    from IPython.display import Markdown

    lines = ["| Символ | В коде | Что это | Алгоритм 1 | В статье | У нас |", "|---|---|---|---|---|---|"]
    for symbol in NOTATION:
        letter = f"${symbol.latex}$" if symbol.latex else "—"
        names = ", ".join(f"`{name}`" for name in symbol.name.split(", "))
        lines.append(
            f"| {letter} | {names} | {symbol.meaning} | {symbol.where} | {symbol.paper} | {default_of(symbol)} |"
        )
    return Markdown("\n".join(lines))


def default_of(symbol: Symbol) -> str:
    """Our default where WarpConfig has a number of that name, else what the table says."""
    field = WarpConfig.model_fields.get(symbol.name)
    return format_number(field.default) if field and isinstance(field.default, int | float) else symbol.ours


def run(path: Path, timeout: int | None) -> tuple[float, str]:
    """Execute a notebook in place: its seconds, and the error that stopped it or nothing. What failed is not written.

    Without a GPU and without what anybody filled in. Keeps the outputs as `scrubbed` leaves them; seconds and cores go
    into the metadata of a notebook that says there what it answers.
    """
    import nbformat
    from nbclient import NotebookClient
    from nbclient.exceptions import CellExecutionError

    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": str(path.parent)}}
    client = NotebookClient(notebook, timeout=timeout, kernel_name="python3", record_timing=False, resources=resources)
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as nothing_kept:
        try:
            client.execute(env=os.environ | {"CUDA_VISIBLE_DEVICES": "", KEPT: nothing_kept})
        except CellExecutionError as stopped:
            return time.perf_counter() - started, f"{stopped.ename}: {stopped.evalue}"
        except Exception as error:  # of a cell, a kernel that died or never started: nbclient passes on many kinds
            return time.perf_counter() - started, f"{type(error).__name__}: {error}"
    seconds = time.perf_counter() - started
    if notebook.metadata.get(KEY):
        notebook.metadata[KEY] |= {"seconds": round(seconds, 1), "cores": os.cpu_count()}
    write_text(path, nbformat.writes(scrubbed(notebook)) + "\n")
    return seconds, ""


def chosen(named: Sequence[Path], folder: Path) -> list[Path]:
    """The notebooks to run: those named, else all on the way but experiment 5; the index, which shows them, last."""
    index = folder / f"{INDEX}.ipynb"
    listed = [folder / row.path for row in steps(folder) if row.path != f"{COMPARISON}.ipynb"]
    return [path for path in named or listed if path.resolve() != index.resolve()] + [index] * index.exists()


def main(argv: Sequence[str] | None = None) -> int:
    """Run, measure, write; exit code 1 when a notebook stopped with an error."""
    parser = argparse.ArgumentParser(prog="python -m warp_nb guide", description="Run committed notebooks in place.")
    parser.add_argument("notebooks", nargs="*", type=Path, metavar="NOTEBOOK", help="all but experiment 5 by default")
    parser.add_argument("--folder", type=Path, default=NOTEBOOKS, help="folder of the notebooks and their index")
    parser.add_argument("--timeout", type=int, default=7200, metavar="SECONDS", help="most a cell may take")
    given = parser.parse_args(argv)
    missing = [str(path) for path in given.notebooks if not path.is_file()]
    if missing:
        parser.error(f"no such notebook: {', '.join(missing)}; name files, e.g. notebooks/exp4.ipynb")
    bad = 0
    for path in chosen(given.notebooks, given.folder):
        seconds, error = run(path, given.timeout)
        print(f"{path.name}: {error or f'{seconds:.1f} s'}", file=sys.stderr if error else None)
        bad += bool(error)
    return 1 if bad else 0


if __name__ == "__main__":
    raise SystemExit(main())
