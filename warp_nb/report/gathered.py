"""What the reports of all tasks found, for the document, the starting page and README.md: read from result files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from warp_nb.measure.checks import broken_instrument, broken_text
from warp_nb.measure.estimates import Estimate
from warp_nb.measure.evaluation import over_trainings
from warp_nb.notebook.check_words import WORDS
from warp_nb.notebook.equal_kl_words import equal_kl_facts, estimate_of
from warp_nb.notebook.findings import KL_STILL, believable_change, farther
from warp_nb.report.catalogue import Experiment, Result, results_of, rows_of
from warp_nb.report.page import PAGE_ENVIRONMENT
from warp_nb.studies.equal_kl import END, WARP
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.studies.records import CompleteComparison, fault_of
from warp_nb.studies.result_files import MAIN_TASK, MISSING, OK
from warp_nb.tasks.prepared import LOADERS

TASK_ORDER = (MAIN_TASK, *(name for name in LOADERS if name != MAIN_TASK))
"""The one of full size first: where tasks differ, it leads."""
REPORTED_MEASURES = {
    "reward_reference": "Mean SFT reward",
    "reward_policy": "Mean WARP reward",
    "reward_difference": "Разность наград",
    "kl_reference_policy": "KL(sft‖warp)",
    "kl_policy_reference": "KL(warp‖sft)",
}
"""The measures of the original's tables, by its names, and the difference of its rewards."""


DECISIVE = {"ahead", "behind", "alike", "doubtful"}
"""Verdicts of a declared comparison that was measured with intervals."""


class Ended:
    """An experiment of one task that ended with a result; `change` is up, down or none."""

    title: str
    task: str
    record: Result
    measures: dict[str, Estimate]
    change: str
    kl: float
    faults: list[str]
    """What is wrong with the texts."""
    untrusted: list[str]
    """The checks of the measurement that failed."""
    earlier = False
    """Whether an earlier version measured it, with fewer checks of the texts."""

    @property
    def gain(self) -> Estimate:
        """The measured difference of rewards."""
        return self.measures["reward_difference"]

    def differs(self, other: Any) -> bool:
        """Whether another task's result has another verdict: on the reward, on the text, or on the measurement."""
        ours, theirs = ((one.change, bool(one.faults), bool(one.untrusted)) for one in (self, other))
        return ours != theirs


class TrainedResult(Ended):
    """An experiment of the common table."""

    def __init__(self, title: str, task: str, record: Result) -> None:
        self.title, self.task, self.record = title, task, record
        self.result = ExperimentResult.from_json(record)
        self.measures = self.result.summary
        self.change = direction(believable_change(self.result))
        self.kl = farther(self.result)
        self.faults = [WORDS[check.name].brief for check in broken_text(self.result.checks)]
        self.untrusted = [WORDS[check.name].title for check in broken_instrument(self.result.checks)]

    @property
    def still(self) -> bool:
        """Whether the policy hardly moved, so that its reward cannot have changed."""
        return self.kl < KL_STILL and self.change == "none" and not self.faults and not self.untrusted


