"""Contents of the notebook of the diagnosis: verdicts, figures, the original's rows and ours.

The table may lack cells: what they would show is left out or says «не измерено».
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from statistics import median
from typing import Any

import pandas as pd
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.check_words import WORDS
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.experiment_page import record
from warp_nb.notebook.numbers import counted, format_number
from warp_nb.notebook.palette import RUNS, styles
from warp_nb.notebook.plots import dressed, error_arms, panels
from warp_nb.notebook.prose import filled, paragraphs, words
from warp_nb.notebook.tables import TABLE_WORDS, filled_table, folded, table
from warp_nb.studies import fit, readings, verdicts
from warp_nb.studies.cells import (
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
from warp_nb.studies.diagnosis import CellTable, missing
from warp_nb.studies.fit import Combination, combinations_tried, measured_of
from warp_nb.studies.original import ROWS
from warp_nb.studies.readings import Table, kl
from warp_nb.studies.verdicts import NOT_MEASURED, Verdict

VERDICT_WORDS = words("verdicts")
OUTCOMES = {True: "да", False: "нет", None: "не измерено"}
"""Words for what a trait may be."""
DRIFTS = [(reward, baseline) for reward in ("sound", "constant") for baseline in ("none", "mean")]


def told(verdict: Verdict) -> dict[str, Any]:
    """Put a verdict into words: name, english, prediction, measured, verdict, verdict_english, and its outcomes."""
    facts, said = vars(readings) | {"DRIFT_LR": DRIFT_LR} | verdict.figures, VERDICT_WORDS[verdict.hypothesis]
    if verdict.verdict == NOT_MEASURED:
        said = said | {"measured": ""}
    found = {key: filled(text.replace("\n", " "), facts) for key, text in said.items()}
    found["measured"] += unmeasured_cells(verdict.absent, "; " if found["measured"] else "")
    found["verdict"] = found.pop("share", "") or VERDICT_WORDS["verdicts"][verdict.verdict]
    found["verdict_english"] = found.pop("share_english", "") or verdict.verdict
    return found | {"outcomes": list(verdict.outcomes)}


def unmeasured_cells(count: int, before: str = "") -> str:
    """Say how many cells are not measured; empty if all are."""
    return f"{before}не измерено: {counted(count, 'прогон', 'прогона', 'прогонов')}" if count else ""


def progress(cells: Table) -> str:
    """Say which command measures the cells that the table lacks; empty if it is whole."""
    return unmeasured_cells(len(missing(cells))) + ", их измерит warp-nb diagnosis" * bool(missing(cells))


def trait(name: str) -> str:
    """Describe a trait of the original's table and plots."""
    return filled(VERDICT_WORDS["traits"][name], vars(readings))


def choices(combination: Combination) -> dict[str, str]:
    """Describe the choices of a combination, by the names of `Combination.choices`."""
    return {name: VERDICT_WORDS["choices"][name][chosen] for name, chosen in combination.choices.items()}


def verdict_table(found: Sequence[Verdict]) -> HTML:
    """Show the prediction that these hypotheses share, and one row each: verdict, seeds, what was measured."""
    rows = [told(verdict) for verdict in found]
    predictions = dict.fromkeys(row["prediction"] for row in rows)
    first = "".join(f"<p>Предсказание: {escape(prediction)}.</p>" for prediction in predictions)
    return HTML(first + filled_table("verdicts", rows).data)


def sweep(cells: Table) -> Figure:
    """Plot the spread of the scores and the pair accuracy over the learning rate of RewardTrainer."""
    titles = {"spread": "стандартное отклонение оценок", "pair_accuracy": "доля верно упорядоченных пар"}
    with panels(2, 5.6) as (figure, axes):
        for ax, (column, title), (color, _, marker) in zip(axes, titles.items(), styles(), strict=False):
            for lr in SWEEP_LR:
                values = [record[column] for record in measured_of(cells, [RewardCell(lr, seed) for seed in SEEDS])]
                ax.plot([lr] * len(values), values, marker, color=color)
            dressed(ax, title, xscale="log", yscale="log" if column == "spread" else "linear")
        axes[1].axhline(0.5, color="0.5", linestyle="--", linewidth=1)
        axes[1].set_xlabel("lr у RewardTrainer")
    return figure


