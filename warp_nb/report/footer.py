"""The footer of every page: how to repeat the run and what it ran on."""

from __future__ import annotations

from html import escape
from typing import Any

from warp_nb.notebook.numbers import format_number
from warp_nb.report.page import definitions
from warp_nb.report.results import OK


def footer(result: dict[str, Any]) -> str:
    """How to repeat the run and what it ran on; a failed run says so first."""
    about = result.get("run", {})
    facts = [("Повторить", about.get("command", "")), ("Ядер и память", _computer_text(about))]
    if "seconds" in about:
        facts.append(("Длительность", f"{format_number(about['seconds'])} с вместе с загрузкой"))
    if result["status"] == OK:
        machine = result["machine"]
        versions = ", ".join(f"{package} {number}" for package, number in machine["versions"].items())
        facts += [
            ("Устройство", f"{machine['gpu'] or machine['cpu']}, потоков: {machine['threads']}"),
            *(training_facts(result) if "config" in result else []),
            ("Версии", f"Python {machine['python']}, {versions}"),
        ]
        head = ""
    else:
        head = f'<p class="failed">Прогон не закончен: {escape(result.get("error", "нет результата"))}</p>'
    return f"<footer><h2>Как повторить</h2>{head}{definitions(facts)}</footer>"


def training_facts(result: dict[str, Any]) -> list[tuple[str, str]]:
    """Seeds, memory, what was loaded: of a notebook that trains."""
    return [
        ("Начальное значение", f"seed = {result['config']['seed']}, повторений: {result['config']['n_seeds']}"),
        ("Память процесса", f"до {format_number(result['peak_rss_mb'] / 1e3)} ГБ"),
        *loaded_runs(result),
    ]


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
