"""A task of one's own: the fields of `Task` from a policy, a reward and prompts; the weights are loaded last."""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from dataclasses import dataclass
from os import PathLike
from typing import Any

from warp_nb.fast.devices import choose_device
from warp_nb.tasks.columns import columns_by_prompt
from warp_nb.tasks.imported import imported
from warp_nb.tasks.pretrained import check_pretrained, load_model, load_tokenizer, pretrained_at
from warp_nb.tasks.prompt_sources import is_talk, prompt_texts, read_prompts
from warp_nb.tasks.rewards import as_reward, names_function

HELD_OUT_SHARE, HELD_OUT_LEAST = 0.2, 8
"""Held-out part by default: a fifth of the prompts, and at least as many as an experiment evaluates on."""


def own_fields(
    policy: Any, *, reward: Any, prompts: Any, tokenizer: Any, held_out: Any, column: str, device: str | None,
    revision: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the fields of a `Task` (see `Task.from_pretrained`, which passes all of its arguments).

    What is cheap to check comes first: a reward's name, files of the policy, tokenizer, prompts; weights come last.
    """
    reward = imported(reward, "reward") if names_function(reward) else reward
    named = isinstance(policy, str | PathLike)
    if not named and (device is not None or revision is not None):
        raise ValueError(
            "device and revision are for a folder or a hub id, and policy is a loaded model; leave them out"
        )
    device = choose_device(device or "")
    place = pretrained_at(policy, "policy", revision) if named else None
    if place is not None:
        check_pretrained(place, "policy")
    words = tokenizer_for(policy, place, tokenizer)
    train, held, dropped = parts_of(words, prompts, held_out, column)
    reward = as_reward(reward, device)
    facts: dict[str, Any] = {
        "policy": str(policy) if named else policy.name_or_path or type(policy).__name__,
        "duplicates": dropped,
    }
    facts |= {"prompts": str(prompts)} if isinstance(prompts, str | PathLike) else {}
    facts |= {"commit": place.commit} if place is not None and place.commit else {}
    return {
        "policy": policy if place is None else load_model(place, "policy", device),
        "tokenizer": words,
        "reward": reward,
        "train_prompts": train.texts,
        "eval_prompts": held.texts,
        "train_columns": train.columns,
        "eval_columns": held.columns,
        "conversations": train.conversations | held.conversations,
        "facts": facts,
    }


def tokenizer_for(policy: Any, place: Any, given: Any) -> Any:
    """Return the tokenizer that is given, loaded if it is named; else the policy's own.

    Raises:
        ValueError: none is given, and the policy has none.
    """
    if given is not None and not isinstance(given, str | PathLike):
        return given
    if given is not None:
        return load_tokenizer(pretrained_at(given, "tokenizer"), "tokenizer")
    if place is not None:
        return load_tokenizer(place, "policy")
    if not policy.name_or_path:
        raise ValueError(f"the policy ({type(policy).__name__}) does not say where its tokenizer is; pass tokenizer=")
    return load_tokenizer(pretrained_at(policy.name_or_path, "policy"), "policy")


@dataclass(frozen=True)
class Prompts:
    """Distinct prompts of one list.

    Args:
        texts: what the policy completes.
        columns: name -> a value for every text.
        conversations: text -> messages, if the prompts are conversations; else empty.
    """

    texts: list[str]
    columns: dict[str, list[Any]]
    conversations: dict[str, list[dict[str, Any]]]

    def only(self, texts: Collection[str]) -> Prompts:
        """Return those of the prompts that are among `texts`, in their order."""
        chosen = set(texts)
        places = [place for place, text in enumerate(self.texts) if text in chosen]
        return Prompts(
            [self.texts[place] for place in places],
            {name: [values[place] for place in places] for name, values in self.columns.items()},
            {text: messages for text, messages in self.conversations.items() if text in chosen},
        )


def distinct_prompts(tokenizer: Any, given: Any, name: str, column: str) -> tuple[Prompts, int]:
    """Read prompts (see `read_prompts`); return them without duplicates, and how many there were with them.

    Raises:
        ValueError: a prompt occurs twice with different values of a column.
    """
    prompts, columns = read_prompts(given, name, column)
    texts = prompt_texts(tokenizer, prompts, name)
    columns_by_prompt({name: texts}, {name: columns})
    first: dict[str, int] = {}
    for place, text in enumerate(texts):
        first.setdefault(text, place)
    places = list(first.values())
    kept = {key: [values[place] for place in places] for key, values in columns.items()}
    talks = {texts[place]: list(prompts[place]) for place in places if is_talk(prompts[place])}
    return Prompts([texts[place] for place in places], kept, talks), len(texts)


def parts_of(tokenizer: Any, prompts: Any, held_out: Any, column: str) -> tuple[Prompts, Prompts, int]:
    """Return prompts for training, held-out ones, both without duplicates, and the number of duplicates dropped.

    A training prompt that is also in a held-out list of the user's is dropped as a duplicate.
    """
    given, total = distinct_prompts(tokenizer, prompts, "prompts", column)
    if held_out is None or isinstance(held_out, int | float):
        train, held = split_off(given.texts, held_out)
        return given.only(train), given.only(held), total - len(given.texts)
    apart, more = distinct_prompts(tokenizer, held_out, "held_out", column)
    rest = given.only(set(given.texts) - set(apart.texts))
    if not rest.texts:
        raise ValueError(f"all {len(given.texts)} prompts are in held_out too; pass others for the training")
    return rest, apart, total + more - len(rest.texts) - len(apart.texts)


def split_off(prompts: list[str], held_out: float | None) -> tuple[list[str], list[str]]:
    """Split distinct prompts into those for training and the held-out ones, both in their order.

    The sha256 of a prompt decides, so neither a seed nor the order of the prompts changes the split.

    Args:
        prompts: distinct texts.
        held_out: a share in (0, 1), a number of prompts, or None: a fifth, at least HELD_OUT_LEAST.

    Raises:
        ValueError: the share or the number is out of range, or there are too few prompts.
    """
    total = len(prompts)
    if held_out is None:
        count, rule = (
            max(HELD_OUT_LEAST, round(HELD_OUT_SHARE * total)),
            f"at least {2 * HELD_OUT_LEAST} distinct prompts, or held_out=2",
        )
        if total < 2 * HELD_OUT_LEAST:
            raise ValueError(f"{total} distinct prompts are too few to hold {HELD_OUT_LEAST} of them out; pass {rule}")
    elif isinstance(held_out, float):
        count = round(held_out * total) if 0 < held_out < 1 else 0
    else:
        count = held_out
    if isinstance(held_out, bool) or not 2 <= count < total:
        raise ValueError(
            f"held_out = {held_out!r} of {total} distinct prompts must leave one for training and hold at least two "
            f"out; pass a share such as 0.2, or a number of prompts below {total}"
        )
    by_hash = sorted(prompts, key=lambda text: hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest())
    chosen = set(by_hash[:count])
    return [one for one in prompts if one not in chosen], [one for one in prompts if one in chosen]
