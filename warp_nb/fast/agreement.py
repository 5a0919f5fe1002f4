"""Whether a decoder and the model itself give the same next tokens; what of a model the answer depends on."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.modules.module import _has_any_global_hook as has_global_hooks

from warp_nb.algorithm.objective import inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

OUTPUTS = "transformers.utils.output_capturing"
"""The module of transformers whose hooks return hidden states and attentions."""
WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")
"""Names of the settings by which configurations of transformers limit how far back a token attends."""
_AGREED: dict[tuple[str, str], bool] = {}


class CachedForward:
    """The model's own forward with its own cache: only the new tokens go through it.

    All tokens do where a model returns no `past_key_values` (Mamba, GPT-1).
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy, self.filled = policy, 0
        self.cache: Any = None

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Return the next token's logits [B, V] from the ids and the attention mask of all tokens so far, [B, L]."""
        given = inputs(ids, mask)
        new: dict[str, Any] = {name: given[name][:, self.filled :] for name in ("input_ids", "position_ids")}
        if self.cache is not None:
            new["past_key_values"] = self.cache
        out = self.policy(**given | new, use_cache=True, logits_to_keep=1)
        self.cache = getattr(out, "past_key_values", None)
        self.filled = 0 if self.cache is None else ids.shape[1]
        return out.logits[:, -1]


def agrees(kind: Any, policy: PreTrainedModel) -> bool:
    """Return whether a kind of decoder and the model's own cache give the same next tokens in fp32, for a few ids.

    One of two prompts is padded on the left. It is measured once per structure of a model, which includes settings
    such as the epsilon of a norm or the scale of attention.
    """
    key = kind.__name__, structure(policy)
    if key not in _AGREED:
        try:
            _AGREED[key] = _gap(kind, policy) <= 0
        except Exception:  # of any model's forward: it takes no such cache or mask
            _AGREED[key] = False
    return _AGREED[key]


@torch.no_grad()
def _gap(kind: Any, policy: PreTrainedModel) -> float:
    """Return by how many nats the two differ at most, beyond what rounding explains; negative if they agree."""
    ids, mask = probe(policy)
    slots, positions = torch.arange(4, device=policy.device), inputs(ids, mask)["position_ids"]
    with torch.autocast(policy.device.type, enabled=False):
        own, decoder = CachedForward(policy), kind(policy, 2, 4)
        decoder.refresh()
        mine, theirs = [], []
        for start, end in ((0, 3), (3, 4)):
            new, seen = slice(start, end), visibility(mask[:, :end], start).to(mask_dtype(policy))
            mine.append(decoder(ids[:, new], positions[:, new], slots[new], seen))
            theirs.append(own(ids[:, :end], mask[:, :end]))
    found, wanted = (torch.stack(logits).log_softmax(-1) for logits in (mine, theirs))
    return (found - wanted).abs().max().item() - rounding(wanted)


def probe(policy: PreTrainedModel) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ids and mask [2, 4] of two texts, the first one padded: tokens from all of the vocabulary.

    The first ids of a vocabulary are often special tokens. Without a text around them they drive a model to where fp32
    rounds by a hundred times as much as on words.
    """
    size = vocabulary_size(policy)
    ids = torch.arange(1, 9, device=policy.device).view(2, 4) * max(1, size // 10) % size
    mask = torch.ones_like(ids)
    mask[0, 0] = 0
    return ids, mask


def structure(policy: PreTrainedModel) -> str:
    """Return a digest of all but the weights' values: classes, settings, names, shapes, dtypes, device."""
    modules = [(type(module).__qualname__, settings(vars(module))) for module in policy.modules()]
    weights = [(name, tuple(value.shape), value.dtype, value.device) for name, value in policy.named_parameters()]
    return hashlib.sha256(repr((modules, settings(vars(policy.config)), weights)).encode()).hexdigest()


def settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that are plain values."""
    plain = {name: value for name, value in attributes.items() if isinstance(value, bool | int | float | str)}
    plain.pop("_output_capturing_hooks_installed", None)
    return plain


def is_altered(policy: PreTrainedModel) -> bool:
    """Return whether a forward in the model is replaced or hooked.

    The hooks by which transformers once returned hidden states stay in a model and do nothing unless asked again.
    """
    hooks = (hook for m in policy.modules() for hook in [*m._forward_hooks.values(), *m._forward_pre_hooks.values()])
    own = any(getattr(hook, "__module__", "") != OUTPUTS for hook in hooks)
    return has_global_hooks() or own or any("forward" in vars(module) for module in policy.modules())


def has_window(policy: PreTrainedModel) -> bool:
    """Return whether some layer attends to a part of the text only.

    Its forward would take a whole causal mask for its own and see all of the text, which a few tokens do not show.
    """
    config = policy.config.get_text_config()
    limited = set(getattr(config, "layer_types", None) or ()) - {"full_attention"}
    return bool(limited) or any(getattr(config, name, None) is not None for name in WINDOWS)


def visibility(mask: torch.Tensor, start: int = 0) -> torch.Tensor:
    """Return fp32 [B, 1, L - start, L]: 0 where the tokens from `start` on may attend, else -inf; mask [B, L].

    Padding attends to itself, so that no row is empty: no NaN.
    """
    every = torch.arange(mask.shape[1], device=mask.device)
    own = every[start:, None]
    seen = ((every <= own) & mask[:, None, None].bool()) | (every == own)
    return torch.zeros(seen.shape, device=mask.device).masked_fill_(~seen, -torch.inf)


def mask_dtype(policy: PreTrainedModel) -> torch.dtype:
    """Return the dtype that the policy's attention takes an additive mask in: that of its weights."""
    return next(policy.parameters()).dtype


def rounding(log_probs: torch.Tensor) -> float:
    """Return the nats by which fp32 may round log-probabilities [..., V], as a small share of their spread."""
    return 1e-5 + 1e-4 * (log_probs.amax(-1) - log_probs.amin(-1)).mean().item()


def vocabulary_size(policy: PreTrainedModel) -> int:
    """Return the number of token ids that the policy can read."""
    embeddings: Any = policy.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def computed_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of products here and now: autocast's, or fp32."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32
