"""Faults that the original report may have had, planted in the real loop from outside; for the diagnosis only."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import torch

from warp_nb.fast import rollout
from warp_nb.runs import policy_gradient
from warp_nb.runs import warping as algorithm

CONSTANT = 0.0438
"""The original's reward, to the digits that never moved."""


def constant_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """The same number for every text."""
    return [CONSTANT] * len(completions)


@contextmanager
def never_stepped() -> Iterator[None]:
    """A warm-up whose scheduler begins at lr = 0 and is never stepped."""
    with patch.object(policy_gradient, "learning_rate", lambda config, step: 0.0):
        yield


@contextmanager
def one_model() -> Iterator[None]:
    """θ^1 … θ^M are names of one object: what is merged are the last run's weights, M times."""
    real = algorithm.merge_runs

    def aliased(init: Any, results: Any, *rest: Any) -> Any:
        return real(init, [replace(result, state=results[-1].state) for result in results], *rest)

    with patch.object(algorithm, "merge_runs", aliased):
        yield


@contextmanager
def greedy_in_order() -> Iterator[None]:
    """The likeliest token is taken, and every run goes through the prompts in their order."""

    def likeliest(log_probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return log_probs.argmax(1)

    def in_order(prompts: list[str], size: int, generator: torch.Generator) -> Iterator[list[str]]:
        start = 0
        while True:
            yield [prompts[index % len(prompts)] for index in range(start, start + size)]
            start += size

    with patch.object(rollout, "_draw", likeliest), patch.object(policy_gradient, "prompt_batches", in_order):
        yield


FAULTS: dict[str, Callable[[], Any]] = {
    "never-stepped": never_stepped,
    "one-model": one_model,
    "greedy": greedy_in_order,
}


@contextmanager
def planted(names: Iterable[str]) -> Iterator[None]:
    """The faults of these names, in training only: evaluate outside.

    Raises ValueError for a name that FAULTS has not.
    """
    unknown = set(names) - set(FAULTS)
    if unknown:
        raise ValueError(f"unknown fault {', '.join(sorted(unknown))}; choose from {', '.join(FAULTS)}")
    with ExitStack() as stack:
        for name in names:
            stack.enter_context(FAULTS[name]())
        yield
