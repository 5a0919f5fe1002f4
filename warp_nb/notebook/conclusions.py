"""The conclusion of an experiment in Russian, derived from the measurements alone.

The texts are in `templates/conclusion.md.j2`: one for each experiment of the original report, and one for settings of
one's own. They depend on intervals and on the checks; if the data contradict what the original report concluded for
these settings, they say so. While a check of the measurement fails, nothing is said about the original's claims.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any

from warp_nb.measure.checks import broken_instrument
from warp_nb.measure.estimates import between_iterations, slope
from warp_nb.notebook.check_words import WORDS, headline, measured, say_faults
from warp_nb.notebook.findings import (
    RIGHT_ANGLE,
    angle_facts,
    believable_change,
    farther,
    least_change,
    lr_share,
    reward_bound,
    shift_of,
    size_of,
    wanted_lr,
    warming,
)
from warp_nb.notebook.prose import paragraphs
from warp_nb.runs.training import learning_rate
from warp_nb.studies.experiment import ExperimentResult
from warp_nb.studies.original import ROWS, match


@singledispatch
def conclude(result: Any) -> list[str]:
    """Write the paragraphs of a conclusion, by the type of result: an experiment, a comparison, the diagnosis."""
    raise TypeError(f"nothing concludes from {type(result).__name__}; register a function with conclude.register")


@conclude.register
def conclude_experiment(result: ExperimentResult) -> list[str]:
    """Write at most five paragraphs, and before them the failed checks: causes, the original's claim, the next step."""
    config, change = result.config, believable_change(result)
    slopes = {column: slope(result.history, column) for column in ("objective", "reward", "penalty")}
    runs_differ = next(check for check in result.checks if check.name == "runs-differ")
    last = result.history[result.history["step"] == result.history["step"].max()]
    steps = range(1, config.T + 1)
    return paragraphs(
        "conclusion",
        config=config,
        summary=result.summary,
        failed=[check for check in result.checks if check.failed],
        headline=headline(result.checks),
        broken=[WORDS[check.name].failure for check in broken_instrument(result.checks)],
        measured=result.summary["reward_difference"],
        change=change,
        size=size_of(change, result),
        bound=reward_bound(result),
        least=least_change(result),
        blind=not change.excludes_zero and reward_bound(result) < least_change(result),
        far=farther(result),
        shift=shift_of(farther(result)),
        faults=say_faults(result.checks),
        slopes=slopes if all(slopes.values()) else None,
        runs_differ=runs_differ,
        difference=measured(runs_differ),
        angles=angle_facts(result.geometry),
        RIGHT_ANGLE=RIGHT_ANGLE,
        penalty=config.beta * float(last["kl"].mean()),
        anchor_moved=1 - (1 - config.mu) ** config.T,
        original=match(config),
        rows=ROWS,
        warm=warming(result),
        lr_share=lr_share(result),
        warm_up_gain=(gain := config.T / sum(learning_rate(1.0, ROWS[1].settings["warmup_steps"], t) for t in steps)),
        slower=float(f"{gain**2:.1e}"),
        wanted_lr=wanted_lr(result),
        iterations=between_iterations(result.history) if match(config) == 3 else None,
    )
