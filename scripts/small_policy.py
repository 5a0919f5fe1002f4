"""The small policy: cut from SmolLM2-135M, then distilled from θ_sft of task `smollm`.

A policy is a few layers of θ_sft and the rows of its embedding that a vocabulary trimmed to IMDb needs, at most 18
million parameters (36 MB in bf16). It learns the teacher's next-token distributions (`scripts/distillation.py`) on
beginnings and middles of reviews of the part `sft`, and on text that the teacher samples itself. It never sees a
prompt, a text of the reward model or an evaluation review. On two cores, in the background, stopped after two hours:

    python -m scripts.small_policy --out FOLDER --start warp_nb/tasks/small --layers 3 --steps 3000 --minutes 120

On a GPU, with more text, of which the teacher reads and samples more at once:

    python -m scripts.small_policy --out FOLDER --start warp_nb/tasks/small --layers 4 --device cuda \\
        --steps 12000 --batch 64 --texts 131072 --shard 1024 --minutes 30

The same command resumes, bit-identically on the same device. `--start` grows a policy by layers that begin as the
identity, so its perplexity is where training begins; without it the layers are cut from θ_sft and training begins from
almost nothing, which needs far more tokens.

The teacher reads a text once. Its `--top` most probable tokens at every position are stored in FOLDER/scratch, 33 MB
for 1,000 texts with the defaults, and every pass over the texts reads them there: steps * batch / texts passes, each in
an order of its own. What the training resumes from is there as well; delete the folder at the end.

FOLDER/curve.json has the steps, tokens, loss and held-out perplexity a word. What the result is worth beside the
shipped policy, θ_sft and SmolLM2 (FOLDER/perplexity.json), with the time of a step and twenty samples of both
(FOLDER/scratch/samples.json):

    python -m scripts.small_policy --out FOLDER --compare

The policy in `warp_nb/tasks/small/` was made by an earlier form of this script, which tuned layers 0 and 29 on the
reviews alone; `curve.json` there is of that run.
"""

from __future__ import annotations

import argparse
import copy
import hashlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, LlamaForCausalLM

from scripts.comparison import CURVE_REVIEWS, compare
from scripts.cutting import check_growth, cut, evenly, grow, trim_tokenizer
from scripts.distillation import WINDOW, Targets, Teacher, distillation_loss, dtype_on, rows_of, sample
from warp_nb.fast.devices import arithmetic, choose_device
from warp_nb.files import loading, read_record, replacing, write_json
from warp_nb.tasks import imdb, sft
from warp_nb.tasks.prepared import PROMPT_TOKENS, SMALL, load_policy

WORDS = 96
"""Words of a piece of review: its tokens fill a window."""
SAMPLED = 4
"""Of as many texts the teacher samples one; of the others every second one begins a review."""
MOST_TOKENS = 2**15 - 1
"""Of a vocabulary whose ids are stored in int16."""
ROW_EVERY = 250
MOMENTS = ("step", "exp_avg", "exp_avg_sq")


@dataclass(frozen=True)
class Recipe:
    """The settings that decide a training's bits on one device.

    Raises:
        ValueError: a setting is out of its range.
    """

    layers: int = 3
    vocabulary: int = 6000
    steps: int = 3000
    batch: int = 16
    texts: int = 4096
    shard: int = 64
    top: int = 64
    lr: float = 1e-3
    seed: int = 0

    def __post_init__(self) -> None:
        least = {"layers": 2, "vocabulary": 260, "steps": 1, "batch": 1, "texts": 1, "shard": SAMPLED, "top": 1}
        for name, bound in least.items():
            if getattr(self, name) < bound:
                raise ValueError(f"--{name} must be at least {bound}, got {getattr(self, name)}")
        if self.vocabulary > MOST_TOKENS:
            raise ValueError(f"--vocabulary must be at most {MOST_TOKENS}, got {self.vocabulary}; pass e.g. 6000")
        for name, part, whole in (("shard", "batch", self.shard), ("texts", "shard", self.texts)):
            if whole % getattr(self, part):
                raise ValueError(f"--{name} must be a multiple of --{part} {getattr(self, part)}, got {whole}")
        if not (math.isfinite(self.lr) and self.lr > 0):
            raise ValueError(f"--lr must be a positive finite number, got {self.lr}; pass e.g. 1e-3")


