"""Prompts are validated where they enter: texts, not empty, of tokens that the policy knows, short enough."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

REMEDY = "pass a list of texts"


def texts_of(given: Any, name: str) -> list[str]:
    """Return prompts as a list of str: from a list or a column of numpy, pandas or `datasets`.

    Args:
        given: an iterable of texts.
        name: the argument, for messages.

    Raises:
        ValueError: it is one text, is empty, or an element is no text (None, NaN, chat messages, token ids).
    """
    if isinstance(given, str | bytes | Mapping) or not isinstance(given, Iterable):
        raise ValueError(f"{name} is {_kind(given)}, {str(given)[:60]!r}; {REMEDY}, e.g. [{str(given)[:20]!r}]")
    texts = list(given)
    if not texts:
        raise ValueError(f"{name} is empty; pass at least one prompt")
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"{name}[{place}] is {_kind(text)}, {str(text)[:60]}; {_remedy(text)}")
    return [str(text) for text in texts]  # numpy's str is one of its own


def _kind(value: Any) -> str:
    return "one text" if isinstance(value, str) else f"of type {type(value).__name__}"


def _remedy(value: Any) -> str:
    """Say what to do about an element that is no text."""
    first = value[0] if isinstance(value, list | tuple) and value else value
    if isinstance(first, Mapping):
        return "turn messages into text first: tokenizer.apply_chat_template(messages, tokenize=False)"
    if isinstance(value, list | tuple) and isinstance(first, int):
        return "pass texts in place of token ids: tokenizer.decode(ids)"
    return f"drop it, or {REMEDY}"


def check_ids(rows: list[list[int]], prompts: list[str], name: str, *, vocabulary: int) -> None:
    """Raise ValueError for a prompt without tokens, or with a token that the policy's vocabulary lacks."""
    for place, (row, prompt) in enumerate(zip(rows, prompts, strict=True)):
        if not row:
            raise ValueError(f"{name}[{place}] {prompt!r} has no tokens and the tokenizer no begin token; drop it")
        if max(row) >= vocabulary:
            raise ValueError(
                f"{name}[{place}] {prompt[:60]!r} has token {max(row)}, the policy's vocabulary ends at "
                f"{vocabulary - 1}; pass the policy's tokenizer, or policy.resize_token_embeddings(len(tokenizer))"
            )


def check_lengths(lengths: list[int], prompts: list[str], name: str, *, context: int, max_new_tokens: int) -> None:
    """Raise ValueError if the longest prompt, of `lengths` tokens, leaves no room for a completion in the context."""
    longest = max(lengths)
    place, room = lengths.index(longest), context - longest
    if room < max_new_tokens:
        remedy = f"pass max_new_tokens = {room} or less, or " if room > 0 else ""
        raise ValueError(
            f"{name}[{place}] has {longest} tokens ({prompts[place][:60]!r}), so the policy's context of {context} "
            f"leaves {max(0, room)} for a completion, and max_new_tokens = {max_new_tokens}; {remedy}shorten the prompt"
        )
