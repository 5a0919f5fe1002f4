"""What an experiment's notebook shows: verdicts keep away from their borders, figures hold what they say."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pytest
import tiny
from pages import ATTACK, Outline, records
from synthetic import around, failed, result

from warp_nb.config import ExperimentConfig
from warp_nb.files import write_json
from warp_nb.measure.estimates import Estimate
from warp_nb.notebook import experiment_page as page
from warp_nb.notebook.check_words import WORDS
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.experiment_banner import banner, time_elsewhere
from warp_nb.notebook.numbers import format_number
from warp_nb.notebook.story import curves_reading, outcome_words
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.studies.original import ROWS

BORDERS = {"low": 0.0, "middle": 10.0}


@pytest.mark.parametrize(
    ("value", "spread", "said"),
    [
        (-4.0, 1.0, "low"),
        (-3.0, 1.0, ""),
        (5.0, 1.0, "middle"),
        (8.0, 1.0, ""),
        (14.0, 1.0, "above"),
        (0.0, 0.0, ""),
        (5.0, 0.0, "middle"),
    ],
)
def test_a_verdict_within_three_standard_errors_of_a_border_is_none(value: float, spread: float, said: str) -> None:
    assert page.against(value, spread, BORDERS, "above") == said


def test_the_standard_error_is_a_quarter_of_the_interval() -> None:
    assert page.standard_error(Estimate(1.0, 0.0, 2.0)) == pytest.approx(0.5)
    assert math.isnan(page.standard_error(Estimate(1.0)))


def told(found: ExperimentResult) -> list[str]:
    return page.reproducible(found).data.splitlines()


def test_what_must_be_reproduced_is_what_was_run_and_verdicts_far_from_their_borders() -> None:
    assert told(result(T=7)) == [
        "- Сделано 28 шагов обучения в 4 прогонах; углы измерены в 3 блоках.",
        "- Все применимые проверки измерения пройдены.",
        "- Политика отошла от θ_sft: KL(warp‖sft) больше 0,19 ната.",
        "- Награда на отложенных промптах выросла.",
    ]
    near = {"kl_policy_reference": around(0.1, 0.01), "reward_difference": around(0.1, 0.2)}
    found = told(result(held_out=near, M=1, T=1, I=1))
    assert found[0] == "- Сделан 1 шаг обучения в 1 прогоне."
    assert found[2:] == [
        "- Политика сдвинулась слабо: KL(warp‖sft) от 0,01 до 0,19 ната.",
        "- Изменение награды слишком мало, чтобы обещать его знак.",
    ]
    assert told(result(held_out={"reward_difference": around(-1.0, 0.2)}))[3].endswith("промптах снизилась.")


@pytest.mark.parametrize(
    ("kl", "words"),
    [
        (around(0.001, 0.0001), "почти не сдвинулась: KL(warp‖sft) меньше 0,01 ната"),
        (around(0.19, 0.01), "слишком близок к границе"),
        (around(50.0, 1.0), "больше 0,19 ната"),
    ],
)
def test_the_shift_that_must_be_reproduced_keeps_away_from_the_borders_of_words(kl: Estimate, words: str) -> None:
    assert words in told(result(held_out={"kl_policy_reference": kl}))[2]


def test_failed_checks_of_the_instrument_must_be_reproduced_and_those_of_the_text_not() -> None:
    planted = result(runs={"scored_after_end": 3.0, "empty_completions": 0.9}, gate={"spread": 1e-6})
    assert failed(planted) == {"completions-nonempty", "nothing-scored-after-end", "reward-gate-spread"}
    titles = (WORDS["reward-gate-spread"].title, WORDS["nothing-scored-after-end"].title)
    assert told(planted)[1] == f"- Не пройдены проверки измерения: «{titles[0]}», «{titles[1]}»."


def test_limits_warn_of_the_rounding_that_bf16_adds_to_the_curves() -> None:
    in_fp32, found = page.limits(result()).data, result(dtype="bfloat16")
    (warning,) = page.limits(found).data.removeprefix(in_fp32).strip().splitlines()
    assert "bfloat16" in warning and "bfloat16" not in in_fp32
    assert f"медиана KL до якоря {format_number(found.history['kl'].median(), 2)} ната" in warning
    assert f"{format_number(found.summary['kl_policy_reference'].value, 2)} ната. Судите" in warning


def test_limits_follow_the_parameters_and_the_task() -> None:
    found = result(I=1, M=3, T=7)
    found.about |= {"task": "gpt2", "parameters": 124_000_000}
    text = page.limits(found).data
    assert "Конфигурация gpt2: политика в 124 млн параметров" in text
    assert "I·M·T = 1·3·7 = 21 шаг:" in text and "принято нами" not in text


@pytest.mark.parametrize("number", ROWS)
def test_limits_say_what_was_assumed_and_what_the_intervals_cover(number: int) -> None:
    one, three = (page.limits(result(**ROWS[number].settings, n_seeds=seeds)).data for seeds in (1, 3))
    for text in (one, three):
        assert all(assumption in text for assumption in ROWS[number].assumed)
        assert "Интервалы наклонов построены по прогонам" in text and "объявлено одно сравнение" in text
    assert "шум самого обучения в них не входит" in one and "шум самого" not in three
    assert "оно повторено 3 раза с разными сидами" in three


def report(config: ExperimentConfig, **changes: Any) -> dict[str, Any]:
    """A result file of one training, 10 s of steps and 20 s beside them."""
    settings = config.model_dump() | {"n_seeds": 1}
    found = {"status": "ok", "seconds": 30.0, "machine": {"gpu": None, "cpu": "Z80"}, "config": settings}
    return found | {"history": [{"seconds": seconds} for seconds in (1.0, 2.0, 7.0)]} | changes


def test_the_time_is_that_of_a_report_beside_or_above_scaled_to_the_steps(tmp_path: Path) -> None:
    config, folder = ExperimentConfig(I=2, M=2, T=10, n_seeds=2), tmp_path / "reports" / "small"
    assert time_elsewhere(config, "small", 80, tmp_path) is None
    folder.mkdir(parents=True)
    write_json(folder / "exp2.result.json", report(config))
    # two trainings of forty steps of 2 s and of 20 s beside them
    for near in (tmp_path, tmp_path / "notebooks" / "lessons"):
        assert time_elsewhere(config, "small", 80, near) == (200.0, "Z80")
    assert time_elsewhere(config.replace(n_seeds=1), "small", 4, tmp_path) == (28.0, "Z80")
    assert time_elsewhere(config.replace(batch_size=8), "small", 80, tmp_path) is None
    assert time_elsewhere(config, "gpt2", 80, tmp_path) is None


@pytest.mark.parametrize("other", [{"status": "failed"}, {"status": "ok"}, {"status": "ok", "count": 3}, None])
def test_a_result_without_steps_tells_no_time(other: dict[str, Any] | None, tmp_path: Path) -> None:
    config, folder = ExperimentConfig(), tmp_path / "reports"
    folder.mkdir()
    without = {key: value for key, value in report(config).items() if key != "history"}
    write_json(folder / "exp1.result.json", without if other is None else other)
    assert time_elsewhere(config, "smollm", 80, tmp_path) is None
    write_json(folder / "exp2.result.json", report(config))
    assert time_elsewhere(config, "smollm", 80, tmp_path) == (180.0, "Z80")


def test_the_banner_tells_what_will_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = ExperimentConfig(task="small", T=5, batch_size=4, n_seeds=2, dtype="float32")
    html = banner(config, tiny.task(name="small")).data
    rows = {row["Что"]: row["Значение"] for row in records(html)}
    assert rows["Конфигурация"] == "small (указана в параметрах)"
    assert rows["Промпты — начала отзывов"] == "48 для обучения, 64 отложено"
    assert rows["Объём"] == "40 шагов по 4 продолжения, всего 160"
    assert rows["Арифметика"] == "float32 в обучении, float32 в оценке"
    assert rows["CUDA-графы"] == "нет: они есть только на GPU с CUDA, здесь операции запускаются по одной"
    assert rows["Устройство"].startswith("cpu, потоков: ") and "torch" in rows["Версии"] and "Время" not in rows
    (tmp_path / "reports" / "small").mkdir(parents=True)
    write_json(tmp_path / "reports" / "small" / "exp1.result.json", report(config, machine={"gpu": "G", "cpu": "Z80"}))
    timed = {row["Что"]: row["Значение"] for row in records(banner(config, tiny.task(name="small")).data)}
    assert timed.keys() - rows.keys() == {"Время"} and timed["Время"] == "около 2 мин на машине отчёта (G)"
    own = banner(config, tiny.task(name=ATTACK), steps=7).data
    rows = {row["Что"]: row["Значение"] for row in records(own)}
    assert (
        rows["Промпты"] == "48 для обучения, 64 отложено"
        and "Промпты — начала отзывов" not in rows
        and "встроенная" not in own
    )
    assert rows["Конфигурация"] == ATTACK and rows["Объём"] == "7 шагов по 4 продолжения, всего 28"
    assert not {"script", "img"} & set(Outline(own).tags)


@pytest.mark.parametrize(
    ("reason", "said"),
    [
        ("", "генерация и шаг обучения записаны в граф один раз и воспроизводятся"),
        (ATTACK, f"нет, операции запускаются по одной, это медленнее; причина: {ATTACK}"),
    ],
)
def test_the_banner_says_what_is_captured(reason: str, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("warp_nb.notebook.experiment_banner.why_eager", lambda policy: reason)
    html = banner(ExperimentConfig(task="small", dtype="float32"), tiny.task(name="small")).data
    assert {row["Что"]: row["Значение"] for row in records(html)}["CUDA-графы"] == said
    assert not {"script", "img"} & set(Outline(html).tags)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("small", "small (GPU нет: встроенная, без Hugging Face Hub)"),
        ("smollm", "smollm (загружена по имени)"),
        ("own", "own"),
    ],
)
def test_the_banner_gives_no_reason_for_a_task_that_is_not_there(name: str, words: str) -> None:
    config = ExperimentConfig(task="auto", device="cpu")
    shown = banner(config, tiny.task(name=name)).data
    assert {row["Что"]: row["Значение"] for row in records(shown)}["Конфигурация"] == words


def test_curves_show_objective_reward_and_kl_of_every_run() -> None:
    found = result(T=4)
    figure = page.curves(found)
    for ax, column in zip(figure.axes, ("objective", "reward", "kl"), strict=True):
        wanted = [rows[column].tolist() for _, rows in found.history.groupby(["iteration", "run"])]
        assert [list(line.get_ydata()) for line in ax.get_lines()] == wanted
    assert not plt.get_fignums(), "a figure that stays open is shown twice"


def test_the_figures_show_rewards_and_angles_and_the_second_grows_with_the_blocks() -> None:
    (rewards,), (angles,) = page.rewards(result()).axes, page.block_angles(result()).axes
    assert [tick.get_text() for tick in rewards.get_yticklabels()] == ["SFT", "WARP", "разность"]
    assert [tick.get_text() for tick in angles.get_yticklabels()] == ["wte", "h.0", "h.1", "все веса"]
    alone = page.block_angles(result(M=1))
    assert [text.get_text() for text in alone.axes[0].texts] == ["Прогон один: углов нет"]
    deep = result()
    deep.geometry = deep.geometry.loc[deep.geometry.index.repeat(20)].reset_index(drop=True)
    deep.geometry["block"] = [f"h.{index}" for index in range(len(deep.geometry))]
    assert page.block_angles(deep).get_size_inches()[1] > 2 * alone.get_size_inches()[1]


def test_the_conclusion_is_shown_and_saved_as_it_is_derived(tmp_path: Path) -> None:
    found = result()
    assert page.conclusion(found).data.split("\n\n") == conclude(found)
    assert (page.outcome(found).data, page.reading(found).data) == (outcome_words(found), curves_reading(found))
    page.save(found, str(tmp_path / "exp1.result.json"))
    assert json.loads((tmp_path / "exp1.result.json").read_text()) == {
        **json.loads(json.dumps(found.to_json())),
        "outcome": outcome_words(found),
        "reading": curves_reading(found),
        "conclusion": conclude(found),
    }
    page.save(found, "")
    assert [path.name for path in tmp_path.iterdir()] == ["exp1.result.json"]


def test_nothing_is_saved_of_what_nothing_concludes_from(tmp_path: Path) -> None:
    class Other:
        def to_json(self) -> dict[str, Any]:
            return {"status": "ok"}

    with pytest.raises(TypeError, match=r"nothing concludes from Other; register a function with conclude\.register"):
        page.save(Other(), str(tmp_path / "r.json"))
    assert not list(tmp_path.iterdir())


def test_a_task_without_a_gate_has_its_page(tmp_path: Path) -> None:
    found = replace(result(gate=None), about={"task": "own", "parameters": 10, "reward": "length"})
    page.save(found, str(tmp_path / "r.json"))
    assert json.loads((tmp_path / "r.json").read_text())["gate"] is None
    assert "- Награда на отложенных промптах выросла." in told(found)
