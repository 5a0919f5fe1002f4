"""Costs by counting agree with PyTorch's counter, with real tensors and with the page made of them."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from adapted import peft_policy
from tiny import gpt2, llama
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, DistilBertConfig, DistilBertForSequenceClassification, GPT2Config

from benchmarks import cost, gpu, gpu_table, lora
from benchmarks.cost import GPT2, Sizes, evaluation_work, host_memory, seconds, sizes_of, step_memory, step_work
from warp_nb.algorithm.merge import weights_of
from warp_nb.config import WarpConfig
from warp_nb.runs.training import FAST, train
from warp_nb.runs.warp import warp
from warp_nb.tasks.task import Task

B, P, C, V = 3, 5, 6, 50
PAGE = Path(__file__).resolve().parents[1] / "docs" / "gpu.md"


def eager() -> Any:
    model = gpt2(V)
    model.set_attn_implementation("eager")  # the counter does not know every fused attention
    return model


def test_gpt2_has_the_sizes_written_down() -> None:
    with torch.device("meta"):
        assert sizes_of(AutoModelForCausalLM.from_config(GPT2Config())) == GPT2
        reward = DistilBertForSequenceClassification(DistilBertConfig(num_labels=1))
    assert reward.num_parameters() == cost.REWARD_PARAMETERS


def test_grouped_keys_and_an_untied_head() -> None:
    sizes = sizes_of(llama(V))
    assert sizes == Sizes(sizes.parameters, 2 * (2 * 16 * 16 + 2 * 16 * 8 + 3 * 16 * 24), V, 16, 2, 8)
    assert sizes.parameters == sizes.body + 2 * V * 16 + 5 * 16


def test_flops_of_scoring_are_those_of_the_counter() -> None:
    model = eager()
    ids = torch.randint(V, (B, P + C - 1))
    with FlopCounterMode(display=False) as forward:
        logits = model(input_ids=ids, use_cache=False, logits_to_keep=C).logits
    with FlopCounterMode(display=False) as backward:
        logits.sum().backward()
    work = step_work(sizes_of(model), B, P, C)
    assert forward.get_total_flops() == work["anchor"].flops
    assert forward.get_total_flops() + backward.get_total_flops() == work["policy"].flops


@torch.no_grad()
def test_flops_of_sampling_are_those_of_the_counter() -> None:
    model, work = eager(), step_work(sizes_of(eager()), B, P, C)
    with FlopCounterMode(display=False) as prefill:
        cache = model(input_ids=torch.randint(V, (B, P)), use_cache=True, logits_to_keep=1).past_key_values
    with FlopCounterMode(display=False) as decode:
        for _ in range(C - 1):
            model(input_ids=torch.randint(V, (B, 1)), past_key_values=cache, use_cache=True, logits_to_keep=1)
    assert prefill.get_total_flops() == work["prefill"].flops
    assert decode.get_total_flops() == work["decode"].flops


def test_memory_is_that_of_real_tensors() -> None:
    model = gpt2(V)
    optimizer = torch.optim.Adam(model.parameters())
    model(input_ids=torch.zeros(1, 2, dtype=torch.long)).logits.sum().backward()
    optimizer.step()
    moments = [v for state in optimizer.state.values() for v in state.values() if v.ndim]
    memory = step_memory(sizes_of(model), B, P, C)
    assert memory["gradients"] == sum(p.grad.nbytes for p in model.parameters())
    assert memory["two moments of Adam"] == sum(v.nbytes for v in moments)
    assert memory["policy, anchor, θ_sft"] == 3 * sum(p.nbytes for p in model.parameters())
    assert memory["logits"] == (cost.LOGITS_ALIVE + cost.SLICES_ALIVE) * torch.empty(B, C, V).nbytes


@pytest.mark.slow
@pytest.mark.parametrize("M", [1, 2, 3])
def test_the_computers_memory_is_that_of_real_weights(M: int) -> None:
    task, alive = task_of_one_width(), []

    def merge(*args: Any, **settings: Any) -> Any:
        merged = FAST.merge(*args, **settings)
        alive.append(len({found.data_ptr() for found in gc.get_objects() if same_shape(found, embedding)}) - 1)
        return merged

    embedding = task.policy.get_input_embeddings().weight  # of the task itself; every other one is a copy
    config = WarpConfig(I=3, M=M, T=1, batch_size=2, max_new_tokens=2, threads=1)
    warp(config, task, progress=False, parts=replace(FAST, merge=merge))
    sizes = sizes_of(task.policy)
    assert max(alive) * 4 * sizes.parameters == host_memory(sizes, M)


@pytest.mark.parametrize("way", [None, {"r": 2}, {"r": 3, "target_modules": ["q_proj", "up_proj"]}])
@pytest.mark.parametrize("moved", [False, True], ids=["first iteration", "later"])
def test_weights_of_a_step_are_real_tensors_with_and_without_lora(way: dict[str, Any] | None, moved: bool) -> None:
    policy = llama(39) if way is None else peft_policy("llama", **way)
    whole, adapted, factors = lora.counts(policy)
    task, runs, found = tiny.task(policy=policy), [], {}

    def train_run(*args: Any, watch: Any, **settings: Any) -> Any:
        runs.append(watch)
        return FAST.train_run(*args, watch=watch, **settings)

    def learning_rate(lr: float, warmup_steps: int, step: int) -> float:
        """Called after the backward pass; at the second step there are moments."""
        found.clear()
        run = runs[0].run
        moments = [value for state in run.optimizer.state.values() for value in state.values() if value.ndim]
        gradients = [value.grad for value in run.policy.parameters() if value.grad is not None]
        for value in [
            *task.policy.parameters(),
            *run.policy.parameters(),
            *run.anchor.parameters(),
            *moments,
            *gradients,
        ]:
            found[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return lr

    init = weights_of(task.policy)
    if moved:
        for name, value in task.policy.named_parameters():
            init[name] += float(value.requires_grad)
    config = WarpConfig(T=2, batch_size=2, max_new_tokens=2, threads=1)
    train(config, task, init, i=1, m=1, parts=replace(FAST, train_run=train_run, learning_rate=learning_rate))
    counted = lora.step_weights(whole, adapted, factors)
    if way is not None and not moved:
        counted["θ_init, or the policy"] = 0  # shared with theta_sft
    counted["factors"] //= 3  # the template and the task hold two thirds of them
    assert sum(found.values()) == sum(counted.values())


def test_the_page_of_lora_holds_the_count() -> None:
    text = (PAGE.parent / "lora.md").read_text(encoding="utf-8")
    assert text.split("<!-- counted -->\n")[1].split("\n<!-- /counted -->")[0] == lora.counted_table()
    sizes = lora.counts(lora.large(None))
    assert sizes == (1_235_814_400, 0, 0)  # Llama 3.2 1B's


def task_of_one_width() -> Task:
    """A task whose embedding no other tensor has the shape of."""
    return tiny.task(policy=gpt2(39, width=20))


def same_shape(found: Any, tensor: torch.Tensor) -> bool:
    return type(found) in (torch.Tensor, torch.nn.Parameter) and found.shape == tensor.shape


def test_activations_are_about_what_autograd_saves() -> None:
    model = gpt2(V, width=64)
    weights, saved = {p.data_ptr() for p in model.parameters()}, {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            saved[storage.data_ptr()] = storage.nbytes(), tensor
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        logits = model(input_ids=torch.zeros(4, 20, dtype=torch.long), use_cache=False, logits_to_keep=1).logits
    assert logits.requires_grad
    estimate = step_memory(sizes_of(model), 4, 11, 10)["activations, estimated"]
    assert sum(size for size, _ in saved.values()) == pytest.approx(estimate, rel=0.1)


def test_bounds_grow_with_the_work_and_shrink_with_the_machine() -> None:
    base, rates = (16, 12, 24), (8e12, 3e11)
    least = seconds(step_work(GPT2, *base), *rates)
    for more in ((32, 12, 24), (16, 13, 24), (16, 12, 25)):
        assert seconds(step_work(GPT2, *more), *rates) > least
        assert sum(step_memory(GPT2, *more).values()) > sum(step_memory(GPT2, *base).values())
    assert seconds(step_work(GPT2, *base), 16e12, 6e11) == pytest.approx(least / 2)


def test_decoding_is_bound_by_reading_the_weights() -> None:
    decode = step_work(GPT2, 16, 12, 24)["decode"]
    assert decode.bytes >= 23 * 4 * GPT2.products
    assert decode.seconds(30e12, 300e9) == decode.bytes / 300e9


def test_evaluation_counts_every_prompt() -> None:
    whole, one = evaluation_work(GPT2, 80, 12, 24), step_work(GPT2, 1, 12, 24)
    assert whole["decode"].flops == 80 * 2 * one["decode"].flops
    assert whole["anchor"].flops == 80 * 4 * one["anchor"].flops
    assert whole["decode"].bytes >= 3 * 2 * 23 * 4 * GPT2.products
    kept = evaluation_work(GPT2, 80, 12, 24, reference_kept=True)
    assert kept["decode"].flops * 2 == whole["decode"].flops and kept["anchor"].flops * 4 == whole["anchor"].flops * 3
    assert kept["head"].flops == 80 * 24 * 2 * GPT2.width * GPT2.vocabulary


def test_the_page_holds_the_tables() -> None:
    between = PAGE.read_text(encoding="utf-8").split("<!-- costs -->\n")[1].split("\n<!-- /costs -->")[0]
    assert between == cost.markdown_table()


def test_the_page_holds_the_rows_and_targets() -> None:
    text = PAGE.read_text(encoding="utf-8")
    assert gpu_table.filled(text, gpu.read(gpu.RESULTS), gpu.ROWS) == text
    lines = text.partition(gpu_table.BEGIN)[2].partition(gpu_table.END)[0].splitlines()
    assert [line.split(" | ")[0] for line in lines[2 : 2 + len(gpu.ROWS)]] == [
        f"| {row.title}" for row in gpu.ROWS.values()
    ]
    with pytest.raises(ValueError, match="lacks the markers"):
        gpu_table.filled("no markers", {}, gpu.ROWS)


def test_the_page_and_the_rows_have_the_same_figures_of_before() -> None:
    measured = PAGE.read_text(encoding="utf-8").partition("## Measured before")[2].partition("\n## ")[0]
    cells = [[cell.strip() for cell in line.split("|")] for line in measured.splitlines() if line.startswith("| ")]
    found = {line[1]: (line[2], line[10]) for line in cells}
    for row in gpu.ROWS.values():
        if row.measure is gpu.step_row:
            before, peer = (f"{1e3 * value:.0f}" if value else "" for value in (row.before, row.before_peer))
            assert found[row.title.removesuffix(", a step")] == (before, peer)


def test_the_pages_example_runs() -> None:
    (example,) = [
        block.partition("```")[0]
        for block in PAGE.read_text(encoding="utf-8").split("```python\n")[1:]
        if "step_memory" in block.partition("```")[0]
    ]
    exec(example, {})
