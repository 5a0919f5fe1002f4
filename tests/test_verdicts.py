"""Verdicts follow from the table of the diagnosis, by every seed, and so does the best-fitting combination."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pytest
from celltables import both, healthy, moved, record, with_the_originals_traits

from warp_nb.studies import verdicts
from warp_nb.studies.diagnosis import DRIFT_LR, ONE_SEED, SEEDS, WARM_UPS, Cell, drift
from warp_nb.studies.verdicts import INSUFFICIENT, SUFFICIENT, UNDECIDED, Table, Verdict


def of(found: list[Verdict], **figures: Any) -> Verdict:
    """The only verdict with these figures."""
    (one,) = [verdict for verdict in found if figures.items() <= verdict.figures.items()]
    return one


def test_where_nothing_is_at_fault_nothing_is_explained_but_the_noise() -> None:
    found = verdicts.verdicts(healthy())
    assert {verdict.hypothesis for verdict in found if verdict.verdict != INSUFFICIENT} == {"noise"}
    assert [len([v for v in found if v.hypothesis == name]) for name in dict.fromkeys(v.hypothesis for v in found)] == [
        1, 4, 3, 4, 4, 2, 1
    ]  # fmt: skip
    assert all(len(verdict.outcomes) in (1, 3) for verdict in found)


def test_a_table_that_lacks_a_cell_is_refused() -> None:
    table = healthy()
    del table[Cell(3, "collapsed", seed=2).name]
    with pytest.raises(KeyError, match="small exp3 collapsed seed=2"):
        verdicts.verdicts(table)


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
    curves = [[0.1, 0.2 + run * 0.003] for run in range(4)]
    table[Cell(1, "sound", faults + ONE_SEED, changes, seed).name] = record(curves=curves)


def greedy(table: Table, seed: int) -> None:
    table[Cell(2, faults=("greedy",), seed=seed).name] = record(curves=[[0.1, 0.2]] * 4, omega=[0.0, None])


def quiet(table: Table, seed: int) -> None:
    """Where nothing is to be learnt nothing moves; the noise's prediction then fails."""
    for lr in DRIFT_LR:
        for reward in ("sound", "constant"):
            table[drift(reward, lr, "mean", seed).name] = record(kl=1.0 if reward == "sound" else 0.4)


def rising(table: Table, seed: int) -> None:
    for number in (3, 4):
        curves = [[step + 0.1 * (run - step % 2) for step in range(10)] for run in range(4)]
        name = Cell(number, "collapsed", seed=seed).name
        table[name]["curves"] = table[name]["curves"] | {"objective": curves, "reward": [[0.1] * 10] * 4}


@pytest.mark.parametrize(
    ("plant", "read", "without"),
    [
        (collapsed, lambda table: verdicts.collapsed_reward(table), INSUFFICIENT),
        (rounded, lambda table: of(verdicts.half_precision(table), scoring="bfloat16", task="small"), INSUFFICIENT),
        (unstepped, lambda table: of(verdicts.warm_ups(table), warm_up="never-stepped"), INSUFFICIENT),
        (four_alike, lambda table: of(verdicts.four_curves(table), warm_up="5", one_seed=True), INSUFFICIENT),
        (greedy, lambda table: of(verdicts.equal_runs(table), fault="greedy"), INSUFFICIENT),
        (quiet, lambda table: of(verdicts.noise(table), baseline="mean"), SUFFICIENT),
        (rising, lambda table: verdicts.rising_curves(table), INSUFFICIENT),
    ],
)
def test_a_fault_decides_when_every_seed_has_it(
    plant: Callable[[Table, int], None], read: Callable[[Table], Verdict], without: str
) -> None:
    table, found = healthy(), []
    for seed in SEEDS:
        found.append(read(table))
        plant(table, seed)
    assert [one.verdict for one in (*found, read(table))] == [
        without, UNDECIDED, UNDECIDED, {SUFFICIENT: INSUFFICIENT, INSUFFICIENT: SUFFICIENT}[without]
    ]  # fmt: skip
    pairs = zip(verdicts.verdicts(healthy()), verdicts.verdicts(table), strict=True)
    assert sum(before.outcomes != after.outcomes for before, after in pairs) == 1, "no other hypothesis profits"


