"""Sampling on tensors of fixed shape and address: one step per token, which a GPU can replay (see `capture`)."""

from __future__ import annotations

from collections.abc import Callable

import torch

from warp_nb.algorithm.merge import wide
from warp_nb.algorithm.objective import Rollout, Sampling, inputs
from warp_nb.fast.agreement import visibility
from warp_nb.fast.decoders import Decoder

CHECKED_EVERY = {"cpu": 1}
"""Tokens between two checks whether every sequence has ended, by kind of device; a GPU is waited for."""
RARELY = 8
"""The same elsewhere."""
ALIGNED = 16
"""The number of slots on a GPU is a multiple of this, as its fused attention wants a mask."""


class Sampler:
    """Rollouts of B prompts of P tokens with C tokens each.

    All that changes from token to token is a tensor: the ids, the mask, the slot of the last token, its position, which
    sequences go on. `first` puts the prompts through the decoder and `next` the last token; both draw the next one.

    Args:
        decoder: with room for at least P + C slots.
        shape: (B, P).
        sampling: settings of the sampler.
        like: a weight of the policy, for its device and dtype.
        draw: a function from the log-probabilities [B, V] to tokens int64 [B]; by default from `noise`.
        whole: whether every token attends to all slots under the mask, so that all have one shape, or to those filled.
    """

    def __init__(
        self,
        decoder: Decoder,
        shape: tuple[int, int],
        sampling: Sampling,
        like: torch.Tensor,
        *,
        draw: Callable[[torch.Tensor], torch.Tensor] | None = None,
        whole: bool = False,
    ) -> None:
        (batch, width), count, device = shape, sampling.max_new_tokens, like.device
        self.decoder, self.sampling, self.width, self.device = decoder, sampling, width, device
        self.draw, self.whole, self.filled = draw or self.by_noise, whole, width
        self.slots = slots_of(width + count, device)
        self.ids = torch.full((batch, self.slots), sampling.pad_id, device=device)
        self.mask = torch.zeros_like(self.ids)
        self.visible = torch.zeros(batch, 1, 1, self.slots, dtype=like.dtype, device=device)
        self.place = torch.zeros(1, dtype=torch.int64, device=device)
        self.position = torch.zeros(batch, 1, dtype=torch.int64, device=device)
        self.alive = torch.ones(batch, dtype=torch.bool, device=device)
        self.ends = torch.tensor(sampling.end_ids, dtype=torch.int64, device=device)
        self.kept = torch.zeros(batch, count, dtype=torch.bool, device=device)
        self.log_probs = torch.zeros(batch, count, dtype=wide(like[:0]).dtype, device=device)
        self.noise = torch.zeros(count, batch, device=device)

    @torch.no_grad()
    def begin(self, ids: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor | None = None) -> None:
        """Set the state before the first token: prompts [B, P], and uniform noise [C, B] for all of the rollout."""
        width = self.width
        self.ids.fill_(self.sampling.pad_id)[:, :width] = ids
        self.mask.zero_()[:, :width] = mask
        self.visible.fill_(-torch.inf)[:, 0, 0, :width].masked_fill_(mask.bool(), 0.0)
        self.place.fill_(width - 1)
        self.position.copy_((mask.sum(1, keepdim=True) - 1).clamp_min(0))
        self.alive.fill_(True)
        self.filled = width
        self.kept.zero_()
        self.log_probs.zero_()
        if noise is not None:
            self.noise.copy_(noise)

    @torch.no_grad()
    def first(self) -> None:
        """Read the policy's weights, put the prompts through, draw the first token."""
        self.decoder.refresh()
        width = self.width
        ids, mask = self.ids[:, :width], self.mask[:, :width]
        seen = visibility(mask).to(self.visible.dtype)
        slots = torch.arange(width, device=self.device)
        self.add(self.decoder(ids, inputs(ids, mask)["position_ids"], slots, seen))

    @torch.no_grad()
    def next(self) -> None:
        """Put the last token through, draw the next one."""
        last = self.ids.index_select(1, self.place)
        seen = self.visible if self.whole else self.visible[..., : self.filled]
        self.add(self.decoder(last, self.position, self.place, seen))

    def add(self, logits: torch.Tensor) -> None:
        """Draw a token from its logits [B, V], and move on by one slot."""
        at, logits = self.place - (self.width - 1), wide(logits) / self.sampling.temperature
        if self.sampling.min_new_tokens:
            early = logits.index_fill(1, self.ends, -torch.inf)
            logits = torch.where(at < self.sampling.min_new_tokens, early, logits)
        scores = logits.log_softmax(-1)
        token = torch.where(self.alive, self.draw(scores), self.sampling.pad_id)
        self.kept.index_copy_(1, at, self.alive[:, None])
        chosen = scores.gather(1, token[:, None]) * self.alive[:, None]
        self.log_probs.index_copy_(1, at, chosen.to(self.log_probs.dtype))
        self.place += 1
        self.filled += 1
        self.position += self.alive[:, None]
        self.ids.index_copy_(1, self.place, token[:, None])
        self.mask.index_copy_(1, self.place, self.alive[:, None].long())
        self.visible.index_fill_(3, self.place, 0.0)
        self.alive &= (token[:, None] != self.ends).all(1)

    def by_noise(self, scores: torch.Tensor) -> torch.Tensor:
        """Draw as `objective.draw` does, with the noise of this token."""
        cumulative = scores.exp().cumsum(1)
        uniform = self.noise.index_select(0, self.place - (self.width - 1)).view(-1, 1)
        return torch.searchsorted(cumulative, uniform * cumulative[:, -1:])[:, 0].clamp_max(scores.shape[1] - 1)

    def run(
        self,
        first: Callable[[], None] | None = None,
        following: Callable[[], None] | None = None,
    ) -> Rollout:
        """Draw until every sequence has ended or has C tokens; return what was drawn, without columns of padding."""
        count, every = self.sampling.max_new_tokens, CHECKED_EVERY.get(self.device.type, RARELY)
        (first or self.first)()
        for drawn in range(1, count):
            if drawn % every == 0 and not self.alive.any():
                break
            (following or self.next)()
        length = int(self.kept.any(0).sum())
        end = self.width + length
        ids, mask = (tensor[:, :end].clone() for tensor in (self.ids, self.mask))
        kept, log_probs = (tensor[:, :length].clone() for tensor in (self.kept, self.log_probs))
        return Rollout(ids, mask, kept, log_probs, self.sampling.temperature)


def slots_of(length: int, device: torch.device) -> int:
    """Return the number of slots of a cache for `length` tokens."""
    return length if device.type == "cpu" else -(-length // ALIGNED) * ALIGNED
