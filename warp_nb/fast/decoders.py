"""How a policy is decoded on tensors of fixed shape: by a layout of its weights, or by its own forward.

A decoder writes keys and values at the slots it is given, which are tensors, and attends to the first ones, as many as
its additive mask has. If that is all of them, nothing of a step depends on the host, and a GPU can replay it (see
`capture`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

import torch

from warp_nb.fast.forwards import FixedForward
from warp_nb.fast.layout import Layout

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class Decoder(Protocol):
    """Next-token logits of B sequences whose keys and values lie in L slots."""

    def refresh(self) -> None:
        """Read the policy's current weights; called once at the beginning of a rollout."""

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        """Put new tokens through the model and return the logits after the last one, [B, V].

        Args:
            ids: int64 [B, n], the new tokens.
            positions: int64 [B, n], which do not count padding.
            slots: int64 [n], where their keys and values are written.
            visible: [B, 1, n, S] for the first S slots: 0 where a new token may attend, -inf elsewhere.
        """


def decoder_of(policy: PreTrainedModel, batch: int, length: int) -> Decoder | None:
    """Return a decoder for `batch` sequences of `length` slots; None if the policy's forward takes no fixed cache.

    On other devices than CPU and CUDA there is none: MPS lacks a part of what writing at tensor positions needs.
    """
    if policy.device.type not in ("cpu", "cuda"):
        return None
    for kind in (Layout, FixedForward):
        if kind.fits(policy):
            return kind(policy, batch, length)
    return None
