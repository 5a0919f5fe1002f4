import math
from html.parser import HTMLParser

import pandas as pd
import pytest
from synthetic import SAMPLE, result

from warp_nb.measure.checks import TEXT
from warp_nb.notebook.tables import ORIGINAL_COLUMN, checks_table, geometry_table, results_table, samples_table
from warp_nb.studies.original import ROWS

ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)> $\\alpha$ & конец"


class Cells(HTMLParser):
    """Texts of a table's cells, row by row."""

    def __init__(self):
        super().__init__()
        self.rows = []

    def handle_starttag(self, tag, attrs):
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_data(self, data):
        if data.strip():
            self.rows[-1][-1] += data.strip()


def read(table) -> pd.DataFrame:
    cells = Cells()
    cells.feed(table.data)
    header, *rows = cells.rows
    return pd.DataFrame(rows, columns=header)


def test_results_stand_beside_the_original_where_it_ran_these_settings():
    frame = read(results_table(result(**ROWS[4].settings))).set_index("Величина")
    assert len(frame) == 9
    assert frame.loc["Разность наград, парная", "Измерено"].startswith("+0,80 (95\u00a0% интервал от\u00a00,70")
    assert frame.loc["Средняя награда WARP", ORIGINAL_COLUMN] == "0,0438342"
    assert frame.loc["Разность наград, парная", ORIGINAL_COLUMN] == "−0,0000071"
    assert frame.loc["KL(sft‖warp), нат на последовательность", ORIGINAL_COLUMN] == "33,56183"
    assert frame.loc["Доля разных биграмм WARP", ORIGINAL_COLUMN] == "нет"


def test_results_of_ones_own_parameters_stand_alone():
    assert list(read(results_table(result())).columns) == ["Величина", "Измерено"]


@pytest.mark.parametrize("field", ["prompt", "reference", "policy"])
def test_text_of_a_model_cannot_inject_and_is_whole(field):
    found = result()
    found.evaluations[0].samples[:] = [SAMPLE | {field: ATTACK * 20}]
    html = samples_table(found.evaluations[0]).data
    assert "<script" not in html and "<img" not in html
    assert "&lt;script&gt;" in html and html.count("конец") == 20
    assert "mathjax_ignore" in html and "tex2jax_ignore" in html


def test_samples_are_counted_and_their_rewards_russian():
    found = result()
    found.evaluations[0].samples[:] = [SAMPLE] * 8
    frame = read(samples_table(found.evaluations[0], 3))
    assert len(frame) == 3
    assert list(frame.iloc[0]) == ["This film", "is long.", "−0,3", "is great!", "2,1"]


def test_failed_checks_stand_first_and_silent_ones_say_so():
    frame = read(checks_table(result(M=1, runs={"scored_after_end": 3.0}).checks))
    assert len(frame) == len(TEXT)
    assert list(frame.iloc[0][["Имя", "Итог", "Измерено"]]) == [
        "nothing-scored-after-end",
        "НЕ ПРОЙДЕНА",
        "токенов после конца: 3",
    ]
    assert frame.set_index("Имя").loc["runs-differ", "Итог"] == "не применима"
    assert (frame["Итог"] == "пройдена").sum() == len(TEXT) - 2


def test_geometry_rows_and_undefined_angles():
    frame = read(geometry_table(result(omega=math.nan, n_seeds=2)))
    assert len(frame) == 2 * 2 * 3
    assert list(frame.iloc[0][["Сид", "Итерация", "Прогоны", "Блок", "Ω, °"]]) == [
        "0",
        "1",
        "1 и 2",
        "wte",
        "не определено",
    ]
    assert "Сид" not in read(geometry_table(result()))


def test_geometry_of_one_run_is_a_sentence():
    assert "Пар прогонов нет: M = 1." in geometry_table(result(M=1)).data
