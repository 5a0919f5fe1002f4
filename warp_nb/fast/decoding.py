"""Decoding with a cache: by the model's own forward, or for Llama on the CPU by a layout made for it.

A decode step of a small model multiplies a handful of rows with every weight once. There the model's own forward
spends most of its time outside the products and in packing the weights for them, token by token. The layout does
that once per rollout: projections that share an input are one matrix, and weights are packed by oneDNN in the dtype of
the computation. The residual stream, norms and attention stay fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
import torch.nn.functional as F
from torch.nn.modules.module import _has_any_global_hook as has_global_hooks

from warp_nb.algorithm import objective
from warp_nb.algorithm.objective import inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTIONS = ("sdpa", "eager", "fp32")
"""Names under which transformers knows the attention that the layout computes, and `devices` its own in fp32."""
NextLogits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(ids [B, L], attention mask [B, L]) of all tokens so far -> logits of the next one [B, V]."""


def cached(policy: PreTrainedModel, batch: int, length: int) -> NextLogits:
    """Return a decoder for `batch` sequences of up to `length` tokens, with the policy's current weights."""
    return LlamaDecoder(policy, batch, length) if LlamaDecoder.fits(policy) else CachedForward(policy)


class CachedForward:
    """The model's own forward with its KV cache: only the new tokens go through it.

    All tokens do where a model returns no `past_key_values` (Mamba, GPT-1).
    """

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy, self.filled = policy, 0
        self.cache: Any = None

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        given = inputs(ids, mask)
        new: dict[str, Any] = {name: given[name][:, self.filled :] for name in ("input_ids", "position_ids")}
        if self.cache is not None:
            new["past_key_values"] = self.cache
        out = self.policy(**given | new, use_cache=True, logits_to_keep=1)
        self.cache = getattr(out, "past_key_values", None)
        self.filled = 0 if self.cache is None else ids.shape[1]
        return out.logits[:, -1]


