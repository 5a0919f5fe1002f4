"""The index: rows beside the original's, what was assumed, which checks failed, sections, notebooks."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape as html_escape
from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from fronts import DOUBLE, LINE, comparison, earlier
from jinja2 import ChoiceLoader, DictLoader
from pages import ATTACK, Outline, links, tables
from synthetic import comparison_record, diagnosis_record, results

from warp_nb.files import write_json
from warp_nb.notebook.check_words import WORDS
from warp_nb.notebook.numbers import fixed
from warp_nb.report.catalogue import EXPERIMENTS, Experiment, results_of
from warp_nb.report.guide import Step
from warp_nb.report.index_page import index
from warp_nb.report.page import CONTENT_POLICY, PAGE_ENVIRONMENT
from warp_nb.studies.original import ASSUMED_TASK, ROWS

MISSING = {"status": "missing"}
STEP = Step("lessons/lesson1.ipynb", "Урок", "Что это?", "около 20 с", "CPU")
REPORTED = [one for one in EXPERIMENTS if one.reported]
BY_NAME = {one.name: one for one in EXPERIMENTS}
MEASURES = ["Награда SFT", "Награда WARP", "Разность", "KL(sft‖warp)", "KL(warp‖sft)"]


def everything() -> dict[str, dict[str, Any]]:
    """A result of everything that can be reported."""
    return results() | {"exp5": comparison_record(), "diagnosis": diagnosis_record()}


def page(
    found: dict[str, Any], experiments: Sequence[Experiment] = REPORTED, steps: Sequence[Step] = (), **more: str
) -> str:
    """The index of task small."""
    folders = {"notebooks": "../../notebooks/", "shared": "../"} | more
    return index("small", experiments, found, {"reward": b"png"}, steps=steps, **folders)


def main_rows(html: str) -> list[list[str]]:
    """The rows of the common table, without the headings."""
    headings, *rows = tables(html)[0]
    assert headings == ["№", "Что меняется", *MEASURES, "Проверки"]
    return rows


@pytest.fixture
def templates(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Templates beside those of the package."""
    more: dict[str, str] = {}
    monkeypatch.setattr(PAGE_ENVIRONMENT, "loader", ChoiceLoader([PAGE_ENVIRONMENT.loader, DictLoader(more)]))
    return more


def section(html: str, title: str) -> str:
    """The part of a page under a heading."""
    assert html.count(f"<h2>{title}</h2>") == 1
    return html.partition(f"<h2>{title}</h2>")[2].partition("<h2>")[0]


def test_every_experiment_stands_above_the_originals_row() -> None:
    figures = ["0,1 [0; 0,2]", "0,9 [0,8; 1]", "0,8 [0,7; 0,9]", "2 [1,8; 2,2]", "2,1 [1,9; 2,3]"]
    rows = main_rows(page(everything()))
    assert len(rows) == 2 * len(ROWS)
    for (number, row), ours, theirs in zip(ROWS.items(), rows[::2], rows[1::2], strict=True):
        assert ours[0] == str(number) and ours[1].startswith(row.change)
        assert ours[2:] == [*figures, f"пройдено {len(WORDS)}"]
        rewards = [row.reward_reference, row.reward_policy, row.reward_policy - row.reward_reference]
        kls = [row.kl_reference_policy, row.kl_policy_reference]
        original = [*(fixed(value, 7) for value in rewards), *(fixed(value, 5) for value in kls)]
        assert theirs == ["", "исходный отчёт (другая шкала)", *original, ""]


def test_what_did_not_end_well_says_only_that() -> None:
    found = everything() | {"exp1": MISSING, "exp2": {"status": "failed", "error": "<b>lr</b>"}}
    html = page(found)
    assert main_rows(html)[0] == ["1", ROWS[1].change, "не запускался"]
    assert main_rows(html)[2] == ["2", ROWS[2].change, "не закончен: <b>lr</b>"]
    assert not {"exp1.html", "exp2.html"} & links(html).keys() and "exp3.html" in links(html)
    assert "По возрастанию KL" not in html and "По возрастанию KL" in page(everything())


def test_what_was_run_and_what_of_it_was_assumed() -> None:
    found = everything()
    found["exp1"]["config"] |= {"lr": 2e-5, "warmup_steps": 3}
    rows = main_rows(page(found))
    own = f"lr = 2·10⁻⁵, прогрев 3 шага; принято нами: {ROWS[1].assumed[0]}"
    assert rows[0][1] == f"{ROWS[1].change}{own}" and ASSUMED_TASK not in own
    assert rows[2][1] == f"{ROWS[2].change}lr = 3·10⁻⁴, без прогрева"


