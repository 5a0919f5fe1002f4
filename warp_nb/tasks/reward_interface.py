"""Reward functions are called here only: by TRL's convention, and what they return is checked."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

LARGEST = float(np.finfo(np.float32).max)
Reward = Callable[..., Sequence[float]]
"""reward(prompts: list[str], completions: list[str], **kwargs) -> one number per completion, as in TRL."""


def call_reward(reward: Reward, prompts: list[str], completions: list[str], where: str) -> list[float]:
    """Call the reward and check that it returns one finite number per completion.

    Raises:
        ValueError: it did not; the message names the function, `where` it was called, the first bad value and its
            prompt.
        RuntimeError: the function raised; the message names the function and `where`, and quotes the first prompt.
    """
    called = f"reward {reward_name(reward)} at {where}"
    try:
        given = reward(prompts=prompts, completions=completions)
    except Exception as error:
        raise RuntimeError(
            f"{called} raised {type(error).__name__}: {error} (first of {len(prompts)} prompts: {prompts[0][:60]!r})"
        ) from error
    try:
        values = list(given)
    except TypeError:
        raise ValueError(f"{called} returned {given!r}; it must return a list of numbers, one per completion") from None
    if len(values) != len(completions):
        raise ValueError(f"{called} returned {len(values)} values for {len(completions)} completions")
    for prompt, value in zip(prompts, values, strict=True):
        if not _is_finite_number(value):
            raise ValueError(
                f"{called} returned {value!r} for prompt {prompt[:60]!r}; "
                f"every value must be one number, finite in float32"
            )
    return [float(value) for value in values]


def _is_finite_number(value: Any) -> bool:
    """Whether `value` is a number that is finite in fp32, or a 0-d array or tensor that holds one."""
    if isinstance(value, str | bytes) or getattr(value, "shape", ()) != ():
        return False
    try:
        return math.isfinite(value) and abs(value) <= LARGEST
    except (TypeError, ValueError, OverflowError):
        return False


def reward_name(reward: Reward) -> str:
    """Return the function's name, or the class name of a callable object."""
    return str(getattr(reward, "__name__", type(reward).__name__))


def describe_reward(reward: Reward) -> dict[str, Any]:
    """Return the reward's name and, if it has a method `describe`, what that returns."""
    return {"name": reward_name(reward)} | (reward.describe() if hasattr(reward, "describe") else {})
