"""Decoders of fixed shape against the models' own forward, and which model is decoded how."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from brute import FOUR, drawn, encoded, scored
from scipy.stats import chi2_contingency
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    BloomConfig,
    BloomForCausalLM,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    MambaConfig,
    MambaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)
from transformers.masking_utils import sdpa_mask

from warp_nb.algorithm.objective import completion_logits, inputs
from warp_nb.fast import agreement, capture, decoding, layout
from warp_nb.fast.agreement import CachedForward, visibility
from warp_nb.fast.decoders import decoder_of
from warp_nb.fast.devices import arithmetic
from warp_nb.fast.forwards import FixedForward
from warp_nb.fast.layout import Layout
from warp_nb.fast.scoring import token_log_probs
from warp_nb.runs.training import PLAIN
from warp_nb.tasks.prepared import LOADERS

PROMPTS = ["the", "the film was", "it was the best movie we saw", "story of it"]
SLOTS = 20


def logits(forward: Any, steps: int = 4) -> torch.Tensor:
    """Of a prefill and `steps` decode steps on given tokens, left padding among them, [steps + 1, B, V]."""
    ids, mask = encoded(tiny.tokenizer(), PROMPTS, 12)
    found, start = [], 0
    if hasattr(forward, "refresh"):
        forward.refresh()
    for step in range(steps + 1):
        end = ids.shape[1]
        if isinstance(forward, CachedForward):
            found.append(forward(ids, mask))
        else:
            slots = torch.arange(start, end)
            seen = visibility(mask, start) if step % 2 else filled_up(visibility(mask, start))
            seen = seen.to(next(forward.policy.parameters()).dtype) if isinstance(forward, FixedForward) else seen
            found.append(forward(ids[:, start:], inputs(ids, mask)["position_ids"][:, start:], slots, seen))
        start = end
        ids = torch.cat([ids, torch.arange(len(PROMPTS))[:, None] + step], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.stack(found)


def filled_up(seen: torch.Tensor) -> torch.Tensor:
    """Let all slots be attended to, those without a token under a mask."""
    return torch.nn.functional.pad(seen, (0, SLOTS - seen.shape[3]), value=-torch.inf)


def llama(seed: int = 0) -> Any:
    return tiny.llama(len(tiny.tokenizer()), seed=seed)


def gpt2(seed: int = 0) -> Any:
    return tiny.gpt2(len(tiny.tokenizer()), seed=seed)


FAMILIES = pytest.mark.parametrize("family", [llama, gpt2])


@pytest.fixture(params=[True, False], ids=["packed", "unpacked"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With oneDNN's packed products, and as on a build of torch without them."""
    if not request.param:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@FAMILIES
@pytest.mark.usefixtures("packing")
def test_the_layout_gives_the_models_own_logits(family: Callable[..., Any]) -> None:
    policy = family()
    with torch.no_grad():
        fast, plain = logits(Layout(policy, 4, SLOTS)), logits(CachedForward(policy))
    assert plain.std() > 0.5 and torch.allclose(fast, plain, atol=1e-5, rtol=1e-5)


@FAMILIES
@pytest.mark.usefixtures("packing")
def test_in_bf16_the_layout_is_as_exact_as_the_models_own_forward(family: Callable[..., Any]) -> None:
    errors = []
    for seed in range(8):
        policy = family(seed)
        with torch.no_grad():
            exact = logits(CachedForward(policy))
            with arithmetic("bfloat16", torch.device("cpu")):
                rounded = [logits(Layout(policy, 4, SLOTS)), logits(CachedForward(policy))]
        assert {found.dtype for found in rounded} == {torch.bfloat16}
        errors.append([(found.float() - exact).square().mean() for found in rounded])
    fast, plain = torch.tensor(errors).mean(0).sqrt().tolist()
    assert 0 < fast < 1.2 * plain < 0.05


