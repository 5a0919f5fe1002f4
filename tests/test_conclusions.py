"""The conclusion of an experiment says what was measured and nothing else, through `conclude` alone."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

import pytest
from scipy.stats import t as student
from synthetic import around, equal, rechecked, result

from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.check_words import WORDS, headline
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.numbers import format_estimate, format_number
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.studies.original import ROWS

NOTHING = {
    "reward_difference": around(0.01, 0.05),
    "kl_reference_policy": around(1e-4, 1e-5),
    "kl_policy_reference": around(1e-4, 1e-5),
}
UNSEEN = "По награде проверить его нельзя: возможный эффект 0,017, различимый 0,071."
"""Of NOTHING: 1.2 * sqrt(2 * 1e-4), and 0.05 * (1 + t_0.8 / t_0.975) with 255 degrees of freedom."""
NEAR = NOTHING | {"kl_policy_reference": equal(0.1)}
"""Hardly moved, and yet a change of the reward that this KL allows would be seen."""
FLAT = {"reward": 0.0, "penalty": 0.0}
BROKEN_TEXT = {"perplexity_policy": around(5000.0, 100.0)}
LOST = {"kl_reference_policy": around(90.0, 5.0), "kl_policy_reference": around(100.0, 5.0)}
UP, DOWN = {"reward_difference": around(1.5, 0.2)}, {"reward_difference": around(-1.5, 0.2)}
WIDE = {"reward_difference": around(1.8, 2.0)}
"""Mostly positive, and yet it covers zero: three trainings of experiment 3 gave it."""


def text(found: ExperimentResult) -> str:
    return "\n".join(conclude(found))


def original(number: int, held_out: Mapping[str, Any] | None = None, **changes: Any) -> ExperimentResult:
    return result(held_out=held_out, **(ROWS[number].settings | changes))


@pytest.mark.parametrize("number", ROWS)
@pytest.mark.parametrize(
    "unsaid", [{}, {"batch_size": 8, "max_new_tokens": 7, "temperature": 0.9, "seed": 5, "n_seeds": 3}]
)
def test_the_original_experiment_and_what_we_assumed_of_it_are_named(number: int, unsaid: dict[str, Any]) -> None:
    found = text(original(number, **unsaid))
    assert f"Вывод исходного отчёта об эксперименте {number}: «{ROWS[number].conclusion}»." in found
    assert all(assumption in found for assumption in ROWS[number].assumed)


@pytest.mark.parametrize(
    "change", [{"T": 11}, {"lr": 2e-6}, {"anchor": "sft"}, {"merge": "lerp"}, {"baseline": "mean"}, {"eta": 0.3}]
)
def test_other_settings_are_ones_own(change: dict[str, Any]) -> None:
    found = text(original(1, **change))
    assert "Вывод исходного отчёта" not in found
    assert "Такого набора параметров в исходном отчёте нет" in found


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (
            around(1.56, 0.14),
            "Награда на отложенных началах выросла: +1,56 (95\u00a0% интервал от\u00a01,42 до\u00a01,70).",
        ),
        (around(-1.56, 0.14), "Награда на отложенных началах снизилась: −1,56"),
        (around(-0.1, 0.14), "Изменение награды на отложенных началах неотличимо от нуля: −0,10"),
        (around(1.0, math.nan), "судить о нём нельзя: +1 (интервал неизвестен)"),
    ],
)
def test_reward(difference: Estimate, words: str) -> None:
    assert words in text(result(held_out={"reward_difference": difference}))


@pytest.mark.parametrize(
    ("kl", "words"),
    [
        (0.17, "Это меньше 0,19 ната"),
        (0.21, "Политика заметно отошла от θ_sft"),
        (9.0, "Политика заметно отошла от θ_sft"),
        (11.0, "Политика ушла от θ_sft очень далеко"),
        (math.inf, "Расстояние до θ_sft не измерено"),
    ],
)
@pytest.mark.parametrize("side", ["kl_reference_policy", "kl_policy_reference"])
def test_distance_goes_by_the_larger_kl(kl: float, words: str, side: str) -> None:
    other = {"kl_reference_policy": equal(0.0), "kl_policy_reference": equal(0.0)}
    assert words in text(result(held_out=other | {side: equal(kl)}))


@pytest.mark.parametrize("number", ROWS)
def test_where_nothing_could_be_seen_the_text_says_so_and_claims_no_agreement(number: int) -> None:
    found = text(original(number, NOTHING))
    assert (
        "неотличимо от нуля: +0,010 (95\u00a0% интервал от\u00a0−0,040 до\u00a00,060). Увидеть его здесь и нельзя: при "
        "таком KL средняя награда может измениться самое большее примерно на 0,017 (разброс награды, умноженный на "
        "√(2·KL)), а различимо изменение не меньше 0,071 (двусторонний критерий, уровень 5\u00a0%, мощность 80\u00a0%)."
    ) in found
    assert "согласуются" not in found and (UNSEEN in found) == (number in (1, 2))


def test_what_could_be_seen_is_said_with_the_least_of_it() -> None:
    one, three = (text(result(held_out=NEAR, n_seeds=seeds)) for seeds in (1, 3))
    assert "Различимо было бы изменение не меньше 0,071 (двусторонний критерий" in one and "Увидеть" not in one
    found = result(held_out=NEAR, n_seeds=3)
    change = found.summary["reward_difference"]
    reach, power = student.ppf(0.975, 2), student.ppf(0.8, 2)
    least = (change.high - change.low) / 2 * (1 + power / reach)
    assert f"Различимо было бы изменение не меньше {format_number(least, 2)} (" in three
    assert "Различимо" not in text(result())


def test_a_distance_that_was_not_measured_does_not_make_the_reward_chance() -> None:
    assert "Награда на отложенных началах выросла" in text(result(held_out={"kl_policy_reference": equal(math.inf)}))


def test_text_that_is_still_text() -> None:
    found = text(result())
    assert "Порчи текста по числам не видно: перплексия по θ_sft 60" in found
    assert "у текстов WARP и 50 у текстов самой θ_sft, доля разных биграмм 0,97 и 0,98" in found


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ({"held_out": BROKEN_TEXT}, "пострадало: перплексия изменилась больше чем в 2 раза, 5"),
        (
            {"held_out": {"distinct_policy": equal(0.2)}},
            "пострадало: слова повторяются по кругу, разных биграмм 0,2 против 0,98 у θ_sft.",
        ),
        (
            {"held_out": {"variety_policy": 0.1}},
            "к разным началам дописано похожее, во всех продолжениях вместе разных биграмм 10",
        ),
        ({"runs": {"empty_completions": 0.4}}, "пострадало: среди продолжений пустых: 40"),
        (
            {"held_out": BROKEN_TEXT | {"distinct_policy": equal(0.2)}},
            "разных биграмм 0,2 против 0,98 у θ_sft; перплексия изменилась больше чем в 2 раза, 5",
        ),
    ],
)
def test_broken_text_is_named_and_its_reward_is_not_praised(planted: dict[str, Any], words: str) -> None:
    found = text(result(**planted))
    assert words in found and "Измерениям можно верить: испорчен сам текст политики" in found
    assert "поэтому рост награды здесь не улучшение" in found


def test_of_several_trainings_the_worst_text_is_told() -> None:
    assert "пострадало (указано худшее из 3 обучений): перплексия" in text(result(n_seeds=3, held_out=BROKEN_TEXT))
    assert "указано худшее" not in text(result(held_out=BROKEN_TEXT))


@pytest.mark.parametrize("reward", [DOWN, WIDE])
def test_broken_text_without_more_reward(reward: dict[str, Estimate]) -> None:
    assert "рост награды здесь не улучшение" not in text(result(held_out=BROKEN_TEXT | reward))


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ({"T": 1}, "Шагов слишком мало"),
        (
            {"curves": {"reward": 0.0, "penalty": 0.0}},
            "изменения награды со штрафом r_β не видно: её наклон за шаг, в среднем по 4 прогонам, неотличим от нуля",
        ),
        (
            {"curves": {"reward": -0.1}},
            "За 10 шагов награда со штрафом r_β падает: наклон за шаг, в среднем по 4 прогонам, −0,1",
        ),
        ({"curves": {"reward": 0.1}}, "Рост несёт награда: вклад награды +0,"),
        ({"curves": {"reward": 0.0, "penalty": 0.1}}, "Рост несёт не награда"),
        ({"T": 2, "curves": {"reward": 0.1, "noise": 0.0}}, "За 2 шага награда со штрафом r_β растёт"),
        ({"M": 1, "I": 1}, "Прогон всего один, поэтому об изменении награды со штрафом r_β за 10 шагов судить нельзя"),
    ],
)
def test_curves(planted: dict[str, Any], words: str) -> None:
    assert words in text(result(**planted))


def test_objective_that_rises_while_its_reward_is_uncertain() -> None:
    found = result()
    found.history["objective"] = 0.1 * found.history["step"]
    found.history["reward"] = 0.1 * found.history["step"] * found.history["run"].map({1: -5, 2: 7})
    assert "Рост награды сам по себе от нуля не отличить" in text(rechecked(found))


def test_runs() -> None:
    assert "Прогоны одной итерации различны (наибольший косинус по всем весам: 0,02" in text(result())
    assert "Прогон в итерации один" in text(result(M=1))
    assert "на деле это один прогон" in text(result(merges={"delta_cosine": 1.0}))


@pytest.mark.parametrize(
    ("omega", "words"),
    [
        (
            89.0,
            "почти ортогональны, как в статье: угол Ω по всем весам 89° в итерации 1, 89° в итерации 2, "
            "медиана по блокам 89° (от 89° до 89°).",
        ),
        (53.0, "заметно сонаправлены"),
        (120.0, "направлены врозь"),
        (math.nan, "Угол между векторами задачи не определён"),
    ],
)
def test_geometry(omega: float, words: str) -> None:
    assert words in text(result(omega=omega))


def test_orthogonality_goes_by_all_weights_and_the_block_that_carries_them_is_named() -> None:
    """The tied embedding had 62 % of the squared norm, at 51° and then at 37°; the blocks' median was 89°."""
    found = result(omega=89.0, n_seeds=2)
    for iteration, omega in ((1, 51.0), (2, 37.0)):
        heavy = (found.geometry["block"] == "wte") & (found.geometry["iteration"] == iteration)
        found.geometry.loc[heavy, ["norm_a", "norm_b"]] *= math.sqrt(2 * 0.62 / 0.38)
        found.geometry.loc[heavy, ["omega", "cosine"]] = [omega, math.cos(math.radians(omega))]
    whole = [
        math.degrees(math.acos(0.62 * math.cos(math.radians(omega)) + 0.38 * math.cos(math.radians(89))))
        for omega in (51, 37)
    ]
    assert (
        "Векторы задачи заметно сонаправлены, ортогональности из статьи здесь нет: угол Ω по всем весам "
        f"{whole[0]:.0f}° в итерации 1, {whole[1]:.0f}° в итерации 2, медиана по блокам 89° (от 37° до 89°). "
        "Медиана этого не показывает: в ней все блоки равны, а угол по всем весам учитывает их нормы. "
        "На один блок wte приходится 62\u00a0% квадрата нормы, его угол 51° в итерации 1, 37° в итерации 2."
    ) in text(found)


