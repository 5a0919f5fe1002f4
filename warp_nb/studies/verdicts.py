"""Conclusions from the table of the diagnosis: a verdict per hypothesis, and the best-fitting combination of faults.

A prediction is a condition on the results of one seed. If all seeds meet it, the fault is sufficient to explain what
the original report saw; if none does, it is not; otherwise the verdict is undecided. A sufficient fault need not be
the cause: the report's code is not known. A seed whose cells the table lacks is left out; without any seed the verdict
is "not measured". A deterministic training (greedy decoding, prompts in order) is one observation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from statistics import fmean, median
from typing import Any

import pandas as pd

from warp_nb.studies.diagnosis import (
    DRIFT_LR,
    FIT,
    GREEDY,
    ONE_SEED,
    PRECISION_SEEDS,
    SEEDS,
    WARM_UPS,
    Cell,
    Changes,
    FitArm,
    RewardCell,
    drift,
)
from warp_nb.studies.original import ROWS

SUFFICIENT, INSUFFICIENT, UNDECIDED = "sufficient to explain it", "not sufficient", "undecided"
SHARE, NOT_MEASURED = "a share, no verdict", "not measured"
STILL = 1e-5
"""Largest change of the reward that agrees with the original, where it is at most 7.1e-6."""
_REFERENCES = [found.reward_reference for found in ROWS.values()]
SFT_MOVED = round(max(_REFERENCES) - min(_REFERENCES), 9)
"""By how much the reward of θ_sft differs between the original's experiments."""
MOVED_FACTOR = 10.0
"""A movement of the reward of θ_sft agrees with the original's within this factor."""
ZERO = 5e-6
"""Nats: less is printed as 0.00000."""
FACTOR = 3.0
"""A KL of another model agrees with the original's within this factor."""
ALIKE = 0.02
"""Curves coincide in a plot if they differ by at most this share of the range of all curves in it: a line's width."""
RISE = 0.2
"""A curve rises if its line of best fit climbs by at least this share of the plot's range."""
ABOVE = 0.05
"""Curves lie above others if they do so on average by this share of the plot's range."""
RIGHT = 0.1
"""Degrees: a smaller angle counts as zero."""
LEVELS_ON = "smollm"
"""The task whose KLs have the original's size; on the other one traits that are levels of KL are not judged."""
LEVELS = ("zero-1", "kl-2", "kl-3", "kl-4")
MOST = 2 / 3
"""A combination explains the report if it reproduces at least this share of all traits, measured or not."""
PLOTTED = ("objective", "surrogate")
"""What the report may have plotted: r_β, or minus the loss, the mean of r_β·log π."""
ONCE = {"once-a-run": ("once-a-run",), "rebuilt": ("rebuilt",), "bf16-weights": ("bf16-weights",)}
"""Faults that may have left θ untouched in experiment 1, measured once each."""
Record = dict[str, Any]
Table = dict[str, Record]


@dataclass(frozen=True)
class Verdict:
    """Whether each seed meets the prediction of a hypothesis, and what was measured.

    Args:
        hypothesis: its key in `verdicts.toml`.
        outcomes: of the seeds whose cells are all in the table.
        figures: what its words are filled with.
        absent: number of cells that the table lacks.
        share: whether the figures hold a share that is reported without a threshold.
    """

    hypothesis: str
    outcomes: tuple[bool, ...]
    figures: dict[str, Any]
    absent: int = 0
    share: bool = False

    @property
    def verdict(self) -> str:
        """SUFFICIENT, INSUFFICIENT, UNDECIDED, SHARE or NOT_MEASURED."""
        if self.share:
            return SHARE
        if not self.outcomes:
            return NOT_MEASURED
        if all(self.outcomes):
            return SUFFICIENT
        return UNDECIDED if any(self.outcomes) else INSUFFICIENT


def verdicts(table: Table) -> list[Verdict]:
    """Return all verdicts, in the order of the notebook."""
    found = [*still_rewards(table), *moving_references(table), *half_precision(table), rounded_weights(table)]
    found += [*warm_ups(table), *four_curves(table), *equal_runs(table), *noise(table)]
    return [*found, *rising_curves(table)]


def observed(table: Table, wanted: Sequence[Sequence[Cell]]) -> tuple[list[list[Record]], int]:
    """Return the records of every seed whose cells are all there, and the number of cells that are not.

    Args:
        wanted: the cells of each seed.
    """
    names = [[cell.name for cell in cells] for cells in wanted]
    absent = {name for of_seed in names for name in of_seed if name not in table}
    return [[table[name] for name in of_seed] for of_seed in names if not absent & set(of_seed)], len(absent)


