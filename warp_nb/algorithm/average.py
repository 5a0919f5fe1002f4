"""Averages of weights: EMA, SLERP, LERP, LITI and the angles between task vectors.

The paper leaves open how embeddings and norms enter the SLERP blocks. Here a *layer* is a
transformer block (the name up to its number: `model.layers.3`) with its norms and biases;
every tensor outside the blocks (embedding, final norm, output head) is a block of its own.
Tied weights are one tensor under several names: merged once, then shared again. Buffers of
integers (and anything not floating point) are taken from the initialisation.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Literal

import torch

StateDict = dict[str, torch.Tensor]
Method = Literal["slerp", "lerp"]
By = Literal["layer", "tensor", "global"]
NUMBERED = re.compile(r"^(.*?\.\d+)\.")
PARALLEL = 1e-6
SAFE = 1e-20
"""Squared norms between this and its inverse are sums of fp32 squares that lost nothing: the least one is 1e-38."""


@torch.no_grad()
def ema_update_(anchor: torch.nn.Module, policy: torch.nn.Module, mu: float) -> None:
    """Move the anchor towards the policy, in place (Algorithm 1, line 9).

    anchor <- (1 - mu) * anchor + mu * policy on every parameter. The anchor must be fp32: in
    bf16 a step of mu = 0.01 rounds to nothing. Raises ValueError if it is not, or if the two
    modules have different parameters.
    """
    mine, theirs = dict(anchor.named_parameters()), dict(policy.named_parameters())
    check_same(mine, theirs)
    low = [name for name, value in mine.items() if value.dtype not in (torch.float32, torch.float64)]
    if low:
        raise ValueError(f"the EMA anchor must be float32, {low[0]} is {mine[low[0]].dtype}; call anchor.float()")
    torch._foreach_lerp_(list(mine.values()), [theirs[name].to(mine[name].dtype) for name in mine], mu)


def slerp(d1: torch.Tensor, d2: torch.Tensor, lam: float) -> torch.Tensor:
    """Spherical interpolation of two raw task vectors of one block (section 3.2).

    d1 * sin((1 - lam) Omega) / sin Omega + d2 * sin(lam Omega) / sin Omega, with Omega the
    angle between d1 and d2, in fp32 or better; the result has the dtype of d1. Where Omega is
    undefined or SLERP is not unique (a zero, parallel or opposite pair) it is LERP.
    """
    return torch.cat([piece.reshape(-1) for piece in _slerp_block([d1], [d2], lam)]).reshape(d1.shape)


def merge(init: StateDict, policies: Sequence[StateDict], method: Method = "slerp", by: By = "layer") -> StateDict:
    """Merge M policies around their initialisation (Algorithm 1, line 11; M > 2 by eq. 26).

    theta = init + slerp of the task vectors delta^m = theta^m - init, block by block, each
    block with its own angle. slerpm({1..M}) = slerp(slerpm({1..M-1}), M, 1 / M), which is not
    associative; `lerp` is the plain mean. Returns the dtype of `init`.

    Raises ValueError for no policies, an unknown `method` or `by`, or different tensors.
    """
    if not policies:
        raise ValueError("merge needs at least one policy, got none")
    if method not in ("slerp", "lerp"):
        raise ValueError(f"method must be slerp or lerp, got {method!r}")
    for policy in policies:
        check_same(init, policy)
    merged: StateDict = {}
    for names in blocks(init, by).values():
        start = [init[name].to(wide(init[name])) for name in names]
        total = task_vector(policies[0], names, start)
        for count, policy in enumerate(policies[1:], start=2):
            delta = task_vector(policy, names, start)
            if method == "slerp":
                total = _slerp_block(total, delta, 1 / count)
            else:
                total = [torch.lerp(a, b, 1 / count) for a, b in zip(total, delta, strict=True)]
        for name, base, moved in zip(names, start, total, strict=True):
            merged[name] = moved.add_(base).to(init[name].dtype)
    return _complete(init, merged)


def liti(init: StateDict, merged: StateDict, eta: float) -> StateDict:
    """Interpolate linearly towards the initialisation (Algorithm 1, line 12).

    theta(eta) = (1 - eta) * init + eta * merged, tensor by tensor; eta = 0 gives
    exactly `init`, eta = 1 exactly `merged`, in the dtype of `init`.

    Raises ValueError when the two hold different names or shapes (the first
    five are listed) or eta is outside [0, 1].
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"eta must be in [0, 1], got {eta}")
    check_same(init, merged)
    mixed: StateDict = {}
    for names in blocks(init, "tensor").values():
        for name in names:
            start = init[name].to(wide(init[name]))
            mixed[name] = torch.lerp(start, merged[name].to(start.dtype), eta).to(init[name].dtype)
    return _complete(init, mixed)


def angles(init: StateDict, first: StateDict, second: StateDict, by: By = "layer") -> list[dict[str, float | str]]:
    """Geometry of two task vectors, a row a block: block, cosine, omega (degrees), norm_a, norm_b.

    Cosine and omega are NaN where a task vector is zero.
    """
    rows: list[dict[str, float | str]] = []
    for block, names in blocks(init, by).items():
        start = [init[name].to(wide(init[name])) for name in names]
        dot, norm_a, norm_b = _products(task_vector(first, names, start), task_vector(second, names, start))
        cosine = max(-1.0, min(1.0, dot / (norm_a * norm_b))) if norm_a and norm_b else math.nan
        omega = math.degrees(math.acos(cosine)) if not math.isnan(cosine) else math.nan
        rows.append({"block": block, "cosine": cosine, "omega": omega, "norm_a": norm_a, "norm_b": norm_b})
    return rows


