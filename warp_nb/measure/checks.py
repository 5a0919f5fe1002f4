"""Checks for silent failures. Every experiment runs all of them; their texts are in `notebook`.

A failed check does not stop a report: it is named in the first line. A check that does not apply (one run, one step,
no gate) gives the reason and counts as neither passed nor failed.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from typing import TYPE_CHECKING, Any

from warp_nb.measure.estimates import Estimate, slope

if TYPE_CHECKING:
    import pandas as pd

    from warp_nb.config import WarpConfig
    from warp_nb.measure.evaluation import Evaluation
    from warp_nb.runs.warp import WarpResult
    from warp_nb.tasks.gate import RewardGate

PAIR_ACCURACY = 0.7
"""A word list reaches 0.70 on IMDb pairs; a model below it has learnt nothing."""
SPREAD = 0.01
"""A collapsed reward model spread by 3e-6 and an untrained head by 2e-3."""
SENTENCE_ACCURACY = 0.75
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
VARIETY_RATIO = 0.8
"""Distinct bigrams across completions. Two seeds of θ_sft differ by 1 %; praise made from a template leaves a tenth."""
REPEATED_MORE = 0.25
"""Completions that repeat one another, beyond θ_sft's share of a few per cent; of a template's praise all do."""
PERPLEXITY_RATIO = 2.0
"""Every token half as likely under the reference as its own text is, or twice as likely."""
SAMPLING_GAP = {"float32": 0.01, "bfloat16": 0.5}
"""Nats per token: a temperature of 0.9 against 1.0 shifts rare tokens by 0.5 and more; bf16 rounds logits by 0.1.

The worst token of a step counts, and the median step of a run: a fault acts in every step, while in bf16 single
tokens of a wrecked policy go apart by many nats in some."""
OF_THE_TEXT = (
    "completions-nonempty",
    "completions-diverse",
    "completions-varied",
    "completions-repeated",
    "completions-fluent",
)
"""Checks of what the policy writes, which is a result of its training. Every other check is about the instrument."""


@dataclass(frozen=True)
class Check:
    """Result of one check.

    Args:
        name: what is checked.
        passed: whether the rule holds; meaningless if the check does not apply.
        figures: what was measured, plain JSON values.
        reason: why the check does not apply; empty if it does.
    """

    name: str
    passed: bool
    figures: dict[str, Any] = field(default_factory=dict)
    reason: str = ""

    @property
    def applies(self) -> bool:
        """Whether the check had data to look at."""
        return not self.reason

    @property
    def failed(self) -> bool:
        """Whether the check applies and its rule does not hold."""
        return self.applies and not self.passed

    def to_json(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return asdict(self) | {"applies": self.applies}


def run_checks(
    gate: RewardGate | None,
    history: pd.DataFrame,
    runs: pd.DataFrame,
    merges: pd.DataFrame,
    *,
    evaluations: Sequence[Evaluation],
    config: WarpConfig,
) -> list[Check]:
    """Run all checks on the tables of `WarpResult`, its evaluations and the reward's gate."""
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


def check_result(result: WarpResult, evaluations: Sequence[Evaluation], gate: RewardGate | None = None) -> list[Check]:
    """Run all checks on one training: its tables, evaluations of its policy, and the reward's gate if it was measured.

    Example:
        found = evaluate(result.policy, task.policy, task, sampling=task.sampling(24))
        result.save("policy", evaluation=found, checks=check_result(result, [found]))
    """
    history, runs, merges = (
        table.assign(seed=result.config.seed) for table in (result.history, result.runs, result.merges)
    )
    return run_checks(gate, history, runs, merges, evaluations=evaluations, config=result.config)


def check_reward(gate: RewardGate | None) -> list[Check]:
    """Check the reward's gate: accuracy, spread, sentences, swapped completions. Without a gate none applies."""
    names = [f"reward-gate-{name}" for name in ("accuracy", "spread", "sentences", "swap")]
    if gate is None:
        return [_silent(name, "no-gate") for name in names]
    accuracy, spread, sentences, swap = names
    return [
        Check(accuracy, gate.pair_accuracy > PAIR_ACCURACY, {"share": gate.pair_accuracy, "pairs": gate.n_pairs}),
        Check(spread, gate.spread > SPREAD, {"spread": gate.spread}),
        Check(sentences, gate.good_above_bad >= SENTENCE_ACCURACY, {"share": gate.good_above_bad}),
        Check(
            swap, gate.swap_change > SWAP_OF_SPREAD * gate.spread, {"change": gate.swap_change, "spread": gate.spread}
        ),
    ]