class ComparedResult(Ended):
    """An experiment 5. Its policy is the one after the last line 13 of WARP."""

    def __init__(self, title: str, task: str, record: Result) -> None:
        self.title, self.task, self.record = title, task, record
        self.equal_kl = equal_kl_facts(record["equal_kl"])
        self.complete = not fault_of(CompleteComparison, record)
        """Whether the file also holds the curves, the points of the fronts and all figures of the last policy."""
        self.earlier = bool(record["equal_kl"].get("earlier"))
        self.measures = self._end_at_equal_kl()
        if self.complete:
            measured = record["arms"][WARP]["measured"]
            ends: list[Any] = [
                SimpleNamespace(**{name: estimate_of(one["end"][name]) for name in REPORTED_MEASURES})
                for one in measured
            ]
            self.measures = {name: over_trainings(ends, name) for name in REPORTED_MEASURES}
        checks = [one for one in record.get("checks", []) if one["applies"] and not one["passed"]]
        known = [WORDS[one["name"]] for one in checks if one["name"] in WORDS]
        self.faults = [words.brief for words in known if words.brief]
        self.untrusted = [words.title for words in known if not words.brief]
        self.change = direction(self.measures["reward_difference"]) if self.measures else "none"
        self.kl = self.measures["kl_policy_reference"].value if self.measures else float("nan")

    def _end_at_equal_kl(self) -> dict[str, Estimate]:
        ends = [point for point in self.record["equal_kl"]["points"] if point["name"] == END]
        return {
            name: estimate_of(value)
            for point in ends[:1]
            for name, value in (("reward_difference", point["gain"]["value"]), ("kl_policy_reference", point["kl"]))
        }

    def differs(self, other: Any) -> bool:
        """Whether another task's result has another verdict, in a declared comparison that both could make included."""
        ours, theirs = ({row["name"]: row["verdict"] for row in one.equal_kl["declared"]} for one in (self, other))
        made = [(ours[name], theirs.get(name, "")) for name in ours]
        return super().differs(other) or any({*pair} <= DECISIVE and len({*pair}) > 1 for pair in made)


def direction(change: Estimate) -> str:
    """Return the sign of a change as up, down or none."""
    return "up" if change.low > 0 else "down" if change.high < 0 else "none"


def say(part: str, *values: Any) -> str:
    """Return a part of a sentence: a macro of `findings.md.j2`, as plain text."""
    return " ".join(getattr(PAGE_ENVIRONMENT.get_template("findings.md.j2").module, part)(*values).split())


@dataclass(frozen=True)
class Findings:
    """The results of every task in a folder of reports.

    Args:
        experiments: those that can be reported.
        results: task -> experiment -> result file, of the tasks that have any; the leading one first.
    """

    experiments: list[Experiment]
    results: dict[str, dict[str, Result]]

    @classmethod
    def read(cls, out: Path, experiments: Sequence[Experiment]) -> Findings:
        """Read the result files of all tasks in `out`."""
        reported = [one for one in experiments if one.reported]
        every = {task: results_of(task, out, reported) for task in TASK_ORDER}
        own = [one.name for one in reported if not one.once]
        there = {task: rows for task, rows in every.items() if any(rows[name]["status"] != MISSING for name in own)}
        return cls(reported, there or {MAIN_TASK: every[MAIN_TASK]})

    @cached_property
    def trained(self) -> dict[str, list[TrainedResult]]:
        """Experiment -> its finished results by task, the leading one first."""
        return {
            one.name: [TrainedResult(one.title, *row) for row in self.done(one)] for one in rows_of(self.experiments)
        }

    @cached_property
    def compared(self) -> dict[str, list[ComparedResult]]:
        """The same of the comparisons; those of an earlier version come last."""
        compared = [one for one in self.experiments if one.section == "comparison"]
        made = {
            one.name: [ComparedResult(one.name.removeprefix("exp"), *row) for row in self.done(one)] for one in compared
        }
        return {name: sorted(results, key=lambda one: one.earlier) for name, results in made.items()}

    @property
    def ended(self) -> list[Sequence[Ended]]:
        """The finished results of every experiment and comparison, by task, the leading one first."""
        return [*self.trained.values(), *self.compared.values()]

    def done(self, experiment: Experiment) -> Iterator[tuple[str, Result]]:
        """Yield the finished results of an experiment with their tasks; of one for all tasks there is one."""
        for task, found in self.results.items():
            if found[experiment.name]["status"] == OK:
                yield task, found[experiment.name]
                if experiment.once:
                    return

    def unfinished(self, experiment: Experiment) -> dict[str, Result]:
        """Return task -> result file of an experiment that has no result there."""
        found = {task: rows[experiment.name] for task, rows in self.results.items()}
        left = {task: result for task, result in found.items() if result["status"] != OK}
        return dict([*left.items()][:1]) if experiment.once else left
