"""What the comparison at equal KL says, in Russian, from the figures of `equal_kl.py` alone.

The notebook of experiment 5 and the reports' pages say the same, the pages also from the file of an earlier version.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from warp_nb.measure.estimates import NO_ESTIMATE, Estimate
from warp_nb.notebook.numbers import format_bracketed
from warp_nb.notebook.prose import paragraphs
from warp_nb.notebook.tables import TABLE_WORDS
from warp_nb.studies.equal_kl import BEST_OF_N, END, WARP

FRONT_WORDS: dict[str, str] = TABLE_WORDS["fronts"]
"""Names of the fronts."""
GROUPS = {"ahead": "ahead", "behind": "behind", "alike": "alike", "doubtful": "alike"}
"""Verdict of a declared comparison -> where «Итог» names it."""
SIGNIFICANT = 0.05
"""A declared comparison holds if its p after Holm's correction is below this."""


def estimate_of(record: Mapping[str, Any]) -> Estimate:
    """Return an estimate of a result file, whose unknown numbers are null."""
    return Estimate(*(math.nan if record[name] is None else record[name] for name in ("value", "low", "high")))


def say_equal_kl(found: Mapping[str, Any]) -> list[str]:
    """Write paragraphs: declared comparisons, reward hacking, best-of-N, the end of WARP, variety, scope."""
    return paragraphs("equal-kl", **equal_kl_facts(found))


def comparison_outcome(found: Mapping[str, Any]) -> str:
    """Say in two sentences who is ahead at the declared KL and what that means, from `summary` of equal_kl.py."""
    facts = equal_kl_facts(found)
    groups: dict[str, list[dict[str, Any]]] = {name: [] for name in (*GROUPS.values(), "above", "under")}
    for one in facts["declared"]:
        group = GROUPS.get(one["verdict"])
        if one["verdict"] == "bare":
            group = "above" if one["gain"].value > 0 else "under"
        if group:
            groups[group].append(one)
    warped, place = along(found["fronts"])[WARP], found["grid"].index(found["declared_kl"])
    own = warped["gain"][place]
    return paragraphs(
        "equal-kl-outcome",
        declared_kl=found["declared_kl"],
        judged=facts["judged"],
        groups=groups,
        own=own,
        own_judge=warped["judge"][place],
        reached=math.isfinite(own.value),
        hacked_here=any(at["kl"] == found["declared_kl"] for at in facts["hacked"].get(WARP, [])),
    )[0]


def equal_kl_facts(found: Mapping[str, Any]) -> dict[str, Any]:
    """Return what the template says of the comparisons at equal KL, `summary` of equal_kl.py."""
    fronts, against, place = along(found["fronts"]), along(found["against"]), found["grid"].index(found["declared_kl"])
    points = [single_facts(point) for point in found["points"]]
    everything = [one for rows in fronts.values() for one in rows["gain"]]
    return {
        "words": FRONT_WORDS,
        "trainings": found["trainings"],
        "earlier": found["earlier"],
        "declared_kl": found["declared_kl"],
        "judged": any(math.isfinite(one.value) for rows in fronts.values() for one in rows["judge"]),
        "intervals": any(one.known for one in everything),
        "declared": [declared_facts(row, fronts[WARP], against, place) for row in found["declared"]],
        "hacked": {name: at for name in fronts if (at := hacked(name, fronts[name], found))},
        "varieties": {
            name: rows["variety"][place] for name, rows in fronts.items() if math.isfinite(rows["variety"][place].value)
        },
        "best": [point for point in points if point["name"] == BEST_OF_N],
        "ends": [point for point in points if point["name"] == END],
    }


def along(rows: Mapping[str, Any]) -> dict[str, dict[str, list[Estimate]]]:
    """Return the estimates of fronts or of differences: name -> measure -> one at every KL."""
    return {
        name: {measure: [estimate_of(one) for one in found] for measure, found in measures.items()}
        for name, measures in rows.items()
    }


def single_facts(point: Mapping[str, Any]) -> dict[str, Any]:
    """Return a single policy with the side of WARP's front that it lies on, by the reward.

    above, below: by the interval of the difference, or by its sign where no interval is known; alike: neither; beyond:
    the front does not reach its KL.
    """
    sides = {key: {name: estimate_of(one) for name, one in point[key].items()} for key in ("gain", "judge")}
    difference = sides["gain"]["difference"]
    if math.isnan(difference.value):
        side = "beyond"
    elif difference.known and not difference.excludes_zero:
        side = "alike"
    else:
        side = "above" if difference.value > 0 else "below"
    return {**point, **sides, "kl": estimate_of(point["kl"]), "side": side}


def declared_facts(
    row: Mapping[str, Any], warped: Mapping[str, list[Estimate]], against: Mapping[str, Any], place: int
) -> dict[str, Any]:
    """Return what is said of a declared comparison, with its verdict and whether the judge agrees.

    unmeasured: there is no other front; missing: one of the fronts ends before that KL; bare: no interval is known;
    ahead, behind: it holds after the correction; doubtful: only the interval excludes zero; alike: nor does that.
    """
    if row["name"] not in against:
        return {**row, "gain": NO_ESTIMATE, "judge": NO_ESTIMATE, "verdict": "unmeasured"}
    gain, judge = (against[row["name"]][measure][place] for measure in ("gain", "judge"))
    facts = {**row, "gain": gain, "judge": judge, "seen": (gain.high - gain.low) / 2, "judge_says": ""}
    facts["size"] = format_bracketed(gain if gain.value > 0 else Estimate(-gain.value, -gain.high, -gain.low))
    own = warped["gain"][place].value
    if math.isnan(gain.value):
        return facts | {"verdict": "missing"}
    if row["p_holm"] is None:
        return facts | {"verdict": "bare"}
    if row["p_holm"] >= SIGNIFICANT:
        return facts | {"verdict": "doubtful" if gain.excludes_zero else "alike"}
    if math.isfinite(judge.value):
        agrees = "same" if judge.value * gain.value > 0 else "other"
        facts["judge_says"] = agrees if judge.excludes_zero else "nothing"
    share = abs(gain.value / own) if own else math.nan
    return facts | {"verdict": "ahead" if gain.value > 0 else "behind", "share": share}


def hacked(name: str, rows: Mapping[str, list[Estimate]], found: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the KLs at which a front hacks the reward.

    The interval of the gap between reward and judge lies above zero, and so does that of its excess over the gap of
    best-of-N. Beyond the largest N nothing tells which gap to expect, and the gap's interval alone decides.
    """
    excess = [estimate_of(one) for one in found["excess"][name]] or [NO_ESTIMATE] * len(found["grid"])
    return [
        {"kl": kl} | {measure: rows[measure][at] for measure in ("gain", "judge", "gap")}
        for at, kl in enumerate(found["grid"])
        if rows["gap"][at].low > 0 and (math.isnan(excess[at].value) or excess[at].low > 0)
    ]
