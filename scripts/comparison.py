"""What a small policy is worth beside the shipped one, θ_sft and SmolLM2: perplexities, the time of a step, samples."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch

from scripts.distillation import WINDOW, sample
from warp_nb.files import write_json
from warp_nb.tasks import imdb, sft
from warp_nb.tasks.prepared import PROMPT_TOKENS, SMALL, load_policy

CURVE_REVIEWS = 300
"""Held-out reviews of a perplexity."""
SAMPLES = 20


def step_seconds(policy: Any, ids: torch.Tensor, repeats: int = 5) -> float:
    """Return the least time of 32 tokens decoded after `ids`, int64 [B, P], and one forward and backward, seconds."""
    times = []
    for _ in range(repeats):
        begun = time.perf_counter()
        mask = torch.ones_like(ids)
        row = policy.generate(ids, attention_mask=mask, do_sample=False, min_new_tokens=32, max_new_tokens=32)
        policy(input_ids=row, labels=row).loss.backward()
        times.append(time.perf_counter() - begun)
    return min(times)


def compare(out: Path) -> dict[str, Any]:
    """Compare the policy in `out` with the shipped one, θ_sft and SmolLM2-135M on the same held-out reviews.

    SmolLM2 is measured twice: with the begin token its tokenizer names, and with the one that separated documents in
    its pre-training, which suits plain text better. Everything is fp32 on the CPU; perplexities are per word. Unless
    `out` is the shipped policy's folder, a step is timed too and samples are written.
    """
    held_out = imdb.reviews("eval")["text"].tolist()[:CURVE_REVIEWS]
    mine, tokenizer = load_policy(out)
    found: dict[str, Any] = {"reviews": CURVE_REVIEWS, "words_of_each": sft.PERPLEXITY_WORDS}
    found["parameters"] = mine.num_parameters()
    found["small"] = sft.word_perplexity(mine.eval(), tokenizer, held_out)
    whole, words = sft.load_smollm2()
    for name, token in {"own_begin": words.bos_token, "best_begin": sft.BEGIN}.items():
        begin = int(words.get_vocab()[token])
        found[f"smollm2_135m_{name}"] = sft.word_perplexity(whole, words, held_out, begin=begin)
        found[f"ratio_{name}"] = found["small"] / found[f"smollm2_135m_{name}"]
    if out.resolve() != SMALL.resolve():
        found |= beside_shipped(out, mine, tokenizer, held_out, perplexity=found["small"])
    write_json(out / "perplexity.json", found)
    return found


def beside_shipped(out: Path, mine: Any, tokenizer: Any, held_out: list[str], *, perplexity: float) -> dict[str, float]:
    """Return perplexities of the shipped policy and of θ_sft, and ratios to them; write samples of both policies."""
    shipped, words = load_policy(SMALL)
    teacher = load_policy(sft.load_sft()[0])
    found = {}
    for name, (model, own) in {"shipped": (shipped.eval(), words), "sft": teacher}.items():
        found[name] = sft.word_perplexity(model.eval(), own, held_out)
        found[f"ratio_{name}"] = perplexity / found[name]
    ids = torch.randint(2, len(words), (16, PROMPT_TOKENS), generator=torch.Generator().manual_seed(0))
    found["step_ratio_shipped"] = step_seconds(mine, ids % len(tokenizer)) / step_seconds(shipped, ids)
    drawn = {
        name: sample(model, own, held_out[:SAMPLES], prompt=PROMPT_TOKENS, count=WINDOW // 2, seed=0)
        for name, model, own in (("shipped", shipped, words), ("new", mine, tokenizer))
    }
    (out / "scratch").mkdir(exist_ok=True)
    rows = zip(drawn["shipped"], drawn["new"], strict=True)
    write_json(out / "scratch" / "samples.json", [{"shipped": old, "new": new} for old, new in rows])
    return found
