"""The conclusion of an experiment says what was measured and nothing else, through `conclude` alone."""

from __future__ import annotations

import math
import re
from itertools import combinations
from typing import Any

import pytest
from scipy.stats import t as student
from stories import CASES, sentences
from synthetic import around, equal, rechecked, result

from warp_nb.measure.checks import broken_instrument
from warp_nb.measure.estimates import Estimate
from warp_nb.notebook.check_words import WORDS, headline
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.findings import angle_facts, least_change, wanted_lr
from warp_nb.notebook.numbers import format_brief, format_number
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.studies.original import ROWS

NUMBERS = [*ROWS, None]
"""The experiments of the original report, and settings of one's own."""
FIXED = {"I", "M", "T", *ROWS[1].settings}
STILL = CASES["still"]["held_out"]
NEAR = STILL | {"kl_policy_reference": equal(0.1)}
"""Hardly moved, and yet a change of the reward that this KL allows would be seen."""
UP, DOWN = {"reward_difference": around(1.5, 0.2)}, {"reward_difference": around(-1.5, 0.2)}
FAR = CASES["gain, far"]["held_out"]
BROKEN = {"perplexity_policy": around(5000.0, 100.0)}


def experiment(number: int | None, case: dict[str, Any]) -> ExperimentResult:
    """A case with the settings of an experiment of the original report."""
    if number is None:
        return result(**(case | {"eta": 0.3}))
    return result(**{name: value for name, value in case.items() if name not in FIXED}, **ROWS[number].settings)


def text(found: ExperimentResult) -> str:
    return "\n".join(conclude(found))


def original(number: int, held_out: dict[str, Any] | None = None, **changes: Any) -> ExperimentResult:
    return result(held_out=held_out, **(ROWS[number].settings | changes))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("case", CASES)
def test_every_conclusion_is_short_clean_and_names_the_next_step(number: int | None, case: str) -> None:
    found = experiment(number, CASES[case])
    paragraphs = conclude(found)
    assert len(paragraphs) <= 5 + any(check.failed for check in found.checks)
    assert [paragraph.startswith("Следующий шаг") for paragraph in paragraphs] == [False] * (len(paragraphs) - 1) + [
        True
    ]
    for paragraph in paragraphs:
        assert paragraph.endswith((".", ".»")) and not re.search(
            r"  | [.,;:]|nan|None|inf|\d\.\d|не определено", paragraph
        )
        assert not re.search(r"(?<![\w‖-])-\d", paragraph.replace("1e-", "")), "hyphen instead of a minus"
        assert all(part[0].isupper() or part[0] in "«(θrt" for part in sentences(paragraph)), paragraph


@pytest.mark.parametrize("case", CASES)
def test_no_two_experiments_are_told_in_the_same_words(case: str) -> None:
    """The same measurements under the settings of two experiments: at most two sentences are in common."""

    def told(number: int | None) -> set[str]:
        paragraphs = conclude(found := experiment(number, CASES[case]))
        own = paragraphs[any(check.failed for check in found.checks) :]
        return {re.sub(r"[\d,·⁻⁰-⁹]+", "", part) for paragraph in own for part in sentences(paragraph)}

    if case != "no interval" and not broken_instrument(result(**CASES[case]).checks):
        for one, other in combinations(NUMBERS, 2):
            assert len(told(one) & told(other)) <= 2, told(one) & told(other)


@pytest.mark.parametrize("number", ROWS)
def test_an_experiment_tells_its_outcomes_apart(number: int) -> None:
    """What happened decides the words, not only the numbers in them."""
    apart = ["gain", "gain, far", "loss", "near", "moved", "far", "broken text, praised", "broken text, loss"]
    told = {case: re.sub(r"[\d,.·⁻⁰-⁹+−\[\]; ]+", " ", text(experiment(number, CASES[case]))) for case in apart}
    assert len(set(told.values())) == len(apart)


@pytest.mark.parametrize("number", ROWS)
@pytest.mark.parametrize(
    "unsaid", [{}, {"batch_size": 8, "max_new_tokens": 7, "temperature": 0.9, "seed": 5, "n_seeds": 3}]
)
def test_the_original_conclusion_is_quoted(number: int, unsaid: dict[str, Any]) -> None:
    assert ROWS[number].conclusion[1:] in text(original(number, **unsaid))


@pytest.mark.parametrize(
    "change", [{"T": 11}, {"lr": 2e-6}, {"anchor": "sft"}, {"merge": "lerp"}, {"baseline": "mean"}, {"eta": 0.3}]
)
def test_other_settings_are_ones_own(change: dict[str, Any]) -> None:
    found = text(original(1, **change))
    assert ROWS[1].conclusion not in found and "Такого набора параметров в исходном отчёте нет" in found


