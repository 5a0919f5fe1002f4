"""One step on token ids: sampling (line 6), r_beta (line 7) and the loss, whose gradient is that of line 8."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from warp_nb.algorithm.merge import wide


@dataclass(frozen=True)
class Sampling:
    """Settings of the sampler: most new tokens, temperature, ids of end tokens and padding, fewest before an end."""

    max_new_tokens: int
    temperature: float = 1.0
    end_ids: tuple[int, ...] = ()
    pad_id: int = 0
    min_new_tokens: int = 0


@dataclass(frozen=True)
class Rollout:
    """B completions of up to C tokens after prompts that are left-padded to P tokens."""

    ids: Tensor  # int64 [B, P + C]: prompt, completion, padding on either side
    attention_mask: Tensor  # int64 [B, P + C]: 0 on padding
    completion_mask: Tensor  # bool [B, C]: the sampled tokens, including the end token
    sampled_log_probs: Tensor  # fp32 [B, C]: log pi of each token at sampling time, nats; 0 off the mask
    temperature: float

    @property
    def tokens(self) -> Tensor:
        """The ids of the completions, int64 [B, C]."""
        return self.ids[:, -self.completion_mask.shape[1] :]


def draw(log_probs: Tensor, generator: Generator) -> Tensor:
    """Draw one token per row by inverting the cumulative distribution: [B, V] -> int64 [B], with a CPU generator."""
    cumulative = log_probs.exp().cumsum(1)
    uniform = torch.rand(len(log_probs), 1, generator=generator).to(log_probs.device)
    return torch.searchsorted(cumulative, uniform * cumulative[:, -1:])[:, 0].clamp_max(log_probs.shape[1] - 1)


def inputs(ids: Tensor, mask: Tensor) -> dict[str, Tensor]:
    """Return the arguments of a causal LM for left-padded ids [B, L]; positions do not count the padding."""
    return {"input_ids": ids, "attention_mask": mask, "position_ids": (mask.cumsum(1) - 1).clamp_min(0)}


def uncached(policy: Any, batch: int, length: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the plain decoder: a function from the ids and mask so far, [B, L], to the next token's logits [B, V]."""
    return lambda ids, mask: policy(**inputs(ids, mask), use_cache=False, logits_to_keep=1).logits[:, -1]


@torch.no_grad()
def sample(
    policy: Any, ids: Tensor, mask: Tensor, sampling: Sampling, *, generator: Generator,
    draw: Callable[[Tensor, Generator], Tensor] = draw, decoder: Callable[..., Any] = uncached,
) -> Rollout:  # fmt: skip
    """Sample y ~ pi(. | x) for left-padded prompts, int64 [B, P], from the whole vocabulary (line 6)."""
    next_logits = decoder(policy, len(ids), ids.shape[1] + sampling.max_new_tokens)
    masks, log_probs = list[Tensor](), list[Tensor]()
    ends, alive = ids.new_tensor(sampling.end_ids), ids.new_ones(len(ids), dtype=torch.bool)
    while len(masks) < sampling.max_new_tokens and alive.any():
        early = ends if len(masks) < sampling.min_new_tokens else ends[:0]  # have probability 0
        scores = (wide(next_logits(ids, mask)) / sampling.temperature).index_fill(1, early, -torch.inf).log_softmax(-1)
        token = torch.where(alive, draw(scores, generator), sampling.pad_id)
        masks.append(alive)
        log_probs.append(scores.gather(1, token[:, None])[:, 0] * alive)
        ids, mask = torch.cat([ids, token[:, None]], 1), torch.cat([mask, alive[:, None].long()], 1)
        alive = alive & ~torch.isin(token, ends)
    return Rollout(ids, mask, torch.stack(masks, 1), torch.stack(log_probs, 1), sampling.temperature)


def completion_logits(policy: Any, rollout: Rollout) -> Tensor:
    """Return the logits that predict each completion token: [B, C, V], in the dtype that the policy computes in."""
    width, before = rollout.tokens.shape[1], inputs(rollout.ids[:, :-1], rollout.attention_mask[:, :-1])
    return policy(**before, use_cache=False, logits_to_keep=width).logits[:, -width:]


def token_log_probs(logits: Tensor, tokens: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """log pi of every completion token: logits [B, C, V], ids and mask [B, C] -> [B, C], nats; 0 off the mask."""
    log_probs = (wide(logits) / temperature).log_softmax(-1)
    chosen = log_probs.gather(-1, tokens[..., None])[..., 0]
    return chosen.masked_fill(~mask, 0.0)


def token_kl(logits_p: Tensor, logits_q: Tensor, mask: Tensor, temperature: float) -> Tensor:
    """KL(p || q) of the next token over the whole vocabulary: logits [B, C, V] -> [B, C], nats; 0 off the mask."""
    log_p = (wide(logits_p) / temperature).log_softmax(-1)
    log_q = (wide(logits_q) / temperature).log_softmax(-1)
    kl = (log_p.exp() * (log_p - log_q)).sum(-1)
    return kl.masked_fill(~mask, 0.0)


def regularised_reward(rewards: Tensor, log_probs: Tensor, anchor_log_probs: Tensor, beta: float) -> Tensor:
    """r_beta(y) = r(x, y) - beta * log(pi(y|x) / pi_ema(y|x)), a constant (line 7); [B], [B, C] -> [B]."""
    log_ratio = (log_probs - anchor_log_probs).sum(1)
    return (rewards - beta * log_ratio).detach()


def leave_one_out(objective: Tensor, size: int) -> Tensor:
    """Return for each value the mean of the others in its group of `size` neighbours: [B] -> [B]."""
    groups = objective.view(-1, size)
    return ((groups.sum(1, keepdim=True) - groups) / (size - 1)).flatten()


BASELINES: dict[str, Callable[[Tensor, int], Tensor]] = {
    "none": lambda objective, K: torch.zeros_like(objective),  # as in Algorithm 1
    "mean": lambda objective, K: objective.mean().expand_as(objective),
    "batch_loo": lambda objective, K: leave_one_out(objective, len(objective)),
    "rloo": leave_one_out,  # over the K completions of a prompt, which are neighbours (Ahmadian et al. 2024)
}


def reinforce_loss(objective: Tensor, log_probs: Tensor) -> Tensor:
    """-mean of r_beta(y) * log pi(y|x): its gradient is that of line 8. r_beta [B], log pi of tokens [B, C]."""
    return -(objective * log_probs.sum(1)).mean()
