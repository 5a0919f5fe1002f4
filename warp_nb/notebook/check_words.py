"""Texts of the checks in Russian: title, rule, meaning of a failure, what was measured (`templates/checks.toml`)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from warp_nb.measure import checks as rules
from warp_nb.measure import evaluation as measures
from warp_nb.measure.checks import Check, broken_text
from warp_nb.notebook.prose import filled, paragraphs, words

SAID = words("checks")
REASONS: dict[str, str] = SAID.pop("reasons")


class Words(NamedTuple):
    """Texts of a check: title, rule, meaning of a failure, a template for what was measured, a text's fault."""

    title: str
    rule: str
    failure: str
    measured: str
    fault: str = ""
    brief: str = ""


WORDS = {
    name: Words(
        **said
        | {key: filled(said[key], vars(measures) | vars(rules)) for key in said.keys() & {"rule", "fault", "brief"}}
    )
    for name, said in SAID.items()
}
"""Check -> its texts, with the thresholds filled in."""


def measured(check: Check) -> str:
    """Say what the check measured, or why it does not apply."""
    if not check.applies:
        return f"не применимо: {REASONS[check.reason]}"
    return filled(WORDS[check.name].measured, check.figures)


def headline(checks: Sequence[Check]) -> str:
    """Write the first line of a report: all checks passed, or which ones failed."""
    return paragraphs("headline", checks=checks, words=WORDS)[0]


def say_faults(checks: Sequence[Check]) -> str:
    """Say what is wrong with the policy's texts, with numbers; empty if nothing is."""
    return "; ".join(f"{WORDS[check.name].fault} {measured(check)}" for check in broken_text(checks))
