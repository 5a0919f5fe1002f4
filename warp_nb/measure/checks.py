"""Checks that make a silent failure loud: every experiment runs all of them and shows the table.

A failed check does not stop a report: it is its first line. A check that has nothing to look
at (one run, one step, no anchor to move) says so with `applies=False`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import TYPE_CHECKING

from warp_nb.measure.evaluation import Estimate
from warp_nb.notebook.numbers import format_estimate, format_number, format_share, plural

if TYPE_CHECKING:
    import pandas as pd

    from warp_nb.config import WarpConfig
    from warp_nb.measure.evaluation import Evaluation
    from warp_nb.tasks.reward_model import RewardGate

PAIR_ACCURACY = 0.7
"""A word list reaches 0.70 on IMDb pairs; a model below it has learnt nothing."""
SPREAD = 0.01
"""A collapsed reward model spread by 3e-6 and an untrained head by 2e-3."""
SENTENCES = 0.75
"""Half-way between guessing and always right."""
SWAP_OF_SPREAD = 0.1
"""A reward that reads completions moves by about its own spread; one that reads the prompt, by 0."""
SAME_DIRECTION = 0.999
"""Independent runs were seen at cosines of 0.005 to 0.6; equal ones at 1."""
ANCHOR_ERROR = 0.02
"""Relative to the expected displacement, fp32 rounding taken off: a frozen anchor has 1."""
LITI_ERROR = 0.02
"""fp32 rounding of small task vectors stays far below it."""
KL_FLOOR = -1e-5
"""The per-token KL of two equal models reaches -2.4e-6 in fp32."""
CARRIED_BY_REWARD = 0.5
"""The reward's share of the objective's rise."""
EMPTY_SHARE = 0.1
"""A sound policy may end at once now and then: 3 of 32 completions in a run of one step."""
DISTINCT_RATIO = 0.8
"""A completion of 24 tokens that repeats a five-word phrase has about a fifth of distinct bigrams."""
VARIETY_RATIO = 0.5
"""Distinct bigrams of all completions together; one sentence after every prompt leaves a hundredth."""
PERPLEXITY_RATIO = 2.0
"""Every token half as likely under the reference as its own text is, or twice as likely."""
SAMPLING_GAP = {"float32": 0.01, "bfloat16": 0.5}
"""Nats a token: a temperature of 0.9 against 1.0 shifts rare tokens by 0.5 and more; bf16 rounds logits by 0.1.

