"""The saved texts of the lessons: those of the reports, in their order, escaped."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from fronts import LINE, comparison
from pages import tables
from synthetic import SAMPLE

from scripts import lesson_texts
from warp_nb.course import texts
from warp_nb.course.texts import before_and_after, distances, favourite_words, saved_run, saved_runs, summary_line

ATTACK = '<script>alert("$x$")</script>\u202e'


def test_the_saved_texts_are_those_of_the_committed_reports() -> None:
    found = lesson_texts.texts_of(lesson_texts.REPORTS)
    assert json.loads(lesson_texts.TEXTS.read_text(encoding="utf-8")) == found, "python scripts/lesson_texts.py"
    assert {run["task"] for run in found["runs"].values()} == {"smollm"}


def test_the_first_samples_of_a_file_are_taken_whatever_they_say(tmp_path: Path) -> None:
    name, path = "exp4", tmp_path / "exp4.result.json"
    record = json.loads((lesson_texts.REPORTS / f"{name}.result.json").read_text(encoding="utf-8"))
    record["samples"] = [record["samples"][0] | {"prompt": f"промпт {number}"} for number in range(12)]
    path.write_text(json.dumps(record), encoding="utf-8")
    samples = lesson_texts.run_of(path)["samples"]
    assert [sample["prompt"] for sample in samples] == [f"промпт {number}" for number in range(lesson_texts.COUNT)]


def test_texts_of_a_comparison_are_those_of_warp_at_the_point_of_its_file() -> None:
    record = comparison([LINE], [LINE], [LINE]).to_json()
    eta, measures, samples = lesson_texts.at_declared_kl(record)
    shown, summary = record["arms"]["WARP"]["measured"][0]["samples"], record["summary"]["WARP"]
    assert eta == shown["eta"] and samples == shown["samples"]
    assert measures["reward_policy"] == summary["reward_policy"][summary["etas"].index(eta)]
    assert measures["kl_policy_reference"]["value"] == pytest.approx(4)


@pytest.fixture
def hostile(monkeypatch: pytest.MonkeyPatch) -> None:
    sample = SAMPLE | {"prompt": ATTACK, "reference": ATTACK, "policy": ATTACK}
    attacked = replace(saved_run("exp4"), samples=[sample], command=ATTACK)
    monkeypatch.setattr(texts, "saved_runs", lambda: {"exp4": attacked})


@pytest.mark.usefixtures("hostile")
def test_text_of_a_model_is_escaped_and_shown_whole() -> None:
    html = before_and_after("exp4", 1).data
    assert "<script" not in html and html.count("&lt;script&gt;") == 4 and "\u202e" not in html
    assert html.count(r"\u202e") == 4 and "mathjax_ignore" in html


def test_before_and_after_shows_both_texts_and_rewards_of_the_first_prompts() -> None:
    head, *rows = tables(before_and_after("exp4", 2).data)[0]
    first = saved_run("exp4").samples[0]
    assert head == ["", "Текст", "Награда"] and len(rows) == 6
    assert rows[0] == ["", f"{first['prompt']}…"]
    assert [row[0] for row in rows[1:3]] == ["до", "после"]
    assert rows[1][1] == f"…{first['reference']}" and rows[2][1] == f"…{first['policy']}"


def test_unknown_names_and_counts_are_refused() -> None:
    with pytest.raises(ValueError, match=r"'exp9'; name one of exp1, exp2"):
        before_and_after("exp9")
    for count in (0, 9):
        with pytest.raises(ValueError, match=rf"between 1 and the 8 saved prompts, got {count}"):
            before_and_after("exp4", count)


def test_the_runs_are_ordered_by_their_distance() -> None:
    _, *rows = tables(distances().data)[0]
    kls = {name.removeprefix("exp"): run.kl for name, run in saved_runs().items()}
    assert [row[0] for row in rows] == sorted(kls, key=kls.__getitem__)


def test_the_line_of_a_run_reads_its_settings_and_measures(monkeypatch: pytest.MonkeyPatch) -> None:
    run = saved_run("exp4")
    measures = run.measures | {"kl_policy_reference": replace(run.measures["reward_policy"], value=70)}
    settings = dict(run.settings) | {"T": 21, "lr": 1e-5}
    changed = replace(run, measures=measures, settings=settings, shown_eta=0.45)
    monkeypatch.setattr(texts, "saved_runs", lambda: {"exp4": changed})
    assert summary_line("exp4").startswith("Эксперимент 4: lr = 10⁻⁵, 21 шаг в прогоне, точка фронта η = 0,45. ")
    assert re.search(r"KL = 70 нат \(", summary_line("exp4"))


def test_favourite_words_are_counted_in_the_shown_texts(monkeypatch: pytest.MonkeyPatch) -> None:
    written = [{"reference": "one two", "policy": "Best best, well"}, {"reference": "one", "policy": ""}]
    changed = replace(saved_run("exp3"), samples=[SAMPLE | texts for texts in written])
    monkeypatch.setattr(texts, "saved_runs", lambda: {"exp3": changed})
    found = favourite_words("exp3", 1)
    assert found == {"до": {"one": pytest.approx(2 / 3)}, "после": {"best": pytest.approx(2 / 3)}}
