"""A result as an adapter again: its error against the singular values, its logits when PEFT loads it."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from adapted import CONFIG, TARGETS, V, logits, lora_task, peft_policy
from test_merge_files import saved

from warp_nb.algorithm.merge import liti, load_, weights_of
from warp_nb.runs.merge_files import MergeRecipe, merge_files
from warp_nb.runs.merge_inputs import open_inputs
from warp_nb.runs.refactored import Spectrum, save_adapter
from warp_nb.runs.warp import warp
from warp_nb.tasks.lora import load_adapter

BASES = {"gpt2": lambda: tiny.gpt2(V, spread=0.05), "llama": lambda: tiny.llama(V, spread=0.1)}
"""The base of `peft_policy`, without an adapter."""


def result(kind: str, **settings: Any) -> tuple[Any, Any]:
    task = lora_task(kind, **settings)
    return task, warp(CONFIG.replace(I=1, merge_by="layer"), task, progress=False)


def model_with(task: Any, weights: Any) -> Any:
    model = type(task.policy)(task.policy.config).eval()
    load_(model, weights)
    return model


@pytest.mark.parametrize("shape", [(9, 5), (5, 9), (6, 6)])
def test_the_error_is_the_tail_of_the_singular_values(shape: tuple[int, int]) -> None:
    matrix = torch.randn(*shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    values, spectrum = torch.linalg.svdvals(matrix), Spectrum(matrix)
    assert spectrum.values.allclose(values, atol=1e-7)
    for rank in range(1, 12):
        one = spectrum.factors(rank)
        assert one.a.shape == (rank, shape[1]) and one.b.shape == (shape[0], rank)
        lost = (matrix - one.b.double() @ one.a.double()).norm()
        assert lost.item() == pytest.approx(values[rank:].norm().item(), abs=1e-5)
        assert one.a.norm(dim=1).allclose(one.b.norm(dim=0), rtol=1e-4)
    for rank in range(1, len(values)):
        tail = values[rank:].norm().item()
        assert spectrum.rank_within(tail * 1.001) == rank and spectrum.rank_within(tail * 0.999) == rank + 1


def test_a_zero_matrix_has_zero_factors() -> None:
    spectrum = Spectrum(torch.zeros(3, 4, dtype=torch.float64))
    assert spectrum.rank_within(0.0) == 1
    one = spectrum.factors(2)
    assert not one.a.any() and not one.b.any()


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("kind", TARGETS)
def test_peft_loads_what_is_saved(kind: str, trained: bool, tmp_path: Path) -> None:
    task, found = result(kind, trained=trained)
    sft = weights_of(task.policy)
    points = {"merged": found.merged, "middle": liti(sft, found.merged, 0.5), "end": weights_of(found.policy)}
    for name, weights in points.items():
        record = save_adapter(weights, task, tmp_path / name)
        assert record["rank"] == 4 + 2 * trained  # M = 2 products of rank 2, and the adapter of theta_sft
        assert record["error"] < 1e-4
        again = peft.PeftModel.from_pretrained(BASES[kind](), tmp_path / name).eval()
        expected = logits(model_with(task, weights))
        assert logits(again).allclose(expected, atol=1e-5)
        assert json.loads((tmp_path / name / "refactored.json").read_text()) == record
    assert not expected.allclose(logits(BASES[kind]()), atol=1e-3)


@pytest.mark.parametrize("kind", TARGETS)
def test_a_lower_rank_has_the_error_it_says(kind: str, tmp_path: Path) -> None:
    task, found = result(kind)
    sft, squares = weights_of(task.policy), [0.0, 0.0]
    record = save_adapter(found.merged, task, tmp_path / "low", rank=3)
    assert record["rank"] == 3 and record["errors"].keys() == task.lora.factors.keys()
    merged = peft.PeftModel.from_pretrained(BASES[kind](), tmp_path / "low").merge_and_unload()
    for name, error in record["errors"].items():
        delta = (found.merged[f"{name}.weight"] - sft[f"{name}.weight"]).double()
        values = torch.linalg.svdvals(delta)
        assert error == pytest.approx((values[3:].norm() / values.norm()).item(), rel=1e-3) and error > 1e-3
        loaded = merged.get_submodule(name).weight.double() - sft[f"{name}.weight"]
        assert ((delta - loaded).norm() / delta.norm()).item() == pytest.approx(error, rel=1e-2)
        squares = [squares[0] + values[3:].square().sum().item(), squares[1] + values.square().sum().item()]
    assert record["error"] == pytest.approx((squares[0] / squares[1]) ** 0.5, rel=1e-3)
    assert save_adapter(found.merged, task, tmp_path / "high", rank=40)["error"] < 1e-4


@pytest.mark.parametrize("kind", TARGETS)
def test_merging_the_saved_runs_on_disk_is_the_merge_in_memory(kind: str, tmp_path: Path) -> None:
    """`warp-nb merge` reads adapters by a way of its own, from the factors."""
    task, found = result(kind)
    base = saved(tmp_path, [BASES[kind]()])[0]
    runs = []
    for m, weights in enumerate(found.ingredients, start=1):
        runs.append(tmp_path / f"run{m}")
        assert save_adapter(weights, task, runs[-1])["rank"] == 2
    out = tmp_path / "out"
    merge_files(*open_inputs(base, runs, out), out, MergeRecipe(eta=CONFIG.eta))
    again = weights_of(type(task.policy).from_pretrained(out))
    for name, value in weights_of(found.policy).items():
        assert value.allclose(again[name], atol=1e-6), name


@pytest.mark.parametrize("kind", TARGETS)
def test_a_saved_adapter_is_a_policy_again(kind: str, tmp_path: Path) -> None:
    task, found = result(kind)
    saved(tmp_path, [BASES[kind]()])
    save_adapter(found.merged, task, tmp_path / "adapter")
    policy = load_adapter(tmp_path / "adapter", base=BASES[kind]())
    assert any(value.requires_grad for value in policy.parameters())
    again = tiny.task(policy=policy)
    for name, value in weights_of(again.policy).items():
        assert value.allclose(found.merged[name], atol=1e-6), name
    config = tmp_path / "adapter" / "adapter_config.json"
    record = json.loads(config.read_text()) | {"base_model_name_or_path": str(tmp_path / "base")}
    config.write_text(json.dumps(record))
    assert logits(load_adapter(tmp_path / "adapter")).equal(logits(policy))


def test_what_cannot_be_saved_is_refused(tmp_path: Path) -> None:
    task, sft = lora_task(), weights_of(lora_task().policy)
    with pytest.raises(ValueError, match=r"task 'tiny' is no PEFT model.*result\.policy\.save_pretrained"):
        save_adapter(sft, tiny.task(), tmp_path / "a")
    with pytest.raises(ValueError, match="rank must be at least 1, got 0; pass None"):
        save_adapter(sft, task, tmp_path / "a", rank=0)
    with pytest.raises(
        ValueError, match=r"differ from the policy's in transformer\.wte\.weight, which have no adapter"
    ):
        save_adapter(sft | {"transformer.wte.weight": sft["transformer.wte.weight"] + 1}, task, tmp_path / "a")
    with pytest.raises(ValueError, match="the weights differ in names or shapes"):
        save_adapter(weights_of(tiny.llama(V)), task, tmp_path / "a")
    assert not (tmp_path / "a").exists()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "mine").touch()
    with pytest.raises(ValueError, match="is not empty, and nothing in it is replaced"):
        save_adapter(sft, task, tmp_path / "b")


def test_a_base_of_another_name_is_warned_of(tmp_path: Path) -> None:
    base = tiny.gpt2(V)
    base.__dict__["name_or_path"] = "models/ours"  # as from_pretrained sets it
    peft.get_peft_model(base, peft.LoraConfig(r=2, **TARGETS["gpt2"])).save_pretrained(tmp_path)
    other = tiny.gpt2(V, seed=1)
    other.config._name_or_path = "hub/theirs"
    with pytest.warns(UserWarning, match=r"was trained on models/ours, which may be another model than hub/theirs"):
        load_adapter(tmp_path, base=other)
    other.config._name_or_path = "elsewhere/ours"
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        load_adapter(tmp_path, base=other)
    assert not [one for one in seen if "may be another model" in str(one.message)]


def test_folders_that_are_no_adapter_of_the_base_are_refused(tmp_path: Path) -> None:
    peft_policy("gpt2").save_pretrained(tmp_path / "gpt2")
    peft_policy("gpt2", use_dora=True).save_pretrained(tmp_path / "dora")
    with pytest.raises(ValueError, match=r"lacks adapter_config\.json, adapter_model\.safetensors; pass a folder"):
        load_adapter(tmp_path)
    with pytest.raises(ValueError, match=r"is no plain LoRA adapter \(use_dora: True\)"):
        load_adapter(tmp_path / "dora", base=tiny.gpt2(V))
    with pytest.raises(ValueError, match=r"names no base model; pass base=model"):
        load_adapter(tmp_path / "gpt2")
    for other in (tiny.llama(V), tiny.gpt2(V, width=32), tiny.gpt2(V, layers=1), tiny.gpt2(V, layers=3)):
        with pytest.raises(ValueError, match=r"gpt2 is an adapter of another base than .*pass the base that it was"):
            load_adapter(tmp_path / "gpt2", base=other)
