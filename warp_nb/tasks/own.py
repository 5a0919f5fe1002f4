"""A task of one's own: the fields of `Task` from a policy, a reward and prompts; the weights are loaded last."""

from __future__ import annotations

import hashlib
from os import PathLike
from typing import Any

from warp_nb.fast.devices import choose_device
from warp_nb.tasks.imported import imported
from warp_nb.tasks.pretrained import check_pretrained, load_model, load_tokenizer, pretrained_at
from warp_nb.tasks.prompt_sources import prompt_texts, read_prompts

HELD_OUT_SHARE, HELD_OUT_LEAST = 0.2, 8
"""Held-out part by default: a fifth of the prompts, and at least as many as an experiment evaluates on."""


def own_fields(
    policy: Any, *, reward: Any, prompts: Any, tokenizer: Any, held_out: Any, column: str, device: str | None,
    revision: str | None,
) -> dict[str, Any]:  # fmt: skip
    """Return the fields of a `Task` (see `Task.from_pretrained`, which passes all of its arguments).

    What is cheap to check comes first: reward, files of the policy, tokenizer, prompts; the weights are loaded last.
    """
    reward = imported(reward, "reward") if isinstance(reward, str) else reward
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
        "train_prompts": train,
        "eval_prompts": held,
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


def parts_of(tokenizer: Any, prompts: Any, held_out: Any, column: str) -> tuple[list[str], list[str], int]:
    """Return prompts for training, held-out ones, both without duplicates, and the number of duplicates dropped.

    A training prompt that is also in a held-out list of the user's is dropped as a duplicate.
    """
    given = prompt_texts(tokenizer, read_prompts(prompts, "prompts", column), "prompts")
    distinct = list(dict.fromkeys(given))
    if held_out is None or isinstance(held_out, int | float):
        train, held = split_off(distinct, held_out)
        return train, held, len(given) - len(distinct)
    apart = prompt_texts(tokenizer, read_prompts(held_out, "held_out", column), "held_out")
    held, seen = list(dict.fromkeys(apart)), set(apart)
    train = [prompt for prompt in distinct if prompt not in seen]
    if not train:
        raise ValueError(f"all {len(distinct)} prompts are in held_out too; pass others for the training")
    return train, held, len(given) + len(apart) - len(train) - len(held)


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