@pytest.mark.parametrize(
    ("difference", "words"),
    [
        (around(1.56, 0.14), "сильно выросла: +1,56 [1,42; 1,70]."),
        (around(0.5, 0.14), "заметно выросла: +0,50 [0,36; 0,64]."),
        (around(0.2, 0.14), "немного выросла: +0,20 [0,06; 0,34]."),
        (around(-1.56, 0.14), "сильно снизилась: −1,56 [−1,70; −1,42]."),
        (around(-0.1, 0.14), "от нуля не отличить: −0,10 [−0,24; 0,04]; различимо было бы изменение от 0,2"),
        (around(1.0, math.nan), "измерено без интервала, судить о нём нельзя: +1."),
    ],
)
def test_the_change_of_the_reward_by_its_sign_and_size(difference: Estimate, words: str) -> None:
    """The spread of the reward is 1.2: below 0.24 a change is small, above 0.96 strong."""
    assert words in text(result(held_out={"reward_difference": difference}))


@pytest.mark.parametrize(
    ("kl", "words"),
    [
        (0.009, "почти не сдвинулась: KL 0,009 ната"),
        (0.17, "сдвинулась слабо, на 0,17 ната"),
        (0.21, "заметно отошла от θ_sft: KL 0,21 ната"),
        (9.0, "заметно отошла от θ_sft: KL 9 нат."),
        (11.0, "ушла от θ_sft очень далеко: KL 11 нат."),
    ],
)
@pytest.mark.parametrize("side", ["kl_reference_policy", "kl_policy_reference"])
def test_distance_goes_by_the_larger_kl(kl: float, words: str, side: str) -> None:
    other = {"kl_reference_policy": equal(0.0), "kl_policy_reference": equal(0.0)}
    assert words in text(result(held_out=other | {side: equal(kl)}))


@pytest.mark.parametrize("number", [1, 2])
def test_where_nothing_could_be_seen_the_text_says_so_and_claims_no_agreement(number: int) -> None:
    """Of STILL: 1.2 * sqrt(2 * 1e-4), and 0.05 * (1 + t_0.8 / t_0.975) with 255 degrees of freedom."""
    found = text(original(number, STILL))
    assert "по награде этого не проверить, ведь сдвиг на 10⁻⁴ ната изменил бы её не больше чем на 0,017, " in found
    assert "а различимо здесь изменение от 0,071. Видно лишь, что политика почти не сдвинулась." in found
    assert "согласуются" not in found and "противоречат: награда" not in found


def test_the_least_change_goes_by_the_trainings_where_there_are_several() -> None:
    found = result(held_out=NEAR, n_seeds=3)
    change = found.summary["reward_difference"]
    least = (change.high - change.low) / 2 * (1 + student.ppf(0.8, 2) / student.ppf(0.975, 2))
    assert least_change(found) == pytest.approx(least)
    assert f"различимо было бы изменение от {format_number(least, 2)}." in text(found)


@pytest.mark.parametrize("number", [1, 2])
@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (STILL | UP | {"kl_policy_reference": equal(1.0)}, "этому противоречат: награда сильно выросла (+1,50"),
        (STILL | DOWN | {"kl_policy_reference": equal(1.0)}, "этому противоречат: награда изменилась и при таком lr"),
        (STILL | {"kl_policy_reference": equal(1.0)}, "согласны с этим лишь отчасти: политика сдвинулась (KL 1 нат)"),
        (NEAR, "наши данные с этим согласуются: политика сдвинулась слабо"),
    ],
)
def test_too_small_is_believed_only_where_nothing_moved(number: int, held_out: dict[str, Estimate], words: str) -> None:
    found = text(original(number, held_out))
    assert words in found and ("прогрев один объясняет" in found) == (number == 1 and held_out == NEAR)


def test_experiment_1_lays_it_to_the_warm_up_and_contradicts_the_coinciding_curves() -> None:
    found = conclude(original(1, STILL))
    assert (
        "рассчитан на 100 шагов, а прогон кончается через 10, поэтому lr в среднем составил лишь 5,5\u00a0%" in found[0]
    )
    assert "10⁻⁴ ната вместо величины, примерно в 330 раз большей." in found[0]  # 1 / 0.055²
    assert "независимые прогоны различаются (наибольший косинус" in found[2]
    assert found[-1].startswith("Следующий шаг: убрать прогрев")


def test_experiment_2_uses_the_reports_own_numbers_and_says_which_lr_is_needed() -> None:
    found = original(2, STILL)
    assert "примерно в 18 раз больше, чем с прогревом на 100 шагов" in text(found)
    assert "0,00000 с прогревом и 0,02546 без него" in text(found)
    assert wanted_lr(found) == pytest.approx(1e-4)  # a KL of 1e-4 at 1e-6, and the KL grows as lr²
    assert "нужен lr около 10⁻⁴; отчёт берёт сразу 0,001 (эксперимент 3)." in conclude(found)[-1]


