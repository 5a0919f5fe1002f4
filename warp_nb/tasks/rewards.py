"""Rewards that a task takes: functions, lists and names of them, sequence classifiers, a length penalty."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from warp_nb.paths import expanded
from warp_nb.tasks.imported import imported
from warp_nb.tasks.reward_interface import Reward, WeightedSum


@dataclass(frozen=True)
class LengthPenalty:
    """A penalty for every token of a completion, with its end token (the paper's appendix E, figure 18).

    Args:
        per_token: reward of a token, negative.

    Raises:
        ValueError: `per_token` is not negative and finite.

    Example:
        Task(reward=[quality, LengthPenalty()], …)
        Task(reward=quality, run_rewards=[quality, [quality, LengthPenalty()]], …)
    """

    per_token: float = -0.0005

    def __post_init__(self) -> None:
        if not -math.inf < self.per_token < 0:
            raise ValueError(f"per_token must be a negative finite number, got {self.per_token}; pass e.g. -0.0005")

    def __call__(self, completion_ids: list[list[int]]) -> list[float]:
        return [self.per_token * len(ids) for ids in completion_ids]

    def describe(self) -> dict[str, Any]:
        """Return the penalty."""
        return {"per_token": self.per_token}


def as_reward(given: Any, device: str = "cpu") -> Reward:
    """Return the reward function of what a user passes as one.

    Args:
        given: a function of TRL's convention; a list of rewards, which is their sum; a `WeightedSum`; `module:function`
            as text; or a folder or model id of a sequence classifier with one label.
        device: where a classifier is loaded.

    Raises:
        ValueError: it is none of these, or does not import or load.
    """
    if names_function(given):
        return as_reward(imported(given, "reward"), device)
    if isinstance(given, str | Path):
        from warp_nb.tasks.classifier import SequenceClassifier

        try:
            return SequenceClassifier.load(given, device)
        except ValueError as error:
            if expanded(given).exists():
                raise
            raise ValueError(f"{error}; a function is named module:function") from error
    if isinstance(given, list | tuple):
        return as_reward(WeightedSum(given), device)
    if isinstance(given, WeightedSum):
        return replace(given, rewards=[as_reward(one, device) for one in given.rewards])
    if isinstance(given, torch.nn.Module):
        kind = type(given).__name__
        raise ValueError(f"the reward is a model, {kind}; pass SequenceClassifier(model, tokenizer), or its folder")
    if not callable(given):
        raise ValueError(
            f"a reward must be a function reward(prompts, completions, **kwargs), got {given!r}; pass one, a list of "
            f"them, module:function, or the folder or model id of a sequence classifier"
        )
    return given


def names_function(given: Any) -> bool:
    """Return whether a reward is given as `module:function`; a folder may have a colon in its path."""
    return isinstance(given, str) and ":" in given and not expanded(given).is_dir()
