"""The gate of a reward: measurements that are made before a policy is trained on it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from warp_nb.tasks.reward_interface import Reward, call_reward

Text = tuple[str, str]
"""Prompt and completion."""


@dataclass(frozen=True)
class RewardGate:
    """Measurements of a reward function, in units of the reward.

    pair_accuracy: share of `n_pairs` held-out pairs whose good text scores higher (a tie counts half).
    spread: standard deviation of the scores of those texts.
    good_above_bad: share of fixed sentence pairs whose good sentence scores strictly higher.
    swap_change: mean absolute change of a good text's score when it gets the bad text's completion.
    """

    pair_accuracy: float
    n_pairs: int
    spread: float
    good_above_bad: float
    swap_change: float


def measure_gate(
    reward: Reward, pairs: Sequence[tuple[Text, Text]], sentences: Sequence[tuple[Text, Text]]
) -> RewardGate:
    """Measure a reward function on held-out pairs and fixed sentences, each (good text, bad text)."""

    def scores(texts: Sequence[Text]) -> np.ndarray:
        prompts, completions = map(list, zip(*texts, strict=True))
        return np.asarray(call_reward(reward, prompts, completions, "the gate"), dtype=np.float64)

    good, bad = (scores([pair[side] for pair in pairs]) for side in (0, 1))
    swapped = scores([(chosen[0], rejected[1]) for chosen, rejected in pairs])
    fine, poor = (scores([pair[side] for pair in sentences]) for side in (0, 1))
    return RewardGate(
        pair_accuracy=float(np.mean((np.sign(good - bad) + 1) / 2)),
        n_pairs=len(pairs),
        spread=float(np.std(np.concatenate([good, bad]))),
        good_above_bad=float(np.mean(fine > poor)),
        swap_change=float(np.mean(np.abs(swapped - good))),
    )