def check_runs_differ(history: pd.DataFrame, merges: pd.DataFrame, config: WarpConfig) -> Check:
    """Check that the runs of an iteration differ: the cosine of their task vectors, and their curves bit by bit."""
    if config.M == 1:
        return _silent("runs-differ", "one-run")
    cosine = float(merges["delta_cosine"].max())
    equal = sum(_equal_curves(group) for _, group in history.groupby(["seed", "iteration"]))
    return Check("runs-differ", not cosine >= SAME_DIRECTION and equal == 0, {"cosine": cosine, "equal": equal})


def check_deltas(runs: pd.DataFrame) -> Check:
    """Check that every task vector is non-zero, and count the weights that did not move at all."""
    least, unmoved = float(runs["delta_norm"].min(skipna=False)), runs["unmoved"]
    figures = {"least": least, "unmoved": float(unmoved.mean()), "unmoved_most": float(unmoved.max())}
    return Check("deltas-nonzero", least > 0, figures)


def check_anchor(runs: pd.DataFrame, config: WarpConfig) -> Check:
    """Check the EMA anchor against its closed form, or that a fixed anchor did not move."""
    moved, error = runs["anchor_moved"], runs["anchor_error"].dropna()
    if config.anchor == "sft" or config.mu == 0:
        farthest = float(moved.max(skipna=False))
        return Check("anchor-formula", farthest == 0, {"moved": farthest, "anchor": config.anchor})
    if error.empty:
        return _silent("anchor-formula", "below-rounding")
    worst = float(error.max())
    return Check("anchor-formula", worst <= ANCHOR_ERROR, {"error": worst, "measured": len(error), "runs": len(runs)})


def check_liti(merges: pd.DataFrame, config: WarpConfig) -> Check:
    """Check that LITI moved by the share eta from the initialisation to the merged weights."""
    ratio = merges["liti_ratio"].dropna()
    if ratio.empty:
        return _silent("liti-formula", "nothing-merged")
    worst = float(ratio.iloc[int((ratio - config.eta).abs().to_numpy().argmax())])
    return Check("liti-formula", abs(worst - config.eta) <= LITI_ERROR, {"ratio": worst, "eta": config.eta})


def check_kl(history: pd.DataFrame, evaluations: Sequence[Evaluation]) -> Check:
    """Check that every KL of training and evaluation is finite and not negative."""
    found = [*history["kl"], *(e.kl_reference_policy.value for e in evaluations)]
    found += [e.kl_policy_reference.value for e in evaluations]
    wild = sum(not math.isfinite(value) for value in found)
    least = min((value for value in found if math.isfinite(value)), default=math.nan)
    return Check("kl-finite", not wild and least >= KL_FLOOR, {"least": least, "not_finite": wild})


def check_objective(history: pd.DataFrame) -> Check:
    """Check that a rise of the objective, significant over runs, comes from its reward part and not its KL part."""
    slopes = {column: slope(history, column) for column in ("objective", "reward", "penalty")}
    total, reward = slopes["objective"], slopes["reward"]
    if total is None or reward is None:
        return _silent("objective-split", "few-steps")
    if math.isfinite(total.value) and not total.known:
        return _silent("objective-split", "one-run")
    carried = not total.low > 0 or reward.value >= CARRIED_BY_REWARD * total.value
    figures = {name: asdict(rate) for name, rate in slopes.items() if rate is not None}
    return Check("objective-split", math.isfinite(total.value) and carried, figures)


def check_completions(runs: pd.DataFrame, evaluations: Sequence[Evaluation]) -> list[Check]:
    """Check that completions are not empty and still read like the reference's (see `check_texts`)."""
    empty = float(runs["empty_completions"].max(skipna=False))
    return [Check("completions-nonempty", empty <= EMPTY_SHARE, {"share": empty}), *check_texts(evaluations)]