def test_a_still_reward_without_a_growing_kl_is_not_the_reports() -> None:
    table = healthy()
    for seed in SEEDS:
        collapsed(table, seed)
        table[Cell(3, "collapsed", seed=seed).name]["kl"] = {"float32": both(0.5)}
    assert verdicts.collapsed_reward(table).verdict == INSUFFICIENT
    table = healthy()
    for seed in SEEDS:
        collapsed(table, seed)
        for number in (1, 2, 3, 4):
            moved(table, Cell(number, seed=seed), 1e-7)
    assert verdicts.collapsed_reward(table).verdict == INSUFFICIENT, "a sound reward must not be as still"


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


def test_the_best_combination_is_the_one_with_most_traits() -> None:
    table = with_the_originals_traits()
    tried = verdicts.combinations_tried(table)
    best = tried[0]
    assert len(tried) == 2 * 2 * 3 * 3
    assert (best.reward, best.seeds, best.warm_up, best.matched) == ("collapsed", "one", "never-stepped", 7)
    assert list(best.traits) == ["reward-still", "zero-1", "kl-2", "kl-3", "kl-4", "curves-1", "curves-2"]
    assert [one.matched for one in tried] == sorted((one.matched for one in tried), reverse=True)
    assert [one.matched for one in tried].count(7) == 3, "one a scoring: the made-up KLs are the same in all of them"


def test_a_row_is_the_median_of_the_seeds() -> None:
    records = [record(reward=reward, kl=kl) for reward, kl in ((0.1, 3.0), (0.9, 1.0), (0.3, 2.0))]
    records[0]["kl"]["mixed"] = both(50.0)
    assert verdicts.row(records, "float32") == {
        "reward_reference": 0.3,
        "reward_policy": 0.3,
        "reward_difference": 0.3,
        "kl_reference_policy": 2.0,
        "kl_policy_reference": 2.0,
    }
    assert verdicts.row(records, "mixed")["kl_policy_reference"] == 2.0


# Records


def test_a_single_run_has_no_pair() -> None:
    alone = record(curves=[[1.0, 2.0]])
    assert verdicts.pairs(alone) == [] and verdicts.same_curves(alone) and verdicts.first_apart([alone]) == []
    assert verdicts.pairs(record(curves=[[1.0]] * 4)) == [(0, 1), (2, 3)]


def test_runs_begin_to_differ_in_whatever_column() -> None:
    found = record(curves=[[1.0, 2.0, 3.0]] * 4)
    found["curves"] = found["curves"] | {"kl": [[0.0, 0.1, 0.2], [0.0, 0.1, 0.3], [0.0, 0.1, 0.2], [0.0, 0.2, 0.2]]}
    assert not verdicts.same_curves(found) and verdicts.first_apart([found]) == [2, 3]


@pytest.mark.parametrize(("value", "close"), [(0.9, False), (1.0, True), (9.0, True), (9.1, False)])
def test_close_is_within_a_factor_of_three(value: float, close: bool) -> None:
    assert verdicts.close(value, 3.0) == close


def test_figures_of_a_record_by_hand() -> None:
    found = record(curves=[[1.0, 2.0], [1.5, 2.0], [1.0, 5.0], [1.0, 2.0]])
    assert verdicts.apart(found) == 3.0
    found["kl"]["mixed"] = {"kl_reference_policy": 0.2, "kl_policy_reference": 0.1}
    assert (verdicts.kl(found), verdicts.kl(found, "mixed")) == (1.0, 0.2)
    assert verdicts.ratio(1.0, 2.0) == 0.5 and math.isnan(verdicts.ratio(1.0, 0.0))
    rows = verdicts.history(found)
    assert len(rows) == 8 and rows.query("iteration == 1 and run == 0")["objective"].tolist() == [1.0, 5.0]
