"""Layers with factors against PEFT's own, fast sampling against plain sampling, the anchor against its formula."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import tiny
import torch
from adapted import TARGETS, V, logits, lora_task, noise_, peft_policy
from brute import drawn

from warp_nb.algorithm import merge, objective
from warp_nb.algorithm.merge import load_, weights_of
from warp_nb.fast import averages, decoding
from warp_nb.fast.decoders import decoder_of
from warp_nb.fast.layout import Layout
from warp_nb.fast.low_rank import LowRank, Shared, follow_, low_rank_pair, plain_parameters

PROMPTS = ["the", "the film was", "it was the best movie we saw", "story of it"]


def pair(kind: str, **settings: Any) -> tuple[Any, Any, Any]:
    """theta_sft, and a policy and an anchor at a theta_init that has moved away from it in the adapted weights."""
    task = lora_task(kind, **settings)
    assert task.lora is not None
    init = weights_of(task.policy)
    noise_((init[f"{name}.weight"] for name in task.lora.factors), seed=7, std=0.1)
    return task.policy, *low_rank_pair(task.policy, init, task.lora.factors)


def fill_(policy: Any, seed: int = 3) -> Any:
    """Put noise into both factors of every layer, as training would."""
    layers = [module for module in policy.modules() if isinstance(module, LowRank)]
    noise_([factor for layer in layers for factor in (layer.A, layer.B)], seed)
    return policy


@pytest.mark.parametrize("kind", TARGETS)
def test_a_layer_computes_as_pefts_and_as_its_sum(kind: str) -> None:
    sft, policy, anchor = pair(kind)
    assert logits(policy).equal(logits(anchor))  # B is zero: a run begins at theta_init itself
    assert not logits(policy).allclose(logits(sft), atol=1e-3)
    start = logits(fill_(policy))
    peer = peft_policy(kind)
    layers = {name: module for name, module in policy.named_modules() if isinstance(module, LowRank)}
    with torch.no_grad():
        for name, layer in layers.items():
            theirs = peer.get_base_model().get_submodule(name)
            theirs.base_layer.weight.copy_(layer.base.weight)
            theirs.lora_A["default"].weight.copy_(layer.A)
            theirs.lora_B["default"].weight.copy_(layer.B)
    assert start.allclose(logits(peer), atol=1e-5)
    load_(anchor, dict(plain_parameters(policy)))
    assert start.allclose(logits(anchor), atol=1e-5)
    assert not start.allclose(logits(pair(kind)[1]), atol=1e-2)


def test_a_plain_model_is_seen_as_it_is() -> None:
    model = tiny.gpt2(V)
    assert [(n, id(v)) for n, v in plain_parameters(model)] == [(n, id(v)) for n, v in model.named_parameters()]


@pytest.mark.parametrize("kind", TARGETS)
def test_what_does_not_move_is_in_memory_once(kind: str) -> None:
    sft, policy, anchor = pair(kind)
    names = {f"{name}.weight" for name, module in policy.named_modules() if isinstance(module, LowRank)}
    trained = {name: value for name, value in policy.named_parameters() if value.requires_grad}
    assert {name.rpartition(".")[2] for name in trained} == {"A", "B"} and len(trained) == 2 * len(names)
    policies, anchors = copy.deepcopy(policy), copy.deepcopy(anchor)
    places = [dict(plain_parameters(one)) for one in (sft, anchor, anchors)]
    for name, value in sft.named_parameters():
        shared = {side[name].data_ptr() for side in places}
        assert len(shared) == (3 if name in names else 1), name
        assert name in names or value.data_ptr() in shared
    for (name, mine), (_, other) in zip(policy.named_parameters(), policies.named_parameters(), strict=True):
        assert (mine is other) == (name not in trained) == isinstance(mine, Shared)
    own = low_rank_pair(sft, weights_of(sft), {})[0]  # in the first iteration nothing has moved
    assert all(a.data_ptr() == b.data_ptr() for a, b in zip(own.parameters(), sft.parameters(), strict=True))


@pytest.mark.parametrize("kind", TARGETS)
def test_fast_sampling_is_plain_sampling_also_after_the_factors_moved(kind: str) -> None:
    """The layout is measured once, while B is zero; then the factors move, twice."""
    words = tiny.tokenizer()
    _, policy, _ = pair(kind)
    firsts = []
    for seed in (None, 3, 4):
        if seed:
            fill_(policy, seed)
        assert isinstance(decoder_of(policy, 4, 16), Layout)
        fast, plain = (
            drawn(policy, words, PROMPTS, 8, sample=sample) for sample in (decoding.sample, objective.sample)
        )
        assert fast.ids.equal(plain.ids)
        assert fast.sampled_log_probs.allclose(plain.sampled_log_probs, atol=1e-5)
        firsts.append(plain.sampled_log_probs[:, 0])
    assert not firsts[0].allclose(firsts[1], atol=1e-2) and not firsts[1].allclose(firsts[2], atol=1e-2)


def test_factors_below_fp32_are_decoded_by_the_models_own_forward() -> None:
    _, policy, _ = pair("llama")
    assert Layout.fits(policy)
    with torch.autocast("cpu", torch.bfloat16):
        assert not Layout.fits(policy)
        assert not isinstance(decoder_of(policy, 2, 8), Layout)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_peft_model_is_not_laid_out(kind: str) -> None:
    """With a fresh adapter, whose product is zero, a layout of its base would pass the trial."""
    assert Layout.fits(peft_policy(kind).merge_and_unload())
    assert not Layout.fits(peft_policy(kind).get_base_model())
    assert not Layout.fits(peft_policy(kind))


@pytest.mark.parametrize("update", [merge.ema_update_, averages.ema_update_])
@pytest.mark.parametrize("kind", TARGETS)
def test_the_anchor_is_the_average_of_products(kind: str, update: Any) -> None:
    sft, *templates = pair(kind)
    policy, anchor = copy.deepcopy(templates)  # as `train_run` does
    before = weights_of(sft)
    layers = {name: module for name, module in policy.named_modules() if isinstance(module, LowRank)}
    expected = {name: value.double() for name, value in anchor.named_parameters()}
    factors = {name: [layer.A.detach().clone(), layer.B.detach().clone()] for name, layer in layers.items()}
    for seed in (1, 2, 3):
        fill_(policy, seed)
        follow_(anchor, policy, 0.25, ema_update_=update)
        for name, layer in layers.items():
            product = layer.scale * (layer.B.double() @ layer.A.double()).detach()
            point = layer.base.weight.double() + (product.t() if kind == "gpt2" else product)
            expected[f"{name}.weight"] = 0.75 * expected[f"{name}.weight"] + 0.25 * point
            factors[name] = [
                0.75 * old + 0.25 * new.detach() for old, new in zip(factors[name], (layer.A, layer.B), strict=True)
            ]
    for name, value in anchor.named_parameters():
        assert value.double().allclose(expected[name], atol=1e-6), name
    for name, layer in layers.items():
        a, b = factors[name]
        product = layer.scale * (b @ a)
        found = layer.base.weight + (product.t() if kind == "gpt2" else product)
        assert not found.double().allclose(expected[f"{name}.weight"], atol=1e-2)
    assert all(value.equal(before[name]) for name, value in sft.named_parameters())
