"""The four experiments of the original report: what it set, what it got, what it concluded.

Its reward model and task are not known: its figures stand beside ours as another scale.
What the report does not say and we assume is listed with each row.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warp_nb.config import WarpConfig

COMMON: dict[str, Any] = {"I": 2, "M": 2, "T": 10, "beta": 0.1, "mu": 0.01, "eta": 0.5, "optimizer": "adam"}
AS_WRITTEN: dict[str, Any] = {"anchor": "ema", "merge": "slerp", "merge_by": "layer", "lam": 0.5, "baseline": "none"}
"""Algorithm 1 without our switches; the report says it implements the paper."""
ASSUMED_TASK = "задача, размер пакета, длина продолжения и температура"


@dataclass(frozen=True)
class OriginalRow:
    """One experiment of the report; rewards on its own scale, KL in the report's units."""

    experiment: int
    change: str
    settings: dict[str, Any]
    reward_reference: float
    reward_policy: float
    kl_reference_policy: float
    kl_policy_reference: float
    conclusion: str
    assumed: tuple[str, ...] = field(default=(ASSUMED_TASK,))

    def measures(self) -> dict[str, float]:
        """The reported figures by the names of our own measures."""
        return {
            "reward_reference": self.reward_reference,
            "reward_policy": self.reward_policy,
            "reward_difference": self.reward_policy - self.reward_reference,
            "kl_reference_policy": self.kl_reference_policy,
            "kl_policy_reference": self.kl_policy_reference,
        }


ROWS = {
    1: OriginalRow(
        1,
        "lr = 1e-6 с линейным прогревом",
        COMMON | {"lr": 1e-6, "warmup_steps": 100},
        0.0438411,
        0.0438411,
        0.0,
        0.0,
        "взят слишком маленький lr",
        ("длина прогрева, 100 шагов, как в статье (в отчёте «несколько шагов»)", ASSUMED_TASK),
    ),
    2: OriginalRow(
        2,
        "lr = 1e-6 без прогрева",
        COMMON | {"lr": 1e-6, "warmup_steps": 0},
        0.0438411,
        0.0438410,
        0.02546,
        0.02410,
        "либо lr всё ещё слишком маленький, либо прогрев ни на что не влиял",
    ),
    3: OriginalRow(
        3,
        "lr = 1e-3 без прогрева",
        COMMON | {"lr": 1e-3, "warmup_steps": 0},
        0.0438411,
        0.0438404,
        89.02149,
        100.29043,
        "выбран слишком большой lr",
    ),
    4: OriginalRow(
        4,
        "меньший lr без прогрева",
        COMMON | {"lr": 1e-4, "warmup_steps": 0},
        0.0438413,
        0.0438342,
        33.56183,
        30.76847,
        "недостатки первого эксперимента исправлены, но качество получилось не очень",
        ("lr = 1e-4 (отчёт говорит лишь «меньше», это значение названо в его последней фразе)", ASSUMED_TASK),
    ),
}


def match(config: WarpConfig) -> int | None:
    """Number of the original experiment whose stated settings `config` has; None for one's own."""
    for number, row in ROWS.items():
        if all(getattr(config, name) == value for name, value in (row.settings | AS_WRITTEN).items()):
            return number
    return None
