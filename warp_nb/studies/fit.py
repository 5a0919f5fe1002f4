"""The combination of faults that reproduces most traits of the original report.

Every combination is enumerated before, from the arms of FIT.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import product
from statistics import median

from warp_nb.studies.cells import FIT, Cell, FitArm, RewardCell, runs_of
from warp_nb.studies.original import ROWS
from warp_nb.studies.readings import (
    ABOVE,
    ALIKE,
    PLOTTED,
    RISE,
    STILL,
    ZERO,
    Curves,
    Record,
    Table,
    close,
    first_above,
    kls,
    moves_alike,
    resampled,
    rise,
    share_apart,
    share_of_pairs,
)

LEVELS_ON = "smollm"
"""The task whose KLs have the original's size; on the other one traits that are levels of KL are not judged."""
LEVELS = ("zero-1", "kl-2", "kl-3", "kl-4")
MOST = 2 / 3
"""A combination explains the report if it reproduces at least this share of all traits, measured or not."""
CURVE_TRAITS: tuple[tuple[str, int, Callable[[Curves], bool]], ...] = (
    ("curves-1", 1, lambda curves: share_apart(curves) <= ALIKE),
    ("curves-2", 2, lambda curves: share_apart(curves) <= ALIKE),
    ("pairs-3", 3, lambda curves: share_of_pairs(curves) <= ALIKE),
    ("pairs-4", 4, lambda curves: share_of_pairs(curves) <= ALIKE),
    ("rise-3", 3, lambda curves: rise(curves) >= RISE),
    ("rise-4", 4, lambda curves: rise(curves) >= RISE),
    ("above-3", 3, lambda curves: first_above(curves) >= ABOVE),
)
"""Name, experiment, and whether the curves of a training have the trait."""


@dataclass(frozen=True)
class Combination:
    """A choice of faults, its rows (medians over the seeds), and which traits of the original it reproduces.

    `rows` lacks an experiment and a trait is None where the table lacks a cell, or where the trait is a level of KL
    and the task is not LEVELS_ON.
    """

    arm: FitArm
    warm_up: str
    lr: float
    scoring: str
    plotted: str
    rows: dict[int, dict[str, float]]
    traits: dict[str, bool | None]

    @property
    def matched(self) -> int:
        """Number of traits that it reproduces."""
        return sum(shown is True for shown in self.traits.values())

    @property
    def judged(self) -> int:
        """Number of traits that could be judged."""
        return sum(shown is not None for shown in self.traits.values())

    @property
    def undecided(self) -> bool:
        """Whether it does not explain the report yet and still could, once the cells that the table lacks are there."""
        needed = MOST * len(self.traits)
        possible = [name for name in self.traits if self.arm.task == LEVELS_ON or name not in LEVELS]
        return self.matched < needed <= sum(self.traits[name] is not False for name in possible)

    @property
    def choices(self) -> dict[str, str]:
        """Return the choices as plain words: task, reward, runs, warm_up, lr, scoring, plotted."""
        arm = self.arm
        shown = {"task": arm.task, "reward": arm.reward, "runs": runs_of(arm.faults), "warm_up": self.warm_up}
        return shown | {"lr": f"{self.lr:g}", "scoring": self.scoring, "plotted": self.plotted}


def combinations_tried(table: Table) -> list[Combination]:
    """Return every combination of arm, warm-up, lr of experiment 4, scoring and plotted quantity, the best fit first.

    The best has most traits; among equals the one that fails in fewer; further ties keep their order.
    """
    found = []
    for arm in FIT:
        scorings = ("float32", "bfloat16", "mixed") if arm.task == LEVELS_ON else ("float32",)
        for warm_up, lr, scoring, plotted in product(arm.warm_ups, arm.lrs, scorings, PLOTTED):
            wanted = {1: arm.first(warm_up), 2: arm.other(2), 3: arm.other(3), 4: arm.fourth(lr)}
            records = {number: measured_of(table, cells) for number, cells in wanted.items()}
            rows = {number: row(kept, scoring) for number, kept in records.items() if kept}
            shown = traits(rows, records, plotted)
            shown |= {name: None for name in LEVELS if arm.task != LEVELS_ON}
            found.append(Combination(arm, warm_up, lr, scoring, plotted, rows, shown))
    return sorted(found, key=lambda one: (-one.matched, one.judged))


def measured_of(table: Table, cells: Iterable[Cell | RewardCell]) -> list[Record]:
    """Return the records that the table has of these cells."""
    return [table[cell.name] for cell in cells if cell.name in table]


def row(records: Sequence[Record], scoring: str) -> dict[str, float]:
    """Return the medians over the seeds of the columns of the original's table."""
    columns: dict[str, Callable[[Record], float]] = {
        "reward_reference": lambda record: record["evaluation"]["reward_reference"]["value"],
        "reward_policy": lambda record: record["evaluation"]["reward_policy"]["value"],
        "reward_difference": lambda record: record["evaluation"]["reward_difference"]["value"],
        "kl_reference_policy": lambda record: kls(record, scoring)["kl_reference_policy"],
        "kl_policy_reference": lambda record: kls(record, scoring)["kl_policy_reference"],
    }
    return {name: median(map(read, records)) for name, read in columns.items()}


def traits(rows: dict[int, dict[str, float]], records: dict[int, list[Record]], plotted: str) -> dict[str, bool | None]:
    """Return for each trait of the original's table and plots whether it is reproduced; None if not measured."""
    found: dict[str, bool | None] = {"reward-still": None, "sft-moves": None, "zero-1": None}
    if len(rows) == len(ROWS):
        found["reward-still"] = all(abs(one["reward_difference"]) <= STILL for one in rows.values())
    if records[2]:
        found["sft-moves"] = moves_alike(median(map(resampled, records[2])))
    if 1 in rows:
        found["zero-1"] = max(rows[1]["kl_reference_policy"], rows[1]["kl_policy_reference"]) < ZERO
    for number in (2, 3, 4):
        wanted = ROWS[number].kl_reference_policy
        found[f"kl-{number}"] = close(rows[number]["kl_reference_policy"], wanted) if number in rows else None
    plots = {n: [one["curves"][plotted] for one in kept if plotted in one["curves"]] for n, kept in records.items()}
    for name, number, holds in CURVE_TRAITS:
        found[name] = all(map(holds, plots[number])) if plots[number] else None
    return found
