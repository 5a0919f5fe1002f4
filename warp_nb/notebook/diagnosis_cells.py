"""What the notebook of the diagnosis shows: verdicts, figures, the original's rows beside ours."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Any

from warp_nb.measure.checks import TEXT
from warp_nb.notebook.cells import DPI, WIDTH
from warp_nb.notebook.numbers import format_number, format_share, plural
from warp_nb.notebook.plots import decimal_commas, styles
from warp_nb.notebook.tables import original_figure, table
from warp_nb.report.results import OK
from warp_nb.runs.weights import write_json
from warp_nb.studies.diagnosis import (
    DRIFT_LR,
    ONE_SEED,
    PRECISION_SEEDS,
    SEEDS,
    SUSPECTS,
    SWEEP_LR,
    Cell,
    RewardCell,
    at_step_one,
    drift,
)
from warp_nb.studies.original import ROWS
from warp_nb.studies.verdicts import (
    INSUFFICIENT,
    SUFFICIENT,
    UNDECIDED,
    ZERO,
    Combination,
    Table,
    Verdict,
    close,
    collapsed_reward,
    combinations_tried,
    equal_runs,
    four_curves,
    half_precision,
    history,
    kl,
    noise,
    rising_curves,
    row,
    spread,
    verdicts,
    warm_ups,
)

if TYPE_CHECKING:
    from IPython.display import HTML, Markdown
    from matplotlib.figure import Figure

REWARDS = {"sound": "исправная", "collapsed": "схлопнувшаяся", "constant": "постоянная"}
SEED_WORDS = {"independent": "у каждого прогона свой", "one": "один на все прогоны"}
WARM_UP_WORDS = {"100": "10 шагов из 100", "5": "5 шагов", "never-stepped": "lr = 0, планировщик не вызван"}
SCORING_WORDS = {"float32": "fp32", "bfloat16": "bfloat16", "mixed": "bfloat16 (только θ_sft)"}
SUSPECT_WORDS = {
    "none": "ошибки нет",
    "collapsed": "схлопнувшаяся модель награды",
    "never-stepped": "lr = 0: планировщик не вызван",
    "one-seed": "один сид на все прогоны",
    "one-model": "одна модель под двумя именами",
    "greedy": "жадная выборка, начала по порядку",
}
ROW_WORDS = {"original": "исходный отчёт", "best": "лучшее сочетание ошибок", "sound": "без ошибок"}
DRIFTS = [(reward, baseline) for reward in ("sound", "constant") for baseline in ("none", "mean")]
COLUMNS = {
    "reward_reference": "Награда SFT",
    "reward_policy": "Награда WARP",
    "kl_reference_policy": "KL(sft‖warp)",
    "kl_policy_reference": "KL(warp‖sft)",
}


def conclusion(cells: Table) -> Markdown:
    """The paragraphs of `conclude` as Markdown."""
    from IPython.display import Markdown

    return Markdown("\n\n".join(conclude(cells)))


def verdict_table(found: Sequence[Verdict]) -> HTML:
    """The prediction that these hypotheses share, and a row for each: verdict, seeds, what was measured."""
    from IPython.display import HTML

    rows = [
        {
            "Гипотеза": verdict.name,
            "Вердикт": verdict.verdict,
            "Сбылось": f"{sum(verdict.outcomes)} из {len(verdict.outcomes)}",
            "Измерено": verdict.measured,
        }
        for verdict in found
    ]
    predictions = dict.fromkeys(verdict.prediction for verdict in found)
    first = "".join(f"<p>Предсказание: {escape(prediction)}.</p>" for prediction in predictions)
    return HTML(first + table(rows).data)


def sweep(cells: Table) -> Figure:
    """Spread of the scores and pair accuracy over the learning rate of RewardTrainer."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 5.6), dpi=DPI, layout="constrained", sharex=True)
    titles = {"spread": "стандартное отклонение оценок", "pair_accuracy": "доля верно упорядоченных пар"}
    for ax, (column, title), (color, _, marker) in zip(axes, titles.items(), styles(), strict=False):
        for lr in SWEEP_LR:
            values = [cells[RewardCell(lr, seed).name][column] for seed in SEEDS]
            ax.plot([lr] * len(values), values, marker, color=color)
        ax.set_xscale("log")
        ax.set_title(title, loc="left", fontsize="medium")
        ax.grid(alpha=0.3)
    axes[0].set_yscale("log")
    decimal_commas(axes[1].yaxis)
    axes[1].axhline(0.5, color="0.5", linestyle="--", linewidth=1)
    axes[1].set_xlabel("lr у RewardTrainer")
    plt.close(figure)
    return figure


