"""Faults that the original report may have had, planted in the real loop through its parts and its reward."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.merge import Weights
from warp_nb.runs.training import FAST, Parts, derive_seed
from warp_nb.tasks.reward_model import RewardModel

if TYPE_CHECKING:
    from transformers import PreTrainedModel

REPORTED_REWARD = 0.0438
"""The original's reward, to the digits that never changed."""


# Rewards


def constant_reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Return the same number for every text."""
    return [REPORTED_REWARD] * len(completions)


def raw_logit(reward: RewardModel) -> RewardModel:
    """Return the reward model without the calibration of its zero, as TRL's RewardTrainer leaves it."""
    return RewardModel(reward.model, reward.tokenizer, 0, reward.folder)


def in_fp16(reward: RewardModel) -> RewardModel:
    """Return a copy of the reward model whose weights and activations are fp16."""
    found = RewardModel(copy.deepcopy(reward.model), reward.tokenizer, reward.offset, reward.folder)
    found.model.half()
    return found


# Faults of the loop


def never_stepped(parts: Parts) -> Parts:
    """Keep lr at 0, as a warm-up whose scheduler is never stepped."""
    return replace(parts, learning_rate=lambda lr, warmup_steps, step: 0.0)


def stepped_once_a_run(parts: Parts) -> Parts:
    """Step one scheduler of all I·M runs at the end of a run: run k of them has the lr of step k throughout."""
    begun: list[None] = []

    def counted(*args: Any, **settings: Any) -> Weights:
        begun.append(None)
        return parts.train_run(*args, **settings)

    def of_the_run(lr: float, warmup_steps: int, step: int) -> float:
        return parts.learning_rate(lr, warmup_steps, len(begun))

    return replace(parts, train_run=counted, learning_rate=of_the_run)


def rebuilt_every_step(parts: Parts) -> Parts:
    """Rebuild optimizer and scheduler at every step: the moments are empty, and lr is that of step 1."""
    rebuilt = hooked(parts, lambda optimizer: optimizer.register_step_pre_hook(lambda one, *_: one.state.clear()))
    return replace(rebuilt, learning_rate=lambda lr, warmup_steps, step: parts.learning_rate(lr, warmup_steps, 1))


def hooked(parts: Parts, hook: Callable[[torch.optim.Optimizer], Any]) -> Parts:
    """Return the parts with a `train_run` that calls `hook` on each optimizer that it makes."""

    def run(*args: Any, optimizer: Callable[..., torch.optim.Optimizer], **settings: Any) -> Weights:
        def made(parameters: list[torch.Tensor], lr: float) -> torch.optim.Optimizer:
            found = optimizer(parameters, lr=lr)
            hook(found)
            return found

        return parts.train_run(*args, optimizer=made, **settings)

    return replace(parts, train_run=run)


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


def live_init(parts: Parts) -> Parts:
    """Let θ_init be a live alias of the model's weights: every run moves it, and the next begins where it ended."""

    def moving(init: Weights, *args: Any, **settings: Any) -> Weights:
        found = parts.train_run(init, *args, **settings)
        for name, value in init.items():
            value.copy_(found[name])
        return found

    return replace(parts, train_run=moving)


def bf16_weights(parts: Parts) -> Parts:
    """Keep the policy's weights in bf16: round θ_init at the start of a run and θ^m after every step."""

    def rounding(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        for group in optimizer.param_groups:
            round_(group["params"])

    low = hooked(parts, lambda optimizer: optimizer.register_step_post_hook(rounding))

    def from_rounded(init: Weights, *args: Any, **settings: Any) -> Weights:
        rounded = {name: value.bfloat16().to(value.dtype) for name, value in init.items()}
        return low.train_run(rounded, *args, **settings)

    return replace(low, train_run=from_rounded)


def rounded_to_bf16(policy: PreTrainedModel) -> PreTrainedModel:
    """Return a copy of a model with its weights rounded to bf16, in its own dtype: θ_sft of `bf16_weights`."""
    found = copy.deepcopy(policy)
    round_(found.parameters())
    return found


@torch.no_grad()
def round_(parameters: Iterable[torch.Tensor]) -> None:
    """Round tensors to bf16 in place, in their own dtype."""
    for value in parameters:
        value.copy_(value.bfloat16())


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
    "once-a-run": stepped_once_a_run,
    "rebuilt": rebuilt_every_step,
    "one-seed": one_seed,
    "one-model": one_model,
    "live-init": live_init,
    "bf16-weights": bf16_weights,
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
