"""Contents of the notebook of experiment 5: figures, tables, and a conclusion derived from the measurements."""

from __future__ import annotations

import math
from itertools import takewhile
from typing import Any

from IPython.display import HTML
from matplotlib.figure import Figure

from warp_nb.measure.checks import check_texts, reads_like_reference
from warp_nb.measure.estimates import Estimate, mean_interval, slope
from warp_nb.measure.evaluation import Evaluation
from warp_nb.notebook import experiment_page
from warp_nb.notebook.check_words import headline, say_faults
from warp_nb.notebook.conclusions import conclude
from warp_nb.notebook.plots import panels, reward_kl_plane
from warp_nb.notebook.prose import paragraphs
from warp_nb.notebook.tables import TABLE_WORDS, filled_table, samples_table, table
from warp_nb.studies.comparison import ARMS, ETAS, REINFORCE, SINGLE, WARP, Comparison

NO_COMMON_KL = TABLE_WORDS["equal-kl"]["empty"]
POINT_MEASURES = {
    "gain": "reward_difference",
    "kl": "kl_policy_reference",
    "perplexity": "perplexity_policy",
    "own": "perplexity_reference",
    "distinct": "distinct_policy",
}
"""Name in `points` -> measure."""

# Figures and tables


def arm_curves(result: Comparison, arm: str) -> Figure:
    """Plot the functional, the reward and the KL to the anchor over the steps of an arm's runs."""
    return experiment_page.curves(result.arms[arm])


def plane(result: Comparison) -> Figure:
    """Plot the fronts of all arms in the plane of reward and KL, and the end of WARP's last LITI."""
    with panels(1, 5.0) as (figure, (ax,)):
        for arm in ARMS:
            reward_kl_plane(ax, result.front(arm), arm)
        reward_kl_plane(ax, [result.end() | {"name": "конец"}], "WARP: конец алгоритма")
        ax.set(xlabel="KL(политика‖sft), нат на последовательность", ylabel="прирост награды над θ_sft")
    return figure


def front_table(result: Comparison) -> HTML:
    """List every point of every front with its intervals."""
    rows = [{"arm": arm} | point for arm in ARMS for point in points(result, arm)]
    return filled_table("front", rows, seeds=len(result.seeds))


def equal_kl_table(result: Comparison) -> HTML:
    """List the policies at the common KL, one row per arm and seed."""
    rows = [
        {"arm": arm, "steps": result.arms[arm].steps, "seed": seed, "eta": eta, "found": found}
        for arm in ARMS
        for seed, (eta, found) in zip(result.seeds, result.matched(arm) or [], strict=False)
    ]
    return filled_table("equal-kl", rows)


def arm_samples(result: Comparison, arm: str) -> HTML:
    """Show completions of an arm at the common KL, for the first seed."""
    matched = result.matched(arm)
    return samples_table(matched[0][1], 4, name=arm) if matched else table([], empty=NO_COMMON_KL)


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
    """Write paragraphs: checks, whether reward rises while the text is a review, who leads at equal KL, the scope."""
    arms = {arm: arm_facts(result, arm) for arm in ARMS}
    tested = arms[WARP]["tested"]
    return paragraphs(
        "comparison",
        failed=any(check.failed for check in result.checks),
        headline=headline(result.checks),
        arms=arms,
        first_eta=ETAS[0],
        risen=tested is not None and tested["gain"].low > 0,
        end=arms[WARP]["end"],
        rate=reward_rise(result),
        steps=result.config.T,
        before=before_merging(result),
        NO_COMMON_KL=NO_COMMON_KL,
        equal_kls=[evaluation.kl_policy_reference.value for _, evaluation in result.matched(WARP) or []],
        advantages={arm: result.advantage(WARP, arm) for arm in (SINGLE, REINFORCE)},
        seeds=len(result.seeds),
    )


def arm_facts(result: Comparison, arm: str) -> dict[str, Any]:
    """Return an arm's loops and three of its points: tested, beyond, end.

    tested is the last point before the text stops being a review; beyond is the last point whose text does not read;
    None if there is none.
    """
    config, along = result.arms[arm].config, points(result, arm)
    reading = list(takewhile(lambda point: point["good"] == len(result.seeds), along))
    beyond = [point for point in along if point["good"] < len(result.seeds)]
    loops = {"runs": None if arm == REINFORCE else config.I * config.M, "T": config.T, "steps": result.arms[arm].steps}
    ends = {"tested": reading[-1] if reading else None, "beyond": beyond[-1] if beyond else None, "end": along[-1]}
    return {"name": arm} | loops | ends


def before_merging(result: Comparison) -> Estimate | None:
    """Return the held-out gain of WARP's last runs before they were merged; None if it was not measured."""
    seeds = [measured.unmerged for measured in result.arms[WARP].measured if measured.unmerged]
    gains = [mean_of(evaluations, "reward_difference") for evaluations in seeds]
    return gains[0] if len(gains) == 1 else mean_interval([gain.value for gain in gains]) if gains else None


def reward_rise(result: Comparison) -> Estimate | None:
    """Return the rise of the reward over a run of WARP, with an interval over seeds (steps if one); None if unknown."""
    history = result.arms[WARP].history
    rates = [slope(rows, "reward") for _, rows in history.groupby("seed")]
    known = [rate for rate in rates if rate is not None and math.isfinite(rate.low)]
    if not known or len(known) < len(rates):
        return None
    rate = known[0] if len(known) == 1 else mean_interval([one.value for one in known])
    return Estimate(*(value * result.config.T for value in (rate.value, rate.low, rate.high)))


def mean_of(evaluations: list[Evaluation], measure: str) -> Estimate:
    """Average the values and the ends of the intervals over the runs of one seed, which share their prompts."""
    found = [getattr(evaluation, measure) for evaluation in evaluations]
    sides = ([getattr(one, side) for one in found] for side in ("value", "low", "high"))
    return Estimate(*(sum(values) / len(found) for values in sides))
