"""Conversion between text and token ids: prompts are encoded for a policy, completions decoded for a reward."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.objective import Rollout

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Encode prompts as (ids, attention mask), both int64 [B, P], left-padded, with the begin token if any.

    Raises:
        ValueError: there is no prompt, a prompt is empty and the tokenizer has no begin token, or a prompt is longer
            than `limit` tokens.
    """
    if not prompts:
        raise ValueError("prompts is empty; pass at least one prompt")
    begin = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
    rows = [begin + ids for ids in tokenizer(prompts, add_special_tokens=False)["input_ids"]]
    for prompt, row in zip(prompts, rows, strict=True):
        if not row:
            raise ValueError(f"prompt {prompt!r} has no tokens and the tokenizer no begin token; drop it")
        if len(row) > limit:
            raise ValueError(f"prompt of {len(row)} tokens, at most {limit} fit beside the completion: {prompt[:60]!r}")
    width = max(map(len, rows))
    ids = torch.full((len(rows), width), pad_id(tokenizer))
    mask = torch.zeros_like(ids)
    for index, row in enumerate(rows):
        ids[index, width - len(row) :] = torch.tensor(row)
        mask[index, width - len(row) :] = 1
    return ids, mask


def decode_completions(tokenizer: PreTrainedTokenizerBase, rollout: Rollout) -> list[str]:
    """Decode the completions to text without special tokens."""
    rows = zip(rollout.tokens, rollout.completion_mask, strict=True)
    return tokenizer.batch_decode([row[keep].tolist() for row, keep in rows], skip_special_tokens=True)


def first_tokens(tokenizer: PreTrainedTokenizerBase, texts: list[str], count: int) -> list[str]:
    """Return the first `count` tokens of each text, decoded, in the order of `texts` and without duplicates."""
    rows = tokenizer(texts, add_special_tokens=False)["input_ids"]
    return list(dict.fromkeys(tokenizer.batch_decode([row[:count] for row in rows])))


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the pad token's id, else the end token's, else 0; masks mark the padding, its id does not."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if found is None else found


def context_length(model: Any) -> int:
    """Return the longest sequence that the model's positions allow, tokens (2**30 where there is no limit)."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)
