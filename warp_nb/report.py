"""Experiment notebooks -> reports: executed notebooks, HTML, result files, index, README tables.

    python -m warp_nb.report                         # experiments 1 to 4 on smollm -> reports/
    python -m warp_nb.report --task small            # on another task -> reports/small/
    python -m warp_nb.report exp4 --task small -p T 50
    python -m warp_nb.report --task small --render   # pages again from what was run
    python -m warp_nb.report --task small --readme   # the table in README.md
    python -m warp_nb.report --scrub                 # notebooks/ without progress bars and paths of this machine

An interrupted command goes on where it was when it is given again: finished runs (i, m) lie in
`.runs/` beside the reports until their experiment has its result.

A run counts only when its notebook wrote a result file with "status": "ok" at its very end: neither an
exit code nor notebook metadata says that. `result.json` is deleted first and written last.
"""

from __future__ import annotations

import argparse
import base64
import hashlib
import io
import json
import math
import os
import re
import shlex
import shutil
import sys
import tempfile
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb.formatting import fixed, format_number, plural
from warp_nb.original import ASSUMED_TASK, ROWS
from warp_nb.weights import replacing, write_json

if TYPE_CHECKING:
    from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
DEFAULT_TASK = "smollm"
EXPERIMENTS = ("exp1", "exp2", "exp3", "exp4")
OK, FAILED, MISSING = "ok", "failed", "missing"
MERGED = ("status", "config", "summary", "checks", "conclusion", "seconds", "peak_rss_mb", "machine", "run")
HIDDEN_PARAMETERS = ("result_file", "out_dir")
PANELS = ("objective", "reward", "kl")
README_MARKS = re.compile(r"(<!-- results (\w+) -->\n).*?(<!-- /results -->)", re.DOTALL)


def reports_of(task: str, out: Path) -> Path:
    """Folder of a task's reports: `out` itself for the default task."""
    return out if task == DEFAULT_TASK else out / task


def runs_folder(name: str, notebooks: Path, folder: Path, parameters: dict[str, Any]) -> Path:
    """Where the finished runs of an interrupted experiment wait: a folder for these very settings."""
    settings = json.dumps(parameters, sort_keys=True) + (notebooks / f"{name}.ipynb").read_text(encoding="utf-8")
    return folder / ".runs" / f"{name}-{hashlib.sha256(settings.encode()).hexdigest()[:10]}"


def run(
    name: str, notebooks: Path, folder: Path, parameters: dict[str, Any], command: str, timeout: int | None = None
) -> str:
    """Execute notebooks/<name>.ipynb into `folder`, at most `timeout` seconds a cell; the status of the run.

    Leaves <name>.ipynb, <name>.html and <name>.result.json, each put in place atomically. What the notebook
    says while it runs, its bars with the remaining time among it, goes to this process's stderr.
    """
    import nbformat
    import papermill
    from papermill.exceptions import PapermillExecutionError

    result_path = folder / f"{name}.result.json"
    result_path.unlink(missing_ok=True)
    runs = runs_folder(name, notebooks, folder, parameters)
    started = time.perf_counter()
    error = ""
    with tempfile.TemporaryDirectory() as scratch:
        executed, written = Path(scratch) / f"{name}.ipynb", Path(scratch) / "result.json"
        try:
            papermill.execute_notebook(
                str(notebooks / f"{name}.ipynb"),
                str(executed),
                parameters=parameters | {"result_file": str(written), "out_dir": str(runs)},
                kernel_name="python3",
                progress_bar=False,
                stderr_file=sys.stderr,
                execution_timeout=timeout,
            )
        except PapermillExecutionError as stopped:
            error = f"{stopped.ename}: {stopped.evalue}"
        except Exception as stopped:  # a kernel that died or never started: papermill passes on many kinds
            error = f"{type(stopped).__name__}: {stopped}"
        notebook = nbformat.read(executed, as_version=4) if executed.exists() else None
        result = read_result(written)
        if error or result["status"] != OK:
            error = error or "тетрадь не записала результат в конце"
            result = {"status": FAILED, "error": scrub(f"{error}{stopped_in(notebook)}")}
        result["run"] = {"command": command, "seconds": time.perf_counter() - started} | computer()
        if notebook is not None:
            write_text(folder / f"{name}.ipynb", nbformat.writes(scrubbed(notebook)) + "\n")
    write_json(result_path, result)
    if result["status"] == OK:
        shutil.rmtree(runs, ignore_errors=True)
        with suppress(OSError):  # another experiment's runs wait there
            runs.parent.rmdir()
    return str(result["status"])


