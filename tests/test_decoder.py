"""The layout made for decoding gives what the model's own forward gives."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from scipy.stats import chi2_contingency

from warp_nb.fast import decoder as module
from warp_nb.fast.decoder import CachedForward, LlamaDecoder, decoder
from warp_nb.fast.devices import arithmetic
from warp_nb.fast.rollout import encode_prompts, sample

PROMPTS = ["the", "the film was", "it was the best movie we saw", "story of it"]


def logits(forward: Any, steps: int = 4) -> torch.Tensor:
    """Of a prefill and `steps` decode steps on given tokens, left padding among them, [steps + 1, B, V]."""
    ids, mask = encode_prompts(tiny.tokenizer(), PROMPTS, 20)
    positions, found = (mask.cumsum(1) - 1).clamp_min(0), []
    for step in range(steps + 1):
        found.append(forward(ids, mask, positions))
        ids = torch.arange(len(PROMPTS))[:, None] + step
        mask, positions = torch.cat([mask, torch.ones_like(ids)], 1), positions[:, -1:] + 1
    return torch.stack(found)


def llama() -> Any:
    return tiny.llama(len(tiny.tokenizer()))


@pytest.fixture(params=[True, False], ids=["packed", "unpacked"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if not request.param:
        monkeypatch.setattr(module, "_can_pack", lambda dtype: False)


@pytest.mark.usefixtures("packing")
def test_the_layout_gives_the_models_own_logits() -> None:
    policy = llama()
    with torch.no_grad():
        fast, plain = logits(LlamaDecoder(policy, 4, 20)), logits(CachedForward(policy))
    assert plain.std() > 0.5 and torch.allclose(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("packing")
def test_in_bf16_it_is_as_exact_as_the_models_own_forward() -> None:
    errors = []
    for seed in range(8):
        policy = tiny.llama(len(tiny.tokenizer()), seed=seed)
        with torch.no_grad():
            exact = logits(CachedForward(policy))
            with arithmetic("bfloat16", torch.device("cpu")):
                rounded = [logits(LlamaDecoder(policy, 4, 20)), logits(CachedForward(policy))]
        assert {found.dtype for found in rounded} == {torch.bfloat16}
        errors.append([(found.float() - exact).square().mean() for found in rounded])
    fast, plain = torch.tensor(errors).mean(0).sqrt().tolist()
    assert 0 < fast < 1.2 * plain < 0.05


def test_weights_are_read_when_the_decoder_is_made() -> None:
    policy = llama()
    before = logits(LlamaDecoder(policy, 4, 20))
    with torch.no_grad():
        policy.model.layers[1].mlp.up_proj.weight.mul_(2)
    assert not torch.allclose(before, logits(LlamaDecoder(policy, 4, 20)))


def test_both_ways_draw_from_one_distribution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent seeds, thousands of completions of two tokens: one table of counts."""
    words = tiny.tokenizer(["a", "b", "c"])
    policy, counts = tiny.llama(4, spread=0.6), []
    for seed, fits in enumerate((True, False, True)):
        monkeypatch.setattr(LlamaDecoder, "fits", staticmethod(lambda policy, fits=fits: fits))
        weight = policy if seed < 2 else tiny.llama(4, seed=1, spread=0.6)
        found = sample(weight, words, ["a b"] * 6000, 2, 1.0, torch.Generator().manual_seed(seed))
        pairs = found.ids[:, 2] * 5 + torch.where(found.completion_mask[:, 1], found.ids[:, 3], 4)
        counts.append(torch.bincount(pairs, minlength=20))
    seen = torch.stack(counts).sum(0) > 20
    fast, plain, other = (count[seen].tolist() for count in counts)
    assert chi2_contingency([fast, plain]).pvalue > 0.01
    assert chi2_contingency([plain, other]).pvalue < 1e-6  # the test has the power to tell


def test_only_a_plain_llama_is_taken() -> None:
    words = tiny.tokenizer()
    assert type(decoder(llama(), 2, 8)) is LlamaDecoder
    assert type(decoder(tiny.gpt2(len(words)), 2, 8)) is CachedForward
    biased, adapted, wider, gelu = llama(), llama(), llama().double(), llama()
    biased.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.ones(16))
    adapted.model.layers[0].mlp = torch.nn.Sequential(adapted.model.layers[0].mlp)
    gelu.config.hidden_act = "gelu"
    for policy in (biased, adapted, wider, gelu):
        assert type(decoder(policy, 2, 8)) is CachedForward
