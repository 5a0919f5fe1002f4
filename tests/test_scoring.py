"""Log-probabilities and KL against the model's own loss, torch, brute force and large samples."""

from __future__ import annotations

import math
from typing import Any

import pytest
import tiny
import torch
from test_rollout import FOUR, MODELS, alone, draw

from warp_nb.fast import scoring
from warp_nb.fast.rollout import Rollout
from warp_nb.fast.scoring import completion_logits, token_kl, token_log_probs

# log-probabilities


@pytest.mark.parametrize("kind", MODELS)
def test_log_probs_against_the_models_own_loss(kind: str) -> None:
    words = tiny.tokenizer()
    policy = MODELS[kind](len(words))
    found = draw(policy, words, ["the film", "the film was", "we saw it with"], 8)
    total = token_log_probs(completion_logits(policy, found), found).sum().item()
    labels = found.ids.clone()
    labels[:, : -found.width] = -100
    labels[:, -found.width :][~found.completion_mask] = -100
    positions = (found.attention_mask.cumsum(1) - 1).clamp_min(0)
    with torch.no_grad():
        out = policy(found.ids, attention_mask=found.attention_mask, position_ids=positions, labels=labels)
    assert total == pytest.approx(-out.loss.item() * int(found.completion_mask.sum()), rel=1e-5)


def test_what_stands_in_the_padding_changes_nothing() -> None:
    words = tiny.tokenizer()
    policy = tiny.gpt2(len(words))
    found = draw(policy, words, ["the", "the film was the best"], 6)
    ids = torch.where(found.attention_mask.bool(), found.ids, 7)
    other = Rollout(
        ids, found.attention_mask, found.completion_mask, found.sampled_log_probs, found.prompts, found.completions
    )
    first, second = (token_log_probs(completion_logits(policy, r), r) for r in (found, other))
    assert torch.allclose(first, second, atol=1e-6)


def test_float64_policies_are_scored_in_float64() -> None:
    policy = tiny.gpt2(4).double()
    assert completion_logits(policy, tiny.rollout([0, 1], [[2]])).dtype == torch.float64


# KL


def exact_kl(p: Any, q: Any, prompt: list[int], temperature: float) -> float:
    """KL over every completion of up to three of four tokens, by the definition."""
    total = 0.0
    for row in tiny.sequences(4, 3, end=3):
        log_p, log_q = (sum(alone(model, prompt, row, temperature)) for model in (p, q))
        total += math.exp(log_p) * (log_p - log_q)
    return total


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_sequence_kl_against_brute_force_over_all_completions(temperature: float) -> None:
    p, q = tiny.gpt2(4, seed=1), tiny.gpt2(4, seed=2)
    rows = list(tiny.sequences(4, 3, end=3))
    every = tiny.rollout([0, 1], rows)
    with torch.no_grad():
        logits_p, logits_q = (completion_logits(model, every) for model in (p, q))
    chance = token_log_probs(logits_p, every, temperature).sum(1).exp()
    estimate = token_kl(logits_p, logits_q, every, temperature).sum(1)
    wanted = exact_kl(p, q, [0, 1], temperature)
    assert chance.sum().item() == pytest.approx(1, abs=1e-5)
    assert (chance * estimate).sum().item() == pytest.approx(wanted, rel=1e-5)
    assert wanted > 0.05


def test_sequence_kl_against_a_large_sample() -> None:
    words, p, q = tiny.tokenizer(FOUR), tiny.gpt2(4, seed=1), tiny.gpt2(4, seed=2)
    found = draw(p, words, ["a b"] * 8000, 3)
    with torch.no_grad():
        logits_p, logits_q = (completion_logits(model, found) for model in (p, q))
    rao = token_kl(logits_p, logits_q, found).sum(1).double()
    plain = (token_log_probs(logits_p, found) - token_log_probs(logits_q, found)).sum(1).double()
    wanted = exact_kl(p, q, [0, 1], 1.0)
    for values in (rao, plain):
        error = values.std().item() / math.sqrt(len(values))
        assert abs(values.mean().item() - wanted) < 3 * error < 0.1 * wanted
    assert rao.var() < plain.var()


def test_token_kl_against_torch_and_between_equal_models() -> None:
    p, q = tiny.gpt2(4, seed=1), tiny.gpt2(4, seed=2)
    found = tiny.rollout([0], [[1, 2], [3]])
    with torch.no_grad():
        logits_p, logits_q = (completion_logits(model, found) for model in (p, q))
    mine = token_kl(logits_p, logits_q, found)
    theirs = torch.nn.functional.kl_div(
        logits_q.log_softmax(2), logits_p.log_softmax(2), reduction="none", log_target=True
    ).sum(2)
    assert torch.allclose(mine[found.completion_mask], theirs[found.completion_mask], atol=1e-6)
    assert mine[1, 1] == 0 and theirs[1, 1] > 0
    assert token_kl(logits_p, logits_p, found).abs().max() < 1e-6


# slices


@pytest.mark.parametrize("temperature", [0.7, 1.0])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("size", [1, 24, 1 << 20])
def test_slices_give_what_the_whole_gives(
    dtype: torch.dtype, temperature: float, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Log-probabilities, their gradient and the KL against plain torch on the whole tensor, masked tokens too."""
    monkeypatch.setitem(scoring.SLICE, "cpu", size)
    generator = torch.Generator().manual_seed(0)
    given = tiny.rollout([0], [[1, 2, 3], [3], [4, 0]])
    p, q = (torch.randn(3, 3, 5, generator=generator, dtype=torch.float64).mul(3).to(dtype) for _ in range(2))
    weight = torch.randn(3, 3, generator=generator, dtype=torch.float64)
    mine = p.clone().requires_grad_()
    found = token_log_probs(mine, given, temperature)
    (found * weight).sum().backward()
    theirs = p.clone().requires_grad_()
    table = (theirs.double() / temperature).log_softmax(2)
    wanted = table.gather(2, given.ids[:, 1:, None])[:, :, 0].masked_fill(~given.completion_mask, 0)
    (wanted * weight).sum().backward()
    kl = (table.exp() * (table - (q.double() / temperature).log_softmax(2))).sum(2)
    close = {"atol": 1e-5, "rtol": 1e-5} if dtype != torch.float64 else {"atol": 1e-12, "rtol": 1e-12}
    rounding = {"atol": 2e-2, "rtol": 2e-2} if dtype == torch.bfloat16 else close
    assert torch.allclose(found.double(), wanted, **close)
    assert mine.grad is not None and mine.grad.dtype == dtype
    assert torch.allclose(mine.grad.double(), theirs.grad.double(), **rounding)
    assert mine.grad[~given.completion_mask].abs().sum() == 0 < mine.grad.abs().sum()
    assert torch.allclose(
        token_kl(p, q, given, temperature).double(), kl.detach().masked_fill(~given.completion_mask, 0), **close
    )


def test_the_gradient_of_log_probs_by_finite_differences() -> None:
    given = tiny.rollout([0], [[1, 2], [3]])
    logits = torch.randn(2, 2, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1)).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, given, 0.8), [logits])
