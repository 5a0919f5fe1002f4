"""Where a run computes and in which arithmetic: CUDA, MPS or CPU; bf16 where the hardware is good at it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

if TYPE_CHECKING:
    from transformers import PreTrainedModel

KINDS = ("cuda", "mps", "cpu")
LARGE = 50_000_000
"""Parameters from which bf16 pays: below, casting costs as much as it saves."""


def available() -> list[str]:
    """The kinds of device this machine has, the fastest first."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind in KINDS if found[kind]]


def choose_device(named: str = "") -> str:
    """The device named (cuda, cuda:1, mps, cpu), or the fastest one where the name is empty.

    Raises ValueError for another name and for a device this machine lacks.
    """
    if not named:
        return available()[0]
    kind, _, number = named.partition(":")
    if kind not in KINDS or (number and not (kind == "cuda" and number.isdigit())):
        raise ValueError(f"device must be cuda, cuda:N, mps or cpu, got {named!r}; pass -p device cpu, or nothing")
    if kind not in available() or (number and int(number) >= torch.cuda.device_count()):
        raise ValueError(f"device {named!r} is not here, this machine has {', '.join(available())}; pass -p device cpu")
    return named


def bf16_is_fast(device: str | None = None) -> bool:
    """Whether the device multiplies bf16 matrices natively (elsewhere it is slower than fp32)."""
    if (device or "cpu").startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device in (None, "cpu") and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def training_dtype(asked: str, policy: PreTrainedModel) -> str:
    """float32 or bfloat16: what was asked for, or for `auto` bf16 where it pays. Evaluation is always fp32."""
    if asked != "auto":
        return asked
    pays = policy.num_parameters() >= LARGE and bf16_is_fast(str(policy.device))
    return "bfloat16" if pays else "float32"
