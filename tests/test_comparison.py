"""Experiment 5: the arms spend the same steps, share what is the same, and are compared at equal KL."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
from test_planted_faults import PAIRS

from warp_nb.config import ExperimentConfig
from warp_nb.measure.evaluation import Estimate, Evaluation
from warp_nb.notebook import comparison_cells as comparison_page
from warp_nb.studies import comparison
from warp_nb.studies.comparison import (
    ARMS,
    ETAS,
    PLAIN,
    SINGLE,
    WARP,
    Comparison,
    Measured,
    arm_config,
    at_kl,
    common_kl,
    eta_at,
    run_comparison,
)

CONFIG = ExperimentConfig(
    T=2, lr=3e-3, warmup_steps=1, mu=0.1, eta=0.5, batch_size=4, max_new_tokens=4, n_eval_prompts=16, n_seeds=2
)


@pytest.fixture(autouse=True)
def own_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(comparison, "gate_pairs", lambda source: PAIRS)


@pytest.fixture(scope="module")
def found() -> Comparison:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(comparison, "gate_pairs", lambda source: PAIRS)
        return run_comparison(CONFIG, tiny.task(), progress=False)


def test_every_arm_has_its_steps(found: Comparison) -> None:
    assert {name: len(arm.history) for name, arm in found.arms.items()} == {WARP: 16, SINGLE: 8, PLAIN: 16}
    assert {name: arm.steps for name, arm in found.arms.items()} == {WARP: 8, SINGLE: 4, PLAIN: 8}
    assert arm_config(CONFIG, PLAIN).model_dump(include={"I", "M", "T"}) == {"I": 1, "M": 1, "T": 8}
    assert all(len(measured.front) == len(ETAS) for arm in found.arms.values() for measured in arm.measured)


def test_the_first_run_is_shared_and_made_once(found: Comparison) -> None:
    columns = ["step", "reward", "kl", "objective"]
    first, single = (found.arms[arm].history.query("iteration == 1 and run == 1")[columns] for arm in (WARP, SINGLE))
    assert first.to_numpy().tolist() == single.to_numpy().tolist()
    loaded = found.arms[SINGLE].runs.set_index(["seed", "iteration"]).loaded
    assert loaded.to_dict() == {(0, 1): 1.0, (0, 2): 0.0, (1, 1): 1.0, (1, 2): 0.0}


def test_the_seconds_of_all_steps_count_the_shared_run_once(found: Comparison) -> None:
    arms = {name: replace(arm, history=arm.history.assign(seconds=1.0)) for name, arm in found.arms.items()}
    assert replace(found, arms=arms).training_seconds == 16 + (8 - 4) + 16


def test_what_is_evaluated_is_what_it_is_called(found: Comparison) -> None:
    warped, single = (found.arms[arm].measured[0] for arm in (WARP, SINGLE))
    assert len(warped.unmerged) == CONFIG.M and warped.end is not None
    assert not single.unmerged and single.end is None
    kls = {one.kl_policy_reference.value for one in (*warped.unmerged, warped.front[-1], warped.end)}
    assert len(kls) == CONFIG.M + 2, "two of the policies are the same"


def test_the_policies_at_equal_kl_are_at_equal_kl(found: Comparison) -> None:
    for seed in range(CONFIG.n_seeds):
        fronts = [found.arms[arm].measured[seed].front for arm in ARMS]
        kl = common_kl(fronts)
        assert kl is not None and any(kl == e.kl_policy_reference.value for front in fronts for e in front)
        for arm in ARMS:
            eta, point = (found.matched(arm) or [])[seed]
            assert point.kl_policy_reference.value == pytest.approx(kl, rel=comparison.KL_TOLERANCE)
            assert 0 < eta <= 1


def test_a_second_call_goes_on(tmp_path: Path) -> None:
    config = CONFIG.replace(out_dir=str(tmp_path), n_seeds=1)
    first, again = (run_comparison(config, tiny.task(), progress=False) for _ in range(2))
    assert all((arm.runs.loaded == 1).all() for arm in again.arms.values())
    assert again.to_json()["summary"] == first.to_json()["summary"]


def test_the_record_is_plain_json(found: Comparison, tmp_path: Path) -> None:
    comparison_page.save(found, "")
    comparison_page.save(found, str(tmp_path / "r.json"))
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert record["status"] == "ok" and set(record["summary"]) == set(ARMS) and record["conclusion"]
    assert len(record["arms"][PLAIN]["history"]) == 16
    assert len(record["runs"]) == 2 * (4 + 1 + 1), "the shared run is counted once"
    kept = record["arms"][WARP]["measured"]
    assert [len(one["front"]) for one in kept] == [len(ETAS)] * 2 and kept[0]["matched"]["samples"]


def test_figures_and_tables_are_made(found: Comparison) -> None:
    assert len(comparison_page.plane(found).axes[0].containers) == 4
    assert comparison_page.front_table(found).data.count("<tr>") == len(ARMS) * len(ETAS)
    assert comparison_page.equal_kl_table(found).data.count("<tr>") == len(ARMS) * CONFIG.n_seeds
    for arm in ARMS:
        assert len(comparison_page.curves(found, arm).axes) == 3
        assert f"Награда {arm}" in comparison_page.samples(found, arm).data


# Made-up fronts


def around(value: float, half: float = 0.1) -> Estimate:
    return Estimate(value, value - half, value + half)


def evaluation(gain: float, kl: float, perplexity: float = 50.0, variety: float = 0.58) -> Evaluation:
    from synthetic import HELD_OUT, VARIETY

    measures: dict[str, Any] = HELD_OUT | {
        "reward_policy": around(gain),
        "reward_difference": around(gain),
        "kl_policy_reference": around(kl, 0.01),
        "perplexity_policy": around(perplexity, 1.0),
    }
    rewards = [gain + (-1) ** prompt * 0.01 for prompt in range(16)]
    return Evaluation(**measures, **VARIETY | {"variety_policy": variety}, samples=[], rewards_policy=rewards)


Front = list[tuple[float, ...]]
LINE: Front = [(0.2, 0.5), (0.5, 1.0), (1.0, 2.0), (1.5, 3.0), (2.0, 4.0)]
FLAT: Front = [(0.01, kl) for _, kl in LINE]
DOUBLE: Front = [(2 * gain, kl) for gain, kl in LINE]
SALAD: Front = [(gain, kl, 500.0) for gain, kl in LINE]


def made(found: Comparison, warp: list[Front], single: list[Front], plain: list[Front]) -> Comparison:
    """`found` with fronts of (gain, KL, perplexity, variety) at ETAS, a list a seed, matched at their ends."""

    def measured(front: Front) -> Measured:
        points = [evaluation(*point) for point in front]
        return Measured(points, matched=(1.0, points[-1]), unmerged=[evaluation(0.7, 4.0)] * 2)

    fronts = {WARP: warp, SINGLE: single, PLAIN: plain}
    arms = {name: replace(found.arms[name], measured=[measured(front) for front in fronts[name]]) for name in fronts}
    return replace(found, arms=arms, seeds=list(range(len(warp))))


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
    assert point.kl_policy_reference.value == pytest.approx(0.04, rel=comparison.KL_TOLERANCE)
    assert eta == pytest.approx(0.004 ** (1 / 3), rel=0.05) and 1 <= len(asked) <= comparison.SEARCH_STEPS


def test_the_common_kl_is_the_largest_with_text_that_reads() -> None:
    near, far = ([parabola(scale)(eta) for eta in ETAS] for scale in (4.0, 16.0))
    assert common_kl([near, far]) == pytest.approx(4.0)
    broken = [*far[:2], *(evaluation(1.0, 16 * eta**2, 500.0) for eta in ETAS[2:])]
    assert common_kl([near, broken]) == pytest.approx(1.0)
    assert common_kl([near, [evaluation(1.0, 1.0, 500.0) for _ in ETAS]]) is None
    alike = [evaluation(1.0, 1.0, 50.0, 0.05) for _ in ETAS]
    assert common_kl([near, alike]) is None, "one sentence after every prompt is not text that reads"


def test_who_is_ahead_is_said_only_where_the_seeds_agree(found: Comparison) -> None:
    ahead = made(found, warp=[DOUBLE] * 3, single=[LINE] * 3, plain=[LINE] * 3)
    assert ahead.advantage(WARP, PLAIN).value == pytest.approx(2.0)
    noisy = made(found, warp=[LINE, DOUBLE, LINE], single=[LINE] * 3, plain=[DOUBLE, LINE, LINE])
    behind = made(found, warp=[LINE] * 2, single=[DOUBLE] * 2, plain=[LINE] * 2)
    said = [comparison_page.say_equal_kl(one) for one in (ahead, noisy, behind)]
    assert "впереди WARP" in said[0] and "неотличима от нуля" in said[1] and "WARP позади" in said[2]
    assert "4 прогона по 2, всего 8 шагов" in comparison_page.title(found, WARP)


def test_one_training_is_compared_by_prompts_and_says_so(found: Comparison) -> None:
    alone = made(found, warp=[DOUBLE], single=[LINE], plain=[LINE])
    advantage = alone.advantage(WARP, PLAIN)
    assert advantage.value == pytest.approx(2.0) and 0 <= advantage.high - advantage.low < 0.1
    assert "С другим сидом" in comparison_page.say_seeds(alone)


def test_without_a_common_kl_nobody_is_ahead(found: Comparison) -> None:
    mixed = made(found, warp=[DOUBLE], single=[LINE], plain=[LINE])
    for arm in mixed.arms.values():
        arm.measured[0].matched = None
    assert math.isnan(mixed.advantage(WARP, PLAIN).value) and "не нашлось" in comparison_page.say_equal_kl(mixed)
    assert "не нашлось" in comparison_page.samples(mixed, PLAIN).data


# Conclusions


def test_a_gain_in_word_salad_is_no_gain(found: Comparison) -> None:
    late = [*LINE[:2], *SALAD[2:]]
    mixed = made(found, warp=[SALAD], single=[LINE], plain=[late])
    assert "перестаёт быть похож на отзыв уже при η = 0,1" in comparison_page.say_arm(mixed, WARP)
    assert "выше, чем у SFT" in comparison_page.say_arm(mixed, SINGLE)
    told = comparison_page.say_arm(mixed, PLAIN)
    assert "При η = 0,25 прирост +0,5" in told and "улучшением считать нельзя" in told
    assert "текст на отзыв не похож: при η = 1 перплексия изменилась больше чем в 2 раза, 500 против" in told
    several = made(found, warp=[late, LINE], single=[LINE] * 2, plain=[LINE] * 2)
    assert "лишь у 1 из 2 сидов: при η = 1 в худшем случае перплексия изменилась" in comparison_page.say_arm(
        several, WARP
    )
    assert "портится текст" in comparison_page.say_why(mixed)


def test_text_that_does_not_read_is_told_by_what_is_wrong(found: Comparison) -> None:
    alike: Front = [*LINE[:-1], (2.0, 4.0, 50.0, 0.1)]
    alone = made(found, warp=[alike], single=[LINE], plain=[LINE])
    told = comparison_page.say_arm(alone, WARP)
    assert "при η = 1 к разным началам дописано похожее, во всех продолжениях вместе разных биграмм 10" in told
    assert comparison_page.say_reading(alone, WARP, -1).startswith("нет: к разным началам дописано похожее")
    assert comparison_page.say_reading(alone, WARP, 0) == "да"
    several = made(found, warp=[alike, LINE], single=[LINE] * 2, plain=[LINE] * 2)
    assert comparison_page.say_reading(several, WARP, -1).startswith("у 1 из 2 сидов: в худшем случае к разным")
    none = made(found, warp=[alike] * 2, single=[LINE] * 2, plain=[LINE] * 2)
    assert "текст на отзыв не похож: при η = 1 в худшем случае к разным" in comparison_page.say_arm(none, WARP)
    assert comparison_page.say_reading(none, WARP, -1).startswith("нет: в худшем случае")
    mended = made(found, warp=[[*LINE[:3], SALAD[3], LINE[4]]], single=[LINE], plain=[LINE])
    assert "при η = 0,75 перплексия изменилась" in comparison_page.say_arm(mended, WARP)


def test_the_sign_of_a_gain_is_said(found: Comparison) -> None:
    mixed = made(found, warp=[FLAT], single=[[(-gain, kl) for gain, kl in LINE]], plain=[LINE])
    assert "неотличим от нуля" in comparison_page.say_arm(mixed, WARP)
    assert "ниже, чем у SFT" in comparison_page.say_arm(mixed, SINGLE)


@pytest.mark.parametrize(
    ("rate", "seeds", "said"),
    [
        (0.01, 1, "потерян при слиянии. На отложенных началах у прогонов последней итерации он +0,7"),
        (0.01, 3, "потерян при слиянии"),
        (-0.01, 1, "падала уже в самих прогонах"),
        (0.0, 1, "неотличимо от нуля"),
    ],
)
def test_where_there_is_no_gain_the_runs_say_why(found: Comparison, rate: float, seeds: int, said: str) -> None:
    uneven = [[(gain * (-2) ** seed, kl) for gain, kl in FLAT] for seed in range(seeds)]
    lost = made(found, warp=uneven, single=[LINE] * seeds, plain=[LINE] * seeds)
    noise = [0.001, -0.001, -0.001, 0.001] * 25
    rows = [
        {"seed": seed, "iteration": 1, "run": run, "step": step + 1, "reward": rate * step + noise[step] * (1 + seed)}
        for seed in range(seeds)
        for run in (1, 2)
        for step in range(100)
    ]
    warped = replace(lost.arms[WARP], history=pd.DataFrame(rows))
    lost = replace(lost, arms=lost.arms | {WARP: warped}, config=lost.config.replace(T=100))
    assert said in comparison_page.say_why(lost)
    assert comparison_page.say_why(made(found, warp=[LINE], single=[LINE], plain=[LINE])) == ""
