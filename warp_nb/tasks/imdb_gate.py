"""The gate of a reward for film reviews, held-out IMDb excerpts and fixed sentences; how reward and judge agree."""

from __future__ import annotations

from itertools import chain
from typing import Any, TypeGuard

import numpy as np
import torch

from warp_nb.tasks import classifier, gate, imdb, reward_interface, reward_model
from warp_nb.tasks.gate import RewardGate, Text, measure_gate
from warp_nb.tasks.identity import policy_identity, tokenizer_identity, versions
from warp_nb.tasks.remembered import code_of, remembered
from warp_nb.tasks.reward_interface import Reward
from warp_nb.tasks.reward_model import SCORED_WORDS, RewardModel, held_out_excerpts

PROMPT_WORDS = 9
"""Words in a prompt of 12 tokens."""
PAIRS = 256
SCORING_ATTRIBUTES = {"model", "tokenizer", "offset", "folder"}
"""Attributes of a reward model; one with others may score in another way."""
PRAISE_AND_BLAME = [
    ("This movie was", " wonderful and I loved it.", " terrible and I hated it."),
    ("The acting is", " superb from start to finish.", " awful from start to finish."),
    ("I watched this film", " with great pleasure.", " and wanted my money back."),
    ("The story", " is touching and beautifully told.", " is boring and badly told."),
    ("The director", " made a masterpiece.", " made a complete mess."),
    ("What a", " brilliant, funny and clever film!", " stupid, dull and pointless film!"),
    ("The characters are", " deep, warm and believable.", " flat, annoying and unbelievable."),
    ("This is one of the", " best films I have ever seen.", " worst films I have ever seen."),
    ("The ending was", " a perfect and moving surprise.", " a stupid and lazy disappointment."),
    ("I would", " highly recommend it to everyone.", " not recommend it to anyone."),
    ("The script is", " sharp, witty and intelligent.", " lame, clumsy and idiotic."),
    ("My family and I", " enjoyed every minute of it.", " regretted every minute of it."),
]
SENTENCES: list[tuple[Text, Text]] = [((prompt, good), (prompt, bad)) for prompt, good, bad in PRAISE_AND_BLAME]


def imdb_pairs(n: int = PAIRS, seed: int = 0, source: imdb.Source = "embedded") -> list[tuple[Text, Text]]:
    """Return up to `n` pairs of a positive and a negative text, each as (prompt, completion), as long as scored texts.

    They are the first words of reviews of the source's part `reward_test`; a review is in one pair at most.
    """
    good, bad = held_out_excerpts(imdb.reviews("reward_test", source), SCORED_WORDS, seed=seed)
    generator = np.random.default_rng(seed)
    chosen, rejected = ([side[i] for i in generator.permutation(len(side))[:n]] for side in (good, bad))
    return [(_split(a), _split(b)) for a, b in zip(chosen, rejected, strict=False)]


def _split(text: str) -> Text:
    """Split a text where a policy's prompt would end; the completion keeps its leading space."""
    words = text.split()
    return " ".join(words[:PROMPT_WORDS]), " " + " ".join(words[PROMPT_WORDS:])


def imdb_gate(reward: Reward, source: imdb.Source = "embedded") -> RewardGate:
    """Measure any reward function on the held-out reviews of a source and on the fixed sentences.

    A reward model that was loaded from a folder is measured once for all that its scores depend on to the bit.
    """

    def measured() -> dict[str, Any]:
        return vars(measure_gate(reward, imdb_pairs(source=source), SENTENCES))

    if not is_stored(reward):
        return RewardGate(**measured())
    facts = {"reward": scores_facts(reward), "source": source_facts(source)}
    return RewardGate(**remembered("gates", facts, measured))


def judge_correlation(reward: RewardModel, judge: RewardModel, source: imdb.Source = "embedded") -> float:
    """Return Pearson's correlation of the scores of two reward models, over one excerpt of each held-out review.

    The reviews are the source's part `reward_test`, the excerpts as long as scored texts. The correlation is high by
    the label alone: both score a positive review above a negative one.
    """

    def measured() -> float:
        texts = list(chain(*held_out_excerpts(imdb.reviews("reward_test", source), SCORED_WORDS)))
        return float(np.corrcoef(reward.score(texts), judge.score(texts))[0, 1])

    if not (is_stored(reward) and is_stored(judge)):
        return measured()
    facts = {"scores": [scores_facts(reward), scores_facts(judge)], "source": source_facts(source)}
    return float(remembered("correlations", facts, measured))


def is_stored(reward: Reward) -> TypeGuard[RewardModel]:
    """Whether a reward is a reward model from a folder, whose scores follow from `scores_facts`."""
    return (
        type(reward) is RewardModel
        and set(vars(reward)) == SCORING_ATTRIBUTES
        and bool(reward.folder)
        and not reward.model.training
    )


def source_facts(source: imdb.Source) -> dict[str, Any]:
    """Return all that the texts of a measurement and the code that scores them depend on."""
    return {
        "reviews": imdb.part_facts("reward_test", source),
        "numpy": np.__version__,
        "code": code_of(__name__, classifier.__name__, gate.__name__, reward_interface.__name__, reward_model.__name__),
    }


def scores_facts(reward: RewardModel) -> dict[str, Any]:
    """Return all that the scores of a reward model depend on to the bit, except the code that computes them."""
    device = reward.model.device
    processor = torch.cuda.get_device_name(device) if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    return {
        "model": policy_identity(reward.model) | versions(),
        "tokenizer": tokenizer_identity(reward.tokenizer),
        "offset": reward.offset,
        "attention": reward.model.config._attn_implementation,
        "machine": [torch.__version__, str(device), processor, torch.get_num_threads()],
        "precision": torch.get_float32_matmul_precision(),
    }
