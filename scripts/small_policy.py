"""The small policy: the script that made the checkpoint shipped in `warp_nb/tasks/small/`.

Two layers of SmolLM2-135M and the rows of its embedding that a vocabulary trimmed to IMDb
needs, tuned on the SFT part of the reviews (never on a prompt, a reward-model text or an
evaluation review). To make it anew, resumable, in about an hour on two cores:

    python -m scripts.small_policy --out FOLDER

`curve.json` is the curve of the run that made the shipped one: three passes over the reviews, the held-out
perplexity falls little after the first two. `perplexity.json` compares the result with SmolLM2-135M
on the same held-out reviews and is made anew by

    python -m scripts.small_policy --out FOLDER --compare
"""

from __future__ import annotations

import argparse
import json
import math
import os
import time
from collections import Counter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors.torch import load_file, save_file
from torch.nn.functional import cross_entropy
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from warp_nb.files import write_json
from warp_nb.tasks import imdb, sft
from warp_nb.tasks.sft import BEGIN, PAD

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

WINDOW = 128
SAVE_EVERY = 250
CURVE_REVIEWS = 300
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


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


def cut(model: PreTrainedModel, layers: list[int], rows: torch.Tensor, bos: int, pad: int) -> LlamaForCausalLM:
    """A Llama of the given layers of `model` and the given rows of its tied embedding."""
    source = model.state_dict()
    config = LlamaConfig.from_dict(
        model.config.to_dict()
        | {
            "num_hidden_layers": len(layers),
            "vocab_size": len(rows),
            "max_position_embeddings": 512,
            "bos_token_id": bos,
            "eos_token_id": bos,
            "pad_token_id": pad,
        }
    )
    policy = LlamaForCausalLM(config)
    for name, target in policy.state_dict().items():
        parts = name.split(".")
        if parts[:2] == ["model", "layers"]:
            parts[2] = str(layers[int(parts[2])])
        value = source[".".join(parts)]
        target.copy_(value[rows] if value.shape[0] == model.config.vocab_size else value)
    return policy


def token_stream(tokenizer: PreTrainedTokenizerBase, texts: list[str]) -> tuple[torch.Tensor, torch.Tensor]:
    """All reviews as one stream, the begin token before each; and where the reviews start."""
    ids = [[tokenizer.bos_token_id, *row] for row in tokenizer(texts, add_special_tokens=False)["input_ids"]]
    starts = torch.tensor([0, *map(len, ids)]).cumsum(0)[:-1]
    stream = torch.tensor([token for row in ids for token in row])
    return stream, starts[starts < len(stream) - WINDOW - 1]


