"""What the report command says before it runs a task that `auto` chose."""

from __future__ import annotations

import shlex
from argparse import Namespace

from warp_nb.report.catalogue import Result, results_of
from warp_nb.report.request import REPORTS, SEEDS_BY_TASK
from warp_nb.studies.records import ReportedRecord, fault_of
from warp_nb.studies.result_files import MAIN_TASK, OK, reports_of

MADE = {(): "reports", ("exp5",): "exp5"}
"""Experiments as they are named on the command line -> make's target for them."""


def introduction(chosen: Namespace) -> list[str]:
    """Say which task `auto` is and why, where its reports are, what they replace, and how to get the larger ones."""
    seeds = max(given.get("n_seeds", 0) for given in chosen.wanted.values())
    folder = reports_of(chosen.task, chosen.out)
    said = [f"task {chosen.task}, trainings an experiment: {seeds} (auto: {chosen.why}) -> {folder / 'index.html'}"]
    there = max((found["config"]["n_seeds"] for found in reported_results(chosen.task, chosen)), default=0)
    if there > seeds:
        said.append(f"  replaces the results of {there} trainings in {folder}; --out FOLDER writes elsewhere")
    if chosen.task != MAIN_TASK:
        said.append(f"  full size: {in_words(chosen, MAIN_TASK)}{taken(chosen, MAIN_TASK)}")
        if seeds < SEEDS_BY_TASK[chosen.task]:
            said.append(f"  {SEEDS_BY_TASK[chosen.task]} trainings: {in_words(chosen, chosen.task)}")
    return said


def reported_results(task: str, chosen: Namespace) -> list[Result]:
    """List the finished results of a task that the chosen experiments have in the folder of reports."""
    found = results_of(task, chosen.out, [one for one in chosen.experiments if not one.once])
    return [one for one in found.values() if one["status"] == OK and not fault_of(ReportedRecord, one)]


def in_words(chosen: Namespace, task: str) -> str:
    """Return the command for the same reports of a named task: make's, where it has one, and ours."""
    words = ["warp-nb", "report", *chosen.named, "--task", task]
    words += [word for pair in chosen.parameters for word in ("-p", *pair)]
    if chosen.out != REPORTS:
        return shlex.join([*words, "--out", str(chosen.out)])
    made = MADE.get(tuple(chosen.named)) if not chosen.parameters else None
    return f"make {made} TASK={task} (without make: {shlex.join(words)})" if made else shlex.join(words)


def taken(chosen: Namespace, task: str) -> str:
    """Say how long the chosen experiments of a task took and where, by their results; empty if one has none."""
    found = reported_results(task, chosen)
    if chosen.parameters or len(found) < sum(not one.once for one in chosen.experiments):
        return ""
    machines = {one["machine"]["gpu"] or f"{one['machine']['cpu']}, {one['run']['cores']} cores" for one in found}
    return f"; took {sum(one['run']['seconds'] for one in found) / 60:.0f} min on {' and '.join(sorted(machines))}"
