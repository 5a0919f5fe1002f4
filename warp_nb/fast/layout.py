"""A Llama's or GPT-2's weights laid out for decoding.

A decode step of a small model multiplies a handful of rows with every weight once. There the model's own forward
spends most of its time outside the products: in Python and kernel launches, and on a CPU in packing the weights, token
by token. The layout stacks projections that share an input, casts the weights to the dtype of the computation once per
rollout, and on a CPU packs them by oneDNN. The residual stream, norms and attention stay fp32.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F

from warp_nb.fast.agreement import agrees, computed_dtype, is_altered
from warp_nb.fast.low_rank import LowRank, turned

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTIONS = ("sdpa", "eager", "fp32")
"""Names under which transformers knows the attention that the layout computes, and `devices` its own in fp32."""
TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh")
"""Names under which transformers knows torch's GELU with the tanh approximation."""


class Layout:
    """A Llama's or GPT-2's weights laid out for decoding, with keys and values of `length` slots in fp32."""

    @staticmethod
    def fits(policy: PreTrainedModel) -> bool:
        """Return whether `policy` is a plain fp32 Llama or GPT-2, and the layout has its logits (see `agrees`).

        PEFT's adapters, hooks, a replaced forward or attention lead to the model's own forward, and so do factors below
        fp32: there the sum of a weight and a small product would round to the weight.
        """
        if reader_of(policy) is None or policy.config._attn_implementation not in ATTENTIONS or is_altered(policy):
            return False
        if computed_dtype(policy.device).itemsize < 4 and any(
            isinstance(module, LowRank) for module in policy.modules()
        ):
            return False
        modules = [module for module in policy.modules() if next(module.parameters(recurse=False), None) is not None]
        weights = all(p.device.type in ("cpu", "cuda") and p.dtype == torch.float32 for p in policy.parameters())
        return weights and {type(module).__name__ for module in modules} <= LAID_OUT and agrees(Layout, policy)

    @torch.no_grad()
    def __init__(self, policy: Any, batch: int, length: int) -> None:
        reader = reader_of(policy)
        assert reader is not None
        self.dtype = computed_dtype(policy.device)
        self.products: list[Product] = []

        def product(*modules: Any) -> Product:
            self.products.append(Product(modules, self.dtype, batch))
            return self.products[-1]

        self.model = model = reader(policy, product)
        shape = len(model.layers), batch, 2 * model.kv_heads, length, model.width
        self.cache = torch.zeros(shape, device=policy.device)

    @torch.no_grad()
    def refresh(self) -> None:
        """Cast, stack and pack the weights."""
        for product in self.products:
            product.refresh()

    @torch.no_grad()
    def __call__(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        with torch.autocast(ids.device.type, enabled=False):
            return self._forward(ids, positions, slots, visible)

    def _forward(
        self, ids: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, visible: torch.Tensor
    ) -> torch.Tensor:
        (batch, count), model = ids.shape, self.model
        heads, kv_heads, width = model.heads, model.kv_heads, model.width
        hidden = model.embed(ids, positions).view(batch * count, -1)
        turns, seen = model.turns(hidden, positions), visible.shape[3]
        attend = grouped_keys
        if ids.device.type != "cpu":
            attend, visible = grouped_queries, visible.repeat(1, 1, heads // kv_heads, 1)
        for layer, cache in zip(model.layers, self.cache, strict=True):
            mixed = layer.mix(layer.norm_1(hidden).to(self.dtype)).view(batch, count, -1, width)
            if turns is None:
                mixed = mixed.float()
            else:
                cos, sin = turns
                mixed = torch.addcmul(mixed * cos, mixed.roll(width // 2, -1), sin)
            cache.index_copy_(2, slots, mixed[:, :, heads:].transpose(1, 2))
            keys, values = cache[:, :, :seen].split(kv_heads, 1)
            found = attend(mixed[:, :, :heads], keys, values, visible)
            found = found.to(self.dtype, memory_format=torch.contiguous_format).reshape(batch * count, -1)
            hidden = hidden + layer.out(found)
            hidden = hidden + layer.down(layer.act(layer.up(layer.norm_2(hidden).to(self.dtype))))
        last = hidden.view(batch, count, -1)[:, -1]
        return model.head(model.norm(last).to(self.dtype))


def grouped_keys(query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor) -> torch.Tensor:
    """Return attention [B, n, heads, W] of queries of that shape to keys and values [B, fewer heads, S, W]."""
    found = F.scaled_dot_product_attention(query.transpose(1, 2), keys, values, attn_mask=visible, enable_gqa=True)
    return found.transpose(1, 2)


def grouped_queries(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, visible: torch.Tensor
) -> torch.Tensor:
    """Return the same as `grouped_keys`, [B, n, fewer heads, group, W]; `visible` is repeated for each of a group.

    Heads that share keys are further queries of one head: on CUDA no fused kernel takes both a mask and fewer keys than
    heads. On a CPU this takes twice as long.
    """
    (batch, count, heads, width), shared = query.shape, keys.shape[1]
    query = query.reshape(batch, count, shared, heads // shared, width).permute(0, 2, 3, 1, 4)
    found = F.scaled_dot_product_attention(query.reshape(batch, shared, -1, width), keys, values, attn_mask=visible)
    return found.view(batch, shared, heads // shared, count, width).permute(0, 3, 1, 2, 4)


class Product:
    """The function x [N, in] -> x @ [stacked weights]^T + [stacked biases] of linear modules, computed in `dtype`.

    On a GPU the stacked weights keep their address and `refresh` copies into them. On a CPU `refresh` packs them for
    `rows` rows, where this build of torch can.
    """

    def __init__(self, modules: Sequence[Any], dtype: torch.dtype, rows: int) -> None:
        self.modules = modules
        self.biases = [module.bias for module in modules if module.bias is not None]
        self.dtype, self.rows = dtype, rows
        self.weight: Any = None
        self.bias: Any = None
        self.packed: Any = None

    def weights(self) -> list[torch.Tensor]:
        """Return the modules' weights [out, in], that of a `LowRank` with its product."""
        return [turned(module, module.weight) for module in self.modules]

    def refresh(self) -> None:
        if self.weight is None or self.weight.device.type == "cpu":
            self.weight, self.bias = self._stacked(self.weights()), self._stacked(self.biases)
            if can_pack(self.dtype) and self.weight.device.type == "cpu":
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), self.rows)
            return
        for whole, parts in ((self.weight, self.weights()), (self.bias, self.biases)):
            if whole is not None:
                torch._foreach_copy_(list(whole.split([len(part) for part in parts])), [p.detach() for p in parts])

    def _stacked(self, parts: Sequence[torch.Tensor]) -> Any:
        cast = [part.detach().to(self.dtype) for part in parts]
        return torch.cat(cast) if len(cast) > 1 else next(iter(cast), None)

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        if self.packed is None:
            return F.linear(x, self.weight, self.bias)
        return torch.ops.mkldnn._linear_pointwise(x, self.packed, self.bias, "none", [], "")


Unary = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Layer:
    """A transformer block: what mixes tokens (queries, keys and values in one product), and the feed-forward part."""

    norm_1: Unary
    mix: Product
    out: Product
    norm_2: Unary
    up: Product
    act: Unary
    down: Product


@dataclass(frozen=True)
class Model:
    """The parts of a policy that the layout computes with.

    `turns` returns cos and sin [B, n, heads, W] for queries, keys and values (which do not turn: 1 and 0), or None.
    """

    heads: int
    kv_heads: int
    width: int
    embed: Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
    turns: Callable[[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor] | None]
    layers: list[Layer]
    norm: Unary
    head: Product


def read_llama(policy: Any, product: Callable[..., Product]) -> Model:
    """Read a Llama: RMS norms, rotary positions, grouped keys, a gated feed-forward part."""
    config, body = policy.config, policy.model
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = getattr(config, "head_dim", None) or config.hidden_size // heads

    def norm(module: Any) -> Unary:
        return partial(F.rms_norm, normalized_shape=module.weight.shape, weight=module.weight, eps=config.rms_norm_eps)

    def turns(hidden: torch.Tensor, positions: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        cos, sin = (table[:, :, None] for table in body.rotary_emb(hidden, positions))
        sin = torch.cat([-sin[..., : width // 2], sin[..., width // 2 :]], -1)
        turned = [table.expand(-1, -1, heads + kv_heads, -1) for table in (cos, sin)]
        still = cos.new_ones(*cos.shape[:2], kv_heads, width), cos.new_zeros(*cos.shape[:2], kv_heads, width)
        return torch.cat([turned[0], still[0]], 2), torch.cat([turned[1], still[1]], 2)

    def gated(both: torch.Tensor) -> torch.Tensor:
        gate, up = both.chunk(2, -1)
        return F.silu(gate).mul_(up)

    layers = []
    for layer in body.layers:
        attention, mlp = layer.self_attn, layer.mlp
        layers.append(
            Layer(
                norm_1=norm(layer.input_layernorm),
                mix=product(attention.q_proj, attention.k_proj, attention.v_proj),
                out=product(attention.o_proj),
                norm_2=norm(layer.post_attention_layernorm),
                up=product(mlp.gate_proj, mlp.up_proj),
                act=gated,
                down=product(mlp.down_proj),
            )
        )
    return Model(
        heads=heads,
        kv_heads=kv_heads,
        width=width,
        embed=lambda ids, positions: F.embedding(ids, body.embed_tokens.weight),
        turns=turns,
        layers=layers,
        norm=norm(body.norm),
        head=product(policy.lm_head),
    )


def read_gpt2(policy: Any, product: Callable[..., Product]) -> Model:
    """Read a GPT-2: layer norms, learned positions, a GELU."""
    config, body = policy.config, policy.transformer

    def norm(module: Any) -> Unary:
        return partial(
            F.layer_norm,
            normalized_shape=module.weight.shape,
            weight=module.weight,
            bias=module.bias,
            eps=config.layer_norm_epsilon,
        )

    tanh = config.activation_function in TANH_GELUS
    layers = [
        Layer(
            norm_1=norm(layer.ln_1),
            mix=product(layer.attn.c_attn),
            out=product(layer.attn.c_proj),
            norm_2=norm(layer.ln_2),
            up=product(layer.mlp.c_fc),
            act=partial(F.gelu, approximate="tanh") if tanh else layer.mlp.act,
            down=product(layer.mlp.c_proj),
        )
        for layer in body.h
    ]
    return Model(
        heads=config.num_attention_heads,
        kv_heads=config.num_attention_heads,
        width=config.hidden_size // config.num_attention_heads,
        embed=lambda ids, positions: F.embedding(ids, body.wte.weight) + F.embedding(positions, body.wpe.weight),
        turns=lambda hidden, positions: None,
        layers=layers,
        norm=norm(body.ln_f),
        head=product(policy.lm_head),
    )


READERS = {"LlamaForCausalLM": read_llama, "GPT2LMHeadModel": read_gpt2}
LAID_OUT = {"Linear", "Embedding", "LayerNorm", "LlamaRMSNorm", "Conv1D", "LowRank"}
"""Classes of the modules with weights that the layout computes."""


def reader_of(policy: Any) -> Callable[[Any, Callable[..., Product]], Model] | None:
    """Return the function that reads a policy of this class of transformers; None for another class."""
    known = type(policy).__module__.startswith("transformers.")
    return READERS.get(type(policy).__name__) if known else None


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this build of torch has oneDNN's packed products for `dtype` on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
