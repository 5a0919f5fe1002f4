"""What follows from the table of the diagnosis: a verdict a hypothesis, the best-fitting combination of faults.

A prediction is a condition on the figures of one seed. All seeds meet it: the fault is sufficient to explain what
the original report saw; none does: it is not; else the seeds do not decide. Sufficient is not guilty: the report's
code is not known.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import combinations, product
from typing import Any

import pandas as pd

from warp_nb.measure.checks import slope
from warp_nb.notebook.numbers import fixed, format_number
from warp_nb.studies.diagnosis import (
    DRIFT_LR,
    ONE_SEED,
    PRECISION_SEEDS,
    SEEDS,
    SWEEP_LR,
    WARM_UPS,
    Cell,
    Changes,
    RewardCell,
    drift,
)
from warp_nb.studies.original import ROWS

SUFFICIENT, INSUFFICIENT, UNDECIDED = "достаточно, чтобы объяснить", "недостаточно", "не различить"
ENGLISH = {SUFFICIENT: "sufficient to explain it", INSUFFICIENT: "not sufficient", UNDECIDED: "undecided"}
CONSTANT = 1e-5
"""How far the reward may move and still be the original's: 7.1e-6 at the most there."""
ZERO = 5e-6
"""Nats: less is printed as 0.00000."""
FACTOR = 3.0
"""A KL of another model is called the original's within this factor."""
ALIKE = 0.01
"""Curves that differ by less than this share of the sound reward's spread lie upon one another in a picture."""
RIGHT = 0.1
"""Degrees: a smaller angle is none."""
Record = dict[str, Any]
Table = dict[str, Record]


@dataclass(frozen=True)
class Verdict:
    """One hypothesis by its Russian and its English name: the prediction, whether each seed meets it, the figures."""

    name: str
    english: str
    prediction: str
    outcomes: tuple[bool, ...]
    measured: str

    @property
    def verdict(self) -> str:
        """In words."""
        if all(self.outcomes):
            return SUFFICIENT
        return UNDECIDED if any(self.outcomes) else INSUFFICIENT

    def to_json(self) -> dict[str, Any]:
        """Plain JSON values."""
        words = {"verdict": self.verdict, "verdict_english": ENGLISH[self.verdict]}
        return vars(self) | words | {"outcomes": list(self.outcomes)}


def verdicts(table: Table) -> list[Verdict]:
    """All of them, in the order of the notebook. Raises KeyError for a cell that the table lacks."""
    found = [collapsed_reward(table), *half_precision(table), *warm_ups(table), *four_curves(table)]
    return [*found, *equal_runs(table), *noise(table), rising_curves(table)]


# The hypotheses


def collapsed_reward(table: Table) -> Verdict:
    """1: a constant reward beside a growing KL."""

    def still(reward: str, seed: int) -> bool:
        rows = [table[Cell(number, reward, seed=seed).name] for number in ROWS]
        apart = [abs(row["evaluation"]["reward_difference"]["value"]) for row in rows]
        return max(apart) <= CONSTANT and kl(rows[2]) > 1 > kl(rows[1])

    found = tuple(still("collapsed", seed) and not still("sound", seed) for seed in SEEDS)
    moved = [
        max(
            abs(table[Cell(n, reward, seed=s).name]["evaluation"]["reward_difference"]["value"])
            for n in ROWS
            for s in SEEDS
        )
        for reward in ("collapsed", "sound")
    ]
    far = [kl(table[Cell(3, "collapsed", seed=seed).name]) for seed in SEEDS]
    return Verdict(
        "схлопнувшаяся модель награды",
        "collapsed reward model",
        f"награда сдвинется не больше чем на {format_number(CONSTANT)} во всех четырёх экспериментах, а KL "
        "эксперимента 3 превысит 1 нат; с исправной моделью награда сдвинется сильнее",
        found,
        f"наибольшее по экспериментам и сидам изменение награды {format_number(moved[0])}, с исправной моделью "
        f"{format_number(moved[1])}; KL эксперимента 3, нат: {spread(far)}",
    )


