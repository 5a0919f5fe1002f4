"""Contents of the notebook of experiment 5: figures, tables, and a conclusion derived from the measurements."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from IPython.display import HTML, Markdown
from matplotlib.figure import Figure

from warp_nb.measure.checks import check_texts, reads_like_reference
from warp_nb.measure.estimates import Estimate, mean_interval, slope
from warp_nb.measure.evaluation import Evaluation
from warp_nb.notebook import experiment_page
from warp_nb.notebook.check_words import headline, say_faults
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.equal_kl_words import (
    FRONT_WORDS,
    along,
    comparison_outcome,
    equal_kl_facts,
    estimate_of,
    single_facts,
)
from warp_nb.notebook.numbers import counted, format_duration, format_number
from warp_nb.notebook.palette import POLICIES
from warp_nb.notebook.plots import legend_above, panels, reward_kl_plane
from warp_nb.notebook.prose import paragraphs
from warp_nb.notebook.tables import TABLE_WORDS, filled_table, folded, samples_table
from warp_nb.studies.comparison import ARMS, ETAS, REINFORCE, WARP, Comparison
from warp_nb.studies.equal_kl import BEST_OF_N, END, GRID
from warp_nb.studies.original import ROWS

SINGLES = {
    END: ("WARP: конец алгоритма", POLICIES["WARP end"]),
    BEST_OF_N: ("лучшее из N, без обучения", POLICIES["best-of-N"]),
}
"""Single policies of the plane: name -> label, style."""
POINT_MEASURES = {
    "gain": "reward_difference",
    "kl": "kl_policy_reference",
    "perplexity": "perplexity_policy",
    "own": "perplexity_reference",
    "distinct": "distinct_policy",
}
"""Name in `points` -> measure."""

# Words


def durations(result: Comparison) -> str:
    """Say how long the steps and this call took; a call that resumed made only a part of the steps."""
    said = f"Шаги обучения: {format_duration(result.training_seconds)}; этот запуск: {format_duration(result.seconds)}"
    return said + " (остальное — из прерванного запуска)" * (result.training_seconds > result.seconds)


def fronts_outcome(result: Comparison) -> Markdown:
    """Return «Итог» in two sentences as Markdown."""
    return Markdown(comparison_outcome(result.equal_kl))


def fronts_reading(result: Comparison) -> Markdown:
    """Return what the curves of all arms show as Markdown."""
    return Markdown(arms_reading(result))


def arms_reading(result: Comparison) -> str:
    """Say what the curves of all arms show; it begins with «Мы видим»."""
    ends = [rows[rows["step"] == rows["step"].max()]["kl"].mean() for rows in (a.history for a in result.arms.values())]
    return paragraphs(
        "arms-reading",
        rates={arm: reward_rise(result, arm) for arm in result.arms},
        longer=result.arms[REINFORCE].config.T // result.config.T,
        kls=ends,
    )[0]


# Figures and tables


def arm_curves(result: Comparison, arm: str) -> Figure:
    """Plot the functional, the reward and the KL to the anchor over the steps of an arm's runs."""
    return experiment_page.curves(result.arms[arm])


def plane(result: Comparison) -> Figure:
    """Plot the fronts of a comparison (see `fronts_plane`)."""
    return fronts_plane({arm: result.arm_summary(arm) for arm in result.arms}, result.equal_kl)


def fronts_plane(summary: Mapping[str, Mapping[str, Any]], equal_kl: Mapping[str, Any]) -> Figure:
    """Plot the fronts of all arms in the plane of reward and KL, best-of-N, the end of WARP, and the grid's KLs.

    The axis of KL is scaled by its root: there a front is a chain of straight lines, as the comparison interpolates.

    Args:
        summary: arm -> its measures along the front, from a comparison or from its result file.
        equal_kl: `summary` of equal_kl.py, from the same.
    """
    single = [single_facts(point) for point in equal_kl["points"]]
    with panels(1, 5.4) as (figure, (ax,)):
        ax.set_xscale("function", functions=(lambda kl: np.sqrt(np.maximum(kl, 0)), np.square))
        for kl in GRID:
            ax.axvline(kl, color="0.6", linewidth=0.8, linestyle=":", zorder=0)
        for arm, measures in summary.items():
            reward_kl_plane(ax, front_rows(measures), arm, style=POLICIES[arm])
        for name, (label, style) in SINGLES.items():
            rows = [
                {"reward": one["gain"]["value"], "kl": one["kl"], **({"name": f"N = {one['n']}"} if one["n"] else {})}
                for one in single
                if one["name"] == name
            ]
            if rows:
                reward_kl_plane(ax, rows, label, style=style)
        legend_above(ax, columns=2)
        reach = ax.get_xlim()[1]
        ticks = [kl for kl in (0, *GRID, *(GRID[-1] * 2**power for power in range(1, 8))) if kl <= reach]
        ax.set_xticks(ticks, [format_number(kl) for kl in ticks])
        label = "KL(политика‖sft), нат на последовательность, шкала √KL\nвертикали: KL, при которых фронты сравниваются"
        ax.set(xlabel=label, ylabel="прирост награды над θ_sft")
    return figure


def front_rows(measures: Mapping[str, Any]) -> list[dict[str, Estimate]]:
    """Return rows (reward, kl) of a front of a summary; θ_sft is the first."""
    zero = Estimate(0.0, 0.0, 0.0)
    sides = ([estimate_of(one) for one in measures[name]] for name in ("reward_difference", "kl_policy_reference"))
    return [{"reward": zero, "kl": zero}, *({"reward": r, "kl": k} for r, k in zip(*sides, strict=True))]


