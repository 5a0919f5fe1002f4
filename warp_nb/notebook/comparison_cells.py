"""What the notebook of experiment 5 shows: figures, tables, and a conclusion derived from what was measured."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from warp_nb.measure.checks import check_texts, headline, reads_like_reference, say_faults, slope
from warp_nb.measure.evaluation import Estimate, Evaluation, mean_interval
from warp_nb.notebook import cells as notebook
from warp_nb.notebook.cells import DPI, WIDTH
from warp_nb.notebook.numbers import format_estimate, format_number, plural
from warp_nb.notebook.plots import reward_kl_plane
from warp_nb.notebook.tables import samples_table, table
from warp_nb.runs.weights import write_json
from warp_nb.studies.comparison import ARMS, ETAS, PLAIN, SINGLE, WARP, Comparison

if TYPE_CHECKING:
    from IPython.display import HTML, Markdown
    from matplotlib.figure import Figure

# Figures and tables


def curves(result: Comparison, arm: str) -> Figure:
    """The functional, the reward and the KL to the anchor over the steps of an arm's runs."""
    return notebook.curves(result.arms[arm])


def plane(result: Comparison) -> Figure:
    """The fronts of all arms in the plane of reward and KL, and where WARP's last LITI ended."""
    import matplotlib.pyplot as plt

    figure, ax = plt.subplots(figsize=(WIDTH, 5.0), dpi=DPI, layout="constrained")
    for arm in ARMS:
        reward_kl_plane(ax, result.front(arm), arm)
    reward_kl_plane(ax, [result.end()], "WARP: конец алгоритма")
    ax.set_xlabel("KL(политика‖sft), нат на последовательность")
    ax.set_ylabel("прирост награды над θ_sft")
    plt.close(figure)
    return figure


def front_table(result: Comparison) -> HTML:
    """Every point of every front with its intervals."""
    rows = []
    for arm in ARMS:
        columns = {
            name: result.over_seeds(arm, name)
            for name in ("reward_difference", "kl_policy_reference", "perplexity_policy", "distinct_policy")
        }
        for place, eta in enumerate(ETAS):
            rows.append(
                {
                    "Способ": arm,
                    "η": format_number(eta),
                    "Прирост награды": format_estimate(columns["reward_difference"][place], signed=True),
                    "KL(политика‖sft), нат": format_estimate(columns["kl_policy_reference"][place]),
                    "Перплексия по θ_sft": format_number(columns["perplexity_policy"][place].value),
                    "Доля разных биграмм": format_number(columns["distinct_policy"][place].value),
                    "Похож на отзыв": say_reading(result, arm, place),
                }
            )
    return table(rows)


def equal_kl_table(result: Comparison) -> HTML:
    """The policies at the common KL, a row an arm and seed."""
    rows = [
        {
            "Способ": arm,
            "Шагов": result.arms[arm].steps,
            "Сид": seed,
            "η": format_number(eta),
            "KL(политика‖sft), нат": format_number(found.kl_policy_reference.value),
            "Прирост награды": format_estimate(found.reward_difference, signed=True),
            "Перплексия по θ_sft": format_number(found.perplexity_policy.value),
        }
        for arm in ARMS
        for seed, (eta, found) in zip(result.seeds, result.matched(arm) or [], strict=False)
    ]
    return table(rows, empty=NO_COMMON_KL)


def samples(result: Comparison, arm: str) -> HTML:
    """Completions of an arm and the first seed at the common KL."""
    points = result.matched(arm)
    return samples_table(points[0][1], 4, name=arm) if points else table([], empty=NO_COMMON_KL)


def say_reading(result: Comparison, arm: str, place: int) -> str:
    """Whether the text reads at this place of ETAS, in how many seeds, and what is wrong where it does not."""
    if result.readable(arm, place):
        return "да"
    good, seeds = reading(result, arm, place), len(result.seeds)
    told = f"у {good} из {seeds} сидов" if good else "нет"
    return f"{told}: {worst(result)}{faults(result, arm, place)}"


# Conclusion

NO_COMMON_KL = "Общей KL, при которой текст всех трёх способов ещё похож на отзыв, не нашлось."


def conclusion(result: Comparison) -> Markdown:
    """The paragraphs of `conclude_comparison` as Markdown."""
    from IPython.display import Markdown

    return Markdown("\n\n".join(conclude_comparison(result)))