# The hypotheses


def still_rewards(table: Table) -> list[Verdict]:
    """Hypothesis 1: a collapsed reward model, scored in fp32 or fp16, stands still while the KL grows."""
    found = []
    for reward, faults, seeds in (("collapsed", (), SEEDS), ("collapsed-fp16", GREEDY, SEEDS[:1])):
        kinds = [*product((reward, "sound"), ROWS)]
        wanted = [[Cell(number, kind, faults, (), seed) for kind, number in kinds] for seed in seeds]
        rows, absent = observed(table, wanted)
        outcomes, far = [], []
        most: dict[str, list[float]] = {"collapsed": [], "sound": []}
        for records in rows:
            faulty, sound = records[: len(ROWS)], records[len(ROWS) :]
            for kind, of_kind in (("collapsed", faulty), ("sound", sound)):
                most[kind].append(max(abs(one["evaluation"]["reward_difference"]["value"]) for one in of_kind))
            grows = kl(faulty[2]) > 1 > kl(faulty[1])
            outcomes.append(most["collapsed"][-1] <= STILL < most["sound"][-1] and grows)
            far.append(kl(faulty[2]))
        figures = {"reward": reward, "far": far} | {
            kind: max(values, default=math.nan) for kind, values in most.items()
        }
        found.append(Verdict("collapsed-reward", tuple(outcomes), figures, absent))
    return found


def moving_references(table: Table) -> list[Verdict]:
    """Hypothesis 1: the reward of θ_sft itself moves by 2e-7 when its texts are sampled again."""
    found = []
    for reward, faults, seeds in (
        ("sound", (), SEEDS),
        ("collapsed", (), SEEDS),
        ("collapsed-fp16", GREEDY, SEEDS[:1]),
    ):
        rows, absent = observed(table, [[Cell(2, reward, faults, (), seed)] for seed in seeds])
        moves = [resampled(record) for (record,) in rows]
        figures = {"reward": reward, "moves": moves}
        found.append(Verdict("sft-moves", tuple(map(moves_alike, moves)), figures, absent))
    return found


def half_precision(table: Table) -> list[Verdict]:
    """Hypothesis 2: scoring in half precision gives a KL of 0.025 nats by rounding."""
    wanted, found = ROWS[2].kl_reference_policy, []
    for scoring, (task, seeds) in product(("bfloat16", "mixed"), PRECISION_SEEDS.items()):
        rows, absent = observed(table, [[Cell(number, seed=seed, task=task) for number in (1, 2)] for seed in seeds])
        exact, seen = ([kl(second, kind) for _, second in rows] for kind in ("float32", scoring))
        outcomes = tuple(close(low, wanted) and low > 10 * true for true, low in zip(exact, seen, strict=True))
        figures = {"scoring": scoring, "task": task, "wanted": wanted, "seen": seen, "exact": exact}
        figures |= {"first": [kl(first, scoring) for first, _ in rows]}
        found.append(Verdict("half-precision", outcomes, figures, absent))
    return found


def rounded_weights(table: Table) -> Verdict:
    """Hypothesis 2: weights kept in bf16 give a KL of 0.025 nats although most of them do not move."""
    wanted = ROWS[2].kl_reference_policy
    rows, absent = observed(table, [[Cell(2, faults=("bf16-weights",)), Cell(2)]])
    seen, exact = [kl(low) for low, _ in rows], [kl(full) for _, full in rows]
    outcomes = tuple(close(low, wanted) and low > 10 * true for low, true in zip(seen, exact, strict=True))
    unmoved = [100 * min(low["unmoved"]) for low, _ in rows]
    return Verdict(
        "bf16-weights", outcomes, {"wanted": wanted, "seen": seen, "exact": exact, "unmoved": unmoved}, absent
    )


def warm_ups(table: Table) -> list[Verdict]:
    """Hypothesis 3: a warm-up, or lost steps, leave a KL that prints as 0.00000 in fp32 and in bfloat16."""
    found = []
    for name in ("5", "100", "never-stepped", *ONCE):
        faults, changes = (ONCE[name], ()) if name in ONCE else WARM_UPS[name]
        seeds = SEEDS[:1] if name in ONCE else SEEDS
        rows, absent = observed(table, [[Cell(1, "sound", faults, changes, seed)] for seed in seeds])
        exact, rounded = ([kl(record, kind) for (record,) in rows] for kind in ("float32", "bfloat16"))
        outcomes = tuple(max(pair) < ZERO for pair in zip(exact, rounded, strict=True))
        unmoved = [100 * min(record["unmoved"]) for (record,) in rows]
        figures = {"warm_up": name, "exact": exact, "rounded": rounded, "unmoved": unmoved}
        found.append(Verdict("warm-up", outcomes, figures, absent))
    return found


