"""What the experiment notebooks call: verdicts keep away from their borders, figures hold what they say."""

from __future__ import annotations

import math

import pytest
from synthetic import result as synthetic

from warp_nb import notebook
from warp_nb.evaluation import Estimate

BORDERS = {"low": 0.0, "middle": 10.0}


@pytest.mark.parametrize(
    ("value", "spread", "said"),
    [
        (-4.0, 1.0, "low"),
        (-3.0, 1.0, "у границы"),
        (5.0, 1.0, "middle"),
        (8.0, 1.0, "у границы"),
        (14.0, 1.0, "above"),
        (0.0, 0.0, "у границы"),
        (5.0, 0.0, "middle"),
    ],
)
def test_a_verdict_within_three_standard_errors_of_a_border_is_none(value: float, spread: float, said: str) -> None:
    assert notebook.against(value, spread, BORDERS, "above") == said


def test_the_standard_error_is_a_quarter_of_the_interval() -> None:
    assert notebook.error(Estimate(1.0, 0.0, 2.0)) == pytest.approx(0.5)
    assert math.isnan(notebook.error(Estimate(1.0, math.nan, math.nan)))


def test_facts_count_what_was_run() -> None:
    result = synthetic()
    found = notebook.facts(result)
    assert found["шагов"] == len(result.history)
    assert found["прогонов"] == len(result.runs)
    assert found["проверок"] == len(result.checks)
    assert found["блоков"] == result.geometry["block"].nunique()


def test_curves_show_objective_reward_and_kl_of_every_run() -> None:
    result = synthetic()
    axes = notebook.curves(result).axes
    assert len(axes) == 3
    runs = result.history.groupby(["iteration", "run"]).ngroups
    assert all(len(ax.get_lines()) == runs for ax in axes)


def test_the_conclusion_is_the_derived_paragraphs() -> None:
    result = synthetic()
    assert notebook.conclusion(result).data.split("\n\n") == notebook.conclude(result)
