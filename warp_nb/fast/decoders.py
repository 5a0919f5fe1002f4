"""Decoders on tensors of fixed shape: a Llama's or GPT-2's weights laid out for decoding, or the model's own forward.

A decode step of a small model multiplies a handful of rows with every weight once. There the model's own forward
spends most of its time outside the products: in Python and kernel launches, and on a CPU in packing the weights, token
by token. The layout stacks projections that share an input, casts the weights to the dtype of the computation once per
rollout, and on a CPU packs them by oneDNN. The residual stream, norms and attention stay fp32.

A decoder writes keys and values at the slots it is given, which are tensors, and attends to the first ones, as many as
its additive mask has. If that is all of them, nothing of a step depends on the host, and a GPU can replay it (see
`capture`).
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Protocol

import torch
import torch.nn.functional as F
from torch.nn.modules.module import _has_any_global_hook as has_global_hooks

from warp_nb.algorithm.objective import inputs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

ATTENTIONS = ("sdpa", "eager", "fp32")
"""Names under which transformers knows the attention that the layout computes, and `devices` its own in fp32."""
OUTPUTS = "transformers.utils.output_capturing"
"""The module of transformers whose hooks return hidden states and attentions."""
TANH_GELUS = ("gelu_new", "gelu_pytorch_tanh")
"""Names under which transformers knows torch's GELU with the tanh approximation."""


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


# The layout


class Layout:
    """A Llama's or GPT-2's weights laid out for decoding, with keys and values of `length` slots in fp32."""

    @staticmethod
    def fits(policy: PreTrainedModel) -> bool:
        """Return whether `policy` is a plain fp32 Llama or GPT-2, and the layout has its logits (see `agrees`).

        Adapters, hooks, a replaced forward or attention lead to the model's own forward.
        """
        if reader_of(policy) is None or policy.config._attn_implementation not in ATTENTIONS or is_altered(policy):
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
        plain = [isinstance(module, torch.nn.Linear) for module in modules]
        self.weights = [m.weight if linear else m.weight.t() for m, linear in zip(modules, plain, strict=True)]
        self.biases = [module.bias for module in modules if module.bias is not None]
        self.dtype, self.rows = dtype, rows
        self.weight: Any = None
        self.bias: Any = None
        self.packed: Any = None

    def refresh(self) -> None:
        if self.weight is None or self.weight.device.type == "cpu":
            self.weight, self.bias = self._stacked(self.weights), self._stacked(self.biases)
            if can_pack(self.dtype) and self.weight.device.type == "cpu":
                self.packed = torch.ops.mkldnn._reorder_linear_weight(self.weight.contiguous(), self.rows)
            return
        for whole, parts in ((self.weight, self.weights), (self.bias, self.biases)):
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
LAID_OUT = {"Linear", "Embedding", "LayerNorm", "LlamaRMSNorm", "Conv1D"}
"""Classes of the modules with weights that the layout computes."""


def reader_of(policy: Any) -> Callable[[Any, Callable[..., Product]], Model] | None:
    """Return the function that reads a policy of this class of transformers; None for another class."""
    known = type(policy).__module__.startswith("transformers.")
    return READERS.get(type(policy).__name__) if known else None


# The model's own forward


class FixedForward:
    """The model's own forward with a cache of fixed shape, for any causal LM that takes one (see `agrees`).

    With `apart` it computes with a twin that shares the policy's weights, and holds no reference to the policy. Under
    autocast the twin's linear weights are copies in that dtype, which `refresh` makes once per rollout.
    """

    @staticmethod
    def fits(policy: PreTrainedModel) -> bool:
        """Return whether the policy's forward takes the cache and decodes as with its own."""
        return agrees(FixedForward, policy)

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


# Checks

_AGREED: dict[tuple[str, str], bool] = {}


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
    size = vocabulary(policy)
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


def vocabulary(policy: PreTrainedModel) -> int:
    """Return the number of token ids that the policy can read."""
    embeddings: Any = policy.get_input_embeddings()
    return int(embeddings.weight.shape[0])


def computed_dtype(device: torch.device) -> torch.dtype:
    """Return the dtype of products here and now: autocast's, or fp32."""
    return torch.get_autocast_dtype(device.type) if torch.is_autocast_enabled(device.type) else torch.float32


def can_pack(dtype: torch.dtype) -> bool:
    """Return whether this build of torch has oneDNN's packed products for `dtype` on this processor."""
    if not torch.backends.mkldnn.is_available() or not hasattr(torch.ops.mkldnn, "_reorder_linear_weight"):
        return False
    return dtype == torch.float32 or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