Of a step the worst token counts, of a run the median step: a fault is there in every step, while in bf16 single
tokens of a wrecked policy go apart by many nats in some."""

TEXT = {
    "reward-gate-accuracy": (
        "Модель награды различает хорошее и плохое",
        f"верных пар больше {format_share(PAIR_ACCURACY)}",
        "Награда не знает, что такое хороший отзыв: не та метка, не тот токенизатор или обучение не сошлось.",
    ),
    "reward-gate-spread": (
        "Награда не постоянна",
        f"стандартное отклонение больше {format_number(SPREAD)}",
        "Оценки почти равны для разных текстов: модель награды схлопнулась, никакой lr такую награду не поднимет.",
    ),
    "reward-gate-sentences": (
        "Хорошая фраза оценена выше плохой",
        f"доля верных пар фраз не меньше {format_share(SENTENCES)}",
        "Явная похвала получила не больше явной брани: проверьте метки и знак.",
    ),
    "reward-gate-swap": (
        "Награда читает продолжение, а не только начало",
        f"замена продолжения меняет оценку больше чем на {format_number(SWAP_OF_SPREAD)} разброса оценок",
        "Оценка зависит лишь от начала отзыва, которое политика не выбирает.",
    ),
    "runs-differ": (
        "Прогоны одной итерации различны",
        f"косинус векторов задачи по всем весам меньше {format_number(SAME_DIRECTION)}, кривые не совпадают",
        "Один сид, одна и та же модель или один и тот же пакет: вместо M прогонов получился один.",
    ),
    "deltas-nonzero": (
        "Веса сдвинулись",
        "норма каждого вектора задачи больше нуля",
        "Оптимизатор не изменил ни одного веса: lr = 0, планировщик не вызван или сдвиг меньше, чем видит fp32.",
    ),
    "anchor-formula": (
        "Якорь движется по формуле",
        f"относительная ошибка сдвига не больше {format_number(ANCHOR_ERROR)}; якорь sft не сдвинулся",
        "Скользящее среднее не обновляется, хранится в bf16 или это та же модель, что и политика.",
    ),
    "liti-formula": (
        "LITI проходит долю пути η",
        f"измеренная доля отличается от η не больше чем на {format_number(LITI_ERROR)}",
        "Перепутаны η и 1 − η, либо сдвиг потерян при округлении.",
    ),
    "kl-finite": (
        "KL конечна и не меньше нуля",
        f"каждая KL конечна и не меньше {format_number(KL_FLOOR)} ната: столько даёт округление",
        "Под логарифмом не распределение, или вероятность и её логарифм посчитаны по-разному: температура, точность.",
    ),
    "objective-split": (
        "Рост r_β несёт награда",
        f"значимый рост r_β не меньше чем на {format_share(CARRIED_BY_REWARD)} состоит из роста награды",
        "Растёт слагаемое −β·log(π/π_ema), а не награда: подъём кривой не значит, что политика учится.",
    ),
    "completions-nonempty": (
        "Продолжения не пусты",
        f"пустых не больше {format_share(EMPTY_SHARE)}",
        "Политика сразу заканчивает текст, либо продолжение вырезано вместе с началом.",
    ),
    "completions-diverse": (
        "Продолжения не зациклились",
        f"доля разных биграмм не меньше {format_number(DISTINCT_RATIO)} доли у θ_sft",
        "Политика повторяет одно и то же: награда найдена не там, где её искали.",
    ),
    "completions-varied": (
        "После разных начал разные продолжения",
        f"доля разных биграмм во всех продолжениях вместе не меньше {format_number(VARIETY_RATIO)} доли у θ_sft",
        "Политика отвечает на всё почти одним и тем же: нашлась фраза, которую награда любит.",
    ),
    "completions-fluent": (
        "Продолжения похожи на текст θ_sft",
        f"перплексия по θ_sft отличается от перплексии её собственных текстов не больше чем "
        f"в {format_number(PERPLEXITY_RATIO)} раза",
        "Выше: текст стал набором слов, и оценка модели награды на нём ничего не значит. "
        "Ниже: остались одни заученные обороты.",
    ),
    "sampling-scoring": (
        "Сэмплирование и оценка видят одну политику",
        "расхождение логарифма вероятности худшего токена, медиана по шагам прогона: не больше "
        f"{format_number(SAMPLING_GAP['float32'])} нат (в bf16 — {format_number(SAMPLING_GAP['bfloat16'])})",
        "Разные температуры, top-k, dropout или позиции при порождении и при оценке.",
    ),
    "nothing-scored-after-end": (
        "После конца текста ничего не считается",
        "ни одного токена после первого токена конца",
        "Паддинг считается продолжением: маска не там, где кончается текст.",
    ),
}


TEXT_FAULTS = {
    "completions-nonempty": "среди продолжений",
    "completions-diverse": "слова повторяются по кругу, разных биграмм",
    "completions-varied": "к разным началам дописано похожее, во всех продолжениях вместе разных биграмм",
    "completions-fluent": f"перплексия изменилась больше чем в {format_number(PERPLEXITY_RATIO)} раза,",
}
"""Of the checks of what the policy writes what is wrong, followed by what was measured.

