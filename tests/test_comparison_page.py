"""What the notebook of experiment 5 shows, on made-up fronts: tables, figures, a conclusion by what was measured."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fronts import DOUBLE, FLAT, LINE, SALAD, Front, comparison
from pages import records
from synthetic import result

from warp_nb.notebook import comparison_page
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.experiment_page import save
from warp_nb.studies.comparison import ARMS, ETAS, REINFORCE, SINGLE, WARP, Comparison

LATE = [*LINE[:2], *SALAD[2:]]
ALIKE: Front = [*LINE[:-1], (2.0, 4.0, 50.0, 0.1)]
TITLES = {
    WARP: "WARP, 4 прогона по 2, всего 8 шагов",
    SINGLE: "M = 1, 2 прогона по 2, всего 4 шага",
    REINFORCE: "REINFORCE, один прогон, 8 шагов",
}


def said(result: Comparison, begin: str) -> str:
    """The only paragraph of the conclusion that begins so."""
    (paragraph,) = [one for one in conclude(result) if one.startswith(begin)]
    return paragraph


def of_arm(result: Comparison, arm: str) -> str:
    return said(result, f"**{TITLES[arm]}**: ")


# Tables and figures


def test_the_front_table_has_every_point_of_every_arm() -> None:
    rows = records(comparison_page.front_table(comparison([LINE], [LATE], [ALIKE])).data)
    assert [(row["Способ"], row["η"]) for row in rows] == [
        (arm, eta) for arm in ARMS for eta in ("0,1", "0,25", "0,5", "0,75", "1")
    ]
    assert rows[4]["Прирост награды"].startswith("+2,00 (95\u00a0% интервал от\u00a01,90")
    assert rows[4]["KL(политика‖sft), нат"].startswith("4,0000 (95") and rows[4]["Перплексия по θ_sft"] == "50"
    reading = [row["Похож на отзыв"] for row in rows]
    assert reading[:7] == ["да"] * 7 and reading[10:14] == ["да"] * 4
    assert reading[7] == "нет: перплексия изменилась больше чем в 2 раза, 500 против 50 у θ_sft"
    assert reading[14].startswith("нет: к разным началам дописано похожее, во всех продолжениях вместе разных биграмм")


def test_the_table_at_equal_kl_has_a_row_an_arm_and_seed() -> None:
    rows = records(comparison_page.equal_kl_table(comparison([DOUBLE, LINE], [LINE] * 2, [LINE] * 2)).data)
    assert [(row["Способ"], row["Сид"], row["Шагов"]) for row in rows] == [
        (arm, seed, steps) for arm, steps in ((WARP, "8"), (SINGLE, "4"), (REINFORCE, "8")) for seed in "01"
    ]
    assert [row["Прирост награды"][:5] for row in rows[:3]] == ["+4,00", "+2,00", "+2,00"]
    assert {row["η"] for row in rows} == {"1"} and {row["KL(политика‖sft), нат"] for row in rows} == {"4"}


def test_samples_are_those_at_the_common_kl() -> None:
    found = comparison([LINE], [LINE], [LINE])
    point = found.arms[SINGLE].measured[0].matched
    sample = {"prompt": "p", "reference": "r", "policy": "y", "reward_reference": 0.5, "reward_policy": -1.5}
    found.arms[SINGLE].measured[0].matched = (1.0, replace(point[1], samples=[sample]))  # type: ignore[index]
    (row,) = records(comparison_page.arm_samples(found, SINGLE).data)
    assert row == {"Начало": "p", "SFT": "r", "Награда SFT": "0,5", SINGLE: "y", f"Награда {SINGLE}": "−1,5"}


def test_the_plane_shows_every_front_and_the_end() -> None:
    (ax,) = comparison_page.plane(comparison([LINE], [FLAT], [DOUBLE])).axes
    drawn = [container.lines[0].get_xydata().tolist() for container in ax.containers]
    assert drawn[:3] == [[[0.0, 0.0], *([kl, gain] for gain, kl in front)] for front in (LINE, FLAT, DOUBLE)]
    assert drawn[3] == [[2.0, 1.0]], "the end of WARP, between its fronts' points"


def test_curves_of_an_arm_are_its_runs() -> None:
    found = comparison([LINE], [LINE], [LINE])
    counts = {arm: [len(ax.lines) for ax in comparison_page.arm_curves(found, arm).axes] for arm in ARMS}
    assert counts == {WARP: [4] * 3, SINGLE: [2] * 3, REINFORCE: [1] * 3}


def test_the_result_is_saved_with_its_conclusion(tmp_path: Path) -> None:
    found = comparison([LINE], [LINE], [LINE])
    save(found, "")
    save(found, str(tmp_path / "r.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert record["status"] == "ok" and record["conclusion"] == conclude(found)


# Who is ahead


@pytest.mark.parametrize(
    ("warp", "plain", "words"),
    [
        ([DOUBLE] * 3, [LINE] * 3, "впереди WARP, +2 ("),
        ([LINE, DOUBLE, LINE], [DOUBLE, LINE, LINE], "разность неотличима от нуля, 0"),
        ([LINE] * 2, [DOUBLE] * 2, "WARP позади, −2 ("),
    ],
)
def test_who_is_ahead_is_said_only_where_the_seeds_agree(warp: list[Front], plain: list[Front], words: str) -> None:
    told = said(comparison(warp, [LINE] * len(warp), plain), "При одной и той же KL, 4 ната (у каждого сида своя)")
    against = [part for part in told.split("WARP против ") if part.startswith(f"«{TITLES[REINFORCE]}»: ")]
    assert len(against) == 1 and against[0].startswith(f"«{TITLES[REINFORCE]}»: {words}")
    assert f"WARP против «{TITLES[SINGLE]}»: " in told


@pytest.mark.parametrize(
    ("count", "begin"),
    [(1, "Обучение выполнено один раз: "), (2, "Каждый способ обучен 2 раза с "), (5, "Каждый способ обучен 5 раз с ")],
)
def test_what_the_intervals_cover_is_said(count: int, begin: str) -> None:
    found = comparison([DOUBLE] * count, [LINE] * count, [LINE] * count)
    assert conclude(found)[-1].startswith(begin)
    assert ("(у каждого сида своя)" in said(found, "При одной и той же KL, 4 ната")) == (count > 1)


def test_without_a_common_kl_nobody_is_ahead() -> None:
    mixed = comparison(warp=[DOUBLE], single=[LINE], plain=[LINE])
    for arm in mixed.arms.values():
        arm.measured[0].matched = None
    assert (
        said(mixed, comparison_page.NO_COMMON_KL) == f"{comparison_page.NO_COMMON_KL} Сравнить награды поэтому нельзя."
    )
    for shown in (comparison_page.arm_samples(mixed, REINFORCE), comparison_page.equal_kl_table(mixed)):
        assert comparison_page.NO_COMMON_KL in shown.data


def test_a_failed_check_stands_first() -> None:
    found = comparison([LINE], [LINE], [LINE])
    broken = replace(found, checks=result(runs={"scored_after_end": 3.0}).checks)
    assert conclude(broken) == [
        "Не пройдены проверки (1 из 17): «После конца текста ничего не считается».",
        *conclude(found),
    ]


# The arms


def test_a_gain_is_told_where_the_text_still_reads() -> None:
    told = of_arm(comparison([SALAD], [LINE], [LATE]), REINFORCE)
    assert told.startswith(f"**{TITLES[REINFORCE]}**: награда выше, чем у SFT, а текст ещё похож на отзыв. ")
    assert "При η = 0,25 прирост +0,50 (" in told and "KL 1 ната, перплексия 50 против 50 у самой θ_sft." in told
    assert (
        "Дальше по фронту текст на отзыв не похож: при η = 1 перплексия изменилась больше чем в 2 раза, 500 против 50 "
        "у θ_sft. Прирост там, +2,00 ("
    ) in told and told.endswith("), улучшением считать нельзя.")


def test_text_that_reads_nowhere_says_nothing_of_the_reward() -> None:
    found = comparison([SALAD], [LINE], [LINE])
    told = of_arm(found, WARP)
    assert "текст перестаёт быть похож на отзыв уже при η = 0,1" in told and "прирост" not in told
    assert said(found, "Почему у WARP нет прироста: ").endswith(
        "награда растёт, но вместе с ней портится текст; при η = 1 KL 4 ната."
    )


def test_the_sign_of_a_gain_is_said() -> None:
    found = comparison([FLAT], [[(-gain, kl) for gain, kl in LINE]], [LINE])
    words = {arm: of_arm(found, arm).split("**: ")[1].split(". ")[0] for arm in ARMS}
    assert words == {
        WARP: "прирост награды неотличим от нуля",
        SINGLE: "награда ниже, чем у SFT",
        REINFORCE: "награда выше, чем у SFT, а текст ещё похож на отзыв",
    }


@pytest.mark.parametrize(
    ("fronts", "told", "cell"),
    [
        ([ALIKE], "текст на отзыв не похож: при η = 1 к разным", "нет: к разным"),
        ([ALIKE, LINE], "текст похож на отзыв лишь у 1 из 2 сидов: при η = 1 в худшем случае к разным", "у 1 из 2 си"),
        ([ALIKE] * 2, "текст на отзыв не похож: при η = 1 в худшем случае к разным", "нет: в худшем случае к разным"),
        (
            [[*LINE[:3], SALAD[3], LINE[4]]],
            "текст на отзыв не похож: при η = 0,75 перплексия изменилась",
            "да",
        ),
    ],
)
def test_text_that_does_not_read_is_told_by_what_is_wrong(fronts: list[Front], told: str, cell: str) -> None:
    found = comparison(fronts, [LINE] * len(fronts), [LINE] * len(fronts))
    assert f" Дальше по фронту {told}" in of_arm(found, WARP)
    reading = [row["Похож на отзыв"] for row in records(comparison_page.front_table(found).data)]
    assert reading[len(ETAS) - 1].startswith(cell) and reading[0] == "да"


@pytest.mark.parametrize(
    ("rate", "seeds", "told"),
    [
        (0.01, 1, "прогоны награду поднимали, +1,00000 ("),
        (0.01, 1, "но прирост потерян при слиянии. На отложенных началах у прогонов последней итерации он +0,70 ("),
        (0.01, 3, "но прирост потерян при слиянии. На отложенных началах у прогонов последней итерации он +0,7 ("),
        (-0.01, 1, "награда падала уже в самих прогонах, −1,00000 ("),
        (0.0, 1, "его не видно и в самих прогонах, изменение награды неотличимо от нуля: "),
        (None, 1, "шагов слишком мало, чтобы оценить наклон награды в прогонах."),
    ],
)
def test_where_there_is_no_gain_the_runs_say_why(rate: float | None, seeds: int, told: str) -> None:
    uneven = [[(gain * (-2) ** seed, kl) for gain, kl in FLAT] for seed in range(seeds)]
    lost = comparison(warp=uneven, single=[LINE] * seeds, plain=[LINE] * seeds)
    steps = 1 if rate is None else 100
    drift = 1e-7
    rows = [
        {"seed": seed, "iteration": 1, "run": run, "step": at + 1, "reward": ((rate or 0) + drift * (-1) ** run) * at}
        for seed in range(seeds)
        for run in (1, 2)
        for at in range(steps)
    ]
    warped = replace(lost.arms[WARP], history=pd.DataFrame(rows))
    lost = replace(lost, arms=lost.arms | {WARP: warped}, config=lost.config.replace(T=steps))
    (why,) = [one for one in conclude(lost) if one.startswith("Почему у WARP нет прироста: ")]
    assert told in why


def test_a_gain_lost_before_the_merge_is_lost_on_the_way_to_held_out_prompts() -> None:
    lost = comparison(warp=[FLAT], single=[LINE], plain=[LINE], T=10)
    history = result(T=10).history
    lost = replace(lost, arms=lost.arms | {WARP: replace(lost.arms[WARP], history=history)})
    lost.arms[WARP].measured[0].unmerged = [lost.arms[WARP].measured[0].front[0]] * 2
    assert "прирост потерян при переходе к отложенным началам отзывов" in said(lost, "Почему у WARP нет прироста: ")


def test_where_there_is_a_gain_nothing_is_explained() -> None:
    assert not [one for one in conclude(comparison([LINE], [FLAT], [LINE])) if "нет прироста" in one]
