"""What the lessons ask for beside Algorithm 1: the loss of pairs, their accuracy, the best point within a budget."""

from __future__ import annotations

import math

import pytest
import torch

from warp_nb.course.solutions import best_within, bradley_terry_loss, pair_accuracy
from warp_nb.tasks.gate import measure_gate


def test_the_loss_of_pairs_by_its_closed_form() -> None:
    chosen, rejected = torch.tensor([0.3, 2.0, -1.0]).double(), torch.tensor([0.3, -1.0, 4.0]).double()
    torch.testing.assert_close(bradley_terry_loss(chosen, rejected), torch.log1p((rejected - chosen).exp()).mean())
    assert bradley_terry_loss(chosen[:1], rejected[:1]).item() == pytest.approx(math.log(2))


def test_pair_accuracy_counts_a_tie_as_the_gate_does() -> None:
    chosen, rejected = torch.tensor([1.0, 0.5, 0.0, 3.0]), torch.tensor([0.0, 0.5, 2.0, -1.0])
    assert pair_accuracy(chosen, rejected) == (2 + 0.5) / 4
    pairs = [((f"{a}", ""), (f"{b}", "")) for a, b in zip(chosen.tolist(), rejected.tolist(), strict=True)]

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(prompt) for prompt in prompts]

    assert measure_gate(reward, pairs, pairs).pair_accuracy == pair_accuracy(chosen, rejected)


def test_the_best_point_within_a_budget() -> None:
    rows = [(0, 0.0, 0.0), (0.5, 2.0, 1.0), (1, 1.5, 0.9), (2, 9, 5)]
    points = [{"eta": eta, "reward": reward, "kl": kl} for eta, reward, kl in rows]
    assert best_within(points, 1.0)["eta"] == 0.5 and best_within(points, 0.95)["eta"] == 1
