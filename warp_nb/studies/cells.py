"""The cells of the diagnosis: controlled trainings with planted faults.

The name of a cell lists everything that is set in it. Settings and seeds are fixed here, before any run.

There are 184 cells: 12 trainings of a reward model, 160 of `small` (48 of them are single runs, 10 have one step a run)
and 12 of `smollm`. Where a fault makes a run deterministic, or its effect is far above the spread over seeds, a cell
has one seed. KL is taken in half precision only where `verdicts` reads it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from warp_nb.config import WarpConfig
from warp_nb.fast.devices import training_dtype
from warp_nb.studies.original import ROWS
from warp_nb.tasks.task import Task

SEEDS = (0, 1, 2)
PRECISION_SEEDS = {"small": SEEDS, "smollm": SEEDS[:1]}
"""Seeds of the sound cells whose KL is compared between precisions."""
THREADS = 1
SWEEP_LR = (1e-5, 1e-4, 1e-3, 1e-2)
"""Learning rates of RewardTrainer; the project's model is trained with 1e-4."""
DRIFT_LR = (1e-6, 1e-5, 1e-4, 1e-3)
LR_OF_4 = (ROWS[4].settings["lr"], 6e-4)
"""Learning rates of experiment 4: the one that we assume, and the one that fits its KL, which grows as lr^1.8."""
Changes = tuple[tuple[str, Any], ...]
ONE_SEED = ("one-seed",)
GREEDY = ("greedy",)
WARM_UPS: dict[str, tuple[tuple[str, ...], Changes]] = {
    "100": ((), ()),
    "5": ((), (("warmup_steps", 5),)),
    "never-stepped": (("never-stepped",), ()),
    "once-a-run": (("once-a-run",), ()),
}
"""Faults and changes for each way in which experiment 1 may have warmed up; we assume "100", of which it runs 10."""
SUSPECTS: dict[str, tuple[str, tuple[str, ...], Changes]] = {
    "none": ("sound", (), ()),
    "collapsed": ("collapsed", (), ()),
    "collapsed-fp16": ("collapsed-fp16", (), ()),
    "never-stepped": ("sound", ("never-stepped",), ()),
    "rebuilt": ("sound", ("rebuilt",), ()),
    "one-seed": ("sound", ONE_SEED, ()),
    "one-model": ("sound", ("one-model",), ()),
    "live-init": ("sound", ("live-init",), ()),
    "bf16-weights": ("sound", ("bf16-weights",), ()),
    "greedy": ("sound", GREEDY, ()),
}
"""Name -> reward, faults and changes of the cell that shows whether a check detects the fault at step 1."""


@dataclass(frozen=True)
class Cell:
    """One training with the settings of an experiment of the original report, and the changes to them.

    Args:
        experiment: number in the original report.
        reward: sound, collapsed (the raw logit), collapsed-fp16 (the same model in fp16) or constant.
        faults: names in `faults.FAULTS`.
        changes: parameters that differ from the experiment's.
        seed: of the training.
        task: small or smollm.
    """

    experiment: int
    reward: str = "sound"
    faults: tuple[str, ...] = ()
    changes: Changes = ()
    seed: int = 0
    task: str = "small"

    @property
    def name(self) -> str:
        """The key in the table: everything that is set, in readable form."""
        changes = [f"{key}={value:g}" if isinstance(value, float) else f"{key}={value}" for key, value in self.changes]
        return " ".join([self.task, f"exp{self.experiment}", self.reward, *self.faults, *changes, f"seed={self.seed}"])

    @property
    def in_half_precision(self) -> bool:
        """Whether its KL is also measured in half precision: `verdicts` compares precisions there."""
        if self.experiment > 2 or {name for name, _ in self.changes} - {"warmup_steps"}:
            return False
        return self.task == "smollm" or (
            self.reward == "sound" and not {"one-model", "live-init", *GREEDY} & set(self.faults)
        )

    def config(self, task: Task) -> WarpConfig:
        """Return the parameters of the training."""
        settings = ROWS[self.experiment].settings | dict(self.changes)
        return WarpConfig(
            **settings, batch_size=16, seed=self.seed, threads=THREADS, dtype=training_dtype("auto", task.policy)
        )


@dataclass(frozen=True)
class RewardCell:
    """One training of the reward model by TRL's RewardTrainer."""

    lr: float
    seed: int = 0

    @property
    def name(self) -> str:
        """The key in the table."""
        return f"reward lr={self.lr:g} seed={self.seed}"


