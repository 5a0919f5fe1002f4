"""Conversion between text and token ids: prompts are encoded for a policy, completions decoded for a reward."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import replace
from os.path import commonprefix
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.objective import Rollout
from warp_nb.fast.agreement import vocabulary_size

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def prompt_ids(tokenizer: PreTrainedTokenizerBase, prompts: list[str]) -> list[list[int]]:
    """Encode prompts, each with the begin of a text in front exactly once: a chat template writes its own.

    A prompt that begins with a special token was opened by a template, also if that token is no begin token.
    """
    begin = begin_ids(tokenizer)
    added = tokenizer.added_tokens_decoder.items()
    opening = {token for token, about in added if about.special} - {tokenizer.unk_token_id}
    ids_only = {"return_attention_mask": False, "return_token_type_ids": False}
    rows = tokenizer(prompts, add_special_tokens=False, **ids_only)["input_ids"]
    return [row if row[: len(begin)] == begin or set(row[:1]) & opening else begin + row for row in rows]


def begin_ids(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the ids that open a text: those that the tokenizer puts there, else its begin token, else none.

    A tokenizer that declares `add_bos_token = False` puts none there.
    """
    encoded = tokenizer("a", return_special_tokens_mask=True)
    special = encoded["special_tokens_mask"]
    added = encoded["input_ids"][: special.index(0)] if 0 in special else []
    if added or tokenizer.bos_token_id is None or tokenizer.init_kwargs.get("add_bos_token") is False:
        return list(added)
    return [tokenizer.bos_token_id]


def end_ids(tokenizer: PreTrainedTokenizerBase, policy: Any) -> tuple[int, ...]:
    """Return the ids that end a completion: each that the tokenizer or the policy's generation config declares."""
    declared = getattr(getattr(policy, "generation_config", None), "eos_token_id", None)
    several = declared if isinstance(declared, list | tuple) else [declared]
    size = vocabulary_size(policy)
    return tuple(sorted({end for end in (tokenizer.eos_token_id, *several) if end is not None and 0 <= end < size}))


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], limit: int, pad: int = 0, *, width: int = 0
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode prompts as (ids, attention mask), both int64 [B, P], left-padded with `pad` (see `prompt_ids`).

    P is the length of the longest prompt, at least `width`.

    Raises:
        ValueError: there is no prompt, a prompt is empty and nothing opens a text, or a prompt is longer than `limit`
            tokens.
    """
    if not prompts:
        raise ValueError("prompts is empty; pass at least one prompt")
    rows = prompt_ids(tokenizer, prompts)
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise ValueError(f"prompt {prompt!r} has no tokens and the tokenizer no begin token; drop it")
        if len(row) > limit:
            raise ValueError(f"prompt of {len(row)} tokens, at most {limit} fit beside the completion: {prompt[:60]!r}")
    width = max(width, *map(len, rows))
    ids = torch.full((len(rows), width), pad)
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def decode_completions(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[str]:
    """Decode the completions without special tokens: each is what its tokens add to the text of the prompt's.

    A decoder drops the space in front of a text's first word and joins pieces of a word, so tokens that are decoded
    alone may lose a space, or show the mark of a continued word.
    """
    width = rollout.tokens.shape[1]
    ids, kept = rollout.ids.tolist(), rollout.attention_mask.bool().tolist()
    rows = [[token for token, keep in zip(*row, strict=True) if keep] for row in zip(ids, kept, strict=True)]
    prompts = [row[: len(row) - sum(keep[-width:])] for row, keep in zip(rows, kept, strict=True)]
    return _added(tokenizer, rows, prompts, plain=True)


def _added(
    tokenizer: PreTrainedTokenizerBase, rows: list[list[int]], prompts: list[list[int]], *, plain: bool
) -> list[str]:
    """Return what rows of tokens add to the texts of the prompts that they begin with; `plain` skips special tokens."""
    whole, begun = (tokenizer.batch_decode(side, skip_special_tokens=plain) for side in (rows, prompts))
    starts = map(commonprefix, zip(whole, begun, strict=True))
    return [text.removeprefix(start) for text, start in zip(whole, starts, strict=True)]


def completion_tokens(rollout: Rollout) -> list[list[int]]:
    """Return the tokens of each completion, without padding."""
    rows = zip(rollout.tokens.cpu(), rollout.completion_mask.cpu(), strict=True)  # one copy, not one a row
    return [row[keep].tolist() for row, keep in rows]


def end_at_stops(tokenizer: PreTrainedTokenizerBase, rollout: Rollout, stops: Sequence[str], pad: int) -> Rollout:
    """End every completion with the token that completes a stop string; those after it become padding, `pad`.

    Later tokens have no influence on earlier ones, so these are the completions of a sampler that stops there. A stop
    string is looked for in what the completion adds to the prompt's text, special tokens included.
    """
    width = rollout.tokens.shape[1]
    rows = zip(rollout.ids.tolist(), rollout.attention_mask.tolist(), rollout.completion_mask.sum(1), strict=True)
    ends = []
    for ids, seen, length in rows:
        prompt = [token for token, keep in zip(ids[:-width], seen, strict=False) if keep]
        ends.append(_stopped_length(tokenizer, prompt, ids[-width:][: int(length)], stops))
    places = torch.arange(width, device=rollout.ids.device)
    kept = places < torch.tensor(ends, device=rollout.ids.device)[:, None]
    ids, mask = rollout.ids.clone(), rollout.attention_mask.clone()
    ids[:, -width:], mask[:, -width:] = rollout.tokens.where(kept, pad), kept.long()
    return replace(
        rollout, ids=ids, attention_mask=mask, completion_mask=kept, sampled_log_probs=rollout.sampled_log_probs * kept
    )


def _stopped_length(
    tokenizer: PreTrainedTokenizerBase, prompt: list[int], tokens: list[int], stops: Sequence[str]
) -> int:
    """Return how many of the tokens there are up to the one that completes a stop string; all without any."""

    def stopped(length: int) -> bool:
        (added,) = _added(tokenizer, [prompt + tokens[:length]], [prompt], plain=False)
        return any(stop in added for stop in stops)

    total = len(tokens)
    return bisect_left(range(total), True, key=stopped) if stopped(total) else total


def first_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], count: int) -> list[str]:
    """Return the beginning of each text that up to `count` tokens spell, in the order of `texts`, no duplicates.

    A beginning ends with a whole character, of which a token may hold a part only; it has at least one.
    """
    rows = tokenizer(texts, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]
    return list(dict.fromkeys(text[: _whole(row, count)] for text, row in zip(texts, rows, strict=True)))


def _whole(offsets: list[tuple[int, int]], count: int) -> int:
    """Return where the first `count` tokens end, or fewer if the token after them begins inside a character."""
    count = min(count, len(offsets))
    while 0 < count < len(offsets) and offsets[count][0] < offsets[count - 1][1]:
        count -= 1
    return offsets[max(count, 1) - 1][1] if offsets else 0


def pad_id(tokenizer: PreTrainedTokenizerBase, policy: Any) -> int:
    """Return the pad token's id, else the end token's, else 0: the first that the policy's vocabulary has.

    Masks mark the padding, so its id changes nothing.
    """
    size = vocabulary_size(policy)
    found = (tokenizer.pad_token_id, tokenizer.eos_token_id)
    return next((token for token in found if token is not None and 0 <= token < size), 0)


def context_length(model: Any) -> int:
    """Return the longest sequence that the model's positions allow, tokens (2**30 where there is no limit)."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
