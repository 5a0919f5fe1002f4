"""Sampling, log-probabilities and KL against the model's own loss, brute force and large samples."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import tiny
import torch
from scipy.stats import chisquare

from warp_nb.fast.rollout import Rollout, encode_prompts, sample
from warp_nb.fast.scoring import completion_logits, token_log_probs

FOUR = ["a", "b", "c"]
MODELS = {"gpt2": tiny.gpt2, "llama": tiny.llama}


def draw(policy: Any, words: Any, prompts: list[str], count: int, temperature: float = 1.0, seed: int = 0) -> Rollout:
    return sample(policy, words, prompts, count, temperature, torch.Generator().manual_seed(seed))


def alone(policy: Any, prompt: list[int], completion: list[int], temperature: float = 1.0) -> list[float]:
    """Log-probabilities of a completion's tokens: one unpadded sequence, no masks, no positions."""
    with torch.no_grad():
        logits = policy(torch.tensor([prompt + completion])).logits[0].double() / temperature
    table = logits.log_softmax(-1)
    return [table[len(prompt) + i - 1, token].item() for i, token in enumerate(completion)]


# sampling


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_first_tokens_follow_the_softmax(temperature: float) -> None:
    """The vocabulary is above 50 words and dropout is 0.1: top-k = 50 or train mode would not pass."""
    words = tiny.tokenizer([f"w{i}" for i in range(80)])
    policy = tiny.gpt2(len(words), spread=0.15)
    found = draw(policy, words, ["w0 w1"] * 8000, 1, temperature)
    counts = np.bincount(found.ids[:, -1], minlength=len(words))
    with torch.no_grad():
        logits = policy(torch.tensor([[0, 1]])).logits[0, -1].double()
    expected = (logits / temperature).softmax(0).numpy() * 8000
    assert expected.min() > 5
    assert chisquare(counts, expected).pvalue > 0.01
    flat = np.full(len(words), 8000 / len(words))
    assert chisquare(counts, flat).pvalue < 1e-6  # the test has the power to tell


def test_whole_completions_follow_their_probabilities() -> None:
    words = tiny.tokenizer(FOUR)
    policy = tiny.gpt2(4, spread=0.5)
    found = draw(policy, words, ["a b"] * 8000, 3)
    rows = [tuple(row[keep].tolist()) for row, keep in zip(found.ids[:, 2:], found.completion_mask, strict=True)]
    counts = Counter(rows)
    every = list(tiny.sequences(4, 3, end=3))
    expected = [8000 * math.exp(sum(alone(policy, [0, 1], row))) for row in every]
    assert sum(expected) == pytest.approx(8000)
    assert set(counts) <= {tuple(row) for row in every}
    common = [(counts[tuple(row)], value) for row, value in zip(every, expected, strict=True) if value > 5]
    rare = [(counts[tuple(row)], value) for row, value in zip(every, expected, strict=True) if value <= 5]
    pooled = [*common, tuple(map(sum, zip(*rare, strict=True)))] if rare else common
    observed, wanted = np.array(pooled).T
    assert chisquare(observed, wanted * observed.sum() / wanted.sum()).pvalue > 0.01


def test_equal_generators_give_equal_rollouts_and_others_do_not() -> None:
    words = tiny.tokenizer()
    policy, prompts = tiny.gpt2(len(words)), tiny.prompts(8, seed=1)
    first, again, other = (draw(policy, words, prompts, 6, seed=seed) for seed in (1, 1, 2))
    assert torch.equal(first.ids, again.ids) and first.completions == again.completions
    assert first.completions != other.completions


def test_sampling_leaves_torchs_own_random_state_alone() -> None:
    words = tiny.tokenizer()
    before = torch.get_rng_state()
    draw(tiny.gpt2(len(words)), words, ["the film"], 4)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", MODELS)