def twin_curves(cells: Table) -> Figure:
    """The functional of the two runs of iteration 1, experiment 2: independent seeds, and one seed for both."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 5.6), dpi=DPI, layout="constrained", sharex=True)
    for ax, changes, title in zip(axes, ((), ONE_SEED), ("у каждого прогона свой сид", "сид один на все"), strict=True):
        record = cells[Cell(2, changes=changes).name]
        for name, curve, (color, line, _), width in zip(
            ("theta1_1", "theta2_1"), record["curves"]["objective"], styles(), (4, 1.6), strict=False
        ):
            ax.plot(range(1, len(curve) + 1), curve, color=color, linestyle=line, linewidth=width, label=name)
        ax.set_title(f"награда со штрафом r_β: {title}", loc="left", fontsize="medium")
        decimal_commas(ax.yaxis)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    axes[1].set_xlabel("шаг t")
    plt.close(figure)
    return figure


def precision_table(cells: Table) -> HTML:
    """Experiments 1 and 2: how far the weights went, and the KL that each arithmetic makes of it; medians of seeds."""
    rows = []
    for task, seeds in PRECISION_SEEDS.items():
        for number in (1, 2):
            records = [cells[Cell(number, seed=seed, task=task).name] for seed in seeds]
            moved = median(record["moved"] for record in records)
            lr = ROWS[number].settings["lr"]
            rows.append(
                {
                    "Задача": task,
                    "Эксперимент": number,
                    "‖θ_warp − θ_sft‖": format_number(moved),
                    "Сдвиг веса, в lr": format_number(moved / records[0]["parameters"] ** 0.5 / lr),
                }
                | {
                    f"KL в {words}, нат": format_number(median(kl(record, name) for record in records))
                    for name, words in SCORING_WORDS.items()
                }
            )
    return table(rows)


def split_figure(cells: Table) -> Figure:
    """Experiment 3, the functional in its two parts, as means of all runs less their first step."""
    import matplotlib.pyplot as plt
    import pandas as pd

    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 6.0), dpi=DPI, layout="constrained", sharex=True)
    parts = {"objective": "r_β целиком", "reward": "награда", "penalty": "−β·log(π/π_ema)"}
    for ax, reward in zip(axes, ("sound", "collapsed"), strict=True):
        rows = pd.concat([history(cells[Cell(3, reward, seed=seed).name]) for seed in SEEDS])
        means = rows.groupby("step")[list(parts)].mean()
        for (column, name), (color, line, _) in zip(parts.items(), styles(), strict=False):
            ax.plot(means.index, means[column] - means[column].iloc[0], color=color, linestyle=line, label=name)
        ax.set_title(f"изменение с первого шага: награда {REWARDS[reward]}", loc="left", fontsize="medium")
        decimal_commas(ax.yaxis)
        ax.grid(alpha=0.3)
        ax.legend(fontsize="small")
    axes[1].set_xlabel("шаг t")
    plt.close(figure)
    return figure


def drift_figure(cells: Table) -> Figure:
    """‖δ‖ and KL over lr with a constant and with the sound reward, with and without a baseline; one run, ten steps."""
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(2, 1, figsize=(WIDTH, 8.0), dpi=DPI, layout="constrained", sharex=True)
    panels = {"длина вектора задачи ‖δ‖": drift_norm, "бо́льшая из двух KL, нат": kl}
    for ax, (title, read) in zip(axes, panels.items(), strict=True):
        for (reward, baseline), (color, line, marker) in zip(DRIFTS, styles(), strict=False):
            values = [[read(cells[drift(reward, lr, baseline, seed).name]) for seed in SEEDS] for lr in DRIFT_LR]
            middle = [median(value) for value in values]
            arms = [
                [m - min(v) for m, v in zip(middle, values, strict=True)],
                [max(v) - m for m, v in zip(middle, values, strict=True)],
            ]
            label = drift_words(reward, baseline) + ("" if any(map(any, values)) else ": ровно 0")
            ax.errorbar(DRIFT_LR, middle, yerr=arms, color=color, linestyle=line, marker=marker, capsize=3, label=label)
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.set_title(title, loc="left", fontsize="medium")
        ax.grid(alpha=0.3)
    axes[0].legend(fontsize="small")
    axes[1].set_xlabel("lr; отрезок — размах по сидам")
    plt.close(figure)
    return figure


def drift_words(reward: str, baseline: str) -> str:
    """An arm of the drift in words."""
    return f"награда {REWARDS[reward]}, {'среднее вычтено' if baseline == 'mean' else 'без базовой линии'}"


def drift_norm(record: dict[str, Any]) -> float:
    """The norm of the one run's task vector."""
    return float(record["delta_norms"][0])