def front_table(result: Comparison) -> HTML:
    """List every point of every front with its intervals, folded."""
    rows = [{"arm": arm} | point for arm in ARMS for point in points(result, arm)]
    title = f"{TABLE_WORDS['front']['title']} ({counted(len(rows), 'строка', 'строки', 'строк')})"
    return folded(title, filled_table("front", rows, seeds=len(result.seeds)))


def equal_kl_table(result: Comparison) -> HTML:
    """List every front at every KL of the grid, with WARP's lead over it."""
    found = result.equal_kl
    fronts, against = along(found["fronts"]), along(found["against"])
    rows = []
    for name, measures in fronts.items():
        for place, kl in enumerate(found["grid"]):
            at = {measure: values[place] for measure, values in measures.items()}
            ahead = {measure: values[place] for measure, values in against.get(name, {}).items()}
            rows.append({"name": name, "kl": kl, "ahead": ahead} | at)
    return filled_table("equal-kl", rows, trainings=found["trainings"], words=FRONT_WORDS)


def singles_table(result: Comparison) -> HTML:
    """List best-of-N and the end of WARP beside WARP's front at their KLs."""
    found = result.equal_kl
    return filled_table("singles", map(single_facts, found["points"]), trainings=found["trainings"])


def declared_table(result: Comparison) -> HTML:
    """List the comparisons that were declared before the run."""
    found = equal_kl_facts(result.equal_kl)
    return filled_table("declared", found["declared"], words=FRONT_WORDS, declared_kl=found["declared_kl"])


def arm_samples(result: Comparison, arm: str) -> HTML:
    """Show the first seed's completions at the point of the arm's front whose KL is nearest to the declared one."""
    place = result.nearest(arm)
    eta = f"{ETAS[place]:g}".replace(".", ",")
    return samples_table(result.arms[arm].measured[0].front[place], 4, name=f"{arm}, η = {eta}")


def points(result: Comparison, arm: str) -> list[dict[str, Any]]:
    """Return an arm's measures at every eta of ETAS, in how many seeds its text reads (good), and its faults.

    Faults are measured in the worst seed.
    """
    columns = {name: result.over_seeds(arm, measure) for name, measure in POINT_MEASURES.items()}
    found = []
    for place, eta in enumerate(ETAS):
        evaluations = [measured.front[place] for measured in result.arms[arm].measured]
        words = {"good": sum(map(reads_like_reference, evaluations)), "faults": say_faults(check_texts(evaluations))}
        found.append({"eta": eta} | words | {name: column[place] for name, column in columns.items()})
    return found


# Conclusion


@conclude.register
def conclude_comparison(result: Comparison) -> list[str]:
    """Write paragraphs: checks, the comparisons at equal KL, the original's advice, causes, the next step."""
    along_warp = points(result, WARP)
    readable = [point for point in along_warp if point["good"] == len(result.seeds) and point["gain"].low > 0]
    return paragraphs(
        "comparison",
        **equal_kl_facts(result.equal_kl),
        failed=any(check.failed for check in result.checks),
        headline=headline(result.checks),
        gate=result.gate,
        judge_gate=result.judge_gate,
        broken={arm: unreadable_points(result, arm) for arm in ARMS},
        seeds=len(result.seeds),
        risen=along_warp[-1]["gain"].low > 0,
        end=along_warp[-1],
        farthest=readable[-1] if readable else None,
        rate=reward_rise(result, WARP),
        config=result.config,
        longer=result.config.T / ROWS[4].settings["T"],
        steps=result.config.T,
        before=before_merging(result),
    )


def unreadable_points(result: Comparison, arm: str) -> list[dict[str, Any]]:
    """Return the points of an arm's front whose text does not read in every seed."""
    return [point for point in points(result, arm) if point["good"] < len(result.seeds)]


def before_merging(result: Comparison) -> Estimate | None:
    """Return the held-out gain of WARP's last runs before they were merged; None if it was not measured."""
    seeds = [measured.unmerged for measured in result.arms[WARP].measured if measured.unmerged]
    gains = [mean_of(evaluations, "reward_difference") for evaluations in seeds]
    return gains[0] if len(gains) == 1 else mean_interval([gain.value for gain in gains]) if gains else None


@experiment_page.record.register
def comparison_record(result: Comparison) -> dict[str, Any]:
    """Return the result of a comparison, its outcome and the reading of its curves."""
    return result.to_json() | {"outcome": comparison_outcome(result.equal_kl), "reading": arms_reading(result)}


def reward_rise(result: Comparison, arm: str) -> Estimate | None:
    """Return the rise of the reward over a run, with an interval over seeds (of one: over steps); None if unknown."""
    history = result.arms[arm].history
    rates = [slope(rows, "reward") for _, rows in history.groupby("seed")]
    known = [rate for rate in rates if rate is not None and math.isfinite(rate.low)]
    if not known or len(known) < len(rates):
        return None
    rate = known[0] if len(known) == 1 else mean_interval([one.value for one in known])
    return Estimate(*(value * result.arms[arm].config.T for value in (rate.value, rate.low, rate.high)))


def mean_of(evaluations: list[Evaluation], measure: str) -> Estimate:
    """Average the values and the ends of the intervals over the runs of one seed, which share their prompts."""
    found = [getattr(evaluation, measure) for evaluation in evaluations]
    sides = ([getattr(one, side) for one in found] for side in ("value", "low", "high"))
    return Estimate(*(sum(values) / len(found) for values in sides))
