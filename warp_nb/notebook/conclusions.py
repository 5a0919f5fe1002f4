"""The conclusion of an experiment in Russian, derived from what was measured and from nothing else.

Each paragraph is a function of the result. The words depend on intervals and on the checks;
where the data contradict what the original report concluded for these settings, they say so.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from warp_nb.measure.checks import PERPLEXITY_RATIO, TEXT_FAULTS, Check, headline, say_faults, slope
from warp_nb.measure.evaluation import Estimate
from warp_nb.notebook.numbers import fixed, format_estimate, format_number, plural
from warp_nb.studies.original import ROWS, match

if TYPE_CHECKING:
    import pandas as pd

    from warp_nb.studies.experiment import ExperimentResult

KL_TINY = math.log(2) - 0.5
"""Nats: less than choosing the better of two completions would cost (log N - (N - 1) / N at N = 2)."""
KL_FAR = 10.0
"""Nats: more than choosing the best of about sixty thousand completions would cost."""
RIGHT_ANGLE = 15.0
"""Degrees from 90 within which task vectors count as near orthogonal: |cosine| < 0.26."""
CURVES_DIFFER = (
    "Наши данные этому противоречат: при тех же T и lr независимые прогоны различаются. "
    "Чтобы кривые двух прогонов совпали, достаточно одного сида на оба; на глаз сольются и кривые "
    "с почти постоянной наградой («Диагностика», 3 и 4)."
)
"""Said only where the instrument is healthy, that is where the runs do differ."""


def conclude(result: ExperimentResult) -> list[str]:
    """Paragraphs: checks, reward, KL, text, curves, geometry, the original's claim, the interval's meaning.

    While a check of the instrument fails, nothing is said about the original's claims.
    """
    faults = broken_instrument(result)
    paragraphs = [
        say_checks(result),
        say_reward(result),
        say_distance(result),
        say_text(result),
        say_curves(result),
        say_runs(result),
        say_geometry(result),
        "" if faults else say_original(result),
        say_interval(result),
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


def broken_instrument(result: ExperimentResult) -> list[Check]:
    """Failed checks that leave the measurement itself in doubt."""
    return [check for check in result.checks if check.failed and check.name not in TEXT_FAULTS]


def text_broken(result: ExperimentResult) -> bool:
    """Whether the completions are empty, looped or no longer text."""
    return any(check.failed for check in result.checks if check.name in TEXT_FAULTS)


def say_checks(result: ExperimentResult) -> str:
    """What failed, and what therefore cannot be concluded; nothing when all is well."""
    if not any(check.failed for check in result.checks):
        return ""
    first = headline(result.checks)
    if broken_instrument(result):
        reasons = " ".join(check.hint for check in broken_instrument(result))
        return (
            f"{first} {reasons} Пока это так, ниже только измеренные числа: вывода о величине lr, "
            "о прогреве и о качестве обучения из них не следует."
        )
    return f"{first} Измерениям можно верить: испорчен сам текст политики, и это результат обучения."


def say_reward(result: ExperimentResult) -> str:
    """Did the held-out reward change?"""
    change = result.summary["reward_difference"]
    measured = format_estimate(change, signed=True)
    if not math.isfinite(change.low + change.high):
        return f"Изменение награды измерено без интервала, судить о нём нельзя: {measured}."
    if not change.excludes_zero:
        return f"Изменение награды на отложенных началах неотличимо от нуля: {measured}."
    if not believable_change(result).excludes_zero:
        return (
            f"Интервал изменения награды не содержит нуля: {measured}. Но политика сдвинулась слишком мало: при таком "
            f"KL средняя награда может измениться самое большее примерно на {format_number(reward_bound(result), 1)} "
            "(разброс награды, умноженный на √(2·KL)). Это случайность выборки: из двадцати таких интервалов в среднем "
            "один не накрывает верного значения."
        )
    return f"Награда на отложенных началах {'выросла' if change.value > 0 else 'снизилась'}: {measured}."


def reward_bound(result: ExperimentResult) -> float:
    """How far the mean reward can be from θ_sft's at the measured KL, to first order.

    |E_p r - E_q r| <= sd(r) * sqrt(chi²(p, q)), and chi² is 2 KL for near p and q; sd(r) is the gate's spread.
    """
    return result.gate.spread * math.sqrt(2 * max(0.0, _farther(result)))


def believable_change(result: ExperimentResult) -> Estimate:
    """The change of the reward; an interval around zero where it is more than twice what the KL allows."""
    change = result.summary["reward_difference"]
    if change.excludes_zero and abs(change.value) > 2 * reward_bound(result):
        return Estimate(change.value, -abs(change.value), abs(change.value))
    return change


def say_distance(result: ExperimentResult) -> str:
    """How far the policy moved, by both KLs."""
    forward, backward = result.summary["kl_reference_policy"], result.summary["kl_policy_reference"]
    both = f"KL(sft‖warp) = {format_estimate(forward)}, KL(warp‖sft) = {format_estimate(backward)}"
    measured = f"{both} нат на последовательность"
    far = max(forward.value, backward.value)
    if not math.isfinite(forward.value + backward.value):
        return f"Расстояние до θ_sft не измерено: {measured}."
    if far < KL_TINY:
        return (
            f"Политика почти не отошла от θ_sft: {measured}. Это меньше {fixed(KL_TINY, 2)} ната; для сравнения, "
            f"столько самое большее дал бы выбор лучшего из двух продолжений θ_sft, совсем без обучения."
        )
    if far > KL_FAR:
        return f"Политика ушла от θ_sft очень далеко: {measured}."
    return f"Политика заметно отошла от θ_sft: {measured}."


def say_text(result: ExperimentResult) -> str:
    """Is the text still a review, by perplexity and distinct bigrams?"""
    if text_broken(result):
        seeds = result.config.n_seeds
        worst = f" (указано худшее из {seeds} обучений)" if seeds > 1 else ""
        text = f"Качество текста пострадало{worst}: {say_faults(result.checks)}."
        if believable_change(result).low > 0:
            text += (
                " Награда при этом выросла: её модель хвалит и такой текст, поэтому рост награды здесь не улучшение."
            )
        return text
    values = {name: format_number(result.summary[name].value) for name in result.summary}
    return (
        f"Порчи текста по числам не видно: перплексия по θ_sft {values['perplexity_policy']} у текстов WARP и "
        f"{values['perplexity_reference']} у текстов самой θ_sft, доля разных биграмм {values['distinct_policy']} и "
        f"{values['distinct_reference']}; порчей считается перплексия, изменившаяся больше чем "
        f"в {format_number(PERPLEXITY_RATIO)} раза. Всего эти числа не видят, поэтому прочтите примеры."
    )


def say_curves(result: ExperimentResult) -> str:
    """Slopes of the objective and of its two parts."""
    found = {column: slope(result.history, column) for column in ("objective", "reward", "penalty")}
    objective, reward, penalty = found["objective"], found["reward"], found["penalty"]
    if objective is None or reward is None or penalty is None:
        return "Шагов слишком мало, чтобы оценить наклон кривых обучения."
    parts = (
        f"вклад награды {format_estimate(reward, signed=True)}, вклад штрафа −β·log(π/π_ema) "
        f"{format_estimate(penalty, signed=True)}"
    )
    steps = f"{result.config.T} {plural(result.config.T, 'шаг', 'шага', 'шагов')}"
    if not objective.excludes_zero:
        return (
            f"За {steps} награда со штрафом r_β не изменилась: её наклон за шаг неотличим от нуля, "
            f"{format_estimate(objective, signed=True)}; {parts}."
        )
    if objective.value < 0:
        return f"За {steps} награда со штрафом r_β падает: наклон за шаг {format_estimate(objective)}; {parts}."
    carrier = "Рост несёт награда" if reward.low > 0 else "Рост награды сам по себе от нуля не отличить"
    if any(check.failed for check in result.checks if check.name == "objective-split"):
        carrier = "Рост несёт не награда"
    return (
        f"За {steps} награда со штрафом r_β растёт: наклон за шаг {format_estimate(objective, signed=True)}. "
        f"{carrier}: {parts}."
    )


def say_runs(result: ExperimentResult) -> str:
    """Do the runs of one iteration coincide?"""
    if result.config.M == 1:
        return "Прогон в итерации один: сливать и сравнивать нечего."
    check = next(check for check in result.checks if check.name == "runs-differ")
    if check.failed:
        return (
            f"Прогоны одной итерации совпадают ({check.measured}): на деле это один прогон, и слияние ничего не даёт."
        )
    return f"Прогоны одной итерации различны ({check.measured})."


def say_geometry(result: ExperimentResult) -> str:
    """Angles between the task vectors of the runs, block by block."""
    if result.geometry.empty:
        return ""
    omega = result.geometry["omega"].dropna()
    if omega.empty:
        return "Угол между векторами задачи не определён: хотя бы один из них нулевой в каждом блоке."
    middle = float(omega.median())
    if abs(middle - 90) <= RIGHT_ANGLE:
        words = "Векторы задачи почти ортогональны, как в статье"
    elif middle < 90:
        words = "Векторы задачи заметно сонаправлены, ортогональности из статьи здесь нет"
    else:
        words = "Векторы задачи направлены врозь: слияние гасит их"
    return (
        f"{words}: медиана угла Ω по блокам {fixed(middle, 0)}°, "
        f"от {fixed(float(omega.min()), 0)}° до {fixed(float(omega.max()), 0)}°."
    )


def say_original(result: ExperimentResult) -> str:
    """Do the data agree with what the original report concluded for these settings?"""
    number = match(result.config)
    if number is None:
        return "Такого набора параметров в исходном отчёте нет, поэтому его выводы здесь не проверяются."
    row = ROWS[number]
    claims = {1: _first, 2: _second, 3: _third, 4: _fourth}[number](result)
    intro = f"Вывод исходного отчёта об эксперименте {number}: «{row.conclusion}»."
    return " ".join([intro, *claims, f"В отчёте не сказано и принято нами: {'; '.join(row.assumed)}."])


def say_interval(result: ExperimentResult) -> str:
    """What the intervals cover."""
    if result.config.n_seeds == 1:
        return (
            "Интервалы учитывают только выбор отложенных начал: обучение выполнено один раз, "
            "шум самого обучения в них не входит."
        )
    count = result.config.n_seeds
    return (
        f"Интервалы учитывают и шум обучения: оно повторено {count} {plural(count, 'раз', 'раза', 'раз')} "
        "с разными сидами, интервал Стьюдента построен по этим обучениям."
    )


def _farther(result: ExperimentResult) -> float:
    """The larger of the two KLs, nats."""
    return max(result.summary["kl_reference_policy"].value, result.summary["kl_policy_reference"].value)


def _unmoved(result: ExperimentResult) -> bool:
    """Reward indistinguishable from before and KL tiny."""
    return not believable_change(result).excludes_zero and _farther(result) < KL_TINY


def _too_small(result: ExperimentResult) -> str:
    """The verdict on «lr is too small»."""
    change = believable_change(result)
    if change.low > 0:
        return "Наши данные ему противоречат: награда выросла и при таком lr."
    if change.high < 0:
        return "Наши данные ему противоречат: награда при таком lr изменилась, хотя и не в ту сторону."
    if not _unmoved(result):
        return (
            "Наши данные с ним согласны лишь отчасти: политика сдвинулась, а изменение награды неотличимо от нуля "
            "(малый рост этим не исключён)."
        )
    return (
        "Наши данные с ним согласуются: политика почти не сдвинулась, изменение награды неотличимо от нуля "
        "(малый рост этим не исключён)."
    )


def _first(result: ExperimentResult) -> list[str]:
    """lr too small; all four curves coincide because T is small."""
    share = float(result.history["lr"].mean()) / result.config.lr
    claims = [_too_small(result)]
    if _unmoved(result):
        claims.append(
            f"Но виноват может быть и прогрев: он рассчитан на {result.config.warmup_steps} шагов, сделано "
            f"{result.config.T}, и lr в среднем составил {format_number(100 * share, 2)}\u00a0% заданного. По одному "
            "этому эксперименту не узнать, мал ли сам lr."
        )
    return [*claims, "Совпадение кривых отчёт объясняет малым T. " + CURVES_DIFFER]


def _second(result: ExperimentResult) -> list[str]:
    """lr still too small, or the warm-up did not matter."""
    steps, assumed = result.config.T, ROWS[1].settings["warmup_steps"]
    gain = round(steps / sum(min(1.0, step / assumed) for step in range(1, steps + 1)))
    return [
        _too_small(result),
        f"О прогреве: без прогрева в {assumed} шагов сумма lr за {steps} шагов больше примерно в {gain} "
        f"{plural(gain, 'раз', 'раза', 'раз')}, так что на сдвиг политики он влиять должен. То же говорят и числа "
        f"самого отчёта, если им верить: KL(sft‖warp) {fixed(ROWS[1].kl_reference_policy, 5)} с прогревом и "
        f"{fixed(ROWS[2].kl_reference_policy, 5)} без него (сомнения — в «Диагностике», 2).",
        "Кривые двух прогонов в отчёте опять совпали. " + CURVES_DIFFER,
    ]


def _third(result: ExperimentResult) -> list[str]:
    """lr too large."""
    claims = [_too_large(result)]
    if believable_change(result).excludes_zero:
        row = ROWS[3]
        claims.append(
            f"В отчёте награда при KL(sft‖warp) = {fixed(row.kl_reference_policy, 1)} изменилась лишь "
            f"на {format_number(row.reward_policy - row.reward_reference, 1)}. У нас она изменилась; так и должно "
            "быть, когда модель награды исправна, а тексты стали другими."
        )
    return [*claims, *_iterations(result.history)]


def _too_large(result: ExperimentResult) -> str:
    """The verdict on «lr is too large»."""
    change, far = believable_change(result), _farther(result)
    if text_broken(result):
        return "Наши данные с ним согласны: текст испорчен."
    if change.high < 0:
        return "Наши данные с ним согласны: награда снизилась."
    if far > KL_FAR:
        if change.low > 0:
            return f"Ни согласия, ни противоречия: {_far_and_praised(result)}."
        return (
            f"Политика ушла далеко (KL {format_number(far)} нат), но изменение награды неотличимо от нуля, поэтому "
            "о согласии с этим выводом говорить нельзя."
        )
    if change.low > 0:
        return (
            "Наши данные его не подтверждают: награда выросла, порчи текста по числам не видно. Но и KL у нас меньше, "
            "чем в отчёте: при том же lr наша модель сдвинулась не так далеко."
        )
    return (
        "Наши данные его не подтверждают: порчи текста по числам не видно, а изменение награды неотличимо от нуля. "
        "Но и KL у нас меньше, чем в отчёте."
    )


def _far_and_praised(result: ExperimentResult) -> str:
    """Why a rise of the reward so far from θ_sft decides nothing."""
    return (
        f"награда выросла, но политика так далеко от θ_sft (KL {format_number(_farther(result))} нат), что одни меры "
        "текста не скажут, улучшение это или лесть модели награды; смотрите примеры"
    )


def _iterations(history: pd.DataFrame) -> list[str]:
    """The report's «the first iteration has more reward than the second»."""
    difference = between_iterations(history)
    if difference is None:
        return []
    claim = "В отчёте кривые первой итерации лежат выше кривых второй"
    measured = format_estimate(difference, signed=True)
    if difference.high < 0:
        return [f"{claim}; здесь тоже (вторая минус первая: {measured})."]
    if difference.low > 0:
        return [f"{claim}; здесь наоборот (вторая минус первая: {measured})."]
    return [f"{claim}; здесь итерации не различить (вторая минус первая: {measured})."]