def blocks(state: StateDict, by: By) -> dict[str, list[str]]:
    """Names of the floating-point tensors of each block, tied tensors once."""
    if by not in ("layer", "tensor", "global"):
        raise ValueError(f"by must be layer, tensor or global, got {by!r}")
    grouped: dict[str, list[str]] = {}
    for name in first_names(state).values():
        if state[name].is_floating_point():
            numbered = NUMBERED.match(name)
            block = "global" if by == "global" else numbered[1] if by == "layer" and numbered else name
            grouped.setdefault(block, []).append(name)
    return grouped


def task_vector(policy: StateDict, names: Sequence[str], start: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    """delta = theta - theta_init for the named tensors, in the dtype of `start`."""
    return [policy[name].to(base.dtype) - base for name, base in zip(names, start, strict=True)]


def check_same(left: Mapping[str, torch.Tensor], right: Mapping[str, torch.Tensor]) -> None:
    """Raise ValueError unless both hold the same names and shapes; the first five faults are listed."""
    faults = [f"{name} only in one" for name in sorted(left.keys() ^ right.keys())]
    faults += [
        f"{name} {tuple(left[name].shape)} against {tuple(right[name].shape)}"
        for name in left.keys() & right.keys()
        if left[name].shape != right[name].shape
    ]
    if faults:
        raise ValueError(f"the weights differ in names or shapes: {'; '.join(faults[:5])}")


def wide(tensor: torch.Tensor) -> torch.dtype:
    """The dtype averages are computed in: fp32, or fp64 where the weights are fp64."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _slerp_block(first: list[torch.Tensor], second: list[torch.Tensor], lam: float) -> list[torch.Tensor]:
    """SLERP of two task vectors that are lists of tensors with one common angle."""
    dot, norm_a, norm_b = _products(first, second)
    weight_a, weight_b = 1 - lam, lam
    if norm_a > 0 and norm_b > 0:
        cosine = dot / norm_a / norm_b
        if abs(cosine) < 1 - PARALLEL:
            omega = math.acos(cosine)
            weight_a = math.sin((1 - lam) * omega) / math.sin(omega)
            weight_b = math.sin(lam * omega) / math.sin(omega)
    return [
        a.to(wide(a)).mul(weight_a).add_(b.to(wide(b)), alpha=weight_b).to(a.dtype)
        for a, b in zip(first, second, strict=True)
    ]


def _products(first: list[torch.Tensor], second: list[torch.Tensor]) -> tuple[float, float, float]:
    """(dot product, norm, norm) of two vectors given in pieces; sums of pieces run in float64.

    Where a square is so small or large that fp32 has lost part of it, each vector is first divided by its
    largest entry.
    """
    dot, square_a, square_b = _sums(first, second)
    if all(SAFE < square < 1 / SAFE for square in (square_a, square_b)):
        return dot, math.sqrt(square_a), math.sqrt(square_b)
    scale_a, scale_b = _largest(first), _largest(second)
    first, second = (
        [piece.to(wide(piece)) / (scale or 1.0) for piece in pieces]
        for pieces, scale in ((first, scale_a), (second, scale_b))
    )
    dot, square_a, square_b = _sums(first, second)
    return dot * scale_a * scale_b, math.sqrt(square_a) * scale_a, math.sqrt(square_b) * scale_b


def _sums(first: list[torch.Tensor], second: list[torch.Tensor]) -> tuple[float, float, float]:
    """(first . second, first . first, second . second)."""
    dot = square_a = square_b = 0.0
    for a, b in zip(first, second, strict=True):
        flat_a, flat_b = (piece.reshape(-1).to(wide(piece)) for piece in (a, b))
        dot += torch.dot(flat_a, flat_b).item()
        square_a += torch.dot(flat_a, flat_a).item()
        square_b += torch.dot(flat_b, flat_b).item()
    return dot, square_a, square_b


def _largest(pieces: list[torch.Tensor]) -> float:
    """The largest absolute entry; 0 of nothing."""
    return max((torch.linalg.vector_norm(piece, math.inf).item() for piece in pieces if piece.numel()), default=0.0)


def first_names(state: StateDict) -> dict[object, str]:
    """First name of every distinct tensor, by identity; later names of the same tensor are ties."""
    first: dict[object, str] = {}
    for name, tensor in state.items():
        first.setdefault(_identity(name, tensor), name)
    return first


def tied_to(state: StateDict) -> dict[str, str]:
    """Every name of `state` -> the first name of the tensor it shares."""
    first = first_names(state)
    return {name: first[_identity(name, tensor)] for name, tensor in state.items()}


def _identity(name: str, tensor: torch.Tensor) -> object:
    """What tells tied tensors: the same memory seen in the same shape."""
    return (tensor.data_ptr(), tensor.shape, tensor.stride()) if tensor.numel() else name


def _complete(init: StateDict, computed: StateDict) -> StateDict:
    """Add ties (shared again) and non-floating tensors (from init) in the order of `init`."""
    full: StateDict = {}
    for name, source in tied_to(init).items():
        full[name] = computed[source] if source in computed else full.get(source, init[name].clone())
    return full