def check_texts(evaluations: Sequence[Evaluation]) -> list[Check]:
    """Check that the policy's texts are as diverse, varied and likely as the reference's, in the worst evaluation.

    They also must not repeat one another much more than the reference's do.
    """
    looped, alike = min(evaluations, key=diversity), min(evaluations, key=variety)
    repeating = max(evaluations, key=repetition)
    garbled = max(evaluations, key=perplexity_factor)

    def against(policy: float, reference: float) -> dict[str, float]:
        return {"policy": policy, "reference": reference}

    return [
        Check(
            "completions-diverse",
            diversity(looped) >= DISTINCT_RATIO,
            against(looped.distinct_policy.value, looped.distinct_reference.value),
        ),
        Check(
            "completions-varied",
            variety(alike) >= VARIETY_RATIO,
            against(alike.variety_policy, alike.variety_reference),
        ),
        Check(
            "completions-repeated",
            repetition(repeating) <= REPEATED_MORE,
            against(repeating.repeated_policy, repeating.repeated_reference),
        ),
        Check(
            "completions-fluent",
            perplexity_factor(garbled) <= PERPLEXITY_RATIO,
            against(garbled.perplexity_policy.value, garbled.perplexity_reference.value),
        ),
    ]


def reads_like_reference(evaluation: Evaluation) -> bool:
    """Return whether the policy's text passes `check_texts`."""
    return not any(check.failed for check in check_texts([evaluation]))


def diversity(evaluation: Evaluation) -> float:
    """Return the ratio of the policy's share of distinct bigrams within a completion to the reference's."""
    return _ratio(evaluation.distinct_policy, evaluation.distinct_reference, unknown=-math.inf)


def variety(evaluation: Evaluation) -> float:
    """Return the ratio of the policy's share of distinct bigrams across completions to the reference's."""
    return evaluation.variety_policy / evaluation.variety_reference


def repetition(evaluation: Evaluation) -> float:
    """Return by how much the policy's share of completions that repeat one another exceeds the reference's."""
    return evaluation.repeated_policy - evaluation.repeated_reference


def perplexity_factor(evaluation: Evaluation) -> float:
    """Return the factor, at least 1, by which the policy's perplexity is above or below the reference's."""
    ratio = _ratio(evaluation.perplexity_policy, evaluation.perplexity_reference, unknown=math.inf)
    return max(ratio, 1 / ratio)


def check_sampling(runs: pd.DataFrame, config: WarpConfig) -> Check:
    """Check that tokens had the same log-probability when they were sampled and when they were scored."""
    gap = float(runs["sampling_gap"].max(skipna=False))
    return Check("sampling-scoring", gap <= SAMPLING_GAP[config.dtype], {"gap": gap, "dtype": config.dtype})


def check_end(runs: pd.DataFrame) -> Check:
    """Check that no completion token is scored after the end token."""
    count = float(runs["scored_after_end"].max(skipna=False))
    return Check("nothing-scored-after-end", count == 0, {"tokens": count})


def broken_instrument(checks: Sequence[Check]) -> list[Check]:
    """Return the failed checks that put the measurement itself in doubt."""
    return [check for check in checks if check.failed and check.name not in OF_THE_TEXT]


def broken_text(checks: Sequence[Check]) -> list[Check]:
    """Return the failed checks of what the policy writes: it is empty, looped, all alike or no longer text."""
    return [check for check in checks if check.failed and check.name in OF_THE_TEXT]


def _silent(name: str, reason: str) -> Check:
    return Check(name, True, reason=reason)


def _equal_curves(iteration: pd.DataFrame) -> int:
    """Count the pairs of runs whose recorded curves are bit-identical."""
    columns = [name for name in ("reward", "kl", "objective", "grad_norm") if name in iteration]
    curves = [run.sort_values("step")[columns].to_numpy() for _, run in iteration.groupby("run")]
    return sum(a.shape == b.shape and bool((a == b).all()) for a, b in combinations(curves, 2))


def _ratio(policy: Estimate, reference: Estimate, unknown: float) -> float:
    """Return policy / reference, or `unknown` if that is not a number."""
    ratio = policy.value / reference.value if reference.value else math.nan
    return unknown if math.isnan(ratio) else ratio
