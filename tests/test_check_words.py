"""What the checks say in Russian: every check and every reason has its words, and the words hold the figures."""

from __future__ import annotations

import math
from typing import Any

import pytest
from synthetic import around, equal, failed, rechecked, result

from warp_nb.measure.checks import OF_THE_TEXT, Check
from warp_nb.notebook.check_words import REASONS, WORDS, headline, measured, say_faults

NAN = math.nan
SILENT: list[tuple[dict[str, Any], str, str]] = [
    ({"M": 1}, "runs-differ", "one-run"),
    ({"T": 1}, "objective-split", "few-steps"),
    ({"runs": {"anchor_error": NAN}}, "anchor-formula", "below-rounding"),
    ({"merges": {"liti_ratio": NAN}}, "liti-formula", "nothing-merged"),
    ({"gate": None}, "reward-gate-swap", "no-gate"),
]
"""Settings, a check that has nothing to look at, why."""


def by_name(checks: list[Check], name: str) -> Check:
    return next(check for check in checks if check.name == name)


def test_every_check_has_a_title_a_rule_and_what_a_failure_means() -> None:
    assert list(WORDS) == [check.name for check in result().checks]
    said = [text for words in WORDS.values() for text in (words.title, words.rule, words.failure)]
    assert all(text and text == text.strip() and not set(text) & set("{}\n") for text in said)
    assert len({words.title for words in WORDS.values()}) == len(WORDS)
    assert {name for name, words in WORDS.items() if words.fault} == set(OF_THE_TEXT)


def test_a_rule_names_its_threshold() -> None:
    assert WORDS["reward-gate-accuracy"].rule == "верных пар больше 70\u00a0%"
    assert "не больше 0,01 ната (в bf16 — 0,5)" in WORDS["sampling-scoring"].rule
    assert "общая фраза из 5 токенов с другим (в группах по 64), больше доли" in WORDS["completions-repeated"].rule


@pytest.mark.parametrize(
    ("planted", "name", "said"),
    [
        ({"gate": {"pair_accuracy": 0.49}}, "reward-gate-accuracy", "49\u00a0% из 400 пар"),
        ({"gate": {"spread": 3e-6}}, "reward-gate-spread", "3·10⁻⁶"),
        ({"gate": {"good_above_bad": 0.4}}, "reward-gate-sentences", "40\u00a0%"),
        ({"gate": {"swap_change": 0.0}}, "reward-gate-swap", "0 при разбросе 1,2"),
        (
            {"merges": {"delta_cosine": 1.0}},
            "runs-differ",
            "наибольший косинус по всем весам: 1; пар совпавших кривых: 0",
        ),
        (
            {"runs": {"delta_norm": 0.0, "unmoved": 0.034}},
            "deltas-nonzero",
            "наименьшая норма: 0; вовсе не сдвинулось весов: 3,4\u00a0% в среднем, 3,4\u00a0% самое большее",
        ),
        ({"runs": {"anchor_error": 1.0}}, "anchor-formula", "наибольшая относительная ошибка: 1"),
        (
            {"runs": {"anchor_moved": 0.01}, "anchor": "sft"},
            "anchor-formula",
            "якорь неподвижен по условию; сдвиг: 0,01",
        ),
        ({"runs": {"anchor_moved": 0.01}, "mu": 0}, "anchor-formula", "μ = 0; сдвиг: 0,01"),
        ({"merges": {"liti_ratio": 0.7}, "eta": 0.3}, "liti-formula", "измерено 0,7 при η = 0,3"),
        ({"held_out": {"kl_policy_reference": equal(math.inf)}}, "kl-finite", "не конечных: 1"),
        ({"held_out": {"kl_policy_reference": around(-3e-5, 1e-6)}}, "kl-finite", "наименьшая: −3·10⁻⁵ ната"),
        ({"runs": {"empty_completions": 0.4}}, "completions-nonempty", "пустых: 40\u00a0%"),
        ({"held_out": {"distinct_policy": equal(0.2)}}, "completions-diverse", "0,2 против 0,98 у θ_sft"),
        ({"held_out": {"variety_policy": 0.1}}, "completions-varied", "10\u00a0% против 60\u00a0% у θ_sft"),
        ({"held_out": {"repeated_policy": 0.7}}, "completions-repeated", "70\u00a0% против 3\u00a0% у θ_sft"),
        ({"held_out": {"perplexity_policy": equal(5000.0)}}, "completions-fluent", "5000 против 50 у θ_sft"),
        ({"runs": {"sampling_gap": 0.9}}, "sampling-scoring", "расхождение: 0,9 ната на токен (float32)"),
        ({"runs": {"scored_after_end": 3.0}}, "nothing-scored-after-end", "токенов после конца: 3"),
    ],
)
def test_a_failed_check_says_what_it_measured(planted: dict[str, Any], name: str, said: str) -> None:
    found = result(**planted)
    assert failed(found) == {name}
    assert measured(by_name(found.checks, name)) == said


