"""Lines 12 and 13 on checkpoints on disk: task vectors are merged slice by slice, whatever the size of the model.

A first pass measures the angle of every block (for M > 2 another pass per further run, equation 26), a last one writes.
The result has BASE's files, names, dtypes and layout, and the bits of `merge` and `liti` of `algorithm/merge.py`. Sums
over a block are made in fp64 here and there, only in another order, and the two factors of SLERP that follow from them
are rounded to fp32 before they meet the weights: they differ, by one unit of their last place, only where the last
digits of fp64 decide that rounding. Weights of fp64 agree within the rounding of fp64.
"""

from __future__ import annotations

import os
import shutil
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warp_nb.algorithm.merge import LERP, blocks, in_turn, liti, wide
from warp_nb.files import file_sha256, new_folder, write_json
from warp_nb.runs.adapters import Adapter
from warp_nb.runs.merge_inputs import COPIED
from warp_nb.runs.weight_files import INDEX, Checkpoint, header_of, spans

Angles = list[dict[str, float | str]]
"""Rows of `pairwise_angles`: run_a, run_b, block, cosine, omega (degrees), norm_a, norm_b."""


def arc(d1: Tensor, d2: Tensor, lam: float, omega: Tensor) -> Tensor:
    """Return the bits of `slerp(d1, d2, lam)` for a part of a block, whose angle Omega (radians) is known."""
    sine = torch.sin(omega)
    if sine.isnan() or sine <= 1e-3:
        return torch.lerp(d1, d2, lam)
    return torch.sin((1 - lam) * omega) / sine * d1 + torch.sin(lam * omega) / sine * d2


def gram(vectors: Sequence[Tensor]) -> list[list[float]]:
    """Return the scalar products of vectors [N], summed in fp64, as K rows of K numbers.

    Numbers, because small tensors that stay between large ones that go would leave holes in the C library's heap.
    """
    wider = [vector.double() for vector in vectors]
    return [[(a @ b).item() for b in wider] for a in wider]


def cosine(products: Tensor, a: int, b: int) -> Tensor:
    """Return the cosine of the vectors a and b from their scalar products; NaN if one of them is zero."""
    return (products[a, b] / (products[a, a].sqrt() * products[b, b].sqrt())).clamp(-1, 1)


@dataclass(frozen=True)
class MergeRecipe:
    """How runs are merged: `method` and `by` as in `merge`, `lam` for M = 2, `eta` of LITI towards BASE."""

    method: str = "slerp"
    by: str = "layer"
    lam: float = 0.5
    eta: float = 1.0


