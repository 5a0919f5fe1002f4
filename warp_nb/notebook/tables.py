"""Tables of an experiment in Russian; every cell is escaped, so text of a model cannot inject."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from warp_nb.measure.checks import Check
from warp_nb.notebook.numbers import fixed, format_estimate, format_number
from warp_nb.studies.original import ROWS, match

if TYPE_CHECKING:
    from IPython.display import HTML

    from warp_nb.measure.evaluation import Evaluation
    from warp_nb.studies.experiment import ExperimentResult

MEASURES = {
    "reward_reference": "Средняя награда SFT",
    "reward_policy": "Средняя награда WARP",
    "reward_difference": "Разность наград, парная",
    "kl_reference_policy": "KL(sft‖warp), нат на последовательность",
    "kl_policy_reference": "KL(warp‖sft), нат на последовательность",
    "perplexity_reference": "Перплексия SFT по θ_sft, на токен",
    "perplexity_policy": "Перплексия WARP по θ_sft, на токен",
    "distinct_reference": "Доля разных биграмм SFT",
    "distinct_policy": "Доля разных биграмм WARP",
}
ORIGINAL_COLUMN = "Исходный отчёт (другие модель и шкала награды)"
CLASSES = ("warp-nb", "tex2jax_ignore", "mathjax_ignore")
"""Of a table: our style, and no formulas in the text of a model."""
VERDICTS = {"passed": "пройдена", "failed": "НЕ ПРОЙДЕНА", "silent": "не применима"}


def results_table(result: ExperimentResult) -> HTML:
    """The nine measures with their intervals, beside the original report's figures if it ran these settings."""
    number = match(result.config)
    original = ROWS[number].measures() if number else {}
    rows = []
    for name, title in MEASURES.items():
        row = {"Величина": title, "Измерено": format_estimate(result.summary[name], signed=name == "reward_difference")}
        if original:
            row[ORIGINAL_COLUMN] = original_figure(name, original[name]) if name in original else "нет"
        rows.append(row)
    return table(rows)


def original_figure(name: str, value: float) -> str:
    """A figure as the report printed it: seven decimals of a reward, five of a KL."""
    return fixed(value, 5 if name.startswith("kl") else 7)


def geometry_table(result: ExperimentResult) -> HTML:
    """Angle and norms of the runs' task vectors, a row a pair and block."""
    several = result.config.n_seeds > 1
    rows = [
        ({"Сид": pair["seed"]} if several else {})
        | {
            "Итерация": pair["iteration"],
            "Прогоны": f"{pair['run_a']} и {pair['run_b']}",
            "Блок": pair["block"],
            "cos Ω": format_number(pair["cosine"]),
            "Ω, °": format_number(pair["omega"]),
            "‖δ‖ первого": format_number(pair["norm_a"]),
            "‖δ‖ второго": format_number(pair["norm_b"]),
        }
        for pair in result.geometry.to_dict("records")
    ]
    return table(rows, empty="Пар прогонов нет: M = 1.")


def samples_table(evaluation: Evaluation, count: int = 5, name: str = "WARP") -> HTML:
    """Completions of the reference and of the policy, called `name`, after the same held-out beginnings."""
    rows = [
        {
            "Начало": sample["prompt"],
            "SFT": sample["reference"],
            "Награда SFT": format_number(sample["reward_reference"]),
            name: sample["policy"],
            f"Награда {name}": format_number(sample["reward_policy"]),
        }
        for sample in evaluation.samples[:count]
    ]
    return table(rows, empty="Примеров нет.")


def checks_table(checks: Sequence[Check]) -> HTML:
    """«Проверки»: what failed stands first, with what it means."""
    rows = [
        {
            "Проверка": check.title,
            "Итог": VERDICTS[verdict(check)],
            "Измерено": check.measured,
            "Правило": check.rule,
            "Что значит отказ": check.hint,
            "Имя": check.name,
        }
        for check in sorted(checks, key=lambda check: not check.failed)
    ]
    return table(rows, empty="Проверок нет.")


def verdict(check: Check) -> str:
    """passed, failed or silent."""
    if not check.applies:
        return "silent"
    return "passed" if check.passed else "failed"


def table(rows: Sequence[dict[str, Any]], empty: str = "") -> HTML:
    """Rows as an escaped HTML table that MathJax leaves alone; `empty` stands for no rows."""
    import pandas as pd
    from IPython.display import HTML

    frame = pd.DataFrame(list(rows)) if rows else pd.DataFrame({"": [empty]})
    with pd.option_context("display.max_colwidth", None):
        return HTML(frame.to_html(escape=True, index=False, border=0, classes=list(CLASSES)))
