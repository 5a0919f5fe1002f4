"""Geometry of a merge: the angles between task vectors, and how far LITI moved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations

from warp_nb.algorithm.merge import Weights, blocks, flat, task_vector
from warp_nb.runs.facts import Row


def angles(init: Weights, first: Weights, second: Weights, by: str = "layer") -> list[dict[str, float | str]]:
    """Return one row per block of two task vectors: block, cosine, omega (degrees), norm_a, norm_b; sums in float64.

    Cosine and omega are NaN if a task vector is zero or holds NaN or an infinity.
    """
    rows: list[dict[str, float | str]] = []
    for block, names in blocks(init, by).items():
        start = {name: init[name] for name in names}
        a, b = (flat(task_vector(policy, start)).double() for policy in (first, second))
        norms = a.norm(), b.norm()
        cosine = (a @ b / (norms[0] * norms[1])).clamp(-1, 1)
        row = {"cosine": cosine, "omega": cosine.acos().rad2deg(), "norm_a": norms[0], "norm_b": norms[1]}
        rows.append({"block": block} | {name: value.item() for name, value in row.items()})
    return rows


def pairwise_angles(init: Weights, policies: Sequence[Weights], by: str) -> list[dict[str, float | str]]:
    """Return the rows of `angles` for every pair of runs of an iteration, with run_a and run_b (from 1) in front."""
    return [
        {"run_a": a + 1, "run_b": b + 1} | row
        for a, b in combinations(range(len(policies)), 2)
        for row in angles(init, policies[a], policies[b], by)
    ]


def merge_facts(init: Weights, policies: Sequence[Weights], merged: Weights, updated: Weights) -> Row:
    """Measure lines 12 and 13 for the checks.

    liti_ratio = <θ_new - θ_init, θ_slerp - θ_init> / |θ_slerp - θ_init|², which should be eta; NaN where nothing was
    merged. delta_cosine: the largest cosine of two task vectors over all weights.
    """
    dot = square = 0.0
    for name, start in init.items():
        direction = (merged[name] - start).double().flatten()
        dot += ((updated[name] - start).double().flatten() @ direction).item()
        square += (direction @ direction).item()
    cosines = [float(angles(init, a, b, "global")[0]["cosine"]) for a, b in combinations(policies, 2)]
    known = [value for value in cosines if not math.isnan(value)]
    return {"liti_ratio": dot / square if square else math.nan, "delta_cosine": max(known, default=math.nan)}