FOUR_CURVES = (
    ("sound", "never-stepped", (), SEEDS),
    ("sound", "never-stepped", ONE_SEED, SEEDS),
    ("sound", "100", ONE_SEED, SEEDS),
    ("sound", "5", ONE_SEED, SEEDS),
    ("collapsed", "100", (), SEEDS),
    ("collapsed", "100", ONE_SEED, SEEDS[:1]),
    ("collapsed", "100", GREEDY, SEEDS[:1]),
)
"""Reward, warm-up, what the runs share, seeds."""


def four_curves(table: Table) -> list[Verdict]:
    """Hypothesis 3: the four curves of experiment 1 coincide, measured by their own range."""
    found = []
    for reward, warm_up, shared, seeds in FOUR_CURVES:
        rows, absent = observed(table, [[cell] for cell in FitArm(reward, shared, seeds=seeds).first(warm_up)])
        shares = [share_apart(record["curves"]["objective"]) for (record,) in rows]
        figures = {"reward": reward, "warm_up": warm_up, "shared": runs_of(shared), "shares": shares}
        found.append(Verdict("four-curves", tuple(share <= ALIKE for share in shares), figures, absent))
    return found


def equal_runs(table: Table) -> list[Verdict]:
    """Hypothesis 4: the two runs of an iteration are the same run."""
    found = []
    for fault in ("none", *ONE_SEED, "one-model", *GREEDY, "live-init"):
        faults = () if fault == "none" else (fault,)
        seeds = SEEDS[:1] if fault in (*GREEDY, "live-init") else SEEDS
        single = faults == ONE_SEED
        changes: list[Changes] = [(), *([(("M", 1),)] if single else [])]
        rows, absent = observed(table, [[Cell(2, "sound", faults, made, seed) for made in changes] for seed in seeds])
        records = [one for one, *_ in rows]
        equal = [same_curves(one) for one in records]
        angles = [max((value for value in one["omega"] if value is not None), default=math.nan) for one in records]
        outcomes = tuple(same and not angle > RIGHT for same, angle in zip(equal, angles, strict=True))
        twins = sum(one["policy_sha256"] == alone["policy_sha256"] for one, alone in rows) if single else None
        figures = {"fault": fault, "equal": all(equal), "apart": first_apart(records), "angles": angles}
        found.append(Verdict("equal-runs", outcomes, figures | {"twins": twins, "seeds": len(rows)}, absent))
    return found


def noise(table: Table) -> list[Verdict]:
    """Hypothesis 5: the KL grows without anything to learn; the share of the sound reward's KL at each lr."""
    found = []
    for baseline in ("none", "mean"):
        shares, lacking = {}, 0
        for lr in DRIFT_LR:
            kinds = ("constant", "sound")
            rows, absent = observed(table, [[drift(kind, lr, baseline, seed) for kind in kinds] for seed in SEEDS])
            lacking += absent
            if rows:
                shares[lr] = [ratio(kl(constant), kl(sound)) for constant, sound in rows]
        figures = {"baseline": baseline, "shares": shares}
        found.append(Verdict("noise", (), figures, lacking, share=bool(shares)))
    return found


def rising_curves(table: Table) -> list[Verdict]:
    """Hypothesis 6: the curves of experiments 3 and 4 rise with a reward that stands still."""
    found = []
    kinds = (((), SEEDS), (ONE_SEED, SEEDS[:1]), (GREEDY, SEEDS[:1]))
    for (shared, seeds), plotted in product(kinds, PLOTTED):
        wanted = [[Cell(number, "collapsed", shared, (), seed) for number in (3, 4)] for seed in seeds]
        rows, absent = observed(table, wanted)
        rises: dict[int, list[float]] = {3: [], 4: []}
        for records in [kept for kept in rows if all(plotted in one["curves"] for one in kept)]:
            for (_, climbed), record in zip(rises.items(), records, strict=True):
                climbed.append(rise(record["curves"][plotted]))
        outcomes = tuple(min(pair) >= RISE for pair in zip(*rises.values(), strict=True))
        figures = {"shared": runs_of(shared), "plotted": plotted, "rises": rises}
        found.append(Verdict("rising-curves", outcomes, figures, absent))
    return found


