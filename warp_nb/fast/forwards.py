"""A model's own forward with a cache of keys and values of fixed shape, for any causal LM that takes one."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.fast.agreement import agrees, computed_dtype, has_window

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class FixedForward:
    """The model's own forward with a cache of fixed shape, for any causal LM that takes one (see `agrees`).

    With `apart` it computes with a twin that shares the policy's weights, and holds no reference to the policy. Under
    autocast the twin's linear weights are copies in that dtype, which `refresh` makes once per rollout.
    """

    @staticmethod
    def fits(policy: PreTrainedModel) -> bool:
        """Return whether the policy's forward takes cache and whole mask, and decodes as with its own."""
        return not has_window(policy) and agrees(FixedForward, policy)

    def __init__(self, policy: PreTrainedModel, batch: int, length: int, apart: bool = False) -> None:
        self.policy: Any = policy
        self.copies: tuple[list[torch.Tensor], list[torch.Tensor]] = [], []
        if apart:
            self.policy, self.copies = twin(policy, computed_dtype(policy.device))
        self.place = FixedSlots(length)
        self.cache = fixed_cache(self.place)

    @torch.no_grad()
    def refresh(self) -> None:
        copies, weights = self.copies
        if copies:
            torch._foreach_copy_(copies, weights)

    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        self.place.slots, self.place.seen = slots, visible.shape[3]
        given: dict[str, Any] = {"input_ids": ids, "position_ids": positions, "attention_mask": visible}
        out = self.policy(**given, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        return out.logits[:, -1]


@dataclass
class FixedSlots:
    """Where a fixed cache writes next, int64 [n], how many slots it has, and how many of them are attended to."""

    length: int
    slots: Any = None
    seen: int = 0


def fixed_cache(place: FixedSlots) -> Any:
    """Make a cache of transformers whose layers write at `place.slots` and return the first `place.seen` slots.

    Unlike `StaticCache`, whose layers count for themselves, it takes keys and values of two dtypes, as autocast makes.
    """
    from transformers.cache_utils import Cache, CacheLayerMixin

    class FixedLayer(CacheLayerMixin):
        is_compileable = True
        keys: Any
        values: Any

        def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
            shapes = ((*side.shape[:2], place.length, side.shape[3]) for side in (key_states, value_states))
            self.keys, self.values = map(torch.Tensor.new_zeros, (key_states, value_states), shapes)
            self.is_initialized = True

        def update(
            self, key_states: torch.Tensor, value_states: torch.Tensor, *args: Any, **kwargs: Any
        ) -> tuple[torch.Tensor, torch.Tensor]:
            if not self.is_initialized:
                self.lazy_initialization(key_states, value_states)
            self.keys.index_copy_(2, place.slots, key_states)
            self.values.index_copy_(2, place.slots, value_states)
            return self.keys[:, :, : place.seen], self.values[:, :, : place.seen]

        def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
            return place.seen, 0

        def get_seq_length(self) -> int:
            return 0

        def get_max_length(self) -> int:
            return place.length

        get_max_cache_shape = get_max_length

    return Cache(layer_class_to_replicate=FixedLayer)


def twin(policy: PreTrainedModel, dtype: torch.dtype) -> tuple[Any, tuple[list[torch.Tensor], list[torch.Tensor]]]:
    """Copy a model but for its weights, which it shares; below fp32 linear weights become copies in `dtype`.

    Returns:
        The twin, and (copies, the weights they are of).
    """
    shared: dict[int, Any] = {id(value): value for value in [*policy.parameters(), *policy.buffers()]}
    found = copy.deepcopy(policy, shared)
    copies: list[torch.Tensor] = []
    weights: list[torch.Tensor] = []
    if dtype.itemsize < 4:
        for module in found.modules():
            if isinstance(module, torch.nn.Linear) or type(module).__name__ == "Conv1D":
                for name, value in list(module.named_parameters(recurse=False)):
                    weights.append(value.detach())
                    copies.append(value.detach().to(dtype))
                    setattr(module, name, torch.nn.Parameter(copies[-1], requires_grad=False))
    return found, (copies, weights)
