"""Functions that the lessons ask for and that are not part of Algorithm 1."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
import torch.nn.functional as F


def bradley_terry_loss(chosen: torch.Tensor, rejected: torch.Tensor) -> torch.Tensor:
    """-log sigma(r_chosen - r_rejected), the mean over pairs: scores [B], [B] -> a number, nats."""
    return -F.logsigmoid(chosen - rejected).mean()


def pair_accuracy(chosen: torch.Tensor, rejected: torch.Tensor) -> float:
    """Share of pairs whose chosen text has the higher score; a tie counts as half a pair. Scores [B], [B]."""
    wins = (chosen > rejected).float() + 0.5 * (chosen == rejected).float()
    return wins.mean().item()


def best_within(points: Sequence[Mapping[str, float]], kl_budget: float) -> Mapping[str, float]:
    """The point (eta, reward, kl) with the largest reward among those whose KL is within the budget, nats."""
    allowed = [point for point in points if point["kl"] <= kl_budget]
    return max(allowed, key=lambda point: point["reward"])
