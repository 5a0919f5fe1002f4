"""The index: rows beside the original's, what was assumed, which checks failed."""

from __future__ import annotations

from synthetic import comparison_record, diagnosis_record, results

from warp_nb.report import index_page
from warp_nb.report.guide import Step
from warp_nb.report.results import COMPARISON, EXPERIMENTS

MISSING = {"status": "missing"}


def test_the_index_says_whether_the_original_order_of_kl_is_kept() -> None:
    made = results()
    for name, value in zip(EXPERIMENTS, (1e-7, 1e-5, 9.0, 0.1), strict=True):
        made[name]["summary"]["kl_reference_policy"]["value"] = value
    assert "в том же порядке, что в исходном отчёте: 1, 2, 4, 3." in index_page.kl_order(made)
    made["exp4"]["summary"]["kl_reference_policy"]["value"] = 90.0
    assert "в другом порядке, чем в исходном отчёте: 1, 2, 3, 4, а там 1, 2, 4, 3." in index_page.kl_order(made)
    assert index_page.kl_order(made | {"exp1": {"status": "failed"}}) == ""


def test_a_failed_check_is_named_in_the_index() -> None:
    one = results()["exp1"]
    one["checks"][0] |= {"passed": False, "applies": True}
    assert one["checks"][0]["title"] in index_page.index_row("exp1", one)
    assert "не пройдены" not in index_page.index_row("exp1", results()["exp1"])


def test_the_index_counts_the_checks_that_did_not_apply() -> None:
    checks = [{"title": "x", "passed": True, "applies": True}] * 21
    assert index_page.index_checks(checks) == "<td>пройдена 21</td>"
    silent = {"title": "y", "passed": True, "applies": False}
    assert index_page.index_checks([*checks[:14], silent]) == "<td>пройдено 14, неприменима 1</td>"
    assert index_page.index_checks([*checks[:2], silent, silent]) == "<td>пройдены 2, неприменимы 2</td>"


def test_the_index_tells_what_was_run_and_what_of_it_was_assumed() -> None:
    one = results()["exp1"]
    one["config"] |= {"lr": 2e-5, "warmup_steps": 3}
    assert "lr = 2·10⁻⁵, прогрев 3 шага; принято нами: длина прогрева" in index_page.index_row("exp1", one)
    row = index_page.index_row("exp2", one | {"config": one["config"] | {"warmup_steps": 0}})
    assert "без прогрева" in row and "принято нами" not in row
    page = index_page.index("small", results(), {}, MISSING, MISSING, [], "../")
    assert page.count("принята нами: задача, размер пакета") == 1


def test_the_index_leads_to_the_notebooks_where_there_are_any() -> None:
    step = Step("lessons/lesson1.ipynb", "<b>Урок</b>", "Что это?", "около 20 с", "CPU")
    page = index_page.index("small", results(), {}, MISSING, MISSING, [step], "../")
    assert '<a href="../../notebooks/lessons/lesson1.ipynb">&lt;b&gt;Урок&lt;/b&gt;</a>' in page
    assert "<h2>Тетради</h2>" in page and "около 20 с" in page
    assert "Тетради" not in index_page.index("small", results(), {}, MISSING, MISSING, [], "../")


def test_experiment_5_stands_in_the_index() -> None:
    text = index_page.comparison_section("small", comparison_record())
    assert "Похож на отзыв, η = 1" in text and text.count("<td>нет</td>") == 3
    assert text.count("<tr>") == 1 + 3 and f'href="{COMPARISON}.html"' in text
    assert "0,5 <small>[0,4; 0,6]" in text and "<strong>WARP</strong>" in text and "<script>" not in text


def test_the_diagnosis_stands_in_the_index_of_every_task() -> None:
    text = index_page.diagnosis_section(diagnosis_record(), "../")
    assert 'href="../diagnosis.html"' in text and "2 из 3" in text and "<li><strong>Награда.</strong>" in text
    assert "<script>" not in text and "лучшее" in text


def test_what_was_not_run_says_the_command_and_what_failed_its_error() -> None:
    assert "python -m warp_nb.report exp5 --task small" in index_page.comparison_section("small", MISSING)
    assert "python -m warp_nb diagnosis" in index_page.diagnosis_section(MISSING, "")
    failed = {"status": "failed", "error": "<b>x</b>"}
    assert "&lt;b&gt;x" in index_page.comparison_section("small", failed)
