"""«Итог» and the reading of the curves: what is said follows the measurements, live or read from a result file."""

from __future__ import annotations

import json
import re

import pandas as pd
import pytest
from stories import CASES, sentences
from synthetic import rechecked, result

from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.story import curves_reading, outcome_words
from warp_nb.studies.experiment import ExperimentResult


@pytest.mark.parametrize("case", CASES)
def test_words_are_the_same_from_the_result_file(case: str) -> None:
    live = result(**CASES[case])
    read = ExperimentResult.from_json(json.loads(json.dumps(live.to_json())))
    for words in (outcome_words, curves_reading, conclude):
        assert words(read) == words(live)
    assert read.to_json() == json.loads(json.dumps(live.to_json()))


@pytest.mark.parametrize("case", CASES)
def test_an_outcome_has_two_sentences_and_a_reading_two_to_four(case: str) -> None:
    found = result(**CASES[case])
    outcome, reading = outcome_words(found), curves_reading(found)
    assert len(sentences(outcome)) == 2, outcome
    assert 2 <= len(sentences(reading)) <= 4 and reading.startswith("Мы видим"), reading
    for text in (outcome, reading):
        assert text.endswith(".") and "  " not in text and " ." not in text and " ," not in text
        assert not re.search(r"nan|None|\d\.\d|(?<![\w‖-])-\d", text), text


def test_no_two_outcomes_share_their_words() -> None:
    """Cases that differ in what they mean are told in other words, not only with other numbers."""
    named = [case for case in CASES if case not in ("one run", "one step", "own task", *list(CASES)[-5:])]
    found = {case: re.sub(r"[\d,.·⁻⁰-⁹+−\[\]; ]+", " ", outcome_words(result(**CASES[case]))) for case in named}
    assert len(set(found.values())) == len(named)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        ("scissors", "Мы видим ножницы: награда растёт на 0,1 за шаг, а r_β падает на 0,2"),
        ("falls", "Мы видим, что r_β падает"),
        ("gain", "Мы видим рост: награда прибавляет 0,1 за шаг, штраф почти ничего не отнимает"),
        ("penalty only", "Мы видим, что верхняя кривая растёт"),
        ("both", "растут и награда"),
        ("still", "веса прогонов почти равны"),
        ("still, warm-up", "Мы видим 4 шумные линии на одном уровне"),
        ("one run", "сравнивать его не с чем"),
    ],
)
def test_the_reading_follows_the_curves(case: str, words: str) -> None:
    assert words in curves_reading(result(**CASES[case]))


def test_the_share_that_the_penalty_takes_is_of_the_rewards_rise() -> None:
    assert "штраф отнимает 50\u00a0% прироста" in curves_reading(
        result(curves={"reward": 0.1, "penalty": -0.05, "noise": 0})
    )


def test_equal_curves_are_called_one_run_and_diverging_ones_apart() -> None:
    found = result()
    one = found.history[found.history["run"] == 1]
    found.history = pd.concat([one, one.assign(run=2)], ignore_index=True)
    assert "совпадают до последней цифры" in curves_reading(rechecked(found))
    apart = result()
    apart.history.loc[apart.history["run"] == 2, "objective"] += 5.0
    assert "theta1_1 и theta2_1 расходятся: между прогонами одной итерации в среднем 5" in curves_reading(apart)


def test_a_penalty_too_small_to_be_seen_is_said_to_be_so() -> None:
    for case, words in (
        ("still, warm-up", "К последнему шагу lr дошёл лишь до 10⁻⁷, а KL до"),
        ("still", "KL до якоря у"),
    ):
        found = result(**CASES[case])
        found.history["kl"] *= 1e-4
        assert f"{words}" in curves_reading(found) and "панель повторяет среднюю" in curves_reading(found)


@pytest.mark.parametrize(
    ("shift", "words"), [(5.0, "начинает выше первой"), (-5.0, "начинает ниже первой"), (0.0, "не отличить")]
)
def test_the_start_of_the_second_iteration(shift: float, words: str) -> None:
    found = result()
    found.history.loc[found.history["iteration"] == 2, "objective"] += shift
    assert words in curves_reading(found)
