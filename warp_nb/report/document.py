"""`report.html`: one document in the form of the original report, made from the result files of all tasks."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from warp_nb.notebook.comparison_page import fronts_plane
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.equal_kl_words import FRONT_WORDS, say_equal_kl
from warp_nb.notebook.findings import angle_facts
from warp_nb.notebook.numbers import format_bracketed, format_brief, reported
from warp_nb.notebook.plots import png
from warp_nb.notebook.story import curves_reading, outcome_words
from warp_nb.report.catalogue import Experiment, Result, declared, rows_of
from warp_nb.report.document_figures import PolicyPoint, curves_png, main_png
from warp_nb.report.gathered import REPORTED_MEASURES, ComparedResult, Ended, Findings, say
from warp_nb.report.page import CONTENT_POLICY, rendered, stylesheet
from warp_nb.studies.equal_kl import WARP
from warp_nb.studies.original import ASSUMED_TASK, COMMON, ROWS
from warp_nb.studies.result_files import OK
from warp_nb.studies.verdicts import SUFFICIENT

ORIGINAL = "исходный отчёт"
SETTING_NAMES = {"optimizer": "optimizer", "lr": "lr", "warmup_steps": "warm-up"}
"""The original's names of settings, where they are not ours."""
COLLAPSED_FAULT, ONE_SEED_FAULT = "collapsed reward model", "one seed for all runs"
"""English names of verdicts of the diagnosis that the document tells of first."""


def document(found: Findings) -> str:
    """Render the document of all tasks that have reports; what was not run is said in its section."""
    others = [one for one in found.experiments if one.section not in ("", "comparison")]
    picture = main_picture(found)
    return rendered(
        "document.html.j2",
        say=say,
        about=about(found),
        main=main_sentences(found),
        picture=base64.b64encode(picture).decode() if picture else "",
        trained=[trained_section(found, one) for one in rows_of(found.experiments)],
        compared=[compared_section(found, one) for one in found.experiments if one.section == "comparison"],
        others=[other_section(found, one) for one in others],
        angles=[*angle_rows(found)],
        checks=[*check_rows(found)],
        assumed=ASSUMED_TASK,
        tasks=task_facts(found),
        runs=[*run_rows(found)],
        versions=next((result["machine"] for *_, result in every_result(found) if "machine" in result), None),
        content_policy=CONTENT_POLICY,
        stylesheet=stylesheet(),
    )


def main_sentences(found: Findings) -> list[str]:
    """Write «Главное», at most eight sentences: the original's experiments, T = 100, the diagnosis, other tasks."""
    text = rendered("main.md.j2", **main_facts(found))
    return [" ".join(part.split()) for part in text.split("\n\n") if part.strip()]


def main_facts(found: Findings) -> dict[str, Any]:
    """Return what «Главное» and README.md tell: the leading results, sufficient faults, experiments that differ.

    Two or more experiments whose policy hardly moved are told in one sentence.
    """
    originals = [one.name for one in found.experiments if one.original]
    differing: dict[str, list[str]] = {}
    for results in found.ended:
        for other in results[1:]:
            if results[0].differs(other):
                differing.setdefault(other.task, []).append(other.title)
    leading = [found.trained[name][0] for name in originals if found.trained[name]]
    still = [one for one in leading if one.still]
    still = still if len(still) > 1 else []
    return {
        "say": say,
        "lead_task": next(iter(found.results)),
        "still": still,
        "moved": [one for one in leading if one not in still],
        "compared": [results[0] for results in found.compared.values() if results and results[0].measures],
        "constant": sufficient(found, COLLAPSED_FAULT),
        "twins": sufficient(found, ONE_SEED_FAULT),
        "differing": differing,
    }


def sufficient(found: Findings, english: str) -> bool:
    """Return whether the diagnosis found a fault, by its English name, sufficient to explain what the original saw."""
    diagnoses = [one for one in found.experiments if one.section == "diagnosis"]
    verdicts = [row for one in diagnoses for _, result in found.done(one) for row in result["verdicts"]]
    return any(row["english"] == english and row["verdict_english"] == SUFFICIENT for row in verdicts)


def main_picture(found: Findings) -> bytes:
    """Draw the gain over KL of every experiment beside the original's rows; empty without a result."""
    series: dict[str, list[PolicyPoint]] = {}
    for results in found.ended:
        for one in results:
            if one.measures and not one.earlier:
                point = PolicyPoint(one.title, one.measures["kl_policy_reference"], one.gain, bool(one.faults))
                series.setdefault(one.task, []).append(point)
    rows = [(str(number), row.kl_policy_reference, row.measures()["reward_difference"]) for number, row in ROWS.items()]
    return main_png(series, rows) if series else b""