What a policy writes is a result of its training; every other check is about the instrument.
"""


@dataclass(frozen=True)
class Check:
    """One check; everything but `name` is Russian. Where `applies` is False, `passed` says nothing."""

    name: str
    title: str
    passed: bool
    measured: str
    rule: str
    hint: str
    applies: bool = True

    @property
    def failed(self) -> bool:
        """Whether it looked at something and found a fault."""
        return self.applies and not self.passed


def run_checks(
    gate: RewardGate,
    history: pd.DataFrame,
    runs: pd.DataFrame,
    merges: pd.DataFrame,
    evaluations: Sequence[Evaluation],
    config: WarpConfig,
) -> list[Check]:
    """All checks, in the order of `TEXT`."""
    return [
        *check_reward(gate),
        check_runs_differ(history, merges, config),
        check_deltas(runs),
        check_anchor(runs, config),
        check_liti(merges, config),
        check_kl(history, evaluations),
        check_objective(history),
        *check_completions(runs, evaluations),
        check_sampling(runs, config),
        check_end(runs),
    ]


def headline(checks: Sequence[Check]) -> str:
    """The report's first line: all passed, or what failed."""
    failed = [check.title for check in checks if check.failed]
    silent = [check.title for check in checks if not check.applies]
    count = len(checks) - len(silent)
    note = f" Не применимы: {_listed(silent)}." if silent else ""
    if failed:
        return f"Не пройдены проверки ({len(failed)} из {count}): {_listed(failed)}.{note}"
    return f"Все {count} {plural(count, 'проверка', 'проверки', 'проверок')} пройдены.{note}"


def slope(history: pd.DataFrame, column: str) -> Estimate | None:
    """Change of `column` a step by least squares, one slope for all runs, an intercept each.

    None where it cannot be estimated: one step a run, or as many unknowns as points.
    """
    from scipy.stats import t

    runs = history.groupby(["seed", "iteration", "run"])
    step = history["step"] - runs["step"].transform("mean")
    value = history[column] - runs[column].transform("mean")
    free, square = len(history) - runs.ngroups - 1, float((step**2).sum())
    if free < 1 or square == 0:
        return None
    rate = float((step * value).sum(skipna=False)) / square
    half = float(t.ppf(0.975, free)) * math.sqrt(float(((value - rate * step) ** 2).sum()) / free / square)
    return Estimate(rate, rate - half, rate + half)


def check_reward(gate: RewardGate) -> list[Check]:
    """The reward model's gate: accuracy, spread, sentences, swapped completions."""
    return [
        _check(
            "reward-gate-accuracy",
            gate.pair_accuracy > PAIR_ACCURACY,
            f"{format_share(gate.pair_accuracy)} из {gate.n_pairs} пар",
        ),
        _check("reward-gate-spread", gate.spread > SPREAD, format_number(gate.spread)),
        _check("reward-gate-sentences", gate.good_above_bad >= SENTENCES, format_share(gate.good_above_bad)),
        _check(
            "reward-gate-swap",
            gate.swap_change > SWAP_OF_SPREAD * gate.spread,
            f"{format_number(gate.swap_change)} при разбросе {format_number(gate.spread)}",
        ),
    ]


def check_runs_differ(history: pd.DataFrame, merges: pd.DataFrame, config: WarpConfig) -> Check:
    """Cosine of the task vectors and bit-equality of the curves of one iteration's runs."""
    if config.M == 1:
        return _not_applicable("runs-differ", "прогон один")
    cosine = float(merges["delta_cosine"].max())
    equal = sum(_equal_curves(group) for _, group in history.groupby(["seed", "iteration"]))
    measured = f"наибольший косинус по всем весам: {format_number(cosine)}; пар совпавших кривых: {equal}"
    return _check("runs-differ", not cosine >= SAME_DIRECTION and equal == 0, measured)


