"""Experiment 5: the arms spend the same steps, share what is the same, and are compared at equal KL."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import gates
import pytest
import tiny
from fronts import DOUBLE, LINE, comparison, evaluation

from warp_nb.algorithm.merge import weights_of
from warp_nb.config import ExperimentConfig
from warp_nb.measure.estimates import mean_interval
from warp_nb.measure.evaluation import Evaluation, pareto_front
from warp_nb.runs.warp import warp
from warp_nb.studies.comparison import (
    ARMS,
    ETAS,
    KL_TOLERANCE,
    REINFORCE,
    SEARCH_STEPS,
    SINGLE,
    WARP,
    Comparison,
    arm_config,
    at_kl,
    common_kl,
    eta_at,
    run_comparison,
)
from warp_nb.studies.experiment import evaluation_settings

CONFIG = ExperimentConfig(
    T=2, lr=3e-3, warmup_steps=1, mu=0.1, eta=0.5, batch_size=4, max_new_tokens=4, n_eval_prompts=16, n_seeds=2
)


@pytest.fixture(scope="module")
def found() -> Comparison:
    return run_comparison(CONFIG, tiny.task(gate=gates.gate), progress=False)


@pytest.mark.slow
def test_every_arm_has_its_steps(found: Comparison) -> None:
    assert {name: len(arm.history) for name, arm in found.arms.items()} == {WARP: 16, SINGLE: 8, REINFORCE: 16}
    assert {name: arm.steps for name, arm in found.arms.items()} == {WARP: 8, SINGLE: 4, REINFORCE: 8}
    assert arm_config(CONFIG, REINFORCE).model_dump(include={"I", "M", "T"}) == {"I": 1, "M": 1, "T": 8}
    assert all(len(measured.front) == len(ETAS) for arm in found.arms.values() for measured in arm.measured)


@pytest.mark.slow
def test_the_first_run_is_shared_and_made_once(found: Comparison) -> None:
    columns = ["step", "reward", "kl", "objective", "seconds"]
    first, single = (found.arms[arm].history.query("iteration == 1 and run == 1")[columns] for arm in (WARP, SINGLE))
    assert first.to_numpy().tolist() == single.to_numpy().tolist()
    loaded = found.arms[SINGLE].runs.set_index(["seed", "iteration"]).loaded
    assert loaded.to_dict() == {(0, 1): 1.0, (0, 2): 0.0, (1, 1): 1.0, (1, 2): 0.0}
    assert not found.arms[WARP].runs.loaded.any() and not found.arms[REINFORCE].runs.loaded.any()


@pytest.mark.slow
def test_the_seconds_of_all_steps_count_the_shared_run_once(found: Comparison) -> None:
    arms = {name: replace(arm, history=arm.history.assign(seconds=1.0)) for name, arm in found.arms.items()}
    assert replace(found, arms=arms).training_seconds == 16 + (8 - 4) + 16


@pytest.mark.slow
@pytest.mark.parametrize("arm", ARMS)
def test_an_arm_is_warp_with_its_loops_and_its_front(found: Comparison, arm: str) -> None:
    task, config = tiny.task(), arm_config(CONFIG, arm).replace(seed=1, dtype="float32")
    alone = warp(config, task, progress=False)
    rows = pareto_front(task.policy, alone.merged, ETAS, task, **evaluation_settings(config, task))
    measured = found.arms[arm].measured[1]
    assert [row["evaluation"] for row in rows] == measured.front
    if arm == WARP:
        settings = evaluation_settings(config, task)
        (end,) = pareto_front(task.policy, weights_of(alone.policy), [1.0], task, **settings)
        runs = [pareto_front(task.policy, one, [1.0], task, **settings)[0] for one in alone.ingredients]
        assert measured.end == end["evaluation"] and measured.unmerged == [row["evaluation"] for row in runs]
    else:
        assert not measured.unmerged and measured.end is None


@pytest.mark.slow
def test_the_policies_at_equal_kl_are_at_equal_kl(found: Comparison) -> None:
    for seed in range(CONFIG.n_seeds):
        fronts = [found.arms[arm].measured[seed].front for arm in ARMS]
        kl = common_kl(fronts)
        assert kl is not None and any(kl == e.kl_policy_reference.value for front in fronts for e in front)
        for arm in ARMS:
            eta, point = (found.matched(arm) or [])[seed]
            assert point.kl_policy_reference.value == pytest.approx(kl, rel=KL_TOLERANCE)
            assert 0 < eta <= 1


@pytest.mark.slow
@pytest.mark.parametrize("gate", [None, gates.gate])
def test_a_second_call_resumes(gate: Any, tmp_path: Path) -> None:
    config, task = CONFIG.replace(out_dir=str(tmp_path), n_seeds=1), tiny.task(gate=gate)
    first, again = (run_comparison(config, task, progress=False) for _ in range(2))
    assert all((arm.runs.loaded == 1).all() for arm in again.arms.values())
    assert again.to_json()["summary"] == first.to_json()["summary"]
    silent = {check.reason for check in first.checks if not check.applies}
    assert silent == (set() if gate else {"no-gate"}) and (first.gate is None) == (gate is None)


@pytest.mark.slow
def test_the_record_is_plain_json(found: Comparison) -> None:
    record = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert record["status"] == "ok" and set(record["summary"]) == set(ARMS)
    assert len(record["arms"][REINFORCE]["history"]) == 16
    runs = {(row["arm"], row["seed"], row["iteration"], row["run"]) for row in record["runs"]}
    first = {(WARP, seed, i, m) for seed in (0, 1) for i in (1, 2) for m in (1, 2)} | {
        (REINFORCE, 0, 1, 1),
        (REINFORCE, 1, 1, 1),
    }
    assert runs == first | {(SINGLE, 0, 2, 1), (SINGLE, 1, 2, 1)} and len(record["runs"]) == 12, "the shared is WARP's"
    kept = record["arms"][WARP]["measured"]
    assert [len(one["front"]) for one in kept] == [len(ETAS)] * 2 and kept[0]["matched"]["samples"]
    front = found.over_seeds(WARP, "reward_difference")
    assert [point["value"] for point in record["summary"][WARP]["reward_difference"]] == [e.value for e in front]


# Equal KL


def parabola(scale: float) -> Callable[[float], Evaluation]:
    return lambda eta: evaluation(eta, scale * eta**2)


def test_the_point_at_a_kl_is_found_on_a_bent_front() -> None:
    assert eta_at(1.0, {eta: 4 * eta**2 for eta in ETAS}) == pytest.approx(0.5)
    asked: list[float] = []

    def steeper(eta: float) -> Evaluation:
        asked.append(eta)
        return evaluation(eta, 10 * eta**3)

    eta, point = at_kl(0.01, [evaluation(eta, 10 * eta**3) for eta in ETAS], steeper)
    assert asked == [] and eta == ETAS[0], "a point of the front that lies there is taken"
    eta, point = at_kl(0.04, [evaluation(eta, 10 * eta**3) for eta in ETAS], steeper)
    assert point.kl_policy_reference.value == pytest.approx(0.04, rel=KL_TOLERANCE)
    assert eta == pytest.approx(0.004 ** (1 / 3), rel=0.05) and 1 <= len(asked) <= SEARCH_STEPS


def test_a_kl_that_no_search_finds_gives_the_nearest_try() -> None:
    asked: list[float] = []

    def leaping(eta: float) -> Evaluation:
        asked.append(eta)
        return evaluation(eta, 1.2 if eta > 0.3 else 0.2)

    _, point = at_kl(1.0, [leaping(eta) for eta in ETAS], leaping)
    assert point.kl_policy_reference.value == 1.2 and len(asked) == len(ETAS) + SEARCH_STEPS


def test_the_common_kl_is_the_largest_with_text_that_reads() -> None:
    near, far = ([parabola(scale)(eta) for eta in ETAS] for scale in (4.0, 16.0))
    assert common_kl([near, far]) == pytest.approx(4.0)
    broken = [*far[:2], *(evaluation(1.0, 16 * eta**2, 500.0) for eta in ETAS[2:])]
    assert common_kl([near, broken]) == pytest.approx(1.0)
    assert common_kl([near, [evaluation(1.0, 1.0, 500.0) for _ in ETAS]]) is None
    alike = [evaluation(1.0, 1.0, 50.0, 0.05) for _ in ETAS]
    assert common_kl([near, alike]) is None, "one sentence after every prompt is not text that reads"


def test_an_advantage_is_paired_by_seed() -> None:
    ahead = comparison(warp=[DOUBLE] * 3, single=[LINE] * 3, plain=[LINE] * 3)
    assert ahead.advantage(WARP, REINFORCE) == mean_interval([2.0] * 3)
    shifted: list[Any] = [[(gain + lift, kl) for gain, kl in LINE] for lift in (0.0, 5.0, -3.0)]
    paired = comparison(warp=[[(g + 1, kl) for g, kl in front] for front in shifted], single=shifted, plain=shifted)
    assert paired.advantage(WARP, SINGLE) == mean_interval([1.0] * 3), "what the seeds share is no noise"
    assert paired.gain_at_equal_kl(SINGLE) == mean_interval([2.0, 7.0, -1.0])


def test_an_advantage_of_one_training_is_paired_by_prompt() -> None:
    alone = comparison(warp=[DOUBLE], single=[LINE], plain=[LINE])
    advantage = alone.advantage(WARP, REINFORCE)
    assert advantage.value == pytest.approx(2.0) and 0 <= advantage.high - advantage.low < 1e-9


def test_without_a_common_kl_in_every_seed_nothing_is_compared() -> None:
    mixed = comparison(warp=[DOUBLE] * 2, single=[LINE] * 2, plain=[LINE] * 2)
    mixed.arms[REINFORCE].measured[1].matched = None
    assert mixed.matched(REINFORCE) is None and math.isnan(mixed.advantage(WARP, REINFORCE).value)
    assert math.isnan(mixed.gain_at_equal_kl(REINFORCE).value) and mixed.advantage(WARP, SINGLE).value == 2.0