def twin_curves(cells: Table) -> Figure:
    """Plot the functional of the two runs of iteration 1, experiment 2: independent seeds, and one seed for both."""
    titles, names = {(): "у каждого прогона свой сид", ONE_SEED: "сид один на все"}, ("theta1_1", "theta2_1")
    with panels(2, 5.6) as (figure, axes):
        for ax, (faults, title) in zip(axes, titles.items(), strict=True):
            records = measured_of(cells, [Cell(2, faults=faults)])
            runs = records[0]["curves"]["objective"] if records else []
            for name, curve in zip(names, runs, strict=False):
                color, line, _ = RUNS[name]
                ax.plot(range(1, len(curve) + 1), curve, color=color, linestyle=line, label=name)
            dressed(ax, f"награда со штрафом r_β: {title}", legend=ax is axes[0])
        axes[1].set_xlabel("шаг t")
    return figure


def precision_table(cells: Table) -> HTML:
    """Show for experiments 1 and 2 how far the weights moved, and the KL in each precision; medians over seeds."""
    rows = []
    for task, seeds in PRECISION_SEEDS.items():
        for number in (1, 2):
            records = measured_of(cells, [Cell(number, seed=seed, task=task) for seed in seeds])
            if not records:
                continue
            moved = median(record["moved"] for record in records)
            each = moved / records[0]["parameters"] ** 0.5 / ROWS[number].settings["lr"]
            kls = {name: median(kl(record, name) for record in records) for name in VERDICT_WORDS["choices"]["scoring"]}
            rows.append({"task": task, "number": number, "moved": moved, "each": each, "kl": kls})
    return filled_table("precision", rows)


def split_figure(cells: Table) -> Figure:
    """Plot the functional of experiment 3 and its two parts, as means over all runs minus their first step."""
    parts = {"objective": "r_β целиком", "reward": "награда", "penalty": "−β·log(π/π_ema)"}
    with panels(2, 6.0) as (figure, axes):
        for ax, reward in zip(axes, ("sound", "collapsed"), strict=True):
            title = f"изменение с первого шага: награда {VERDICT_WORDS['choices']['reward'][reward]}"
            records = measured_of(cells, [Cell(3, reward, seed=seed) for seed in SEEDS])
            if not records:
                dressed(ax, f"{title}, не измерено")
                continue
            rows = pd.concat(map(readings.history, records))
            means = rows.groupby("step")[list(parts)].mean()
            for (column, name), (color, line, _) in zip(parts.items(), styles(), strict=False):
                ax.plot(means.index, means[column] - means[column].iloc[0], color=color, linestyle=line, label=name)
            dressed(ax, title, legend=ax is axes[0])
        axes[1].set_xlabel("шаг t")
    return figure


def drift_figure(cells: Table) -> Figure:
    """Plot ‖δ‖ and KL over lr for a constant and the sound reward, with and without a baseline; one run, ten steps."""
    measures = {"длина вектора задачи ‖δ‖": drift_norm, "бо́льшая из двух KL, нат": kl}
    with panels(2, 8.0) as (figure, axes):
        for ax, (title, read) in zip(axes, measures.items(), strict=True):
            for (reward, baseline), (color, line, marker) in zip(DRIFTS, styles(), strict=False):
                groups = {lr: drifted(cells, reward, lr, baseline) for lr in DRIFT_LR}
                values = {lr: [read(record) for record in records] for lr, records in groups.items() if records}
                spans = [Estimate(median(value), min(value), max(value)) for value in values.values()]
                label = drift_words(reward, baseline) + ("" if any(map(any, values.values())) else ": ровно 0")
                style: dict[str, Any] = {"color": color, "linestyle": line, "marker": marker, "capsize": 3}
                ax.errorbar([*values], [span.value for span in spans], yerr=error_arms(spans), label=label, **style)
            dressed(ax, title, xscale="log", yscale="log", legend=ax is axes[0])
        axes[1].set_xlabel("lr; отрезок — размах по сидам")
    return figure


def drifted(cells: Table, reward: str, lr: float, baseline: str) -> list[dict[str, Any]]:
    """Return the records of an arm of the drift at one learning rate, one per seed that was measured."""
    return measured_of(cells, [drift(reward, lr, baseline, seed) for seed in SEEDS])


def drift_words(reward: str, baseline: str) -> str:
    """Describe an arm of the drift."""
    return f"награда {VERDICT_WORDS['choices']['reward'][reward]}, {VERDICT_WORDS['baselines'][baseline]}"


def drift_norm(record: dict[str, Any]) -> float:
    """Return the norm of the task vector of the only run."""
    return float(record["delta_norms"][0])


def displacement_table(cells: Table) -> HTML:
    """Show how far one run moves a weight, root mean square in units of lr; medians over seeds."""
    rows = []
    for reward, baseline in DRIFTS:
        columns = {"Прогон": drift_words(reward, baseline)}
        for lr in DRIFT_LR:
            records = drifted(cells, reward, lr, baseline)
            if not records:
                continue
            each = median(map(drift_norm, records)) / records[0]["parameters"] ** 0.5 / lr
            columns[f"lr = {format_number(lr)}"] = format_number(each)
        rows.append(columns)
    return table(rows)


