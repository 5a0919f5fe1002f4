"""Tables hold the figures and escape every text."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from pages import ATTACK, Outline, records, tables
from synthetic import SAMPLE, failed, result

from warp_nb.notebook.check_words import WORDS, headline
from warp_nb.notebook.numbers import format_number
from warp_nb.notebook.prose import UNSEEN, visible
from warp_nb.notebook.tables import (
    CLASSES,
    MEASURE_WORDS,
    checks_table,
    geometry_table,
    results_table,
    samples_table,
    settings_table,
    table,
)
from warp_nb.studies.original import ROWS

HOSTILE = f"{ATTACK} $\\alpha$ & конец"


def test_results_stand_beside_the_original_where_it_ran_these_settings() -> None:
    rows = records(results_table(result(**ROWS[4].settings)).data)
    assert [row["Величина"] for row in rows] == list(MEASURE_WORDS.values())
    assert [row["Измерено"].split(" [")[0] for row in rows] == [
        *("0,10", "0,90", "+0,80", "2,00", "2,10", "50,0", "60,0", "0,980", "0,970")
    ]
    assert rows[2]["Измерено"] == "+0,80 [0,70; 0,90]"
    assert [row["Исходный отчёт"] for row in rows] == [
        *("0,0438413", "0,0438342", "−0,0000071", "33,56183", "30,76847", *["—"] * 4)
    ]


def test_results_of_ones_own_parameters_stand_alone() -> None:
    shown = results_table(result()).data
    assert {tuple(row) for row in records(shown)} == {("Величина", "Измерено")}
    assert shown.endswith("<p>В квадратных скобках 95\u00a0% интервал.</p>")


def rows_of(text: str) -> dict[str, list[str]]:
    """The rows of a Markdown table by their first cell."""
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    return {first: rest for first, *rest in cells}


@pytest.mark.parametrize(("number", "guessed"), [(1, {"warm-up"}), (2, set()), (3, set()), (4, {"lr"})])
def test_settings_stand_as_the_original_lists_them_and_say_what_we_assumed(number: int, guessed: set[str]) -> None:
    rows = rows_of(settings_table(result(**ROWS[number].settings, n_seeds=3).config).data)
    names = [name for name in rows if name not in ("Параметр", "---")]
    assert [rows[name][0] for name in names[:7]] == ["2", "2", "10", "0,1", "0,01", "0,5", "Adam"]
    assert rows["lr"][0] == format_number(ROWS[number].settings["lr"])
    assert rows["warm-up"][0] == ("линейный, 100 шагов" if number == 1 else "нет")
    assert {name for name in names[:9] if rows[name][1] == "**принято нами**"} == guessed
    assert {tuple(rows[name]) for name in names[9:]} == {
        (value, "**принято нами**") for value in ("16 продолжений", "до 24 токенов", "1", "3", "256")
    }


def test_settings_of_ones_own_have_no_source() -> None:
    rows = rows_of(settings_table(result(optimizer="sgd", lr=2.5e-5, max_new_tokens=1).config).data)
    assert rows["optimizer"] == ["SGD"] and rows["lr"] == ["2,5·10⁻⁵"] and rows["длина продолжения"] == ["до 1 токена"]


def test_checks_and_geometry_are_folded_below_a_headline() -> None:
    found = result(runs={"scored_after_end": 3.0})
    shown = checks_table(found.checks).data
    assert shown.startswith(f"<p>{headline(found.checks)}</p>\n<details><summary>") and shown.endswith("</details>")
    assert geometry_table(result()).data.startswith("<details><summary>Углы и нормы по блокам (8 строк)</summary>")
    assert "(" not in geometry_table(result(M=1)).data.partition("</summary>")[0]


@pytest.mark.parametrize("field", ["prompt", "reference", "policy"])
def test_text_of_a_model_is_whole_and_stays_text(field: str) -> None:
    found = result().evaluations[0]
    found.samples[:] = [SAMPLE | {field: HOSTILE * 20}]
    html = samples_table(found).data
    ((_, row),) = tables(html)
    assert HOSTILE * 20 in row
    assert not {"script", "img"} & set(Outline(html).tags) and not Outline(html).handlers
    assert "mathjax_ignore" in html and "tex2jax_ignore" in html


def test_headings_are_escaped_too() -> None:
    html = table([{HOSTILE: 1}]).data
    assert records(html) == [{HOSTILE: "1"}] and "script" not in Outline(html).tags


def test_samples_are_counted_and_their_rewards_russian() -> None:
    found = result().evaluations[0]
    found.samples[:] = [SAMPLE] * 8
    wanted = {"Промпт": "This film", "SFT": "is long.", "Награда SFT": "−0,3", "M=1": "is great!", "Награда M=1": "2,1"}
    assert records(samples_table(found, 3, "M=1").data) == [wanted] * 3


def test_failed_checks_stand_first_and_silent_ones_say_so() -> None:
    found = result(M=1, runs={"scored_after_end": 3.0, "empty_completions": 0.9})
    rows = records(checks_table(found.checks).data)
    assert [row["Имя"] for row in rows[:2]] == ["completions-nonempty", "nothing-scored-after-end"]
    assert {row["Имя"] for row in rows} == WORDS.keys() and failed(found) == {row["Имя"] for row in rows[:2]}
    verdicts = {row["Имя"]: row["Итог"] for row in rows}
    assert [verdicts.pop(row["Имя"]) for row in rows[:2]] == ["НЕ ПРОЙДЕНА"] * 2
    assert verdicts.pop("runs-differ") == "не применима" and set(verdicts.values()) == {"пройдена"}
    for row in rows:
        words = WORDS[row["Имя"]]
        wanted = (words.title, words.rule, words.failure)
        assert (row["Проверка"], row["Правило"], row["Что значит отказ"]) == wanted
    assert rows[1]["Измерено"] == "токенов после конца: 3"


def test_geometry_has_a_row_a_pair_and_block_and_one_over_all_weights_and_says_where_the_angle_is_undefined() -> None:
    rows = records(geometry_table(result(omega=math.nan, n_seeds=2)).data)
    places = [
        (seed, iteration, "1 и 2", block)
        for seed in ("0", "1")
        for iteration in ("1", "2")
        for block in ("wte", "h.0", "h.1", "все веса")
    ]
    assert [(row["Сид"], row["Итерация"], row["Прогоны"], row["Блок"]) for row in rows] == places
    assert {row["Ω, °"] for row in rows} == {"не определено"}
    first, _, _, whole, *_ = records(geometry_table(result(omega=60.0)).data)
    assert "Сид" not in first
    assert list(first.values()) == ["1", "1 и 2", "wte", "0,5", "60", "0,2", "0,21"]
    assert list(whole.values()) == ["1", "1 и 2", "все веса", "0,5", "60", "0,346", "0,364"], "norms times sqrt(3)"


def test_a_table_without_rows_is_a_sentence() -> None:
    assert tables(geometry_table(result(M=1)).data) == [[[""], ["Пар прогонов нет: M = 1."]]]
    assert tables(checks_table([]).data) == [[[""], ["Проверок нет."]]]
    found = result().evaluations[0]
    found.samples.clear()
    assert tables(samples_table(found).data) == [[[""], ["Примеров нет."]]]


@pytest.mark.parametrize("width", [1, 3])
def test_a_table_is_what_pandas_writes(width: int) -> None:
    texts = [
        "плохо &amp; <b>",
        "  a  b   c ",
        "x\ty\nz",
        "\xa0\xa0",
        "",
        '"$\\alpha$"',
        "漢字 😀",
        "n" * 300,
        "{}%",
        "None",
    ]
    headings = [f"{texts[place]} {place}" for place in (0, 1, 5)][:width]
    rows = [{name: texts[(start + i) % 10] for i, name in enumerate(headings)} for start in range(10)]
    with pd.option_context("display.max_colwidth", None):
        wanted = pd.DataFrame(rows).to_html(index=False, border=0, classes=CLASSES)
    assert table(rows).data == wanted
    with pd.option_context("display.max_colwidth", None):
        assert table([], "пусто").data == pd.DataFrame([{"": "пусто"}]).to_html(index=False, border=0, classes=CLASSES)
    assert records(table([{"a": 1, "b": True}, {"b": -2}]).data) == [{"a": "1", "b": "True"}, {"a": "", "b": "-2"}]


@pytest.mark.parametrize(
    ("text", "seen"),
    [
        ("плохо\x1b[2Jхорошо", "плохо␛[2Jхорошо"),
        ("gnp\u202eexe", "gnp\\u202eexe"),
        ("a\u200bb\u2066c\ufeffd\xade", "a\\u200bb\\u2066c\\ufeffd\\xade"),
        ("half \ud83d, \U000e0041, \x9b, \x7f, \0", "half \\ud83d, \\U000e0041, \\x9b, ␡, ␀"),
        ("ё, e\u0301, 🎬️, «\xa0»", "ё, e\u0301, 🎬️, «\xa0»"),
    ],
)
def test_what_a_reader_would_not_see_is_shown(text: str, seen: str) -> None:
    assert visible(f"{text}\n\t") == f"{seen}\n\t"
    found = result().evaluations[0]
    found.samples[:] = [SAMPLE | {"prompt": text, "reference": text, "policy": text}]
    html = samples_table(found, name=text).data
    assert html.count(seen) == 3 + 2 and not UNSEEN.search(html)  # cells and headings