def test_the_objective_is_told_with_its_parts() -> None:
    found = result(curves={"reward": 0.0, "penalty": 0.1, "noise": 0.0})
    assert failed(found) == {"objective-split"}
    said = measured(by_name(found.checks, "objective-split"))
    assert [part.split(" (")[0] for part in said.split("), ")] == ["за шаг: r_β +0,1", "награда 0", "штраф +0,1"]


def test_equal_curves_and_runs_that_could_be_measured_are_counted() -> None:
    twins = result(merges={"delta_cosine": NAN})
    first, columns = twins.history["run"] == 1, ["reward", "penalty", "objective", "kl", "grad_norm"]
    twins.history.loc[~first, columns] = twins.history.loc[first, columns].to_numpy()
    assert measured(by_name(rechecked(twins).checks, "runs-differ")).endswith("пар совпавших кривых: 2")
    partly = result()
    partly.runs.loc[0, "anchor_error"] = NAN
    assert measured(by_name(rechecked(partly).checks, "anchor-formula")).endswith("; измерима в 3 из 4 прогонов")


@pytest.mark.parametrize(("settings", "name", "reason"), SILENT)
def test_a_silent_check_says_why(settings: dict[str, Any], name: str, reason: str) -> None:
    found = result(**settings)
    check = by_name(found.checks, name)
    assert (check.reason, check.applies) == (reason, False)
    assert measured(check) == f"не применимо: {REASONS[reason]}"
    line = headline(found.checks)
    silent = [one for one in found.checks if not one.applies]
    assert line.startswith(f"Все {len(WORDS) - len(silent)} провер")
    assert line.endswith(f" пройдены. Не применимы: {', '.join(f'«{WORDS[one.name].title}»' for one in silent)}.")


def test_every_reason_is_one_of_the_checks() -> None:
    assert {reason for _, _, reason in SILENT} == REASONS.keys()


def test_the_headline_counts_declines_and_names() -> None:
    checks = result().checks
    assert headline(checks) == f"Все {len(checks)} проверок пройдены."
    assert headline(checks[:2]) == "Все 2 проверки пройдены."
    broken = result(gate={"swap_change": 0.0}, runs={"scored_after_end": 3.0}).checks
    titles = [WORDS[check.name].title for check in broken if check.failed]
    assert len(titles) == 2
    assert headline(broken) == f"Не пройдены проверки (2 из {len(checks)}): «{titles[0]}», «{titles[1]}»."


def test_faults_are_those_of_the_text_and_of_nothing_else() -> None:
    assert say_faults(result(runs={"scored_after_end": 3.0}).checks) == ""
    both = result(runs={"empty_completions": 0.4}, held_out={"perplexity_policy": equal(5000.0)})
    assert say_faults(both.checks) == (
        "среди продолжений пустых: 40\u00a0%; перплексия изменилась больше чем в 2 раза, 5000 против 50 у θ_sft"
    )