class LlamaDecoder:
    """A Llama's weights laid out for decoding on the CPU, with keys and values of `length` positions in fp32."""

    @staticmethod
    def fits(policy: PreTrainedModel) -> bool:
        """Return whether `policy` is a plain fp32 Llama on the CPU, and the layout has its logits (see `agrees`).

        Biases, adapters, hooks, a replaced forward or attention lead to the model's own forward.
        """
        from transformers import LlamaForCausalLM
        from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

        if type(policy) is not LlamaForCausalLM or policy.config._attn_implementation not in ATTENTIONS:
            return False
        if has_global_hooks() or any(map(_is_altered, policy.modules())):
            return False
        known = (torch.nn.Linear, LlamaRMSNorm, torch.nn.Embedding)
        modules = [module for module in policy.modules() if next(module.parameters(recurse=False), None) is not None]
        plain = all(type(module) in known and getattr(module, "bias", None) is None for module in modules)
        whole = all(type(layer.mlp) is LlamaMLP for layer in policy.model.layers)
        weights = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in policy.parameters())
        return plain and whole and weights and agrees(policy)

    @torch.no_grad()
    def __init__(self, policy: Any, batch: int, length: int) -> None:
        config, body = policy.config, policy.model
        autocast = torch.is_autocast_enabled("cpu")
        self.dtype = torch.get_autocast_dtype("cpu") if autocast else torch.float32
        self.heads, self.kv_heads = config.num_attention_heads, config.num_key_value_heads
        self.width = getattr(config, "head_dim", None) or config.hidden_size // self.heads
        self.eps, self.rotary = config.rms_norm_eps, body.rotary_emb
        self.embedding, self.norm = body.embed_tokens.weight, body.norm.weight
        self.batch, self.filled = batch, 0
        self.layers = []
        for layer in body.layers:
            attention, mlp = layer.self_attn, layer.mlp
            queries_keys_values = (attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight)
            self.layers.append(
                (
                    layer.input_layernorm.weight,
                    self._pack(*queries_keys_values),
                    self._pack(attention.o_proj.weight),
                    layer.post_attention_layernorm.weight,
                    self._pack(mlp.gate_proj.weight, mlp.up_proj.weight),
                    self._pack(mlp.down_proj.weight),
                )
            )
        self.head = self._pack(policy.lm_head.weight)
        self.cache = torch.empty(2, len(self.layers), batch, length, self.kv_heads, self.width)

    def _pack(self, *weights: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return the function x [N, in] -> x @ [stacked weights]^T, computed in `self.dtype`."""
        cast = [weight.detach().to(self.dtype) for weight in weights]
        weight = torch.cat(cast) if len(cast) > 1 else cast[0]
        if not _can_pack(self.dtype):
            return lambda x: F.linear(x, weight)
        packed = torch.ops.mkldnn._reorder_linear_weight(weight.contiguous(), self.batch)
        return lambda x: torch.ops.mkldnn._linear_pointwise(x, packed, None, "none", [], "")

    def _rms(self, hidden: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        return F.rms_norm(hidden, (hidden.shape[-1],), weight, self.eps).to(self.dtype)

    @torch.no_grad()
    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        positions = inputs(ids, mask)["position_ids"]
        with torch.autocast("cpu", enabled=False):
            return self._forward(ids[:, self.filled :], mask, positions[:, self.filled :])

    def _forward(self, ids: torch.Tensor, mask: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        batch, count = ids.shape
        heads, rotated, start, end = self.heads, self.heads + self.kv_heads, self.filled, self.filled + count
        self.filled = end
        hidden = F.embedding(ids, self.embedding).view(batch * count, -1)
        cos, sin = (table[:, :, None] for table in self.rotary(hidden, positions))
        half = self.width // 2
        sin = torch.cat([-sin[..., :half], sin[..., half:]], -1)
        visible = self._visible(mask, count)
        for index, (norm_1, qkv, out, norm_2, gate_up, down) in enumerate(self.layers):
            keys, values = self.cache[:, index]
            mixed = qkv(self._rms(hidden, norm_1)).float().view(batch, count, -1, self.width)
            turned = mixed[:, :, :rotated]
            turned = torch.addcmul(turned * cos, turned.roll(half, -1), sin)
            keys[:, start:end], values[:, start:end] = turned[:, :, heads:], mixed[:, :, rotated:]
            seen = F.scaled_dot_product_attention(
                turned[:, :, :heads].transpose(1, 2),
                keys[:, :end].transpose(1, 2),
                values[:, :end].transpose(1, 2),
                attn_mask=visible,
                enable_gqa=True,
            )
            hidden = hidden + out(seen.transpose(1, 2).reshape(batch * count, -1).to(self.dtype))
            gate, up = gate_up(self._rms(hidden, norm_2)).chunk(2, -1)
            hidden = hidden + down(F.silu(gate).mul_(up))
        last = hidden.view(batch, count, -1)[:, -1]
        return self.head(self._rms(last, self.norm))

    def _visible(self, mask: torch.Tensor, count: int) -> torch.Tensor:
        """Return [B, 1, L, T]: 0 where a new position may attend, else -inf; padding attends to itself: no NaN."""
        total = mask.shape[1]
        own, every = torch.arange(total - count, total)[:, None], torch.arange(total)
        seen = ((every <= own) & mask[:, None, None].bool()) | (every == own)
        return torch.zeros(seen.shape).masked_fill_(~seen, -torch.inf)


_AGREED: WeakKeyDictionary[torch.nn.Module, tuple[Any, bool]] = WeakKeyDictionary()


def agrees(policy: PreTrainedModel) -> bool:
    """Return whether the layout and the model's own forward give the same next tokens in fp32, for a few ids.

    It is measured once per model and state of its settings, such as the epsilon of a norm or the scale of attention.
    """
    settings = [_settings(vars(module)) for module in policy.modules()], _settings(vars(policy.config))
    known = _AGREED.get(policy)
    if known is None or known[0] != settings:
        ids = torch.arange(4)[None] % policy.config.vocab_size
        with torch.no_grad(), torch.autocast("cpu", enabled=False):
            decoders: list[NextLogits] = [LlamaDecoder(policy, 1, 4), CachedForward(policy)]
            found = [[of(ids[:, :end], torch.ones(1, end).long()) for end in (3, 4)] for of in decoders]
        mine, own = (torch.stack(logits).log_softmax(-1) for logits in found)
        known = _AGREED[policy] = settings, bool((mine - own).abs().max() <= rounding(own))
    return known[1]


def rounding(log_probs: torch.Tensor) -> float:
    """Return the nats by which fp32 may round log-probabilities [..., V], as a small share of their spread."""
    return 1e-5 + 1e-4 * (log_probs.amax(-1) - log_probs.amin(-1)).mean().item()


def _settings(attributes: Mapping[str, Any]) -> dict[str, Any]:
    """Return the attributes that are plain values."""
    return {name: value for name, value in attributes.items() if isinstance(value, bool | int | float | str)}


def _is_altered(module: torch.nn.Module) -> bool:
    """Return whether a module's forward is replaced or hooked."""
    return "forward" in vars(module) or bool(module._forward_hooks or module._forward_pre_hooks)


def _can_pack(dtype: torch.dtype) -> bool:
    """Return whether this build of torch has oneDNN's packed products for `dtype` on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


sample = partial(objective.sample, decoder=cached)
"""`algorithm.objective.sample` with a cache."""
