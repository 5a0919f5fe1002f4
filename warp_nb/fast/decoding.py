"""Sampling with a cache: captured on a GPU, on tensors of fixed shape elsewhere, or with the model's own cache."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch

from warp_nb.algorithm import objective
from warp_nb.algorithm.objective import Rollout, Sampling
from warp_nb.fast.agreement import CachedForward
from warp_nb.fast.capture import captured_sampler, why_eager
from warp_nb.fast.decoders import Decoder, decoder_of
from warp_nb.fast.sampler import Sampler, slots_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BLOCK = 32
"""Prompts that share a generator of noise in an evaluation, on every device."""


@torch.no_grad()
def sample(
    policy: PreTrainedModel,
    ids: torch.Tensor,
    mask: torch.Tensor,
    sampling: Sampling,
    *,
    generator: torch.Generator,
    draw: Callable[[torch.Tensor, torch.Generator], torch.Tensor] = objective.draw,
    decoder: Callable[..., Decoder | None] = decoder_of,
) -> Rollout:
    """Sample y ~ pi(. | x) as `objective.sample` does, with a cache; on a GPU by replaying captured steps.

    Where the policy takes no cache of fixed shape, the loop of `objective.sample` draws with the model's own cache.
    """
    shape, count = (ids.shape[0], ids.shape[1]), sampling.max_new_tokens
    if draw is objective.draw and decoder is decoder_of and not why_eager(policy):
        return replay(policy, ids, mask, sampling, generator=generator)
    made = decoder(policy, shape[0], slots_of(shape[1] + count, ids.device))
    if made is None:
        return objective.sample(
            policy, ids, mask, sampling, generator=generator, draw=draw, decoder=lambda *_: CachedForward(policy)
        )
    like = next(policy.parameters())
    sampler = Sampler(made, shape, sampling, like, draw=lambda scores: draw(scores, generator))
    sampler.begin(ids, mask)
    return sampler.run()


def replay(
    policy: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, sampling: Sampling, *, generator: torch.Generator
) -> Rollout:
    """Sample by replaying captured steps, for a policy that is captured (see `why_eager`), with the same noise."""
    before, rows = generator.get_state(), len(ids)
    noise = torch.rand(sampling.max_new_tokens, rows, generator=generator)
    rollout = captured_sampler(policy, (rows, ids.shape[1]), sampling)(ids, mask, noise)
    generator.set_state(before)  # and on by what `objective.sample` would have drawn
    torch.rand(rollout.tokens.shape[1], rows, generator=generator)
    return rollout


def sample_by_seeds(
    policy: PreTrainedModel, ids: torch.Tensor, mask: torch.Tensor, sampling: Sampling, *, seeds: Sequence[int]
) -> Rollout:
    """Sample blocks of BLOCK prompts, each with the noise of its seed, as `sample` would sample each block alone.

    Raises:
        ValueError: there are several blocks, and the policy is not captured.
    """
    if len(seeds) == 1:
        return sample(policy, ids, mask, sampling, generator=torch.Generator().manual_seed(seeds[0]))
    if reason := why_eager(policy):
        raise ValueError(f"{len(seeds)} blocks need a captured policy, this one is not ({reason}); pass one block")
    rows = [len(part) for part in ids.split(BLOCK)]
    noise = [
        torch.rand(sampling.max_new_tokens, count, generator=torch.Generator().manual_seed(seed))
        for count, seed in zip(rows, seeds, strict=True)
    ]
    return captured_sampler(policy, (len(ids), ids.shape[1]), sampling)(ids, mask, torch.cat(noise, 1))
