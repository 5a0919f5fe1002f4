"""Every fast function against its plain twin; then what is special of decoding, scoring and averages."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from brute import FOUR, MODELS, drawn, encoded, scored
from scipy.stats import chi2_contingency
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

from warp_nb.algorithm.merge import weights_of
from warp_nb.algorithm.objective import completion_logits
from warp_nb.fast import decoding, scoring
from warp_nb.fast.averages import ema_update_
from warp_nb.fast.decoding import CachedForward, LlamaDecoder, cached
from warp_nb.fast.devices import arithmetic
from warp_nb.fast.optimizers import OPTIMIZERS, optimizer_of
from warp_nb.fast.scoring import token_kl, token_log_probs
from warp_nb.runs.training import FAST, PLAIN

PROMPTS = ["the", "the film was", "it was the best movie we saw", "story of it"]

# twins: a case calls one of the two on fresh input and returns tensors to compare


def ema_case(update: Callable[..., Any], dtype: torch.dtype) -> list[torch.Tensor]:
    anchor, policy = (tiny.gpt2(20, seed=seed).to(dtype) for seed in (1, 2))
    for _ in range(3):
        update(anchor, policy, 0.1)
    return list(weights_of(anchor).values())


def sample_case(sample: Callable[..., Any], dtype: torch.dtype) -> list[torch.Tensor]:
    found = []
    for kind, end in (("gpt2", True), ("llama", True), ("gpt2", False)):
        words = tiny.tokenizer(end=end)
        rollout = drawn(MODELS[kind](len(words)).to(dtype), words, PROMPTS * 4, 8, temperature=0.8, sample=sample)
        found += [rollout.ids, rollout.attention_mask, rollout.completion_mask, rollout.sampled_log_probs]
    return found


def scoring_input(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Logits of two policies [3, 4, 50], tokens and mask [3, 4]."""
    generator = torch.Generator().manual_seed(0)
    p, q = (torch.randn(3, 4, 50, generator=generator, dtype=torch.float64).mul(3).to(dtype) for _ in range(2))
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [1, 1, 1, 0]]).bool()
    return p, q, torch.randint(50, (3, 4), generator=generator), mask


def log_probs_case(log_probs: Callable[..., Any], dtype: torch.dtype) -> list[torch.Tensor]:
    """The values and their gradient by a random weight a token, with and without a temperature."""
    logits, _, tokens, mask = scoring_input(dtype)
    weight = torch.randn(3, 4, generator=torch.Generator().manual_seed(1))
    found = []
    for temperature in (0.7, 1.0):
        leaf = logits.clone().requires_grad_()
        values = log_probs(leaf, tokens, mask, temperature)
        (values * weight).sum().backward()
        assert leaf.grad is not None and leaf.grad.dtype == dtype
        assert leaf.grad[~mask].abs().sum() == 0 < leaf.grad.abs().sum()
        found += [values.detach(), leaf.grad]
    return found


def kl_case(kl: Callable[..., Any], dtype: torch.dtype) -> list[torch.Tensor]:
    p, q, _, mask = scoring_input(dtype)
    return [kl(p, q, mask, temperature).detach() for temperature in (0.7, 1.0)]


CASES: dict[str, Callable[..., list[torch.Tensor]]] = {
    "ema_update_": ema_case, "sample": sample_case, "token_log_probs": log_probs_case, "token_kl": kl_case,
}  # fmt: skip
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-5, torch.bfloat16: 2e-2}
"""Of bf16 only gradients are rounded: what is summed is fp32 on either side."""


SIZES = {name: [1, 120, 1 << 20] if name.startswith("token") else [1 << 20] for name in PLAIN.replaced()}
"""Logits in a slice, where there are slices: a row, a part of the 12 rows, all of them."""


