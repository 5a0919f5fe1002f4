"""Decoding with a cache: by the model's own forward, or for Llama on the CPU by a layout made for it.

A decode step of a small model multiplies a handful of rows with every weight once. There the model's own forward
spends most of its time outside the products and in packing the weights for them, token by token. The layout does
that once per rollout: projections that share an input are one matrix, and weights are packed by oneDNN in the dtype of
the computation. The residual stream, norms and attention stay fp32.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from warp_nb.algorithm import objective
from warp_nb.algorithm.objective import inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NextLogits = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""(ids [B, L], attention mask [B, L]) of all tokens so far -> logits of the next one [B, V]."""


def cached(policy: PreTrainedModel, batch: int, length: int) -> NextLogits:
    """Return a decoder for `batch` sequences of up to `length` tokens, with the policy's current weights."""
    return LlamaDecoder(policy, batch, length) if LlamaDecoder.fits(policy) else CachedForward(policy)


class CachedForward:
    """The model's own forward with its KV cache: only the new tokens go through it."""

    def __init__(self, policy: PreTrainedModel) -> None:
        self.policy, self.cache, self.filled = policy, None, 0

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        given = inputs(ids, mask)
        new = {name: given[name][:, self.filled :] for name in ("input_ids", "position_ids")}
        out = self.policy(**given | new, past_key_values=self.cache, use_cache=True, logits_to_keep=1)
        self.cache, self.filled = out.past_key_values, ids.shape[1]
        return out.logits[:, -1]


class LlamaDecoder:
    """A Llama's weights laid out for decoding on the CPU, with keys and values of `length` positions in fp32."""

    @staticmethod
    def fits(policy: PreTrainedModel) -> bool:
        """Return whether `policy` is a plain fp32 Llama on the CPU: no biases, no adapters, SiLU."""
        from transformers import LlamaForCausalLM
        from transformers.models.llama.modeling_llama import LlamaMLP, LlamaRMSNorm

        if type(policy) is not LlamaForCausalLM or policy.config.hidden_act != "silu":
            return False
        known = (torch.nn.Linear, LlamaRMSNorm, torch.nn.Embedding)
        modules = [module for module in policy.modules() if next(module.parameters(recurse=False), None) is not None]
        plain = all(type(module) in known and getattr(module, "bias", None) is None for module in modules)
        whole = all(type(layer.mlp) is LlamaMLP for layer in policy.model.layers)
        weights = all(p.device.type == "cpu" and p.dtype == torch.float32 for p in policy.parameters())
        return plain and whole and weights

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


def _can_pack(dtype: torch.dtype) -> bool:
    """Return whether this build of torch has oneDNN's packed products for `dtype` on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


sample = partial(objective.sample, decoder=cached)
"""`algorithm.objective.sample` with a cache."""
