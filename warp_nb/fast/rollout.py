"""Sampling completions (Algorithm 1, line 6).

In eval mode, at one temperature, over the whole vocabulary: no top-k, no top-p, no dropout.
A completion is its tokens up to and including the end-of-text token.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from warp_nb.algorithm.average import wide
from warp_nb.fast.decoder import decoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Rollout:
    """B completions of up to C tokens under prompts left-padded to P tokens."""

    ids: torch.Tensor
    """int64 [B, P + C]: padded prompt, completion, padding."""
    attention_mask: torch.Tensor
    """int64 [B, P + C]: 0 on padding of either side."""
    completion_mask: torch.Tensor
    """bool [B, C]: the tokens that were sampled, the end-of-text token among them."""
    sampled_log_probs: torch.Tensor
    """fp32 [B, C]: log-probability of each token as it was sampled, nats; 0 on padding."""
    prompts: list[str]
    completions: list[str]

    @property
    def width(self) -> int:
        """C, the longest completion."""
        return self.completion_mask.shape[1]


def encode_prompts(
    tokenizer: PreTrainedTokenizerBase, prompts: list[str], limit: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """(ids, attention mask), both int64 [B, P], left-padded, the begin token in front if there is one.

    Raises ValueError for no prompts, an empty prompt of a tokenizer without a begin token,
    or a prompt of more than `limit` tokens.
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


def pad_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The pad token's id, else the end token's, else 0 (padding is told by masks, never by id)."""
    found = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
    return 0 if found is None else found


def context_length(model: PreTrainedModel) -> int:
    """Longest sequence the model's positions reach, tokens."""
    return int(getattr(model.config, "max_position_embeddings", None) or 1 << 30)


@torch.no_grad()
def sample(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    max_new_tokens: int,
    temperature: float,
    generator: torch.Generator,
) -> Rollout:
    """Draw y ~ pi(. | x) for every prompt (Algorithm 1, line 6).

    `generator` lives on the CPU, so equal seeds give equal noise on every device. Stops when
    every completion has ended. Raises ValueError as `encode_prompts` does.
    """
    ids, mask = encode_prompts(tokenizer, prompts, context_length(policy) - max_new_tokens)
    device = next(policy.parameters()).device
    ids, mask = ids.to(device), mask.to(device)
    prompt_width, alive = ids.shape[1], torch.ones(len(prompts), dtype=torch.bool, device=device)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    step_ids, masks, log_probs = ids, [], []
    forward = decoder(policy, len(prompts), prompt_width + max_new_tokens)
    for _ in range(max_new_tokens):
        logits = forward(step_ids, mask, positions)
        scores = (logits.to(wide(logits)) / temperature).log_softmax(-1)
        token = _draw(scores, generator)
        token = torch.where(alive, token, pad_id(tokenizer))
        masks.append(alive)
        log_probs.append(scores.gather(1, token[:, None])[:, 0] * alive)
        ids = torch.cat([ids, token[:, None]], 1)
        mask = torch.cat([mask, alive[:, None].long()], 1)
        positions, step_ids = positions[:, -1:] + 1, token[:, None]
        if tokenizer.eos_token_id is not None:
            alive = alive & (token != tokenizer.eos_token_id)
        if not alive.any():
            break
    completion_mask = torch.stack(masks, 1)
    completions = completion_texts(tokenizer, ids, completion_mask)
    return Rollout(ids, mask, completion_mask, torch.stack(log_probs, 1), list(prompts), completions)


def completion_texts(tokenizer: PreTrainedTokenizerBase, ids: torch.Tensor, completion_mask: torch.Tensor) -> list[str]:
    """The completions at the end of `ids` [B, P + C] as text, without special tokens."""
    completed = zip(ids[:, -completion_mask.shape[1] :], completion_mask, strict=True)
    return tokenizer.batch_decode([row[keep].tolist() for row, keep in completed], skip_special_tokens=True)


def _draw(log_probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """One token a row by inversion of the cumulative distribution; int64 [B]."""
    uniform = torch.rand(len(log_probs), 1, generator=generator).to(log_probs.device)
    cumulative = log_probs.exp().cumsum(1)
    drawn = torch.searchsorted(cumulative, uniform * cumulative[:, -1:])
    return drawn[:, 0].clamp_max(log_probs.shape[1] - 1)