@pytest.mark.parametrize(
    ("held_out", "words"),
    [
        (FAR | BROKEN | UP, "наши данные поддерживают: текст испорчен"),
        (FAR | DOWN, "наши данные поддерживают: награда снизилась"),
        (UP, "наши данные не подтверждают: награда выросла, и текст не испорчен. Но и KL у нас меньше"),
        (UP | FAR, "наши данные не подтверждают и не опровергают: награда выросла"),
        (STILL | FAR, "наши данные ни подтвердить, ни опровергнуть не могут"),
        (STILL, "наши данные не подтверждают: награда не упала, а текст не испорчен"),
    ],
)
def test_too_large(held_out: dict[str, Estimate], words: str) -> None:
    found = text(original(3, held_out))
    assert words in found and ("в 1000 раз длиннее" in found) == (held_out in (UP, STILL, FAR | BROKEN | UP))
    sure = "reward_difference" in held_out and held_out["reward_difference"].excludes_zero
    assert ("изменилась лишь на −7·10⁻⁷. У нас она изменилась" in found) == sure


@pytest.mark.parametrize("kl", [0.01, 5.0])
def test_why_the_penalty_did_not_hold_the_policy(kl: float) -> None:
    found = original(3, FAR | BROKEN)
    found.history["kl"] = kl
    said = f"к последнему шагу он в среднем {format_number(0.1 * kl, 2)}. Но Adam нормирует градиент"
    assert said in text(found) and "не больше 9,6\u00a0% пути" in text(found)  # 1 - 0.99 ** 10
    assert "Adam нормирует" not in text(original(3, UP))


