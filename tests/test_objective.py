"""Sampling, log-probabilities, KL and baselines against the model's own loss, brute force, loops and large samples."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import tiny
import torch
from brute import FOUR, MODELS, alone, drawn, encoded, exact_kl, scored
from scipy.stats import chisquare

from warp_nb.algorithm.objective import (
    BASELINES,
    Sampling,
    completion_logits,
    draw,
    regularised_reward,
    reinforce_loss,
    sample,
    token_kl,
    token_log_probs,
)

# sampling


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.5])
def test_first_tokens_follow_the_softmax(temperature: float) -> None:
    """The vocabulary is above 50 words and dropout is 0.1: top-k = 50 or train mode would not pass."""
    words = tiny.tokenizer([f"w{i}" for i in range(80)])
    policy = tiny.gpt2(len(words), spread=0.15)
    found = drawn(policy, words, ["w0 w1"] * 8000, 1, temperature=temperature)
    counts = np.bincount(found.ids[:, -1], minlength=len(words))
    with torch.no_grad():
        logits = policy(torch.tensor([[0, 1]])).logits[0, -1].double()
    expected = (logits / temperature).softmax(0).numpy() * 8000
    assert expected.min() > 5
    assert chisquare(counts, expected).pvalue > 0.01
    flat = np.full(len(words), 8000 / len(words))
    assert chisquare(counts, flat).pvalue < 1e-6  # the test has the power to tell


def test_whole_completions_follow_their_probabilities() -> None:
    policy = tiny.gpt2(4, spread=0.5)
    found = drawn(policy, tiny.tokenizer(FOUR), ["a b"] * 8000, 3)
    rows = [tuple(row[keep].tolist()) for row, keep in zip(found.tokens, found.completion_mask, strict=True)]
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


def test_a_token_without_probability_is_never_drawn() -> None:
    log_probs = torch.tensor([0.25, 0.0, 0.75, 0.0]).log().expand(20_000, 4)
    counts = torch.bincount(draw(log_probs, torch.Generator().manual_seed(0)), minlength=4)
    assert counts[[1, 3]].sum() == 0 and abs(counts[0].item() - 5_000) < 4 * math.sqrt(20_000 * 0.25 * 0.75)


def test_equal_generators_give_equal_rollouts_others_do_not_and_torchs_own_is_left_alone() -> None:
    words, before = tiny.tokenizer(), torch.get_rng_state()
    policy, prompts = tiny.gpt2(len(words)), tiny.prompts(8, seed=1)
    first, again, other = (drawn(policy, words, prompts, 6, seed=seed).ids for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("kind", MODELS)
def test_a_padded_batch_gives_what_each_prompt_gives_alone(kind: str) -> None:
    words = tiny.tokenizer()
    policy = MODELS[kind](len(words))
    prompts = ["the", "the film was", "it was the best movie we saw", "story of it"]
    found = drawn(policy, words, prompts, 8, temperature=0.8)
    chances = token_log_probs(completion_logits(policy, found), *scored(found))
    for index, prompt in enumerate(prompts):
        keep = found.completion_mask[index]
        completion = found.tokens[index][keep].tolist()
        wanted = torch.tensor(alone(policy, words(prompt)["input_ids"], completion, 0.8), dtype=torch.float64)
        assert torch.allclose(found.sampled_log_probs[index][keep].double(), wanted, atol=1e-5)
        assert torch.allclose(chances[index][keep].double(), wanted, atol=1e-5)
        assert chances[index][~keep].abs().sum() == found.sampled_log_probs[index][~keep].abs().sum() == 0


def test_a_completion_stops_at_the_end_token_which_is_scored() -> None:
    policy = tiny.gpt2(4, spread=0.1)
    found = drawn(policy, tiny.tokenizer(FOUR), ["a b"] * 64, 10)
    width, lengths = found.tokens.shape[1], set()
    for ids, keep, attention in zip(found.tokens, found.completion_mask, found.attention_mask[:, -width:], strict=True):
        row = ids.tolist()
        end = row.index(3) + 1 if 3 in row else width
        assert keep.tolist() == [i < end for i in range(width)] == attention.bool().tolist()
        lengths.add(int(keep.sum()))
    assert len(lengths) > 4 and 1 in lengths
    chances = token_log_probs(completion_logits(policy, found), *scored(found))
    ended = (found.tokens == 3) & found.completion_mask
    assert (chances[ended] < -0.5).all()


def test_sampling_stops_when_every_completion_has_ended() -> None:
    widths = [drawn(tiny.gpt2(4), tiny.tokenizer(FOUR), ["a"], 25, seed=seed).tokens.shape[1] for seed in range(3)]
    assert min(widths) < 25


def test_any_of_several_end_tokens_ends_a_completion_and_what_draws_is_an_argument() -> None:
    words, policy = tiny.tokenizer(FOUR), tiny.gpt2(4)
    queue = [torch.tensor(column) for column in ([0, 1, 2], [3, 0, 0], [3, 0, 1])]
    ids, mask = encoded(words, ["a b"] * 3, 5)
    found = sample(
        policy, ids, mask, Sampling(5, end_ids=(2, 1), pad_id=0),
        generator=torch.Generator(), draw=lambda log_probs, generator: queue.pop(0) if queue else torch.full((3,), 2),
    )  # fmt: skip
    assert found.tokens.tolist() == [[0, 3, 3, 2], [1, 0, 0, 0], [2, 0, 0, 0]]
    assert found.completion_mask.sum(1).tolist() == [4, 1, 1]


# log-probabilities


@pytest.mark.parametrize("kind", MODELS)
def test_log_probs_against_the_models_own_loss(kind: str) -> None:
    words = tiny.tokenizer()
    policy = MODELS[kind](len(words))
    found = drawn(policy, words, ["the film", "the film was", "we saw it with"], 8)
    total = token_log_probs(completion_logits(policy, found), *scored(found)).sum().item()
    labels = torch.full_like(found.ids, -100)
    labels[:, -found.tokens.shape[1] :] = found.tokens.masked_fill(~found.completion_mask, -100)
    positions = (found.attention_mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        out = policy(found.ids, attention_mask=found.attention_mask, position_ids=positions, labels=labels)
    assert total == pytest.approx(-out.loss.item() * int(found.completion_mask.sum()), rel=1e-5)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    words = tiny.tokenizer()
    policy = tiny.gpt2(len(words))
    found = drawn(policy, words, ["the", "the film was the best"], 6)
    other = replace(found, ids=torch.where(found.attention_mask.bool(), found.ids, 7))
    assert not torch.equal(found.ids, other.ids)
    first, second = (token_log_probs(completion_logits(policy, r), *scored(r)) for r in (found, other))
    assert torch.allclose(first, second, atol=1e-6)


def test_float64_policies_are_scored_in_float64() -> None:
    policy, given = tiny.gpt2(4).double(), tiny.rollout([0, 1], [[2]])
    assert token_log_probs(completion_logits(policy, given), *scored(given)).dtype == torch.float64


# KL


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sequence_kl_against_brute_force_over_all_completions(temperature: float) -> None:
    p, q = tiny.gpt2(4, seed=1), tiny.gpt2(4, seed=2)
    every = replace(tiny.rollout([0, 1], list(tiny.sequences(4, 3, end=3))), temperature=temperature)
    with torch.no_grad():
        logits_p, logits_q = (completion_logits(model, every) for model in (p, q))
    chance = token_log_probs(logits_p, *scored(every)).sum(1).exp()
    estimate = token_kl(logits_p, logits_q, *scored(every)[1:]).sum(1)
    wanted = exact_kl(p, q, [0, 1], temperature)
    assert chance.sum().item() == pytest.approx(1, abs=1e-5)
    assert (chance * estimate).sum().item() == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0.05


def test_sequence_kl_against_a_large_sample() -> None:
    p, q = tiny.gpt2(4, seed=1), tiny.gpt2(4, seed=2)
    found = drawn(p, tiny.tokenizer(FOUR), ["a b"] * 8000, 3)
    with torch.no_grad():
        logits_p, logits_q = (completion_logits(model, found) for model in (p, q))
    rao = token_kl(logits_p, logits_q, *scored(found)[1:]).sum(1).double()
    ratio = token_log_probs(logits_p, *scored(found)) - token_log_probs(logits_q, *scored(found))
    wanted = exact_kl(p, q, [0, 1], 1.0)
    for values in (rao, ratio.sum(1).double()):
        error = values.std().item() / math.sqrt(len(values))
        assert abs(values.mean().item() - wanted) < 3 * error < 0.1 * wanted
    assert rao.var() < ratio.sum(1).var()


def test_token_kl_against_torch_and_between_equal_models() -> None:
    p, q = tiny.gpt2(4, seed=1), tiny.gpt2(4, seed=2)
    found = tiny.rollout([0], [[1, 2], [3]])
    with torch.no_grad():
        logits_p, logits_q = (completion_logits(model, found) for model in (p, q))
    mine = token_kl(logits_p, logits_q, *scored(found)[1:])
    theirs = torch.nn.functional.kl_div(
        logits_q.log_softmax(2), logits_p.log_softmax(2), reduction="none", log_target=True
    ).sum(2)
    assert torch.allclose(mine[found.completion_mask], theirs[found.completion_mask], atol=1e-6)
    assert mine[1, 1] == 0 and theirs[1, 1] > 0
    assert token_kl(logits_p, logits_p, *scored(found)[1:]).abs().max() < 1e-6


# the objective, baselines, the loss


def test_r_beta_and_the_loss_by_hand() -> None:
    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, 0.0]], requires_grad=True)
    r_beta = regularised_reward(torch.tensor([1.0, 2.0]), log_probs, torch.tensor([[-2.0, -2.0], [-0.25, 0.0]]), 0.5)
    assert r_beta.tolist() == [1 - 0.5 * 1, 2 + 0.5 * 0.25] and not r_beta.requires_grad
    loss = reinforce_loss(r_beta, log_probs)
    assert loss.item() == pytest.approx(-(0.5 * -3 + 2.125 * -0.5) / 2)
    loss.backward()
    assert log_probs.grad.tolist() == [[-0.25, -0.25], [-1.0625, -1.0625]]


def by_loops(kind: str, objective: list[float], size: int) -> list[float]:
    """A baseline from its words: what is averaged for completion i."""
    everyone, found = range(len(objective)), []
    for i in everyone:
        over = {
            "none": [],
            "mean": list(everyone),
            "batch_loo": [j for j in everyone if j != i],
            "rloo": [j for j in everyone if j // size == i // size and j != i],
        }[kind]
        found.append(sum(objective[j] for j in over) / len(over) if over else 0.0)
    return found


@pytest.mark.parametrize("size", [2, 3, 6])
@pytest.mark.parametrize("kind", BASELINES)
def test_every_baseline_against_loops(kind: str, size: int) -> None:
    objective = torch.tensor([1.0, 2.0, 6.0, -3.0, 0.5, 8.0], dtype=torch.float64)
    found = BASELINES[kind](objective, size)
    assert found.shape == objective.shape
    assert found.tolist() == pytest.approx(by_loops(kind, objective.tolist(), size))