def final_rows(cells: Table) -> HTML:
    """Show the original's four rows, those of the best-fitting combination, and those without a fault."""
    kinds = row_kinds(cells)
    rows = [
        {"number": number, "kind": said, "row": kinds[kind].get(number)}
        for number in ROWS
        for kind, said in VERDICT_WORDS["rows"].items()
    ]
    return filled_table("final", rows)


def row_kinds(cells: Table) -> dict[str, dict[int, dict[str, float]]]:
    """Return kind of row -> experiment -> measures; the experiments whose cells the table has."""
    sound = {number: measured_of(cells, [Cell(number, seed=seed) for seed in SEEDS]) for number in ROWS}
    return {
        "original": {number: found.measures() for number, found in ROWS.items()},
        "best": combinations_tried(cells)[0].rows,
        "sound": {number: fit.row(records, "float32") for number, records in sound.items() if records},
    }


def causes_outcome(table: CellTable) -> Markdown:
    """Return «Итог» in three sentences as Markdown."""
    return Markdown(diagnosis_outcome(table.cells))


def diagnosis_outcome(cells: Table) -> str:
    """Say what most probably happened, which oddities single faults explain, and what speaks against it."""
    singles = single_faults(verdicts.verdicts(cells))
    facts = best_facts(cells)
    return paragraphs(
        "diagnosis-outcome",
        **facts,
        needed=math.ceil(fit.MOST * len(facts["best"].traits)),
        several={fault: oddities for fault, oddities in singles.items() if len(oddities) > 1},
        singles={
            oddity: [fault for fault, explained in singles.items() if oddity in explained]
            for oddity in dict.fromkeys(one for oddities in singles.values() for one in oddities)
        },
    )[0]


def single_faults(found: Sequence[Verdict]) -> dict[str, list[str]]:
    """Return fault -> the oddities that it alone is sufficient to explain, both in words."""
    explained: dict[str, dict[str, None]] = {}
    for verdict in found:
        faults = faults_of(verdict)
        if verdict.verdict == verdicts.SUFFICIENT and len(faults) == 1:
            explained.setdefault(faults[0], {})[VERDICT_WORDS["oddities"][verdict.hypothesis]] = None
    return {fault: list(oddities) for fault, oddities in explained.items()}


def faults_of(verdict: Verdict) -> list[str]:
    """Return the faults, in words, that the runs of a verdict had together; a warm-up is a setting and no fault."""
    figures, suspects = verdict.figures, VERDICT_WORDS["suspects"]
    names = [figures.get(key, "none") for key in ("reward", "warm_up", "shared", "fault")]
    faults = [suspects[name] for name in names if name != "none" and name in suspects]
    if figures.get("reward") == "collapsed-fp16":
        faults.append(suspects["greedy"])
    if verdict.hypothesis == "rising-curves":
        faults.append(suspects["collapsed"])
    if "scoring" in figures:
        faults.append(f"KL посчитана в {VERDICT_WORDS['choices']['scoring'][figures['scoring']]}")
    return faults


def best_text(cells: Table) -> str:
    """Describe the best-fitting combination, how many were tried, and what it leaves unexplained."""
    return paragraphs("diagnosis", **best_facts(cells), causes={})[0]


def best_facts(cells: Table) -> dict[str, Any]:
    """Return facts about the best-fitting combination: its choices and traits, and what was tried beside it."""
    tried = combinations_tried(cells)
    best = tried[0]
    equals = [one for one in tried if (one.matched, one.judged) == (best.matched, best.judged)]
    by_outcome = {shown: [trait(name) for name, found in best.traits.items() if found is shown] for shown in OUTCOMES}
    return {
        "tried": len(tried),
        "best": best,
        "choices": choices(best),
        "happened": [
            said[best.choices[name]]
            for name, said in VERDICT_WORDS["happened"].items()
            if all(one.choices[name] == best.choices[name] for one in equals)
        ],
        "found": by_outcome[True],
        "missing": by_outcome[False],
        "unmeasured": by_outcome[None],
        "judged": [one.judged for one in tried],
        "MOST": fit.MOST,
        "explained": best.matched >= fit.MOST * len(best.traits),
        "undecided": sum(one.undecided for one in tried),
        "as_good": len(equals) - 1,
        "progress": progress(cells),
    }


