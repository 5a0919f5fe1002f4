"""Columns of a task's prompts: they reach a reward by the text of the prompt, wherever that is drawn, as in TRL."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

GIVEN = ("prompts", "completions", "completion_ids", "trainer_state")
"""Keywords that every reward gets, so no column has such a name."""
Rows = Mapping[str, Mapping[str, Any]]
"""prompt -> column -> value."""


def columns_by_prompt(prompts: Mapping[str, list[str]], columns: Mapping[str, Mapping[str, Sequence[Any]]]) -> Rows:
    """Return the values of every prompt.

    Args:
        prompts: the lists of a task, train and eval.
        columns: for the same keys, name -> one value per prompt.

    Raises:
        ValueError: the lists differ in the names of their columns, a name is one of GIVEN, a column is not as long
            as its prompts, or a prompt occurs twice with different values.
    """
    names = {kind: list(found) for kind, found in columns.items()}
    first, *others = names.values()
    if any(set(first) != set(other) for other in others):
        told = ", ".join(f"{kind}_columns has {found}" for kind, found in names.items())
        raise ValueError(f"{told}; training and evaluation call the same reward: pass the same columns for both")
    if taken := [name for name in first if name in GIVEN]:
        raise ValueError(f"a column may not be called {taken[0]!r}, which every reward gets anyway; rename it")
    rows: dict[str, dict[str, Any]] = {}
    for kind, texts in prompts.items():
        for name, values in columns[kind].items():
            if len(values) != len(texts):
                raise ValueError(
                    f"{kind}_columns[{name!r}] has {len(values)} values for {len(texts)} {kind}_prompts; "
                    f"pass one per prompt"
                )
        for place, text in enumerate(texts if first else []):
            row = {name: values[place] for name, values in columns[kind].items()}
            if text in rows and repr(rows[text]) != repr(row):
                raise ValueError(
                    f"{kind}_prompts has {text[:60]!r} twice, with {rows[text]} and {row}; a prompt is known by its "
                    f"text: drop one"
                )
            rows[text] = row
    return rows


def columns_for(rows: Rows, prompts: list[str]) -> dict[str, list[Any]]:
    """Return the columns of a batch of prompts, name -> values; empty if the task has none."""
    if unknown := [prompt for prompt in prompts if rows and prompt not in rows]:
        raise ValueError(f"prompt {unknown[0][:60]!r} is none of the task's, so it has no columns; pass a prompt of it")
    names = next(iter(rows.values()), {})
    return {name: [rows[prompt][name] for prompt in prompts] for name in names}
