"""What a run notes for the checks beside its curves: displacement, what was scored, the anchor's way."""

from __future__ import annotations

import math

import torch

from warp_nb.algorithm.average import StateDict, first_names
from warp_nb.fast.rollout import Rollout

Row = dict[str, float]
PROBE = 64
HALF_ULP = 2.0**-24


def displacement(init: StateDict, state: StateDict) -> Row:
    """Norm of the task vector, and the share of weights that did not change at all; tied weights count once."""
    square, same, total = 0.0, 0, 0
    for name in first_names(init).values():
        value = state[name]
        if value.is_floating_point():
            start = init[name].to(value.device)
            square += (value - start).double().square().sum().item()
            same += int((value == start).sum())
            total += value.numel()
    return {"delta_norm": math.sqrt(square), "unmoved": same / total}


def scored_after_end(rollout: Rollout, eos: int | None) -> float:
    """Completion tokens in the mask that stand after the first end-of-text token; 0 when all is well."""
    if eos is None:
        return 0.0
    ended = (rollout.ids[:, -rollout.width :] == eos).long()
    after = (ended.cumsum(1) - ended) > 0
    return float((rollout.completion_mask & after).sum())


class AnchorProbe:
    """Follows the EMA of a few weights of every parameter in float64, apart from `ema_update_`.

    `rounding` bounds what fp32 may have lost: a step below half a unit in the last place can vanish
    whole, a larger one loses at most that half.
    """

    def __init__(self, anchor: torch.nn.Module) -> None:
        self.start = self.expected = self.read(anchor)
        self.rounding = torch.zeros_like(self.start)

    @staticmethod
    def read(module: torch.nn.Module) -> torch.Tensor:
        """The probed weights, float64 [n] on the CPU."""
        pieces = [value.detach().reshape(-1)[:PROBE].cpu().double() for value in module.parameters()]
        return torch.cat(pieces)

    def follow(self, policy: torch.nn.Module, mu: float) -> None:
        """One step of (1 - mu) * anchor + mu * policy."""
        change = mu * (self.read(policy) - self.expected)
        self.rounding += torch.minimum(change.abs(), HALF_ULP * self.expected.abs())
        self.expected = self.expected + change

    def compare(self, anchor: torch.nn.Module) -> Row:
        """anchor_moved: norm of the probed displacement; anchor_error: error relative to the expected one.

        What fp32 rounding explains is not counted. Where rounding may swallow the whole expected
        displacement, an error beyond twice that is told relative to it, and a smaller one is NaN:
        there a frozen anchor and a sound one are the same to fp32.
        """
        found, rounding = self.read(anchor), self.rounding.norm().item()
        expected, error = (self.expected - self.start).norm().item(), (found - self.expected).norm().item()
        moved = (found - self.start).norm().item()
        if expected == 0:
            relative = float(moved > 0)
        elif expected > 2 * rounding:
            relative = max(0.0, error - rounding) / expected
        else:
            relative = error / rounding if error > 2 * rounding else math.nan
        return {"anchor_moved": moved, "anchor_error": relative}