def about(found: Findings) -> str:
    """Say which configurations the document tells of, and which leads."""
    lead, *others = found.results
    if not others:
        return f"Конфигурация — {lead}."
    return f"Рассказано о конфигурации {lead}; {', '.join(others)} — рядом в таблицах и там, где исход другой."


def trained_section(found: Findings, one: Experiment) -> dict[str, Any]:
    """Return what the section of an experiment of the common table shows."""
    results, original = found.trained[one.name], one.original
    facts: dict[str, Any] = section(found, one, results) | {"title": f"Эксперимент {one.title}: {one.change}"}
    theirs = original.measures() if original else {}
    facts["rows"] = result_rows(results, {name: reported(value, name) for name, value in theirs.items()})
    facts["columns"] = [*facts["columns"], *([ORIGINAL] if theirs else [])]
    settings = original.settings if original else {}
    config = results[0].record["config"] if results else settings
    guessed = original.guessed if original else ()
    facts["settings"] = [
        setting(name, config[name], assumed_or_changed(name, config[name], settings, guessed))
        for name in (*COMMON, "lr", "warmup_steps")
        if name in config
    ]
    if results:
        lead = results[0]
        samples = lead.record["samples"]
        facts |= {
            "outcome": outcome_words(lead.result),
            "reading": curves_reading(lead.result),
            "conclusion": conclude(lead.result),
            "picture": base64.b64encode(curves_png(lead.result.history)).decode(),
            "sample": samples[0] if samples and (lead.faults or lead.change != "none") else None,
        }
    return facts


def compared_section(found: Findings, one: Experiment) -> dict[str, Any]:
    """Return what the section of a comparison shows."""
    results = found.compared[one.name]
    facts: dict[str, Any] = section(found, one, results) | {"title": one.title}
    facts |= {"rows": result_rows(results, {}), "settings": [], "picture": "", "picture_fronts": "", "course": []}
    if not results:
        return facts
    lead = results[0]
    config, before = lead.record["config"], ROWS[4].settings
    for name in (*COMMON, "lr", "warmup_steps"):
        if name in config:
            changed = config[name] != before[name]
            mark = f"в эксперименте 4 — {code(name, before[name])}" if changed else ""
            facts["settings"].append(setting(name, config[name], mark))
    facts["rows"] += equal_kl_rows(results)
    facts["conclusion"] = say_equal_kl(lead.record["equal_kl"])
    if lead.complete:
        history = pd.DataFrame(lead.record["arms"][WARP]["history"])
        facts["picture"] = base64.b64encode(curves_png(history)).decode()
        plane = fronts_plane(lead.record["summary"], lead.record["equal_kl"])
        facts["picture_fronts"] = base64.b64encode(png(plane)).decode()
        facts["course"] = course(history)
    return facts


def section(found: Findings, one: Experiment, results: Sequence[Ended]) -> dict[str, Any]:
    """Return what the sections of all experiments have in common."""
    lead = results[0] if results else None
    return {
        "name": one.name,
        "once": one.once,
        "lead": lead,
        "columns": [result.task for result in results],
        "unfinished": found.unfinished(one),
        "otherwise": [other for other in results[1:] if results[0].differs(other)],
    }


def other_section(found: Findings, one: Experiment) -> dict[str, Any]:
    """Return what the section of a report shows that is neither an experiment of the table nor a comparison."""
    done = [*found.done(one)]
    return {
        "name": one.name,
        "title": one.title,
        "once": one.once,
        "unfinished": found.unfinished(one),
        "conclusion": done[0][1].get("conclusion", []) if done else [],
        "link": f"{one.name}.html",
    }


def result_rows(results: Sequence[Ended], theirs: dict[str, str]) -> list[dict[str, Any]]:
    """Return the rows of a small table: the measures, a column per task, and the original's."""
    rows = []
    for name, title in REPORTED_MEASURES.items():
        cells = {
            one.task: format_bracketed(one.measures[name], signed=name == "reward_difference")
            if name in one.measures
            else "—"
            for one in results
        }
        rows.append({"title": title, "cells": cells | ({ORIGINAL: theirs[name]} if theirs else {})})
    return rows


