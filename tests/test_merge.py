"""Averages of weights against torch, mergekit and closed forms in float64."""

from __future__ import annotations

import copy
import math
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from transformers import GPT2LMHeadModel

from warp_nb.algorithm.merge import (
    MERGES,
    Weights,
    blocks,
    check_same,
    ema_update_,
    front,
    liti,
    load_,
    merge,
    slerp,
    weights_of,
)
from warp_nb.files import fingerprint

LAMBDAS = (0.0, 0.25, 0.5, 0.8, 1.0)
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}
TIED = "transformer.wte.weight"


def mixed(d1: np.ndarray, d2: np.ndarray, lam: float) -> np.ndarray:
    """The plain interpolation."""
    return (1 - lam) * d1 + lam * d2


def turned(d1: np.ndarray, d2: np.ndarray, lam: float) -> np.ndarray:
    """Section 3.2's SLERP in float64; LERP where Omega says nothing."""
    norms = np.linalg.norm(d1), np.linalg.norm(d2)
    if min(norms) > 0:
        omega = np.arccos(np.clip(np.dot(d1 / norms[0], d2 / norms[1]), -1, 1))
        if np.sin(omega) > 1e-3:
            return (np.sin((1 - lam) * omega) * d1 + np.sin(lam * omega) * d2) / np.sin(omega)
    return mixed(d1, d2, lam)


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 500, generator=generator)
    even = torch.zeros(500)
    even[::2] = a[::2]
    return {
        "random": (a, b),
        "different norms": (a, 1e-3 * b),
        "orthogonal": (even, a - even),
        "parallel": (a, a),
        "parallel and longer": (a, 2 * a),
        "near parallel": (a, a + 0.02 * b),
        "opposite": (a, -a),
        "obtuse": (a, -a + b),
        "first zero": (torch.zeros(500), b),
        "second zero": (a, torch.zeros(500)),
        "both zero": (torch.zeros(500), torch.zeros(500)),
        "tiny": (1e-20 * a, 1e-20 * b),
        "tiny and ordinary": (1e-20 * a, b),
        "huge": (1e25 * a, 1e25 * b),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", pairs())
def test_slerp_against_its_closed_form_in_float64(name: str, dtype: torch.dtype) -> None:
    d1, d2 = (d.to(dtype) for d in pairs()[name])
    for lam in LAMBDAS:
        found, wanted = slerp(d1, d2, lam), turned(d1.double().numpy(), d2.double().numpy(), lam)
        assert found.dtype == dtype and found.shape == d1.shape
        scale = max(float(np.abs(wanted).max()), float(np.abs(d1.double().numpy()).max()) * 1e-3)
        assert np.abs(found.double().numpy() - wanted).max() <= DTYPES[dtype] * scale, lam


def test_slerp_of_equal_norms_keeps_the_norm_where_lerp_shrinks() -> None:
    d1, d2 = torch.zeros(4, dtype=torch.float64), torch.zeros(4, dtype=torch.float64)
    d1[0] = d2[1] = 2.0
    assert slerp(d1, d2, 0.5).norm().item() == pytest.approx(2.0, rel=1e-12)
    assert torch.lerp(d1, d2, 0.5).norm().item() == pytest.approx(math.sqrt(2), rel=1e-12)


def test_slerp_keeps_the_shape_of_a_matrix_and_shares_one_angle() -> None:
    a, b = torch.randn(2, 6, 4, generator=torch.Generator().manual_seed(1))
    assert torch.equal(slerp(a, b, 0.3), slerp(a.flatten(), b.flatten(), 0.3).reshape(6, 4))


def test_the_undefined_angle_is_lerp_without_a_jump() -> None:
    """On both sides of the switch to LERP the results agree to fp32 precision of the weights."""
    a, b = torch.randn(2, 1000, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    b -= (a @ b) / (a @ a) * a
    b *= a.norm() / b.norm()
    for tilt in (1e-4, 0.9e-3, 1.1e-3, 3e-3):
        other = math.cos(tilt) * a + math.sin(tilt) * b
        assert torch.allclose(slerp(a, other, 0.3), torch.lerp(a, other, 0.3), rtol=0, atol=1e-5)


# EMA


def moved(model: torch.nn.Module, seed: int, size: float = 0.1) -> torch.nn.Module:
    """A copy with noise on every parameter."""
    generator, copied = torch.Generator().manual_seed(seed), copy.deepcopy(model)
    with torch.no_grad():
        for value in copied.parameters():
            value += size * torch.randn(value.shape, generator=generator)
    return copied


@pytest.mark.parametrize("mu", [0.0, 0.01, 0.5, 1.0])
def test_ema_against_torch(mu: float) -> None:
    model = tiny.gpt2(20)
    anchor, theirs = copy.deepcopy(model), AveragedModel(model, avg_fn=get_ema_avg_fn(1 - mu))
    theirs.update_parameters(model)  # the first call copies
    for seed in range(5):
        policy = moved(model, seed)
        ema_update_(anchor, policy, mu)
        theirs.update_parameters(policy)
    for mine, other in zip(anchor.parameters(), theirs.module.parameters(), strict=True):
        assert torch.allclose(mine, other, rtol=1e-6, atol=1e-8)
    assert anchor.lm_head.weight.data_ptr() == anchor.transformer.wte.weight.data_ptr()
    still = torch.equal(anchor.lm_head.weight, model.lm_head.weight)
    assert still == (mu == 0)


# merges


@cache
def states(count: int, dtype: torch.dtype = torch.float64) -> list[Weights]:
    """An initialisation and `count` policies around it."""
    model = tiny.gpt2(20).to(dtype)
    return [weights_of(model), *(weights_of(moved(model, seed + 1)) for seed in range(count))]


def block_of(name: str, by: str) -> str:
    layer = ".".join(name.split(".")[:3]) if name.startswith("transformer.h.") else name
    return {"layer": layer, "tensor": name, "global": ""}[by]


def expected(method: str, start: np.ndarray, ends: list[np.ndarray], lam: float) -> np.ndarray:
    """What an entry of MERGES makes of one block: of two at lambda, of more by equation 26."""
    if method == "lerp" and len(ends) != 2:
        return np.mean(ends, axis=0)
    between = mixed if method == "lerp" else turned
    origin = 0 if method == "slerp_weights" else start
    total = ends[0] - origin
    for m in range(2, len(ends) + 1):
        total = between(total, ends[m - 1] - origin, lam if len(ends) == 2 else 1 / m)
    return origin + total


@pytest.mark.parametrize(("count", "lam"), [(1, 0.5), (2, 0.0), (2, 0.3), (2, 0.5), (2, 1.0), (3, 0.5), (4, 0.5)])
@pytest.mark.parametrize("by", ["layer", "tensor", "global"])
@pytest.mark.parametrize("method", MERGES)
def test_every_merge_against_its_formula_in_float64(method: str, by: str, count: int, lam: float) -> None:
    """lerp is the plain mean, slerp_weights the SLERP of full weights (figure 10c), slerp that of task vectors."""
    init, *policies = states(count)
    found = merge(init, policies, method=method, by=by, lam=lam)
    assert list(found) == list(init)
    for key in {block_of(name, by) for name in init}:
        mine = [name for name in init if block_of(name, by) == key]
        given, start, *ends = [
            np.concatenate([side[name].numpy().ravel() for name in mine]) for side in (found, init, *policies)
        ]
        assert np.allclose(given, expected(method, start, ends, lam), rtol=0, atol=1e-12), key


@pytest.mark.parametrize("method", MERGES)
def test_the_ends_of_lambda_are_the_two_policies_and_one_policy_is_its_own_merge(method: str) -> None:
    init, first, second = states(2)
    for found, wanted in (
        (merge(init, [first, second], method=method, lam=0.0), first),
        (merge(init, [first, second], method=method, lam=1.0), second),
        (merge(init, [first], method=method), first),
    ):
        assert all(torch.allclose(found[name], wanted[name], rtol=0, atol=1e-15) for name in init)


def test_the_merges_differ_from_each_other() -> None:
    """Full weights are nearly parallel, so their SLERP is near the mean; task vectors are not."""
    init, *policies = states(2)
    found = [merge(init, policies, method=method)[TIED] for method in ("lerp", "slerp_weights", "slerp")]
    near, far = ((found[0] - other).abs().max().item() for other in found[1:])
    assert 1e-6 < near < far / 3


@pytest.mark.parametrize(("method", "depends"), [("slerp", True), ("slerp_weights", True), ("lerp", False)])
def test_only_lerp_of_three_does_not_depend_on_their_order(method: str, depends: bool) -> None:
    init, a, b, c = states(3)
    c = {name: init[name] + 3 * (c[name] - init[name]) for name in init}
    one, other = (merge(init, order, method=method)[TIED] for order in ([a, b, c], [c, b, a]))
    assert ((one - other).abs().max().item() > 1e-4) == depends


@pytest.mark.parametrize("method", MERGES)
@pytest.mark.parametrize("by", ["layer", "tensor", "global"])
def test_a_tensor_that_no_policy_moved_stays_to_the_bit(method: str, by: str) -> None:
    generator = torch.Generator().manual_seed(0)
    init = {name: torch.randn(5, generator=generator) for name in ("h.0.frozen", "h.0.moved", "h.0.table", "last")}
    init["h.0.table"][0], init["h.0.frozen"][1] = -math.inf, -0.0
    policies = [
        init | {name: init[name] + torch.randn(5, generator=generator) for name in ("h.0.moved", "last")} for _ in "ab"
    ]
    merged = merge(init, policies, method=method, by=by)
    for name in ("h.0.frozen", "h.0.table"):
        assert fingerprint({name: merged[name]}) == fingerprint({name: init[name]})
    alone = merge(
        *({"h.0.moved": side["h.0.moved"]} for side in (init,)),
        [{"h.0.moved": p["h.0.moved"]} for p in policies],
        method=method,
    )
    if by != "global":
        assert torch.equal(merged["h.0.moved"], alone["h.0.moved"]), "nor does it change the angle"
    assert all(not merged[name].equal(init[name]) and merged[name].isfinite().all() for name in ("h.0.moved", "last"))


def test_blocks_are_layers_and_single_tensors_around_them() -> None:
    gpt2, llama = weights_of(tiny.gpt2(20)), weights_of(tiny.llama(20))
    assert list(blocks(gpt2, "layer")) == [
        TIED, "transformer.wpe.weight", "transformer.h.0", "transformer.h.1",
        "transformer.ln_f.weight", "transformer.ln_f.bias",
    ]  # fmt: skip
    assert list(blocks(llama, "layer")) == [
        "model.embed_tokens.weight", "model.layers.0", "model.layers.1", "model.norm.weight", "lm_head.weight",
    ]  # fmt: skip
    for by in ("layer", "tensor", "global"):
        assert sorted(name for names in blocks(gpt2, by).values() for name in names) == sorted(gpt2)
    assert len(blocks(gpt2, "tensor")) == len(gpt2) and list(blocks(gpt2, "global")) == ["global"]


@pytest.mark.parametrize("method", MERGES)
def test_tied_weights_are_one_entry_and_stay_tied_in_the_model(method: str) -> None:
    model = tiny.gpt2(20)
    init, *policies = states(2, torch.float32)
    merged = merge(init, policies, method=method)
    assert TIED in merged and "lm_head.weight" not in merged
    load_(model, merged)
    assert model.lm_head.weight.data_ptr() == model.transformer.wte.weight.data_ptr()
    assert torch.equal(model.lm_head.weight, merged[TIED])
    assert all(torch.equal(value, merged[name]) for name, value in model.named_parameters())


def test_untied_weights_stay_apart() -> None:
    model = tiny.llama(20)
    load_(model, merge(weights_of(model), [weights_of(moved(model, 1)), weights_of(moved(model, 2))]))
    assert not torch.equal(model.lm_head.weight, model.model.embed_tokens.weight)


def test_averages_leave_their_inputs_alone_and_keep_their_dtype() -> None:
    model = tiny.gpt2(20).bfloat16()
    given = [weights_of(model), weights_of(moved(model, 1)), weights_of(moved(model, 2))]
    before = copy.deepcopy(given)
    for found in (*(merge(given[0], given[1:], method=name) for name in MERGES), liti(given[0], given[1], 0.5)):
        assert {value.dtype for value in found.values()} == {torch.bfloat16}
    for state, saved in zip(given, before, strict=True):
        assert all(torch.equal(state[name], saved[name]) for name in saved)


def test_weights_of_a_model_are_a_copy() -> None:
    model = tiny.gpt2(20)
    found, before = weights_of(model), copy.deepcopy(model)
    for value in found.values():
        value += 1
        assert not value.requires_grad
    for now, then in zip(model.parameters(), before.parameters(), strict=True):
        assert torch.equal(now, then)


def test_refusals_name_what_was_given() -> None:
    init, policy = states(1)
    shorter = {name: value for name, value in policy.items() if name != "transformer.wpe.weight"}
    with pytest.raises(ValueError, match="needs policies and one of slerp, lerp, slerp_weights; got 0 and 'slerp'"):
        merge(init, [])
    with pytest.raises(ValueError, match="got 1 and 'mean'"):
        merge(init, [policy], method="mean")
    with pytest.raises(ValueError, match="by must be layer, tensor or global, got 'row'"):
        merge(init, [policy], by="row")
    for refuse in (lambda: merge(init, [shorter]), lambda: liti(init, shorter, 0.5)):
        with pytest.raises(ValueError, match=r"transformer\.wpe\.weight \(32, 16\) against missing"):
            refuse()
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight \(21, 16\) against \(20, 16\)"):
        load_(tiny.gpt2(21), init)
    many = {f"w{i}": torch.zeros(i + 1) for i in range(9)}
    with pytest.raises(ValueError, match="against") as caught:
        check_same(many, {name: torch.zeros(99) for name in many})
    assert str(caught.value).count("against") == 5


# LITI


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_ends_of_the_front_are_bit_exact_copies(dtype: torch.dtype) -> None:
    init, merged = states(1, dtype)
    for found, wanted in zip(front(init, merged, [0.0, 1.0]), (init, merged), strict=True):
        assert all(torch.equal(found[name], wanted[name]) for name in init)
        assert found[TIED].data_ptr() != wanted[TIED].data_ptr()


@pytest.mark.parametrize("eta", [0.3, 1.0, 1.5, 2.0])
def test_liti_moves_eta_of_the_way_and_beyond_one_extrapolates(eta: float) -> None:
    init, merged = states(1)
    (found,) = front(init, merged, [eta])
    for name, value in found.items():
        wanted = init[name].numpy() + eta * (merged[name].numpy() - init[name].numpy())
        assert np.allclose(value.numpy(), wanted, rtol=0, atol=1e-14)
        assert torch.equal(value, liti(init, merged, eta)[name])


@pytest.mark.parametrize("eta", [-0.1, 2.1, math.nan])
def test_liti_refuses_eta_outside(eta: float) -> None:
    init, merged = states(1)
    for refuse in (lambda: liti(init, merged, eta), lambda: front(init, merged, [0.5, eta])):
        with pytest.raises(ValueError, match=rf"eta must be in \[0, 2\], got {eta}"):
            refuse()


# mergekit


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize("share", [0.5, 0.3])
def test_merge_against_mergekits_nuslerp(share: float, tmp_path: Path) -> None:
    """NuSLERP with a base model is the SLERP of task vectors, tensor by tensor."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    base = tiny.gpt2(40)
    models = {"base": base, "first": moved(base, 1), "second": moved(base, 2, size=0.05)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    weights = {"first": 1 - share, "second": share}
    recipe = {
        "merge_method": "nuslerp",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / name), "parameters": {"weight": w}} for name, w in weights.items()],
        "dtype": "float32",
    }
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(recipe))), str(tmp_path / "out"), options)
    theirs = weights_of(GPT2LMHeadModel.from_pretrained(tmp_path / "out"))
    init, first, second = (weights_of(model) for model in models.values())
    mine = merge(init, [first, second], by="tensor", lam=share)
    mean = merge(init, [first, second], method="lerp", lam=share)
    assert set(mine) == set(theirs)
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-6), name
    assert any((mean[name] - theirs[name]).abs().max() > 1e-2 for name in mean)
