"""Linear layers that train a low-rank product beside a frozen weight (LoRA), and their model seen as a plain one.

A point of weight space is W + scale * B @ A. The factors themselves are no coordinates of it: the mean of two A and of
two B is not the factor of a mean of products. So all averages of Algorithm 1 see `plain_parameters`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F

from warp_nb.algorithm.merge import Weights, check_same


class Shared(torch.nn.Parameter):
    """A frozen weight that the copies of its model share. Nothing may change it in place."""

    def __deepcopy__(self, memo: Any) -> Shared:
        return self


@dataclass(frozen=True)
class Factors:
    """LoRA factors of a linear layer: A [r, in], B [out, r], and the scale of their product."""

    a: torch.Tensor
    b: torch.Tensor
    scale: float

    def product(self) -> torch.Tensor:
        """Return scale * B @ A, [out, in]."""
        return self.scale * (self.b @ self.a)


class LowRank(torch.nn.Module):
    """y = W x + bias + scale * B A x: `base` is frozen, A and B are trained, and B starts at zero.

    Args:
        base: a linear layer of torch or transformers' Conv1D, which stores [in, out].
        factors: A and the scale; B is not used.
    """

    def __init__(self, base: Any, factors: Factors) -> None:
        super().__init__()
        self.base, self.scale = base, factors.scale
        self.A = torch.nn.Parameter(factors.a.detach().clone())
        self.B = torch.nn.Parameter(torch.zeros_like(factors.b))
        self.train(base.training)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.scale * F.linear(F.linear(x, self.A), self.B)

    @property
    def weight(self) -> torch.Tensor:
        """W + scale * B A as the base stores it, a new tensor without a gradient."""
        return self.sum_of(self.base.weight, self.A, self.B)

    @property
    def bias(self) -> torch.Tensor | None:
        """The base's bias."""
        return self.base.bias

    @torch.no_grad()
    def sum_of(self, weight: torch.Tensor, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """Return weight + scale * B A as the base stores it."""
        return weight + turned(self.base, Factors(a, b, self.scale).product())


def turned(linear: Any, product: torch.Tensor) -> torch.Tensor:
    """Return a matrix [out, in] as a linear layer stores it, or the other way round: transposed for a Conv1D.

    Raises:
        TypeError: the layer is no `Linear`, `Conv1D` or `LowRank`.
    """
    linear = linear.base if isinstance(linear, LowRank) else linear
    if type(linear) is torch.nn.Linear:
        return product
    if type(linear).__name__ == "Conv1D":
        return product.t()
    raise TypeError(f"a {type(linear).__name__} is no linear layer whose weight can be read; pass Linear or Conv1D")


def plain_parameters(model: Any, values: Weights | None = None) -> Iterator[tuple[str, torch.Tensor]]:
    """Yield name and value of every parameter that a model has without factors; a sum is made when it is reached.

    A model without `LowRank` layers yields its parameters.

    Args:
        model: a policy or an anchor.
        values: read instead of the model's parameters, with their names.
    """
    values = dict(model.named_parameters()) if values is None else values
    layers = {name: module for name, module in model.named_modules() if isinstance(module, LowRank)}
    for name, value in values.items():
        place, _, kind = name.rpartition(".")
        if place in layers:
            continue  # a factor
        above = place.removesuffix(".base")
        if above == place or above not in layers:
            yield name, value
        elif kind == "weight":
            yield f"{above}.weight", layers[above].sum_of(value, values[f"{above}.A"], values[f"{above}.B"])
        else:
            yield f"{above}.{kind}", value


def sharing(model: Any, weights: Weights) -> Any:
    """Return a copy of a model with these weights, all of them frozen and `Shared`.

    A weight that is equal to the model's own shares its memory; another one shares that of `weights` on their device.
    """
    check_same(dict(model.named_parameters()), weights)
    memo: dict[int, Any] = {}
    for name, value in model.named_parameters():
        given = weights[name].detach().to(value.device, value.dtype)
        memo[id(value)] = Shared(value.detach() if given.equal(value) else given, requires_grad=False)
    return copy.deepcopy(model, memo)


def low_rank_pair(model: Any, init: Weights, factors: Mapping[str, Factors]) -> tuple[Any, Any]:
    """Return templates of a policy and an anchor at theta_init, for `train_run` to copy (line 4).

    All of their memory is that of `model` and `init`, which must not change. A deep copy has its own of what moves and
    of nothing else: A and B of the policy, the adapted weights of the anchor.

    Args:
        model: theta_sft.
        init: theta_init by the names of `model`.
        factors: by the name of a linear layer; its A and its scale.

    Returns:
        The policy, whose layers of `factors` are `LowRank`, and the anchor, a plain model.
    """
    policy = sharing(model, init)
    anchor = copy.deepcopy(policy)
    for name, given in factors.items():
        parent, _, child = name.rpartition(".")
        setattr(policy.get_submodule(parent), child, LowRank(policy.get_submodule(name), given))
        moving = anchor.get_submodule(name)
        moving.weight = torch.nn.Parameter(moving.weight.detach(), requires_grad=False)
    return policy, anchor


def follow_(anchor: Any, policy: Any, mu: float, *, ema_update_: Callable[[Any, Any, float], None]) -> None:
    """Apply line 9 to the weights of a policy with factors, one matrix at a time; what is shared never moves."""
    for (_, old), (_, new) in zip(anchor.named_parameters(), plain_parameters(policy), strict=True):
        if not isinstance(old, Shared):
            ema_update_(torch.nn.ParameterList([old]), torch.nn.ParameterList([new]), mu)
