"""Fronts read at fixed KLs: interpolation in √KL, what is missing, intervals, Holm, files of an earlier version."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fronts import DOUBLE, FLAT, KLS, LINE, PROMPTS, SHORT, best_of, comparison, earlier, evaluation
from synthetic import GATE

from warp_nb.files import write_json
from warp_nb.measure.estimates import mean_interval, two_sided_p
from warp_nb.studies.comparison import REINFORCE, RLOO, SINGLE, WARP
from warp_nb.studies.equal_kl import (
    AT_SFT,
    DECLARED,
    DECLARED_KL,
    FRONTS,
    GRID,
    OWN_RUNS,
    RESAMPLES,
    Points,
    along_grid,
    at_kl,
    estimated,
    points_of,
    points_of_best,
    read,
    resampling,
    summary_of_record,
)
from warp_nb.studies.result_files import read_result_of

PLACE = GRID.index(DECLARED_KL)


def test_what_is_fixed_before_a_run() -> None:
    assert GRID == (1, 2, 4, 8) and DECLARED_KL == 4 and set(DECLARED) == {SINGLE, REINFORCE, OWN_RUNS}
    assert set(FRONTS) == {WARP, RLOO, *DECLARED} and RESAMPLES == 2000


# Reading


@pytest.mark.parametrize("kl", [0.04, 1.0, 3.0, 16.0])
def test_a_front_that_is_linear_in_the_root_is_read_exactly(kl: float) -> None:
    assert at_kl(KLS, np.sqrt(KLS), kl) == pytest.approx(math.sqrt(kl))
    assert at_kl(KLS, 1 - 0.1 * np.sqrt(KLS), kl, start=1.0) == pytest.approx(1 - 0.1 * math.sqrt(kl))


def test_between_two_points_the_root_counts_and_not_the_kl() -> None:
    assert at_kl([4.0, 16.0], [1.0, 3.0], 9.0) == pytest.approx(2.0)
    assert at_kl([4.0], [1.0], 1.0) == pytest.approx(0.5), "from θ_sft at KL 0"


def test_a_front_is_never_extrapolated() -> None:
    assert at_kl(KLS, np.sqrt(KLS), 16.0) == 4.0 and math.isnan(at_kl(KLS, np.sqrt(KLS), 16.001))
    assert math.isnan(at_kl([math.nan], [1.0], 1.0))


def test_a_front_that_turns_back_is_read_where_it_first_gets_there() -> None:
    assert at_kl([4.0, 1.0, 9.0], [2.0, 0.0, 6.0], 1.0) == pytest.approx(1.0)
    assert at_kl([4.0, 1.0, 9.0], [2.0, 0.0, 6.0], 6.25) == pytest.approx(4.5)


def test_many_fronts_are_read_at_once() -> None:
    kls, values = np.stack([np.array(KLS), 2 * np.array(KLS)]), np.stack([np.sqrt(KLS)] * 2)
    assert at_kl(kls, values, 4.0) == pytest.approx([2.0, math.sqrt(2)])
    assert at_kl(kls, values, np.array([4.0, 100.0]))[0] == pytest.approx(2.0)


def test_the_runs_of_a_training_are_read_one_by_one_and_averaged() -> None:
    low, high = ({"kl": KLS, "gain": [scale * math.sqrt(kl) for kl in KLS]} for scale in (1, 3))
    assert read([Points(low), Points(high)], "gain", GRID) == pytest.approx([2 * math.sqrt(kl) for kl in GRID])
    short = Points({"kl": [2.0], "gain": [1.0]})
    assert np.isnan(read([Points(low), short], "gain", GRID)).tolist() == [False, False, True, True]


# Intervals


def front(points: Any) -> list[list[Points]]:
    return [[points_of([evaluation(*point) for point in one])] for one in points]


def test_one_training_is_resampled_over_prompts_reward_and_kl_together() -> None:
    rng = np.random.default_rng(1)
    kls, gains = (np.abs(rng.normal(size=(1, 50))) + 5, rng.normal(1.0, 1.0, size=(1, 50)))
    one = Points({"kl": kls.mean(1), "gain": gains.mean(1)}, {"kl": kls, "gain": gains})
    found = along_grid([[one]], "gain")[PLACE]
    drawn = np.random.default_rng(0).multinomial(50, np.full(50, 1 / 50), RESAMPLES)
    expected = [
        math.sqrt(DECLARED_KL / np.repeat(kls[0], times).mean()) * np.repeat(gains[0], times).mean() for times in drawn
    ]
    assert found.estimate.value == pytest.approx(math.sqrt(DECLARED_KL / kls.mean()) * gains.mean())
    assert [found.estimate.low, found.estimate.high] == pytest.approx(np.quantile(expected, [0.025, 0.975]).tolist())
    assert found.p == pytest.approx(2 * (sum(one <= 0 for one in expected) + 1) / (RESAMPLES + 1))


def test_two_arms_of_one_training_share_the_resampled_prompts() -> None:
    shared = np.random.default_rng(2).normal(size=(len(KLS), PROMPTS))
    kls = np.repeat(np.array(KLS)[:, None], PROMPTS, 1)

    def made(lift: float) -> Points:
        gains = shared + lift * kls
        return Points({"kl": KLS, "gain": gains.mean(1)}, {"kl": kls, "gain": gains})

    one, other = made(1.0), made(0.5)
    apart = along_grid([[one]], "gain")[PLACE].estimate
    paired = along_grid([[one]], "gain", [[other]])[PLACE]
    assert apart.high - apart.low > 0.1 and paired.estimate.high - paired.estimate.low < 1e-9
    assert paired.estimate.value == pytest.approx(2.0) and paired.p == pytest.approx(2 / (RESAMPLES + 1))


def test_a_resample_that_misses_the_kl_leaves_no_interval() -> None:
    edge = [(1.0, 4.0)]
    found = along_grid(front([edge]), "gain")
    assert found[PLACE].estimate.value == pytest.approx(1.0) and not found[PLACE].estimate.known
    assert math.isnan(found[PLACE].p) and found[0].estimate.known and math.isnan(found[3].estimate.value)


def test_the_resampled_prompts_are_the_same_in_every_call() -> None:
    assert resampling(20) is resampling(20) and resampling(20).shape == (RESAMPLES, 20)
    assert resampling(20).sum(1) == pytest.approx(np.ones(RESAMPLES))


def test_several_trainings_are_the_units_and_arms_are_paired_by_seed() -> None:
    lifts = (0.0, 5.0, -3.0)
    shifted = [[(gain + lift * math.sqrt(kl), kl) for gain, kl in LINE] for lift in lifts]
    found = along_grid(front(shifted), "gain")[PLACE]
    assert found.estimate == mean_interval([2 + 2 * lift for lift in lifts])
    assert found.p == two_sided_p([2 + 2 * lift for lift in lifts])
    lead = along_grid(
        front([[(gain + math.sqrt(kl), kl) for gain, kl in one] for one in shifted]), "gain", front(shifted)
    )
    assert lead[PLACE].estimate.value == pytest.approx(2.0) and lead[PLACE].estimate.low == pytest.approx(2.0)


def test_what_one_training_lacks_all_lack() -> None:
    found = along_grid(front([LINE, SHORT]), "gain")
    assert [math.isnan(one.estimate.value) for one in found] == [False, True, True, True]


def test_the_p_of_one_value_is_two_sided_and_never_zero() -> None:
    assert estimated([1.0], [0.5, 1.0, 2.0]).p == pytest.approx(0.5)
    assert estimated([0.0], [-1.0, 1.0, 2.0]).p == 1.0 and math.isnan(estimated([1.0]).p)


# The summary


def summary_of(warp: Any, single: Any, plain: Any, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = comparison(warp, single, plain, **more).equal_kl
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    return found


def test_the_summary_has_every_front_at_every_kl() -> None:
    found = summary_of([DOUBLE] * 3, [LINE] * 3, [SHORT] * 3, rloo=[FLAT] * 3, judged=0.5)
    assert set(found["fronts"]) == set(FRONTS) and found["trainings"] == 3 and not found["earlier"]
    gains = {name: [one["value"] for one in rows["gain"]] for name, rows in found["fronts"].items()}
    assert gains[WARP] == pytest.approx([2 * math.sqrt(kl) for kl in GRID])
    assert gains[OWN_RUNS] == pytest.approx([math.sqrt(kl) for kl in GRID]) and gains[RLOO] == pytest.approx([0.01] * 4)
    assert gains[REINFORCE] == [1.0, None, None, None]
    judge, gap, variety = (found["fronts"][WARP][name][PLACE]["value"] for name in ("judge", "gap", "variety"))
    assert (judge, gap, variety) == pytest.approx((2.0, 2.0 / GATE.spread, 0.9))
    assert found["against"][SINGLE]["gain"][PLACE]["value"] == pytest.approx(2.0)
    assert found["against"][SINGLE]["judge"][PLACE]["value"] == pytest.approx(1.0)


def test_the_declared_comparisons_are_corrected_together() -> None:
    spread = [[(gain * scale, kl) for gain, kl in LINE] for scale in (1.0, 1.3, 1.7)]
    single = [[(gain * scale, kl) for gain, kl in LINE] for scale in (0.9, 1.19, 1.61)]
    rows = {one["name"]: one for one in summary_of(spread, single, [SHORT] * 3)["declared"]}
    assert rows[REINFORCE] == {"name": REINFORCE, "p": None, "p_holm": None}, "a missing one counts as 1"
    p = two_sided_p([2 * (1.0 - 0.9), 2 * (1.3 - 1.19), 2 * (1.7 - 1.61)])
    assert rows[SINGLE]["p"] == pytest.approx(p) and rows[SINGLE]["p_holm"] == pytest.approx(3 * p)
    assert rows[OWN_RUNS]["p_holm"] == pytest.approx(min(1.0, 2 * rows[OWN_RUNS]["p"]))


def test_single_policies_stand_beside_the_front_at_their_own_kl() -> None:
    end, four, sixteen = summary_of([LINE], [LINE], [LINE], judged=0.5)["points"]
    assert (end["name"], end["n"], end["kl"]["value"]) == ("end", None, 6.25)
    assert end["gain"]["value"]["value"] == end["gain"]["front"]["value"] == 2.5
    assert (four["n"], sixteen["n"]) == (4, 16) and four["kl"]["value"] == pytest.approx(math.log(4) - 0.75)
    front_there = math.sqrt(math.log(16) - 15 / 16)
    assert sixteen["gain"]["front"]["value"] == pytest.approx(front_there)
    assert sixteen["gain"]["difference"]["value"] == pytest.approx(1.5 - front_there)
    assert sixteen["gain"]["difference"]["low"] < 1.5 - front_there < sixteen["gain"]["difference"]["high"]
    assert sixteen["judge"]["difference"]["value"] == pytest.approx(0.75 - front_there / 2)


def test_best_of_n_keeps_its_bound_in_every_resample() -> None:
    points = points_of_best(best_of([(4, 0.5), (16, 1.5)]))
    drawn = points.mean("kl", resampling(PROMPTS))
    assert drawn == pytest.approx(np.broadcast_to(points.mean("kl"), drawn.shape)) and "judge" not in points.prompts


def test_the_gap_of_best_of_n_is_taken_off_where_it_reaches() -> None:
    found = summary_of([DOUBLE] * 3, [LINE] * 3, [SHORT] * 3, judged=0.5)
    roots = [math.sqrt(math.log(n) - (n - 1) / n) for n in (4, 16)]
    expected = 0.5 * (0.5 + (1.5 - 0.5) * (1 - roots[0]) / (roots[1] - roots[0]))
    excess = [one["value"] for one in found["excess"][WARP]]
    assert excess == [pytest.approx((1.0 - expected) / GATE.spread), None, None, None]
    assert found["excess"].keys() == found["fronts"].keys()
    made = comparison([DOUBLE], [LINE], [LINE], judged=0.5)
    made.arms[WARP].measured[0].best.clear()
    assert set(map(str, made.equal_kl["excess"].values())) == {"[]"}


def test_a_judge_that_tells_no_texts_apart_shows_no_gap() -> None:
    made = replace(comparison([LINE], [LINE], [LINE], judged=0.5), judge_gate=replace(GATE, spread=0.0))
    assert {one["value"] for one in made.equal_kl["fronts"][WARP]["gap"]} == {None}


def test_without_a_judge_its_figures_are_unknown() -> None:
    found = summary_of([LINE], [LINE], [LINE])
    nothing = {"value": None, "low": None, "high": None}
    for rows in found["fronts"].values():
        assert rows.keys() == AT_SFT.keys() and rows["judge"] == rows["gap"] == [nothing] * len(GRID)


# Files of an earlier version


def test_a_file_of_an_earlier_version_is_compared_from_its_means() -> None:
    made = comparison([DOUBLE] * 3, [LINE] * 3, [FLAT] * 3)
    del made.arms[RLOO]
    old, new = summary_of_record(earlier(made)), made.equal_kl
    assert old["earlier"] and set(old["fronts"]) == {WARP, SINGLE, REINFORCE} and len(old["points"]) == 1
    for name, rows in old["fronts"].items():
        assert rows["gain"] == new["fronts"][name]["gain"] and rows["variety"] == new["fronts"][name]["variety"]
    assert old["points"][0] == new["points"][0]


def test_one_training_of_an_earlier_version_has_values_without_intervals() -> None:
    made = comparison([DOUBLE], [LINE], [FLAT])
    old = summary_of_record(earlier(made))
    gains = old["fronts"][WARP]["gain"]
    assert [one["value"] for one in gains] == [one["value"] for one in made.equal_kl["fronts"][WARP]["gain"]]
    assert all(one["low"] is one["high"] is None for one in gains)
    assert [row["p"] for row in old["declared"]] == [None] * 3


def test_the_reader_takes_both_versions_and_keeps_no_old_conclusion(tmp_path: Path) -> None:
    made, path = comparison([DOUBLE], [LINE], [FLAT]), tmp_path / "exp5.result.json"
    old = earlier(made) | {"advantage": {SINGLE: {"value": 0.2}}}
    old["summary"][WARP]["gain_at_equal_kl"] = {"value": 2.4}
    write_json(path, old)
    found = read_result_of("comparison", path)
    assert "advantage" not in found and "gain_at_equal_kl" not in found["summary"][WARP]
    assert found["status"] == "ok" and found["equal_kl"]["earlier"] and found["conclusion"] == []
    write_json(path, made.to_json() | {"conclusion": ["вывод"]})
    found = read_result_of("comparison", path)
    assert found["conclusion"] == ["вывод"] and not found["equal_kl"]["earlier"]


@pytest.mark.parametrize(
    ("harm", "named"),
    [
        (lambda arms: arms.pop(WARP), "n_seeds trainings"),
        (lambda arms: arms[SINGLE]["measured"].pop(), "at least 1 item"),
        (lambda arms: arms[SINGLE]["measured"].append(arms[WARP]["measured"][0]), "n_seeds trainings"),
        (lambda arms: arms[WARP]["measured"][0].pop("end"), "end"),
        (lambda arms: arms[WARP]["measured"][0]["front"].clear(), "at least 1 item"),
        (lambda arms: arms[WARP]["measured"][0]["front"][0]["kl_policy_reference"].update(value=None), "value"),
        (lambda arms: arms[WARP]["measured"][0]["front"][0].update(variety_reference=0), "greater than 0"),
    ],
)
def test_a_harmed_file_of_an_earlier_version_has_failed(harm: Any, named: str, tmp_path: Path) -> None:
    record = earlier(comparison([DOUBLE], [LINE], [FLAT]))
    harm(record["arms"])
    write_json(tmp_path / "exp5.result.json", record)
    found = read_result_of("comparison", tmp_path / "exp5.result.json")
    assert found["status"] == "failed" and named in found["error"]
