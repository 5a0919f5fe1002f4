"""A result of WARP by LoRA as a PEFT adapter: its task vectors are factored again, with the error that this makes."""

from __future__ import annotations

import copy
import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import save_file

from warp_nb.algorithm.merge import Weights, check_same
from warp_nb.fast.low_rank import Factors, turned
from warp_nb.files import write_json
from warp_nb.paths import expanded
from warp_nb.runs.merge_files import new_folder
from warp_nb.runs.merge_inputs import check_out
from warp_nb.tasks.lora import ADAPTER_WEIGHTS
from warp_nb.tasks.task import Task

ROUNDING = 2.0**-22
"""Norm of a matrix's rounding to fp32 in a few operations, relative to the norm of the matrix."""


def save_adapter(weights: Weights, task: Task, folder: str | Path, *, rank: int | None = None) -> dict[str, Any]:
    """Save weights of a LoRA task as a PEFT adapter of the policy's base, in a new or empty folder.

    The task vector of a matrix, with the adapter that θ_sft contains, is a sum of products. Its best factors of a rank
    (Eckart, Young and Mirsky) are saved with lora_alpha = r, so that their product needs no scale. For a whole model
    save `WarpResult.policy` with `save_pretrained`.

    Args:
        weights: a point of the front, such as `result.merged`, `liti(weights_of(task.policy), result.merged, eta)` or
            `weights_of(result.policy)`.
        task: a task whose policy was a PEFT model.
        folder: gets adapter_config.json, adapter_model.safetensors and refactored.json, which holds what is returned.
        rank: of every matrix; None takes the smallest one that loses no more than fp32 has rounded off.

    Returns:
        `rank`; `error`, |δ - BA| / |δ| over all matrices (Frobenius); `errors`, the same by matrix. 0 where δ is 0.

    Raises:
        ValueError: the task has no adapter, the weights are another model's or differ from θ_sft beyond the adapted
            matrices, the rank is not positive, or the folder is not empty.
    """
    folder, lora = expanded(folder), task.lora
    if lora is None:
        raise ValueError(
            f"the policy of task {task.name!r} is no PEFT model, so its result is no adapter; save it with "
            f"result.policy.save_pretrained(folder)"
        )
    if rank is not None and rank < 1:
        raise ValueError(f"rank must be at least 1, got {rank}; pass None for the smallest one without loss")
    check_out(folder)
    check_frozen(weights, task.policy, {f"{name}.weight" for name in lora.factors})
    found, squares = {}, {}
    for name, given in lora.factors.items():
        delta = task_vector_of(name, weights, task.policy, given)
        spectrum = Spectrum(delta)
        slack = ROUNDING * weights[f"{name}.weight"].double().norm().item()
        found[name] = spectrum.factors(spectrum.rank_within(slack) if rank is None else rank)
        product = found[name].b.double() @ found[name].a.double()
        squares[name] = (delta - product).square().sum().item(), delta.square().sum().item()
    rank = max(len(one.a) for one in found.values())
    lost, whole = (math.fsum(column) for column in zip(*squares.values(), strict=True))
    record = {"rank": rank, "error": share(lost, whole), "errors": {name: share(*of) for name, of in squares.items()}}
    config = copy.deepcopy(lora.config)
    config.r = config.lora_alpha = rank
    config.rank_pattern, config.alpha_pattern, config.use_rslora = {}, {}, False
    config.init_lora_weights, config.inference_mode = True, True
    with new_folder(folder) as new:
        config.save_pretrained(str(new))
        tensors = {}
        for name, one in found.items():
            more = rank - len(one.a)
            tensors[f"base_model.model.{name}.lora_A.weight"] = F.pad(one.a, (0, 0, 0, more)).contiguous()
            tensors[f"base_model.model.{name}.lora_B.weight"] = F.pad(one.b, (0, more)).contiguous()
        save_file(tensors, new / ADAPTER_WEIGHTS)
        write_json(new / "refactored.json", record)
    return record


def share(lost: float, whole: float) -> float:
    """Return the square root of lost / whole; 0 where there is nothing."""
    return math.sqrt(lost / whole) if whole else 0.0


def check_frozen(weights: Weights, sft: torch.nn.Module, adapted: set[str]) -> None:
    """Raise ValueError unless weights have θ_sft's names and shapes, and its values but for the adapted matrices."""
    start: Weights = dict(sft.named_parameters())
    check_same(start, weights)
    other = sorted(n for n in start.keys() - adapted if not weights[n].equal(start[n].detach().cpu()))
    if other:
        raise ValueError(
            f"the weights differ from the policy's in {', '.join(other[:5])}, which have no adapter; pass weights of "
            f"a run on this task"
        )


def task_vector_of(name: str, weights: Weights, sft: torch.nn.Module, given: Factors) -> torch.Tensor:
    """Return how a layer's weight differs from that of the base without the adapter in θ_sft, float64 [out, in]."""
    layer: Any = sft.get_submodule(name)
    moved = weights[f"{name}.weight"].double() - layer.weight.detach().cpu().double()
    return turned(layer, moved) + given.scale * (given.b.cpu().double() @ given.a.cpu().double())


class Spectrum:
    """Singular values of a matrix [out, in], float64, by its smaller Gram matrix: exact to 1e-8 of the largest."""

    def __init__(self, matrix: torch.Tensor) -> None:
        self.tall = matrix.shape[0] > matrix.shape[1]
        self.matrix = matrix.T if self.tall else matrix
        squares, vectors = torch.linalg.eigh(self.matrix @ self.matrix.T)
        self.values, self.vectors = squares.flip(0).clamp_min(0).sqrt(), vectors.flip(1)

    def rank_within(self, slack: float) -> int:
        """Return the smallest rank, at least 1, whose best product is at most `slack` away (Frobenius)."""
        tails = self.values.square().flip(0).cumsum(0).flip(0).sqrt()  # of ranks 0, 1, …
        return max(1, int((tails > slack).sum()))

    def factors(self, rank: int) -> Factors:
        """Return the best factors of this rank in fp32, A and B of equal norms, with zeros beyond the matrix's rank."""
        vectors = self.vectors[:, :rank]
        rows = vectors.T @ self.matrix  # their norms are the singular values
        root = rows.norm(dim=1).sqrt()
        rows = torch.where(root[:, None] > 0, rows / root[:, None], 0)
        b, a = (rows.T, (vectors * root).T) if self.tall else (vectors * root, rows)
        more = rank - len(a)
        return Factors(F.pad(a, (0, 0, 0, more)).float(), F.pad(b, (0, more)).float(), 1.0)
