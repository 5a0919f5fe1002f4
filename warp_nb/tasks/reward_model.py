"""The reward of the tasks and its judge: MiniLM (DistilBERT from the hub) trained by TRL's RewardTrainer on excerpts.

Excerpts are about as long as the texts it scores later (a prompt of about 12 tokens and a completion
of 24 to 32): accuracy on whole reviews says little about accuracy on their first 30 words.
Deviations from a plain `RewardTrainer(model, train_dataset=pairs)`, each for a reason:

- Pairs are tokenised here. TRL would append an end token that BERT does not have, drop pairs over
  its length limit, and so train on other texts than are scored.
- The excerpts of a batch have the same number of words, so little is padded; their order is drawn beforehand.
- The zero is calibrated on reviews the training did not see: a positive score means that a
  positive review is the likelier source.
- Only safetensors, tokenizer and JSON files are written: no pickled training arguments.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from warp_nb.fast.devices import bf16_is_fast
from warp_nb.files import building, cache_dir, loading, read_record, write_json
from warp_nb.tasks import hub, imdb, wheels
from warp_nb.tasks.classifier import logits_of
from warp_nb.tasks.isolation import fit, quiet, trainer_versions, undisturbed

if TYPE_CHECKING:
    import pandas as pd
    from datasets import Dataset
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

Place = Literal["start", "anywhere", "end"]

MAX_TOKENS = 128
SCORED_WORDS = (24, 40)  # 36 to 44 tokens of a policy, in words
CALIBRATION_REVIEWS = 500
CONFIG_FILE = "reward.json"
LR: dict[imdb.Source, float] = {"embedded": 1e-4, "hub": 5e-5}
"""Peak learning rates of MiniLM and, as is usual for its size, of DistilBERT."""
RECIPE_SEEDS: dict[imdb.Part, int] = {"reward_train": 0, "judge_train": 1}
"""Seeds of the recipe of the reward and of the judge, by the reviews that they are trained on."""


@dataclass(frozen=True)
class Recipe:
    """All settings of the training; part of the cache key. `version` counts code changes."""

    pairs: int = 4096
    batch_pairs: int = 32
    lr: float = 1e-4
    warmup_share: float = 0.1
    center_rewards_coefficient: float = 0.01
    words: tuple[int, int] = (16, 64)
    places: tuple[Place, ...] = ("start", "start", "anywhere", "end")
    bf16: bool = False
    seed: int = 0
    version: int = 1


# Excerpts


def excerpt(text: str, words: int, place: Place, generator: np.random.Generator) -> str:
    """Return `words` consecutive words of `text` (all of it if it is shorter)."""
    every = text.split()
    last = max(0, len(every) - words)
    begin = {"start": 0, "end": last, "anywhere": int(generator.integers(last + 1))}[place]
    return " ".join(every[begin : begin + words])


def training_pairs(positive: list[str], negative: list[str], recipe: Recipe) -> list[tuple[str, str]]:
    """Draw `recipe.pairs` pairs (positive excerpt, negative excerpt); a batch has one length in words.

    Every review is used once before any is used again, then with a newly drawn excerpt.
    """
    generator = np.random.default_rng(recipe.seed)

    def endless(texts: list[str]) -> Iterator[str]:
        while True:
            yield from (texts[i] for i in generator.permutation(len(texts)))

    sides = endless(positive), endless(negative)
    pairs: list[tuple[str, str]] = []
    while len(pairs) < recipe.pairs:
        words = int(generator.integers(recipe.words[0], recipe.words[1] + 1))
        for _ in range(min(recipe.batch_pairs, recipe.pairs - len(pairs))):
            place = recipe.places[int(generator.integers(len(recipe.places)))]
            chosen, rejected = (excerpt(next(side), words, place, generator) for side in sides)
            pairs.append((chosen, rejected))
    return pairs


def held_out_excerpts(
    frame: pd.DataFrame, words: tuple[int, int], place: Place = "start", seed: int = 0
) -> tuple[list[str], list[str]]:
    """Return (positive, negative): one excerpt per review of `frame`, words[0] to words[1] words long."""
    generator = np.random.default_rng(seed)
    sides: tuple[list[str], list[str]] = ([], [])
    for text, label in zip(frame["text"], frame["label"], strict=True):
        count = int(generator.integers(words[0], words[1] + 1))
        sides[0 if label == 1 else 1].append(excerpt(text, count, place, generator))
    return sides


# The model


class RewardModel:
    """A sequence classifier with one output, called as TRL calls a reward function.

    The score of a text is the logit minus `offset`: fp32, eval mode, prompt + completion cut to
    MAX_TOKENS tokens. `folder` is where it was loaded from; it pickles as that path.
    """

    __name__ = "imdb_sentiment"

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, offset: float = 0, folder: Path | None = None
    ) -> None:
        self.model = model.float().eval().requires_grad_(False)
        self.tokenizer = tokenizer
        self.offset = offset
        self.folder = folder

    @classmethod
    def load(cls, folder: Path, device: str | None = None) -> RewardModel:
        """Load a model that `train_reward_model` wrote.

        Raises FileNotFoundError when the folder is not complete.
        """
        from transformers import AutoModelForSequenceClassification, AutoTokenizer

        if not (folder / CONFIG_FILE).exists():
            raise FileNotFoundError(f"{folder} holds no {CONFIG_FILE}, so no finished reward model; train it again")
        with quiet(), loading(folder, "reward model"):
            offset = float(read_record(folder / CONFIG_FILE)["offset"])
            model = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32)
            tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(model.to(device or "cpu"), tokenizer, offset, folder)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.folder is None:
            raise TypeError("a reward model without a folder cannot be pickled; write it with train_reward_model")
        return RewardModel.load, (self.folder, str(self.model.device))

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        """Score prompt + completion (calibrated logits); `kwargs` are TRL's other columns, unused."""
        return self.score([prompt + completion for prompt, completion in zip(prompts, completions, strict=True)])

    def score(self, texts: list[str], batch_size: int = 0) -> list[float]:
        """Score whole texts (calibrated logits) in their order (see `logits_of`)."""
        settings = {"truncation": True, "max_length": MAX_TOKENS}
        logits = logits_of(self.model, self.tokenizer, texts, batch_size=batch_size, **settings)
        return (logits.squeeze(-1) - self.offset).tolist()

    def describe(self) -> dict[str, Any]:
        """Return plain facts for banners and result files: parameters, offset, and how it was trained."""
        stored: dict[str, Any] = {"offset": self.offset}
        if self.folder:
            stored = read_record(self.folder / CONFIG_FILE)
        return {"name": self.__name__, "parameters": self.model.num_parameters()} | stored