def test_of_one_iteration_the_angle_needs_no_number() -> None:
    found = text(result(omega=80.0, I=1))
    assert "угол Ω по всем весам 80°, медиана" in found and "На один блок" not in found


def test_no_geometry_without_pairs() -> None:
    assert "Ω" not in text(result(M=1))


def test_experiment_1_agrees_when_nothing_moved_and_contradicts_the_coinciding_curves() -> None:
    found = text(original(1, NEAR))
    assert "Вывод исходного отчёта об эксперименте 1: «взят слишком маленький lr»." in found
    assert "согласуются: политика почти не сдвинулась" in found
    assert "сделано 10, и lr в среднем составил 5,5\u00a0% заданного" in found
    assert "Совпадение кривых отчёт объясняет малым T. Наши данные этому противоречат" in found


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (NOTHING | UP | {"kl_policy_reference": equal(1.0)}, "противоречат: награда выросла и при таком lr"),
        (NOTHING | DOWN | {"kl_policy_reference": equal(1.0)}, "противоречат: награда при таком lr изменилась"),
        (
            NOTHING | {"kl_policy_reference": equal(1.0)},
            "согласны лишь отчасти: политика сдвинулась, а изменение награды неотличимо от нуля",
        ),
        (NOTHING | WIDE | {"kl_policy_reference": equal(1.0)}, "различимый 2,9. Видно лишь, что политика сдвинулась."),
        (NEAR, "согласуются: политика почти не сдвинулась"),
        (NOTHING, f"{UNSEEN} Видно лишь, что политика почти не сдвинулась."),
    ],
)
def test_too_small_is_believed_only_where_nothing_moved(number: int, held_out: dict[str, Estimate], words: str) -> None:
    found = text(original(number, held_out))
    assert words in found
    assert ("lr в среднем составил" in found) == (number == 1 and held_out in (NEAR, NOTHING))


