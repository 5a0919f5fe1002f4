"""The starting page: the document first, every experiment with its outcome, the notebooks, how to repeat."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bs4 import BeautifulSoup
from fronts import DOUBLE, LINE, comparison, earlier
from pages import ATTACK, Outline, entries, links, tables
from synthetic import comparison_record, diagnosis_record, result, results

from warp_nb.files import write_json
from warp_nb.notebook.story import outcome_words
from warp_nb.report.catalogue import EXPERIMENTS, Experiment, results_of
from warp_nb.report.guide import Step
from warp_nb.report.index_page import index
from warp_nb.report.page import CONTENT_POLICY
from warp_nb.studies.original import ROWS

MISSING = {"status": "missing"}
STEP = Step("lessons/lesson1.ipynb", "Урок", "Что это?", "около 20 с", "CPU")
REPORTED = [one for one in EXPERIMENTS if one.reported]
BY_NAME = {one.name: one for one in EXPERIMENTS}


def everything() -> dict[str, dict[str, Any]]:
    """A result of everything that can be reported."""
    return results() | {"exp5": comparison_record(), "diagnosis": diagnosis_record()}


def page(
    found: dict[str, Any], experiments: Sequence[Experiment] = REPORTED, steps: Sequence[Step] = (), **more: str
) -> str:
    """The starting page of task small."""
    return index("small", experiments, found, steps=steps, **{"notebooks": "../../notebooks/", "shared": "../"} | more)


def test_the_document_is_the_first_link() -> None:
    assert next(iter(links(page(everything())))) == "../report.html"
    assert next(iter(links(page(everything(), shared="")))) == "report.html"


def test_every_experiment_is_linked_with_its_outcome() -> None:
    html = page(everything())
    said, outcome = entries(html), " ".join(outcome_words(result()).split())
    assert [*said][:4] == [f"Эксперимент {number}: {row.change}" for number, row in ROWS.items()]
    assert [*said][4:] == [BY_NAME["exp5"].title, BY_NAME["diagnosis"].title]
    assert all(said[title].startswith(outcome) for title in [*said][:4])
    assert {f"exp{number}.{kind}" for number in range(1, 6) for kind in ("html", "ipynb", "result.json")} <= {
        *links(html)
    }
    assert len(tables(html)) == 1, "how to repeat, and no table of hypotheses"


def test_the_comparison_and_the_diagnosis_say_what_they_found() -> None:
    said = entries(page(everything()))
    five = said[BY_NAME["exp5"].title]
    assert five.startswith("С T = 100 награда растёт (+0,50 [0,40; 0,60])") and "при равной KL, 4 ната, WARP" in five
    assert "опережает «M = 1»" in five
    assert said[BY_NAME["diagnosis"].title].startswith("Награда. лучшее")
    assert {"../diagnosis.html", "../diagnosis.ipynb", "../diagnosis.result.json"} <= {*links(page(everything()))}
    assert "diagnosis.html" in links(page(everything(), shared=""))


def test_a_comparison_of_an_earlier_version_is_told_without_intervals(tmp_path: Path) -> None:
    write_json(tmp_path / "exp5.result.json", earlier(comparison([DOUBLE], [LINE], [LINE])))
    found = results_of("smollm", tmp_path, [BY_NAME["exp5"]])
    (said,) = entries(index("smollm", [BY_NAME["exp5"]], found)).values()
    assert "прибавляет на 2 больше, чем «M = 1» (интервал не измерен)" in said


def test_what_did_not_end_well_says_only_that() -> None:
    html = page(everything() | {"exp1": MISSING, "exp2": {"status": "failed", "error": "<b>lr</b>"}, "exp5": MISSING})
    said = entries(html)
    first, second, *_ = said.values()
    assert first == "Не выполнен. Команда: warp-nb report exp1 --task small"
    assert second == "Не закончен: <b>lr</b>. Команда: warp-nb report exp2 --task small"
    assert said[BY_NAME["exp5"].title] == "Не выполнен. Команда: warp-nb report exp5 --task small"
    assert not {"exp1.html", "exp2.html", "exp5.html"} & links(html).keys() and "exp3.html" in links(html)
    (marked,) = BeautifulSoup(html, "html.parser").select("dd.failed")
    assert marked.get_text().startswith("Не закончен")
    alone = entries(page({"diagnosis": MISSING}, [BY_NAME["diagnosis"]]))
    assert [*alone.values()] == ["Не выполнен. Команда: warp-nb report diagnosis"]


def test_the_page_leads_to_the_notebooks_where_there_are_any() -> None:
    html = page(everything(), steps=[STEP])
    assert tables(html)[0] == [
        ["Тетрадь", "О чём", "Время", "Что нужно"],
        ["Урок", "Что это?", "около 20 с", "CPU"],
    ]
    assert links(html)["../../notebooks/lessons/lesson1.ipynb"] == "Урок"
    assert "Тетради" not in page(everything())


def test_the_footer_is_of_all_finished_experiments_together() -> None:
    found = everything()
    for number, name in enumerate(results(), start=1):
        command = f"warp-nb report {name} --task small --seeds {'3' if number < 4 else '1'}"
        found[name]["run"] |= {"command": command, "seconds": 10.0}
        found[name]["peak_rss_mb"] = 1000.0 * number
    found["exp2"]["runs"][0]["loaded"] = 1.0
    rows = dict(tables(page(found))[-1])
    assert rows["Повторить"] == "warp-nb report --task small --seeds 3; warp-nb report --task small --seeds 1"
    assert rows["Длительность"] == "40 с вместе с загрузкой" and rows["Память процесса"] == "до 4 ГБ"
    assert rows["Загружено"].startswith("готовых прогонов: 1 из 16;")
    assert "Устройство" in rows and "torch" in rows["Версии"]


def test_every_text_of_a_result_a_step_and_an_experiment_stays_text() -> None:
    found = everything()
    found["exp3"] = {"status": "failed", "error": ATTACK}
    found["exp1"]["run"]["command"] += ATTACK
    found["diagnosis"]["conclusion"] = [ATTACK]
    own = Experiment("own", ATTACK, ATTACK, section="own")
    found |= {"own": {"status": "ok", "conclusion": [ATTACK]}}
    html = page(found, [*REPORTED, own], [Step(*(text + ATTACK for text in STEP))])
    outline = Outline(html)
    assert not {"script", "iframe"} & set(outline.tags) and not outline.handlers and not outline.addresses
    shown = BeautifulSoup(html, "html.parser").get_text()
    assert all(text + ATTACK in shown for text in [*STEP[1:], "Не закончен: ", found["exp2"]["run"]["command"]])


def test_the_page_is_russian_and_forbids_the_network() -> None:
    html = page(everything())
    assert '<html lang="ru">' in html and "width=device-width" in html
    soup = BeautifulSoup(html, "html.parser")
    assert soup.select_one('meta[http-equiv="Content-Security-Policy"]')["content"] == CONTENT_POLICY
    assert soup.title.get_text() == soup.h1.get_text() == "WARP: эксперименты, конфигурация small"
