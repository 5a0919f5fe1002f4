"""Faults that the original report may have had, planted in the real loop through its parts."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch

from warp_nb.algorithm.merge import Weights
from warp_nb.runs.training import FAST, Parts, derive_seed

REPORTED_REWARD = 0.0438
"""The original's reward, to the digits that never changed."""


def constant_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Return the same number for every text."""
    return [REPORTED_REWARD] * len(completions)


def never_stepped(parts: Parts) -> Parts:
    """Keep lr at 0, as a warm-up whose scheduler is never stepped."""
    return replace(parts, learning_rate=lambda lr, warmup_steps, step: 0.0)


def one_seed(parts: Parts) -> Parts:
    """Use one seed for all I·M runs."""
    return replace(parts, run_seed=lambda seed, i, m: derive_seed(seed))


def one_model(parts: Parts) -> Parts:
    """Let θ^1 … θ^M be one object, so that the weights of the last run are merged M times."""
    shared: Weights = {}

    def aliased(*args: Any, **settings: Any) -> Weights:
        shared.update(parts.train_run(*args, **settings))
        return shared

    return replace(parts, train_run=aliased)


def greedy_in_order(parts: Parts) -> Parts:
    """Take the most likely token, and let every run go through the prompts in order."""

    def likeliest(log_probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return log_probs.argmax(1)

    def in_order(prompts: list[str], size: int, generator: torch.Generator) -> Iterator[list[str]]:
        start = 0
        while True:
            yield [prompts[index % len(prompts)] for index in range(start, start + size)]
            start += size

    return replace(parts, sample=partial(parts.sample, draw=likeliest), prompt_batches=in_order)


FAULTS: dict[str, Callable[[Parts], Parts]] = {
    "never-stepped": never_stepped,
    "one-seed": one_seed,
    "one-model": one_model,
    "greedy": greedy_in_order,
}


def planted(names: Iterable[str], parts: Parts = FAST) -> Parts:
    """Return the parts of a run with the named faults.

    Raises:
        ValueError: a name is not in FAULTS.
    """
    unknown = set(names) - set(FAULTS)
    if unknown:
        raise ValueError(f"unknown fault {', '.join(sorted(unknown))}; choose from {', '.join(FAULTS)}")
    for name in names:
        parts = FAULTS[name](parts)
    return parts