def test_experiment_2_uses_the_reports_own_numbers_about_the_warm_up() -> None:
    found = text(original(2, NOTHING))
    assert "сумма lr за 10 шагов больше примерно в 18 раз" in found and "0,02546 без него" in found
    assert "на сдвиг политики он влиять должен" in found
    assert "опять совпали. Наши данные этому противоречат" in found


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (LOST | BROKEN_TEXT | UP, "согласны: текст испорчен"),
        (LOST | DOWN, "согласны: награда снизилась"),
        (UP, "не подтверждают: награда выросла, порчи текста по числам не видно. Но и KL у нас меньше"),
        (UP | LOST, "Ни согласия, ни противоречия: награда выросла, но политика так далеко от θ_sft (KL 100 нат)"),
        (NOTHING | LOST, "изменение награды неотличимо от нуля, поэтому о согласии"),
        (WIDE | LOST, "Политика ушла далеко (KL 100 нат), но изменение награды неотличимо от нуля"),
        (NOTHING, "не подтверждают: порчи текста по числам не видно, а изменение награды неотличимо от нуля"),
    ],
)
def test_too_large(held_out: dict[str, Estimate], words: str) -> None:
    found = text(original(3, held_out))
    assert words in found and "не выросла" not in found
    assert ("изменилась лишь на −7·10⁻⁷. У нас она изменилась" in found) == (
        "reward_difference" in held_out and held_out["reward_difference"].excludes_zero
    )


