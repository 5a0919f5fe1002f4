"""θ_sft of task `smollm`: the GGUF as a transformers folder; per-word perplexity of a policy."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch.nn.functional import cross_entropy

from warp_nb import assets

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


WORDS = 48
"""Words at the beginning of a review over which perplexity is measured."""


def smollm2_folder() -> Path:
    """SmolLM2-135M-Instruct, dequantised to fp32 safetensors in the cache folder.

    The loader keeps a quantizer that refuses saving and training, so the weights move
    into a model built from the configuration without it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = assets.cache_dir() / "smollm2-135m"
    with assets.building(target) as folder:
        if folder is not None:
            gguf = assets.smollm2_gguf()
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            values = loaded.config.to_dict()
            values.pop("quantization_config", None)
            model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(values), dtype=torch.float32)
            model.load_state_dict(loaded.state_dict())
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return target


def load_smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """SmolLM2-135M-Instruct in fp32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2_folder()
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    return model.eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def word_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    words: int = WORDS,
    begin: int | None = None,
    batch_size: int = 32,
) -> float:
    """exp(total negative log-likelihood / number of words) over the first `words` words.

    Words are separated by white space, so models with different vocabularies compare.
    `begin` is the id that opens every text (default: the tokenizer's begin token).
    """
    begin = tokenizer.bos_token_id if begin is None else begin
    heads = [" ".join(text.split()[:words]) for text in texts]
    rows = [[begin, *ids] for ids in tokenizer(heads, add_special_tokens=False)["input_ids"]]
    total = 0.0
    for start in range(0, len(rows), batch_size):
        chunk = [torch.tensor(row) for row in rows[start : start + batch_size]]
        ids = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True, padding_value=-100)
        logits = model(input_ids=ids.clamp_min(0)).logits[:, :-1].float()
        total += cross_entropy(logits.transpose(1, 2), ids[:, 1:], ignore_index=-100, reduction="sum").item()
    return math.exp(total / sum(len(head.split()) for head in heads))
