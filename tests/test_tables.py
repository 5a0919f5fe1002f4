"""Tables hold the figures and escape every text."""

from __future__ import annotations

import math

import pandas as pd
import pytest
from pages import ATTACK, Outline, records, tables
from synthetic import SAMPLE, failed, result

from warp_nb.notebook.check_words import WORDS
from warp_nb.notebook.prose import UNSEEN, visible
from warp_nb.notebook.tables import (
    CLASSES,
    MEASURE_WORDS,
    checks_table,
    geometry_table,
    results_table,
    samples_table,
    table,
)
from warp_nb.studies.original import ROWS

HOSTILE = f"{ATTACK} $\\alpha$ & конец"


def test_results_stand_beside_the_original_where_it_ran_these_settings() -> None:
    rows = records(results_table(result(**ROWS[4].settings)).data)
    assert [row["Величина"] for row in rows] == list(MEASURE_WORDS.values())
    assert [row["Измерено"].split(" (")[0] for row in rows] == [
        *("0,10", "0,90", "+0,80", "2,00", "2,10", "50,0", "60,0", "0,980", "0,970")
    ]
    assert rows[2]["Измерено"] == "+0,80 (95\u00a0% интервал от\u00a00,70 до\u00a00,90)"
    assert [row["Исходный отчёт (другие модель и шкала награды)"] for row in rows] == [
        *("0,0438413", "0,0438342", "−0,0000071", "33,56183", "30,76847", *["нет"] * 4)
    ]


def test_results_of_ones_own_parameters_stand_alone() -> None:
    assert {tuple(row) for row in records(results_table(result()).data)} == {("Величина", "Измерено")}


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
    wanted = {"Начало": "This film", "SFT": "is long.", "Награда SFT": "−0,3", "M=1": "is great!", "Награда M=1": "2,1"}
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
