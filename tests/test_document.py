"""The document: contents, «Главное», sections in the original's form, what is missing, what differs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from bs4 import BeautifulSoup
from fronts import DOUBLE, LINE, comparison, earlier
from pages import ATTACK, Outline, tables
from synthetic import SAMPLE, around, comparison_record, diagnosis_record, record, result, results

from warp_nb.files import write_json
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.story import curves_reading, outcome_words
from warp_nb.report import printing
from warp_nb.report.catalogue import EXPERIMENTS
from warp_nb.report.command import main, write_document
from warp_nb.report.document import COLLAPSED_FAULT, ONE_SEED_FAULT, document, main_facts, main_sentences
from warp_nb.report.gathered import Findings
from warp_nb.report.page import CONTENT_POLICY
from warp_nb.studies.original import ROWS
from warp_nb.studies.result_files import reports_of
from warp_nb.studies.verdicts import SUFFICIENT

ROOT = Path(__file__).parents[1]
KLS = ("kl_reference_policy", "kl_policy_reference")
STILL = {"reward_difference": around(0.0, 0.2)} | dict.fromkeys(KLS, around(1e-4, 1e-5))
NOTHING = {"reward_difference": around(0.1, 0.3)}
RUN = {"run": {"command": "warp-nb report exp", "seconds": 60.0, "cores": 2, "memory_gb": 8.0}}


def written(folder: Path, found: dict[str, dict[str, Any]], task: str = "smollm") -> Findings:
    """Result files in a folder, and the findings of it."""
    for name, one in found.items():
        place = folder if name == "diagnosis" else reports_of(task, folder)
        place.mkdir(exist_ok=True)
        write_json(place / f"{name}.result.json", one)
    return Findings.read(folder, EXPERIMENTS)


def experiment(held_out: dict[str, Any] | None = None, **settings: Any) -> dict[str, Any]:
    """The result file of an experiment with these figures."""
    made = result(held_out, **settings)
    return made.to_json() | {"conclusion": conclude(made)} | RUN


def everything() -> dict[str, dict[str, Any]]:
    """A result of everything that can be reported."""
    return results() | {"exp5": comparison_record() | RUN, "diagnosis": diagnosis_record()}


def soup_of(found: Findings) -> BeautifulSoup:
    """The parsed document."""
    return BeautifulSoup(document(found), "html.parser")


def section(soup: BeautifulSoup, name: str) -> BeautifulSoup:
    """The section of an experiment."""
    return soup.select_one(f"section#{name}")


def text_of(part: Any) -> str:
    """The text of a part of a page on one line."""
    return " ".join(part.get_text().split())


def test_every_link_of_the_contents_has_one_place(tmp_path: Path) -> None:
    soup = soup_of(written(tmp_path, everything()))
    places = [link["href"] for link in soup.select("nav.contents a")]
    assert all(len(soup.select(f'[id="{place.removeprefix("#")}"]')) == 1 for place in places)
    titles = [link.get_text() for link in soup.select("nav.contents li > a")]
    assert titles[0] == "Главное" and titles[-1] == "Приложения" and len(titles) == 8
    assert titles[1:5] == [f"Эксперимент {number}: {row.change}" for number, row in ROWS.items()]
    assert {f"#exp{n}-{part}" for n in range(1, 6) for part in ("results", "training", "conclusion")} < {*places}


def test_a_section_has_the_settings_the_results_the_reading_and_the_conclusion(tmp_path: Path) -> None:
    found = everything() | {"exp1": experiment(lr=1e-6, warmup_steps=100)}
    soup = soup_of(written(tmp_path, found))
    first, made = section(soup, "exp1"), result(lr=1e-6, warmup_steps=100)
    lines = first.select_one("pre.settings").get_text().strip().splitlines()
    assert lines == [
        "I = 2", "M = 2", "T = 10", "beta = 0.1", "mu = 0.01", "eta = 0.5", "optimizer = Adam", "lr = 1e-6",
        "warm-up = 100 шагов  ← принято нами",
    ]  # fmt: skip
    assert "lr = 3e-4  ← в исходном отчёте 1e-6" in section(soup, "exp2").select_one("pre").get_text()
    headings, *rows = tables(str(first))[0]
    assert headings == ["Величина", "smollm", "исходный отчёт"]
    assert rows == [
        ["Mean SFT reward", "0,10 [0,00; 0,20]", "0,0438411"],
        ["Mean WARP reward", "0,90 [0,80; 1,00]", "0,0438411"],
        ["Разность наград", "+0,80 [0,70; 0,90]", "0,0000000"],
        ["KL(sft‖warp)", "2,00 [1,80; 2,20]", "0,00000"],
        ["KL(warp‖sft)", "2,10 [1,90; 2,30]", "0,00000"],
    ]
    said = text_of(first)
    for words in (outcome_words(made), curves_reading(made)):
        assert " ".join(words.split()) in said
    assert [part.get_text() for part in first("h3")] == ["Результаты", "Процесс обучения", "Вывод"]
    assert len(first("img")) == 1 and SAMPLE["policy"].strip() in said


def test_a_missing_and_a_failed_experiment_are_said_in_their_sections(tmp_path: Path) -> None:
    found = everything() | {"exp2": {"status": "failed", "error": "<b>lr</b>"}}
    del found["exp1"], found["exp5"], found["diagnosis"]
    soup = soup_of(written(tmp_path, found))
    assert "smollm: не выполнен. Команда: warp-nb report exp1 --task smollm" in text_of(section(soup, "exp1"))
    assert "smollm: не выполнен (<b>lr</b>)." in text_of(section(soup, "exp2"))
    assert "не выполнен. Команда: warp-nb report exp5 --task smollm" in text_of(section(soup, "exp5"))
    diagnosis = text_of(section(soup, "diagnosis"))
    assert diagnosis.endswith("не выполнен. Команда: warp-nb report diagnosis")
    assert "не выполнен" not in text_of(section(soup, "exp3"))


def test_a_folder_without_results_gives_a_document(tmp_path: Path) -> None:
    write_document(tmp_path)
    soup = BeautifulSoup((tmp_path / "report.html").read_text(), "html.parser")
    assert "Пока не выполнен ни один эксперимент" in text_of(section(soup, "main"))
    assert not soup("img") and not (tmp_path / "main.png").exists()


def test_a_folder_of_one_task_tells_of_that_task(tmp_path: Path) -> None:
    soup = soup_of(written(tmp_path, results(), task="small"))
    assert tables(str(section(soup, "exp1")))[0][0] == ["Величина", "small", "исходный отчёт"]
    assert "smollm" not in text_of(section(soup, "exp1")) and "иначе" not in text_of(soup)


def test_differing_verdicts_get_their_sentence_and_agreeing_ones_none(tmp_path: Path) -> None:
    written(tmp_path, everything())
    found = written(tmp_path, results() | {"exp3": experiment(NOTHING)}, task="small")
    soup = soup_of(found)
    third = text_of(section(soup, "exp3"))
    assert "На small иначе: изменение награды от нуля не отличить (+0,10 [−0,20; 0,40]), KL 2,1 ната." in third
    assert "иначе" not in text_of(section(soup, "exp4"))
    assert main_sentences(found)[-1] == "На small иначе кончился эксперимент 3."
    assert tables(str(section(soup, "exp3")))[0][0] == ["Величина", "smollm", "small", "исходный отчёт"]


@pytest.mark.parametrize("still", [(), ("exp1", "exp2"), ("exp1", "exp2", "exp3", "exp4")])
def test_the_main_part_has_at_most_eight_sentences(still: tuple[str, ...], tmp_path: Path) -> None:
    diagnosis = diagnosis_record()
    verdict = diagnosis["verdicts"][0]
    verdict |= {"verdict_english": SUFFICIENT}
    diagnosis["verdicts"] = [verdict | {"english": name} for name in (COLLAPSED_FAULT, ONE_SEED_FAULT)]
    written(tmp_path, everything() | {"diagnosis": diagnosis} | {name: experiment(STILL) for name in still})
    found = written(tmp_path, results() | {"exp4": experiment(NOTHING)}, task="small")
    said = main_sentences(found)
    assert len(said) == 8 - max(0, len(still) - 1) and all(sentence.endswith(".") for sentence in said)
    assert ("почти не сдвигается" in said[0]) == bool(still)
    assert any("схлопнувшаяся модель награды" in sentence for sentence in said)
    assert [text_of(item) for item in section(soup_of(found), "main")("li")] == said


def test_a_fault_is_told_of_only_where_it_is_sufficient(tmp_path: Path) -> None:
    facts = main_facts(written(tmp_path, everything()))
    assert not facts["constant"] and not facts["twins"]
    facts = main_facts(Findings.read(ROOT / "reports", EXPERIMENTS))
    assert facts["constant"] and facts["twins"], "its English name changed"


def test_broken_text_is_not_told_as_a_gain(tmp_path: Path) -> None:
    broken = {"distinct_policy": around(0.2, 0.01)}
    found = written(tmp_path, everything() | {"exp3": experiment(broken)})
    assert "но текст испорчен: слова повторяются по кругу" in main_sentences(found)[2]


@pytest.mark.parametrize("old", [True, False])
def test_experiment_5_is_told_with_its_fronts_and_its_age(old: bool, tmp_path: Path) -> None:
    made = comparison([DOUBLE], [LINE], [LINE])
    one = earlier(made) if old else made.to_json() | {"conclusion": []}
    soup = soup_of(written(tmp_path, {"exp5": one | RUN}))
    fifth = section(soup, "exp5")
    assert len(fifth("img")) == 2 and "Мы видим" in text_of(fifth)
    assert ("выполнен прежней версией" in text_of(fifth)) == old
    rows = {row[0]: row[1] for row in tables(str(fifth))[0]}
    assert rows["При KL 4: WARP минус «M = 1»"].startswith("+2") and rows["Mean WARP reward"] != "—"


def test_text_of_models_and_files_stays_text(tmp_path: Path) -> None:
    hostile = record() | {"run": {"command": ATTACK, "seconds": 1.0, "cores": 2, "memory_gb": 8.0}}
    hostile["samples"] = [{name: ATTACK if isinstance(value, str) else value for name, value in SAMPLE.items()}]
    hostile["machine"]["cpu"] = ATTACK
    diagnosis = diagnosis_record() | {"conclusion": [ATTACK]}
    html = document(written(tmp_path, everything() | {"exp4": hostile, "diagnosis": diagnosis}))
    outline = Outline(html)
    assert not {"script", "iframe"} & set(outline.tags) and not outline.handlers
    assert all(address.startswith("data:image/png;base64,") for address in outline.addresses)
    shown = BeautifulSoup(html, "html.parser").get_text()
    assert shown.count(ATTACK) >= 5, "prompt, two texts, command, processor"
    assert CONTENT_POLICY in BeautifulSoup(html, "html.parser").select_one("meta[http-equiv]")["content"]


def test_a_pdf_without_chromium_or_without_a_document_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(printing, "chromium", lambda: "chromium")
    assert main(["--pdf", "--out", str(tmp_path)]) == 1
    assert "warp-nb report --render" in capsys.readouterr().err
    monkeypatch.setattr(printing, "chromium", lambda: None)
    assert main(["--pdf", "--out", str(tmp_path)]) == 1
    assert "apt-get install chromium" in capsys.readouterr().err