def windows(stream: torch.Tensor, starts: torch.Tensor, count: int, generator: torch.Generator) -> torch.Tensor:
    """`count` windows of WINDOW + 1 tokens, half of them at the beginning of a review."""
    first = starts[torch.randint(len(starts), (count // 2,), generator=generator)]
    free = torch.randint(len(stream) - WINDOW - 1, (count - count // 2,), generator=generator)
    return torch.stack([stream[p : p + WINDOW + 1] for p in torch.cat([first, free]).tolist()])


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine down to 2 % of the peak."""
    cosine = 0.51 + 0.49 * math.cos(math.pi * step / steps)
    return peak * min(1.0, (step + 1) / 100) * cosine


class Trainer:
    """bf16 arithmetic with fp32 master weights; its state is a folder and can be resumed."""

    def __init__(self, out: Path, policy: LlamaForCausalLM, lr: float) -> None:
        self.out, self.policy, self.lr = out, policy, lr
        self.masters = {name: value.detach().clone() for name, value in policy.named_parameters()}
        self.optimizer = torch.optim.AdamW(list(self.masters.values()), lr=lr, betas=(0.9, 0.95), weight_decay=0.1)
        self.curve: list[dict[str, float]] = []
        if (out / "state.safetensors").exists():
            self.curve = json.loads((out / "curve.json").read_text())
            saved = load_file(out / "state.safetensors")
            for name, master in self.masters.items():
                master.copy_(saved[f"weight.{name}"])
                self.optimizer.state[master] = {part: saved[f"{part}.{name}"] for part in MOMENTS}
        self.working = dict(policy.bfloat16().named_parameters())
        self._refresh()

    @torch.no_grad()
    def _refresh(self) -> None:
        torch._foreach_copy_(list(self.working.values()), list(self.masters.values()))

    @property
    def done(self) -> int:
        """Steps done at the last saved state."""
        return int(self.curve[-1]["step"]) if self.curve else 0

    def step(self, ids: torch.Tensor, lr: float) -> float:
        """One AdamW step on windows int64 [B, WINDOW + 1]; returns the loss, nats a token."""
        hidden = self.policy.model(input_ids=ids[:, :-1]).last_hidden_state
        logits = self.policy.lm_head(hidden).flatten(0, 1).float()
        loss = cross_entropy(logits, ids[:, 1:].flatten())
        grads = torch.autograd.grad(loss, list(self.working.values()))
        for master, grad in zip(self.masters.values(), grads, strict=True):
            master.grad = grad.float()
        torch.nn.utils.clip_grad_norm_(self.masters.values(), 1.0)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self._refresh()
        return loss.item()

    def save(self, row: dict[str, float], model: LlamaForCausalLM) -> None:
        """Keep the state, the curve with its new row, and the policy in bf16."""
        self.curve.append(row)
        tensors = {f"weight.{name}": master for name, master in self.masters.items()}
        for name, master in self.masters.items():
            tensors |= {f"{part}.{name}": self.optimizer.state[master][part] for part in MOMENTS}
        save_file(tensors, self.out / "state.new")
        os.replace(self.out / "state.new", self.out / "state.safetensors")
        write_json(self.out / "curve.json", self.curve)
        model.bfloat16().save_pretrained(self.out)

    def full_precision(self) -> LlamaForCausalLM:
        """The policy with the master weights, fp32, in eval mode."""
        model = LlamaForCausalLM(self.policy.config).eval()
        model.load_state_dict(self.masters, strict=False)
        model.tie_weights()
        return model


def train(out: Path, layers: list[int], vocabulary: int, steps: int, batch: int, peak: float, seed: int) -> None:
    """Tune the cut model for `steps` steps of `batch` windows; the state in `out` is resumed."""
    texts, held_out = imdb.reviews("sft")["text"].tolist(), imdb.reviews("eval")["text"].tolist()
    whole, full_tokenizer = sft.load_smollm2()
    tokenizer, rows = trim_tokenizer(full_tokenizer, texts, vocabulary)
    out.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(out)
    trainer = Trainer(out, cut(whole, layers, rows, tokenizer.bos_token_id, tokenizer.pad_token_id), peak)
    stream, starts = token_stream(tokenizer, texts)
    spent = trainer.curve[-1]["seconds"] if trainer.curve else 0.0
    started, losses = time.perf_counter() - spent, []
    for step in range(trainer.done, steps):
        ids = windows(stream, starts, batch, torch.Generator().manual_seed(seed * 1_000_003 + step))
        losses.append(trainer.step(ids, learning_rate(step, steps, peak)))
        if (step + 1) % SAVE_EVERY == 0 or step + 1 == steps:
            model = trainer.full_precision()
            row = {"step": step + 1, "tokens": (step + 1) * batch * WINDOW, "seconds": time.perf_counter() - started}
            row |= {"lr": learning_rate(step, steps, peak), "loss": sum(losses) / len(losses)}
            row["perplexity_per_word"] = sft.word_perplexity(model, tokenizer, held_out[:CURVE_REVIEWS])
            trainer.save(row, model)
            losses.clear()
            print(json.dumps(row), flush=True)


def compare(out: Path) -> dict[str, float]:
    """Per-word perplexity of the policy in `out` and of SmolLM2-135M on the same held-out reviews.

    SmolLM2 is measured twice: with the begin token its tokenizer names, and with the one that separated
    documents in its pre-training, which suits plain text better.
    """
    held_out = imdb.reviews("eval")["text"].tolist()[:CURVE_REVIEWS]
    whole, full_tokenizer = sft.load_smollm2()
    mine = LlamaForCausalLM.from_pretrained(out, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast.from_pretrained(out)
    found = {
        "reviews": CURVE_REVIEWS,
        "words_of_each": sft.PERPLEXITY_WORDS,
        "parameters": mine.num_parameters(),
        "small": sft.word_perplexity(mine, tokenizer, held_out),
    }
    begins = {"own_begin": full_tokenizer.bos_token, "best_begin": BEGIN}
    for name, token in begins.items():
        begin = int(full_tokenizer.get_vocab()[token])
        found[f"smollm2_135m_{name}"] = sft.word_perplexity(whole, full_tokenizer, held_out, begin=begin)
        found[f"ratio_{name}"] = found["small"] / found[f"smollm2_135m_{name}"]
    write_json(out / "perplexity.json", found)
    return found


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--layers", type=int, nargs="+", default=[0, 29], help="layers of SmolLM2 that are kept")
    parser.add_argument("--vocabulary", type=int, default=6000, help="tokens kept")
    parser.add_argument("--steps", type=int, default=6500)
    parser.add_argument("--batch", type=int, default=16, help="windows of 128 tokens a step")
    parser.add_argument("--lr", type=float, default=2e-3, help="peak learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--compare", action="store_true", help="only measure what lies in --out")
    given = parser.parse_args()
    if given.compare:
        print(json.dumps(compare(given.out), indent=1))
        return
    train(given.out, given.layers, given.vocabulary, given.steps, given.batch, given.lr, given.seed)


if __name__ == "__main__":
    main()