def half_precision(table: Table) -> list[Verdict]:
    """2: 0.025 nats out of rounding."""
    names = {
        "bfloat16": ("обе модели оценены в bfloat16", "both models scored in bf16"),
        "mixed": ("в bfloat16 только θ_sft, политика в fp32", "θ_sft scored in bf16, the policy in fp32"),
    }
    wanted = fixed(ROWS[2].kl_reference_policy, 5)
    found = []
    for (scoring, (words, english)), (task, seeds) in product(names.items(), PRECISION_SEEDS.items()):
        rows = {number: [table[Cell(number, seed=seed, task=task).name] for seed in seeds] for number in (1, 2)}
        true, seen = ([kl(record, kind) for record in rows[2]] for kind in ("float32", scoring))
        outcomes = tuple(
            close(low, ROWS[2].kl_reference_policy) and low > 10 * exact for exact, low in zip(true, seen, strict=True)
        )
        found.append(
            Verdict(
                f"половинная точность, {task}: {words}",
                f"{english}, {task}",
                f"KL эксперимента 2 отличается от {wanted} не больше чем в {format_number(FACTOR)} раза, хотя в fp32 "
                "она хотя бы в 10 раз меньше",
                outcomes,
                f"KL, нат: {spread(seen)} (в fp32 {spread(true)}); в эксперименте 1: "
                f"{spread([kl(record, scoring) for record in rows[1]])}",
            )
        )
    return found


def warm_ups(table: Table) -> list[Verdict]:
    """3: a KL of exactly 0.00000 in whatever arithmetic, and four equal curves."""
    words = {
        "5": ("прогрев 5 шагов", "warm-up of 5 steps"),
        "100": ("прогрев 100 шагов, из них сделано 10", "warm-up of 100 steps, 10 of them made"),
        "never-stepped": ("планировщик начинает с lr = 0 и не вызывается", "scheduler begins at lr = 0, never stepped"),
    }
    found = []
    for name, (title, english) in words.items():
        faults, changes = WARM_UPS[name]
        rows = [table[Cell(1, "sound", faults, changes, seed).name] for seed in SEEDS]
        low, high = ([kl(row, kind) for row in rows] for kind in ("float32", "bfloat16"))
        found.append(
            Verdict(
                title,
                english,
                "KL эксперимента 1 напечатается как 0,00000 и в fp32, и в bfloat16",
                tuple(max(pair) < ZERO for pair in zip(low, high, strict=True)),
                f"KL, нат: в fp32 {spread(low)}, в bfloat16 {spread(high)}; нетронутых весов "
                f"{spread([100 * min(row['unmoved']) for row in rows])} %",
            )
        )
    return found


def four_curves(table: Table) -> list[Verdict]:
    """3: four curves that lie upon one another, with and without one seed for all runs."""
    suspects: list[tuple[str, str, str, Changes]] = [
        ("планировщик не вызывается, сиды разные", "never stepped, independent seeds", "never-stepped", ()),
        ("планировщик не вызывается, сид один", "never stepped, one seed", "never-stepped", ONE_SEED),
        ("прогрев 100 шагов, сид один", "warm-up of 100 steps, one seed", "100", ONE_SEED),
        ("прогрев 5 шагов, сид один", "warm-up of 5 steps, one seed", "5", ONE_SEED),
    ]
    unit, found = sound_spread(table), []
    for title, english, warm_up, seeds in suspects:
        faults, changes = WARM_UPS[warm_up]
        shares = [apart(table[Cell(1, "sound", faults, changes + seeds, seed).name]) / unit for seed in SEEDS]
        found.append(
            Verdict(
                f"четыре кривые: {title}",
                f"four equal curves: {english}",
                "четыре кривые эксперимента 1 разойдутся не больше чем на "
                f"{format_number(ALIKE)} стандартного отклонения исправной награды, то есть сольются на рисунке",
                tuple(share <= ALIKE for share in shares),
                f"наибольшее расхождение, в долях этого отклонения: {spread(shares)}",
            )
        )
    return found


def equal_runs(table: Table) -> list[Verdict]:
    """4: runs that are one."""
    suspects: list[tuple[str, str, tuple[str, ...], Changes]] = [
        ("независимые прогоны", "independent runs (control)", (), ()),
        ("один сид на все прогоны", "one seed for all runs", (), ONE_SEED),
        ("одна модель под двумя именами", "one model under two names", ("one-model",), ()),
        ("жадная выборка, начала по порядку", "greedy decoding, prompts in order", ("greedy",), ()),
    ]
    found = []
    for title, english, faults, changes in suspects:
        rows = [table[Cell(2, "sound", faults, changes, seed).name] for seed in SEEDS]
        equal = [same_curves(row) for row in rows]
        angles = [max((value for value in row["omega"] if value is not None), default=math.nan) for row in rows]
        measured = f"кривые двух прогонов {'совпали до бита' if all(equal) else 'различны с шага ' + first_apart(rows)}"
        measured += f"; наибольший угол Ω: {spread(angles)}°"
        if changes == ONE_SEED:
            twins = [table[Cell(2, "sound", (), (*ONE_SEED, ("M", 1)), seed).name] for seed in SEEDS]
            same = sum(a["policy_sha256"] == b["policy_sha256"] for a, b in zip(rows, twins, strict=True))
            measured += f"; итоговые веса совпали с M = 1 до бита в {same} из {len(SEEDS)}"
        found.append(
            Verdict(
                title,
                english,
                f"кривые двух прогонов совпадут до бита, угол Ω меньше {format_number(RIGHT)}°",
                tuple(same and not angle > RIGHT for same, angle in zip(equal, angles, strict=True)),
                measured,
            )
        )
    return found


