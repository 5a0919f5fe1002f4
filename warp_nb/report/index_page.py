"""The page of a task's reports: rows beside the original's, curves, experiment 5, the diagnosis, the notebooks."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Sequence
from html import escape
from typing import Any

from warp_nb.notebook.numbers import fixed, format_number, plural
from warp_nb.report.footer import footer
from warp_nb.report.guide import NOTEBOOKS, TIMED, Step, as_table
from warp_nb.report.page import page, safe_markdown
from warp_nb.report.results import COMPARISON, DIAGNOSIS, FAILED, MISSING, OK
from warp_nb.studies.original import ASSUMED_TASK, ROWS

PANELS = ("objective", "reward", "kl")


def index(
    task: str,
    results: dict[str, dict[str, Any]],
    curves: dict[str, bytes],
    comparison: dict[str, Any],
    diagnosis: dict[str, Any],
    notebooks: Sequence[Step],
    folder: str,
) -> str:
    """The page of all experiments; the diagnosis lies in `folder`, relative to the page, the notebooks beside that."""
    titles = (
        "№",
        "Что меняется",
        "Награда SFT",
        "Награда WARP",
        "Разность",
        "KL(sft‖warp)",
        "KL(warp‖sft)",
        "Проверки",
    )
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
{grid(titles, rows)}
<p>{kl_order(results)}</p>
<h2>Кривые</h2>
{pictures}
<h2>Подробно</h2>
<ul>
{links}</ul>
{comparison_section(task, comparison)}
{diagnosis_section(diagnosis, folder)}
{notebooks_section(notebooks, f"{folder}../{NOTEBOOKS.name}/")}
{index_footer(results)}"""
    return page(f"WARP: эксперименты, задача {task}", body)


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
    value, low, high = (
        format_number(math.nan if estimate[k] is None else estimate[k] or 0.0) for k in ("value", "low", "high")
    )
    return f"{value} <small>[{low}; {high}]</small>"


def _conclusion(result: dict[str, Any]) -> str:
    return " ".join(escape(paragraph) for paragraph in result["conclusion"][:2])


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


def comparison_section(task: str, result: dict[str, Any]) -> str:
    """Experiment 5: what each way to spend the steps reached, in words too."""
    head = "<h2>Эксперимент 5: T = 100 и прогрев</h2>\n"
    if result["status"] != OK:
        return head + unfinished(result, f"python -m warp_nb.report {COMPARISON} --task {task}")
    titles = ("Способ", "Шагов", "Прирост награды, η = 1", "KL(политика‖sft), η = 1", "Перплексия по θ_sft, η = 1",
              "Похож на отзыв, η = 1", "Прирост при общей KL")  # fmt: skip
    rows = "".join(
        f"<tr><th>{escape(arm)}</th><td>{found['steps']}</td>"
        + "".join(
            f"<td>{interval(estimate)}</td>"
            for estimate in (
                found["reward_difference"][-1],
                found["kl_policy_reference"][-1],
                found["perplexity_policy"][-1],
            )
        )
        + f"<td>{'да' if found['readable'][-1] else 'нет'}</td><td>{interval(found['gain_at_equal_kl'])}</td></tr>\n"
        for arm, found in result["summary"].items()
    )
    said = "\n".join(safe_markdown(paragraph) for paragraph in result["conclusion"])
    return f"{head}{grid(titles, rows)}\n{said}\n{links_to(COMPARISON, 'Эксперимент 5')}"


def diagnosis_section(result: dict[str, Any], folder: str) -> str:
    """The verdicts, which combination of faults fits best, and the way to the notebook."""
    head = "<h2>Диагностика: чего не видел исходный отчёт</h2>\n"
    if result["status"] != OK:
        return head + unfinished(result, f"python -m warp_nb diagnosis; python -m warp_nb.report {DIAGNOSIS}")
    rows = "".join(
        f"<tr><td>{escape(verdict['name'])}</td><td>{escape(verdict['verdict'])}</td>"
        f"<td>{sum(verdict['outcomes'])} из {len(verdict['outcomes'])}</td></tr>\n"
        for verdict in result["verdicts"]
    )
    said = "\n".join(safe_markdown(paragraph) for paragraph in result["conclusion"])
    table = grid(("Гипотеза", "Вердикт", "Предсказание сбылось"), rows)
    return f"{head}{table}\n{said}\n{links_to(f'{folder}{DIAGNOSIS}', 'Диагностика')}"


def notebooks_section(steps: Sequence[Step], folder: str) -> str:
    """The way through the notebooks that lie in `folder`, relative to the page; nothing where there are none."""
    if not steps:
        return ""
    said = f"Открыть их в JupyterLab: <code>make lab</code>. {TIMED}"
    return f'<h2>Тетради</h2>\n<p>{said}</p>\n<div class="scroll">{as_table(steps, folder)}</div>'


def unfinished(result: dict[str, Any], command: str) -> str:
    """Instead of a result."""
    if result["status"] == MISSING:
        return f"<p>Не запускалось: <code>{escape(command)}</code></p>"
    return f'<p class="failed">Не закончено: {escape(str(result.get("error", "")))}</p>'


def grid(titles: Sequence[str], rows: str) -> str:
    """A table around rows of HTML that is trusted."""
    head = "".join(f"<th>{title}</th>" for title in titles)
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead>\n<tbody>\n{rows}</tbody></table></div>'


def links_to(name: str, title: str) -> str:
    """Page, executed notebook and numbers."""
    return (
        f'<p><a href="{name}.html">{title}</a>, <a href="{name}.ipynb">выполненная тетрадь</a>,'
        f' <a href="{name}.result.json">все числа</a></p>'
    )


def draw(results: dict[str, dict[str, Any]], columns: Sequence[str]) -> bytes:
    """PNG of the four experiments' curves over each other, a panel a column of the history."""
    import pandas as pd
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from warp_nb.notebook.plots import compare_experiments

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
