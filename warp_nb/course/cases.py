"""Inputs that a reader's function is tested on: small, exact, the same every time."""

from __future__ import annotations

import math
from typing import Any

import torch

from warp_nb.algorithm.merge import Weights, weights_of

Arguments = tuple[Any, ...]


def randn(*shape: int, seed: int = 0) -> torch.Tensor:
    """Draw normal numbers, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def weights(seed: int) -> Weights:
    """Make the weights of two layers and of a norm outside them."""
    names = {"layers.0.w": (2, 3), "layers.0.b": (3,), "layers.1.w": (3, 2), "norm.weight": (2,)}
    return {name: randn(*shape, seed=10 * seed + i) for i, (name, shape) in enumerate(names.items())}


def near(init: Weights, seed: int) -> Weights:
    """Make weights at a short distance from `init`."""
    return {
        name: value + 0.1 * randn(*value.shape, seed=100 * seed + i) for i, (name, value) in enumerate(init.items())
    }


def two_layers(seed: int) -> torch.nn.Sequential:
    """Make a module with four parameters."""
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 1))
    for index, parameter in enumerate(model.parameters()):
        parameter.data = randn(*parameter.shape, seed=10 * seed + index)
    return model


def pull(policy: torch.nn.Module, anchor: torch.nn.Module) -> torch.Tensor:
    """Compute a loss for `train_run` without sampling: it pulls the weights to 1 and to the anchor."""
    pairs = list(zip(policy.parameters(), anchor.parameters(), strict=True))
    return sum(
        (((new - 1) ** 2).sum() + 2 * ((new - old.detach()) ** 2).sum() for new, old in pairs), start=torch.tensor(0.0)
    )


def fake_run(init: Weights, i: int, m: int) -> Weights:
    """Replace a run of `algorithm_1` by a step that depends on its start, on i and on m."""
    return {
        name: value + 0.2 * randn(*value.shape, seed=7 * i + m) - 0.1 * value**2 * math.copysign(1, m - 1.5)
        for name, value in init.items()
    }


def masked_case(seed: int, batch: int, width: int, vocabulary: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Make (logits, tokens, mask) of completions with different lengths; padding is token 0."""
    tokens = torch.randint(vocabulary, (batch, width), generator=torch.Generator().manual_seed(seed))
    mask = torch.arange(width) < torch.arange(1, batch + 1)[:, None].clamp_max(width)
    return 2 * randn(batch, width, vocabulary, seed=seed), tokens.masked_fill(~mask, 0), mask


def log_probs_case(seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Make (log-probabilities that require a gradient, those of the anchor), [3, 4], 0 after the end."""
    mask = masked_case(seed, 3, 4, 5)[2]
    mine, anchor = (-randn(3, 4, seed=seed + k).abs() * mask for k in (0, 1))
    return mine.requires_grad_(True), anchor


def task_vector_cases() -> list[Arguments]:
    init = weights(0)
    return [(near(init, 1), init), ({"w": torch.tensor([3.0, 1.0])}, {"w": torch.tensor([1.0, 2.0])})]


def slerp_cases() -> list[Arguments]:
    tilted = torch.tensor([0.5, math.sqrt(0.75)])
    return [
        (torch.tensor([1.0, 0.0]), torch.tensor([0.0, 1.0]), 0.5),
        (torch.tensor([2.0, 0.0]), 3 * tilted, 0.3),
        (randn(2, 3, seed=1), randn(2, 3, seed=2), 0.8),
        (torch.tensor([1.0, 2.0]), torch.tensor([2.0, 4.0]), 0.25),
        (torch.zeros(2), torch.tensor([1.0, 2.0]), 0.25),
    ]


def liti_cases() -> list[Arguments]:
    init = weights(0)
    return [(init, near(init, 1), eta) for eta in (0.3, 0.0, 1.0)]


def bradley_terry_loss_cases() -> list[Arguments]:
    return [
        (torch.tensor([1.0, 0.5, -2.0]), torch.tensor([0.0, 2.0, -1.0])),
        (randn(4, seed=1).requires_grad_(True), randn(4, seed=2).requires_grad_(True)),
    ]


def pair_accuracy_cases() -> list[Arguments]:
    return [
        (torch.tensor([1.0, -0.5, -2.0, 1.0]), torch.tensor([0.0, -2.0, -1.0, 1.0])),
        (torch.full((3,), 0.04), torch.full((3,), 0.04)),
    ]


def token_log_probs_cases() -> list[Arguments]:
    return [(*masked_case(seed, 3, 4, 5), temperature) for seed, temperature in ((0, 1.0), (1, 0.7))]


def token_kl_cases() -> list[Arguments]:
    found = []
    for seed, temperature in ((0, 1.0), (1, 0.7)):
        logits, _, mask = masked_case(seed, 3, 4, 5)
        found.append((logits, logits + randn(*logits.shape, seed=seed + 5), mask, temperature))
    return found


def regularised_reward_cases() -> list[Arguments]:
    return [(randn(3, seed=seed), *log_probs_case(seed), beta) for seed, beta in ((0, 0.1), (3, 2.0))]


def reinforce_loss_cases() -> list[Arguments]:
    return [(randn(3, seed=seed), log_probs_case(seed)[0]) for seed in (0, 3)]


def ema_update_cases() -> list[Arguments]:
    return [(two_layers(0).requires_grad_(False), two_layers(1), mu) for mu in (0.01, 0.3)]


def train_run_cases() -> list[Arguments]:
    tied = two_layers(0)
    tied.register_module("again", tied[0])
    return [(weights_of(two_layers(1)), model, pull, T, 0.1, 0.3) for model, T in ((two_layers(0), 1), (tied, 4))]


def merge_cases() -> list[Arguments]:
    init = weights(0)
    return [(init, [near(init, seed) for seed in range(1, 1 + M)]) for M in (2, 3, 1)]


def algorithm_1_cases() -> list[Arguments]:
    return [(weights(0), fake_run, I, M, eta) for I, M, eta in ((1, 2, 0.3), (3, 2, 0.3), (2, 3, 0.5))]


def front_cases() -> list[Arguments]:
    sft = weights(0)
    return [(sft, near(sft, 1), [0.2, 0.5, 1.0]), (sft, near(sft, 2), [0.7])]


def best_within_cases() -> list[Arguments]:
    points = ((0.0, 0.0, 0.0), (0.25, 0.5, 0.2), (0.5, 0.9, 1.0), (0.75, 0.8, 2.0), (1.0, 1.0, 4.0))
    rows = [dict(zip(("eta", "reward", "kl"), point, strict=True)) for point in points]
    return [(rows, budget) for budget in (3.0, 1.0, 0.5, 9.0)]
