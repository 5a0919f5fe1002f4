"""Conclusions from the table of the diagnosis: a verdict per hypothesis, and the best-fitting combination of faults.

A prediction is a condition on the results of one seed. If all seeds meet it, the fault is sufficient to explain what
the original report saw; if none does, it is not; otherwise the verdict is undecided. A sufficient fault need not be
the cause: the report's code is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import median
from typing import Any

import pandas as pd

from warp_nb.measure.estimates import slope
from warp_nb.studies.diagnosis import (
    DRIFT_LR,
    ONE_SEED,
    PRECISION_SEEDS,
    SEEDS,
    SWEEP_LR,
    WARM_UPS,
    Cell,
    RewardCell,
    drift,
)
from warp_nb.studies.original import ROWS

SUFFICIENT, INSUFFICIENT, UNDECIDED = "sufficient to explain it", "not sufficient", "undecided"
STILL = 1e-5
"""Largest change of the reward that agrees with the original, where it is at most 7.1e-6."""
ZERO = 5e-6
"""Nats: less is printed as 0.00000."""
FACTOR = 3.0
"""A KL of another model agrees with the original's within this factor."""
ALIKE = 0.01
"""Curves that differ by less than this share of the sound reward's spread coincide in a plot."""
RIGHT = 0.1
"""Degrees: a smaller angle counts as zero."""
LARGE_LR = 1e-4
"""The noise of Adam's steps is examined from this learning rate on."""
Record = dict[str, Any]
Table = dict[str, Record]


@dataclass(frozen=True)
class Verdict:
    """Whether each seed meets the prediction of a hypothesis, and what was measured."""

    hypothesis: str
    outcomes: tuple[bool, ...]
    figures: dict[str, Any]

    @property
    def verdict(self) -> str:
        """SUFFICIENT, INSUFFICIENT or UNDECIDED."""
        if all(self.outcomes):
            return SUFFICIENT
        return UNDECIDED if any(self.outcomes) else INSUFFICIENT


def verdicts(table: Table) -> list[Verdict]:
    """Return all verdicts, in the order of the notebook; raise KeyError for a cell that the table lacks."""
    found = [collapsed_reward(table), *half_precision(table), *warm_ups(table), *four_curves(table)]
    return [*found, *equal_runs(table), *noise(table), rising_curves(table)]


# The hypotheses


def collapsed_reward(table: Table) -> Verdict:
    """Hypothesis 1: a collapsed reward model gives a constant reward while the KL grows."""
    moved: dict[str, list[float]] = {"collapsed": [], "sound": []}
    outcomes, far = [], []
    for seed in SEEDS:
        still = {}
        for reward, most in moved.items():
            rows = [table[Cell(number, reward, seed=seed).name] for number in ROWS]
            most.append(max(abs(row["evaluation"]["reward_difference"]["value"]) for row in rows))
            still[reward] = most[-1] <= STILL and kl(rows[2]) > 1 > kl(rows[1])
        outcomes.append(still["collapsed"] and not still["sound"])
        far.append(kl(table[Cell(3, "collapsed", seed=seed).name]))
    figures = {reward: max(most) for reward, most in moved.items()} | {"far": far}
    return Verdict("collapsed-reward", tuple(outcomes), figures)


def half_precision(table: Table) -> list[Verdict]:
    """Hypothesis 2: scoring in half precision gives a KL of 0.025 nats by rounding."""
    wanted, found = ROWS[2].kl_reference_policy, []
    for scoring, (task, seeds) in product(("bfloat16", "mixed"), PRECISION_SEEDS.items()):
        rows = {number: [table[Cell(number, seed=seed, task=task).name] for seed in seeds] for number in (1, 2)}
        exact, seen = ([kl(record, kind) for record in rows[2]] for kind in ("float32", scoring))
        outcomes = tuple(close(low, wanted) and low > 10 * true for true, low in zip(exact, seen, strict=True))
        figures = {"scoring": scoring, "task": task, "wanted": wanted, "seen": seen, "exact": exact}
        first = [kl(record, scoring) for record in rows[1]]
        found.append(Verdict("half-precision", outcomes, figures | {"first": first}))
    return found


def warm_ups(table: Table) -> list[Verdict]:
    """Hypothesis 3: a warm-up leaves a KL that prints as 0.00000 in fp32 and in bfloat16."""
    found = []
    for name in ("5", "100", "never-stepped"):
        faults, changes = WARM_UPS[name]
        rows = [table[Cell(1, "sound", faults, changes, seed).name] for seed in SEEDS]
        exact, rounded = ([kl(row, kind) for row in rows] for kind in ("float32", "bfloat16"))
        outcomes = tuple(max(pair) < ZERO for pair in zip(exact, rounded, strict=True))
        unmoved = [100 * min(row["unmoved"]) for row in rows]
        figures = {"warm_up": name, "exact": exact, "rounded": rounded, "unmoved": unmoved}
        found.append(Verdict("warm-up", outcomes, figures))
    return found


