"""Conclusions from the table of the diagnosis: a verdict per hypothesis.

A prediction is a condition on the results of one seed. If all seeds meet it, the fault is sufficient to explain what
the original report saw; if none does, it is not; otherwise the verdict is undecided. A sufficient fault need not be
the cause: the report's code is not known. A seed whose cells the table lacks is left out; without any seed the verdict
is "not measured". A deterministic training (greedy decoding, prompts in order) is one observation.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any

from warp_nb.studies.cells import (
    DRIFT_LR,
    GREEDY,
    ONE_SEED,
    PRECISION_SEEDS,
    SEEDS,
    WARM_UPS,
    Cell,
    Changes,
    FitArm,
    drift,
    runs_of,
)
from warp_nb.studies.original import ROWS
from warp_nb.studies.readings import (
    ALIKE,
    PLOTTED,
    RIGHT,
    RISE,
    STILL,
    ZERO,
    Record,
    Table,
    close,
    first_apart,
    kl,
    moves_alike,
    ratio,
    resampled,
    rise,
    same_curves,
    share_apart,
)

SUFFICIENT, INSUFFICIENT, UNDECIDED = "sufficient to explain it", "not sufficient", "undecided"
SHARE, NOT_MEASURED = "a share, no verdict", "not measured"
ONCE = {"once-a-run": ("once-a-run",), "rebuilt": ("rebuilt",), "bf16-weights": ("bf16-weights",)}
"""Faults that may have left θ untouched in experiment 1, measured once each."""


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
