"""WARP on PEFT policies: what a task makes of them, what runs change, and what is refused by name."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
from adapted import CONFIG, TARGETS, V, logits, lora_task, peft_policy
from faulty import Opinion, everything, fail

from warp_nb.algorithm.merge import liti, merge, weights_of
from warp_nb.files import fingerprint, unseal
from warp_nb.runs.training import FAST, PLAIN
from warp_nb.runs.warp import WarpResult, warp
from warp_nb.tasks.identity import task_identity
from warp_nb.tasks.lora import holds_adapters
from warp_nb.tasks.task import Task, describe

# a task


def injected(kind: str) -> Any:
    policy = tiny.gpt2(V) if kind == "gpt2" else tiny.llama(V)
    policy.add_adapter(peft.LoraConfig(r=2, init_lora_weights=False, **TARGETS[kind]))
    return policy.eval()


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize(
    "make", [lambda kind: peft_policy(kind, trained=True), injected], ids=["PeftModel", "injected"]
)
def test_a_task_holds_the_merged_policy_as_a_plain_model(make: Callable[..., Any], kind: str, tmp_path: Path) -> None:
    policy = make(kind)
    before, expected = fingerprint(policy.state_dict()), logits(policy)
    task = tiny.task(policy=policy)
    assert type(task.policy) in (type(tiny.gpt2(V)), type(tiny.llama(V))) and not holds_adapters(task.policy)
    assert logits(task.policy).allclose(expected, atol=1e-5)
    assert fingerprint(policy.state_dict()) == before and holds_adapters(policy)
    assert task.lora is not None
    adapted = {f"{name}.weight" for name in task.lora.factors}
    assert {n for n, value in task.policy.named_parameters() if value.requires_grad} == adapted
    inner = policy.get_base_model() if isinstance(policy, peft.PeftModel) else policy
    layers = [module for module in inner.modules() if hasattr(module, "lora_A")]
    assert len(adapted) == len(layers) > 0
    count = sum(value.numel() for name, value in policy.named_parameters() if "lora_" in name)
    assert describe(task)["trained_by_lora"] == task.lora.trained == count
    task.policy.save_pretrained(tmp_path)  # a whole model, not an adapter
    again = type(task.policy).from_pretrained(tmp_path).eval()
    assert logits(again).equal(logits(task.policy))


def test_the_identity_of_a_task_names_what_is_trained() -> None:
    plain, fresh = tiny.task(policy=peft_policy().merge_and_unload().requires_grad_(True)), lora_task()
    assert task_identity(plain)["policy_sha256"] == task_identity(fresh)["policy_sha256"]
    assert "lora" not in task_identity(plain)
    assert task_identity(fresh)["lora"] == task_identity(lora_task())["lora"]
    alike = [
        task_identity(lora_task(**other))["lora"] for other in ({"lora_alpha": 4}, {"init_lora_weights": "gaussian"})
    ]
    assert all(found != task_identity(fresh)["lora"] for found in alike)


# runs


def quick(task: Task, **settings: Any) -> WarpResult:
    changes = {name: settings.pop(name) for name in list(settings) if name in type(CONFIG).model_fields}
    return warp(CONFIG.replace(**changes), task, **({"progress": False} | settings))


def products(task: Task, init: dict[str, torch.Tensor], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    assert task.lora is not None
    return {name: weights[f"{name}.weight"].double() - init[f"{name}.weight"].double() for name in task.lora.factors}


@pytest.mark.parametrize("trained", [False, True], ids=["fresh", "trained"])
@pytest.mark.parametrize("kind", TARGETS)
def test_task_vectors_are_products_and_all_else_stays(kind: str, trained: bool) -> None:
    task = lora_task(kind, trained=trained)
    sft = weights_of(task.policy)
    result = quick(task, I=1, keep_anchors=True)
    assert all(value.equal(sft[name]) for name, value in weights_of(task.policy).items())
    assert result.merged.keys() == sft.keys() and task.lora is not None
    adapted = {f"{name}.weight" for name in task.lora.factors}
    points = [*result.ingredients, result.merged, weights_of(result.policy), *result.snapshots.values()]
    for weights in points:
        assert {name for name in sft if not weights[name].equal(sft[name])} == adapted
    for weights, rank in [(found, 2) for found in result.ingredients] + [(result.merged, 4)]:
        for name, delta in products(task, sft, weights).items():
            values = torch.linalg.svdvals(delta)
            rounding = 1e-6 * sft[f"{name}.weight"].norm()
            assert values[rank - 1] > 10 * rounding > 10 * values[rank], name
    again = merge(sft, result.ingredients)
    assert all(value.equal(again[name]) for name, value in result.merged.items())
    end = liti(sft, result.merged, CONFIG.eta)
    assert all(value.equal(end[name]) for name, value in weights_of(result.policy).items())
    frame = result.runs
    assert (frame["anchor_error"] == 0).all() and (frame["anchor_moved"] > 0).all() and (frame["unmoved"] < 0.5).all()
    assert (result.history["sampling_gap"] < 1e-5).all()
    assert (result.history.query("step == 1")["kl"] == 0).all()
    assert result.merges["liti_ratio"].to_list() == pytest.approx([CONFIG.eta], abs=1e-5)


@pytest.mark.parametrize("kind", TARGETS)
@pytest.mark.parametrize("anchor", ["ema", "sft"])
def test_with_factors_of_full_rank_a_step_is_that_of_the_matrix_itself(kind: str, anchor: str) -> None:
    """With A = 1 / scale, the gradient of B is the matrix's own, and that of A is zero while B is: SGD's step is equal.

    The reference is WARP on the plain model with all but these matrices frozen, which knows nothing of factors.
    """
    policy = peft_policy(kind, r=64, lora_alpha=32, use_rslora=True)
    for module in policy.modules():
        if hasattr(module, "lora_A"):
            a = module.lora_A["default"].weight
            with torch.no_grad():
                a.copy_(torch.eye(*a.shape) / module.scaling["default"])
    task = tiny.task(policy=policy)
    dense = tiny.task(policy=task.policy)
    assert dense.lora is None and task.lora is not None and dense.policy is task.policy
    settings: dict[str, Any] = {"T": 1, "I": 3, "optimizer": "sgd", "lr": 0.05, "anchor": anchor, "merge_by": "tensor"}
    mine, theirs = quick(task, **settings), quick(dense, **settings)
    moved = 0.0
    for name, value in theirs.merged.items():
        assert mine.merged[name].allclose(value, atol=2e-6), name
        moved = max(moved, (value - dict(task.policy.named_parameters())[name]).abs().max().item())
    assert moved > 1e-3
    assert mine.history["kl"].to_list() == pytest.approx(theirs.history["kl"].to_list(), abs=1e-5)
    assert mine.history["reward"].to_list() == theirs.history["reward"].to_list()


@pytest.mark.parametrize("kind", TARGETS)
def test_plain_parts_give_the_same_run(kind: str) -> None:
    fast, plain = (quick(lora_task(kind), I=1, optimizer="sgd", parts=parts) for parts in (FAST, PLAIN))
    for name, value in plain.merged.items():
        assert fast.merged[name].allclose(value, atol=1e-5), name
    assert fast.history["reward"].to_list() == plain.history["reward"].to_list()


def test_a_run_resumes_bit_identically_and_its_checkpoint_holds_what_moves(tmp_path: Path) -> None:
    def task(reward: Any) -> Task:
        return tiny.task(reward=reward, policy=peft_policy(trained=True))

    whole = quick(task(Opinion(0, fail)))
    calls = CONFIG.M * CONFIG.T + 2  # the second step of the second iteration
    with pytest.raises(RuntimeError):
        quick(task(Opinion(calls + 1, fail)), out_dir=tmp_path)
    (state,) = tmp_path.glob("*.state.safetensors")
    names = [name for name in unseal(state)[0] if name.startswith(("policy.", "anchor."))]
    layers = task(Opinion(0, fail)).lora.factors  # type: ignore[union-attr]
    expected = [f"policy.{name}.{factor}" for name in layers for factor in "AB"]
    assert sorted(names) == sorted(expected + [f"anchor.{name}.weight" for name in layers])
    assert everything(quick(task(Opinion(0, fail)), out_dir=tmp_path)) == everything(whole)


def test_a_folder_of_another_adapter_is_refused(tmp_path: Path) -> None:
    quick(lora_task(), I=1, out_dir=tmp_path)
    with pytest.raises(ValueError, match="lora"):
        quick(lora_task(lora_alpha=5), I=1, out_dir=tmp_path)


# refusals


def test_the_remedy_for_other_adapters_is_one() -> None:
    policy = peft_policy(use_dora=True)
    expected = logits(policy)
    task = tiny.task(policy=policy.merge_and_unload().requires_grad_(True))
    assert task.lora is None and logits(task.policy).allclose(expected, atol=1e-5)


def of(**settings: Any) -> Callable[[], Any]:
    return lambda: peft_policy(**settings)


def two_active() -> Any:
    policy = peft_policy()
    policy.add_adapter("second", peft.LoraConfig(r=2, **TARGETS["gpt2"]))
    policy.base_model.set_adapter(["default", "second"])
    return policy


def changed(change: Callable[[Any], Any]) -> Callable[[], Any]:
    def make() -> Any:
        policy = peft_policy()
        change(policy)
        return policy

    return make


def zero_a(policy: Any) -> None:
    with torch.no_grad():
        next(value for name, value in policy.named_parameters() if "lora_A" in name).zero_()


def other_kind() -> Any:
    config = peft.IA3Config(target_modules=["c_attn"], feedforward_modules=[], fan_in_fan_out=True)
    return peft.get_peft_model(tiny.gpt2(V), config).eval()


def soft_prompt() -> Any:
    return peft.get_peft_model(tiny.gpt2(V), peft.PromptTuningConfig("CAUSAL_LM", num_virtual_tokens=2)).eval()


BAD: dict[str, tuple[Callable[[], Any], str]] = {
    "DoRA": (of(use_dora=True), r"use_dora: True \(pass policy.merge_and_unload\(\).requires_grad_\(True\), which"),
    "whole modules": (of(modules_to_save=["ln_f"]), r"modules_to_save: \['ln_f'\]"),
    "biases": (of(bias="all"), "bias: all"),
    "bias of a factor": (of(lora_bias=True), "lora_bias: True"),
    "moved base": (of(init_lora_weights="pissa"), "init_lora_weights: pissa"),
    "IA3": (other_kind, "peft_type: IA3"),
    "soft prompt": (soft_prompt, "peft_type: PROMPT_TUNING"),
    "two active adapters": (two_active, r"active adapters are \['default', 'second'\], there must be one; call"),
    "embedding": (of(target_modules=["wte", "c_attn"]), "transformer.wte is adapted as a Embedding by"),
    "tied head": (of(target_modules=["lm_head"], fan_in_fan_out=False), "lm_head is tied to the embedding; leave it"),
    "merged": (changed(lambda policy: policy.merge_adapter()), "has its adapter merged; call policy.unmerge_adapter"),
    "disabled": (changed(lambda policy: policy.base_model.disable_adapter_layers()), "has its adapter disabled; call"),
    "nothing to train": (changed(zero_a), "has a factor A of zeros"),
    "other weights trained": (
        changed(lambda policy: policy.get_base_model().transformer.ln_f.requires_grad_(True)),
        r"transformer\.ln_f\.weight is trained beside the adapter; freeze it",
    ),
}


@pytest.mark.parametrize("name", BAD)
def test_what_is_not_plain_lora_is_refused_by_name(name: str) -> None:
    make, words = BAD[name]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # PEFT's own
        policy = make()
    before = fingerprint(policy.state_dict())
    with pytest.raises(ValueError, match=rf"the policy \({type(policy).__name__}\) is not trained by one.*{words}"):
        tiny.task(policy=policy)
    assert fingerprint(policy.state_dict()) == before


def test_an_inactive_adapter_is_left_out_and_a_frozen_one_is_trained() -> None:
    policy = peft_policy(trained=True)
    policy.add_adapter("second", peft.LoraConfig(r=3, **TARGETS["gpt2"]))
    policy.requires_grad_(False)
    task = tiny.task(policy=policy.eval())
    assert task.lora is not None and {one.a.shape[0] for one in task.lora.factors.values()} == {2}
    assert logits(task.policy).allclose(logits(policy), atol=1e-5)
    assert quick(task, I=1, M=1, T=1).runs["delta_norm"][0] > 0