def conclude_comparison(result: Comparison) -> list[str]:
    """Paragraphs: checks, whether reward rises while the text is a review, who leads at equal KL, what is covered."""
    paragraphs = [
        headline(result.checks) if any(check.failed for check in result.checks) else "",
        *(say_arm(result, arm) for arm in ARMS),
        say_why(result),
        say_equal_kl(result),
        say_seeds(result),
    ]
    return [paragraph for paragraph in paragraphs if paragraph]


def last_readable(result: Comparison, arm: str) -> int | None:
    """Place in ETAS of the point that is tested: the last one before the text stops being a review; None for none."""
    place = next((place for place in range(len(ETAS)) if not result.readable(arm, place)), len(ETAS))
    return place - 1 if place else None


def risen(result: Comparison, arm: str) -> bool:
    """Whether the reward is significantly above θ_sft's at the tested point."""
    place = last_readable(result, arm)
    return place is not None and result.over_seeds(arm, "reward_difference")[place].low > 0


def say_arm(result: Comparison, arm: str) -> str:
    """Did this arm raise the reward while the text stayed a review?"""
    head = f"**{title(result, arm)}**: "
    gains, kls, perplexity, own = (
        result.over_seeds(arm, name)
        for name in ("reward_difference", "kl_policy_reference", "perplexity_policy", "perplexity_reference")
    )
    place = last_readable(result, arm)
    if place is None:
        return (
            f"{head}текст перестаёт быть похож на отзыв уже при η = {format_number(ETAS[0])}, ближе всего к θ_sft, "
            "поэтому о награде говорить рано."
        )
    gain = gains[place]
    if gain.low > 0:
        said = "награда выше, чем у SFT, а текст ещё похож на отзыв"
    elif gain.high < 0:
        said = "награда ниже, чем у SFT"
    else:
        said = "прирост награды неотличим от нуля"
    said += (
        f". При η = {format_number(ETAS[place])} прирост {format_estimate(gain, signed=True)}, KL "
        f"{format_number(kls[place].value)} ната, перплексия {format_number(perplexity[place].value)} против "
        f"{format_number(own[place].value)} у самой θ_sft."
    )
    if place + 1 < len(ETAS):
        last = max(later for later in range(len(ETAS)) if not result.readable(arm, later))
        said += (
            f" Дальше по фронту {beyond(result, arm, last)}. Прирост там, {format_estimate(gains[last], signed=True)}, "
            "улучшением считать нельзя."
        )
    return head + said


def beyond(result: Comparison, arm: str, place: int) -> str:
    """What became of the text where it does not read in every seed."""
    good, seeds = reading(result, arm, place), len(result.seeds)
    told = f"похож на отзыв лишь у {good} из {seeds} сидов" if good else "на отзыв не похож"
    return f"текст {told}: при η = {format_number(ETAS[place])} {worst(result)}{faults(result, arm, place)}"


def worst(result: Comparison) -> str:
    """That figures are of one seed of several; nothing where there is one only."""
    return "в худшем случае " if len(result.seeds) > 1 else ""


def reading(result: Comparison, arm: str, place: int) -> int:
    """In how many seeds the text reads at this place of ETAS."""
    return sum(reads_like_reference(measured.front[place]) for measured in result.arms[arm].measured)


def faults(result: Comparison, arm: str, place: int) -> str:
    """What is wrong with the text at this place of ETAS, measured in the seed where it is worst."""
    return say_faults(check_texts([measured.front[place] for measured in result.arms[arm].measured]))