@pytest.mark.parametrize(
    ("passed", "silent", "said"),
    [(21, 0, "пройдена 21"), (14, 1, "пройдено 14, неприменима 1"), (2, 2, "пройдены 2, неприменимы 2")],
)
def test_the_checks_are_counted(passed: int, silent: int, said: str) -> None:
    check, found = {"name": "kl-finite", "passed": True, "applies": True}, everything()
    found["exp1"]["checks"] = [check] * passed + [check | {"applies": False}] * silent
    html = page(found)
    assert main_rows(html)[0][-1] == said and not BeautifulSoup(html, "html.parser").select("td.failed")


def test_failed_checks_are_named_and_marked() -> None:
    found = everything()
    for place in (0, 3):
        found["exp1"]["checks"][place] |= {"passed": False, "applies": True}
    titles = "; ".join(WORDS[found["exp1"]["checks"][place]["name"]].title for place in (0, 3))
    html = page(found)
    assert main_rows(html)[0][-1] == f"не пройдены: {titles}"
    (marked,) = BeautifulSoup(html, "html.parser").select("td.failed")
    assert marked.get_text() == f"не пройдены: {titles}"


def test_the_order_of_kl_is_compared_with_the_originals() -> None:
    experiments, made = [BY_NAME[f"exp{number}"] for number in ROWS], results()
    for name, value in zip(made, (1e-7, 1e-5, 9.0, 0.1), strict=True):
        made[name]["summary"]["kl_reference_policy"]["value"] = value
    begin = "<p>По возрастанию KL(sft‖warp) эксперименты стоят\nв"
    same, other = f"{begin} том же порядке, что", f"{begin} другом порядке, чем"
    assert f"{same} в исходном отчёте: 1, 2, 4, 3. Сами" in page(made, experiments)
    made["exp4"]["summary"]["kl_reference_policy"]["value"] = 90.0
    assert f"{other} в исходном отчёте: 1, 2, 3, 4, а там 1, 2, 4, 3. Сами" in page(made, experiments)
    assert "По возрастанию" not in page(made | {"exp1": {"status": "failed"}}, experiments)
    assert "По возрастанию" not in page(made, experiments[:1]) + page(made, [])


def test_experiment_5_has_its_section() -> None:
    text = section(page(everything()), BY_NAME["exp5"].title)
    (headings, *rows), (_, *singles) = tables(text)
    early, late = "0,25 [0,15; 0,35]", "0,5 [0,4; 0,6]"
    assert headings[0] == "Фронт (3 обучения)"
    assert [row[:2] for row in rows] == [[name, kl] for name in ("WARP", "M = 1") for kl in "1248"]
    assert rows[2][2:] == [late, late, late, "", ""] and rows[6][2:] == [late] * 5
    assert rows[4][2:] == [early] * 5 and rows[7][2:] == ["—"] * 5
    assert [row[0] for row in singles] == ["WARP, конец алгоритма", "лучшее из 16"]
    assert singles[1][1:] == ["0,25", *[late] * 6]
    assert "<strong>WARP</strong>: вывод" in text and "не было" not in text
    assert list(links(text)) == ["exp5.html", "exp5.ipynb", "exp5.result.json"]


def test_a_section_of_an_earlier_version_says_what_its_run_lacked(tmp_path: Path) -> None:
    write_json(tmp_path / "exp5.result.json", earlier(comparison([DOUBLE], [LINE], [LINE])))
    found = results_of("smollm", tmp_path, [BY_NAME["exp5"]])
    text = section(index("smollm", [BY_NAME["exp5"]], found, {}), BY_NAME["exp5"].title)
    assert "<code>make exp5 TASK=smollm</code>" in text and tables(text)[0][0][0] == "Фронт (одно обучение)"
    assert "объявлены уже после этого запуска" in text and "Судья не измерялся" in text
    assert "впереди WARP" not in text, "the conclusion of the earlier version"


def test_the_diagnosis_has_its_section_in_every_task() -> None:
    text = section(page(everything()), BY_NAME["diagnosis"].title)
    headings = ["Гипотеза", "Вердикт", "Предсказание сбылось"]
    assert tables(text) == [[headings, ["гипотеза", "не различить", "2 из 3"]]]
    assert "<li><strong>Награда.</strong> лучшее </li>" in text
    assert list(links(text)) == ["../diagnosis.html", "../diagnosis.ipynb", "../diagnosis.result.json"]
    assert "diagnosis.html" in links(page(everything(), shared=""))


def test_a_section_without_a_result_says_the_command_or_the_error() -> None:
    html = page(everything() | {"exp5": MISSING, "diagnosis": MISSING})
    codes = [code.get_text() for code in BeautifulSoup(html, "html.parser")("code")]
    assert codes == ["warp-nb report exp5 --task small", "warp-nb report diagnosis"]
    failed = section(page(everything() | {"exp5": {"status": "failed", "error": "<b>x</b>"}}), BY_NAME["exp5"].title)
    assert "Не закончено: &lt;b&gt;x&lt;/b&gt;" in failed and not tables(failed) and not links(failed)