@pytest.mark.parametrize(
    ("shift", "words"), [(-5.0, "здесь тоже"), (5.0, "здесь наоборот"), (0.0, "итерации не различить")]
)
def test_iterations_of_experiment_3(shift: float, words: str) -> None:
    found = original(3)
    found.history.loc[found.history["iteration"] == 2, "objective"] += shift
    assert words in text(rechecked(found))


def test_the_iterations_differ_by_welch_over_the_means_of_runs() -> None:
    found = original(3)
    found.history["objective"] = found.history["run"].astype(float) * found.history["iteration"]
    # means 1, 2 and 2, 4: variances 1/2 and 2, each of two runs; Welch and Satterthwaite
    half = student.ppf(0.975, (1 / 4 + 1) ** 2 / ((1 / 4) ** 2 + 1)) * math.sqrt(1 / 4 + 1)
    said = format_estimate(Estimate(1.5, 1.5 - half, 1.5 + half), signed=True)
    assert f"итерации не различить (вторая минус первая: {said})" in text(rechecked(found))


def test_experiment_3_without_repetitions_says_nothing_about_iterations() -> None:
    found = original(3)
    assert "кривые первой итерации" in text(found)
    found.history = found.history[found.history["run"] == 1]
    assert "кривые первой итерации" not in text(rechecked(found))


