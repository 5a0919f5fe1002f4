"""Measurements of a run for the checks: displacement, tokens after the end, the anchor against its closed form."""

from __future__ import annotations

import math

import torch

from warp_nb.algorithm.merge import Weights
from warp_nb.algorithm.objective import Rollout
from warp_nb.fast.low_rank import plain_parameters

Row = dict[str, float]
PROBED = 64
"""Number of weights of each parameter that the probe follows."""
HALF_ULP = 2.0**-24


def displacement(init: Weights, weights: Weights) -> Row:
    """Return the norm of the task vector (delta_norm) and the share of weights that did not change (unmoved)."""
    squares = [(weights[name] - start).double().square().sum().item() for name, start in init.items()]
    same = sum(int((weights[name] == start).sum()) for name, start in init.items())
    norm = math.sqrt(math.fsum(squares))  # fsum: bit-identical for any order of the names, which a file sorts
    return {"delta_norm": norm, "unmoved": same / sum(value.numel() for value in init.values())}


def tokens_after_end(rollout: Rollout, end_ids: tuple[int, ...]) -> torch.Tensor:
    """Count the tokens of the completion mask after the first end token, []; 0 unless there is a bug."""
    ended = sum(((rollout.tokens == end).long() for end in end_ids), torch.zeros_like(rollout.tokens))
    after = (ended.cumsum(1) - ended) > 0
    return (rollout.completion_mask & after).sum()


class AnchorProbe:
    """Follows the EMA of a few weights of every parameter in float64, independently of `ema_update_`.

    `rounding` bounds what fp32 may have lost: a step below half a unit in the last place can vanish whole, a larger
    one loses at most that half.
    """

    def __init__(self, anchor: torch.nn.Module) -> None:
        self.start = self.expected = self.read(anchor)
        self.rounding = torch.zeros_like(self.start)

    @staticmethod
    def read(module: torch.nn.Module) -> torch.Tensor:
        """Return the probed weights, float64 [n], on their device if it has float64."""
        few = (value.detach().reshape(-1)[:PROBED].clone() for _, value in plain_parameters(module))  # no views: a sum
        found = torch.cat(list(few))  # of W and a product is made for this alone, and goes before the next one
        return (found.cpu() if found.device.type == "mps" else found).double()

    def follow(self, policy: torch.nn.Module, mu: float) -> None:
        """Apply one step of (1 - mu) * anchor + mu * policy."""
        change = mu * (self.read(policy) - self.expected)
        self.rounding = self.rounding + torch.minimum(change.abs(), HALF_ULP * self.expected.abs())
        self.expected = self.expected + change

    def compare(self, anchor: torch.nn.Module) -> Row:
        """Return anchor_moved, the norm of the probed displacement, and anchor_error, relative to the expected norm.

        Rounding of fp32 is not counted as an error. Where rounding may swallow the whole expected displacement, an
        error beyond twice the rounding is given relative to the rounding, and a smaller one is NaN: there fp32
        cannot tell a frozen anchor from a correct one.
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

    def state_dict(self) -> Weights:
        """Return the tensors that the next step changes."""
        return {"expected": self.expected, "rounding": self.rounding}

    def load_state_dict(self, state: Weights) -> None:
        """Continue from the tensors that `state_dict` returned."""
        self.expected, self.rounding = (state[name].to(self.start.device) for name in ("expected", "rounding"))