def displacement_table(cells: Table) -> HTML:
    """How far one run moves a weight, root mean square in units of lr; medians of the seeds."""
    rows = []
    for reward, baseline in DRIFTS:
        columns = {"Прогон": drift_words(reward, baseline)}
        for lr in DRIFT_LR:
            records = [cells[drift(reward, lr, baseline, seed).name] for seed in SEEDS]
            each = median(map(drift_norm, records)) / records[0]["parameters"] ** 0.5 / lr
            columns[f"lr = {format_number(lr)}"] = format_number(each)
        rows.append(columns)
    return table(rows)


def final_rows(cells: Table) -> HTML:
    """The original's four rows, those of the best-fitting combination, and the sound ones."""
    kinds = row_kinds(cells)
    rows = []
    for number in ROWS:
        for kind, words in ROW_WORDS.items():
            shown = {title: original_figure(name, kinds[kind][number][name]) for name, title in COLUMNS.items()}
            rows.append({"Эксперимент": number, "Что": words} | shown)
    return table(rows)


def row_kinds(cells: Table) -> dict[str, dict[int, dict[str, float]]]:
    """Kind of ROW_WORDS -> experiment -> measures."""
    return {
        "original": {number: found.measures() for number, found in ROWS.items()},
        "best": combinations_tried(cells)[0].rows,
        "sound": {number: row([cells[Cell(number, seed=seed).name] for seed in SEEDS], "float32") for number in ROWS},
    }


def best_text(cells: Table) -> str:
    """The best-fitting combination in words, with how many were tried and what it leaves unexplained."""
    tried = combinations_tried(cells)
    best, first = tried[0], [one for one in tried if one.matched == tried[0].matched]
    words = (
        f"Перебрано {len(tried)} {plural(len(tried), 'сочетание', 'сочетания', 'сочетаний')}. Лучше всего подходит: "
        f"{described(best)}. Оно повторяет {best.matched} из {len(best.traits)} признаков исходного отчёта"
    )
    words += f"; не повторяет: {', '.join(best.missing)}." if best.missing else "."
    if len(first) > 1:
        more = len(first) - 1
        words += f" Столько же повторяют ещё {more} {plural(more, 'сочетание', 'сочетания', 'сочетаний')}: по этим "
        words += "данным их не различить."
    return words


def described(combination: Combination) -> str:
    """The choices of a combination in words."""
    return (
        f"награда {REWARDS[combination.reward]}, сид {SEED_WORDS[combination.seeds]}, прогрев "
        f"эксперимента 1: {WARM_UP_WORDS[combination.warm_up]}, KL посчитана в {SCORING_WORDS[combination.scoring]}"
    )


