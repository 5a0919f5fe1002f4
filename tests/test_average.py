"""Averages of weights against torch, mergekit and closed forms in float64."""

from __future__ import annotations

import copy
import math
from pathlib import Path

import numpy as np
import pytest
import tiny
import torch
import yaml
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn
from transformers import GPT2LMHeadModel

from warp_nb.algorithm.average import angles, blocks, check_same, ema_update_, liti, merge, slerp, tied_to
from warp_nb.runs.weights import snapshot

LAMBDAS = (0.0, 0.25, 0.5, 0.8, 1.0)
DTYPES = {torch.float32: 1e-5, torch.bfloat16: 1e-2}


def closed_form(d1: np.ndarray, d2: np.ndarray, lam: float) -> np.ndarray:
    """Section 3.2's SLERP in float64; LERP where Omega says nothing."""
    norms = np.linalg.norm(d1), np.linalg.norm(d2)
    if min(norms) > 0:
        cosine = np.dot(d1 / norms[0], d2 / norms[1])
        if 1 - abs(cosine) > 1e-6:
            omega = np.arccos(cosine)
            return (np.sin((1 - lam) * omega) * d1 + np.sin(lam * omega) * d2) / np.sin(omega)
    return (1 - lam) * d1 + lam * d2


def pairs() -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 500, generator=generator)
    even = torch.zeros(500)
    even[::2] = a[::2]
    near = a + 0.02 * b
    return {
        "random": (a, b),
        "different norms": (a, 1e-3 * b),
        "orthogonal": (even, a - even),
        "parallel": (a, a),
        "parallel and longer": (a, 2 * a),
        "near parallel": (a, near),
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
        found, wanted = slerp(d1, d2, lam), closed_form(d1.double().numpy(), d2.double().numpy(), lam)
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
    for tilt in (1e-4, 1.3e-3, 1.5e-3, 3e-3):
        turned = math.cos(tilt) * a + math.sin(tilt) * b
        assert torch.allclose(slerp(a, turned, 0.3), torch.lerp(a, turned, 0.3), rtol=0, atol=1e-5)


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


def test_ema_takes_a_bf16_policy_and_leaves_it_alone() -> None:
    model = tiny.gpt2(20)
    policy = moved(model, 0).bfloat16()
    anchor, before = copy.deepcopy(model), snapshot(policy)
    ema_update_(anchor, policy, 0.5)
    wanted = (model.lm_head.weight + policy.lm_head.weight.float()) / 2
    assert torch.allclose(anchor.lm_head.weight, wanted, atol=1e-7)
    assert all(torch.equal(value, before[name]) for name, value in policy.state_dict().items())


def test_ema_refuses_a_bf16_anchor_and_another_architecture() -> None:
    model = tiny.gpt2(20)
    with pytest.raises(ValueError, match=r"must be float32.*bfloat16; call anchor\.float\(\)"):
        ema_update_(copy.deepcopy(model).bfloat16(), model, 0.01)
    with pytest.raises(ValueError, match=r"differ in names or shapes: .*h\.1\..* only in one"):
        ema_update_(tiny.gpt2(20, layers=1), model, 0.01)


# merge


def states(count: int, dtype: torch.dtype = torch.float64) -> list[dict[str, torch.Tensor]]:
    """An initialisation and `count` policies around it."""
    model = tiny.gpt2(20).to(dtype)
    return [snapshot(model), *(snapshot(moved(model, seed + 1)) for seed in range(count))]


@pytest.mark.parametrize("count", [1, 2, 3, 4])
@pytest.mark.parametrize("by", ["layer", "tensor", "global"])
def test_merge_against_equation_26_in_float64(by: str, count: int) -> None:
    init, *policies = states(count)
    found = merge(init, policies, by=by)
    names = [name for name in init if name != "lm_head.weight"]

    def block(name: str) -> str:
        layer = ".".join(name.split(".")[:3]) if name.startswith("transformer.h.") else name
        return {"layer": layer, "tensor": name, "global": ""}[by]

    for key in {block(name) for name in names}:
        mine = [name for name in names if block(name) == key]
        start, *ends = [np.concatenate([s[name].numpy().ravel() for name in mine]) for s in (init, *policies)]
        total = ends[0] - start
        for m in range(2, count + 1):
            total = closed_form(total, ends[m - 1] - start, 1 / m)
        given = np.concatenate([found[name].numpy().ravel() for name in mine])
        assert np.allclose(given, start + total, rtol=0, atol=1e-12)


def test_merge_of_three_depends_on_the_order() -> None:
    init, a, b, c = states(3)
    c = {name: init[name] + 3 * (c[name] - init[name]) for name in init}
    one, other = merge(init, [a, b, c]), merge(init, [c, b, a])
    assert (one["transformer.wte.weight"] - other["transformer.wte.weight"]).abs().max() > 1e-3


def test_lerp_is_the_plain_mean() -> None:
    init, *policies = states(3)
    found = merge(init, policies, method="lerp")
    for name, value in found.items():
        assert torch.allclose(value, sum(policy[name] for policy in policies) / 3, rtol=0, atol=1e-12)


def test_merging_one_policy_returns_it() -> None:
    init, policy = states(1)
    found = merge(init, [policy])
    assert all(torch.allclose(found[name], policy[name], rtol=0, atol=1e-15) for name in init)


def test_blocks_are_layers_and_single_tensors_around_them() -> None:
    gpt2, llama = snapshot(tiny.gpt2(20)), snapshot(tiny.llama(20))
    assert list(blocks(gpt2, "layer")) == [
        "transformer.wte.weight", "transformer.wpe.weight", "transformer.h.0", "transformer.h.1",
        "transformer.ln_f.weight", "transformer.ln_f.bias",
    ]  # fmt: skip
    assert list(blocks(llama, "layer")) == [
        "model.embed_tokens.weight", "model.layers.0", "model.layers.1", "model.norm.weight", "lm_head.weight",
    ]  # fmt: skip
    assert sum(map(len, blocks(gpt2, "layer").values())) == len(gpt2) - 1 == len(blocks(gpt2, "tensor"))
    assert list(blocks(gpt2, "global")) == ["global"]


def test_tied_weights_are_merged_once_and_shared_again() -> None:
    init, *policies = states(2, torch.float32)
    assert tied_to(init)["lm_head.weight"] == "transformer.wte.weight"
    for found in (merge(init, policies), liti(init, policies[0], 0.3)):
        assert list(found) == list(init)
        assert found["lm_head.weight"].data_ptr() == found["transformer.wte.weight"].data_ptr()
    # a tie that counted twice would pull the global angle
    untied = [{n: v for n, v in state.items() if n != "lm_head.weight"} for state in (init, *policies)]
    once, twice = merge(untied[0], untied[1:], by="global"), merge(init, policies, by="global")
    assert all(torch.equal(once[name], twice[name]) for name in once)


def test_untied_weights_stay_apart() -> None:
    model = tiny.llama(20)
    found = merge(snapshot(model), [snapshot(moved(model, 1)), snapshot(moved(model, 2))])
    assert found["lm_head.weight"].data_ptr() != found["model.embed_tokens.weight"].data_ptr()


def test_integer_buffers_come_from_the_initialisation() -> None:
    init = {"w": torch.zeros(3), "steps": torch.tensor([1, 2]), "mask": torch.tensor(True)}
    other = {"w": torch.ones(3), "steps": torch.tensor([7, 9]), "mask": torch.tensor(False)}
    for found in (merge(init, [other, other]), liti(init, other, 1.0)):
        assert found["steps"].tolist() == [1, 2] and found["mask"].item() is True
        assert found["w"].tolist() == [1, 1, 1]
        assert found["steps"].data_ptr() != init["steps"].data_ptr()


def test_averages_leave_their_inputs_alone_and_keep_their_dtype() -> None:
    model = tiny.gpt2(20).bfloat16()
    given = [snapshot(model), snapshot(moved(model, 1)), snapshot(moved(model, 2))]
    before = copy.deepcopy(given)
    for found in (merge(given[0], given[1:]), liti(given[0], given[1], 0.5)):
        assert {value.dtype for value in found.values()} == {torch.bfloat16}
    for state, kept in zip(given, before, strict=True):
        assert all(torch.equal(state[name], kept[name]) for name in kept)


def test_merge_refusals() -> None:
    init, policy = states(1)
    shorter = {name: value for name, value in policy.items() if name != "transformer.wpe.weight"}
    with pytest.raises(ValueError, match="at least one policy, got none"):
        merge(init, [])
    with pytest.raises(ValueError, match="method must be slerp or lerp, got 'mean'"):
        merge(init, [policy], method="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="by must be layer, tensor or global, got 'row'"):
        merge(init, [policy], by="row")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"transformer\.wpe\.weight only in one"):
        merge(init, [shorter])
    many = {f"w{i}": torch.zeros(i + 1) for i in range(9)}
    with pytest.raises(ValueError, match="against") as caught:
        check_same(many, {name: torch.zeros(99) for name in many})
    assert str(caught.value).count("against") == 5


# LITI


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_liti_end_points_are_bit_exact(dtype: torch.dtype) -> None:
    init, merged = states(1, dtype)
    for eta, wanted in ((0.0, init), (1.0, merged)):
        found = liti(init, merged, eta)
        assert all(torch.equal(found[name], wanted[name]) for name in init)
        assert found["lm_head.weight"].data_ptr() != wanted["lm_head.weight"].data_ptr()


def test_liti_moves_eta_of_the_way() -> None:
    init, merged = {"w": torch.tensor([1.0, -2.0])}, {"w": torch.tensor([2.0, 8.0])}
    assert torch.allclose(liti(init, merged, 0.3)["w"], torch.tensor([1.3, 1.0]))


@pytest.mark.parametrize("eta", [-0.1, 1.1, math.nan])
def test_liti_refuses_eta_outside(eta: float) -> None:
    init, merged = states(1)
    with pytest.raises(ValueError, match=r"eta must be in \[0, 1\], got"):
        liti(init, merged, eta)


# angles


def test_angles_of_known_vectors() -> None:
    init = {"a": torch.ones(2), "h.0.w": torch.zeros(2), "h.0.b": torch.zeros(1), "z": torch.zeros(1)}
    first = {"a": torch.tensor([2.0, 1.0]), "h.0.w": torch.tensor([3.0, 0.0]), "h.0.b": torch.tensor([4.0])} | {
        "z": torch.zeros(1)
    }
    second = {"a": torch.tensor([1.0, 3.0]), "h.0.w": torch.tensor([3.0, 0.0]), "h.0.b": torch.tensor([-4.0])} | {
        "z": torch.ones(1)
    }
    rows = {row["block"]: row for row in angles(init, first, second)}
    assert rows["a"]["omega"] == pytest.approx(90) and rows["a"]["norm_b"] == pytest.approx(2)
    assert rows["h.0"]["cosine"] == pytest.approx(-7 / 25) and rows["h.0"]["norm_a"] == pytest.approx(5)
    assert math.isnan(rows["z"]["cosine"]) and math.isnan(rows["z"]["omega"]) and rows["z"]["norm_b"] == 1


def test_the_angle_of_a_run_with_itself_is_zero() -> None:
    init, policy = states(1, torch.float32)
    assert all(row["omega"] < 0.1 for row in angles(init, policy, policy))


# mergekit


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_merge_against_mergekits_nuslerp(tmp_path: Path) -> None:
    """NuSLERP with a base model is the SLERP of task vectors, tensor by tensor."""
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    base = tiny.gpt2(40)
    models = {"base": base, "first": moved(base, 1), "second": moved(base, 2, size=0.05)}
    for name, model in models.items():
        model.save_pretrained(tmp_path / name)
    recipe = {
        "merge_method": "nuslerp",
        "base_model": str(tmp_path / "base"),
        "models": [{"model": str(tmp_path / name), "parameters": {"weight": 0.5}} for name in ("first", "second")],
        "dtype": "float32",
    }
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(yaml.safe_dump(recipe))), str(tmp_path / "out"), options)
    theirs = GPT2LMHeadModel.from_pretrained(tmp_path / "out").state_dict()
    states = {name: snapshot(model) for name, model in models.items()}
    mine = merge(states["base"], [states["first"], states["second"]], by="tensor")
    plain = merge(states["base"], [states["first"], states["second"]], method="lerp")
    assert set(mine) == set(theirs)
    for name, value in mine.items():
        assert torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-6), name
    assert any((plain[name] - theirs[name]).abs().max() > 1e-2 for name in plain)