def check_deltas(runs: pd.DataFrame) -> Check:
    """Every task vector is non-zero; weights that did not move at all are counted."""
    least, unmoved = float(runs["delta_norm"].min(skipna=False)), runs["unmoved"]
    measured = (
        f"наименьшая норма: {format_number(least)}; вовсе не сдвинулось весов: "
        f"{format_share(float(unmoved.mean()))} в среднем, {format_share(float(unmoved.max()))} самое большее"
    )
    return _check("deltas-nonzero", least > 0, measured)


def check_anchor(runs: pd.DataFrame, config: WarpConfig) -> Check:
    """The EMA anchor against its closed form; the fixed one against standing still."""
    moved, error = runs["anchor_moved"], runs["anchor_error"].dropna()
    if config.anchor == "sft":
        farthest = float(moved.max(skipna=False))
        return _check("anchor-formula", farthest == 0, f"якорь неподвижен по условию; сдвиг: {format_number(farthest)}")
    if config.mu == 0:
        farthest = float(moved.max(skipna=False))
        return _check("anchor-formula", farthest == 0, f"μ = 0; сдвиг: {format_number(farthest)}")
    if error.empty:
        return _not_applicable("anchor-formula", "сдвиг якоря меньше округления fp32, ошибку не измерить")
    worst = float(error.max())
    measured = f"наибольшая относительная ошибка: {format_number(worst)}"
    if len(error) < len(runs):
        measured += f"; измерима в {len(error)} из {len(runs)} прогонов"
    return _check("anchor-formula", worst <= ANCHOR_ERROR, measured)


def check_liti(merges: pd.DataFrame, config: WarpConfig) -> Check:
    """The measured share of the way from init to the merged weights."""
    ratio = merges["liti_ratio"].dropna()
    if ratio.empty:
        return _not_applicable("liti-formula", "слитые веса не отличаются от начальных")
    worst = float(ratio.iloc[int((ratio - config.eta).abs().to_numpy().argmax())])
    measured = f"измерено {format_number(worst)} при η = {format_number(config.eta)}"
    return _check("liti-formula", abs(worst - config.eta) <= LITI_ERROR, measured)


def check_kl(history: pd.DataFrame, evaluations: Sequence[Evaluation]) -> Check:
    """Every KL of training and of evaluation."""
    found = [*history["kl"], *(e.kl_reference_policy.value for e in evaluations)]
    found += [e.kl_policy_reference.value for e in evaluations]
    if not all(math.isfinite(value) for value in found):
        return _check("kl-finite", False, f"не конечных: {sum(not math.isfinite(value) for value in found)}")
    return _check("kl-finite", min(found) >= KL_FLOOR, f"наименьшая: {format_number(min(found))} нат")


def check_objective(history: pd.DataFrame) -> Check:
    """The objective's rise, split into its reward part and its KL part."""
    slopes = {column: slope(history, column) for column in ("objective", "reward", "penalty")}
    total, reward, penalty = slopes["objective"], slopes["reward"], slopes["penalty"]
    if total is None or reward is None or penalty is None:
        return _not_applicable("objective-split", "слишком мало шагов для наклона")
    carried = not total.low > 0 or reward.value >= CARRIED_BY_REWARD * total.value
    measured = (
        f"за шаг: r_β {format_estimate(total, signed=True)}, "
        f"награда {format_estimate(reward, signed=True)}, штраф {format_estimate(penalty, signed=True)}"
    )
    return _check("objective-split", math.isfinite(total.value) and carried, measured)


def check_completions(runs: pd.DataFrame, evaluations: Sequence[Evaluation]) -> list[Check]:
    """Completions are not empty, not a loop, and still text to the reference."""
    empty = float(runs["empty_completions"].max(skipna=False))
    nonempty = _check("completions-nonempty", empty <= EMPTY_SHARE, f"пустых: {format_share(empty)}")
    return [nonempty, *check_texts(evaluations)]