def test_a_padded_batch_gives_what_each_prompt_gives_alone(kind: str) -> None:
    words = tiny.tokenizer()
    policy = MODELS[kind](len(words))
    prompts = ["the", "the film was", "it was the best movie we saw", "story of it"]
    found = draw(policy, words, prompts, 8, temperature=0.8)
    scored = token_log_probs(completion_logits(policy, found), found, 0.8)
    for index, prompt in enumerate(prompts):
        keep = found.completion_mask[index]
        completion = found.ids[index, -found.width :][keep].tolist()
        wanted = torch.tensor(alone(policy, words(prompt)["input_ids"], completion, 0.8))
        assert torch.allclose(found.sampled_log_probs[index][keep].double(), wanted.double(), atol=1e-5)
        assert torch.allclose(scored[index][keep].double(), wanted.double(), atol=1e-5)
        assert scored[index][~keep].abs().sum() == found.sampled_log_probs[index][~keep].abs().sum() == 0


def test_a_completion_stops_at_the_end_token_which_is_scored() -> None:
    words = tiny.tokenizer(FOUR)
    policy = tiny.gpt2(4, spread=0.1)
    found = draw(policy, words, ["a b"] * 64, 10)
    lengths = set()
    for ids, keep, attention, text in zip(
        found.ids[:, 2:], found.completion_mask, found.attention_mask[:, 2:], found.completions, strict=True
    ):
        row, kept = ids.tolist(), int(keep.sum())
        end = row.index(3) + 1 if 3 in row else found.width
        assert keep.tolist() == [i < end for i in range(found.width)] == attention.bool().tolist()
        assert text == " ".join(FOUR[token] for token in row[:end] if token != 3)
        lengths.add(kept)
    assert len(lengths) > 4 and 1 in lengths
    scored = token_log_probs(completion_logits(policy, found), found)
    ended = (found.ids[:, 2:] == 3) & found.completion_mask
    assert (scored[ended] < -0.5).all()


def test_sampling_stops_when_every_completion_has_ended() -> None:
    words = tiny.tokenizer(FOUR)
    assert any(draw(tiny.gpt2(4), words, ["a"], 25, seed=seed).width < 25 for seed in range(3))


@pytest.mark.parametrize("special", [{"end": False}, {"begin": True}, {"pad": True}, {"begin": True, "pad": True}])
def test_tokenizers_without_special_tokens_and_with_them(special: dict[str, bool]) -> None:
    words = tiny.tokenizer(**special)
    policy = tiny.gpt2(len(words))
    found = draw(policy, words, ["the film", "we"], 5)
    prompt = ([words.bos_token_id] if special.get("begin") else []) + words("the film")["input_ids"]
    width = found.ids.shape[1] - found.width
    assert found.ids[0, :width].tolist() == prompt
    assert found.attention_mask[1, :width].tolist() == [0] * (1) + [1] * (width - 1)
    scored = token_log_probs(completion_logits(policy, found), found)
    assert torch.allclose(scored, found.sampled_log_probs, atol=1e-5)
    if not special.get("end", True):
        assert found.completion_mask.all() and found.width == 5


def test_prompts_are_refused_by_name() -> None:
    words, begun = tiny.tokenizer(), tiny.tokenizer(begin=True)
    with pytest.raises(ValueError, match="prompts is empty"):
        encode_prompts(words, [], 8)
    with pytest.raises(ValueError, match="prompt '' has no tokens and the tokenizer no begin token"):
        encode_prompts(words, ["the", ""], 8)
    ids, mask = encode_prompts(begun, ["the", ""], 8)
    assert ids[1, -1] == begun.bos_token_id and mask.tolist() == [[1, 1], [0, 1]]
    with pytest.raises(ValueError, match=r"prompt of 30 tokens, at most 24 fit beside the completion: 'the the"):
        draw(tiny.gpt2(len(words)), words, ["the " * 30], 8)
    assert draw(tiny.gpt2(len(words)), words, ["the " * 24], 8).ids.shape[1] <= 32
