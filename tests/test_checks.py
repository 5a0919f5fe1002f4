import math

import numpy as np
import pytest
from synthetic import around, equal, result

from warp_nb.measure.checks import KL_FLOOR, TEXT, headline, slope

NAN = math.nan


def by_name(found, name):
    return next(check for check in found.checks if check.name == name)


def silent(found):
    return {check.name for check in found.checks if not check.applies}


def test_healthy_run_passes_every_check_and_says_so():
    found = result()
    assert [check.name for check in found.checks] == list(TEXT)
    assert found.failed() == set() and silent(found) == set()
    assert headline(found.checks) == "Все 16 проверок пройдены."


@pytest.mark.parametrize(
    ("planted", "caught"),
    [
        pytest.param(
            {"gate": {"pair_accuracy": 0.49, "spread": 3e-6, "good_above_bad": 0.4, "swap_change": 0.0}},
            {"reward-gate-accuracy", "reward-gate-spread", "reward-gate-sentences", "reward-gate-swap"},
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
        pytest.param(
            {"runs": {"anchor_moved": 0.01}, "anchor": "sft"}, {"anchor-formula"}, id="fixed anchor that moves"
        ),
        pytest.param({"runs": {"anchor_moved": 0.01}, "mu": 0}, {"anchor-formula"}, id="anchor that moves at mu = 0"),
        pytest.param({"merges": {"liti_ratio": 0.7}, "eta": 0.3}, {"liti-formula"}, id="eta swapped"),
        pytest.param({"held_out": {"kl_policy_reference": equal(math.inf)}}, {"kl-finite"}, id="infinite KL"),
        pytest.param({"held_out": {"kl_reference_policy": equal(2 * KL_FLOOR)}}, {"kl-finite"}, id="negative KL"),
        pytest.param(
            {"curves": {"reward": 0.0, "penalty": 0.1}}, {"objective-split"}, id="objective rises by the penalty"
        ),
        pytest.param({"runs": {"empty_completions": 0.5}}, {"completions-nonempty"}, id="empty completions"),
        pytest.param({"held_out": {"distinct_policy": equal(0.2)}}, {"completions-diverse"}, id="loops"),
        pytest.param({"held_out": {"perplexity_policy": equal(5000.0)}}, {"completions-fluent"}, id="word salad"),
        pytest.param({"held_out": {"perplexity_policy": equal(NAN)}}, {"completions-fluent"}, id="unknown perplexity"),
        pytest.param({"runs": {"sampling_gap": 0.8}}, {"sampling-scoring"}, id="two temperatures"),
        pytest.param({"runs": {"sampling_gap": NAN}}, {"sampling-scoring"}, id="unknown gap"),
        pytest.param(
            {"runs": {"sampling_gap": 0.8}, "dtype": "bfloat16"}, {"sampling-scoring"}, id="two temperatures in bf16"
        ),
        pytest.param({"runs": {"scored_after_end": 12.0}}, {"nothing-scored-after-end"}, id="pad counted"),
    ],
)
def test_planted_fault_is_caught_by_its_own_name(planted, caught):
    found = result(**planted)
    assert found.failed() == caught
    line = headline(found.checks)
    assert line.startswith(f"Не пройдены проверки ({len(caught)} из ")
    assert all(check.title in line for check in found.checks if check.failed)


def test_equal_seeds_are_caught_by_the_curves_even_without_an_angle():
    found = result(merges={"delta_cosine": NAN})
    first = found.history["run"] == 1
    found.history.loc[~first, ["reward", "penalty", "objective", "kl", "grad_norm"]] = found.history.loc[
        first, ["reward", "penalty", "objective", "kl", "grad_norm"]
    ].to_numpy()
    assert found.failed() == {"runs-differ"}
    assert "пар совпавших кривых: 2" in by_name(found, "runs-differ").measured


def test_one_fault_among_several_seeds_is_enough():
    found = result(n_seeds=3)
    found.runs.loc[found.runs.index[-1], "scored_after_end"] = 1.0
    found.evaluations[2] = result(held_out={"perplexity_policy": equal(500.0)}).evaluations[0]
    assert found.failed() == {"nothing-scored-after-end", "completions-fluent"}


@pytest.mark.parametrize("column", ["kl", "objective"])
def test_a_curve_that_is_not_finite_is_caught(column):
    found = result()
    found.history.loc[3, column] = NAN
    assert found.failed() == {{"kl": "kl-finite", "objective": "objective-split"}[column]}


def test_the_anchor_is_judged_by_the_runs_where_its_error_can_be_measured():
    found = result()
    found.runs.loc[0, "anchor_error"] = NAN
    assert "измерима в 3 из 4 прогонов" in by_name(found, "anchor-formula").measured
    found = result(runs={"anchor_error": 1.0})
    found.runs.loc[0, "anchor_error"] = NAN
    assert found.failed() == {"anchor-formula"}


def test_a_few_empty_completions_are_not_a_fault():
    assert result(runs={"empty_completions": 3 / 32}).failed() == set()
    assert result(runs={"empty_completions": 4 / 32}).failed() == {"completions-nonempty"}


def test_bf16_rounding_of_the_sampling_is_not_a_fault():
    assert result(runs={"sampling_gap": 0.1}, dtype="bfloat16").failed() == set()
    assert result(runs={"sampling_gap": 0.1}, dtype="float32").failed() == {"sampling-scoring"}


def test_an_objective_that_falls_or_rises_with_its_reward_is_not_a_fault():
    assert result(curves={"reward": -0.1}).failed() == set()
    assert result(curves={"reward": 0.1, "penalty": 0.05}).failed() == set()
    assert result(curves={"reward": 0.1, "penalty": 0.15}).failed() == {"objective-split"}


@pytest.mark.parametrize(
    ("settings", "names"),
    [
        ({"M": 1}, {"runs-differ"}),
        ({"T": 1}, {"objective-split"}),
        ({"M": 1, "T": 1}, {"runs-differ", "objective-split"}),
        ({"runs": {"anchor_error": NAN}}, {"anchor-formula"}),
        ({"merges": {"liti_ratio": NAN}}, {"liti-formula"}),
        ({"anchor": "sft"}, set()),
    ],
)
def test_a_check_with_nothing_to_look_at_says_so(settings, names):
    found = result(**settings)
    assert silent(found) == names and found.failed() == set()
    assert all(check.measured.startswith("не применимо: ") for check in found.checks if not check.applies)
    count = 16 - len(names)
    assert headline(found.checks).startswith(f"Все {count} проверок пройдены.")
    assert ("Не применимы" in headline(found.checks)) == bool(names)


def test_headline_declines_the_noun():
    assert headline(result().checks[:2]) == "Все 2 проверки пройдены."


def test_slope_is_least_squares_with_an_intercept_a_run():
    found = result(T=6)
    rng = np.random.default_rng(1)
    found.history["objective"] = (
        rng.normal(size=len(found.history)) + 10 * found.history["run"] * found.history["iteration"]
    )
    runs = found.history.groupby(["iteration", "run"]).ngroup().to_numpy()
    design = np.column_stack([found.history["step"], *(runs == index for index in range(4))])
    wanted, residual, *_ = np.linalg.lstsq(design, found.history["objective"].to_numpy(), rcond=None)
    variance = residual[0] / (24 - 5) * np.linalg.inv(design.T @ design)[0, 0]
    estimate = slope(found.history, "objective")
    assert estimate.value == pytest.approx(wanted[0])
    assert estimate.high - estimate.value == pytest.approx(2.093024 * math.sqrt(variance), rel=1e-5)


def test_slopes_of_reward_and_penalty_add_up_to_the_objective():
    found = result().history
    parts = slope(found, "reward").value + slope(found, "penalty").value
    assert slope(found, "objective").value == pytest.approx(parts)


def test_slope_needs_more_points_than_unknowns():
    assert slope(result(I=1, M=1, T=2).history, "reward") is None
    assert slope(result(I=1, M=1, T=3).history, "reward") is not None


def test_measured_words_are_russian_numbers():
    found = result(runs={"unmoved": 0.034}, held_out={"kl_policy_reference": around(-3e-6, 1e-6)})
    assert "3,4\u00a0%" in by_name(found, "deltas-nonzero").measured
    assert by_name(found, "kl-finite").measured == "наименьшая: −3·10⁻⁶ нат"