def stopped_in(notebook: NotebookNode | None) -> str:
    """In brackets the last code cell that was begun, by its place and first line; nothing when none was.

    Of papermill's records only the beginning of a cell is believed: a dead kernel's cells are all "completed".
    """
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"] if notebook is not None else []
    begun = [place for place, cell in enumerate(cells) if cell.metadata.get("papermill", {}).get("start_time")]
    if not begun:
        return ""
    first = next((line for line in cells[begun[-1]].source.splitlines() if line.strip()), "")
    return f" (ячейка [{begun[-1] + 1}]: {first})"


def read_result(path: Path) -> dict[str, Any]:
    """A result file, or a status alone where it is missing or not whole."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {"status": MISSING}
    except ValueError:
        return {"status": FAILED, "error": f"{path.name} is not JSON"}
    return found if isinstance(found, dict) and "status" in found else {"status": FAILED, "error": "no status"}


def scrubbed(notebook: NotebookNode) -> NotebookNode:
    """The notebook without papermill's records, time stamps and paths of this machine."""
    from nbformat import from_dict

    from warp_nb.page import each_string

    notebook = from_dict(each_string(notebook, scrub))
    notebook.metadata.pop("papermill", None)
    hidden = re.compile(rf"^(?:{'|'.join(HIDDEN_PARAMETERS)})\b.*\n?", re.MULTILINE)
    for cell in notebook.cells:
        for record in ("papermill", "execution"):
            cell.metadata.pop(record, None)
        if cell.cell_type == "code":
            cell.outputs = settled(cell.outputs)
        if "injected-parameters" in cell.metadata.get("tags", []):
            cell.source = hidden.sub("", cell.source).rstrip("\n")
    return notebook


def settled(outputs: Iterable[NotebookNode]) -> list[NotebookNode]:
    """Outputs as a terminal would show them at the end: what a carriage return overwrote is gone."""
    kept: list[NotebookNode] = []
    for output in outputs:
        if output.output_type == "stream" and kept and kept[-1].get("name") == output.name:
            kept[-1].text += output.text
        else:
            kept.append(output)
    for output in kept:
        if output.output_type == "stream":
            output.text = re.sub(r"[^\n]*\r(?!\n)", "", output.text)
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def scrub(text: str) -> str:
    """`text` without the folders of this machine."""
    folders = {str(ROOT): "", tempfile.gettempdir(): "", sys.prefix: "", str(Path.home()): "~/"}
    for folder, instead in sorted(folders.items(), key=lambda item: -len(item[0])):
        if len(folder) > 1:
            text = text.replace(f"{folder}/", instead)
    return text


def computer() -> dict[str, Any]:
    """Cores and memory (GB) of this machine; what the kernel knows of it is in the result."""
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9 if hasattr(os, "sysconf") else math.nan
    return {"cores": os.cpu_count(), "memory_gb": round(memory, 1)}


def render(name: str, folder: Path) -> None:
    """<name>.ipynb and its result file -> <name>.html; nothing where the notebook never came to be."""
    import nbformat

    from warp_nb.page import notebook_html

    path = folder / f"{name}.ipynb"
    if path.exists():
        notebook = nbformat.read(path, as_version=4)
        write_text(folder / f"{name}.html", notebook_html(notebook, name, footer(read_result(_result(folder, name)))))


