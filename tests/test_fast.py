"""Every fast function against its plain twin; then what is special of scoring, averages and optimizers."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
from brute import MODELS, drawn

from warp_nb.algorithm.merge import weights_of
from warp_nb.fast import scoring
from warp_nb.fast.averages import ema_update_
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
    several: dict[str, Any] = {"ends": (3, 17, 38)}
    cases = [("gpt2", True, {}), ("llama", True, {}), ("gpt2", False, {})]
    for kind, end, given in [*cases, ("gpt2", True, several), ("llama", True, several | {"fewest": 5})]:
        words = tiny.tokenizer(end=end)
        policy = MODELS[kind](len(words)).to(dtype)
        rollout = drawn(policy, words, PROMPTS * 4, 8, temperature=0.8, sample=sample, **given)
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
