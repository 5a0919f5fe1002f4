"""The four experiments of the original report: settings, results and conclusions.

Its reward model and task are not known, so its rewards are on another scale than ours.
Assumptions about what the report does not say are listed with each row.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warp_nb.config import WarpConfig

COMMON: dict[str, Any] = {"I": 2, "M": 2, "T": 10, "beta": 0.1, "mu": 0.01, "eta": 0.5, "optimizer": "adam"}
AS_WRITTEN: dict[str, Any] = {"anchor": "ema", "merge": "slerp", "merge_by": "layer", "lam": 0.5, "baseline": "none"}
"""Algorithm 1 without our options; the report says that it implements the paper."""
STORED: dict[str, Any] = tomllib.loads(Path(__file__).with_suffix(".toml").read_text(encoding="utf-8"))
ASSUMED_TASK: str = STORED.pop("assumed")
"""Settings that the report gives for none of its experiments."""


@dataclass(frozen=True)
class OriginalRow:
    """One experiment of the report; rewards and KL are in the report's units."""

    experiment: int
    change: str
    settings: dict[str, Any]
    reward_reference: float
    reward_policy: float
    kl_reference_policy: float
    kl_policy_reference: float
    conclusion: str
    assumed: tuple[str, ...]
    guessed: tuple[str, ...]

    def measures(self) -> dict[str, float]:
        """Return the reported values by the names of our measures."""
        return {
            "reward_reference": self.reward_reference,
            "reward_policy": self.reward_policy,
            "reward_difference": self.reward_policy - self.reward_reference,
            "kl_reference_policy": self.kl_reference_policy,
            "kl_policy_reference": self.kl_policy_reference,
        }


def _row(number: int, row: dict[str, Any]) -> OriginalRow:
    settings = COMMON | {name: row.pop(name) for name in ("lr", "warmup_steps")}
    assumed = (*row.pop("assumed", ()), ASSUMED_TASK)
    guessed = tuple(row.pop("guessed", ()))
    return OriginalRow(experiment=number, settings=settings, assumed=assumed, guessed=guessed, **row)


ROWS = {int(number): _row(int(number), row) for number, row in STORED.items()}


def match(config: WarpConfig) -> int | None:
    """Return the number of the original experiment whose stated settings `config` has; None if there is none."""
    for number, row in ROWS.items():
        if all(getattr(config, name) == value for name, value in (row.settings | AS_WRITTEN).items()):
            return number
    return None