@conclude.register
def conclude_diagnosis(table: CellTable) -> list[str]:
    """Write the best-fitting combination, and the possible causes of each oddity of the report by the verdicts."""
    found = verdicts.verdicts(table.cells)
    causes: dict[str, dict[str, list[str]]] = {}
    oddities, kinds = VERDICT_WORDS["oddities"], VERDICT_WORDS["verdicts"]
    for verdict in found:
        if verdict.figures.get("fault") != "none":  # the control of independent runs
            names = causes.setdefault(oddities[verdict.hypothesis], {word: [] for word in kinds})
            said = told(verdict)
            name = said["name"].removeprefix("четыре кривые: ")
            names[verdict.verdict].append(f"{name} ({said['verdict']})" if verdict.share else name)
    enough = [verdict for verdict in found if verdict.verdict == verdicts.SUFFICIENT]
    return paragraphs(
        "diagnosis",
        **best_facts(table.cells),
        causes=causes,
        rounded=rounded_beside_zero(table.cells),
        silent=[told(verdict)["name"] for verdict in enough if verdict.hypothesis == "warm-up"],
        constant=any(verdict.hypothesis == "collapsed-reward" for verdict in enough),
    )


def rounded_beside_zero(cells: Table) -> list[float]:
    """Return KLs of experiment 1 in the precisions that give the KL of experiment 2; empty if one prints as 0.00000."""
    seen = []
    for task, seeds in PRECISION_SEEDS.items():
        rows, _ = verdicts.observed(
            cells, [[Cell(number, seed=seed, task=task) for number in (1, 2)] for seed in seeds]
        )
        seen += [
            kl(first, scoring)
            for scoring in ("bfloat16", "mixed")
            for first, second in rows
            if readings.close(kl(second, scoring), ROWS[2].kl_reference_policy)
        ]
    return [] if seen and min(seen) < readings.ZERO else seen


def traits_table(cells: Table, count: int = 3) -> HTML:
    """Show the best-fitting combinations, a column each: choices, traits that it reproduces, how many were judged."""
    columns: dict[str, dict[str, str]] = {}
    for place, one in enumerate(combinations_tried(cells)[:count], start=1):
        shown = {VERDICT_WORDS["headings"][name]: said for name, said in choices(one).items()}
        shown |= {trait(name): OUTCOMES[found] for name, found in one.traits.items()}
        columns[f"№ {place}"] = shown | {"повторено": f"{one.matched} из {one.judged}"}
    names = next(iter(columns.values()))
    return table([{"": name} | {place: shown[name] for place, shown in columns.items()} for name in names])


def combinations_table(cells: Table) -> HTML:
    """List every combination, the best fit first, folded."""
    tried = combinations_tried(cells)
    rows = [{"place": place, "one": one, "said": choices(one)} for place, one in enumerate(tried, start=1)]
    title = f"{TABLE_WORDS['combinations']['title']} ({counted(len(rows), 'строка', 'строки', 'строк')})"
    return folded(title, filled_table("combinations", rows))


def step_one(cells: Table) -> HTML:
    """Show which line of «Проверки» detects each fault after a single step per run."""
    said = VERDICT_WORDS["suspects"]
    rows = [{"suspect": said[one], "failed": failed} for one, failed in failed_at_step_one(cells).items()]
    return filled_table("step-one", rows, checks=WORDS)


def failed_at_step_one(cells: Table) -> dict[str, list[str] | None]:
    """Return suspect -> the failed «Проверки», None if not measured."""
    names = {one: at_step_one(one).name for one in SUSPECTS}
    return {one: cells[name]["failed"] if name in cells else None for one, name in names.items()}


def gate_table(cells: Table) -> HTML:
    """Show the reward models of the sweep."""
    rows = [{"lr": lr, "models": measured_of(cells, [RewardCell(lr, seed) for seed in SEEDS])} for lr in SWEEP_LR]
    return filled_table("gate", rows)


@record.register
def diagnosis_record(table: CellTable) -> dict[str, Any]:
    """Return what the reports use: verdicts, the three kinds of rows, the failed «Проверки»; plain JSON values."""
    cells, found = table.cells, best_facts(table.cells)
    best = found["best"]
    return {
        "status": "ok",
        "verdicts": [told(verdict) for verdict in verdicts.verdicts(cells)],
        "tried": found["tried"],
        "best": best.choices | {"traits": best.traits, "matched": best.matched, "judged": best.judged},
        "explained": found["explained"],
        "outcome": diagnosis_outcome(cells),
        "as_good": found["as_good"],
        "rows": {
            kind: {f"exp{number}": row for number, row in rows.items()} for kind, rows in row_kinds(cells).items()
        },
        "seen_at_step_1": failed_at_step_one(cells),
        "cells": len(cells),
        "missing": len(missing(cells)),
        "cells_seconds": sum(cell["seconds"] for cell in cells.values()),
        "seeds": SEEDS,
        "machine": table.machine,
    }