def footer(result: dict[str, Any]) -> str:
    """How to repeat the run and what it ran on; a failed run says so first."""
    from warp_nb.page import definitions

    about = result.get("run", {})
    facts = [("Повторить", about.get("command", "")), ("Ядер и память", _computer_text(about))]
    if "seconds" in about:
        facts.append(("Длительность", f"{format_number(about['seconds'])} с вместе с загрузкой"))
    if result["status"] == OK:
        machine = result["machine"]
        versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
        facts += [
            ("Устройство", f"{machine['gpu'] or machine['cpu']}, потоков: {machine['threads']}"),
            ("Начальное значение", f"seed = {result['config']['seed']}, повторений: {result['config']['n_seeds']}"),
            ("Память процесса", f"до {format_number(result['peak_rss_mb'] / 1e3)} ГБ"),
            *loaded_runs(result),
            ("Версии", f"Python {machine['python']}, {versions}"),
        ]
        head = ""
    else:
        head = f'<p class="failed">Прогон не закончен: {escape(result.get("error", "нет результата"))}</p>'
    return f"<footer><h2>Как повторить</h2>{head}{definitions(facts)}</footer>"


def loaded_runs(result: dict[str, Any]) -> list[tuple[str, str]]:
    """What was taken ready from an interrupted run, so that the duration is not read as that of all."""
    shares = [row["loaded"] for row in result["runs"]]
    ready, begun = sum(share == 1 for share in shares), sum(0 < share < 1 for share in shares)
    if not ready + begun:
        return []
    text = f"готовых прогонов: {ready} из {len(shares)}" + (f", начатых раньше: {begun}" if begun else "")
    return [("Загружено", f"{text}; время их загруженных шагов в длительность не входит")]


def _computer_text(about: dict[str, Any]) -> str:
    memory = about.get("memory_gb")
    return f"{about.get('cores', '?')}, {format_number(memory)} ГБ" if memory else "не записаны"


def summarise(task: str, folder: Path) -> dict[str, Any]:
    """Merge the experiments of `folder` into curves.png, index.html and, last, result.json."""
    results = {name: read_result(_result(folder, name)) for name in EXPERIMENTS}
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


def draw(results: dict[str, dict[str, Any]], columns: Sequence[str]) -> bytes:
    """PNG of the four experiments' curves over each other, a panel a column of the history."""
    import pandas as pd
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from warp_nb.plots import compare_experiments

    done = {f"эксперимент {n[3:]}": pd.DataFrame(r["history"]) for n, r in results.items() if r["status"] == OK}
    figure = Figure(figsize=(6.4 * len(columns), 4), layout="constrained")
    FigureCanvasAgg(figure)
    for ax, column in zip(figure.subplots(1, len(columns), squeeze=False)[0], columns, strict=True):
        if done:
            compare_experiments(ax, done, column)
        else:
            ax.text(0.5, 0.5, "Законченных прогонов нет", ha="center", transform=ax.transAxes)
            ax.set_axis_off()
    stream = io.BytesIO()
    figure.savefig(stream, format="png", dpi=110, metadata={"Software": ""})
    return stream.getvalue()


def index(task: str, results: dict[str, dict[str, Any]], curves: dict[str, bytes]) -> str:
    """The page of all experiments."""
    from warp_nb.page import page

    head = "<tr>" + "".join(
        f"<th>{title}</th>"
        for title in (
            "№", "Что меняется", "Награда SFT", "Награда WARP", "Разность",
            "KL(sft‖warp)", "KL(warp‖sft)", "Проверки",
        )
    ) + "</tr>"  # fmt: skip
    rows = "\n".join(index_row(name, result) + original_row(name) for name, result in results.items())
    pictures = "\n".join(
        f'<img alt="Кривые четырёх экспериментов: {column}" src="data:image/png;base64,'
        f'{base64.b64encode(png).decode()}">'
        for column, png in curves.items()
    )
    links = "".join(
        f'<li><a href="{n}.html">Эксперимент {n[3:]}</a>, <a href="{n}.ipynb">выполненная тетрадь</a>,'
        f' <a href="{n}.result.json">все числа</a>: {_conclusion(r)}</li>\n'
        for n, r in results.items()
        if r["status"] == OK
    )
    body = f"""<p>Алгоритм WARP (arXiv 2406.16768), задача <b>{escape(task)}</b>. KL в натах на последовательность,
в скобках 95 % интервал. Серые строки — числа исходного отчёта: там другая модель и другая шкала награды,
сравнивать с ними можно порядок величин KL, но не награды. Часть условий
принята нами: {escape(ASSUMED_TASK)}.</p>
<div class="scroll"><table><thead>{head}</thead>
<tbody>
{rows}
</tbody></table></div>
<p>{kl_order(results)}</p>
<h2>Кривые</h2>
{pictures}
<h2>Подробно</h2>
<ul>
{links}</ul>
{index_footer(results)}"""
    return page(f"WARP: эксперименты 1–4, задача {task}", body)


