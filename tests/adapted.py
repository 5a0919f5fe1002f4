"""Tiny PEFT policies and tasks that are trained by LoRA."""

from __future__ import annotations

from typing import Any

import peft
import tiny
import torch

from warp_nb.config import WarpConfig
from warp_nb.tasks.task import Task

V = len(tiny.tokenizer())
TARGETS: dict[str, dict[str, Any]] = {
    "gpt2": {"target_modules": ["c_attn", "c_fc"], "fan_in_fan_out": True},
    "llama": {"target_modules": ["q_proj", "v_proj", "down_proj"]},
}
CONFIG = WarpConfig(I=2, M=2, T=3, lr=1e-2, warmup_steps=0, batch_size=4, max_new_tokens=5, mu=0.1, eta=0.3)


def noise_(values: Any, seed: int, std: float = 0.3) -> None:
    """Fill tensors with normal noise."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in values:
            value.normal_(std=std, generator=generator)


def peft_policy(kind: str = "gpt2", *, trained: bool = False, seed: int = 0, **settings: Any) -> Any:
    """A tiny policy with a fresh LoRA adapter of rank 2, or with noise in its factors as a trained one has."""
    base = tiny.gpt2(V, seed, spread=0.05) if kind == "gpt2" else tiny.llama(V, seed, spread=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(seed + 1)
        policy = peft.get_peft_model(base, peft.LoraConfig(**{"r": 2, "lora_alpha": 3, **TARGETS[kind], **settings}))
    if trained:
        noise_((value for name, value in policy.named_parameters() if "lora_" in name), seed)
    return policy.eval()


def lora_task(kind: str = "gpt2", **settings: Any) -> Task:
    """The tiny task with a PEFT policy."""
    return tiny.task(policy=peft_policy(kind, **settings))


@torch.no_grad()
def logits(policy: Any) -> torch.Tensor:
    """Logits of fixed ids."""
    return policy(input_ids=torch.arange(1, 13).view(2, 6) % V).logits