class StreamedMerge:
    """The merge of runs around BASE, a slice of a tensor at a time; `measure` comes before `write`."""

    def __init__(self, base: Checkpoint, runs: Sequence[Checkpoint | Adapter], recipe: MergeRecipe) -> None:
        self.base, self.runs, self.recipe = base, runs, recipe
        floats = [name for name in base.names if base.tensors[name].dtype != torch.uint8]
        self.block = {name: block for block, names in blocks(floats, recipe.by).items() for name in names}
        self.moved: set[str] = set()
        """Tensors that a run changed; the others are copied and have no part in an angle."""
        self.omegas: dict[str, list[Tensor]] = defaultdict(list)
        """Block -> the angle of the m-th run to the merge of those before it, m = 2 … M."""

    def measure(self) -> Angles:
        """Measure the angles that the merge needs, and return those of every pair of runs in every block."""
        count = len(self.runs)
        products = self._products(count)
        for m in range(2, count + 1) if self.recipe.method == "slerp" else ():
            for block, found in (products if m == 2 else self._products(m, merged=True)).items():
                self.omegas[block].append(cosine(found, 0, 1).acos())
        return [
            angle_row(block, found, *pair)
            for pair in combinations(range(count), 2)
            for block, found in products.items()
        ]

    def _products(self, count: int, *, merged: bool = False) -> dict[str, Tensor]:
        """Return the scalar products of the first `count` task vectors by block; `merged`: all but the last as one."""
        sums: dict[str, Tensor] = {}
        for name, block in self.block.items():
            mine, moved = [], False
            for part in spans(self.base.tensors[name].count):
                init, deltas = self._read(name, part, count)
                moved = moved or any(bool(delta.any()) for delta in deltas)
                mine.append(gram([self._merged(block, deltas[:-1], wide(init)), deltas[-1]] if merged else deltas))
            if moved or name in self.moved:
                self.moved.add(name)
                sums[block] = sums.get(block, 0) + torch.tensor(mine, dtype=torch.float64).sum(0)
        return sums

    def _read(self, name: str, part: tuple[int, int], count: int) -> tuple[Tensor, list[Tensor]]:
        """Return a slice of theta_init as it is stored, and of the first `count` task vectors, in fp32 or better."""
        init = self.base.tensors[name].read(*part)
        start = wide(init)
        return init, [run.delta(name, start, *part) for run in self.runs[:count]]

    def _merged(self, block: str, deltas: Sequence[Tensor], start: Tensor) -> Tensor:
        """Return the merged task vector of a slice (line 12)."""
        lam = self.recipe.lam if len(self.runs) == 2 else 0.5  # the first two of more are merged at 1/2
        if self.recipe.method == "lerp":
            return LERP(deltas, start, lam)
        known = iter(self.omegas[block])
        return in_turn(deltas, start, lam, lambda d1, d2, weight: arc(d1, d2, weight, next(known)))

    def result(self, name: str, part: tuple[int, int]) -> Tensor:
        """Return the elements of a tensor of the result, in BASE's dtype (lines 12 and 13)."""
        if name not in self.moved:
            return self.base.tensors[name].read(*part)
        init, deltas = self._read(name, part, len(self.runs))
        start = wide(init)
        merged = (start + self._merged(self.block[name], deltas, start)).to(init.dtype)
        return liti({name: init}, {name: merged}, self.recipe.eta)[name]

    def write(self, folder: Path) -> None:
        """Write the weights to `folder`, in files that are laid out as BASE's are."""
        for path in self.base.paths:
            header, tensors = header_of(path)
            with (folder / path.name).open("wb") as file:
                file.write(header)
                for name, stored in tensors.items():
                    for part in spans(stored.count):
                        value = self.result(self.base.tied.get(name, name), part)
                        file.write(value.view(torch.uint8).numpy().data)
                file.flush()
                os.fsync(file.fileno())


def angle_row(block: str, products: Tensor, a: int, b: int) -> dict[str, float | str]:
    """Return a row of `Angles`, of the runs a and b (from 0)."""
    found = cosine(products, a, b)
    row: dict[str, Tensor] = {"cosine": found, "omega": found.acos().rad2deg()}
    row |= {"norm_a": products[a, a].sqrt(), "norm_b": products[b, b].sqrt()}
    return {"run_a": a + 1, "run_b": b + 1, "block": block, **{name: value.item() for name, value in row.items()}}


def sha256_of_weights(one: Checkpoint | Adapter) -> dict[str, Any]:
    """Return the folder of an input and the sha256 of the files that hold its weights, by name."""
    return {"folder": str(one.folder), "sha256": {path.name: file_sha256(path) for path in one.paths}}


@torch.no_grad()
def merge_files(
    base: Checkpoint, runs: Sequence[Checkpoint | Adapter], out: Path, recipe: MergeRecipe
) -> dict[str, Any]:
    """Merge the task vectors of runs around BASE and write a model's folder.

    Args:
        base, runs: as `open_inputs` opens and checks them; the order of runs matters for M > 2.
        out: a folder that does not exist or is empty; it is there when the merge is whole.
        recipe: how they are merged.

    Returns:
        What `merge.json` in `out` holds: the recipe, the inputs with the sha256 of their weights, the angles.
    """
    with new_folder(out) as folder, ThreadPoolExecutor(1) as pool:
        hashes = pool.map(sha256_of_weights, [base, *runs])  # in a thread, beside the merge
        merge = StreamedMerge(base, runs, recipe)
        rows = merge.measure()
        merge.write(folder)
        for name in (*COPIED, INDEX):
            if (base.folder / name).is_file():
                shutil.copyfile(base.folder / name, folder / name)
        record: dict[str, Any] = {"method": recipe.method, "by": recipe.by, "eta": recipe.eta}
        record |= {"lam": recipe.lam if len(runs) == 2 else None, "base": next(hashes), "runs": list(hashes)}
        record |= {"unmoved_tensors": len(merge.block) - len(merge.moved), "angles": rows}
        write_json(folder / "merge.json", record)
    return record