def kl_order(results: dict[str, dict[str, Any]]) -> str:
    """Do the experiments keep the original's order of KL(sft‖warp)? Nothing while one has no result."""
    if any(result["status"] != OK for result in results.values()):
        return ""
    numbers = [int(name[3:]) for name in results]
    ours = sorted(numbers, key=lambda n: results[f"exp{n}"]["summary"]["kl_reference_policy"]["value"])
    theirs = sorted(numbers, key=lambda n: ROWS[n].kl_reference_policy)
    here, there = (", ".join(map(str, order)) for order in (ours, theirs))
    kept = f"в том же порядке, что в исходном отчёте: {here}"
    other = f"в другом порядке, чем в исходном отчёте: {here}, а там {there}"
    return (
        f"По возрастанию KL(sft‖warp) эксперименты стоят {kept if ours == theirs else other}. Сами значения KL и не "
        "обязаны совпасть: там другая модель, а от размера пакета и длины продолжения, которых отчёт не называет, "
        "KL последовательности зависит прямо."
    )


def index_row(name: str, result: dict[str, Any]) -> str:
    """One measured row; a run that did not end well says only that."""
    number = int(name[3:])
    change = escape(ROWS[number].change)
    if result["status"] != OK:
        reason = "не запускался" if result["status"] == MISSING else f"не закончен: {result.get('error', '')}"
        return f'<tr><th>{number}</th><td>{change}</td><td class="failed" colspan="6">{escape(reason)}</td></tr>\n'
    cells = "".join(f"<td>{interval(result['summary'][measure])}</td>" for measure in ROWS[number].measures())
    setting = f"<small>{escape(index_setting(number, result['config']))}</small>"
    what = f'<td class="change">{change}<br>{setting}</td>'
    checks = index_checks(result["checks"])
    return f'<tr><th><a href="{name}.html">{number}</a></th>{what}{cells}{checks}</tr>\n'


def index_setting(number: int, config: dict[str, Any]) -> str:
    """lr and warm-up as they were run, and what of this experiment we had to assume."""
    steps = config["warmup_steps"]
    warmup = f"прогрев {steps} {plural(steps, 'шаг', 'шага', 'шагов')}" if steps else "без прогрева"
    assumed = [text for text in ROWS[number].assumed if text != ASSUMED_TASK]
    return "; ".join([f"lr = {format_number(config['lr'])}, {warmup}", *(f"принято нами: {text}" for text in assumed)])


def index_checks(checks: Sequence[dict[str, Any]]) -> str:
    """The cell of the checks: which failed, else how many passed and how many did not apply."""
    failed = [check["title"] for check in checks if check["applies"] and not check["passed"]]
    if failed:
        return f'<td class="failed">{escape("не пройдены: " + "; ".join(failed))}</td>'
    silent = sum(not check["applies"] for check in checks)
    passed = len(checks) - silent
    text = f"{plural(passed, 'пройдена', 'пройдены', 'пройдено')} {passed}"
    if silent:
        text += f", {plural(silent, 'неприменима', 'неприменимы', 'неприменимо')} {silent}"
    return f"<td>{text}</td>"


def original_row(name: str) -> str:
    """The original report's figures as it printed them."""
    original = ROWS[int(name[3:])]
    figures = original.measures()
    cells = "".join(f"<td>{fixed(v, 5 if k.startswith('kl') else 7)}</td>" for k, v in figures.items())
    return f'<tr class="original"><th></th><td>исходный отчёт (другая шкала)</td>{cells}<td></td></tr>'


