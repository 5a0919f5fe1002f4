"""What the notebook of experiment 5 shows, on made-up fronts: tables, figures, a conclusion by what was measured."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fronts import DOUBLE, FLAT, KLS, LINE, SALAD, SHORT, Front, best_of, comparison
from pages import records
from stories import sentences
from synthetic import result

from warp_nb.notebook import comparison_page
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.equal_kl_words import comparison_outcome, say_equal_kl
from warp_nb.notebook.experiment_page import save
from warp_nb.studies.comparison import ARMS, ETAS, REINFORCE, RLOO, SINGLE, WARP, Comparison
from warp_nb.studies.equal_kl import GRID, OWN_RUNS

HELD: Front = [(0.7 * math.sqrt(kl / 16), kl) for kl in KLS]
"""Runs that gain 0.7."""
LATE = [*LINE[:2], *SALAD[2:]]
ALIKE: Front = [*LINE[:-1], (4.0, 16.0, 50.0, 0.1)]


def scaled(front: Front, *scales: float) -> list[Front]:
    """The front with its gains multiplied, one training per factor."""
    return [[(gain * scale, *rest) for gain, *rest in front] for scale in scales]


def said(result: Comparison, begin: str) -> str:
    """The only paragraph of the conclusion that begins so."""
    (paragraph,) = [one for one in conclude(result) if one.startswith(begin)]
    return paragraph


def declared(result: Comparison, title: str) -> str:
    """What the conclusion says of one declared comparison."""
    begin = "**WARP против других способов** при KL(политика‖sft) = 4 ната. Сравнения объявлены до запуска: "
    return said(result, begin).partition(f" «{title}»: ")[2].partition("; «")[0]


# Tables and figures


def test_the_front_table_has_every_point_of_every_arm() -> None:
    rows = records(comparison_page.front_table(comparison([LINE], [LATE], [ALIKE])).data)
    etas = ("0,1", "0,2", "0,3", "0,45", "0,6", "0,8", "1")
    assert [(row["Способ"], row["η"]) for row in rows] == [(arm, eta) for arm in ARMS for eta in etas]
    assert rows[6]["Прирост награды"] == "+4,000 [3,900; 4,100]"
    assert rows[6]["KL(политика‖sft), нат"].startswith("16,000 [") and rows[6]["Перплексия по θ_sft"] == "50"
    reading = [row["Похож на отзыв"] for row in rows]
    assert reading[:9] == ["да"] * 9 and reading[14:20] == ["да"] * 6
    assert reading[9] == "нет: перплексия изменилась больше чем в 2 раза, 500 против 50 у θ_sft"
    assert reading[20].startswith("нет: ответы на разные промпты похожи")


def test_the_table_at_equal_kl_has_every_front_at_every_kl() -> None:
    made = comparison([DOUBLE] * 3, [LINE] * 3, [SHORT] * 3, rloo=[LINE] * 3, judged=0.5)
    rows = records(comparison_page.equal_kl_table(made).data)
    names = (WARP, SINGLE, REINFORCE, RLOO, "прогоны WARP до слияния, в среднем")
    key = "Фронт (3 обучения)"
    assert [(row[key], row["KL(политика‖sft), нат"]) for row in rows] == [(n, kl) for n in names for kl in "1248"]
    assert [row["Прирост награды"] for row in rows[:4]] == [
        "+2 [2; 2]",
        "+2,83 [2,83; 2,83]",
        "+4 [4; 4]",
        "+5,66 [5,66; 5,66]",
    ]
    assert [row["Прирост награды"] for row in rows[8:12]] == ["+1 [1; 1]", "—", "—", "—"], "never extrapolated"
    assert (rows[2]["Прирост по судье"], rows[2]["Уникальных биграмм, доля от θ_sft"]) == ("+2 [2; 2]", "90\u00a0%")
    assert rows[2]["Перевес WARP: награда"] == "" and rows[6]["Перевес WARP: награда"] == "+2 [2; 2]"
    assert rows[6]["Перевес WARP: судья"] == "+1 [1; 1]"


def test_a_single_training_is_said_inside_the_tables() -> None:
    made = comparison([LINE], [LINE], [LINE])
    assert "Фронт (одно обучение)" in records(comparison_page.equal_kl_table(made).data)[0]
    assert "Политика (одно обучение)" in records(comparison_page.singles_table(made).data)[0]


def test_single_policies_stand_beside_the_front_at_their_kl() -> None:
    rows = records(comparison_page.singles_table(comparison([LINE] * 2, [LINE] * 2, [LINE] * 2, judged=0.5)).data)
    assert [row["Политика (2 обучения)"] for row in rows] == ["конец алгоритма", "лучшее из 4", "лучшее из 16"]
    assert [row["KL(политика‖sft), нат"] for row in rows] == ["6,25", "0,636", "1,84"]
    assert rows[2]["Прирост награды"] == "+1,5 [1,5; 1,5]" and rows[2]["Прирост по судье"] == "+0,75 [0,75; 0,75]"
    assert rows[2]["Фронт WARP при той же KL: награда"] == "+1,35 [1,35; 1,35]"
    assert rows[2]["Выше фронта: награда"] == "+0,145 [0,145; 0,145]" and rows[0]["Выше фронта: награда"] == "0 [0; 0]"


def test_the_declared_comparisons_have_their_p() -> None:
    made = comparison(scaled(LINE, 1.0, 1.1, 1.2), [LINE] * 3, [SHORT] * 3, judged=0.5)
    single, plain, own = records(comparison_page.declared_table(made).data)
    assert single["Объявлено, KL = 4"] == "WARP − M = 1" and single["Разность наград"] == "+0,20 [−0,30; 0,70]"
    assert (single["p"], single["p с поправкой Холма"]) == ("0,225", "0,676")
    assert (plain["Разность наград"], plain["p"]) == ("—", "не определено")
    assert own["Объявлено, KL = 4"] == "WARP − прогоны WARP до слияния, в среднем" and own["p"] == "0,225"


def test_samples_are_those_of_the_point_nearest_to_the_declared_kl() -> None:
    found = comparison([LINE], [LINE], [SHORT])
    assert [ETAS[found.nearest(arm)] for arm in (WARP, REINFORCE)] == [0.45, 1.0]
    sample = {"prompt": "p", "reference": "r", "policy": "y", "reward_reference": 0.5, "reward_policy": -1.5}
    front = found.arms[SINGLE].measured[0].front
    front[3] = replace(front[3], samples=[sample])
    (row,) = records(comparison_page.arm_samples(found, SINGLE).data)
    name = f"{SINGLE}, η = 0,45"
    assert row == {"Промпт": "p", "SFT": "r", "Награда SFT": "0,5", name: "y", f"Награда {name}": "−1,5"}


def test_the_plane_shows_every_front_best_of_n_the_end_and_the_grid() -> None:
    (ax,) = comparison_page.plane(comparison([LINE], [FLAT], [DOUBLE], rloo=[SHORT])).axes
    drawn = [container.lines[0].get_xydata().tolist() for container in ax.containers]
    fronts = (LINE, FLAT, DOUBLE, SHORT)
    assert drawn[:4] == [[[0.0, 0.0], *([kl, gain] for gain, kl in front)] for front in fronts]
    assert drawn[4] == [[6.25, 2.5]], "the end of WARP"
    assert drawn[5] == [[math.log(4) - 0.75, 0.5], [math.log(16) - 15 / 16, 1.5]]
    upright = [
        line.get_xdata()[0] for line in ax.lines if len(set(line.get_xdata())) == 1 and len(line.get_xdata()) == 2
    ]
    assert upright == list(GRID)


def test_curves_of_an_arm_are_its_runs() -> None:
    found = comparison([LINE], [LINE], [LINE])
    counts = {arm: [len(ax.lines) for ax in comparison_page.arm_curves(found, arm).axes] for arm in ARMS}
    assert counts == {WARP: [4] * 3, SINGLE: [2] * 3, REINFORCE: [1] * 3, RLOO: [4] * 3}


def test_the_result_is_saved_with_its_conclusion(tmp_path: Path) -> None:
    found = comparison([LINE], [LINE], [LINE])
    save(found, "")
    save(found, str(tmp_path / "r.json"))
    assert [path.name for path in tmp_path.iterdir()] == ["r.json"]
    record = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"), parse_constant=pytest.fail)
    assert record["status"] == "ok" and record["conclusion"] == conclude(found)
    assert record["outcome"] == comparison_outcome(record["equal_kl"]) == comparison_outcome(found.equal_kl)
    assert record["reading"] == comparison_page.arms_reading(found)
    own = ("Текст похож", "Следующий шаг", "Почему у WARP")
    assert say_equal_kl(record["equal_kl"]) == [one for one in conclude(found) if not one.startswith(own)]


# Who is ahead


AHEAD = scaled(LINE, 1.5, 1.502, 1.498)


@pytest.mark.parametrize(
    ("warp", "plain", "words"),
    [
        (
            AHEAD,
            [LINE] * 3,
            "WARP опережает на 1,0000 [0,9901; 1,0099], это 33\u00a0% его собственного прироста, по судье",
        ),
        (
            [LINE] * 3,
            AHEAD,
            "WARP отстаёт на 1,0000 [0,9901; 1,0099], это 50\u00a0% его собственного прироста, по судье",
        ),
        (scaled(LINE, 1.1, 1.2, 1.15), [LINE] * 3, "разность +0,30 [0,05; 0,55] не выдерживает поправки на число"),
        (
            scaled(LINE, 0.9, 1.2, 1.0),
            [LINE] * 3,
            "разность +0,07 [−0,69; 0,83] неотличима от нуля, заметна была бы разность около 0,76",
        ),
        ([SHORT] * 3, [LINE] * 3, "сравнить нельзя, один из фронтов до этой KL не доходит"),
    ],
)
def test_who_is_ahead_is_said_by_the_corrected_p(warp: list[Front], plain: list[Front], words: str) -> None:
    assert declared(comparison(warp, [LINE] * 3, plain, judged=0.5), REINFORCE).startswith(words)


@pytest.mark.parametrize(
    ("judged", "says"),
    [(0.5, "(судья это подтверждает)"), (-0.5, "(судья говорит обратное)"), (0.0, "(судья этого не подтверждает)")],
)
def test_the_judge_stands_beside_a_lead(judged: float, says: str) -> None:
    told = declared(comparison(AHEAD, [LINE] * 3, [LINE] * 3, judged=judged), REINFORCE)
    assert says in told and told.count("судья ") == 1


def test_without_runs_before_the_merge_that_comparison_was_not_measured() -> None:
    made = comparison([LINE], [LINE], [LINE])
    made.arms[WARP].measured[0].own_runs.clear()
    assert declared(made, "прогоны WARP до слияния, в среднем").startswith("не измерено.")
    assert OWN_RUNS not in made.equal_kl["fronts"]


def test_what_was_not_declared_is_called_exploratory() -> None:
    told = said(comparison(AHEAD, [LINE] * 3, [SHORT] * 3, rloo=[LINE] * 3), "При KL 4 уникальных биграмм во всех ")
    assert "вместе остаётся 90\u00a0% от θ_sft. Сравнения при других KL, " in told and "разведочные" in told


@pytest.mark.parametrize(
    ("count", "begin"),
    [(1, "Одно обучение: с другим сидом"), (2, "Каждый способ обучен 2 раза с "), (5, "Каждый способ обучен 5 раз с ")],
)
def test_what_the_intervals_cover_is_said(count: int, begin: str) -> None:
    assert said(comparison([DOUBLE] * count, [LINE] * count, [LINE] * count), begin)


@pytest.mark.parametrize(
    ("warp", "plain", "judged", "first", "second"),
    [
        (AHEAD, LINE, 1.0, "он опережает M = 1 на 1,0000 [0,9901; 1,0099], REINFORCE на ", "Судья, вторая модель"),
        (AHEAD, LINE, -0.5, "и собственные прогоны до слияния на 1,0000", "Но судья, вторая модель награды, "),
        (AHEAD, LINE, None, "он опережает M = 1", "Судья не измерялся"),
        (scaled(LINE, 1, 1, 1), DOUBLE, None, "он отстаёт от REINFORCE на 2 [2; 2]", "При этой KL то же даёт более"),
        (scaled(LINE, 0.9, 1.2, 1.0), LINE, None, "от M = 1, REINFORCE и собственных", "Если слияние и полезно, то "),
        ([SHORT] * 3, LINE, None, "До KL(политика‖sft) = 4 ната, при которой", "Сравнить их можно лишь ближе"),
    ],
)
def test_the_outcome_is_two_sentences(
    warp: list[Front], plain: Front, judged: float | None, first: str, second: str
) -> None:
    made = comparison(warp, [LINE] * 3, [plain] * 3, judged=judged)
    one, two = sentences(comparison_outcome(made.equal_kl))
    assert first in one and two.startswith(second)


def test_a_resumed_run_says_that_its_steps_took_longer() -> None:
    made = comparison([LINE], [LINE], [LINE])
    made.seconds = made.training_seconds - 0.1
    assert comparison_page.durations(made).endswith(" (остальное — из прерванного запуска)")
    made.seconds = made.training_seconds
    assert comparison_page.durations(made).endswith(" с") and "прерванного" not in comparison_page.durations(made)


@pytest.mark.parametrize(
    ("warp", "told"),
    [
        ([LINE] * 3, "Совет помог: при η = 1 прирост награды у WARP +4 [4; 4] при KL 16 нат"),
        ([SALAD] * 3, "Совет помог наполовину: награда растёт, +4 [4; 4], но там"),
        ([[(0.0, kl) for kl in KLS]] * 3, "Совет не помог: и в конце фронта WARP прироста не видно"),
    ],
)
def test_the_advice_of_the_original_is_judged_by_the_gain_and_the_text(warp: list[Front], told: str) -> None:
    made = comparison(warp, [LINE] * 3, [LINE] * 3, T=20, warmup_steps=2)
    assert told in said(made, "Исходный отчёт советует увеличить T") and "больше в 2 раза" in " ".join(conclude(made))


def test_the_reading_names_every_arm_whose_slope_is_known() -> None:
    found = comparison([LINE], [LINE], [LINE], T=20)
    told = comparison_page.arms_reading(found)
    assert told.startswith("Мы видим, что награда растёт у всех способов")
    known = [arm for arm in ARMS if comparison_page.reward_rise(found, arm)]
    assert WARP in known and [arm for arm in ARMS if f" {arm} +" in told] == known
    assert "У REINFORCE прогон один, зато в 4 раза длиннее" in told
    assert ("не оценить" in told) == (REINFORCE not in known)


# Reward hacking, best-of-N, the end


def test_a_gap_between_reward_and_judge_is_named_with_figures() -> None:
    found = comparison(AHEAD, [LINE] * 3, [SHORT] * 3, judged=0.5)
    told = said(found, "**Взлом награды**: ")
    assert "«WARP» при KL 1, 2, 4, 8; при 8 награда +4,24" in told
    assert "судья +2,12" in told and "разрыв +1,7678" in told
    assert "«REINFORCE» при KL 1: награда" in told, "its front ends at KL 1"


def test_a_gap_that_best_of_n_has_too_is_no_hacking() -> None:
    """Best of 64 reaches KL 3.2; beyond it the gap alone decides."""
    made = comparison(AHEAD, [FLAT] * 3, [FLAT] * 3, rloo=[FLAT] * 3, own=FLAT, judged=0.5)
    for measured in made.arms[WARP].measured:
        measured.best[:] = best_of([(4, 3.0), (64, 6.0)], 0.5)
    told = said(made, "**Взлом награды**: ")
    assert "«WARP» при KL 4, 8; при 8 награда" in told


@pytest.mark.parametrize(
    ("judged", "begin"),
    [
        (1.0, "Взлома награды при этих KL не видно: "),
        (1.5, "Взлома награды при этих KL не видно: "),
        (None, "Судья не измерялся, поэтому рост награды здесь нельзя отличить от её взлома."),
    ],
)
def test_where_the_judge_follows_or_is_missing_that_is_said(judged: float | None, begin: str) -> None:
    found = comparison(AHEAD, [LINE] * 3, [LINE] * 3, judged=judged)
    assert said(found, begin) and not [one for one in conclude(found) if one.startswith("**Взлом награды**")]


@pytest.mark.parametrize(
    ("warp", "four", "sixteen"),
    [
        (LINE, "меньше, чем у фронта WARP при той же KL: +0,79", "больше, чем у фронта WARP при той же KL: +1,3"),
        (DOUBLE, "меньше, чем у фронта WARP при той же KL: +1,", "меньше, чем у фронта WARP при той же KL: +2,"),
        (SHORT, "меньше, чем у фронта WARP при той же KL: +0,79", "фронт WARP до этой KL не доходит"),
    ],
)
def test_best_of_n_is_compared_with_the_front(warp: Front, four: str, sixteen: str) -> None:
    told = said(comparison([warp], [LINE], [LINE], judged=0.5), "**Лучшее из N** (best-of-N) обходится без обучения: ")
    first, second = told.split(" N = ")[1:]
    assert first.startswith("4, KL не больше 0,64 ната: прирост +0,5 [0,5; 0,5], по судье +0,25 [0,25; 0,25], ")
    assert four in first and sixteen in second and second.startswith("16, KL не больше 1,8 ната: прирост +1,5")


@pytest.mark.parametrize(
    ("lift", "words"),
    [
        (0.0, "От фронта WARP при той же KL это неотличимо: там +2,50"),
        (0.5, "Это выше фронта WARP при той же KL: там +2,50"),
        (-0.5, "Это ниже фронта WARP при той же KL: там +2,50"),
    ],
)
def test_the_end_of_the_algorithm_is_compared_with_the_front(lift: float, words: str) -> None:
    made = comparison([LINE], [LINE], [LINE])
    end = made.arms[WARP].measured[0].end
    assert end is not None
    rewards = [reward + lift for reward in end.rewards_policy]
    change = replace(end.reward_difference, value=end.reward_difference.value + lift)
    made.arms[WARP].measured[0].end = replace(end, reward_difference=change, rewards_policy=rewards)
    told = said(made, "**Конец алгоритма**: политика после последнего LITI ушла на 6,2 ната, её прирост ")
    assert words in told


# An earlier file


def test_an_earlier_file_is_not_called_confirmatory() -> None:
    found: dict[str, Any] = comparison(AHEAD, [LINE] * 3, [LINE] * 3).equal_kl | {"earlier": True}
    first = say_equal_kl(found)[0]
    assert first.startswith(
        "**WARP против других способов** при KL(политика‖sft) = 4 ната. Сравнения объявлены уже после этого запуска"
    )
    assert "объявленные до запуска" not in " ".join(say_equal_kl(found))


# The text and the checks


def test_a_failed_check_stands_first() -> None:
    found = comparison([LINE], [LINE], [LINE])
    broken = replace(found, checks=result(runs={"scored_after_end": 3.0}).checks)
    assert conclude(broken) == [
        "Не пройдены проверки (1 из 17): «После конца текста ничего не считается».",
        *conclude(found),
    ]


@pytest.mark.parametrize(
    ("fronts", "told", "cell"),
    [
        ([ALIKE], "текст на отзыв не похож при η = 1. При η = 1 ответы на разные", "нет: ответы на"),
        (
            [ALIKE, LINE],
            "текст похож на отзыв лишь у 1 из 2 сидов при η = 1. При η = 1 в худшем случае ответы на разные",
            "у 1 из 2 си",
        ),
        (
            [ALIKE] * 2,
            "текст на отзыв не похож при η = 1. При η = 1 в худшем случае ответы на разные",
            "нет: в худшем случае ответы на",
        ),
        (
            [[*LINE[:4], *SALAD[4:6], LINE[6]]],
            "текст на отзыв не похож при η = 0,6; 0,8. При η = 0,8 перплексия изменилась",
            "да",
        ),
    ],
)
def test_text_that_does_not_read_is_told_by_what_is_wrong(fronts: list[Front], told: str, cell: str) -> None:
    found = comparison(fronts, [LINE] * len(fronts), [LINE] * len(fronts), rloo=[LINE] * len(fronts))
    paragraph = said(found, f"**{WARP}**: ")
    assert paragraph.startswith(f"**{WARP}**: {told}") and paragraph.endswith(", улучшением считать нельзя.")
    assert not [one for one in conclude(found) if "до самого конца" in one]
    reading = [row["Похож на отзыв"] for row in records(comparison_page.front_table(found).data)]
    assert reading[len(ETAS) - 1].startswith(cell) and reading[0] == "да"


@pytest.mark.parametrize(
    ("rate", "seeds", "told"),
    [
        (0.01, 1, "прогоны награду поднимали, +1"),
        (0.01, 1, "но прирост потерян при слиянии. На отложенных промптах у прогонов последней итерации он +0,70 ["),
        (0.01, 3, "но прирост потерян при слиянии. На отложенных промптах у прогонов последней итерации он +0,7 ["),
        (-0.01, 1, "награда падала уже в самих прогонах, −1"),
        (0.0, 1, "его не видно и в самих прогонах, изменение награды неотличимо от нуля: "),
        (None, 1, "шагов слишком мало, чтобы оценить наклон награды в прогонах."),
    ],
)
def test_where_there_is_no_gain_the_runs_say_why(rate: float | None, seeds: int, told: str) -> None:
    uneven = scaled(FLAT, *((-2) ** seed * 1.0 for seed in range(seeds)))
    lost = comparison(uneven, [LINE] * seeds, [LINE] * seeds, own=HELD)
    steps = 1 if rate is None else 100
    drift = 1e-7
    rows = [
        {"seed": seed, "iteration": 1, "run": run, "step": at + 1, "reward": ((rate or 0) + drift * (-1) ** run) * at}
        for seed in range(seeds)
        for run in (1, 2)
        for at in range(steps)
    ]
    longer = lost.arms[WARP].config.replace(T=steps)
    warped = replace(lost.arms[WARP], history=pd.DataFrame(rows), config=longer)
    lost = replace(lost, arms=lost.arms | {WARP: warped}, config=lost.config.replace(T=steps))
    (why,) = [one for one in conclude(lost) if one.startswith("Почему у WARP нет прироста: ")]
    assert told in why


def test_a_gain_lost_before_the_merge_is_lost_on_the_way_to_held_out_prompts() -> None:
    lost = comparison([FLAT], [LINE], [LINE], T=10)
    history = result(T=10).history
    lost = replace(lost, arms=lost.arms | {WARP: replace(lost.arms[WARP], history=history)})
    lost.arms[WARP].measured[0].own_runs = [lost.arms[WARP].measured[0].front] * 2
    assert "прирост потерян при переходе к отложенным промптам" in said(lost, "Почему у WARP нет прироста: ")


def test_where_there_is_a_gain_nothing_is_explained() -> None:
    assert not [one for one in conclude(comparison([LINE], [FLAT], [LINE])) if "нет прироста" in one]


def test_text_that_reads_everywhere_is_said_once() -> None:
    assert said(comparison([LINE], [LINE], [LINE]), "Текст похож на отзыв на всех фронтах до самого конца.")


def test_the_gate_of_the_judge_stands_beside_the_rewards() -> None:
    told = said(comparison([LINE], [LINE], [LINE], judged=0.5), "Модель награды верно ")
    assert told.count("86\u00a0%") == 2
    assert not [one for one in conclude(comparison([LINE], [LINE], [LINE])) if one.startswith("Модель награды")]