@pytest.mark.parametrize("count", [1, 5])
@pytest.mark.parametrize("shared", [1, 2, 6])
def test_grouped_queries_are_grouped_keys(shared: int, count: int) -> None:
    generator = torch.Generator().manual_seed(0)
    mask = torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]])
    query = torch.randn(2, count, 6, 4, generator=generator)
    keys, values = torch.randn(2, 2, shared, 7, 4, generator=generator)
    visible = visibility(mask, 7 - count)
    found = layout.grouped_queries(query, keys, values, visible.repeat(1, 1, 6 // shared, 1)).flatten(2, 3)
    torch.testing.assert_close(found, layout.grouped_keys(query, keys, values, visible))
    assert found.shape == query.shape and found[0].std() > 0.1


@FAMILIES
def test_weights_are_read_at_the_refresh(family: Callable[..., Any]) -> None:
    policy = family()
    decoder, names = Layout(policy, 4, SLOTS), [name for name, _ in policy.named_parameters()]
    before = logits(decoder)
    with torch.no_grad():
        for name in names:
            policy.get_parameter(name).mul_(1.25)
    after = logits(decoder)
    assert torch.equal(after, logits(Layout(policy, 4, SLOTS))) and not torch.allclose(before, after)


def small(config: type, model: type, **settings: Any) -> Any:
    """A model of another family, as wide as the tiny ones."""
    sizes = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": len(tiny.tokenizer())}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return model(config(**sizes | {"initializer_range": 0.3} | settings)).eval()


OTHERS: dict[str, Callable[[], Any]] = {
    "qwen2": lambda: small(Qwen2Config, Qwen2ForCausalLM, intermediate_size=24, num_key_value_heads=1),
    "neox": lambda: small(GPTNeoXConfig, GPTNeoXForCausalLM, intermediate_size=24),
    "gpt2 fp64": lambda: gpt2().double(),
    "llama fp64": lambda: llama().double(),
}


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_decode_by_their_own_forward_with_a_fixed_cache(family: str) -> None:
    policy = OTHERS[family]()
    decoder = decoder_of(policy, 4, SLOTS)
    assert type(decoder) is FixedForward
    with torch.no_grad():
        assert torch.allclose(logits(decoder), logits(CachedForward(policy)), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    "policy",
    [
        lambda: small(MambaConfig, MambaForCausalLM, state_size=4, num_attention_heads=None),
        lambda: small(BloomConfig, BloomForCausalLM, n_head=2),
    ],
    ids=["no cache of keys and values", "positions from the mask"],
)
def test_a_model_that_takes_no_fixed_cache_is_sampled_by_the_plain_loop(policy: Callable[[], Any]) -> None:
    words, model = tiny.tokenizer(), policy()
    assert decoder_of(model, 4, SLOTS) is None
    mine, plain = (
        drawn(model, words, ["the film", "it was"], 4, sample=way) for way in (decoding.sample, PLAIN.sample)
    )
    assert torch.equal(mine.ids, plain.ids)
    assert torch.allclose(mine.sampled_log_probs, plain.sampled_log_probs, atol=1e-5)


def test_a_window_of_attention_is_kept() -> None:
    """A whole mask would open it; the few tokens of a probe lie within it."""
    policy = small(MistralConfig, MistralForCausalLM, intermediate_size=24, num_key_value_heads=1, sliding_window=4)
    assert agreement.agrees(FixedForward, policy) and decoder_of(policy, 4, SLOTS) is None
    with torch.no_grad():
        opened, own = logits(FixedForward(policy, 4, SLOTS)), logits(CachedForward(policy))
    assert not torch.allclose(opened, own, atol=1e-2)
    mine, plain = (drawn(policy, tiny.tokenizer(), PROMPTS, 12, sample=way) for way in (decoding.sample, PLAIN.sample))
    assert torch.equal(mine.ids, plain.ids)
    assert torch.allclose(mine.sampled_log_probs, plain.sampled_log_probs, atol=1e-5)


def test_an_apart_decoder_holds_copies_of_linear_weights_only() -> None:
    """Below fp32 it computes the bits that autocast computes, and follows the policy at a refresh."""
    for policy in (llama(), gpt2()):
        with torch.no_grad(), arithmetic("bfloat16", torch.device("cpu")):
            apart = FixedForward(policy, 4, SLOTS, apart=True)
            before = logits(apart)
            assert torch.equal(before, logits(FixedForward(policy, 4, SLOTS)))
            assert {value.dtype for value in apart.policy.parameters()} == {torch.bfloat16, torch.float32}
        with torch.no_grad(), arithmetic("bfloat16", torch.device("cpu")):  # autocast keeps its own casts in a region
            policy.get_output_embeddings().weight.mul_(2)
            after = logits(apart)
            assert torch.equal(after, logits(FixedForward(policy, 4, SLOTS))) and not torch.equal(before, after)


@pytest.mark.slow
def test_the_layout_draws_from_the_models_distribution() -> None:
    """Independent seeds, thousands of completions of two tokens: one table of counts."""
    words, counts = tiny.tokenizer(FOUR), []
    for seed, (sample, other) in enumerate(((decoding.sample, 0), (PLAIN.sample, 0), (decoding.sample, 1))):
        policy = tiny.llama(4, seed=other, spread=0.6)
        found = drawn(policy, words, ["a b"] * 6000, 2, seed=seed, sample=sample)
        pairs = found.tokens[:, 0] * 5 + torch.where(found.completion_mask[:, 1], found.tokens[:, 1], 4)
        counts.append(torch.bincount(pairs, minlength=20))
    seen = torch.stack(counts).sum(0) > 20
    fast, plain, other_policy = (count[seen].tolist() for count in counts)
    assert chi2_contingency([fast, plain]).pvalue > 0.01
    assert chi2_contingency([plain, other_policy]).pvalue < 1e-6  # the test has the power to tell


def hooked(policy: Any) -> None:
    policy.model.layers[0].register_forward_hook(lambda module, given, out: out * 1.5)


def fed(policy: Any) -> None:
    policy.model.norm.register_forward_pre_hook(lambda module, given: (given[0] + 1,))


def replaced(policy: Any) -> None:
    policy.lm_head.forward = lambda hidden: torch.nn.functional.linear(hidden, policy.lm_head.weight).tanh()


def scaled(policy: Any) -> None:
    policy.model.layers[1].self_attn.scaling *= 2


def blunted(policy: Any) -> None:
    policy.model.norm.variance_epsilon = 0.05


def activated(policy: Any) -> None:
    policy.model.layers[0].mlp.act_fn = torch.nn.Tanh()


def parametrised(policy: Any) -> None:
    torch.nn.utils.parametrize.register_parametrization(policy.lm_head, "weight", torch.nn.Tanh())


def subclassed(policy: Any) -> None:
    class Twice(type(policy.model.layers[0].mlp)):  # type: ignore[misc]
        def forward(self, hidden: torch.Tensor) -> Any:
            return 2 * super().forward(hidden)

    policy.model.layers[0].mlp.__class__ = Twice


def attended(policy: Any) -> None:
    def sharp(module: Any, query: Any, key: Any, value: Any, mask: Any, scaling: float = 1.0, **rest: Any) -> Any:
        causal = mask is None and query.shape[2] > 1
        out = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, mask, 0.0, causal, scale=2 * scaling, enable_gqa=True
        )
        return out.transpose(1, 2).contiguous(), None

    AttentionInterface.register("sharp", sharp)
    AttentionMaskInterface.register("sharp", sdpa_mask)
    policy.set_attn_implementation("sharp")


CHANGES = (hooked, fed, replaced, scaled, blunted, activated, parametrised, subclassed, attended)


@pytest.mark.parametrize("change", CHANGES)
def test_a_llama_that_is_more_than_its_weights_is_sampled_by_its_own_forward(change: Callable[[Any], None]) -> None:
    words, policy = tiny.tokenizer(), llama()
    before = drawn(policy, words, PROMPTS, 6, sample=decoding.sample)
    change(policy)  # after the layout has been measured on this very model
    assert type(decoder_of(policy, 2, 8)) is FixedForward
    found = drawn(policy, words, PROMPTS, 6, sample=decoding.sample)
    with torch.no_grad():
        again = token_log_probs(completion_logits(policy, found), *scored(found))
    assert torch.allclose(again, found.sampled_log_probs, atol=1e-4)
    assert not torch.equal(before.sampled_log_probs, found.sampled_log_probs), "the change is one"


def test_a_hook_on_every_module_leads_to_the_models_own_forward() -> None:
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, given, out: None)
    try:
        assert type(decoder_of(llama(), 2, 8)) is FixedForward
    finally:
        handle.remove()
    assert type(decoder_of(llama(), 2, 8)) is Layout