def check_texts(evaluations: Sequence[Evaluation]) -> list[Check]:
    """The policy's texts are as diverse, as varied and as likely as the reference's; measured where it is worst."""
    looped, alike = min(evaluations, key=diversity), min(evaluations, key=variety)
    garbled = max(evaluations, key=perplexity_factor)
    return [
        _check(
            "completions-diverse",
            diversity(looped) >= DISTINCT_RATIO,
            _against(looped.distinct_policy, looped.distinct_reference),
        ),
        _check(
            "completions-varied",
            variety(alike) >= VARIETY_RATIO,
            f"{format_share(alike.variety_policy)} против {format_share(alike.variety_reference)} у θ_sft",
        ),
        _check(
            "completions-fluent",
            perplexity_factor(garbled) <= PERPLEXITY_RATIO,
            _against(garbled.perplexity_policy, garbled.perplexity_reference),
        ),
    ]


def say_faults(checks: Sequence[Check]) -> str:
    """What is wrong with the policy's texts, with its figures; empty where nothing is."""
    return "; ".join(
        f"{TEXT_FAULTS[check.name]} {check.measured}" for check in checks if check.failed and check.name in TEXT_FAULTS
    )


def reads_like_reference(evaluation: Evaluation) -> bool:
    """Whether the policy's text passes `check_texts`."""
    return not any(check.failed for check in check_texts([evaluation]))


def diversity(evaluation: Evaluation) -> float:
    """Distinct bigrams within a completion, the policy's share over the reference's."""
    return _ratio(evaluation.distinct_policy, evaluation.distinct_reference, unknown=-math.inf)


def variety(evaluation: Evaluation) -> float:
    """Distinct bigrams in all completions together, the policy's share over the reference's."""
    return evaluation.variety_policy / evaluation.variety_reference


def perplexity_factor(evaluation: Evaluation) -> float:
    """How many times the policy's perplexity is larger or smaller than the reference's; at least 1."""
    ratio = _ratio(evaluation.perplexity_policy, evaluation.perplexity_reference, unknown=math.inf)
    return max(ratio, 1 / ratio)


def check_sampling(runs: pd.DataFrame, config: WarpConfig) -> Check:
    """The log-probability of a token when it was drawn and when it was scored."""
    gap = float(runs["sampling_gap"].max(skipna=False))
    measured = f"расхождение: {format_number(gap)} нат на токен ({config.dtype})"
    return _check("sampling-scoring", gap <= SAMPLING_GAP[config.dtype], measured)


def check_end(runs: pd.DataFrame) -> Check:
    """Completion tokens that were scored after the end of the text."""
    count = float(runs["scored_after_end"].max(skipna=False))
    return _check("nothing-scored-after-end", count == 0, f"токенов после конца: {format_number(count)}")


def _check(name: str, passed: bool, measured: str) -> Check:
    title, rule, hint = TEXT[name]
    return Check(name, title, bool(passed), measured, rule, hint)


def _not_applicable(name: str, reason: str) -> Check:
    title, rule, hint = TEXT[name]
    return Check(name, title, True, f"не применимо: {reason}", rule, hint, applies=False)


def _equal_curves(iteration: pd.DataFrame) -> int:
    """Pairs of runs whose recorded curves are equal to the last bit."""
    columns = [name for name in ("reward", "kl", "objective", "grad_norm") if name in iteration]
    curves = [run.sort_values("step")[columns].to_numpy() for _, run in iteration.groupby("run")]
    return sum(a.shape == b.shape and bool((a == b).all()) for a, b in combinations(curves, 2))


def _ratio(policy: Estimate, reference: Estimate, unknown: float) -> float:
    """policy / reference; `unknown` where that is not a number."""
    ratio = policy.value / reference.value if reference.value else math.nan
    return unknown if math.isnan(ratio) else ratio


def _against(policy: Estimate, reference: Estimate) -> str:
    return f"{format_number(policy.value)} против {format_number(reference.value)} у θ_sft"


def _listed(titles: Sequence[str]) -> str:
    """Titles in one sentence, in quotation marks."""
    return ", ".join(f"«{title}»" for title in titles)