def four_curves(table: Table) -> list[Verdict]:
    """Hypothesis 3: the four curves coincide, with and without one seed for all runs."""
    unit, found = sound_spread(table), []
    suspects = (("never-stepped", ()), ("never-stepped", ONE_SEED), ("100", ONE_SEED), ("5", ONE_SEED))
    for warm_up, seeds in suspects:
        faults, changes = WARM_UPS[warm_up]
        shares = [apart(table[Cell(1, "sound", faults + seeds, changes, seed).name]) / unit for seed in SEEDS]
        figures = {"warm_up": warm_up, "one_seed": seeds == ONE_SEED, "shares": shares}
        found.append(Verdict("four-curves", tuple(share <= ALIKE for share in shares), figures))
    return found


def equal_runs(table: Table) -> list[Verdict]:
    """Hypothesis 4: the two runs of an iteration are the same run."""
    found = []
    for fault in ("none", *ONE_SEED, "one-model", "greedy"):
        faults = () if fault == "none" else (fault,)
        rows = [table[Cell(2, "sound", faults, (), seed).name] for seed in SEEDS]
        equal = [same_curves(row) for row in rows]
        angles = [max((value for value in row["omega"] if value is not None), default=math.nan) for row in rows]
        outcomes = tuple(same and not angle > RIGHT for same, angle in zip(equal, angles, strict=True))
        twins = None
        if faults == ONE_SEED:
            single = [table[Cell(2, "sound", ONE_SEED, (("M", 1),), seed).name] for seed in SEEDS]
            twins = sum(a["policy_sha256"] == b["policy_sha256"] for a, b in zip(rows, single, strict=True))
        figures = {"fault": fault, "equal": all(equal), "apart": first_apart(rows), "angles": angles}
        found.append(Verdict("equal-runs", outcomes, figures | {"twins": twins, "seeds": len(SEEDS)}))
    return found


def noise(table: Table) -> list[Verdict]:
    """Hypothesis 5: the KL grows without anything to learn."""
    found = []
    for baseline in ("none", "mean"):
        shares = {}
        for lr in DRIFT_LR:
            pairs = [[kl(table[drift(r, lr, baseline, seed).name]) for r in ("constant", "sound")] for seed in SEEDS]
            shares[lr] = [ratio(*pair) for pair in pairs]
        large = [share for lr, share in shares.items() if lr >= LARGE_LR]
        outcomes = tuple(min(share[place] for share in large) >= 0.5 for place in range(len(SEEDS)))
        found.append(Verdict("noise", outcomes, {"baseline": baseline, "shares": shares}))
    return found


def rising_curves(table: Table) -> Verdict:
    """Hypothesis 6: the functional rises without its reward."""
    outcomes: list[bool] = []
    slopes: dict[int, dict[str, list[float]]] = {number: {"objective": [], "reward": []} for number in (3, 4)}
    for seed in SEEDS:
        risen = []
        for number, rates in slopes.items():
            rows = history(table[Cell(number, "collapsed", seed=seed).name])
            whole, reward = slope(rows, "objective"), slope(rows, "reward")
            if whole is not None and reward is not None:
                rates["objective"].append(whole.value)
                rates["reward"].append(reward.value)
                risen.append(whole.low > 0 and reward.value < 0.5 * whole.value)
        outcomes.append(all(risen))
    return Verdict("rising-curves", tuple(outcomes), {"slopes": slopes})


# The best-fitting combination


@dataclass(frozen=True)
class Combination:
    """A choice of faults, its four rows (medians over the seeds), and which traits of the original it reproduces."""

    reward: str
    seeds: str
    warm_up: str
    scoring: str
    rows: dict[int, dict[str, float]]
    traits: dict[str, bool]

    @property
    def matched(self) -> int:
        """Number of traits that it reproduces."""
        return sum(self.traits.values())


def combinations_tried(table: Table) -> list[Combination]:
    """Return every combination of reward, seeds, warm-up and scoring, the best fit first; ties keep their order."""
    unit = sound_spread(table)
    found = []
    for reward, (seeds, shared), warm_up, scoring in product(
        ("sound", "collapsed"),
        (("independent", ()), ("one", ONE_SEED)),
        WARM_UPS,
        ("float32", "bfloat16", "mixed"),
    ):
        cells = {number: [Cell(number, reward, shared, (), seed) for seed in SEEDS] for number in (2, 3, 4)}
        faults, changes = WARM_UPS[warm_up]
        cells[1] = [Cell(1, reward, faults + shared, changes, seed) for seed in SEEDS]
        records = {number: [table[cell.name] for cell in cells[number]] for number in sorted(cells)}
        rows = {number: row(kept, scoring) for number, kept in records.items()}
        found.append(Combination(reward, seeds, warm_up, scoring, rows, traits(rows, records, unit)))
    return sorted(found, key=lambda combination: -combination.matched)


