"""Averages of weights: the anchor (line 9), the merge (line 12), LITI (line 13) and the front (output).

A layer of the paper is a transformer block here (`model.layers.3`); every tensor outside the layers is a block alone.
"""

import re
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import torch
from torch import Tensor

Weights = dict[str, Tensor]
"""The parameters of a model by name, as `named_parameters` returns them: a tied parameter appears once."""
Merge = Callable[[Sequence[Tensor], Tensor, float], Tensor]
"""(M task vectors of a block, each [N]; theta_init of the block [N]; lambda for M = 2) -> merged task vector [N]."""


def task_vector(policy: Weights, init: Weights) -> Weights:
    """delta = theta - theta_init, tensor by tensor (line 12)."""
    return {name: policy[name] - init[name] for name in init}


def slerp(d1: Tensor, d2: Tensor, lam: float) -> Tensor:
    """Interpolate spherically between two task vectors; LERP where sin Omega <= 1e-3 (line 12, section 3.2)."""
    a, b = d1.flatten().double(), d2.flatten().double()
    omega = torch.acos((a @ b / (a.norm() * b.norm())).clamp(-1, 1))
    sine = torch.sin(omega)
    if sine.isnan() or sine <= 1e-3:
        return torch.lerp(d1, d2, lam)
    return torch.sin((1 - lam) * omega) / sine * d1 + torch.sin(lam * omega) / sine * d2


def in_turn(deltas: Sequence[Tensor], start: Tensor, lam: float, between: Callable[..., Tensor] = slerp) -> Tensor:
    """Merge two task vectors at lambda; for M > 2 merge the m-th into the result so far at 1/m (eq. 26)."""
    total = deltas[0]
    for m, delta in enumerate(deltas[1:], start=2):
        total = between(total, delta, lam if len(deltas) == 2 else 1 / m)
    return total


def slerp_weights(deltas: Sequence[Tensor], start: Tensor, lam: float) -> Tensor:
    """Apply SLERP to the full weights; they are nearly parallel, so the result is close to LERP (figure 10c)."""
    return in_turn([start + delta for delta in deltas], start, lam) - start


LERP = partial(in_turn, between=torch.lerp)
MERGES: dict[str, Merge] = {"slerp": in_turn, "lerp": LERP, "slerp_weights": slerp_weights}


def merge(
    init: Weights, policies: Sequence[Weights], *, method: str = "slerp", by: str = "layer", lam: float = 0.5
) -> Weights:
    """Merge theta^1 ... theta^M around theta_init, each block with its own angle (line 12), in fp32 or better.

    Args:
        init: weights that all policies started from; the result has their names and dtypes.
        policies: weights of the M policies; their order matters for M > 2.
        method: a name in `MERGES`; `by` is what shares one angle: layer, tensor or global.
        lam: weight of the second policy if M = 2.

    Raises:
        ValueError: there is no policy, `method` or `by` is unknown, or names or shapes differ.
    """
    if not policies or method not in MERGES:
        raise ValueError(f"merge needs policies and one of {', '.join(MERGES)}; got {len(policies)} and {method!r}")
    for policy in policies:
        check_same(init, policy)
    moved = [name for name, start in init.items() if not all(policy[name].equal(start) for policy in policies)]
    merged = dict(init)  # what no run moved, such as frozen weights, stays as it is
    for names in blocks(moved, by).values():
        start = {name: wide(init[name]) for name in names}
        deltas = [flat(task_vector(policy, start)) for policy in policies]
        total = flat(start) + MERGES[method](deltas, flat(start), lam)
        merged |= zip(names, total.split([init[name].numel() for name in names]), strict=True)
    return {name: merged[name].view_as(value).to(value.dtype) for name, value in init.items()}


def liti(init: Weights, merged: Weights, eta: float) -> Weights:
    """Interpolate linearly towards the initialisation: (1 - eta) * theta_init + eta * theta_slerp (line 13).

    Args:
        init: weights at eta = 0, returned exactly.
        merged: weights at eta = 1, returned exactly.
        eta: update rate in [0, 1]; up to 2 extrapolates (figure 10b).

    Raises:
        ValueError: names or shapes differ (the first five are listed), or eta is out of range.
    """
    if not 0 <= eta <= 2:
        raise ValueError(f"eta must be in [0, 2], got {eta}")
    check_same(init, merged)
    return {name: torch.lerp(init[name], merged[name], eta) for name in init}


def front(sft: Weights, merged: Weights, etas: Sequence[float]) -> list[Weights]:
    """The output of Algorithm 1: (1 - eta) * theta_sft + eta * theta_slerp^I for every eta."""
    return [liti(sft, merged, eta) for eta in etas]


@torch.no_grad()
def ema_update_(anchor: torch.nn.Module, policy: torch.nn.Module, mu: float) -> None:
    """theta_ema <- (1 - mu) * theta_ema + mu * theta on every parameter, in place (line 9). The anchor is fp32."""
    for old, new in zip(anchor.parameters(), policy.parameters(), strict=True):
        old.lerp_(new, mu)


def blocks(weights: Iterable[str], by: str = "layer") -> dict[str, list[str]]:
    """Group names into blocks that share an angle; raise ValueError unless `by` is layer, tensor or global."""
    if by not in ("layer", "tensor", "global"):
        raise ValueError(f"by must be layer, tensor or global, got {by!r}")
    grouped: dict[str, list[str]] = {}
    for name in weights:
        layer = re.match(r"(.*?\.\d+)\.", name)
        block = "global" if by == "global" else layer[1] if by == "layer" and layer else name
        grouped.setdefault(block, []).append(name)
    return grouped


def weights_of(model: torch.nn.Module) -> Weights:
    """Copy the parameters of a model to the CPU."""
    return {name: value.detach().cpu().clone() for name, value in model.named_parameters()}


@torch.no_grad()
def load_(model: torch.nn.Module, weights: Weights) -> None:
    """Copy weights into the parameters of a model, in place; raise ValueError if names or shapes differ."""
    check_same(dict(model.named_parameters()), weights)
    for name, value in model.named_parameters():
        value.copy_(weights[name])


def wide(value: Tensor) -> Tensor:
    """Cast a tensor to fp32; fp64 stays fp64."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def flat(weights: Weights) -> Tensor:
    """Concatenate all tensors into one vector [N]."""
    return torch.cat([value.flatten() for value in weights.values()])


def check_same(left: Weights, right: Weights) -> None:
    """Raise ValueError, with the first five differences, unless both hold the same names and shapes."""
    shapes = [{name: tuple(value.shape) for name, value in side.items()} for side in (left, right)]
    pairs = {name: [side.get(name, "missing") for side in shapes] for name in sorted({**left, **right})}
    faults = [f"{name} {mine} against {other}" for name, (mine, other) in pairs.items() if mine != other]
    if faults:
        raise ValueError(f"the weights differ in names or shapes: {'; '.join(faults[:5])}")
