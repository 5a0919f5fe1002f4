"""Log-probabilities and per-token KL of completions, in slices of the logits.

The logits of a batch are the largest tensor of a step. They stay in the dtype of the computation and are read in
slices that fit a processor's cache; only one slice at a time exists in fp32.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from warp_nb.algorithm.merge import wide
from warp_nb.algorithm.objective import Rollout, Sampling, inputs
from warp_nb.fast.agreement import mask_dtype, visibility

SLICE = {"cpu": 1 << 20}
"""Number of logits in fp32 at a time, by kind of device: 4 MB on the CPU."""
LARGE_SLICE = 1 << 26
"""The same elsewhere: 268 MB."""
NEVER = -1e9
"""Logit of a token that is not drawn: its probability is 0, and unlike that of -inf its share of a KL is 0, not NaN."""


def masked_logits(policy: Any, rollout: Rollout) -> torch.Tensor:
    """Return the logits that predict each completion token, as `objective.completion_logits` does: [B, C, V].

    The model is given the whole causal mask, because transformers would look at the values of a mask [B, L] on the
    host: a GPU would wait, and the forward could not be captured. Attention is computed by kernels whose bits repeat.
    """
    width, before = rollout.tokens.shape[1], inputs(rollout.ids[:, :-1], rollout.attention_mask[:, :-1])
    mask = before["attention_mask"]
    before["attention_mask"] = visibility(mask).to(mask_dtype(policy))
    with sdpa_kernel([SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]):
        return policy(**before, use_cache=False, logits_to_keep=width).logits[:, -width:]


def without_early_ends(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    """Bar the end tokens from the first `min_new_tokens` places of a completion, as the sampler does: [B, C, V].

    So that a completion is scored by the policy that drew it. The ids are not looked up in a tensor, which the host
    would have to send to a GPU amid a capture.
    """
    count = min(sampling.min_new_tokens, logits.shape[1])
    if not (count and sampling.end_ids):
        return logits
    early = logits[:, :count].clone()
    for end in sampling.end_ids:
        early[..., end] = NEVER
    return torch.cat([early, logits[:, count:]], 1)


def token_log_probs(logits: torch.Tensor, tokens: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return log pi of every completion token, as `objective.token_log_probs` does: [B, C], fp32 or better, nats."""
    return _TokenLogProbs.apply(logits, tokens, temperature).masked_fill(~mask, 0.0)


@torch.no_grad()
def token_kl(logits_p: torch.Tensor, logits_q: torch.Tensor, mask: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return KL(p || q) of the next token, as `objective.token_kl` does: [B, C], fp32 or better, nats. No gradient.

    It is exact over the whole vocabulary at every token. Its sum over a completion drawn from p is an unbiased
    estimate of the sequence-level KL(p || q), with less variance than the log-ratio (Rao-Blackwell).
    """
    p, q = logits_p.flatten(0, 1), logits_q.flatten(0, 1)
    found = p.new_empty(len(p), dtype=wide(p[:0]).dtype)
    for part in slices(p):
        log_p, log_q = (_scaled(logits[part], temperature).log_softmax(1) for logits in (p, q))
        found[part] = (log_p - log_q).mul_(log_p.exp_()).sum(1)
    return found.view(logits_p.shape[:2]).masked_fill(~mask, 0.0)


def slices(rows: torch.Tensor) -> Iterator[slice]:
    """Yield slices of [N, V] logits: small enough for the cache of a CPU, large enough to fill a GPU."""
    step = max(1, SLICE.get(rows.device.type, LARGE_SLICE) // rows.shape[1])
    for start in range(0, len(rows), step):
        yield slice(start, start + step)


def _scaled(logits: torch.Tensor, temperature: float) -> torch.Tensor:
    """Return logits / temperature in fp32 or better."""
    logits = wide(logits)
    return logits if temperature == 1.0 else logits / temperature


class _TokenLogProbs(torch.autograd.Function):
    """log softmax(logits / temperature)[token] for logits [B, C, V] and tokens [B, C].

    The gradient of sum(g * log_prob) is g * (onehot - softmax) / temperature, made slice by slice in the
    dtype of the logits: neither the softmax nor a copy of the logits is stored in between.
    """

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, tokens: torch.Tensor, temperature: float) -> torch.Tensor:
        rows, chosen = logits.flatten(0, 1), tokens.flatten()[:, None]
        norm, found = (rows.new_empty(len(rows), dtype=wide(rows[:0]).dtype) for _ in range(2))
        for part in slices(rows):
            scaled = _scaled(rows[part], temperature)
            norm[part] = scaled.logsumexp(1)
            found[part] = scaled.gather(1, chosen[part])[:, 0] - norm[part]
        ctx.save_for_backward(logits, tokens, norm)
        ctx.temperature = temperature
        return found.view(tokens.shape)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        logits, tokens, norm = ctx.saved_tensors
        rows, chosen = logits.flatten(0, 1), tokens.flatten()[:, None]
        weight = (grads[0].flatten() / ctx.temperature)[:, None]
        found = torch.empty_like(rows)
        for part in slices(rows):
            softmax = (_scaled(rows[part], ctx.temperature) - norm[part, None]).exp_()
            found[part] = softmax.mul_(-weight[part]).scatter_add_(1, chosen[part], weight[part])
        return found.view(logits.shape), None, None