def conclude(cells: Table) -> list[str]:
    """What each oddity of the report can come from, by the verdicts; what remains unexplained; what then follows."""
    groups = {
        "Награда не движется, хотя KL растёт": [collapsed_reward(cells)],
        "KL около 0,025 в эксперименте 2": half_precision(cells),
        "KL печатается как 0,00000 в эксперименте 1": warm_ups(cells),
        "Четыре равные кривые эксперимента 1": four_curves(cells),
        "Два прогона неотличимы": equal_runs(cells)[1:],
        "KL растёт, хотя учиться нечему": noise(cells),
        "Кривые экспериментов 3 и 4 растут": [rising_curves(cells)],
    }
    lines = [f"- **{oddity}.** {causes(found)}" for oddity, found in groups.items()]
    paragraphs = [
        "\n".join(lines),
        rounding_beside_zero(cells),
        "Ни одно сочетание не повторило всех признаков отчёта. Перебор сделан на задаче small, а величина KL зависит "
        "от модели и от длины текста, которых отчёт не называет."
        if combinations_tried(cells)[0].missing
        else "",
        "Если награда отчёта постоянна, о lr и прогреве его таблица не говорит ничего: постоянную награду не поднимет "
        "никакой lr."
        if groups["Награда не движется, хотя KL растёт"][0].verdict == SUFFICIENT
        else "",
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


def causes(found: Sequence[Verdict]) -> str:
    """The hypotheses by their verdicts, in words."""
    words = {SUFFICIENT: "Достаточно", UNDECIDED: "Не различить", INSUFFICIENT: "Недостаточно"}
    named = {
        said: [one.name.removeprefix("четыре кривые: ") for one in found if one.verdict == verdict]
        for verdict, said in words.items()
    }
    return " ".join(f"{said}: {'; '.join(names)}." for said, names in named.items() if names)


def rounding_beside_zero(cells: Table) -> str:
    """Whether an arithmetic that makes the KL of experiment 2 leaves 0.00000 to experiment 1."""
    seen = [
        kl(cells[Cell(1, seed=seed, task=task).name], scoring)
        for task, seeds in PRECISION_SEEDS.items()
        for scoring in ("bfloat16", "mixed")
        for seed in seeds
        if close(kl(cells[Cell(2, seed=seed, task=task).name], scoring), ROWS[2].kl_reference_policy)
    ]
    if not seen or min(seen) < ZERO:
        return ""
    said = (
        "Арифметика, которая даёт эксперименту 2 его KL, показала бы и в эксперименте 1 не ноль, а "
        f"{spread(seen)} ната."
    )
    silent = [verdict.name for verdict in warm_ups(cells) if verdict.verdict == SUFFICIENT]
    return f"{said} Ноль в любой арифметике дал только такой прогрев: {'; '.join(silent)}." if silent else said


def traits_table(cells: Table, count: int = 6) -> HTML:
    """The combinations that fit best, with the traits each of them shows."""
    rows = []
    for one in combinations_tried(cells)[:count]:
        rows.append(
            {
                "Награда": REWARDS[one.reward],
                "Сид": SEED_WORDS[one.seeds],
                "Прогрев эксперимента 1": WARM_UP_WORDS[one.warm_up],
                "KL посчитана в": SCORING_WORDS[one.scoring],
            }
            | {name: "да" if shown else "нет" for name, shown in one.traits.items()}
        )
    return table(rows)


def step_one(cells: Table) -> HTML:
    """Which line of «Проверки» sees each fault after a single step a run."""
    rows = []
    for name in SUSPECTS:
        failed = cells[at_step_one(name).name]["failed"]
        seen = "; ".join(f"«{TEXT[check][0]}»" for check in failed) or "ни одна: всё в порядке"
        rows.append({"Ошибка": SUSPECT_WORDS[name], "Не пройдены на шаге 1": seen})
    return table(rows)


def gate_table(cells: Table) -> HTML:
    """The reward models of the sweep."""
    rows = []
    for lr in SWEEP_LR:
        kept = [cells[RewardCell(lr, seed).name] for seed in SEEDS]
        rows.append(
            {
                "lr": format_number(lr),
                "Разброс оценок": "; ".join(format_number(one["spread"]) for one in kept),
                "Верных пар": "; ".join(format_share(one["pair_accuracy"]) for one in kept),
            }
        )
    return table(rows)


def summary(table: dict[str, Any]) -> dict[str, Any]:
    """What the reports take from here: verdicts, the three kinds of rows, what «Проверки» see; plain JSON values.

    `table` is all that `diagnosis.read_table` returns.
    """
    cells: Table = table["cells"]
    tried = combinations_tried(cells)
    best = tried[0]
    return {
        "status": OK,
        "verdicts": [verdict.to_json() for verdict in verdicts(cells)],
        "tried": len(tried),
        "best": {name: getattr(best, name) for name in ("reward", "seeds", "warm_up", "scoring", "traits", "matched")},
        "as_good": sum(one.matched == best.matched for one in tried) - 1,
        "rows": {
            kind: {f"exp{number}": row for number, row in rows.items()} for kind, rows in row_kinds(cells).items()
        },
        "seen_at_step_1": {name: cells[at_step_one(name).name]["failed"] for name in SUSPECTS},
        "conclusion": [best_text(cells), *conclude(cells)],
        "cells": len(cells),
        "cells_seconds": sum(cell["seconds"] for cell in cells.values()),
        "seeds": SEEDS,
        "machine": table["machine"],
    }


def save(table: dict[str, Any], path: str) -> None:
    """Write `summary` atomically; an empty path writes nothing."""
    if path:
        write_json(Path(path), summary(table))