# The best-fitting combination


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


def runs_of(faults: Sequence[str]) -> str:
    """Name what the runs of an arm share or do wrongly: its faults, or that there are none."""
    return " ".join(faults) or "independent"


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


# Reading records


Curves = Sequence[Sequence[float]]
"""Those of one plot: the runs in the order (iteration, run)."""


def kls(record: Record, scoring: str) -> dict[str, float]:
    """Return both KLs in a precision; in fp32 where it alone was taken, as in experiments 3 and 4."""
    found: dict[str, float] = record["kl"].get(scoring, record["kl"]["float32"])
    return found


def kl(record: Record, scoring: str = "float32") -> float:
    """Return the larger of the two KLs, nats."""
    return max(kls(record, scoring).values())


def ratio(part: float, whole: float) -> float:
    """Return part / whole; NaN if rounding leaves nothing of the whole."""
    return part / whole if whole > 0 else math.nan


def close(value: float, wanted: float) -> bool:
    """Return whether the two are within FACTOR of each other."""
    return wanted / FACTOR <= value <= wanted * FACTOR


def resampled(record: Record) -> float:
    """Return by how much the mean reward of θ_sft is expected to move when its texts are sampled again.

    It is √2 times the standard error of the mean, which is read off its interval of 95 %.
    """
    estimate = record["evaluation"]["reward_reference"]
    return math.sqrt(2) * (estimate["high"] - estimate["low"]) / 2 / 1.96


def moves_alike(moved: float) -> bool:
    """Return whether a movement of the reward of θ_sft agrees with the original's."""
    return SFT_MOVED / MOVED_FACTOR <= moved <= SFT_MOVED * MOVED_FACTOR


def span(curves: Curves) -> float:
    """Return the range of all curves of a plot: the height of its axis."""
    values = [value for curve in curves for value in curve]
    return max(values) - min(values)


def share_apart(curves: Curves) -> float:
    """Return the largest distance between two curves at one step, as a share of the range of all; 0 if it is 0."""
    return apart(curves) / span(curves) if apart(curves) else 0.0


def share_of_pairs(curves: Curves) -> float:
    """Return the largest distance between the two runs of an iteration, as a share of the range of all curves."""
    most = max((apart([curves[one], curves[other]]) for one, other in pairs_of(curves)), default=0.0)
    return most / span(curves) if most else 0.0


def rise(curves: Curves) -> float:
    """Return the median climb of the curves' lines of best fit over the plot, as a share of its range."""
    height = span(curves)
    return median(climb(curve) for curve in curves) / height if height else 0.0


def climb(curve: Sequence[float]) -> float:
    """Return by how much the line of best fit climbs from the first step to the last."""
    middle, mean = (len(curve) - 1) / 2, fmean(curve)
    squares = sum((step - middle) ** 2 for step in range(len(curve)))
    return (len(curve) - 1) * sum((step - middle) * (value - mean) for step, value in enumerate(curve)) / squares


def first_above(curves: Curves) -> float:
    """Return by how much the first half of the curves lies above the second on average, as a share of the range."""
    half, height = len(curves) // 2, span(curves)
    first, second = (fmean(value for curve in part for value in curve) for part in (curves[:half], curves[half:]))
    return (first - second) / height if height else 0.0


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


def same_curves(record: Record) -> bool:
    """Return whether the runs of each iteration are bit-identical in every column."""
    return all(pair_equal(record, first, second) for first, second in pairs(record))


def pairs(record: Record) -> list[tuple[int, int]]:
    """Return the indices of the two runs of each iteration among the curves, for M = 2; none for a single run."""
    return pairs_of(record["curves"]["objective"])


def pairs_of(curves: Curves) -> list[tuple[int, int]]:
    """Return the indices of the two runs of each iteration, for M = 2; none for a single run."""
    return [(place, place + 1) for place in range(0, len(curves) - 1, 2)]


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


def apart(curves: Curves) -> float:
    """Return the largest distance between two curves at one step."""
    return max(
        (abs(a - b) for one, other in combinations(curves, 2) for a, b in zip(one, other, strict=True)), default=0.0
    )


def history(record: Record) -> pd.DataFrame:
    """Return the curves as a table, one row per step."""
    return pd.DataFrame(
        {"seed": record["seed"], "iteration": place // 2, "run": place % 2, "step": step + 1}
        | {column: runs[place][step] for column, runs in record["curves"].items()}
        for place in range(len(record["curves"]["objective"]))
        for step in range(len(record["curves"]["objective"][place]))
    )
