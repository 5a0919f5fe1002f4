"""Tables of the diagnosis that nobody measured: nothing is at fault anywhere, until a test plants it."""

from __future__ import annotations

from typing import Any

from warp_nb.studies.cells import GREEDY, LR_OF_4, Cell, RewardCell, cells
from warp_nb.studies.diagnosis import CURVES

KLS = {1: 1e-8, 2: 1e-5, 3: 9.0, 4: 0.1}
"""Of the sound experiments, nats."""


def record(reward: float = 0.5, kl: float = 1.0, curves: Any = None, **more: Any) -> dict[str, Any]:
    """A training that changed the reward by `reward`, its KLs in every arithmetic `kl`, its four runs fall, apart."""
    estimate = {"value": reward, "low": reward - 0.1, "high": reward + 0.1}
    measures = dict.fromkeys(("reward_reference", "reward_policy", "reward_difference"), estimate)
    steps = [[run - step for step in range(10)] for run in range(4)]
    return {
        "evaluation": measures,
        "kl": {name: both(kl) for name in ("float32", "bfloat16", "mixed")},
        "curves": dict.fromkeys((*CURVES, "surrogate"), curves or steps),
        "omega": [80.0],
        "unmoved": [0.1],
        "delta_norms": [1.0],
        "moved": 1.0,
        "parameters": 100,
        "policy_sha256": "a",
        "seed": 0,
        "failed": [],
        "seconds": 1.0,
    } | more


def both(kl: float) -> dict[str, float]:
    """Both KLs the same."""
    return {"kl_reference_policy": kl, "kl_policy_reference": kl}


def moved(table: dict[str, Any], cell: Cell, change: float) -> None:
    """Let the cell's training change the reward by so much."""
    table[cell.name]["evaluation"] = table[cell.name]["evaluation"] | {"reward_difference": {"value": change}}


def healthy() -> dict[str, Any]:
    """Every cell; bf16 shows a KL of 0.002 in experiment 1."""
    table: dict[str, Any] = {}
    for cell in cells():
        if isinstance(cell, RewardCell):
            table[cell.name] = {"spread": 1.0, "pair_accuracy": 0.8, "seconds": 1.0}
        else:
            table[cell.name] = record(kl=KLS[cell.experiment], seed=cell.seed)
            if cell.experiment == 1:
                table[cell.name]["kl"]["bfloat16"] = both(2e-3)
    return table


BEST = {"task": "smollm", "reward": "collapsed", "runs": "greedy", "warm_up": "never-stepped", "lr": "0.0006"}
"""The choices that `with_the_originals_traits` explains the report by, in whatever precision and plot."""


def with_the_originals_traits() -> dict[str, Any]:
    """A table in which BEST has all of the original's traits."""
    table = healthy()
    rising = [[step + 3.0 * (run < 2) for step in range(10)] for run in range(4)]
    wanted = {
        Cell(1, "collapsed", ("never-stepped", *GREEDY), task="smollm"): (0.0, [[0.1, 0.2]] * 4),
        Cell(2, "collapsed", GREEDY, task="smollm"): (0.02, [[0.1, 0.2]] * 4),
        Cell(3, "collapsed", GREEDY, task="smollm"): (100.0, rising),
        Cell(4, "collapsed", GREEDY, (("lr", LR_OF_4[1]),), task="smollm"): (30.0, rising),
    }
    for cell, (kl, curves) in wanted.items():
        found = table[cell.name] = record(reward=0.0, kl=kl, curves=curves)
        width = 2e-7 * 1.96 / 2**0.5
        reference = {"value": 0.0438, "low": 0.0438 - width, "high": 0.0438 + width}
        found["evaluation"] = found["evaluation"] | {"reward_reference": reference}
    return table