def test_an_experiment_is_an_entry_of_the_list_a_row_or_a_section(templates: dict[str, str]) -> None:
    templates["count.html.j2"] = "<table><tr><th>Раз</th></tr><tr><td>{{ result.count }}</td></tr></table>"
    sixth, tally = Experiment("exp6", "6", "lr = 1e-5"), Experiment("tally", "Подсчёт", section="count")
    found = everything() | {"exp6": results()["exp1"], "tally": {"status": "ok", "count": 3}}
    html = page(found, [*REPORTED, sixth, tally])
    assert main_rows(html)[-1][:2] == ["6", "lr = 1e-5lr = 3·10⁻⁴, без прогрева"]
    assert links(html)["exp6.html"] == "Эксперимент 6"
    assert tables(section(html, "Подсчёт")) == [[["Раз"], ["3"]]]
    alone = page({"tally": found["tally"]}, [tally])
    assert main_rows(alone) == [] and "ни один эксперимент не закончен" in alone


def test_the_index_leads_to_the_notebooks_where_there_are_any() -> None:
    html = page(everything(), steps=[STEP])
    rows = tables(section(html, "Тетради"))[0]
    assert rows == [["Тетрадь", "О чём", "Время", "Что нужно"], ["Урок", "Что это?", "около 20 с", "CPU"]]
    assert links(html)["../../notebooks/lessons/lesson1.ipynb"] == "Урок"
    assert "Тетради" not in page(everything())


def test_the_declared_comparisons_stand_together_with_holms_correction() -> None:
    found = everything()
    change = found["exp1"]["summary"]["reward_difference"]
    change |= {"value": 0.1, "low": 0.0, "high": 0.2}  # p is 0.05, and the largest of four
    found["exp2"]["summary"]["reward_difference"] = {"value": 0.1, "low": None, "high": None}
    found["exp3"] = MISSING
    said = " ".join(BeautifulSoup(page(found), "html.parser").get_text().split())
    assert (
        "с поправкой Холма на все эти сравнения: эксперимент 1: 0,15; эксперимент 2: 1; эксперимент 4: меньше 0,001. "
        "Остальное разведочное."
    ) in said, "of four: two are 1, so 0.05 is the second and is multiplied by 3"
    assert "Холма" not in page(found | dict.fromkeys(("exp1", "exp2", "exp4"), MISSING))


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


def attacked(value: Any) -> Any:
    """`value` with ATTACK behind every text of it but the names that the index looks up."""
    if isinstance(value, dict):
        kept = ("status", "name") if "applies" in value else ("status",)
        return {key: item if key in kept else attacked(item) for key, item in value.items()}
    if isinstance(value, list):
        return [attacked(item) for item in value]
    return value + ATTACK if isinstance(value, str) else value


def test_every_text_of_a_result_a_step_and_an_experiment_stays_text(templates: dict[str, str]) -> None:
    found = attacked(everything())
    found["exp3"] = {"status": "failed", "error": ATTACK}
    templates["own.html.j2"] = "<table><tr><td>{{ result.conclusion[0] }}</td></tr></table>"
    own, row = Experiment("own", ATTACK, ATTACK, section="own"), Experiment("row", ATTACK, ATTACK)
    found |= {"own": {"status": "ok", "conclusion": [ATTACK]}, "row": attacked(results()["exp1"])}
    step = Step(*attacked([*STEP]))
    html = page(found, [*REPORTED, row, own], [step])
    outline = Outline(html)
    assert not {"script", "iframe"} & set(outline.tags) and not outline.handlers
    assert outline.addresses and all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    shown, one = BeautifulSoup(html, "html.parser").get_text(), found["exp1"]
    wanted = [*step[1:], f"гипотеза{ATTACK}", f"не различить{ATTACK}", f"не закончен: {ATTACK}"]
    assert all(text in shown for text in [*wanted, *one["conclusion"][:2], one["run"]["command"]])
    assert tables(section(html, html_escape(ATTACK)))[0] == [[ATTACK]]


def test_the_page_is_russian_and_forbids_the_network() -> None:
    html = page(everything())
    assert '<html lang="ru">' in html and "width=device-width" in html
    soup = BeautifulSoup(html, "html.parser")
    assert soup.select_one('meta[http-equiv="Content-Security-Policy"]')["content"] == CONTENT_POLICY
    assert CONTENT_POLICY.startswith("default-src 'none'; img-src data:;")
    assert soup.title.get_text() == soup.h1.get_text() == "WARP: эксперименты, задача small"