def say_why(result: Comparison) -> str:
    """Where WARP's gain was lost, or that its runs made none; nothing where there is a gain."""
    if risen(result, WARP):
        return ""
    head = "Почему у WARP нет прироста: "
    if result.over_seeds(WARP, "reward_difference")[-1].low > 0:
        kl = format_number(result.over_seeds(WARP, "kl_policy_reference")[-1].value)
        return f"{head}награда растёт, но вместе с ней портится текст; при η = 1 KL {kl} ната."
    rate = reward_rise(result)
    if rate is None:
        return f"{head}шагов слишком мало, чтобы оценить наклон награды в прогонах."
    steps = result.config.T
    measured = f"{format_estimate(rate, signed=True)} за {steps} {plural(steps, 'шаг', 'шага', 'шагов')} прогона"
    if not rate.excludes_zero:
        return f"{head}его не видно и в самих прогонах, изменение награды неотличимо от нуля: {measured}."
    if rate.value < 0:
        return f"{head}награда падала уже в самих прогонах, {measured}."
    held_out = [
        mean_of(measured.unmerged, "reward_difference") for measured in result.arms[WARP].measured if measured.unmerged
    ]
    before = held_out[0] if len(held_out) == 1 else mean_interval([gain.value for gain in held_out])
    after = result.over_seeds(WARP, "reward_difference")[-1]
    where = "при слиянии" if before.low > 0 else "при переходе к отложенным началам отзывов"
    return (
        f"{head}прогоны награду поднимали, {measured}, но прирост потерян {where}. На отложенных началах у прогонов "
        f"последней итерации он {format_estimate(before, signed=True)}, после слияния "
        f"{format_estimate(after, signed=True)}."
    )


def reward_rise(result: Comparison) -> Estimate | None:
    """Rise of the reward over one run of WARP: over seeds, of a single one over its steps; None where unknown."""
    history = result.arms[WARP].history
    rates = [slope(rows, "reward") for _, rows in history.groupby("seed")]
    known = [rate for rate in rates if rate is not None and math.isfinite(rate.low)]
    if not known or len(known) < len(rates):
        return None
    rate = known[0] if len(known) == 1 else mean_interval([one.value for one in known])
    return Estimate(*(value * result.config.T for value in (rate.value, rate.low, rate.high)))


def mean_of(evaluations: list[Evaluation], measure: str) -> Estimate:
    """Of the runs of one seed the mean of their values and of the ends of their intervals: they share prompts."""
    found = [getattr(evaluation, measure) for evaluation in evaluations]
    sides = ([getattr(one, side) for one in found] for side in ("value", "low", "high"))
    return Estimate(*(sum(values) / len(found) for values in sides))


def say_equal_kl(result: Comparison) -> str:
    """Who is ahead at the same distance from θ_sft."""
    points = result.matched(WARP)
    if not points:
        return f"{NO_COMMON_KL} Сравнить награды поэтому нельзя."
    kls = spread([evaluation.kl_policy_reference.value for _, evaluation in points])
    words = [f"WARP против «{title(result, arm)}»: {ahead(result.advantage(WARP, arm))}" for arm in (SINGLE, PLAIN)]
    own = " (у каждого сида своя)" if len(points) > 1 else ""
    return f"При одной и той же KL, {kls} ната{own}, где текст всех способов ещё похож на отзыв: {'; '.join(words)}."


def ahead(difference: Estimate) -> str:
    """A difference of rewards in words."""
    measured = format_estimate(difference, signed=True)
    if not difference.excludes_zero:
        return f"разность неотличима от нуля, {measured}"
    return f"{'впереди WARP' if difference.value > 0 else 'WARP позади'}, {measured}"


def say_seeds(result: Comparison) -> str:
    """What the intervals cover."""
    count = len(result.seeds)
    if count == 1:
        return (
            "Обучение выполнено один раз: интервалы учитывают только выбор начал отзывов. С другим сидом мог бы выйти "
            "и другой порядок."
        )
    times = plural(count, "раз", "раза", "раз")
    return f"Каждый способ обучен {count} {times} с разными сидами, интервалы Стьюдента построены по этим обучениям."


def title(result: Comparison, arm: str) -> str:
    """An arm and how many steps it takes."""
    config, steps = result.arms[arm].config, result.arms[arm].steps
    words = f"{steps} {plural(steps, 'шаг', 'шага', 'шагов')}"
    if arm == PLAIN:
        return f"{arm}, один прогон, {words}"
    runs = config.I * config.M
    return f"{arm}, {runs} {plural(runs, 'прогон', 'прогона', 'прогонов')} по {config.T}, всего {words}"


def spread(values: list[float]) -> str:
    """The smallest and the largest, or the one value."""
    low, high = format_number(min(values)), format_number(max(values))
    return low if low == high else f"от {low} до {high}"


def save(result: Comparison, path: str) -> None:
    """Write what was measured and the conclusion atomically; an empty path writes nothing."""
    if path:
        write_json(Path(path), result.to_json() | {"conclusion": conclude_comparison(result)})
