"""The conclusion of an experiment in Russian, derived from the measurements alone.

The text is in `templates/experiment.md.j2` and depends on intervals and on the checks; if the data contradict what
the original report concluded for these settings, it says so. While a check of the measurement fails, it says nothing
about the original's claims.
"""

from __future__ import annotations

import math
from functools import singledispatch
from typing import TYPE_CHECKING, Any

from warp_nb.measure.checks import PERPLEXITY_RATIO, broken_instrument
from warp_nb.measure.estimates import Estimate, between_iterations, detectable, slope
from warp_nb.notebook.check_words import WORDS, headline, measured, say_faults
from warp_nb.notebook.prose import paragraphs
from warp_nb.notebook.tables import ALL_WEIGHTS
from warp_nb.runs.geometry import norm_shares, with_whole
from warp_nb.runs.training import learning_rate
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.studies.original import ROWS, match

if TYPE_CHECKING:
    import pandas as pd

KL_TINY = math.log(2) - 0.5
"""Nats: less than choosing the better of two completions would cost (log N - (N - 1) / N at N = 2)."""
KL_FAR = 10.0
"""Nats: more than choosing the best of about sixty thousand completions would cost."""
RIGHT_ANGLE = 15.0
"""Degrees from 90 within which task vectors count as near orthogonal: |cosine| < 0.26."""
HEAVY = 0.5
"""Share of the squared norm above which one block decides the angle over all weights."""
BORDERS = {"KL_TINY": KL_TINY, "KL_FAR": KL_FAR, "RIGHT_ANGLE": RIGHT_ANGLE, "PERPLEXITY_RATIO": PERPLEXITY_RATIO}


@singledispatch
def conclude(result: Any) -> list[str]:
    """Write the paragraphs of a conclusion, by the type of result: an experiment, a comparison, the diagnosis."""
    raise TypeError(f"nothing concludes from {type(result).__name__}; register a function with conclude.register")


@conclude.register
def conclude_experiment(result: ExperimentResult) -> list[str]:
    """Write paragraphs: checks, reward, KL, text, curves, runs, geometry, the original's claim, the intervals."""
    config, checks, change = result.config, {check.name: check for check in result.checks}, believable_change(result)
    slopes = {column: slope(result.history, column) for column in ("objective", "reward", "penalty")}
    steps = range(1, config.T + 1)
    return paragraphs(
        "experiment",
        **BORDERS,
        config=config,
        summary=result.summary,
        failed=[check for check in result.checks if check.failed],
        headline=headline(result.checks),
        broken=[WORDS[check.name].failure for check in broken_instrument(result.checks)],
        reward_change=result.summary["reward_difference"],
        believable=change,
        bound=reward_bound(result),
        least=least_change(result),
        blind=not change.excludes_zero and reward_bound(result) < least_change(result),
        far=farther(result),
        far_known=math.isfinite(farther(result)),
        text_faults=say_faults(result.checks),
        slopes=slopes if all(slopes.values()) else None,
        runs=len(result.runs),
        carried=not checks["objective-split"].failed,
        runs_differ=checks["runs-differ"],
        difference=measured(checks["runs-differ"]),
        angles=angle_facts(result.geometry),
        unmoved=not change.excludes_zero and farther(result) < KL_TINY,
        original=match(config),
        rows=ROWS,
        lr_share=float(result.history["lr"].mean()) / config.lr,
        warm_up_gain=config.T / sum(learning_rate(1.0, ROWS[1].settings["warmup_steps"], t) for t in steps),
        iterations=between_iterations(result.history) if match(config) == 3 else None,
    )


def reward_bound(result: ExperimentResult) -> float:
    """Bound the difference of the mean reward from θ_sft's at the measured KL, to first order.

    |E_p r - E_q r| <= sd(r) * sqrt(chi²(p, q)), and chi² is about 2 KL for close p and q; sd(r) is the gate's
    spread, or without a gate that of θ_sft's rewards, from their interval.
    """
    sft, count = result.summary["reward_reference"], result.config.n_eval_prompts
    spread = result.gate.spread if result.gate else (sft.high - sft.low) / 4 * math.sqrt(count)
    return spread * math.sqrt(2 * max(0.0, farther(result)))


def least_change(result: ExperimentResult) -> float:
    """Return the smallest change of the mean reward that this experiment would show, NaN if unknown (`detectable`)."""
    config = result.config
    count = config.n_seeds if config.n_seeds > 1 else config.n_eval_prompts
    return detectable(result.summary["reward_difference"], count)


def believable_change(result: ExperimentResult) -> Estimate:
    """Return the change of the reward; its interval includes zero if it exceeds twice the bound by the KL."""
    change = result.summary["reward_difference"]
    if change.excludes_zero and abs(change.value) > 2 * reward_bound(result):
        return Estimate(change.value, -abs(change.value), abs(change.value))
    return change


def farther(result: ExperimentResult) -> float:
    """Return the larger of the two KLs, nats; infinite if one of them is unknown."""
    both = [result.summary[name].value for name in ("kl_reference_policy", "kl_policy_reference")]
    return max(both) if all(map(math.isfinite, both)) else math.inf


def angle_facts(table: pd.DataFrame) -> dict[str, Any] | None:
    """Describe the angles between task vectors, degrees; empty if none is defined, None for M = 1.

    whole: iteration -> mean angle over all weights; farthest: the one farthest from 90; middle, least, most: of the
    blocks; heavy: the block with most of the squared norm, its share, and its angles as in `whole`; None without one.
    """
    if table.empty:
        return None
    by_block = with_whole(table, ALL_WEIGHTS).groupby(["block", "iteration"])["omega"].mean().dropna()
    if ALL_WEIGHTS not in by_block:
        return {}
    whole, blocks, shares = by_block[ALL_WEIGHTS].to_dict(), table["omega"].dropna(), norm_shares(table)
    name = str(shares.idxmax())
    heavy = {"name": name, "share": float(shares[name]), "angles": by_block[name].to_dict() if name in by_block else {}}
    return {
        "whole": whole,
        "farthest": max(whole.values(), key=lambda angle: abs(angle - 90)),
        "middle": blocks.median(),
        "least": blocks.min(),
        "most": blocks.max(),
        "heavy": heavy if len(shares) > 1 and heavy["share"] > HEAVY and heavy["angles"] else None,
    }
