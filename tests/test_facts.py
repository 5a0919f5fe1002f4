"""Figures of runs and merges for the checks, against values known by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pandas as pd
import pytest
import tiny
import torch

from warp_nb.algorithm.merge import ema_update_, liti, merge, weights_of
from warp_nb.runs.facts import AnchorProbe, displacement, tokens_after_end
from warp_nb.runs.geometry import (
    angles,
    merge_facts,
    norm_shares,
    pairwise_angles,
    whole_cosine,
    with_whole,
)


def test_displacement_counts_tied_weights_once() -> None:
    policy = tiny.gpt2(20)
    init, weights = weights_of(policy), weights_of(policy)
    weights["transformer.wte.weight"][:5] += 0.5  # the head is the same tensor
    facts = displacement(init, weights)
    assert facts["delta_norm"] == pytest.approx(0.5 * math.sqrt(5 * 16), rel=1e-5)
    assert facts["unmoved"] == pytest.approx(1 - 5 * 16 / policy.num_parameters())
    assert displacement(init, init) == {"delta_norm": 0.0, "unmoved": 1.0}


def test_displacement_has_the_same_bits_in_any_order_of_the_names() -> None:
    """A file of weights sorts them, so a worker reads another order than its caller has."""
    init = {f"w{i}": torch.zeros(1) for i in range(10)}
    weights = {name: torch.tensor([1.0 if name == "w0" else 1e-8]) for name in init}
    assert displacement(dict(reversed(init.items())), weights) == displacement(init, weights)


def test_tokens_after_the_end_are_counted() -> None:
    sound = tiny.rollout([0], [[1, 3], [1, 2, 0]])
    padded = replace(sound, completion_mask=torch.ones(2, 3, dtype=torch.bool))
    twice = tiny.rollout([0], [[3, 3, 3]])
    assert [tokens_after_end(rollout, (3,)) for rollout in (sound, padded, twice)] == [0, 1, 2]
    assert tokens_after_end(padded, ()) == 0
    assert tokens_after_end(sound, (3, 2)) == 1  # any of several ends


def test_the_probe_measures_the_anchors_error() -> None:
    anchor, policy = tiny.gpt2(20, seed=1), tiny.gpt2(20, seed=2)
    probe, still = AnchorProbe(anchor), AnchorProbe(anchor)
    for _ in range(3):
        probe.follow(policy, 0.01)
        ema_update_(anchor, policy, 0.01)
    assert probe.compare(anchor)["anchor_error"] < 1e-4
    assert probe.compare(tiny.gpt2(20, seed=1))["anchor_error"] == pytest.approx(1, abs=1e-3)
    assert probe.compare(policy)["anchor_error"] > 10
    assert still.compare(tiny.gpt2(20, seed=1)) == {"anchor_moved": 0.0, "anchor_error": 0.0}
    assert still.compare(anchor)["anchor_error"] == 1.0


def test_the_probe_takes_rounding_for_no_error_and_tells_what_it_cannot_know() -> None:
    """A step below half a unit in the last place: a frozen anchor and a sound one look the same."""
    anchor, policy = tiny.gpt2(20, seed=1), tiny.gpt2(20, seed=1)
    with torch.no_grad():
        for value in policy.parameters():
            value *= 1 + 1e-6
    probe = AnchorProbe(anchor)
    probe.follow(policy, 0.01)
    ema_update_(anchor, policy, 0.01)
    for model in (anchor, tiny.gpt2(20, seed=1)):
        assert math.isnan(probe.compare(model)["anchor_error"])
    assert probe.compare(policy)["anchor_error"] > 1  # a fault far beyond rounding is still seen


def test_angles_of_known_vectors() -> None:
    init = {"a": torch.ones(2), "h.0.w": torch.zeros(2), "h.0.b": torch.zeros(1), "z": torch.zeros(1)}
    first = {"a": torch.tensor([2.0, 1.0]), "h.0.w": torch.tensor([3.0, 0.0]), "h.0.b": torch.tensor([4.0])}
    second = {"a": torch.tensor([1.0, 3.0]), "h.0.w": torch.tensor([3.0, 0.0]), "h.0.b": torch.tensor([-4.0])}
    first["z"], second["z"] = torch.zeros(1), torch.ones(1)
    rows = {row["block"]: row for row in angles(init, first, second)}
    assert rows["a"]["omega"] == pytest.approx(90) and rows["a"]["norm_b"] == pytest.approx(2)
    assert rows["h.0"]["cosine"] == pytest.approx(-7 / 25) and rows["h.0"]["norm_a"] == pytest.approx(5)
    assert math.isnan(rows["z"]["cosine"]) and math.isnan(rows["z"]["omega"]) and rows["z"]["norm_b"] == 1
    assert all(row["omega"] < 0.1 for row in angles(init, first, first) if row["block"] != "z")
    first["a"], second["a"] = torch.tensor([math.inf, 1.0]), torch.tensor([math.nan, 2.0])
    rows = {row["block"]: row for row in angles(init, first, second)}
    assert math.isnan(rows["a"]["omega"]) and math.isnan(rows["a"]["cosine"]), "not an angle of 0"
    pairs = [(row["run_a"], row["run_b"]) for row in pairwise_angles(init, [first, second, first], "global")]
    assert pairs == [(1, 2), (1, 3), (2, 3)]


def test_facts_of_a_merge() -> None:
    init, first, second = (
        {"w": torch.tensor(row, dtype=torch.float64)} for row in ([1.0, 1.0], [2.0, 1.0], [1.0, 2.0])
    )
    merged = merge(init, [first, second])
    rows = pairwise_angles(init, [first, second, first], "layer")
    facts = merge_facts(init, rows, merged, liti(init, merged, 0.3))
    assert facts == pytest.approx({"liti_ratio": 0.3, "delta_cosine": 1.0})
    assert merge_facts(init, rows[:1], merged, merged)["delta_cosine"] == pytest.approx(0)
    nothing = merge_facts(init, pairwise_angles(init, [init, init], "layer"), init, init)
    assert math.isnan(nothing["liti_ratio"]) and math.isnan(nothing["delta_cosine"])


@pytest.mark.parametrize("by", ["layer", "tensor", "global"])
def test_the_cosine_of_the_blocks_is_that_of_all_weights(by: str) -> None:
    init = weights_of(tiny.gpt2(20))
    first, second = ({name: value.clone() for name, value in init.items()} for _ in range(2))
    generator = torch.Generator().manual_seed(0)
    for name in [name for name in init if "h.1" not in name]:  # a layer that no run moved
        step = torch.randn(init[name].shape, generator=generator)
        first[name] += step
        second[name] += 0.3 * step + torch.randn(step.shape, generator=generator)
    rows = angles(init, first, second, by)
    (whole,) = angles(init, first, second, "global")
    assert whole_cosine(rows) == pytest.approx(whole["cosine"]) and 0.2 < float(whole["cosine"]) < 0.4
    assert whole_cosine(angles(init, first, first, by)) == pytest.approx(1)
    assert math.isnan(whole_cosine(angles(init, first, init, by)))
    first["transformer.wte.weight"][0] = math.nan
    assert math.isnan(whole_cosine(angles(init, first, second, by)))


def test_a_pair_has_a_row_over_all_weights_behind_its_blocks() -> None:
    init = {"a": torch.zeros(2), "b": torch.zeros(2)}
    first = {"a": torch.tensor([3.0, 0.0]), "b": torch.tensor([0.0, 1.0])}
    second = {"a": torch.tensor([0.0, 3.0]), "b": torch.tensor([0.0, 1.0])}
    rows = [
        {"seed": seed, "iteration": 1} | row
        for seed in (0, 1)
        for row in pairwise_angles(init, [first, second, first], "tensor")
    ]
    found = with_whole(pd.DataFrame(rows), "all")
    assert found["block"].tolist() == ["a", "b", "all"] * 6 and found.columns.tolist() == list(rows[0])
    assert found[["seed", "run_a", "run_b"]].drop_duplicates().to_numpy().tolist() == [
        [seed, *pair] for seed in (0, 1) for pair in ((1, 2), (1, 3), (2, 3))
    ]
    whole = found[found["block"] == "all"]
    assert whole["cosine"].tolist() == pytest.approx([0.1, 1, 0.1] * 2), "9 * 0 + 1 * 1 of 10"
    assert whole["omega"].tolist()[0] == pytest.approx(math.degrees(math.acos(0.1)))
    assert whole[["norm_a", "norm_b"]].to_numpy() == pytest.approx(math.sqrt(10))
    one = with_whole(pd.DataFrame(rows[:2]).drop(columns="seed"), "all")
    assert one["block"].tolist() == ["a", "b", "all"] and "seed" not in one


def test_the_share_of_a_block_is_that_of_the_squared_norms() -> None:
    sizes = {"a": [3.0, 1.0], "b": [4.0, 2.0]}
    rows = [
        {"iteration": 1 + at, "run_a": 1, "run_b": 2, "block": block, "norm_a": norms[at], "norm_b": norms[at]}
        for at in (0, 1)
        for block, norms in sizes.items()
    ]
    assert norm_shares(pd.DataFrame(rows)).to_dict() == pytest.approx(
        {"a": (9 / 25 + 1 / 5) / 2, "b": (16 / 25 + 4 / 5) / 2}
    )
