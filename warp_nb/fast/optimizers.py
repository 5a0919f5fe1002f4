"""Optimizers that update all weights in one fused pass where torch has one."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch

KINDS: dict[str, Callable[..., torch.optim.Optimizer]] = {
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "sgd": torch.optim.SGD,
}


def optimizer_of(name: str, device: torch.device) -> Callable[..., torch.optim.Optimizer]:
    """A function of parameters and `lr` that makes the optimizer with the library's other defaults (line 8)."""
    return partial(KINDS[name], fused=device.type in ("cpu", "cuda"))