def learning_rate(step: int, steps: int, peak: float) -> float:
    """Linear warm-up over 100 steps, then a cosine down to 2 % of the peak."""
    cosine = 0.51 + 0.49 * math.cos(math.pi * step / steps)
    return peak * min(1.0, (step + 1) / 100) * cosine


class Texts:
    """The texts of a training and what the teacher says about them, by shards that are made once and kept on disk."""

    def __init__(self, folder: Path, teacher: Teacher, reviews: list[str], recipe: Recipe) -> None:
        self.folder, self.teacher, self.reviews, self.recipe = folder, teacher, reviews, recipe
        self._held: tuple[int, Targets] | None = None

    def pieces(self, shard: int) -> list[str]:
        """Return the texts of a shard: beginnings and middles of reviews, then the teacher's own."""
        generator = torch.Generator().manual_seed(self.recipe.seed * 1_000_003 + shard)
        chosen = torch.randint(len(self.reviews), (self.recipe.shard,), generator=generator).tolist()
        sampled = self.recipe.shard // SAMPLED
        found = []
        for place, index in enumerate(chosen[sampled:]):
            words = self.reviews[index].split()
            free = int(torch.randint(max(1, len(words) - WORDS // 2), (), generator=generator))
            start = free if place % 2 else 0
            found.append(" ".join(words[start : start + WORDS]))
        beginnings = [self.reviews[index] for index in chosen[:sampled]]
        seed = int(torch.randint(2**31, (), generator=generator))
        model, tokenizer = self.teacher.model, self.teacher.own
        return found + sample(model, tokenizer, beginnings, prompt=PROMPT_TOKENS, count=WINDOW, seed=seed)

    def shard(self, number: int) -> Targets:
        """Return the targets of a shard: from memory, from disk, or by the teacher."""
        if self._held is None or self._held[0] != number:
            path = self.folder / f"shard-{number:06d}.safetensors"
            if not path.exists():
                made = self.teacher.targets(self.pieces(number), window=WINDOW, top=self.recipe.top)
                with replacing(path) as temporary:
                    save_file(made.compact(), temporary)
            with loading(path, "targets of the teacher"):
                self._held = number, Targets(**load_file(path))
        return self._held[1]

    def batch(self, step: int) -> Targets:
        """Return the texts of a step. Every pass takes the shards, and the texts in a shard, in an order of its own."""
        first = step * self.recipe.batch
        turn, place = divmod(first, self.recipe.texts)
        size = self.recipe.shard
        shards = torch.randperm(self.recipe.texts // size, generator=self._generator(turn, 0))
        number = int(shards[place // size])
        order = torch.randperm(size, generator=self._generator(turn, 1 + number))
        return self.shard(number).rows(order[place % size :][: self.recipe.batch])

    def _generator(self, turn: int, place: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.recipe.seed * 1_000_003 + turn) * 1_000_033 + place)


class Trainer:
    """AdamW on fp32 weights, bf16 autocast on a GPU; its state is a folder from which it resumes.

    A state is a safetensors file of weights and moments and, written after it, `state.json`, which names that file.
    """

    def __init__(self, folder: Path, policy: LlamaForCausalLM, facts: dict[str, Any]) -> None:
        self.folder, self.policy, self.facts = folder, policy.train(), facts
        self.weights = dict(policy.named_parameters())
        self.optimizer = torch.optim.AdamW(list(self.weights.values()), lr=0.0, betas=(0.9, 0.95), weight_decay=0.1)
        self.done, self.tokens, self.seconds = 0, 0, 0.0
        self.losses: list[float] = []
        self.curve: list[dict[str, float]] = []
        if (folder / "state.json").exists():
            self._resume(read_record(folder / "state.json"))
        else:
            self.save()

    def _resume(self, record: dict[str, Any]) -> None:
        stored = record.get("facts", {})
        other = {name: (stored.get(name), value) for name, value in self.facts.items() if stored.get(name) != value}
        if other:
            raise ValueError(
                f"{self.folder} is of another training (stored, given): {other}; "
                f"repeat its command, or pass another --out"
            )
        with loading(self.folder, "state of a training"):
            saved = load_file(self.folder / record["tensors"])
            with torch.no_grad():
                for name, weight in self.weights.items():
                    weight.copy_(saved[f"weight.{name}"])
                    if not record["done"]:
                        continue
                    moments = {part: saved[f"{part}.{name}"] for part in MOMENTS}
                    moments |= {part: moments[part].to(weight.device) for part in MOMENTS[1:]}
                    self.optimizer.state[weight] = moments
            self.done, self.tokens, self.seconds = record["done"], record["tokens_read"], record["seconds"]
            self.losses, self.curve = record["losses"], record["curve"]

    def step(self, targets: Targets, lr: float) -> float:
        """Take one step on a batch; return its loss, nats a token."""
        device = self.policy.device
        targets = targets.to(device)
        with arithmetic(dtype_on(device), device):
            logits = self.policy(input_ids=targets.ids, use_cache=False).logits
        loss = distillation_loss(logits, targets)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.weights.values(), 1.0)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.done += 1
        self.tokens += targets.ids.numel()
        self.losses.append(loss.item())
        return self.losses[-1]

    def row(self, perplexity: float) -> dict[str, float]:
        """Add a row to the curve, with the mean loss since the one before, and return it."""
        found = {"step": self.done, "tokens": self.tokens, "seconds": self.seconds}
        found["loss"] = sum(self.losses) / len(self.losses) if self.losses else math.nan
        self.curve.append(found | {"perplexity_per_word": perplexity})
        self.losses.clear()
        return self.curve[-1]

    def save(self) -> None:
        """Write the state and delete the one before it."""
        tensors = {f"weight.{name}": weight.detach() for name, weight in self.weights.items()}
        for name, weight in self.weights.items():
            tensors |= {f"{part}.{name}": self.optimizer.state[weight][part] for part in MOMENTS} if self.done else {}
        path = self.folder / f"state-{self.done:08d}.safetensors"
        with replacing(path) as temporary:
            save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary)
        record = {"tensors": path.name, "done": self.done, "tokens_read": self.tokens, "seconds": self.seconds}
        write_json(
            self.folder / "state.json", record | {"losses": self.losses, "curve": self.curve, "facts": self.facts}
        )
        for old in self.folder.glob("state-*.safetensors"):
            if old != path:
                old.unlink()


def check_paths(out: Path, start: Path | None) -> None:
    """Refuse folders that cannot be meant.

    Raises:
        ValueError: `out` is the shipped policy's or the start's folder, or `start` has no policy.
    """
    if out.resolve() in {SMALL.resolve(), (start or SMALL).resolve()}:
        raise ValueError(f"--out {out} holds the policy to compare with or to start from; pass another folder")
    if start is not None and not (start / "config.json").is_file():
        raise ValueError(f"--start {start} has no config.json; pass the folder of a policy, e.g. warp_nb/tasks/small")


def student_of(start: Path | None, recipe: Recipe, whole: Any, words: Any, *, texts: list[str]) -> tuple[Any, Any]:
    """Return the student at the beginning of its training and its tokenizer.

    Args:
        start: a folder whose policy is grown; without it the student is cut from `whole`.
        whole, words: the teacher and its tokenizer.
        texts: the vocabulary is trimmed to them, if there is no `start`.
    """
    if start is not None:
        policy, tokenizer = load_policy(start)
        rows_of(tokenizer, words)
        return grow(policy, whole, recipe.layers), tokenizer
    tokenizer, rows = trim_tokenizer(words, texts, recipe.vocabulary)
    layers = evenly(whole.config.num_hidden_layers, recipe.layers)
    return cut(whole, layers, rows, begin=tokenizer.bos_token_id, pad=tokenizer.pad_token_id), tokenizer


def identity(recipe: Recipe, start: Path | None, teacher: Path, device: str) -> dict[str, Any]:
    """Return all that a training's bits depend on, beside the libraries and the machine."""
    weights = (start / "model.safetensors").read_bytes() if start else b""
    own = {"start": hashlib.sha256(weights).hexdigest() if start else None}
    return asdict(recipe) | own | {"teacher": teacher.name, "device": device.partition(":")[0]}


def train(
    out: Path,
    recipe: Recipe,
    *,
    start: Path | None = None,
    device: str = "",
    minutes: float = math.inf,
    clock: Callable[[], float] = time.monotonic,
) -> None:
    """Distil until the last step or until the budget is spent; a second call resumes.

    Args:
        out: folder of the policy, of its curve and of `scratch`.
        start: see `student_of`.
        minutes: budget of this call. It ends with the first step after it, or with the texts that the teacher is
            reading then; the state and the policy are saved.
        clock: seconds of a monotonic clock.

    Raises:
        ValueError: a setting or a folder cannot be used, or `out` has the state of another training.
    """
    if not minutes > 0:
        raise ValueError(f"--minutes must be positive, got {minutes}; pass e.g. 120")
    device, before = choose_device(device), clock()
    end = before + 60 * minutes
    check_paths(out, start)
    if start is not None:
        check_growth(AutoConfig.from_pretrained(start), recipe.layers)
    folder, _ = sft.load_sft(device)
    whole, words = load_policy(folder)
    texts, held_out = (imdb.reviews(part)["text"].tolist() for part in ("sft", "eval"))
    policy, tokenizer = student_of(start, recipe, whole, words, texts=texts)
    scratch = out / "scratch"
    scratch.mkdir(parents=True, exist_ok=True)
    trainer = Trainer(scratch, policy.to(device), identity(recipe, start, folder, device))
    tokenizer.save_pretrained(out)
    source = Texts(scratch, Teacher(whole.to(device), words, tokenizer), texts, recipe)
    while trainer.done < recipe.steps and clock() < end:
        trainer.step(source.batch(trainer.done), learning_rate(trainer.done, recipe.steps, recipe.lr))
        trainer.seconds, before = trainer.seconds + clock() - before, clock()
        if trainer.done % ROW_EVERY == 0 or trainer.done == recipe.steps:
            perplexity = sft.word_perplexity(policy.eval(), tokenizer, held_out[:CURVE_REVIEWS])
            policy.train()
            print(json.dumps(trainer.row(perplexity)), flush=True)
            finish(out, trainer)
    finish(out, trainer)
    print(f"{trainer.done} of {recipe.steps} steps are done; {out}", flush=True)


def finish(out: Path, trainer: Trainer) -> None:
    """Save the state, the curve and the policy in bf16."""
    trainer.save()
    write_json(out / "curve.json", trainer.curve)
    copy.deepcopy(trainer.policy).eval().bfloat16().save_pretrained(out)


def main() -> None:
    """Command line of the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="folder of a policy that is grown; it brings its vocabulary")
    parser.add_argument("--layers", type=int, default=Recipe.layers)
    parser.add_argument("--vocabulary", type=int, default=Recipe.vocabulary, help="tokens kept, without --start")
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--batch", type=int, default=Recipe.batch, help=f"texts of up to {WINDOW} tokens a step")
    parser.add_argument("--texts", type=int, default=Recipe.texts, help="texts that the teacher reads, all in all")
    parser.add_argument("--shard", type=int, default=Recipe.shard, help="texts that the teacher reads at once")
    parser.add_argument("--top", type=int, default=Recipe.top, help="tokens of a distribution that are stored")
    parser.add_argument("--lr", type=float, default=Recipe.lr, help="peak learning rate of AdamW")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--device", default="", help="cpu, cuda, cuda:N or mps; the fastest one by default")
    parser.add_argument("--minutes", type=float, default=math.inf, help="budget of this call")
    parser.add_argument("--compare", action="store_true", help="only measure what lies in --out")
    given = vars(parser.parse_args())
    out, where = given.pop("out"), {name: given.pop(name) for name in ("start", "device", "minutes")}
    if given.pop("compare"):
        print(json.dumps(compare(out), indent=1))
        return
    train(out, Recipe(**given), **where)


if __name__ == "__main__":
    main()