def test_agreement_is_measured_once_per_structure(monkeypatch: pytest.MonkeyPatch) -> None:
    made: list[Any] = []
    monkeypatch.setattr(agreement, "_AGREED", {})
    monkeypatch.setattr(agreement, "CachedForward", lambda policy: made.append(policy) or CachedForward(policy))
    first, second, other = llama(0), llama(1), llama(0)
    other.model.norm.variance_epsilon = 1e-7
    for policy, count in ((first, 1), (first, 1), (second, 1), (other, 2)):
        assert type(decoder_of(policy, 2, 8)) is Layout
        assert len(made) == count


@pytest.mark.parametrize("task", ["small", pytest.param("smollm", marks=pytest.mark.slow)])
def test_the_prepared_policies_are_laid_out(task: str) -> None:
    """Real weights: where they drive a model, fp32 rounds by more than in a model at random."""
    policy = LOADERS[task]("cpu")[0].eval()
    assert type(decoder_of(policy, 2, 8)) is Layout and FixedForward.fits(policy)
    assert capture.trial(policy) == ""


def test_only_a_plain_llama_or_gpt2_is_laid_out() -> None:
    assert {type(decoder_of(policy, 2, 8)) for policy in (llama(), gpt2())} == {Layout}
    biased, adapted, wider, gelu, crossed = llama(), llama(), llama().double(), llama(), gpt2()
    biased.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.ones(16))
    adapted.model.layers[0].mlp = torch.nn.Sequential(adapted.model.layers[0].mlp)
    gelu.model.layers[0].mlp.act_fn = torch.nn.GELU()
    crossed.transformer.h[0].attn.scaling *= 2
    for policy in (biased, adapted, wider, gelu, crossed):
        assert type(decoder_of(policy, 2, 8)) is FixedForward
