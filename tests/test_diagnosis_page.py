"""What the notebook of the diagnosis shows, on tables that nobody measured."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import nbformat
import pytest
from celltables import both, healthy, moved, record, with_the_originals_traits
from pages import records

from warp_nb.measure.machine import machine
from warp_nb.notebook import diagnosis_page
from warp_nb.notebook.check_words import WORDS
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.experiment_page import save
from warp_nb.studies import verdicts
from warp_nb.studies.cells import (
    DRIFT_LR,
    GREEDY,
    ONE_SEED,
    SEEDS,
    SUSPECTS,
    WARM_UPS,
    Cell,
    RewardCell,
    at_step_one,
    drift,
)
from warp_nb.studies.diagnosis import CellTable, read_table

NOTEBOOK = Path(__file__).resolve().parents[1] / "notebooks" / "diagnosis.ipynb"


def concluded(table: dict[str, Any]) -> list[str]:
    return conclude(CellTable({}, table))


def cause(table: dict[str, Any], oddity: str) -> str:
    """What is said to cause an oddity of the report."""
    lines = [line for paragraph in concluded(table) for line in paragraph.splitlines()]
    (line,) = [line for line in lines if line.startswith(f"- **{oddity}.** ")]
    return line.partition(".** ")[2]


# Tables


def test_a_verdict_is_a_row_under_its_prediction() -> None:
    table = healthy()
    html = diagnosis_page.verdict_table(verdicts.warm_ups(table)).data
    assert html.startswith("<p>Предсказание: KL эксперимента 1 напечатается как 0,00000 и в fp32, и в bfloat16.</p><t")
    rows = records(html.partition("</p>")[2])
    assert [row["Гипотеза"] for row in rows] == [
        "прогрев 5 шагов",
        "прогрев 100 шагов, из них сделано 10",
        "планировщик начинает с lr = 0 и не вызывается",
        "планировщик вызывается раз за прогон",
        "оптимизатор и планировщик создаются заново на каждом шаге",
        "прогрев 100 шагов, веса в bfloat16",
    ]
    assert [(row["Вердикт"], row["Сбылось"]) for row in rows] == [
        *[("недостаточно", "0 из 3")] * 3,
        *[("недостаточно", "0 из 1")] * 3,
    ]
    assert rows[0]["Измерено"] == "KL, нат: в fp32 10⁻⁸, в bfloat16 0,002; нетронутых весов 10 %"


@pytest.mark.parametrize("table", [healthy(), {}], ids=["whole", "empty"])
def test_every_verdict_has_words(table: dict[str, Any]) -> None:
    found = [diagnosis_page.told(verdict) for verdict in verdicts.verdicts(table)]
    assert all(text for one in found for name, text in one.items() if name != "outcomes")
    assert not [text for one in found for text in one.values() if "{" in str(text) and text is not one["outcomes"]]
    assert len({one["name"] for one in found}) == len({one["english"] for one in found}) == len(found) == 36
    said = {one["verdict"] for one in found}
    assert said == ({"недостаточно", "доля 1 при lr = 10⁻⁴"} if table else {"не измерено"})
    assert {frozenset(one) for one in found} == {
        frozenset({"name", "english", "prediction", "measured", "verdict", "verdict_english", "outcomes"})
    }


def test_what_is_not_measured_is_said_with_its_number() -> None:
    table = healthy()
    for seed in SEEDS[1:]:
        del table[Cell(2, faults=ONE_SEED, seed=seed).name]
    rows = records(diagnosis_page.verdict_table(verdicts.equal_runs(table)).data.partition("</p>")[2])
    assert rows[1]["Сбылось"] == "0 из 1" and rows[1]["Измерено"].endswith("из 1; не измерено: 2 прогона")
    del table[Cell(2, faults=ONE_SEED).name]
    rows = records(diagnosis_page.verdict_table(verdicts.equal_runs(table)).data.partition("</p>")[2])
    assert rows[1] == {
        "Гипотеза": "один сид на все прогоны", "Вердикт": "не измерено", "Сбылось": "",
        "Измерено": "не измерено: 3 прогона",
    }  # fmt: skip


def test_a_share_is_told_in_place_of_a_verdict() -> None:
    table = healthy()
    for seed, kl in zip(SEEDS, (0.4, 0.5, 0.6), strict=True):
        table[drift("constant", 1e-4, "none", seed).name] = record(kl=kl)
        table[drift("sound", 1e-4, "none", seed).name] = record(kl=1.0)
    told = diagnosis_page.told(verdicts.noise(table)[0])
    assert (told["verdict"], told["verdict_english"]) == (
        "доля от 0,4 до 0,6 при lr = 10⁻⁴",
        "share 0.4, 0.5, 0.6 at lr 0.0001",
    )
    assert told["outcomes"] == []


def test_equal_curves_are_told_with_their_twins() -> None:
    table = healthy()
    for seed in SEEDS:
        table[Cell(2, faults=ONE_SEED, seed=seed).name] = record(curves=[[0.1, 0.2]] * 4, omega=[0.0, None])
    told = {one["name"]: one["measured"] for one in map(diagnosis_page.told, verdicts.equal_runs(table))}
    assert told["один сид на все прогоны"] == (
        "кривые двух прогонов совпали до бита; наибольший угол Ω: 0°; итоговые веса совпали с M = 1 до бита в 3 из 3"
    )
    assert told["контроль без ошибки"] == "кривые двух прогонов различны с шага 1; наибольший угол Ω: 80°"


def test_the_rows_of_the_original_stand_beside_ours() -> None:
    rows = records(diagnosis_page.final_rows(healthy()).data)
    assert [(row["Эксперимент"], row["Что"]) for row in rows] == [
        (str(number), words)
        for number in (1, 2, 3, 4)
        for words in ("исходный отчёт", "лучшее сочетание ошибок", "без ошибок")
    ]
    assert [row["KL(sft‖warp)"] for row in rows[3:6]] == ["0,02546", "0,00001", "0,00001"]
    assert {row["Награда WARP"] for row in rows if row["Что"] == "без ошибок"} == {"0,5000000"}
    rows = records(diagnosis_page.final_rows({}).data)
    assert {tuple(row.values())[2:] for row in rows if row["Что"] != "исходный отчёт"} == {("не измерено", "", "", "")}


def test_the_checks_that_see_a_fault_at_step_one() -> None:
    table = healthy()
    table[at_step_one("greedy").name]["failed"] = ["runs-differ", "liti-formula"]
    rows = {row["Ошибка"]: row["Не пройдены на шаге 1"] for row in records(diagnosis_page.step_one(table).data)}
    assert len(rows) == len(SUSPECTS) and rows["ошибки нет"] == "ни одна"
    titles = [WORDS[name].title for name in ("runs-differ", "liti-formula")]
    assert rows["жадная выборка, промпты по порядку"] == f"«{titles[0]}»; «{titles[1]}»"
    assert {row["Не пройдены на шаге 1"] for row in records(diagnosis_page.step_one({}).data)} == {"не измерено"}


def test_the_tables_of_rewards_displacements_and_arithmetics() -> None:
    table = healthy()
    for seed in SEEDS:
        table[RewardCell(1e-2, seed).name] |= {"spread": 3e-6 * (1 + seed), "pair_accuracy": 0.5}
        table[drift("sound", 1e-3, "mean", seed).name]["delta_norms"] = [2e-2 * (1 + seed)]
        table[Cell(2, seed=seed).name] |= {"moved": 1e-5, "parameters": 25}
        table[Cell(2, seed=seed).name]["kl"]["mixed"] = both(0.02 * (1 + seed))
    rows = records(diagnosis_page.gate_table(table).data)
    assert [row["lr"] for row in rows] == ["10⁻⁵", "10⁻⁴", "0,001", "0,01"]
    assert rows[3]["Разброс оценок"] == "3·10⁻⁶; 6·10⁻⁶; 9·10⁻⁶"
    assert [row["Верных пар"] for row in rows[2:]] == [
        "80\u00a0%; 80\u00a0%; 80\u00a0%",
        "50\u00a0%; 50\u00a0%; 50\u00a0%",
    ]
    rows = records(diagnosis_page.displacement_table(table).data)
    assert len(rows) == 4 and rows[1]["Прогон"] == "награда исправная, среднее вычтено"
    assert rows[1]["lr = 0,001"] == "4", "0.04, the median, over 10, the root of 100 weights, and over lr"
    rows = records(diagnosis_page.precision_table(table).data)
    assert [(row["Конфигурация"], row["Эксперимент"]) for row in rows] == [
        (task, number) for task in ("small", "smollm") for number in "12"
    ]
    assert rows[1]["Сдвиг веса, в lr"] == "2" and rows[1]["KL в bfloat16 (только θ_sft), нат"] == "0,04"


def test_the_combinations_that_fit_best_come_with_their_traits() -> None:
    table = with_the_originals_traits()
    del table[Cell(3, "collapsed", GREEDY, task="smollm").name]
    rows = {row[""]: row for row in records(diagnosis_page.traits_table(table, count=2).data)}
    assert list(rows)[:7] == [
        "Конфигурация", "Награда", "Прогоны", "Прогрев эксперимента 1", "lr эксперимента 4", "KL посчитана в",
        "Нарисовано",
    ]  # fmt: skip
    assert len(rows) == 7 + 13 + 1 and {tuple(row) for row in rows.values()} == {("", "№ 1", "№ 2")}
    first = {name: row["№ 1"] for name, row in rows.items()}
    assert [*first.values()][:5] == [
        "smollm", "схлопнувшаяся", "жадная выборка, промпты по порядку", "lr = 0, планировщик не вызван", "6·10⁻⁴"
    ]  # fmt: skip
    assert first["повторено"] == "8 из 8" and first["KL эксперимента 1 печатается как 0,00000"] == "да"
    assert first["KL эксперимента 3 отличается не больше чем в 3 раза"] == "не измерено"
    rows = records(diagnosis_page.traits_table(healthy(), count=1).data)
    assert {"": "кривые эксперимента 3 растут", "№ 1": "нет"} in rows


# Figures


def test_figures_show_the_table() -> None:
    table = healthy()
    spread, accuracy = diagnosis_page.sweep(table).axes
    assert len(spread.lines) == 4 and len(accuracy.lines) == 5 and spread.get_xscale() == "log"
    apart, alike = diagnosis_page.twin_curves(table).axes
    curves = table[Cell(2).name]["curves"]["objective"]
    assert [line.get_ydata().tolist() for line in apart.lines] == curves[:2] and len(alike.lines) == 2
    norms, kls = diagnosis_page.drift_figure(table).axes
    assert len(norms.containers) == len(kls.containers) == 4
    assert norms.containers[0].lines[0].get_xdata().tolist() == list(DRIFT_LR)
    for ax in diagnosis_page.split_figure(table).axes:
        assert [line.get_ydata() for line in ax.lines] == [pytest.approx([-step for step in range(10)])] * 3


def test_everything_is_shown_of_a_partial_table() -> None:
    """Every cell in turn may be the one that is there."""
    whole = healthy()
    for part in ({}, *({name: whole[name]} for name in list(whole)[:: len(whole) // 12])):
        for figure in (diagnosis_page.sweep, diagnosis_page.twin_curves, diagnosis_page.split_figure):
            assert len(figure(part).axes) == 2
        assert len(diagnosis_page.drift_figure(part).axes) == 2
        for shown in (diagnosis_page.gate_table, diagnosis_page.displacement_table, diagnosis_page.precision_table):
            assert "<table" in shown(part).data
        assert diagnosis_page.diagnosis_record(CellTable({}, part))["missing"] == len(whole) - len(part)
        assert concluded(part)


# The conclusion


def test_the_best_combination_is_told_with_those_as_good() -> None:
    table = with_the_originals_traits()
    assert diagnosis_page.best_text(table) == (
        "Сочетаний ошибок, перечисленных до запуска: 106. У каждого из них измерено от 9 до 13 из 13 признаков "
        "исходного отчёта. Лучше всего подходит: конфигурация smollm, награда схлопнувшаяся, прогоны: жадная "
        "выборка, промпты по порядку, "
        "прогрев эксперимента 1: lr = 0, планировщик не вызван, lr эксперимента 4: 6·10⁻⁴, KL посчитана в fp32, "
        "нарисована r_β. Оно повторяет 13 из 13 измеренных признаков. Столько же повторяют ещё 5 сочетаний (все "
        "они в таблице): по этим данным их не различить."
    )
    assert concluded(table)[0] == diagnosis_page.best_text(table)
    assert not [one for one in concluded(table) if one.startswith("Величины KL сравнены")]
    assert diagnosis_page.diagnosis_record(CellTable({}, table))["explained"] is True


def test_what_most_probably_happened_is_three_sentences() -> None:
    table = with_the_originals_traits()
    table[Cell(2, "collapsed", GREEDY, task="smollm").name]["kl"] = dict.fromkeys(verdicts_scorings(), both(5.0))
    said = concluded(table)[1]
    assert [sentence[:22] for sentence in said.split(". ")] == [
        "Вероятнее всего, в отч", "За это говорит 12 из 1", "Против говорит то, чег"
    ]  # fmt: skip
    assert "модель награды схлопнулась и отвечала на любой текст одним числом; тексты порождались жадно" in said
    assert "планировщик эксперимента 1 начинал с lr = 0 и не вызывался. " in said, "they differ in the rest"
    assert said.endswith(
        "чего это сочетание не повторяет: KL эксперимента 2 отличается не больше чем в 3 раза; столько же повторяют "
        "ещё 5 сочетаний, и лучшее выбрано из 106, так что другой причины это не исключает."
    )
    whole = concluded(with_the_originals_traits())[1]
    assert "Против не говорит ни один из измеренных признаков, но столько же повторяют ещё 5 сочетаний, и" in whole


def test_what_only_the_best_combination_has_is_said_to_have_happened() -> None:
    table = with_the_originals_traits()
    for number in (1, 2):
        faults = ("never-stepped", *GREEDY) if number == 1 else GREEDY
        table[Cell(number, "collapsed", faults, task="smollm").name]["kl"] |= dict.fromkeys(
            ("bfloat16", "mixed"), both(5.0)
        )
    for number, changes in ((3, ()), (4, (("lr", 6e-4),))):
        curves = table[Cell(number, "collapsed", GREEDY, changes, task="smollm").name]["curves"]
        curves["surrogate"] = [[-step for step in range(10)]] * 4
    said = concluded(table)[1]
    assert "и не вызывался; KL считалась в fp32; на рисунках r_β. За это говорит 13 из 13" in said
    assert "измеренных признаков, но лучшее выбрано из 106" in said


def verdicts_scorings() -> list[str]:
    return list(diagnosis_page.VERDICT_WORDS["choices"]["scoring"])


def test_where_no_combination_explains_most_traits_it_is_said() -> None:
    said = concluded(healthy())
    assert "не повторяет: награда неподвижна, " in said[0]
    assert said[1] == (
        "Большинство признаков не объясняет ни одно сочетание: лучшее повторяет 1 из 13, а нужно не меньше 9. "
        "Что произошло в отчёте, эти прогоны не говорят."
    )
    assert not [one for one in said if one.startswith("Вероятнее всего")]
    assert said[-1].startswith("Величины KL сравнены только на конфигурации smollm")
    assert diagnosis_page.diagnosis_record(CellTable({}, healthy()))["explained"] is False


def test_a_table_that_lacks_cells_concludes_nothing_of_them() -> None:
    table = with_the_originals_traits()
    del table[Cell(3, "collapsed", GREEDY, task="smollm").name]
    said = concluded(table)
    assert "Оно повторяет 8 из 8 измеренных признаков; не измерено: награда неподвижна, KL эксперимента 3" in said[0]
    assert said[1].endswith("не говорят; но у 22 из сочетаний измерено ещё не всё, и они могли бы.")
    assert said[2] == "Таблица ещё не полна. Не измерено: 1 прогон, их измерит warp-nb diagnosis."
    empty = concluded({})
    assert empty[0] == "Сочетаний ошибок, перечисленных до запуска: 106. Ни одно оценить пока нельзя."
    assert [line.partition(".** ")[2][:13] for line in empty[2].splitlines()] == ["Не измерено: "] * 8


def test_the_outcome_says_what_happened_and_what_speaks_against_it() -> None:
    told = diagnosis_page.diagnosis_outcome(with_the_originals_traits())
    assert told.startswith("Вероятнее всего, в исходном отчёте модель награды схлопнулась")
    assert "так повторяются 13 из 13 признаков" in told
    assert told.endswith("Против этого: столько же повторяют ещё 5 сочетаний.")
    told = diagnosis_page.diagnosis_outcome(healthy())
    assert told.startswith("Одного объяснения измерения не дают: лучшее из 106") and "и ещё 10 признаков" in told
    assert diagnosis_page.diagnosis_outcome({}) == "Ни одно из 106 сочетаний ошибок ещё не измерено."


def test_a_fault_that_explains_two_oddities_is_named() -> None:
    """One seed makes runs equal, and with the warm-up of 100 steps all four curves too."""
    table, one = healthy(), [[0.1, 0.2]] * 4
    for seed in SEEDS:
        table[Cell(2, faults=ONE_SEED, seed=seed).name] = record(curves=one, omega=[0.0, None])
    told = diagnosis_page.diagnosis_outcome(table)
    assert (
        "По отдельности странности отчёта повторяются, каждая со своей ошибкой: «Два прогона неотличимы» — один" in told
    )
    for seed in SEEDS:
        table[Cell(1, faults=ONE_SEED, seed=seed).name] = record(curves=[[0.1, 0.2]] * 4)
    said = diagnosis_page.single_faults(verdicts.verdicts(table))
    assert set(said["один сид на все прогоны"]) == {"Два прогона неотличимы", "Четыре равные кривые эксперимента 1"}
    told = diagnosis_page.diagnosis_outcome(table)
    assert "Одной ошибки хватает на 2 странности, один сид на все прогоны: «" in told


def test_every_combination_is_a_row() -> None:
    rows = records(diagnosis_page.combinations_table(healthy()).data)
    assert [row["№"] for row in rows] == [str(place) for place in range(1, 107)]


def test_causes_are_told_by_their_verdicts() -> None:
    table, oddity = healthy(), "Награда не движется, хотя KL растёт"
    (lines,) = [one.splitlines() for one in concluded(table) if one.startswith("- **")]
    assert len(lines) == 8
    rest = "та же модель награды в fp16, жадная выборка."
    assert cause(table, oddity) == f"Недостаточно: схлопнувшаяся модель награды; {rest}"
    assert cause(table, "Два прогона неотличимы") == (
        "Недостаточно: один сид на все прогоны; одна модель под двумя именами; жадная выборка, промпты по порядку; "
        "θ_init — живая ссылка на веса модели."
    ), "the control is no cause"
    for seed in SEEDS:
        assert cause(table, oddity)[:13] == ("Недостаточно:" if seed == 0 else "Не различить:")
        for number in (1, 2, 3, 4):
            moved(table, Cell(number, "collapsed", seed=seed), 1e-6)
    assert cause(table, oddity) == f"Достаточно: схлопнувшаяся модель награды. Недостаточно: {rest}"


def test_a_constant_reward_says_nothing_of_the_rate() -> None:
    table, begin = healthy(), "Если награда в отчёте была постоянной, его таблица"
    assert not [one for one in concluded(table) if one.startswith(begin)]
    for seed in SEEDS:
        for number in (1, 2, 3, 4):
            moved(table, Cell(number, "collapsed", seed=seed), 1e-6)
    assert concluded(table)[-1].startswith(begin)


@pytest.mark.parametrize("unstepped", [False, True])
@pytest.mark.parametrize(("first", "told"), [(0.03, "не ноль, а 0,03 ната."), (0.0, "")])
def test_an_arithmetic_that_makes_the_kl_of_experiment_2_makes_that_of_experiment_1_too(
    first: float, told: str, unstepped: bool
) -> None:
    table = healthy()
    for seed in SEEDS:
        for number, kl in ((1, first), (2, 0.025)):
            table[Cell(number, seed=seed).name]["kl"] |= {"float32": both(0.0), "bfloat16": both(kl), "mixed": both(kl)}
        if unstepped:
            faults, changes = WARM_UPS["never-stepped"]
            table[Cell(1, "sound", faults, changes, seed).name] = record(kl=0.0, unmoved=[1.0])
    said = [one for one in concluded(table) if one.startswith("Арифметика, которая даёт эксперименту 2 его KL")]
    assert len(said) == bool(told) and all(told in one for one in said)
    only = "Ноль в любой арифметике дал только такой прогрев: планировщик начинает с lr = 0 и не вызывается."
    assert [one.endswith(only) for one in said] == [unstepped] * len(said)


# What the reports take, and the committed notebook


def test_what_the_reports_take_is_plain_json(tmp_path: Path) -> None:
    path = tmp_path / "diagnosis.result.json"
    found = CellTable(machine(), healthy())
    save(found, "")
    save(found, str(path))
    assert [one.name for one in tmp_path.iterdir()] == [path.name]
    kept = json.loads(path.read_text(encoding="utf-8"))
    assert kept["status"] == "ok" and kept["conclusion"] == conclude(found)
    assert kept["verdicts"] == json.loads(json.dumps([*map(diagnosis_page.told, verdicts.verdicts(healthy()))]))
    assert kept["verdicts"][0]["verdict_english"] == verdicts.INSUFFICIENT
    assert kept["rows"]["original"]["exp2"]["kl_reference_policy"] == 0.02546 and kept["tried"] == 106
    assert kept["cells"] == len(healthy()) == kept["cells_seconds"] and set(kept["seen_at_step_1"]) == set(SUSPECTS)


def test_the_committed_notebook_says_what_the_table_does() -> None:
    outputs = [out for cell in nbformat.read(NOTEBOOK, 4).cells for out in cell.get("outputs", [])]
    texts = [out.get("text", "") or out.data.get("text/markdown", "") for out in outputs]
    table = read_table()
    assert "\n\n".join(conclude(table)) in texts, "make notebooks"
    assert f"{diagnosis_page.best_text(table.cells)}\n" in texts, "make notebooks"