def interval(estimate: dict[str, float | None]) -> str:
    """1,56 [1,42; 1,70]."""
    value, low, high = (format_number(math.nan if estimate[k] is None else estimate[k] or 0.0) for k in _ESTIMATE)
    return f"{value} <small>[{low}; {high}]</small>"


_ESTIMATE = ("value", "low", "high")


def _conclusion(result: dict[str, Any]) -> str:
    return " ".join(escape(paragraph) for paragraph in result["conclusion"][:2])


def index_footer(results: dict[str, dict[str, Any]]) -> str:
    """The footer of the last finished experiment, with what belongs to all of them."""
    done = [result for result in results.values() if result["status"] == OK]
    if not done:
        return footer({"status": FAILED, "error": "ни один эксперимент не закончен"})
    commands = {r["run"]["command"].replace(f" {n} ", " ", 1) for n, r in results.items() if r["status"] == OK}
    together = {"command": "; ".join(sorted(commands)), "seconds": sum(result["run"]["seconds"] for result in done)}
    runs = [row for result in done for row in result["runs"]]
    peak = max(result["peak_rss_mb"] for result in done)
    return footer(done[-1] | {"run": done[-1]["run"] | together, "runs": runs, "peak_rss_mb": peak})


ASSUMED_ENGLISH = {
    "exp1": f"warm-up of exp1 ({ROWS[1].settings['warmup_steps']} steps, as in the paper)",
    "exp4": f"lr of exp4 ({ROWS[4].settings['lr']:g}, named in its last sentence)",
    "all": "task, batch size, completion length and temperature of all",
}
"""`OriginalRow.assumed` for README.md."""


def readme_table(merged: dict[str, Any]) -> str:
    """Markdown table of the experiments for README.md, from result.json."""
    lines = [
        "| | setting | reward SFT | reward WARP | difference | KL(sft‖warp) | KL(warp‖sft) "
        "| original's KLs (another model) |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, result in merged["experiments"].items():
        original = ROWS[int(name[3:])]
        if result["status"] != OK:
            lines.append(f"| {name} | not finished | | | | | | |")
            continue
        config, summary = result["config"], result["summary"]
        warmup = f"warm-up over {config['warmup_steps']}" if config["warmup_steps"] else "no warm-up"
        figures = " | ".join(_english(summary[measure]) for measure in original.measures())
        lines.append(
            f"| {name} | lr {config['lr']:g}, {warmup} | {figures} "
            f"| {original.kl_reference_policy:.3g}, {original.kl_policy_reference:.3g} |"
        )
    seeds = sorted({r["config"]["n_seeds"] for r in merged["experiments"].values() if r["status"] == OK})
    counts = ", ".join(map(str, seeds))
    lines += ["", f"Task `{merged['task']}`, trainings an experiment: {counts}. KL in nats a sequence."]
    lines += ["", f"Assumed, since the original does not say: {'; '.join(ASSUMED_ENGLISH.values())}."]
    return "\n".join(lines) + "\n"


def _english(estimate: dict[str, float | None]) -> str:
    value, low, high = ("?" if estimate[key] is None else f"{estimate[key]:.3g}" for key in _ESTIMATE)
    return f"{value} [{low}, {high}]"


def filled(readme: str, reports: Path) -> str:
    """README text with every marked table made again from its task's result.json, where there is one."""

    def table(found: re.Match[str]) -> str:
        path = reports_of(found[2], reports) / "result.json"
        text = readme_table(json.loads(path.read_text(encoding="utf-8"))) if path.exists() else "Not run yet.\n"
        return f"{found[1]}{text}{found[3]}"

    return README_MARKS.sub(table, readme)


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically, half characters as question marks."""
    write_bytes(path, text.encode("utf-8", "replace"))


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically."""
    with replacing(path) as temporary:
        temporary.write_bytes(content)


def _result(folder: Path, name: str) -> Path:
    return folder / f"{name}.result.json"


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