def noise(table: Table) -> list[Verdict]:
    """5: KL without anything to learn."""
    found = []
    kinds = (("none", "без базовой линии", "no baseline"), ("mean", "с вычитанием среднего", "mean subtracted"))
    for baseline, words, english in kinds:
        shares = {
            lr: [
                ratio(*(kl(table[drift(reward, lr, baseline, seed).name]) for reward in ("constant", "sound")))
                for seed in SEEDS
            ]
            for lr in DRIFT_LR
        }
        large = [lr for lr in DRIFT_LR if lr >= 1e-4]
        measured = "; ".join(f"lr = {format_number(lr)}: {spread(share)}" for lr, share in shares.items())
        found.append(
            Verdict(
                f"шум шагов Adam, {words}",
                f"noise of Adam's steps, {english}",
                "с постоянной наградой KL при lr ≥ 10⁻⁴ не меньше половины той, что с настоящей",
                tuple(min(shares[lr][place] for lr in large) >= 0.5 for place in range(len(SEEDS))),
                f"отношение KL с постоянной наградой к KL с настоящей: {measured}",
            )
        )
    return found


def rising_curves(table: Table) -> Verdict:
    """6: a functional that rises without its reward."""
    outcomes, rates = [], []
    for seed in SEEDS:
        rows = [table[Cell(number, "collapsed", seed=seed).name] for number in (3, 4)]
        parts = [(slope(history(row), "objective"), slope(history(row), "reward")) for row in rows]
        known = [(whole, reward) for whole, reward in parts if whole is not None and reward is not None]
        rates.append([(whole.value, reward.value) for whole, reward in known])
        outcomes.append(all(whole.low > 0 and reward.value < 0.5 * whole.value for whole, reward in known))
    shown = [
        f"эксперимент {number}: {spread([rate[place][0] for rate in rates])}, вклад награды "
        f"{spread([rate[place][1] for rate in rates])}"
        for place, number in enumerate((3, 4))
    ]
    return Verdict(
        "растёт слагаемое −β·log(π/π_ema), а не награда",
        "−β·log-ratio rises, not the reward",
        "со схлопнувшейся моделью награды наклон r_β в экспериментах 3 и 4 больше нуля, и меньше половины его даёт "
        "награда",
        tuple(outcomes),
        f"наклон за шаг: {'; '.join(shown)}",
    )


# The best-fitting combination


@dataclass(frozen=True)
class Combination:
    """A choice of faults, the four rows it gives (medians over the seeds), and the original's traits it shows."""

    reward: str
    seeds: str
    warm_up: str
    scoring: str
    rows: dict[int, dict[str, float]]
    traits: dict[str, bool]

    @property
    def matched(self) -> int:
        """How many traits."""
        return sum(self.traits.values())

    @property
    def missing(self) -> list[str]:
        """The traits it lacks."""
        return [name for name, shown in self.traits.items() if not shown]


def combinations_tried(table: Table) -> list[Combination]:
    """Every combination of reward, seeds, warm-up and scoring, the best fit first; ties as they stand in the table."""
    unit = sound_spread(table)
    found = []
    for reward, (seeds, shared), warm_up, scoring in product(
        ("sound", "collapsed"),
        (("independent", ()), ("one", ONE_SEED)),
        WARM_UPS,
        ("float32", "bfloat16", "mixed"),
    ):
        cells = {number: [Cell(number, reward, (), shared, seed) for seed in SEEDS] for number in (2, 3, 4)}
        faults, changes = WARM_UPS[warm_up]
        cells[1] = [Cell(1, reward, faults, changes + shared, seed) for seed in SEEDS]
        records = {number: [table[cell.name] for cell in cells[number]] for number in sorted(cells)}
        rows = {number: row(kept, scoring) for number, kept in records.items()}
        found.append(Combination(reward, seeds, warm_up, scoring, rows, traits(rows, records, unit)))
    return sorted(found, key=lambda combination: -combination.matched)


