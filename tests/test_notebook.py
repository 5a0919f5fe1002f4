"""What the experiment notebooks call: verdicts keep away from their borders, figures hold what they say."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
from synthetic import result as synthetic

from warp_nb.config import ExperimentConfig
from warp_nb.measure.evaluation import Estimate
from warp_nb.notebook import cells as notebook
from warp_nb.notebook.numbers import format_number
from warp_nb.runs.weights import write_json

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
    assert found["не пройдены"] == []
    assert found["блоков"] == result.geometry["block"].nunique()


def test_facts_name_failed_checks_of_the_instrument_and_not_of_the_text() -> None:
    planted = synthetic(runs={"scored_after_end": 3.0, "empty_completions": 0.9}, gate={"spread": 1e-6})
    assert {"completions-nonempty", "nothing-scored-after-end"} <= planted.failed()
    assert notebook.facts(planted)["не пройдены"] == ["nothing-scored-after-end", "reward-gate-spread"]


def test_limits_warn_of_the_rounding_that_bf16_adds_to_the_curves() -> None:
    assert "bfloat16" not in notebook.limits(synthetic()).data
    found = synthetic(dtype="bfloat16")
    text = notebook.limits(found).data
    assert "ошибка округления" in text
    assert format_number(found.history["kl"].median(), 2) in text
    assert format_number(found.summary["kl_policy_reference"].value, 2) in text


def test_limits_follow_the_parameters_and_the_task() -> None:
    found = synthetic(I=1, M=3, T=7, batch_size=5, max_new_tokens=9, temperature=0.7)
    found.about |= {"task": "gpt2", "parameters": 124_000_000}
    text = notebook.limits(found).data
    assert "Задача gpt2: политика в 124 млн параметров" in text
    assert "I·M·T = 1·3·7 = 21 шаг:" in text
    assert "шаг (5)" in text and "токенах (9)" in text and "температуру (0,7)" in text


def test_the_time_is_that_of_a_kept_result_scaled_to_the_steps(tmp_path: Path) -> None:
    config = ExperimentConfig(I=2, M=2, T=10, n_seeds=2)
    assert notebook.duration(config, "small", 80, tmp_path) == {}
    kept = {"status": "ok", "seconds": 30.0, "machine": {"gpu": None, "cpu": "Z80"}}
    kept |= {"config": config.model_dump() | {"n_seeds": 1}, "history": [{"seconds": s} for s in (1.0, 2.0, 7.0)]}
    (tmp_path / "small").mkdir()
    write_json(tmp_path / "small" / "exp2.result.json", kept)
    # two trainings of forty steps of 2 s and of 20 s beside them
    assert notebook.duration(config, "small", 80, tmp_path) == {"Время": "около 3,3 мин на машине отчёта (Z80)"}
    assert notebook.duration(config.replace(n_seeds=1), "small", 4, tmp_path)["Время"].startswith("около 28 с")
    assert notebook.duration(config.replace(batch_size=8), "small", 80, tmp_path) == {}


def test_curves_show_objective_reward_and_kl_of_every_run() -> None:
    result = synthetic()
    axes = notebook.curves(result).axes
    assert len(axes) == 3
    runs = result.history.groupby(["iteration", "run"]).ngroups
    assert all(len(ax.get_lines()) == runs for ax in axes)


def test_the_conclusion_is_the_derived_paragraphs() -> None:
    result = synthetic()
    assert notebook.conclusion(result).data.split("\n\n") == notebook.conclude(result)
