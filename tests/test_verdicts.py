"""Verdicts follow from the table of the diagnosis, by every seed, and so does the best-fitting combination."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
from celltables import BEST, both, healthy, moved, record, with_the_originals_traits

from warp_nb.studies import fit, readings, verdicts
from warp_nb.studies.cells import DRIFT_LR, FIT, GREEDY, LR_OF_4, ONE_SEED, SEEDS, WARM_UPS, Cell, cells, drift
from warp_nb.studies.readings import Table
from warp_nb.studies.verdicts import INSUFFICIENT, NOT_MEASURED, SHARE, SUFFICIENT, UNDECIDED, Verdict


def of(found: list[Verdict], **figures: Any) -> Verdict:
    """The only verdict with these figures."""
    (one,) = [verdict for verdict in found if figures.items() <= verdict.figures.items()]
    return one


def test_where_nothing_is_at_fault_nothing_is_explained() -> None:
    found = verdicts.verdicts(healthy())
    kinds = {name: [v for v in found if v.hypothesis == name] for name in dict.fromkeys(v.hypothesis for v in found)}
    assert {name: len(of_kind) for name, of_kind in kinds.items()} == {
        "collapsed-reward": 2, "sft-moves": 3, "half-precision": 4, "bf16-weights": 1, "warm-up": 6, "four-curves": 7,
        "equal-runs": 5, "noise": 2, "rising-curves": 6,
    }  # fmt: skip
    assert {verdict.verdict for verdict in kinds.pop("noise")} == {SHARE}
    assert {verdict.verdict for of_kind in kinds.values() for verdict in of_kind} == {INSUFFICIENT}
    assert all(len(verdict.outcomes) in (1, 3) and not verdict.absent for v in kinds.values() for verdict in v)


def test_an_empty_table_is_judged_in_nothing() -> None:
    found = verdicts.verdicts({})
    assert {(verdict.verdict, verdict.outcomes) for verdict in found} == {(NOT_MEASURED, ())}
    assert all(verdict.absent for verdict in found)
    tried = fit.combinations_tried({})
    assert {(one.matched, one.judged, len(one.rows)) for one in tried} == {(0, 0, 0)}


def test_a_seed_that_lacks_a_cell_is_left_out() -> None:
    table = healthy()
    for seed in SEEDS:
        collapsed(table, seed)
    del table[Cell(3, "collapsed", seed=2).name]
    (found, _) = verdicts.still_rewards(table)
    assert (found.outcomes, found.absent, found.verdict) == ((True, True), 1, SUFFICIENT)
    whole = verdicts.verdicts(healthy() | {name: table[name] for name in table})
    partial = verdicts.verdicts(table)
    changed = [one for one, other in zip(whole, partial, strict=True) if one.absent != other.absent]
    assert {one.hypothesis for one in changed} == {"collapsed-reward", "rising-curves"}


@pytest.mark.parametrize("cell", [cell for cell in cells() if isinstance(cell, Cell)], ids=lambda cell: cell.name)
def test_whatever_cell_is_missing_the_rest_is_judged(cell: Cell) -> None:
    table = healthy()
    del table[cell.name]
    whole, partial = verdicts.verdicts(HEALTHY), verdicts.verdicts(table)
    for one, other in zip(whole, partial, strict=True):
        assert other.outcomes == one.outcomes or other.absent == 1
    for combination in fit.combinations_tried(table):
        known = {name: shown for name, shown in combination.traits.items() if shown is not None}
        assert known.items() <= TRAITS[tuple(combination.choices.values())].items(), "missing is neither met nor unmet"


HEALTHY = healthy()
TRAITS = {tuple(one.choices.values()): one.traits for one in fit.combinations_tried(HEALTHY)}


@pytest.mark.parametrize(
    ("outcomes", "verdict"),
    [((True, True), SUFFICIENT), ((True, False), UNDECIDED), ((False, False), INSUFFICIENT), ((True,), SUFFICIENT)],
)
def test_a_hypothesis_suffices_where_every_seed_agrees(outcomes: tuple[bool, ...], verdict: str) -> None:
    assert Verdict("", outcomes, {}).verdict == verdict


# The hypotheses, each with its fault in so many seeds


def collapsed(table: Table, seed: int) -> None:
    for number in (1, 2, 3, 4):
        moved(table, Cell(number, "collapsed", seed=seed), -1e-6)


def rounded(table: Table, seed: int) -> None:
    table[Cell(2, seed=seed).name]["kl"]["bfloat16"] = both(0.03)


def unstepped(table: Table, seed: int) -> None:
    faults, changes = WARM_UPS["never-stepped"]
    table[Cell(1, "sound", faults, changes, seed).name] = record(kl=0.0)


def four_alike(table: Table, seed: int) -> None:
    faults, changes = WARM_UPS["5"]
    curves = [[0.1, 1.1 + run * 0.006] for run in range(4)]
    table[Cell(1, "sound", faults + ONE_SEED, changes, seed).name] = record(curves=curves)


def twins(table: Table, seed: int) -> None:
    table[Cell(2, faults=ONE_SEED, seed=seed).name] = record(curves=[[0.1, 0.2]] * 4, omega=[0.0, None])


def rising(table: Table, seed: int) -> None:
    for number in (3, 4):
        curves = [[step + 0.1 * (run - step % 2) for step in range(10)] for run in range(4)]
        name = Cell(number, "collapsed", seed=seed).name
        table[name]["curves"] = table[name]["curves"] | {"objective": curves}


def resampling(table: Table, seed: int) -> None:
    name = Cell(2, "collapsed", seed=seed).name
    estimate = {"value": 0.04, "low": 0.04 - 3e-7, "high": 0.04 + 3e-7}
    table[name]["evaluation"] = table[name]["evaluation"] | {"reward_reference": estimate}


@pytest.mark.parametrize(
    ("plant", "read"),
    [
        (collapsed, lambda table: of(verdicts.still_rewards(table), reward="collapsed")),
        (resampling, lambda table: of(verdicts.moving_references(table), reward="collapsed")),
        (rounded, lambda table: of(verdicts.half_precision(table), scoring="bfloat16", task="small")),
        (unstepped, lambda table: of(verdicts.warm_ups(table), warm_up="never-stepped")),
        (four_alike, lambda table: of(verdicts.four_curves(table), warm_up="5", shared="one-seed")),
        (twins, lambda table: of(verdicts.equal_runs(table), fault="one-seed")),
        (rising, lambda table: of(verdicts.rising_curves(table), shared="independent", plotted="objective")),
    ],
)
def test_a_fault_decides_when_every_seed_has_it(
    plant: Callable[[Table, int], None], read: Callable[[Table], Verdict]
) -> None:
    table, found = healthy(), []
    for seed in SEEDS:
        found.append(read(table))
        plant(table, seed)
    assert [one.verdict for one in (*found, read(table))] == [INSUFFICIENT, UNDECIDED, UNDECIDED, SUFFICIENT]
    pairs = zip(verdicts.verdicts(healthy()), verdicts.verdicts(table), strict=True)
    assert sum(before.outcomes != after.outcomes for before, after in pairs) == 1, "no other hypothesis profits"


def test_curves_that_were_not_recorded_are_not_judged() -> None:
    table = healthy()
    for number in (3, 4):
        curves = table[Cell(number, "collapsed", GREEDY).name]["curves"]
        table[Cell(number, "collapsed", GREEDY).name]["curves"] = {"objective": curves["objective"]}
    found = verdicts.rising_curves(table)
    assert of(found, shared="greedy", plotted="surrogate").verdict == NOT_MEASURED
    assert of(found, shared="greedy", plotted="objective").outcomes == (False,)


@pytest.mark.parametrize(
    ("cell", "changed", "read"),
    [
        (
            Cell(2, faults=GREEDY),
            record(curves=[[0.1, 0.2]] * 4, omega=[0.0, None]),
            lambda table: of(verdicts.equal_runs(table), fault="greedy"),
        ),
        (
            Cell(1, "collapsed", GREEDY),
            record(curves=[[0.1, 0.2]] * 4),
            lambda table: of(verdicts.four_curves(table), shared="greedy"),
        ),
        (
            Cell(2, faults=("bf16-weights",)),
            record(kl=0.02),
            verdicts.rounded_weights,
        ),
        (
            Cell(1, faults=("rebuilt",)),
            record(kl=1e-7),
            lambda table: of(verdicts.warm_ups(table), warm_up="rebuilt"),
        ),
    ],
    ids=["greedy", "four-curves", "bf16-weights", "rebuilt"],
)
def test_what_is_deterministic_is_one_observation(
    cell: Cell, changed: dict[str, Any], read: Callable[[Table], Verdict]
) -> None:
    table = healthy()
    assert read(table).outcomes == (False,)
    table[cell.name] = changed
    assert read(table).outcomes == (True,) and read(table).verdict == SUFFICIENT


def test_the_noise_is_a_share_without_a_verdict() -> None:
    table = healthy()
    for lr in DRIFT_LR:
        for reward, kl in (("sound", 1.0), ("constant", 0.4)):
            table[drift(reward, lr, "mean", 0).name] = record(kl=kl)
    del table[drift("sound", DRIFT_LR[0], "none", 1).name]
    usual, mean = verdicts.noise(table)
    assert mean.figures["shares"] == {lr: [0.4, 1.0, 1.0] for lr in DRIFT_LR}
    assert [len(share) for share in usual.figures["shares"].values()] == [2, 3, 3, 3] and usual.absent == 1
    assert (usual.outcomes, usual.verdict) == ((), SHARE)


def test_a_still_reward_without_a_growing_kl_is_not_the_reports() -> None:
    table = healthy()
    for seed in SEEDS:
        collapsed(table, seed)
        table[Cell(3, "collapsed", seed=seed).name]["kl"] = {"float32": both(0.5)}
    assert of(verdicts.still_rewards(table), reward="collapsed").verdict == INSUFFICIENT
    table = healthy()
    for seed in SEEDS:
        collapsed(table, seed)
        for number in (1, 2, 3, 4):
            moved(table, Cell(number, seed=seed), 1e-7)
    assert of(verdicts.still_rewards(table), reward="collapsed").verdict == INSUFFICIENT, (
        "a sound reward must not be as still"
    )


def test_rounding_explains_only_a_kl_that_fp32_does_not_show() -> None:
    table = healthy()
    for seed in SEEDS:
        rounded(table, seed)
        table[Cell(2, seed=seed).name]["kl"]["float32"] = both(0.02)
    assert of(verdicts.half_precision(table), scoring="bfloat16", task="small").verdict == INSUFFICIENT


def test_equal_runs_are_equal_to_the_bit_and_have_no_angle() -> None:
    table, same = healthy(), [[0.1, 0.2, 0.3]] * 4
    for seed in SEEDS:
        table[Cell(2, faults=ONE_SEED, seed=seed).name] = record(curves=same, omega=[0.0, None])
    found = of(verdicts.equal_runs(table), fault="one-seed")
    assert found.verdict == SUFFICIENT and found.figures["equal"] and found.figures["apart"] == []
    assert found.figures["twins"] == 3, "the records' hashes are all the same"
    control = of(verdicts.equal_runs(table), fault="none")
    assert control.verdict == INSUFFICIENT and control.figures["apart"] == [1, 1]
    table[Cell(2, faults=ONE_SEED, seed=0).name] = record(curves=same, omega=[5.0])
    assert of(verdicts.equal_runs(table), fault="one-seed").verdict == UNDECIDED


# The best-fitting combination


TRAIT_NAMES = [
    "reward-still", "sft-moves", "zero-1", "kl-2", "kl-3", "kl-4",
    "curves-1", "curves-2", "pairs-3", "pairs-4", "rise-3", "rise-4", "above-3",
]  # fmt: skip


def test_the_best_combination_is_the_one_with_most_traits() -> None:
    tried = fit.combinations_tried(with_the_originals_traits())
    best = tried[0]
    assert BEST.items() <= best.choices.items() and best.choices["scoring"] == "float32"
    assert (best.matched, best.judged, list(best.traits)) == (13, 13, TRAIT_NAMES)
    assert [one.matched for one in tried] == sorted((one.matched for one in tried), reverse=True)
    assert [one.matched for one in tried].count(13) == 6, "one a scoring and plot: the made-up figures are the same"
    assert not any(one.undecided for one in tried), "everything is measured"


def test_every_combination_is_enumerated_and_its_cells_are_measured() -> None:
    tried, names = fit.combinations_tried({}), {cell.name for cell in cells()}
    scorings = {"smollm": 3, "small": 1}
    assert len(tried) == sum(2 * len(arm.warm_ups) * len(arm.lrs) * scorings[arm.task] for arm in FIT) == 106
    assert len({tuple(one.choices.values()) for one in tried}) == len(tried)
    assert {cell.name for arm in FIT for cell in arm.cells()} <= names
    assert {lr for arm in FIT for lr in arm.lrs} == set(LR_OF_4) == {1e-4, 6e-4}


def test_levels_of_kl_are_judged_on_smollm_alone() -> None:
    for one in fit.combinations_tried(healthy()):
        unjudged = [name for name, shown in one.traits.items() if shown is None]
        assert unjudged == ([] if one.arm.task == "smollm" else ["zero-1", "kl-2", "kl-3", "kl-4"])


def test_a_trait_that_is_missing_counts_for_nothing_and_may_still_decide() -> None:
    table = with_the_originals_traits()
    del table[Cell(3, "collapsed", GREEDY, task="smollm").name]
    best = fit.combinations_tried(table)[0]
    assert [name for name, shown in best.traits.items() if shown is None] == [
        "reward-still", "kl-3", "pairs-3", "rise-3", "above-3"
    ]  # fmt: skip
    assert (best.matched, best.judged) == (8, 8) and best.undecided
    without = healthy()
    for number in (1, 2):
        without[Cell(number, "collapsed", GREEDY, task="smollm").name]["curves"] = {}
    assert fit.combinations_tried(without)[-1].judged > 0, "records of before lack a plotted quantity"


@pytest.mark.parametrize(
    ("trait", "spoil"),
    [
        ("reward-still", lambda one: one["evaluation"].update(reward_difference={"value": 2e-5})),
        ("sft-moves", lambda one: one["evaluation"].update(reward_reference={"value": 0, "low": 0, "high": 0})),
        ("kl-3", lambda one: one["kl"].update(float32=both(9.0))),
        ("pairs-3", lambda one: one["curves"]["objective"][0].__setitem__(0, 4.0)),
        ("rise-3", lambda one: one["curves"].update(objective=[[5.0, 5.0, 5.1], [5.0, 5.0, 5.1], *[[1.0] * 3] * 2])),
        ("above-3", lambda one: one["curves"].update(objective=[[0.0, 1.0, 2.0]] * 4)),
    ],
)
def test_each_trait_can_fail_alone(trait: str, spoil: Callable[[Any], None]) -> None:
    table = json.loads(json.dumps(with_the_originals_traits()))
    number = 2 if trait == "sft-moves" else 3
    spoil(table[Cell(number, "collapsed", GREEDY, task="smollm").name])
    (found,) = [
        one
        for one in fit.combinations_tried(table)
        if BEST.items() <= one.choices.items() and (one.scoring, one.plotted) == ("float32", "objective")
    ]
    assert [name for name, shown in found.traits.items() if not shown] == [trait]


def test_a_row_is_the_median_of_the_seeds() -> None:
    records = [record(reward=reward, kl=kl) for reward, kl in ((0.1, 3.0), (0.9, 1.0), (0.3, 2.0))]
    records[0]["kl"]["mixed"] = both(50.0)
    assert fit.row(records, "float32") == {
        "reward_reference": 0.3,
        "reward_policy": 0.3,
        "reward_difference": 0.3,
        "kl_reference_policy": 2.0,
        "kl_policy_reference": 2.0,
    }
    assert fit.row(records, "mixed")["kl_policy_reference"] == 2.0


# Records


def test_a_single_run_has_no_pair() -> None:
    alone = record(curves=[[1.0, 2.0]])
    assert readings.pairs(alone) == [] and readings.same_curves(alone) and readings.first_apart([alone]) == []
    assert readings.pairs(record(curves=[[1.0]] * 4)) == [(0, 1), (2, 3)]


def test_runs_begin_to_differ_in_whatever_column() -> None:
    found = record(curves=[[1.0, 2.0, 3.0]] * 4)
    found["curves"] = found["curves"] | {"kl": [[0.0, 0.1, 0.2], [0.0, 0.1, 0.3], [0.0, 0.1, 0.2], [0.0, 0.2, 0.2]]}
    assert not readings.same_curves(found) and readings.first_apart([found]) == [2, 3]


@pytest.mark.parametrize(("value", "close"), [(0.9, False), (1.0, True), (9.0, True), (9.1, False)])
def test_close_is_within_a_factor_of_three(value: float, close: bool) -> None:
    assert readings.close(value, 3.0) == close


def test_figures_of_a_record_by_hand() -> None:
    found = record(curves=[[1.0, 2.0], [1.5, 2.0], [1.0, 5.0], [1.0, 2.0]])
    curves = found["curves"]["objective"]
    assert readings.apart(curves) == 3.0 and readings.share_apart(curves) == 0.75
    assert readings.share_of_pairs(curves) == 0.75 and readings.share_of_pairs(curves[:2]) == 0.5
    found["kl"]["mixed"] = {"kl_reference_policy": 0.2, "kl_policy_reference": 0.1}
    assert (readings.kl(found), readings.kl(found, "mixed")) == (1.0, 0.2)
    assert readings.ratio(1.0, 2.0) == 0.5 and math.isnan(readings.ratio(1.0, 0.0))
    rows = readings.history(found)
    assert len(rows) == 8 and rows.query("iteration == 1 and run == 0")["objective"].tolist() == [1.0, 5.0]


def test_what_a_reader_sees_of_curves_by_hand() -> None:
    flat = [[0.3, 0.3]] * 4
    assert (readings.share_apart(flat), readings.rise(flat), readings.first_above(flat)) == (0.0, 0.0, 0.0)
    line = [[0.0, 1.0, 2.0]] * 2 + [[1.0, 2.0, 3.0]] * 2
    assert readings.climb(line[0]) == pytest.approx(2.0) and readings.rise(line) == pytest.approx(2 / 3)
    assert readings.first_above(line) == pytest.approx(-1 / 3) and readings.share_of_pairs(line) == 0.0
    assert readings.climb([0.0, 3.0, 0.0]) == 0.0 and readings.climb([2.0, 0.0]) == -2.0
    tiny_range = [[1e-7 * value for value in curve] for curve in line]
    assert readings.share_apart(tiny_range) == pytest.approx(1 / 3), "a plot of a constant reward rescales its axis"


@pytest.mark.parametrize(("width", "alike"), [(0.0, False), (1e-8, False), (1e-7, True), (2e-6, True), (1e-5, False)])
def test_the_reward_of_the_reference_moves_as_the_originals(width: float, alike: bool) -> None:
    assert pytest.approx(2e-7) == readings.SFT_MOVED
    found = record()
    found["evaluation"] = {"reward_reference": {"value": 1.0, "low": 1.0 - width, "high": 1.0 + width}}
    assert readings.resampled(found) == pytest.approx(2**0.5 * width / 1.96, rel=1e-6, abs=1e-15)
    assert readings.moves_alike(readings.resampled(found)) == alike
