"""A sequence classifier as a reward: from a folder or the Hugging Face hub, safetensors only, without remote code."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.tasks.hub import first_line
from warp_nb.tasks.isolation import quiet
from warp_nb.tasks.pretrained import load_tokenizer, pretrained_at
from warp_nb.tasks.text import context_length

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

BATCH = {"cpu": 64}
"""Texts that are scored at a time, by kind of device."""
LARGE_BATCH = 512
"""The same elsewhere."""


class SequenceClassifier:
    """A sequence classifier, called as TRL calls a reward function; the score is in fp32 and eval mode.

    It is the logit of a model with one label, and of one with more labels the log-odds of `label`,
    log p(label) - log(1 - p(label)). A text is the prompt with its completion, with the special tokens that the
    tokenizer adds; a conversation is rendered by the tokenizer's chat template.

    Args:
        model, tokenizer: of transformers. The model becomes fp32, in eval mode and frozen.
        label: the label whose log-odds are the reward; needed if there are more than one.
        source: where it was loaded from; it pickles as that.

    Raises:
        ValueError: the model has several labels and none of them is named, or the tokenizer has no token to pad with.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        label: str | None = None,
        source: str | None = None,
    ) -> None:
        self.source = source
        self.__name__ = Path(source or model.config._name_or_path or type(model).__name__).name
        self.label, self.place = label, place_of(label, model.config, self.__name__)
        self.model, self.tokenizer = model.float().eval().requires_grad_(False), copy.deepcopy(tokenizer)
        if tokenizer.pad_token_id is None:
            if tokenizer.eos_token is None:
                raise ValueError(f"the tokenizer of {self.__name__} has no pad or end token; set tokenizer.pad_token")
            self.tokenizer.pad_token = tokenizer.eos_token
        # a decoder reads the score at the last token that is no padding
        model.config.get_text_config().pad_token_id = self.tokenizer.pad_token_id

    @classmethod
    def load(cls, source: str | Path, device: str = "cpu", label: str | None = None) -> SequenceClassifier:
        """Load a classifier and its tokenizer.

        Args:
            source: a folder of transformers, or the id of a model on the Hugging Face hub.
            device: as torch names it.
            label: see above.

        Raises:
            ValueError: there is no such folder or model, it is no sequence classifier, its weights are not safetensors,
                it needs code of its own, or the label is unknown. The labels are checked before weights are loaded.
        """
        from transformers import AutoConfig, AutoModelForSequenceClassification

        found, safe = pretrained_at(source, "reward"), {"trust_remote_code": False}
        tokenizer = load_tokenizer(found, "reward")
        try:
            with quiet():
                config = AutoConfig.from_pretrained(found.folder, **safe)
                check_classifier(config, found.source, label)
                model, info = AutoModelForSequenceClassification.from_pretrained(
                    found.source, revision=found.commit or "main", dtype=torch.float32, use_safetensors=True,
                    output_loading_info=True, **safe,
                )  # fmt: skip
        except (MemoryError, ImportError, Refused):
            raise
        except Exception as error:  # transformers passes on its parsers' errors, of no common kind
            raise Refused(
                f"reward = {str(source)!r} does not load ({type(error).__name__}: {first_line(error)}); pass a "
                f"folder as save_pretrained writes it: config, tokenizer and safetensors, without code of its own"
            ) from error
        if lacking := sorted(info["missing_keys"]):
            raise ValueError(
                f"reward = {str(source)!r} lacks weights of {type(model).__name__}: {', '.join(lacking[:5])}; "
                f"train it first"
            )
        return cls(model.to(device), tokenizer, label, found.source)

    def __reduce__(self) -> tuple[Any, ...]:
        if self.source is None:
            raise TypeError(f"classifier {self.__name__} cannot be pickled; load it with SequenceClassifier.load")
        return SequenceClassifier.load, (self.source, str(self.model.device), self.label)

    def __call__(self, prompts: list[Any], completions: list[Any]) -> list[float]:
        """Score prompts with their completions, texts or messages."""
        texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
        talk = not all(isinstance(text, str) for text in texts)
        rendered: Any = self.tokenizer.apply_chat_template(texts, tokenize=False) if talk else texts
        logits = logits_of(self.model, self.tokenizer, rendered, add_special_tokens=not talk)
        others = [place for place in range(logits.shape[1]) if place != self.place]
        score = logits[:, self.place]
        if others and self.model.config.problem_type != "multi_label_classification":
            score = score - logits[:, others].logsumexp(1)
        return score.tolist()

    def describe(self) -> dict[str, Any]:
        """Return plain facts for banners and result files."""
        return {"parameters": self.model.num_parameters(), "label": self.label}


class Refused(ValueError):
    """A model that is no reward as it stands."""


def check_classifier(config: Any, source: str, label: str | None) -> None:
    """Raise Refused unless a configuration is that of a sequence classifier with this label."""
    kinds = config.architectures or ["a model of unknown class"]
    if not any("ForSequenceClassification" in kind for kind in kinds):
        raise Refused(
            f"reward = {source!r} is {kinds[0]}, no sequence classifier; pass one, or a function module:function"
        )
    place_of(label, config, source)


def place_of(label: str | None, config: Any, name: str) -> int:
    """Return the output of a label; without one, of the only label."""
    names = [config.id2label[place] for place in sorted(config.id2label)]
    if label is None and len(names) == 1:
        return 0
    if label not in names:
        raise Refused(
            f"classifier {name} has {len(names)} labels ({', '.join(map(str, names[:10]))}), got label = {label!r}; "
            f"say which one is the reward: SequenceClassifier.load({name!r}, label={names[-1]!r})"
        )
    return names.index(label)


@torch.no_grad()
def logits_of(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    texts: list[str],
    *,
    batch_size: int = 0,
    **settings: Any,
) -> torch.Tensor:
    """Return the logits of texts in their order, fp32 [texts, labels] on the CPU; a batch has texts of similar length.

    Args:
        model: a sequence classifier.
        tokenizer: its tokenizer, with a pad token.
        texts: whole texts.
        batch_size: 64 on a CPU and 512 elsewhere by default.
        settings: keywords of the tokenizer.

    Raises:
        ValueError: a text is longer than the model can read.
    """
    batch_size = batch_size or BATCH.get(model.device.type, LARGE_BATCH)
    rows = tokenizer(texts, **settings)["input_ids"] if texts else []
    limit = min(context_length(model), tokenizer.model_max_length)
    if rows and max(map(len, rows)) > limit:
        raise ValueError(
            f"a text has {max(map(len, rows))} tokens, and {type(model).__name__} reads {limit}; "
            f"shorten the prompts or max_new_tokens"
        )
    order = sorted(range(len(rows)), key=lambda index: len(rows[index]))
    logits = torch.empty(len(rows), len(model.config.id2label or ()))
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        padded = tokenizer.pad({"input_ids": [rows[i] for i in chunk]}, return_tensors="pt", padding_side="right")
        logits[chunk] = model(**padded.to(model.device)).logits.float().cpu()
    return logits
