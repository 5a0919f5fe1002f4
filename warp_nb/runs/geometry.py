"""Geometry of a merge: the angles between task vectors, by block and over all weights, and how far LITI moved."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, groupby
from typing import TYPE_CHECKING, Any

from warp_nb.algorithm.merge import Weights, blocks, flat, task_vector
from warp_nb.runs.facts import Row

if TYPE_CHECKING:
    import pandas as pd

PAIR = ("seed", "iteration", "run_a", "run_b")
"""Columns of `WarpResult.geometry` that name a pair of runs; one training has no seed."""


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


def whole_cosine(rows: Iterable[Mapping[Any, Any]]) -> float:
    """Return the cosine of two task vectors over all weights, from the rows of `angles` of all their blocks.

    It is the mean of the blocks' cosines, weighted by the products of their norms:
    sum(cosine * norm_a * norm_b) / (|δ_a| * |δ_b|). A block that did not move adds nothing; NaN if a whole task
    vector is zero or a norm is unknown.
    """
    rows = list(rows)
    dots = [row["cosine"] * row["norm_a"] * row["norm_b"] for row in rows if row["norm_a"] * row["norm_b"] != 0]
    norms = [math.sqrt(math.fsum(row[name] ** 2 for row in rows)) for name in ("norm_a", "norm_b")]
    if math.prod(norms) == 0:
        return math.nan
    cosine = math.fsum(dots) / math.prod(norms)
    return math.copysign(1.0, cosine) if abs(cosine) > 1 else cosine  # max and min would swallow NaN


def with_whole(table: pd.DataFrame, name: str) -> pd.DataFrame:
    """Return the rows of `WarpResult.geometry`, and behind those of each pair of runs a row over all weights.

    Args:
        table: rows of `pairwise_angles`, with seed and iteration.
        name: what stands in the column `block` of the added rows.
    """
    import pandas as pd

    keys = [key for key in PAIR if key in table]
    added = []
    for pair, rows in table.groupby(keys):
        cosine = whole_cosine(rows.to_dict("records"))
        norms = {side: math.sqrt(float((rows[side] ** 2).sum(skipna=False))) for side in ("norm_a", "norm_b")}
        whole = {"block": name, "cosine": cosine, "omega": math.degrees(math.acos(cosine))}
        added.append(dict(zip(keys, pair, strict=True)) | whole | norms)
    return pd.concat([table, pd.DataFrame(added)], ignore_index=True).sort_values(
        keys, kind="stable", ignore_index=True
    )


def norm_shares(table: pd.DataFrame) -> pd.Series:
    """Return each block's share of the squared norm of the task vectors, the mean over pairs of runs."""
    squares = (table["norm_a"] ** 2 + table["norm_b"] ** 2).rename("square")
    keys = [table[key] for key in PAIR if key in table]
    return (squares / squares.groupby(keys).transform("sum")).groupby(table["block"]).mean()


def merge_facts(init: Weights, rows: Sequence[Mapping[str, Any]], merged: Weights, updated: Weights) -> Row:
    """Measure lines 12 and 13 for the checks.

    liti_ratio = <θ_new - θ_init, θ_slerp - θ_init> / |θ_slerp - θ_init|², which should be eta; NaN where nothing was
    merged. delta_cosine: the largest cosine of two task vectors over all weights, from the rows of `pairwise_angles`.
    """
    dot = square = 0.0
    for name, start in init.items():
        direction = (merged[name] - start).double().flatten()
        dot += ((updated[name] - start).double().flatten() @ direction).item()
        square += (direction @ direction).item()
    pairs = groupby(rows, key=lambda row: (row["run_a"], row["run_b"]))
    known = [cosine for cosine in (whole_cosine(pair) for _, pair in pairs) if not math.isnan(cosine)]
    return {"liti_ratio": dot / square if square else math.nan, "delta_cosine": max(known, default=math.nan)}