def row(records: Sequence[Record], scoring: str) -> dict[str, float]:
    """Medians over the seeds of what the original's table holds."""
    columns: dict[str, Callable[[Record], float]] = {
        "reward_reference": lambda record: record["evaluation"]["reward_reference"]["value"],
        "reward_policy": lambda record: record["evaluation"]["reward_policy"]["value"],
        "reward_difference": lambda record: record["evaluation"]["reward_difference"]["value"],
        "kl_reference_policy": lambda record: record["kl"][scoring]["kl_reference_policy"],
        "kl_policy_reference": lambda record: record["kl"][scoring]["kl_policy_reference"],
    }
    return {name: float(pd.Series([read(record) for record in records]).median()) for name, read in columns.items()}


def traits(rows: dict[int, dict[str, float]], records: dict[int, list[Record]], unit: float) -> dict[str, bool]:
    """What the original's table and pictures show, each found again or not."""
    found = {"награда неподвижна": all(abs(one["reward_difference"]) <= CONSTANT for one in rows.values())}
    found["KL эксперимента 1 печатается как 0,00000"] = (
        max(rows[1]["kl_reference_policy"], rows[1]["kl_policy_reference"]) < ZERO
    )
    for number in (2, 3, 4):
        found[f"KL эксперимента {number} та же в пределах {format_number(FACTOR)} раз"] = close(
            rows[number]["kl_reference_policy"], ROWS[number].kl_reference_policy
        )
    for number in (1, 2):
        found[f"кривые эксперимента {number} сливаются"] = all(
            apart(record) <= ALIKE * unit for record in records[number]
        )
    return found


# Reading records


def kl(record: Record, scoring: str = "float32") -> float:
    """The larger of the two KLs, nats."""
    return max(record["kl"][scoring].values())


def ratio(part: float, whole: float) -> float:
    """part / whole; unknown where the whole is lost in rounding."""
    return part / whole if whole > 0 else math.nan


def close(value: float, wanted: float) -> bool:
    """Within FACTOR of each other."""
    return wanted / FACTOR <= value <= wanted * FACTOR


def same_curves(record: Record) -> bool:
    """Whether the runs of each iteration are equal to the bit in every column."""
    return all(pair_equal(record, first, second) for first, second in pairs(record))


def pairs(record: Record) -> list[tuple[int, int]]:
    """Places of two runs of one iteration among the curves, for M = 2; none of a single run."""
    return [(place, place + 1) for place in range(0, len(record["curves"]["objective"]) - 1, 2)]


def pair_equal(record: Record, first: int, second: int) -> bool:
    """Whether two curves are equal to the bit."""
    return all(curves[first] == curves[second] for curves in record["curves"].values())


def first_apart(records: Sequence[Record]) -> str:
    """The steps at which runs of an iteration begin to differ, the earliest and the latest."""
    steps = [
        next(
            step
            for step, (a, b) in enumerate(zip(*(r["curves"]["objective"][i] for i in pair), strict=True), 1)
            if a != b
        )
        for r in records
        for pair in pairs(r)
        if not pair_equal(r, *pair)
    ]
    return str(min(steps)) if min(steps) == max(steps) else f"{min(steps)}–{max(steps)}"


def apart(record: Record) -> float:
    """The largest distance of two of the functional's curves at one step."""
    curves = record["curves"]["objective"]
    return max(
        (abs(a - b) for one, other in combinations(curves, 2) for a, b in zip(one, other, strict=True)), default=0.0
    )


def sound_spread(table: Table) -> float:
    """Standard deviation of the sound reward's scores: the sweep's rate that the project uses."""
    return float(pd.Series([table[RewardCell(SWEEP_LR[1], seed).name]["spread"] for seed in SEEDS]).median())


def history(record: Record) -> pd.DataFrame:
    """The curves as `checks.slope` takes them."""
    return pd.DataFrame(
        {"seed": record["seed"], "iteration": place // 2, "run": place % 2, "step": step + 1}
        | {column: runs[place][step] for column, runs in record["curves"].items()}
        for place in range(len(record["curves"]["objective"]))
        for step in range(len(record["curves"]["objective"][place]))
    )


def spread(values: Sequence[float]) -> str:
    """The smallest and the largest, or the one value."""
    low, high = min(values), max(values)
    return format_number(low) if low == high else f"от {format_number(low)} до {format_number(high)}"