@pytest.mark.parametrize(
    ("held_out", "curves", "words"),
    [
        (UP, {"reward": 0.1}, "подтверждается. С плохим качеством наши данные не согласны"),
        (UP | LOST, {"reward": 0.1}, "подтверждается. О качестве не судим: награда выросла, но политика так далеко"),
        (DOWN, {"reward": -0.1}, "не подтверждается: она падает. С плохим качеством наши данные согласны: награда"),
        (NOTHING, FLAT, "её наклон неотличим от нуля. О качестве эти данные не говорят"),
        (BROKEN_TEXT, {"reward": 0.1}, "подтверждается. С плохим качеством наши данные согласны: текст испорчен"),
    ],
)
def test_experiment_4(held_out: dict[str, Estimate], curves: dict[str, float], words: str) -> None:
    assert words in text(original(4, held_out, curves=curves))


@pytest.mark.parametrize("number", ROWS)
@pytest.mark.parametrize(
    "fault", [{"gate": {"spread": 3e-6}}, {"merges": {"delta_cosine": 1.0}}, {"runs": {"sampling_gap": 0.9}}]
)
def test_a_broken_instrument_says_so_first_and_concludes_nothing_about_lr(number: int, fault: dict[str, Any]) -> None:
    found = original(number, **fault)
    paragraphs, (broken,) = conclude(found), [check.name for check in found.checks if check.failed]
    assert paragraphs[0].startswith(f"{headline(found.checks)} {WORDS[broken].failure} ")
    assert "вывода о величине lr" in paragraphs[0]
    assert not any("исходно" in paragraph for paragraph in paragraphs)


def test_healthy_result_does_not_begin_with_checks() -> None:
    assert conclude(result())[0].startswith("Награда на отложенных началах выросла")


def test_interval_says_what_it_covers() -> None:
    for found in (result(), original(4, n_seeds=3)):
        assert "Интервалы наклонов построены по прогонам" in conclude(found)[-1]
        assert "Заранее объявлено одно сравнение: награда WARP против награды SFT. Остальное" in conclude(found)[-1]
    assert "шум самого обучения в них не входит" in text(result())
    assert "оно повторено 3 раза с разными сидами" in text(result(n_seeds=3))
    assert "Интервалы наклонов" not in text(result(I=1, M=1)) + text(result(T=1))


@pytest.mark.parametrize(
    "found", [result(), original(1, NOTHING), original(2), original(3, LOST), original(4, n_seeds=3)]
)
def test_prose_is_clean_russian(found: ExperimentResult) -> None:
    for paragraph in conclude(found):
        assert paragraph.endswith(".") and "  " not in paragraph and "nan" not in paragraph and "None" not in paragraph
        assert not re.search(r"\d\.\d", paragraph), "decimal point instead of a comma"
        assert not re.search(r"(?<![\w‖-])-\d", paragraph.replace("1e-", "")), "hyphen instead of a minus"


@pytest.mark.parametrize("value", [-0.052, 0.052])
@pytest.mark.parametrize("gated", [True, False])
def test_a_change_that_so_small_a_kl_cannot_make_is_called_chance(value: float, gated: bool) -> None:
    """Three trainings of experiment 2 gave it: KL of 9e-6 nats and an interval just below zero."""
    near = {"kl_reference_policy": around(8.8e-6, 3e-6), "kl_policy_reference": around(8.9e-6, 3e-6)}
    gate, spread = ({"spread": 1.2}, 1.2) if gated else (None, 0.05 * math.sqrt(256))  # θ_sft: 0,1 ± 0,1, 256 prompts
    said = text(original(2, near | {"reward_difference": around(value, 0.048)}, gate=gate))
    assert "Интервал изменения награды не содержит нуля" in said and "Это случайность выборки" in said
    assert "По награде проверить его нельзя: возможный эффект " in said and "согласуются" not in said
    assert not any(word in said for word in ("противоречат: награда", "снизилась", "выросла"))
    bound = re.search(r"примерно на (\S+) \(разброс", said)
    assert bound and float(bound[1].replace(",", ".")) == pytest.approx(spread * math.sqrt(2 * 8.9e-6), rel=0.2)


def test_the_same_change_at_a_kl_that_allows_it_is_believed() -> None:
    far = {"kl_reference_policy": around(0.5, 0.01), "kl_policy_reference": around(0.5, 0.01)}
    assert "снизилась: −0,052" in text(original(2, far | {"reward_difference": around(-0.052, 0.048)}))