def row(records: Sequence[Record], scoring: str) -> dict[str, float]:
    """Return the medians over the seeds of the columns of the original's table."""
    columns: dict[str, Callable[[Record], float]] = {
        "reward_reference": lambda record: record["evaluation"]["reward_reference"]["value"],
        "reward_policy": lambda record: record["evaluation"]["reward_policy"]["value"],
        "reward_difference": lambda record: record["evaluation"]["reward_difference"]["value"],
        "kl_reference_policy": lambda record: record["kl"][scoring]["kl_reference_policy"],
        "kl_policy_reference": lambda record: record["kl"][scoring]["kl_policy_reference"],
    }
    return {name: median(map(read, records)) for name, read in columns.items()}


def traits(rows: dict[int, dict[str, float]], records: dict[int, list[Record]], unit: float) -> dict[str, bool]:
    """Return for each trait of the original's table and plots whether it is reproduced."""
    found = {"reward-still": all(abs(one["reward_difference"]) <= STILL for one in rows.values())}
    found["zero-1"] = max(rows[1]["kl_reference_policy"], rows[1]["kl_policy_reference"]) < ZERO
    for number in (2, 3, 4):
        wanted = ROWS[number].kl_reference_policy
        found[f"kl-{number}"] = close(rows[number]["kl_reference_policy"], wanted)
    for number in (1, 2):
        found[f"curves-{number}"] = all(apart(record) <= ALIKE * unit for record in records[number])
    return found


# Reading records


def kl(record: Record, scoring: str = "float32") -> float:
    """Return the larger of the two KLs, nats."""
    return max(record["kl"][scoring].values())


def ratio(part: float, whole: float) -> float:
    """Return part / whole; NaN if rounding leaves nothing of the whole."""
    return part / whole if whole > 0 else math.nan


def close(value: float, wanted: float) -> bool:
    """Return whether the two are within FACTOR of each other."""
    return wanted / FACTOR <= value <= wanted * FACTOR


def same_curves(record: Record) -> bool:
    """Return whether the runs of each iteration are bit-identical in every column."""
    return all(pair_equal(record, first, second) for first, second in pairs(record))


def pairs(record: Record) -> list[tuple[int, int]]:
    """Return the indices of the two runs of each iteration among the curves, for M = 2; none for a single run."""
    return [(place, place + 1) for place in range(0, len(record["curves"]["objective"]) - 1, 2)]


def pair_equal(record: Record, first: int, second: int) -> bool:
    """Return whether two runs are bit-identical in every column."""
    return all(curves[first] == curves[second] for curves in record["curves"].values())


def first_apart(records: Sequence[Record]) -> list[int]:
    """Return the earliest and the latest step at which runs of an iteration begin to differ; empty if they never do."""
    steps = [step_apart(r, *pair) for r in records for pair in pairs(r) if not pair_equal(r, *pair)]
    return [min(steps), max(steps)] if steps else []


def step_apart(record: Record, first: int, second: int) -> int:
    """Return the step at which two runs begin to differ in any column."""
    columns = [zip(curves[first], curves[second], strict=True) for curves in record["curves"].values()]
    return next(step for step, at in enumerate(zip(*columns, strict=True), 1) if any(a != b for a, b in at))


def apart(record: Record) -> float:
    """Return the largest distance between two curves of the functional at one step."""
    curves = record["curves"]["objective"]
    return max(
        (abs(a - b) for one, other in combinations(curves, 2) for a, b in zip(one, other, strict=True)), default=0.0
    )


def sound_spread(table: Table) -> float:
    """Return the standard deviation of the sound reward's scores, at the sweep's lr that the project uses."""
    return median(table[RewardCell(SWEEP_LR[1], seed).name]["spread"] for seed in SEEDS)


def history(record: Record) -> pd.DataFrame:
    """Return the curves as the table that `estimates.slope` takes."""
    return pd.DataFrame(
        {"seed": record["seed"], "iteration": place // 2, "run": place % 2, "step": step + 1}
        | {column: runs[place][step] for column, runs in record["curves"].items()}
        for place in range(len(record["curves"]["objective"]))
        for step in range(len(record["curves"]["objective"][place]))
    )
