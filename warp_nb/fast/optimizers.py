"""Optimizers that update all weights in one fused pass where torch has one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}
MOMENTS = {"adam": {"step", "exp_avg", "exp_avg_sq"}, "adamw": {"step", "exp_avg", "exp_avg_sq"}, "sgd": set()}
"""Names of what each optimizer remembers of a parameter, in its shape but for the number of steps."""


def optimizer_of(name: str, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    """Return a function of parameters and `lr` that makes the optimizer, otherwise with torch's defaults (line 8)."""
    return partial(OPTIMIZERS[name], fused=device.type in ("cpu", "cuda"))
