"""Quantities of the objective the slow way: one sequence at a time without padding, or every completion there is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import tiny
import torch

from warp_nb.algorithm import objective
from warp_nb.algorithm.objective import Rollout, Sampling
from warp_nb.tasks.text import encode_prompts, pad_id

FOUR = ["a", "b", "c"]
"""Three words and the end token: few enough to list every completion."""
MODELS = {"gpt2": tiny.gpt2, "llama": tiny.llama}


def encoded(words: Any, prompts: list[str], count: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Ids and mask of prompts that leave room for `count` tokens in the 32 positions of the tiny models."""
    return encode_prompts(words, prompts, 32 - count)


def drawn(
    policy: Any, words: Any, prompts: list[str], count: int, *, temperature: float = 1.0, seed: int = 0,
    sample: Callable[..., Rollout] = objective.sample, ends: tuple[int, ...] | None = None, fewest: int = 0,
) -> Rollout:  # fmt: skip
    """Completions of up to `count` tokens, that end at `ends`, by default the tokenizer's, after `fewest` or more."""
    end = words.eos_token_id
    ends = ends if ends is not None else () if end is None else (end,)
    sampling = Sampling(count, temperature, ends, pad_id(words, policy), fewest)
    generator = torch.Generator().manual_seed(seed)
    return sample(policy, *encoded(words, prompts, count), sampling, generator=generator)


def scored(rollout: Rollout) -> tuple[torch.Tensor, torch.Tensor, float]:
    """The arguments of `token_log_probs` after the logits."""
    return rollout.tokens, rollout.completion_mask, rollout.temperature


def alone(policy: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> list[float]:
    """Log-probabilities of a completion's tokens: one unpadded sequence, no masks, no positions, float64."""
    with torch.no_grad():
        logits = policy(torch.tensor([prompt + completion])).logits[0].double() / temperature
    table = logits.log_softmax(-1)
    return [table[len(prompt) + i - 1, token].item() for i, token in enumerate(completion)]


def exact_kl(p: Any, q: Any, prompt: list[int], temperature: float) -> float:
    """KL(p || q) over every completion of up to three of four tokens, by the definition."""
    total = 0.0
    for row in tiny.sequences(4, 3, end=3):
        log_p, log_q = (sum(alone(model, prompt, row, temperature)) for model in (p, q))
        total += math.exp(log_p) * (log_p - log_q)
    return total