def equal_kl_rows(results: Sequence[ComparedResult]) -> list[dict[str, Any]]:
    """Return the rows of WARP's lead over the others at the declared KL."""
    rows = [row for one in results for row in one.equal_kl["declared"] if row["verdict"] != "unmeasured"]
    names = dict.fromkeys(row["name"] for row in rows)
    found = []
    for name in names:
        cells = {}
        for one in results:
            gains = [row["gain"] for row in one.equal_kl["declared"] if row["name"] == name]
            cells[one.task] = format_brief(gains[0]) if gains else "—"
        kl = results[0].equal_kl["declared_kl"]
        found.append({"title": f"При KL {kl:g}: WARP минус «{FRONT_WORDS[name]}»", "cells": cells})
    return found


def course(history: pd.DataFrame) -> list[dict[str, Any]]:
    """Return the mean reward and objective of the first and the last tenth of the steps of each iteration."""
    last = history["step"].max()
    tenth = max(1, last // 10)
    ends = (history["step"] <= tenth, history["step"] > last - tenth)
    return [
        {"iteration": iteration}
        | {
            column: [float(history[end & (history["iteration"] == iteration)][column].mean()) for end in ends]
            for column in ("reward", "objective")
        }
        for iteration in sorted(history["iteration"].unique())
    ]


def setting(name: str, value: Any, mark: str) -> dict[str, str]:
    """Return a line of the settings, as the original lists them."""
    return {"name": SETTING_NAMES.get(name, name), "value": code(name, value), "mark": mark}


def code(name: str, value: Any) -> str:
    """Write the value of a setting as the original does: 1e-6, Adam, 100 steps of warm-up."""
    if name == "warmup_steps":
        return f"{value} шагов" if value else "нет"
    if isinstance(value, str):
        return value.capitalize()
    return f"{value:.0e}".replace("e-0", "e-") if name == "lr" and value == float(f"{value:.0e}") else f"{value:g}"


def assumed_or_changed(name: str, value: Any, theirs: dict[str, Any], guessed: Sequence[str]) -> str:
    """Mark a setting that the original does not state, or that differs from its own."""
    if name in theirs and theirs[name] != value:
        return f"в исходном отчёте {code(name, theirs[name])}"
    return "принято нами" if name in guessed else ""


def every_result(found: Findings) -> Iterator[tuple[Experiment, str, Result]]:
    """Yield every finished result with its experiment and task."""
    for one in found.experiments:
        for task, result in found.done(one):
            yield one, task, result


def angle_rows(found: Findings) -> Iterator[dict[str, Any]]:
    """Yield the angles between task vectors of every experiment that has them."""
    for one in (result for results in found.trained.values() for result in results):
        facts = angle_facts(one.result.geometry)
        if facts:
            yield facts | {"title": one.title, "task": one.task}


def check_rows(found: Findings) -> Iterator[dict[str, Any]]:
    """Yield how many checks of every experiment passed, and which failed."""
    for one in (result for results in found.ended for result in results):
        applied = [check for check in one.record.get("checks", []) if check["applies"]]
        yield {
            "title": one.title,
            "task": one.task,
            "applied": len(applied),
            "passed": sum(check["passed"] for check in applied),
            "failed": [*one.untrusted, *one.faults],
        }


def run_rows(found: Findings) -> Iterator[dict[str, Any]]:
    """Yield command, duration and machine of every finished run."""
    for one, _, result in every_result(found):
        if "run" in result:
            run, machine = result["run"], result.get("machine", {})
            yield {
                "title": one.title,
                "command": run["command"],
                "seconds": run["seconds"],
                "resumed": any(row.get("loaded", 0) > 0 for row in result.get("runs", []) if isinstance(row, dict)),
                "machine": computer_words(machine, run),
            }


def computer_words(machine: dict[str, Any], run: dict[str, Any]) -> str:
    """Name the processor or card of a run, and its cores where they are known."""
    named = machine.get("gpu") or machine.get("cpu") or "не записана"
    return named if machine.get("gpu") or not run.get("cores") else f"{named}, ядер: {run['cores']}"


def task_facts(found: Findings) -> list[dict[str, Any]]:
    """Return what the limits say of every task that has a finished experiment of the common table."""
    facts = []
    for task, results in found.results.items():
        rows = [(one, results[one.name]) for one in rows_of(found.experiments)]
        done = [result for _, result in rows if result["status"] == OK]
        machines = [
            result["machine"]
            for one, at, result in every_result(found)
            if at == task and not one.once and "machine" in result
        ]
        if done:
            facts.append(
                {
                    "name": task,
                    "parameters": done[0]["task"]["parameters"],
                    "trainings": min(result["config"]["n_seeds"] for result in done),
                    "declared": declared(rows),
                    "machines": [*dict.fromkeys(machine["gpu"] or machine["cpu"] for machine in machines)],
                }
            )
    return facts
