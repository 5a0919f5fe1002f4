"""A policy is checked, not assumed, to be a causal language model that computes a prompt alike alone and in a batch."""

from __future__ import annotations

from itertools import cycle, islice
from typing import Any

import torch

from warp_nb.algorithm.objective import inputs
from warp_nb.fast.agreement import CachedForward, rounding

PROBE_TOKENS = 8
"""Tokens of the longer probe; the shorter one has half of them."""


def check_policy(policy: Any, tokens: list[int], context: int) -> None:
    """Check that a policy is a causal language model whose log-probabilities are those of the text alone.

    A prompt that is padded on the left beside a longer one is compared with the same prompt alone and shorter by its
    last token; decoding with a cache is compared with the plain forward. Both in fp32, over the whole vocabulary.

    Args:
        policy: in fp32 and eval mode.
        tokens: ids of real prompts; the first ones are the probe.
        context: longest sequence that the policy takes, tokens.

    Raises:
        ValueError: nothing of the policy is trained, it is an encoder-decoder or no language model, or its
            log-probabilities depend on padding, on later tokens or on the cache. The message names its class.
    """
    name = type(policy).__name__
    if not any(value.requires_grad for value in policy.parameters()):
        raise ValueError(f"every weight of the policy ({name}) is frozen; call policy.requires_grad_(True)")
    if getattr(policy.config, "is_encoder_decoder", False):
        raise ValueError(f"the policy ({name}) is an encoder-decoder; pass a causal language model")
    width = min(PROBE_TOKENS, context)
    longer = list(islice(cycle(tokens), width))
    padding = width - max(2, width // 2)
    device = next(policy.parameters()).device
    ids = torch.tensor([longer[:1] * padding + longer[: width - padding], longer], device=device)
    mask = torch.ones_like(ids)
    mask[0, :padding] = 0
    try:
        whole, alone, steps = _log_probs(policy, ids, mask, padding)
    except Exception as error:  # of any model's forward
        raise ValueError(
            f"the policy ({name}) does not compute as a causal language model of transformers does "
            f"({type(error).__name__}: {str(error)[:200]}); pass another one"
        ) from error
    if whole.ndim != 3 or whole.shape[2] <= max(longer):
        raise ValueError(
            f"the policy ({name}) returns logits of shape {list(whole.shape)} for ids of shape {list(ids.shape)}; "
            f"pass a causal language model, with a head over the vocabulary"
        )
    gap = (whole[0, padding:-1] - alone[0]).abs().max().item()
    if not gap <= rounding(whole):
        raise ValueError(
            f"the policy ({name}) changes a token's log-probability by {gap:.2g} nats when a longer prompt is in the "
            f"batch or another token follows: it takes no position_ids or attention mask, or is not causal; pass "
            f"another one"
        )
    gap = (torch.stack(steps, 1) - whole[:, -len(steps) :]).abs().max().item()
    if not gap <= rounding(whole):
        raise ValueError(
            f"the policy ({name}) changes a token's log-probability by {gap:.2g} nats when it decodes with its cache; "
            f"pass another one"
        )


@torch.no_grad()
def _log_probs(
    policy: Any, ids: torch.Tensor, mask: torch.Tensor, padding: int
) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
    """Return log-probabilities of the padded batch, of the shorter prompt alone, and of two steps with a cache."""
    short = ids[:1, padding:-1]
    whole = policy(**inputs(ids, mask), use_cache=False).logits
    alone = policy(**inputs(short, torch.ones_like(short)), use_cache=False).logits
    decoder = CachedForward(policy)
    steps = [decoder(ids[:, :end], mask[:, :end]) for end in (ids.shape[1] - 1, ids.shape[1])]
    return whole.log_softmax(-1), alone.log_softmax(-1), [logits.log_softmax(-1) for logits in steps]
