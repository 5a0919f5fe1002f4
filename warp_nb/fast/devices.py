"""Device and dtype of a run's computation: CUDA, MPS or CPU; bf16 where the hardware has it natively."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

if TYPE_CHECKING:
    from transformers import PreTrainedModel

DEVICE_KINDS = ("cuda", "mps", "cpu")
LARGE = 50_000_000
"""Number of parameters from which bf16 pays off: below it, casting costs as much as it saves."""


def available() -> list[str]:
    """Return the kinds of device that this machine has, the fastest first."""
    found = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    return [kind for kind in DEVICE_KINDS if found[kind]]


def choose_device(named: str = "") -> str:
    """Return the named device (cuda, cuda:1, mps, cpu), or the fastest one if the name is empty.

    Raises ValueError for another name and for a device that this machine lacks.
    """
    if not named:
        return available()[0]
    kind, _, number = named.partition(":")
    if kind not in DEVICE_KINDS or (number and not (kind == "cuda" and number.isdigit())):
        raise ValueError(f"device must be cuda, cuda:N, mps or cpu, got {named!r}; pass -p device cpu, or nothing")
    if kind not in available() or (number and int(number) >= torch.cuda.device_count()):
        raise ValueError(f"device {named!r} is not here, this machine has {', '.join(available())}; pass -p device cpu")
    return named


def bf16_is_fast(device: str | None = None) -> bool:
    """Return whether the device multiplies bf16 matrices natively (elsewhere bf16 is slower than fp32)."""
    if (device or "cpu").startswith("cuda"):
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device in (None, "cpu") and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def training_dtype(asked: str, policy: PreTrainedModel) -> str:
    """Return float32 or bfloat16: as asked for, or for `auto` bfloat16 where it pays off. Evaluation is always fp32."""
    if asked != "auto":
        return asked
    pays = policy.num_parameters() >= LARGE and bf16_is_fast(str(policy.device))
    return "bfloat16" if pays else "float32"


@contextmanager
def arithmetic(dtype: str, device: torch.device) -> Iterator[None]:
    """Autocast to bf16 if `dtype` is bfloat16; weights, anchor and optimizer state stay fp32."""
    with torch.autocast(device.type, torch.bfloat16, enabled=dtype == "bfloat16"):
        yield


def prepare_attention(model: PreTrainedModel, dtype: str) -> None:
    """For bf16 on the CPU, compute attention in fp32: several times as fast as torch's bf16 kernel, and more exact."""
    if dtype == "bfloat16" and model.device.type == "cpu" and model.config._attn_implementation == "sdpa":
        model.set_attn_implementation(_register_attention())


@cache
def _register_attention() -> str:
    """Register `_attention_in_fp32` and its masks with transformers; return their name there."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("fp32", _attention_in_fp32)
    AttentionMaskInterface.register("fp32", sdpa_mask)
    return "fp32"


def _attention_in_fp32(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    **kwargs: Any,
) -> tuple[torch.Tensor, None]:
    """Compute softmax(query key^T) value in fp32; query [B, heads, L, width], key and value with grouped heads."""
    if kwargs.get("softcap") is not None or kwargs.get("position_bias") is not None:
        raise ValueError("attention with a soft cap or position biases is not for bf16 on the CPU; use dtype float32")
    with torch.autocast(query.device.type, enabled=False):
        found = F.scaled_dot_product_attention(
            query.float(),
            key.float(),
            value.float(),
            attn_mask=attention_mask,
            dropout_p=dropout,
            is_causal=attention_mask is None and query.shape[2] > 1,
            scale=scaling,
            enable_gqa=True,
        )
    return found.transpose(1, 2).to(query.dtype), None
