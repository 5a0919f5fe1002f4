"""The list of experiments: what is run, and how it is summarised in the index and in README.md.

An experiment is one entry here and one notebook with its name. Without a `section` it is a row of the common table.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from warp_nb.measure.estimates import Estimate, holm, p_value
from warp_nb.notebook.equal_kl_words import say_equal_kl
from warp_nb.studies.original import ROWS, OriginalRow
from warp_nb.studies.result_files import OK, read_result_of, reports_of, result_path

Result = dict[str, Any]
"""A result file's content."""


@dataclass(frozen=True)
class Experiment:
    """A notebook that is run and reported.

    Args:
        name: name of the notebook, of its reports and on the command line.
        title: heading of its section, or the name of its row.
        change: what it changes, in its row.
        original: the original report's row, shown below the experiment's.
        section: makes the table of its section of the index from its `result`: the template `<section>.html.j2`; empty
            for a row of the common table.
        by_default: whether `warp-nb report` runs it when none is named.
        once: whether there is one report for all tasks.
        reported: whether it can be reported at all; the page for one's own parameters is not.
        short: whether `warp-nb guide` runs it with the others.
    """

    name: str
    title: str
    change: str = ""
    original: OriginalRow | None = None
    section: str = ""
    by_default: bool = False
    once: bool = False
    reported: bool = True
    short: bool = True


EXPERIMENTS = (
    *(
        Experiment(f"exp{number}", str(number), row.change, original=row, by_default=True)
        for number, row in ROWS.items()
    ),
    Experiment("exp5", "Эксперимент 5: T = 100 и прогрев", section="comparison", short=False),
    Experiment("exp", "Эксперимент с вашими параметрами", reported=False),
    Experiment("sweep", "Перебор параметров", reported=False),
    Experiment("diagnosis", "Почему в исходном отчёте награда не росла", section="diagnosis", once=True),
)


def results_of(task: str, out: Path, experiments: Iterable[Experiment]) -> dict[str, Result]:
    """Read the result file of every experiment that can be reported, by name; a status alone if there is none.

    A comparison of an earlier version gets the conclusion that its figures at equal KL support.

    Args:
        task: name of the task.
        out: folder of all reports; a report for all tasks is directly in it.
        experiments: the list of experiments.
    """
    found = {
        one.name: read_result_of(one.section, result_path(out if one.once else reports_of(task, out), one.name))
        for one in experiments
        if one.reported
    }
    for result in found.values():
        if result.get("equal_kl", {}).get("earlier"):
            result["conclusion"] = say_equal_kl(result["equal_kl"])
    return found


def rows_of(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Return the experiments that are rows of the common table."""
    return [one for one in experiments if one.reported and not one.section]


def sections_of(experiments: Iterable[Experiment]) -> list[Experiment]:
    """Return the experiments that have a separate section."""
    return [one for one in experiments if one.reported and one.section]


def declared(rows: Iterable[tuple[Experiment, Result]]) -> dict[str, float]:
    """Return title -> Holm-adjusted p-value of each finished experiment's declared comparison.

    Every experiment of the original report declares one: WARP's mean reward against θ_sft's. All of them are one
    family; one that is not finished counts as p = 1.
    """
    family = [(one.title, found) for one, found in rows if one.original]
    adjusted = holm([reward_p(found) if found["status"] == OK else math.nan for _, found in family])
    return {title: p for (title, found), p in zip(family, adjusted, strict=True) if found["status"] == OK}


def reward_p(found: Result) -> float:
    """Return the p-value of an experiment's difference of rewards, over trainings or over the prompts of one."""
    config, difference = found["config"], found["summary"]["reward_difference"]
    ends = {name: math.nan if end is None else end for name, end in difference.items()}
    return p_value(Estimate(**ends), config["n_seeds"] if config["n_seeds"] > 1 else config["n_eval_prompts"])
