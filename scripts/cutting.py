"""The student before it learns: a few layers of a Llama with a vocabulary trimmed to a set of texts."""

from __future__ import annotations

import json
from collections import Counter
from typing import TYPE_CHECKING, Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from warp_nb.tasks.sft import BEGIN, PAD

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

MOST_PARAMETERS = 18_000_000
"""Of a policy that ships with the package: 36 MB in bf16."""
SAME = ("model_type", "hidden_size", "intermediate_size", "num_attention_heads", "num_key_value_heads", "head_dim")
"""What the configurations of two models must share for layers of one to fit into the other."""


def trim_tokenizer(tokenizer: PreTrainedTokenizerBase, texts: list[str], size: int) -> tuple[Any, torch.Tensor]:
    """Keep the `size` tokens of a BPE tokenizer that `texts` use most, closed under merges.

    Returns the tokenizer and, per kept token, its id in the old vocabulary (int64, [size]).
    """
    from tokenizers import Tokenizer

    spec = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab, merges = spec["model"]["vocab"], [tuple(pair) for pair in spec["model"]["merges"]]
    parents = {left + right: (left, right) for left, right in reversed(merges)}
    counts: Counter[str] = Counter()
    for encoding in tokenizer.backend_tokenizer.encode_batch(texts):
        counts.update(encoding.tokens)
    specials = {BEGIN, PAD}
    added = {token["content"] for token in spec["added_tokens"]} - specials
    kept = {token for token in vocab if token not in parents} - added

    def keep(token: str) -> None:
        if token not in kept:
            for parent in parents[token]:
                keep(parent)
            kept.add(token)

    for token, _ in counts.most_common():
        if len(kept) >= size:
            break
        if token in vocab and token not in added:
            keep(token)
    order = sorted(kept, key=vocab.__getitem__)
    new = {token: index for index, token in enumerate(order)}
    spec["model"]["vocab"] = new
    spec["model"]["merges"] = [pair for pair in merges if {*pair, pair[0] + pair[1]} <= kept]
    spec["added_tokens"] = [t | {"id": new[t["content"]]} for t in spec["added_tokens"] if t["content"] in specials]
    trimmed = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(spec)), bos_token=BEGIN, eos_token=BEGIN, pad_token=PAD
    )
    return trimmed, torch.tensor([vocab[token] for token in order])


def evenly(depth: int, count: int) -> list[int]:
    """Return `count` of `depth` layers at equal distances, the first and the last among them."""
    return [round(place * (depth - 1) / (count - 1)) for place in range(count)]


def shape(config: Any, layers: int, vocabulary: int, *, begin: int, pad: int) -> LlamaConfig:
    """Return the configuration of a policy of that many layers and tokens, otherwise as `config`.

    Raises:
        ValueError: the policy would have more than MOST_PARAMETERS.
    """
    mine = {"num_hidden_layers": layers, "vocab_size": vocabulary, "max_position_embeddings": 512}
    mine |= {"bos_token_id": begin, "eos_token_id": begin, "pad_token_id": pad}
    found = LlamaConfig.from_dict(config.to_dict() | mine)
    with torch.device("meta"):
        count = LlamaForCausalLM(found).num_parameters()
    if count > MOST_PARAMETERS:
        raise ValueError(
            f"{layers} layers and {vocabulary} tokens make {count} parameters, at most {MOST_PARAMETERS} may ship; "
            f"pass a smaller --layers or --vocabulary"
        )
    return found


def cut(model: PreTrainedModel, layers: list[int], rows: torch.Tensor, *, begin: int, pad: int) -> LlamaForCausalLM:
    """Return a Llama of the given layers of `model` and the given rows of its tied embedding."""
    source = model.state_dict()
    policy = LlamaForCausalLM(shape(model.config, len(layers), len(rows), begin=begin, pad=pad))
    for name, target in policy.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(layers[int(parts[2])])
        value = source[".".join(parts)]
        target.copy_(value[rows] if value.shape[0] == model.config.vocab_size else value)
    return policy


def check_growth(start: Any, layers: int) -> LlamaConfig:
    """Return the configuration of a policy with configuration `start`, grown to `layers` layers.

    Raises:
        ValueError: it is no Llama, has more layers than that already, or would have too many parameters.
    """
    if start.model_type != "llama":
        raise ValueError(f"--start must hold a Llama, got {start.model_type!r}; pass e.g. warp_nb/tasks/small")
    if start.num_hidden_layers > layers:
        raise ValueError(
            f"--start has {start.num_hidden_layers} layers, more than --layers {layers}; "
            f"pass --layers {start.num_hidden_layers} or more"
        )
    return shape(start, layers, start.vocab_size, begin=start.bos_token_id, pad=start.pad_token_id)


def grow(policy: PreTrainedModel, whole: PreTrainedModel, layers: int) -> LlamaForCausalLM:
    """Return `policy` with layers of `whole` put before its last, which begin as the identity.

    Both output projections of a new layer are 0, so it adds nothing to the residual stream; it learns from the first
    step, because they have a gradient.

    Raises:
        ValueError: the models' widths or heads differ (see also `check_growth`).
    """
    config = check_growth(policy.config, layers)
    other = {one: (getattr(policy.config, one), getattr(whole.config, one)) for one in SAME}
    other = {one: values for one, values in other.items() if values[0] != values[1]}
    if other:
        raise ValueError(f"--start and the teacher differ (start, teacher): {other}; start from a cut of the teacher")
    grown = LlamaForCausalLM(config)
    mine, sources = list(policy.model.layers), evenly(len(whole.model.layers), layers)
    for name in ("embed_tokens", "norm"):
        getattr(grown.model, name).load_state_dict(getattr(policy.model, name).state_dict())
    for place, layer in enumerate(grown.model.layers):
        new = len(mine) - 1 <= place < layers - 1
        source = whole.model.layers[sources[place]] if new else mine[min(place, len(mine) - 1)]
        layer.load_state_dict(source.state_dict())
        if new:
            torch.nn.init.zeros_(layer.self_attn.o_proj.weight)
            torch.nn.init.zeros_(layer.mlp.down_proj.weight)
    return grown