def _fourth(result: ExperimentResult) -> list[str]:
    """Rewards grow while training; the merged policy's quality is not good."""
    change, reward = believable_change(result), slope(result.history, "reward")
    if reward is not None and reward.low > 0:
        claims = ["Рост награды по ходу обучения подтверждается."]
    elif reward is not None and reward.high < 0:
        claims = ["Рост награды по ходу обучения не подтверждается: она падает."]
    else:
        claims = ["Роста награды по ходу обучения не видно: за столько шагов её наклон неотличим от нуля."]
    if text_broken(result):
        return [*claims, "С плохим качеством наши данные согласны: текст испорчен."]
    if change.high < 0:
        return [*claims, "С плохим качеством наши данные согласны: награда итоговой политики снизилась."]
    if change.low > 0 and _farther(result) > KL_FAR:
        return [*claims, f"О качестве не судим: {_far_and_praised(result)}."]
    if change.low > 0:
        return [
            *claims,
            "С плохим качеством наши данные не согласны: награда выросла, порчи текста по числам не видно.",
        ]
    return [
        *claims,
        "О качестве эти данные не говорят: изменение награды неотличимо от нуля, порчи текста по числам не видно.",
    ]


def between_iterations(history: pd.DataFrame) -> Estimate | None:
    """Mean objective of iteration 2 minus iteration 1 with a 95 % Welch interval over the runs' means.

    None with fewer than two runs in either iteration.
    """
    from scipy.stats import ttest_ind

    means = history.groupby(["seed", "iteration", "run"])["objective"].mean()
    iteration = means.index.get_level_values("iteration")
    first, second = means[iteration == 1], means[iteration == 2]
    if min(len(first), len(second)) < 2:
        return None
    interval = ttest_ind(second, first, equal_var=False).confidence_interval(0.95)
    return Estimate(float(second.mean() - first.mean()), float(interval.low), float(interval.high))