@pytest.mark.parametrize(
    ("shift", "words"), [(-5.0, "здесь тоже"), (5.0, "здесь наоборот"), (0.0, "здесь их не различить")]
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
    said = format_brief(Estimate(1.5, 1.5 - half, 1.5 + half))
    assert f"здесь их не различить (вторая минус первая: {said})" in text(rechecked(found))


def test_experiment_3_without_repetitions_says_nothing_about_iterations() -> None:
    found = original(3)
    assert "кривые первой итерации" in text(found)
    found.history = found.history[found.history["run"] == 1]
    assert "кривые первой итерации" not in text(rechecked(found))


@pytest.mark.parametrize(
    ("held_out", "curves", "words"),
    [
        (UP, {"reward": 0.1}, "награда растёт. Второе нет: награда выросла, порчи текста по числам не видно."),
        (UP | FAR, {"reward": 0.1}, "награда растёт. О качестве по этим числам не судим."),
        (
            DOWN,
            {"reward": -0.1},
            "награда по ходу обучения падает. Второе — тоже: награда итоговой политики стала ниже",
        ),
        (STILL, {"reward": 0.0, "penalty": 0.0}, "подтверждается наполовину: кривые прогонов не совпадают, но роста"),
        (BROKEN, {"reward": 0.1}, "награда растёт. Второе — тоже: качество действительно плохое, текст испорчен."),
    ],
)
def test_experiment_4(held_out: dict[str, Estimate], curves: dict[str, float], words: str) -> None:
    assert words in text(original(4, held_out, curves=curves))


def test_the_next_step_of_experiment_4_is_the_fifth_unless_the_policy_went_too_far() -> None:
    assert "Это эксперимент 5, где T = 100" in conclude(original(4, UP))[-1]
    assert "эксперимент 5: T = 100 с прогревом" in conclude(original(4, NEAR))[-1]
    assert "уменьшить lr ещё; если KL растёт как lr², к одному нату ведёт lr порядка 10⁻⁵" in text(
        original(4, FAR | UP)
    )


@pytest.mark.parametrize(
    ("planted", "words"),
    [
        ({"held_out": BROKEN}, "пострадало: перплексия изменилась больше чем в 2 раза, 5000 против 50"),
        ({"held_out": {"distinct_policy": equal(0.2)}}, "повторяются по кругу, уникальных биграмм 0,2 против 0,98"),
        ({"held_out": {"variety_policy": 0.1}}, "ответы на разные промпты похожи, во всех продолжениях вместе"),
        ({"runs": {"empty_completions": 0.4}}, "пострадало: среди продолжений пустых: 40"),
    ],
)
def test_broken_text_is_named_and_its_reward_is_not_praised(planted: dict[str, Any], words: str) -> None:
    found = text(result(**planted))
    assert words in found and "Измерениям можно верить: испорчен сам текст политики" in found
    assert "поэтому этот рост — не улучшение" in found and "Порчи текста по числам не видно" not in found


def test_of_several_trainings_the_worst_text_is_told() -> None:
    for number, words in ((None, "указано худшее из 3 обучений"), (3, "худшее из 3"), (4, "худшее из 3")):
        case = {"held_out": BROKEN}
        assert words in text(experiment(number, case | {"n_seeds": 3}))
        assert "худшее" not in text(experiment(number, case))


def test_text_that_is_still_text() -> None:
    said = "Порчи текста по числам не видно: перплексия 60 против 50 у θ_sft, доля уникальных биграмм 0,97 против 0,98."
    assert said in text(result())


@pytest.mark.parametrize(
    ("omega", "words"),
    [
        (89.0, "почти под прямым углом (89° по всем весам), как в статье: SLERP сохраняет длину"),
        (53.0, "в похожие стороны (53° по всем весам, а не около 90°, как в статье)"),
        (120.0, "в разные стороны (120° по всем весам): слияние гасит"),
        (math.nan, "Угол между прогонами не определён"),
    ],
)
def test_geometry(omega: float, words: str) -> None:
    for number in (4, None):
        assert words in text(experiment(number, {"omega": omega}))


def test_orthogonality_goes_by_all_weights_and_the_block_that_carries_them_is_named() -> None:
    """The tied embedding had 62 % of the squared norm, at 51° and then at 37°; the blocks' median was 89°."""
    found = result(omega=89.0, n_seeds=2)
    for iteration, omega in ((1, 51.0), (2, 37.0)):
        heavy = (found.geometry["block"] == "wte") & (found.geometry["iteration"] == iteration)
        found.geometry.loc[heavy, ["norm_a", "norm_b"]] *= math.sqrt(2 * 0.62 / 0.38)
        found.geometry.loc[heavy, ["omega", "cosine"]] = [omega, math.cos(math.radians(omega))]
    whole = math.degrees(math.acos(0.62 * math.cos(math.radians(37)) + 0.38 * math.cos(math.radians(89))))
    facts = angle_facts(found.geometry)
    assert facts and facts["middle"] == 89.0 and facts["farthest"] == pytest.approx(whole)
    assert f"в похожие стороны ({whole:.0f}° по всем весам" in text(found)
    assert "один блок, wte: на него приходится 62\u00a0% квадрата нормы." in text(found)
    assert "один блок" not in text(result())


def test_of_one_run_no_angle_is_told() -> None:
    assert "Прогон в итерации один: сливать и сравнивать нечего." in text(result(M=1))
    assert "угл" not in text(result(M=1))


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize(
    "fault", [{"gate": {"spread": 3e-6}}, {"merges": {"delta_cosine": 1.0}}, {"runs": {"sampling_gap": 0.9}}]
)
def test_a_broken_instrument_says_so_first_and_concludes_nothing_about_lr(
    number: int | None, fault: dict[str, Any]
) -> None:
    found = experiment(number, fault)
    paragraphs, (broken,) = conclude(found), [check.name for check in found.checks if check.failed]
    assert paragraphs[0].startswith(f"{headline(found.checks)} {WORDS[broken].failure} ")
    assert "вывода о величине lr" in paragraphs[0]
    assert paragraphs[1:] == ["Следующий шаг: устранить причину и повторить запуск с теми же параметрами."]


@pytest.mark.parametrize("value", [-0.052, 0.052])
@pytest.mark.parametrize("gated", [True, False])
@pytest.mark.parametrize("number", NUMBERS)
def test_a_change_that_so_small_a_kl_cannot_make_is_called_chance(
    value: float, gated: bool, number: int | None
) -> None:
    """Three trainings of experiment 2 gave it: KL of 9e-6 nats and an interval just below zero."""
    near = {"kl_reference_policy": around(8.8e-6, 3e-6), "kl_policy_reference": around(8.9e-6, 3e-6)}
    gate, spread = ({"spread": 1.2}, 1.2) if gated else (None, 0.05 * math.sqrt(256))  # θ_sft: 0,1 ± 0,1, 256 prompts
    said = text(experiment(number, {"held_out": near | {"reward_difference": around(value, 0.048)}, "gate": gate}))
    assert "Интервал изменения награды не содержит нуля" in said and "это случайность выборки" in said
    assert not any(word in said for word in ("противоречат: награда", "согласуются", "снизилась", "выросла"))
    bound = re.search(r"не больше чем на (\S+), а различимо", said)
    assert bound and float(bound[1].replace(",", ".")) == pytest.approx(spread * math.sqrt(2 * 8.9e-6), rel=0.2)


def test_the_same_change_at_a_kl_that_allows_it_is_believed() -> None:
    far = {"kl_reference_policy": around(0.5, 0.01), "kl_policy_reference": around(0.5, 0.01)}
    found = text(original(2, far | {"reward_difference": around(-0.052, 0.048)}))
    assert "не в ту сторону (−0,052 [−0,100; −0,004])" in found and "случайность" not in found