# Training


def _token_pairs(pairs: list[tuple[str, str]], tokenizer: PreTrainedTokenizerBase) -> Dataset:
    """Tokenise pairs in TRL's format: columns chosen_ids, rejected_ids, cut to MAX_TOKENS."""
    from datasets import Dataset

    columns = zip(("chosen_ids", "rejected_ids"), zip(*pairs, strict=True), strict=True)
    ids = {n: tokenizer(list(texts), truncation=True, max_length=MAX_TOKENS)["input_ids"] for n, texts in columns}
    return Dataset.from_dict(ids)


def train_reward_model(
    folder: Path,
    base: Path | None = None,
    frame: pd.DataFrame | None = None,
    recipe: Recipe | None = None,
    *,
    device: str | None = None,
    progress: bool = False,
) -> RewardModel:
    """Train on `frame` (columns text, label; default: IMDb's part `reward_train`) and write `folder`.

    The last CALIBRATION_REVIEWS reviews (at most a tenth) set the zero and are not trained on.
    `base` is a transformers folder (default: MiniLM). The caller's random states, threads,
    environment and verbosity are restored.

    Raises ValueError when one side of the pairs is empty.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import RewardConfig, RewardTrainer

    recipe = recipe or Recipe(bf16=bf16_is_fast(device))
    base = wheels.minilm_folder() if base is None else base
    frame = imdb.reviews("reward_train") if frame is None else frame
    kept = len(frame) - min(CALIBRATION_REVIEWS, len(frame) // 10)
    train, calibration = frame.iloc[:kept], frame.iloc[kept:]
    sides = [train.loc[train["label"] == label, "text"].tolist() for label in (1, 0)]
    if not all(sides):
        raise ValueError(f"{len(sides[0])} positive and {len(sides[1])} negative reviews; pairs need both")
    with undisturbed():
        torch.manual_seed(recipe.seed)
        model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=1, dtype=torch.float32)
        tokenizer = AutoTokenizer.from_pretrained(base)
        model.to(device or "cpu")
        data = _token_pairs(training_pairs(sides[0], sides[1], recipe), tokenizer)
        fit(
            RewardTrainer,
            RewardConfig,
            model,
            data,
            tokenizer=tokenizer,
            title="reward model",
            bar=progress,
            per_device_train_batch_size=recipe.batch_pairs,
            num_train_epochs=1,
            learning_rate=recipe.lr,
            warmup_steps=round(recipe.warmup_share * -(-len(data) // recipe.batch_pairs)),
            center_rewards_coefficient=recipe.center_rewards_coefficient,
            bf16=recipe.bf16,
            seed=recipe.seed,
            train_sampling_strategy="sequential",
        )
        good, bad = held_out_excerpts(calibration, SCORED_WORDS, seed=recipe.seed)
        raw = RewardModel(model, tokenizer)
        offset = (float(np.mean(raw.score(good))) + float(np.mean(raw.score(bad)))) / 2
        folder.mkdir(parents=True, exist_ok=True)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    facts = {"offset": offset, "recipe": asdict(recipe), "reviews": list(map(len, sides))}
    write_json(folder / CONFIG_FILE, facts | {"versions": trainer_versions()})
    return RewardModel(model, tokenizer, offset, folder)


def reward_key(recipe: Recipe, source: imdb.Source = "embedded", part: imdb.Part = "reward_train") -> str:
    """Return ten hex digits that identify all the model depends on: recipe, data, split, base model, libraries."""
    pins = {"embedded": (wheels.REVIEWS.sha256, wheels.MINILM.sha256), "hub": (hub.IMDB.commit, hub.DISTILBERT.commit)}
    chosen = [imdb.SIZES, CALIBRATION_REVIEWS, SCORED_WORDS, MAX_TOKENS]
    other = [] if part == "reward_train" else [part]  # not named there, so that a model of an earlier version is found
    parts = [asdict(recipe), *pins[source], *chosen, *other, trainer_versions()]
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:10]


def load_reward(device: str | None = None, progress: bool = False, source: imdb.Source = "embedded") -> RewardModel:
    """Load the reward model of a source of reviews; it is trained at first use, then cached.

    embedded: MiniLM on the embedded reviews (about two minutes on two cores); hub: DistilBERT on stanfordnlp/imdb.
    """
    return load_trained_on("reward_train", device, progress, source)


def load_judge(device: str | None = None, progress: bool = False, source: imdb.Source = "embedded") -> RewardModel:
    """Load the judge of a source of reviews; it is trained at first use, then cached.

    It has the recipe of `load_reward` with another seed, and is trained on as many other reviews (`judge_train`). An
    error that the two share by their kind of model and of text is beyond what the judge can show.
    """
    return load_trained_on("judge_train", device, progress, source)


def load_trained_on(part: imdb.Part, device: str | None, progress: bool, source: imdb.Source) -> RewardModel:
    """Load the reward model that is trained on a part of RECIPE_SEEDS; it is trained at first use, then cached."""
    recipe = Recipe(lr=LR[source], bf16=bf16_is_fast(device), seed=RECIPE_SEEDS[part])
    target = cache_dir() / f"reward-{reward_key(recipe, source, part)}"
    with building(target) as folder:
        if folder is not None:
            base = wheels.minilm_folder() if source == "embedded" else hub.fetch_from_hub(hub.DISTILBERT)
            reviews = imdb.reviews(part, source)
            train_reward_model(folder, base, reviews, recipe, device=device, progress=progress)
    return RewardModel.load(target, device)