@dataclass(frozen=True)
class FitArm:
    """A choice of faults that the fit tries: it needs each experiment of the original, in the variants given here.

    Args:
        reward: as that of a `Cell`.
        faults: names in `faults.FAULTS`, planted in all four experiments.
        warm_ups: names in WARM_UPS, of experiment 1.
        lrs: learning rates of experiment 4.
        seeds: of its cells; at the learning rate that is not the assumed one only the first.
        task: small or smollm.
    """

    reward: str
    faults: tuple[str, ...] = ()
    warm_ups: tuple[str, ...] = ("100",)
    lrs: tuple[float, ...] = LR_OF_4
    seeds: tuple[int, ...] = SEEDS[:1]
    task: str = "small"

    def first(self, warm_up: str) -> list[Cell]:
        """Return the cells of experiment 1, one per seed."""
        faults, changes = WARM_UPS[warm_up]
        return [Cell(1, self.reward, faults + self.faults, changes, seed, self.task) for seed in self.seeds]

    def fourth(self, lr: float) -> list[Cell]:
        """Return the cells of experiment 4."""
        changes, seeds = ((), self.seeds) if lr == LR_OF_4[0] else ((("lr", lr),), self.seeds[:1])
        return [Cell(4, self.reward, self.faults, changes, seed, self.task) for seed in seeds]

    def other(self, number: int) -> list[Cell]:
        """Return the cells of experiment 2 or 3."""
        return [Cell(number, self.reward, self.faults, (), seed, self.task) for seed in self.seeds]

    def cells(self) -> list[Cell]:
        """Return all cells of the arm."""
        parts = [*map(self.first, self.warm_ups), self.other(2), self.other(3), *map(self.fourth, self.lrs)]
        return [cell for part in parts for cell in part]


FIT = (
    FitArm("collapsed", GREEDY, ("100", "never-stepped"), task="smollm"),
    FitArm("collapsed", ONE_SEED, ("never-stepped",), LR_OF_4[1:], task="smollm"),
    FitArm("collapsed", GREEDY, ("100", "5", "never-stepped", "once-a-run")),
    FitArm("collapsed", ONE_SEED, ("100", "5", "never-stepped")),
    FitArm("collapsed", seeds=SEEDS),
    FitArm("collapsed", (*GREEDY, "rebuilt")),
    FitArm("collapsed", (*GREEDY, "live-init")),
    FitArm("collapsed", (*GREEDY, "bf16-weights")),
    FitArm("collapsed-fp16", GREEDY),
    FitArm("sound", GREEDY),
    FitArm("sound", ONE_SEED, ("100", "5", "never-stepped"), seeds=SEEDS),
    FitArm("sound", (), ("100", "5", "never-stepped"), seeds=SEEDS),
)
"""The arms of the fit: the main ones on `smollm`, whose KLs are of the original's size, the others on `small`."""


def cells() -> list[Cell | RewardCell]:
    """Return all cells, in the order in which they are measured."""
    found: list[Cell | RewardCell] = [RewardCell(lr, seed) for lr in SWEEP_LR for seed in SEEDS]
    found += [cell for arm in FIT if arm.task == "small" for cell in arm.cells()]
    found += [Cell(2, "sound", ("one-model",), (), seed) for seed in SEEDS]
    found += [Cell(2, "sound", ONE_SEED, (("M", 1),), seed) for seed in SEEDS]
    found += [Cell(1, "sound", (fault,)) for fault in ("once-a-run", "rebuilt", "bf16-weights")]
    found += [Cell(2, "sound", (fault,)) for fault in ("live-init", "bf16-weights")]
    found += [
        drift(reward, lr, baseline, seed)
        for seed in SEEDS
        for lr in DRIFT_LR
        for reward in ("sound", "constant")
        for baseline in ("none", "mean")
    ]
    found += [at_step_one(name) for name in SUSPECTS]
    found += [Cell(number, seed=seed, task="smollm") for number in (1, 2) for seed in PRECISION_SEEDS["smollm"]]
    return found + [cell for arm in FIT if arm.task == "smollm" for cell in arm.cells()]


def at_step_one(suspect: str) -> Cell:
    """Return the cell of experiment 2 with one iteration and one step per run."""
    reward, faults, changes = SUSPECTS[suspect]
    return Cell(2, reward, faults, (*changes, ("I", 1), ("T", 1)))


def drift(reward: str, lr: float, baseline: str, seed: int) -> Cell:
    """Return the cell of a single run, which shows how far Adam moves with or without a reward to learn."""
    return Cell(2, reward, (), (("I", 1), ("M", 1), ("lr", lr), ("baseline", baseline)), seed)


def runs_of(faults: Sequence[str]) -> str:
    """Name what the runs of an arm share or do wrongly: its faults, or that there are none."""
    return " ".join(faults) or "independent"