@pytest.mark.parametrize(
    ("name", "size", "dtype"),
    [
        (name, size, dtype)
        for name, sizes in SIZES.items()
        for size in sizes
        for dtype in TOLERANCE
        if dtype != torch.bfloat16 or name.startswith("token")  # policies and anchors are fp32 or better
    ],
)
def test_a_fast_function_is_its_plain_twin(
    name: str, size: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One name, one signature, one result, whatever the size of a slice; integers and masks are equal."""
    fast, plain = getattr(FAST, name), getattr(PLAIN, name)
    monkeypatch.setitem(scoring.SLICE, "cpu", size)
    mine, theirs = (CASES[name](function, dtype) for function in (fast, plain))
    for left, right in zip(mine, theirs, strict=True):
        assert left.dtype == right.dtype and left.shape == right.shape
        tolerance = TOLERANCE[dtype] if left.is_floating_point() else 0
        torch.testing.assert_close(left, right, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", PLAIN.replaced())
def test_twins_have_one_name_and_one_signature(name: str) -> None:
    twins = [getattr(side, name) for side in (FAST, PLAIN)]
    fast, plain = ([(p.name, p.kind) for p in inspect.signature(twin).parameters.values()] for twin in twins)
    assert fast == plain
    homes = [getattr(twin, "func", twin).__name__ for twin in twins]
    assert homes == [name, name] and set(CASES) == set(PLAIN.replaced())


@pytest.mark.parametrize("name", ["ema_update_", "token_kl"])
def test_what_computes_in_the_same_order_gives_the_same_bits(name: str) -> None:
    mine, theirs = (CASES[name](getattr(side, name), torch.float32) for side in (FAST, PLAIN))
    assert all(torch.equal(left, right) for left, right in zip(mine, theirs, strict=True))


def test_the_gradient_of_log_probs_by_finite_differences() -> None:
    logits, _, tokens, mask = scoring_input(torch.float64)
    assert torch.autograd.gradcheck(lambda x: token_log_probs(x, tokens, mask, 0.8), [logits.requires_grad_()])


def test_scoring_of_bf16_is_fp32_and_kl_has_no_gradient() -> None:
    p, q, tokens, mask = scoring_input(torch.bfloat16)
    assert token_log_probs(p, tokens, mask, 1.0).dtype == token_kl(p, q, mask, 1.0).dtype == torch.float32
    assert not token_kl(p.requires_grad_(), q, mask, 1.0).requires_grad


# averages and optimizers


def test_the_anchor_takes_a_bf16_policy_and_leaves_it_alone() -> None:
    anchor, policy = tiny.gpt2(20, seed=1), tiny.gpt2(20, seed=2).bfloat16()
    before, start = weights_of(policy), copy.deepcopy(anchor)
    ema_update_(anchor, policy, 0.5)
    wanted = (start.lm_head.weight + policy.lm_head.weight.float()) / 2
    assert torch.allclose(anchor.lm_head.weight, wanted, atol=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(policy).items())


def test_a_bf16_anchor_and_another_architecture_are_refused() -> None:
    model = tiny.gpt2(20)
    with pytest.raises(ValueError, match=r"must be float32.*bfloat16; call anchor\.float\(\)"):
        ema_update_(copy.deepcopy(model).bfloat16(), model, 0.01)
    with pytest.raises(ValueError, match="anchor and policy differ in parameters: 16 tensors against 28"):
        ema_update_(tiny.gpt2(20, layers=1), model, 0.01)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_fused_optimizer_is_the_librarys_own(name: str) -> None:
    """On the CPU fused, elsewhere as the library chooses; the same moves."""
    ends = []
    for make in (optimizer_of(name, torch.device("cpu")), OPTIMIZERS[name]):
        model = tiny.gpt2(20).double()  # in fp32 Adam makes steps of the rounding of gradients that are zero
        optimizer = make(list(model.parameters()), lr=0.01)
        for ids in torch.arange(12).view(3, 1, 4):
            model(ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        ends.append(torch.nn.utils.parameters_to_vector(model.parameters()).detach())
    assert torch.allclose(*ends, rtol=0, atol=1e-9)
    assert optimizer_of(name, torch.device("cpu")).keywords == {"fused": True}
    assert optimizer_of(name, torch.device("mps")).keywords == {"fused": False}


# decoding


def logits(forward: Any, steps: int = 4) -> torch.Tensor:
    """Of a prefill and `steps` decode steps on given tokens, left padding among them, [steps + 1, B, V]."""
    ids, mask = encoded(tiny.tokenizer(), PROMPTS, 12)
    found = []
    for step in range(steps + 1):
        found.append(forward(ids, mask))
        ids = torch.cat([ids, torch.arange(len(PROMPTS))[:, None] + step], 1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], 1)
    return torch.stack(found)


def llama(seed: int = 0) -> Any:
    return tiny.llama(len(tiny.tokenizer()), seed=seed)


@pytest.fixture(params=[True, False], ids=["packed", "unpacked"])
def packing(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """With oneDNN's packed products, and as on a build of torch without them."""
    if not request.param:
        monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)


@pytest.mark.usefixtures("packing")
def test_the_layout_gives_the_models_own_logits() -> None:
    policy = llama()
    with torch.no_grad():
        fast, plain = logits(LlamaDecoder(policy, 4, 20)), logits(CachedForward(policy))
    assert plain.std() > 0.5 and torch.allclose(fast, plain, atol=1e-5, rtol=1e-5)


@pytest.mark.usefixtures("packing")
def test_in_bf16_the_layout_is_as_exact_as_the_models_own_forward() -> None:
    errors = []
    for seed in range(8):
        policy = llama(seed)
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
    decoder = LlamaDecoder(policy, 4, 20)
    before = logits(LlamaDecoder(policy, 4, 20))
    with torch.no_grad():
        policy.model.layers[1].mlp.up_proj.weight.mul_(2)
    assert torch.equal(before, logits(decoder))
    assert not torch.allclose(before, logits(LlamaDecoder(policy, 4, 20)))


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
    assert type(cached(policy, 2, 8)) is CachedForward
    found = drawn(policy, words, PROMPTS, 6, sample=decoding.sample)
    with torch.no_grad():
        again = token_log_probs(completion_logits(policy, found), *scored(found))
    assert torch.allclose(again, found.sampled_log_probs, atol=1e-4)
    assert not torch.equal(before.sampled_log_probs, found.sampled_log_probs), "the change is one"


def test_a_hook_on_every_module_leads_to_the_models_own_forward() -> None:
    handle = torch.nn.modules.module.register_module_forward_hook(lambda module, given, out: None)
    try:
        assert type(cached(llama(), 2, 8)) is CachedForward
    finally:
        handle.remove()
    assert type(cached(llama(), 2, 8)) is LlamaDecoder


def test_the_layout_is_measured_once_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    policy, made = llama(), []
    monkeypatch.setattr(decoding, "CachedForward", lambda policy: made.append(1) or CachedForward(policy))
    for _ in range(3):
        assert type(cached(policy, 2, 8)) is LlamaDecoder
    assert len(made) == 1


def test_only_a_plain_llama_is_taken() -> None:
    assert type(cached(llama(), 2, 8)) is LlamaDecoder
    biased, adapted, wider, gelu = llama(), llama(), llama().double(), llama()
    biased.model.layers[0].self_attn.q_proj.bias = torch.nn.Parameter(torch.ones(16))
    adapted.model.layers[0].mlp = torch.nn.Sequential(adapted.model.layers[0].mlp)
    gelu.model.layers[0].mlp.act_fn = torch.nn.GELU()
    for policy in (tiny.gpt2(39), biased, adapted, wider, gelu):
        assert type(cached(policy, 2, 8)) is CachedForward
