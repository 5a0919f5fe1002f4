"""Every check by number: which fault fails which check, where its border lies, and when it has nothing to look at."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from synthetic import HELD_OUT, VARIETY, equal, failed, rechecked, result

from warp_nb.measure.checks import (
    KL_FLOOR,
    OF_THE_TEXT,
    Check,
    broken_instrument,
    broken_text,
    check_texts,
    reads_like_reference,
)
from warp_nb.measure.evaluation import Evaluation
from warp_nb.studies.experiment import ExperimentResult

NAN, INF = math.nan, math.inf
CURVES = ["reward", "penalty", "objective", "kl", "grad_norm"]
GATE = {"reward-gate-accuracy", "reward-gate-spread", "reward-gate-sentences", "reward-gate-swap"}
OTHERS = {"runs-differ", "deltas-nonzero", "anchor-formula", "liti-formula", "kl-finite", "objective-split"}
OTHERS |= {"sampling-scoring", "nothing-scored-after-end"}


def by_name(found: ExperimentResult, name: str) -> Check:
    return next(check for check in found.checks if check.name == name)


def silent(found: ExperimentResult) -> dict[str, str]:
    return {check.name: check.reason for check in found.checks if not check.applies}


def test_a_healthy_run_passes_every_check() -> None:
    found = result(n_seeds=2)
    assert {check.name for check in found.checks} == GATE | OTHERS | set(OF_THE_TEXT)
    assert len(found.checks) == 17 and failed(found) == set() and silent(found) == {}


# Faults


@pytest.mark.parametrize(
    ("planted", "caught"),
    [
        pytest.param(
            {"gate": {"pair_accuracy": 0.49, "spread": 3e-6, "good_above_bad": 0.4, "swap_change": 0.0}},
            GATE,
            id="collapsed reward",
        ),
        pytest.param({"gate": {"swap_change": 0.0}}, {"reward-gate-swap"}, id="prompt-only reward"),
        pytest.param(
            {"gate": {"pair_accuracy": 0.14, "good_above_bad": 0.0}},
            {"reward-gate-accuracy", "reward-gate-sentences"},
            id="wrong label",
        ),
        pytest.param({"merges": {"delta_cosine": 1.0}}, {"runs-differ"}, id="aliased policies"),
        pytest.param(
            {"runs": {"delta_norm": 0.0}, "merges": {"liti_ratio": NAN, "delta_cosine": NAN}},
            {"deltas-nonzero"},
            id="zero delta",
        ),
        pytest.param({"runs": {"delta_norm": NAN}}, {"deltas-nonzero"}, id="unknown delta"),
        pytest.param({"runs": {"anchor_error": 1.0, "anchor_moved": 0.0}}, {"anchor-formula"}, id="frozen anchor"),
        pytest.param({"runs": {"anchor_moved": 0.01}, "anchor": "sft"}, {"anchor-formula"}, id="sft anchor that moves"),
        pytest.param({"runs": {"anchor_moved": NAN}, "anchor": "sft"}, {"anchor-formula"}, id="unknown anchor"),
        pytest.param({"runs": {"anchor_moved": 0.01}, "mu": 0}, {"anchor-formula"}, id="anchor that moves at mu = 0"),
        pytest.param({"merges": {"liti_ratio": 0.7}, "eta": 0.3}, {"liti-formula"}, id="eta swapped"),
        pytest.param({"held_out": {"kl_policy_reference": equal(INF)}}, {"kl-finite"}, id="infinite KL"),
        pytest.param({"held_out": {"kl_reference_policy": equal(NAN)}}, {"kl-finite"}, id="unknown KL"),
        pytest.param({"curves": {"reward": 0.0, "penalty": 0.1}}, {"objective-split"}, id="rises by the penalty"),
        pytest.param({"held_out": {"distinct_policy": equal(NAN)}}, {"completions-diverse"}, id="unknown diversity"),
        pytest.param({"held_out": {"perplexity_policy": equal(NAN)}}, {"completions-fluent"}, id="unknown perplexity"),
        pytest.param({"runs": {"empty_completions": NAN}}, {"completions-nonempty"}, id="unknown emptiness"),
        pytest.param({"runs": {"sampling_gap": NAN}}, {"sampling-scoring"}, id="unknown gap"),
        pytest.param({"runs": {"scored_after_end": NAN}}, {"nothing-scored-after-end"}, id="unknown end"),
    ],
)
def test_a_planted_fault_is_caught_by_its_own_checks(planted: dict[str, Any], caught: set[str]) -> None:
    assert failed(result(**planted)) == caught


@pytest.mark.parametrize(
    ("place", "passing", "failing", "name"),
    [
        ("gate pair_accuracy", 0.701, 0.7, "reward-gate-accuracy"),
        ("gate spread", 0.0101, 0.01, "reward-gate-spread"),
        ("gate good_above_bad", 0.75, 0.749, "reward-gate-sentences"),
        ("gate swap_change", 0.121, 0.12, "reward-gate-swap"),  # a tenth of the spread, 1.2
        ("merges delta_cosine", 0.9989, 0.999, "runs-differ"),
        ("runs delta_norm", 1e-30, 0.0, "deltas-nonzero"),
        ("runs anchor_error", 0.02, 0.021, "anchor-formula"),
        ("merges liti_ratio", 0.519, 0.521, "liti-formula"),
        ("merges liti_ratio", 0.481, 0.479, "liti-formula"),
        ("held_out kl_reference_policy", 0.9 * KL_FLOOR, 1.1 * KL_FLOOR, "kl-finite"),
        ("held_out kl_policy_reference", 0.9 * KL_FLOOR, 1.1 * KL_FLOOR, "kl-finite"),
        ("runs empty_completions", 3 / 32, 4 / 32, "completions-nonempty"),
        ("held_out distinct_policy", 0.8 * 0.98, 0.79 * 0.98, "completions-diverse"),
        ("held_out variety_policy", 0.8 * 0.6, 0.79 * 0.6, "completions-varied"),
        ("held_out repeated_policy", 0.03 + 0.25, 0.03 + 0.26, "completions-repeated"),
        ("held_out perplexity_policy", 99.0, 101.0, "completions-fluent"),
        ("held_out perplexity_policy", 25.5, 24.5, "completions-fluent"),
        ("runs sampling_gap", 0.01, 0.011, "sampling-scoring"),
        ("runs scored_after_end", 0.0, 1.0, "nothing-scored-after-end"),
    ],
)
def test_the_border_of_a_check(place: str, passing: float, failing: float, name: str) -> None:
    table, field = place.split()
    given = (lambda value: equal(value)) if table == "held_out" and field in HELD_OUT else float
    assert failed(result(**{table: {field: given(passing)}})) == set()
    assert failed(result(**{table: {field: given(failing)}})) == {name}


@pytest.mark.parametrize(("gap", "caught"), [(0.1, set()), (0.5, set()), (0.51, {"sampling-scoring"})])
def test_bf16_may_round_its_logits(gap: float, caught: set[str]) -> None:
    assert failed(result(runs={"sampling_gap": gap}, dtype="bfloat16")) == caught


@pytest.mark.parametrize(
    ("curves", "caught"),
    [
        ({"reward": -0.1}, set()),  # it falls
        ({"reward": 0.1, "penalty": 0.05}, set()),
        ({"reward": 0.1, "penalty": 0.15}, {"objective-split"}),
        ({"reward": 0.001, "penalty": 0.002, "noise": 0.5}, set()),  # no significant rise
    ],
)
def test_a_significant_rise_of_the_objective_is_carried_by_its_reward(
    curves: dict[str, float], caught: set[str]
) -> None:
    assert failed(result(curves=curves)) == caught


def test_equal_seeds_are_caught_by_the_curves_even_without_an_angle() -> None:
    found = result(merges={"delta_cosine": NAN})
    first = found.history["run"] == 1
    found.history.loc[~first, CURVES] = found.history.loc[first, CURVES].to_numpy()
    assert failed(rechecked(found)) == {"runs-differ"}
    assert by_name(rechecked(found), "runs-differ").figures["equal"] == 2
    found.history.loc[found.history.index[-1], "grad_norm"] += 1e-9
    assert by_name(rechecked(found), "runs-differ").figures["equal"] == 1, "equal is to the last bit"


def test_one_fault_among_several_seeds_is_enough() -> None:
    found = result(n_seeds=3)
    found.runs.loc[found.runs.index[-1], "scored_after_end"] = 1.0
    found.evaluations[2] = result(held_out={"perplexity_policy": equal(500.0)}).evaluations[0]
    assert failed(rechecked(found)) == {"nothing-scored-after-end", "completions-fluent"}


@pytest.mark.parametrize(("column", "name"), [("kl", "kl-finite"), ("objective", "objective-split")])
def test_a_curve_that_is_not_finite_is_caught(column: str, name: str) -> None:
    found = result()
    found.history.loc[3, column] = NAN
    assert failed(rechecked(found)) == {name}


def test_the_anchor_is_judged_by_the_runs_where_its_error_can_be_measured() -> None:
    found = result()
    found.runs.loc[0, "anchor_error"] = NAN
    assert by_name(rechecked(found), "anchor-formula").figures == {"error": 1e-4, "measured": 3, "runs": 4}
    found.runs.loc[1, "anchor_error"] = 1.0
    assert failed(rechecked(found)) == {"anchor-formula"}


# Nothing to look at


@pytest.mark.parametrize(
    ("settings", "reasons"),
    [
        ({"M": 1}, {"runs-differ": "one-run"}),
        ({"T": 1}, {"objective-split": "few-steps"}),
        ({"M": 1, "I": 1}, {"runs-differ": "one-run", "objective-split": "one-run"}),
        ({"M": 1, "T": 1}, {"runs-differ": "one-run", "objective-split": "few-steps"}),
        ({"runs": {"anchor_error": NAN}}, {"anchor-formula": "below-rounding"}),
        ({"merges": {"liti_ratio": NAN}}, {"liti-formula": "nothing-merged"}),
        ({"gate": None}, dict.fromkeys(GATE, "no-gate")),
        ({"anchor": "sft"}, {}),
    ],
)
def test_a_check_with_nothing_to_look_at_says_so(settings: dict[str, Any], reasons: dict[str, str]) -> None:
    found = result(**settings)
    assert silent(found) == reasons and failed(found) == set()
    assert not any(check.figures for check in found.checks if not check.applies)


# Figures


def test_figures_are_numbers_in_any_language() -> None:
    for found in (result(), result(anchor="sft"), result(gate=None, M=1, T=1)):
        for check in found.checks:
            record = json.loads(json.dumps(check.to_json()))
            assert record["applies"] == check.applies and str(record).isascii()
            for name, figure in check.figures.items():
                numbers = figure.values() if isinstance(figure, dict) else [figure]
                assert name in ("dtype", "anchor") or all(type(number) in (int, float) for number in numbers), name


def test_figures_are_those_of_the_worst() -> None:
    found = result(n_seeds=2)
    found.runs["delta_norm"] = np.linspace(0.8, 0.1, len(found.runs))
    found.runs["unmoved"] = np.linspace(0, 0.7, len(found.runs))
    found.merges["liti_ratio"] = [0.5, 0.49, 0.515, 0.5]
    found.evaluations[1] = replace(found.evaluations[1], distinct_policy=equal(0.9), kl_policy_reference=equal(-1e-6))
    found = rechecked(found)
    deltas = by_name(found, "deltas-nonzero").figures
    assert deltas == {"least": 0.1, "unmoved": pytest.approx(0.35), "unmoved_most": 0.7}
    assert by_name(found, "liti-formula").figures == {"ratio": 0.515, "eta": 0.5}
    assert by_name(found, "kl-finite").figures == {"least": -1e-6, "not_finite": 0}
    assert by_name(found, "completions-diverse").figures == {"policy": 0.9, "reference": 0.98}


def test_broken_text_is_a_result_and_a_broken_instrument_is_not() -> None:
    found = result(held_out={"perplexity_policy": equal(500.0)}, runs={"scored_after_end": 1.0}, M=1)
    assert [check.name for check in broken_text(found.checks)] == ["completions-fluent"]
    assert [check.name for check in broken_instrument(found.checks)] == ["nothing-scored-after-end"]


@pytest.mark.parametrize(
    ("changes", "reads"),
    [
        ({}, True),
        ({"distinct_policy": equal(0.5)}, False),
        ({"variety_policy": 0.2}, False),
        ({"repeated_policy": 0.4}, False),
        ({"perplexity_policy": equal(10.0)}, False),
    ],
)
def test_a_text_reads_that_passes_the_checks_of_texts(changes: dict[str, Any], reads: bool) -> None:
    evaluation = Evaluation(**HELD_OUT | VARIETY | changes, samples=[])
    assert reads_like_reference(evaluation) == reads
    assert sum(check.failed for check in check_texts([evaluation])) == (not reads)
