"""Memory of a step by LoRA and of a step that trains all weights: counted for 1B parameters, measured on a small model.

`python -m benchmarks.lora` measures in fresh processes on the CPU and fills the two tables of docs/lora.md.
"""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

from benchmarks.sides import ROOT, Turns, once

PAGE = ROOT / "docs" / "lora.md"
LARGE: dict[str, Any] = {
    "vocab_size": 128_256, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 16,
    "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 64, "tie_word_embeddings": True,
}  # fmt: skip
"""A Llama of the shape of Llama 3.2 1B."""
SMALL: dict[str, Any] = {
    "vocab_size": 2000, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 6,
    "num_attention_heads": 8, "num_key_value_heads": 8, "tie_word_embeddings": True, "max_position_embeddings": 64,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
ATTENTION = ["q_proj", "v_proj"]
LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
WAYS: dict[str, dict[str, Any] | None] = {
    "all weights": None,
    "LoRA, r = 8, q_proj and v_proj": {"r": 8, "target_modules": ATTENTION},
    "LoRA, r = 16, all linear layers": {"r": 16, "target_modules": LINEAR},
}
"""What is trained -> settings of PEFT's `LoraConfig`."""


def counts(policy: Any) -> tuple[int, int, int]:
    """Return the numbers of all weights, of those in adapted matrices, and of those in factors, of a PEFT model or not.

    The model may lie on torch's device "meta".
    """
    layers = [module for module in policy.modules() if hasattr(module, "lora_A")]
    factors = sum(value.numel() for name, value in policy.named_parameters() if ".lora_" in name)
    adapted = sum(layer.base_layer.weight.numel() for layer in layers)
    return sum(value.numel() for value in policy.parameters()) - factors, adapted, factors


def step_weights(parameters: int, adapted: int = 0, factors: int = 0) -> dict[str, int]:
    """Return the bytes of fp32 tensors of the size of weights that are on the device at the end of a backward pass.

    Without factors all weights are trained. With them the run, its template and the task hold factors. θ_init of the
    first iteration is θ_sft itself.
    """
    moved, trained = (adapted, factors) if factors else (parameters, parameters)
    found = {"θ_sft": parameters, "θ_init, or the policy": moved, "anchor": moved}
    found |= {"factors": 3 * factors, "gradients": trained, "two moments of Adam": 2 * trained}
    return {name: 4 * count for name, count in found.items()}


def large(settings: dict[str, Any] | None) -> Any:
    """Return the model of 1B parameters on the device "meta", with an adapter if there are settings of one."""
    import peft
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**LARGE))
        return model if settings is None else peft.get_peft_model(model, peft.LoraConfig(**settings))


def counted_table() -> str:
    """Return the table of the 1B model, GB."""
    columns = {way: step_weights(*counts(large(settings))) for way, settings in WAYS.items()}
    lines = ["| GB (1e9 bytes) | " + " | ".join(columns) + " |", "|---|" + "---|" * len(columns)]
    for name in next(iter(columns.values())):
        lines.append(f"| {name} | " + " | ".join(f"{column[name] / 1e9:.2f}" for column in columns.values()) + " |")
    sums = {way: sum(column.values()) for way, column in columns.items()}
    lines.append("| sum | " + " | ".join(f"{total / 1e9:.2f}" for total in sums.values()) + " |")
    whole = sums["all weights"]
    lines.append("| share | " + " | ".join(f"{100 * total / whole:.0f} %" for total in sums.values()) + " |")
    return "\n".join(lines)


def side(turns: Turns, *, settings: dict[str, Any] | None) -> None:
    """Train the small model for two steps and answer with what was counted and measured beyond θ_sft, bytes."""
    import peft
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    from warp_nb.algorithm.merge import weights_of
    from warp_nb.config import WarpConfig
    from warp_nb.runs.training import PLAIN, train
    from warp_nb.tasks.task import Task

    torch.manual_seed(0)
    words = [f"w{number}" for number in range(SMALL["vocab_size"])]
    inner = Tokenizer(models.WordLevel({word: number for number, word in enumerate(words)}, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    policy: Any = LlamaForCausalLM(LlamaConfig(**SMALL)).eval()
    if settings is not None:
        policy = peft.get_peft_model(policy, peft.LoraConfig(**settings)).eval()
    counted = step_weights(*counts(policy))
    prompts = [f"w{number} w{number + 1}" for number in range(8)]
    task = Task(policy, PreTrainedTokenizerFast(tokenizer_object=inner), lambda prompts, completions, **rest: [
        float(len(text)) for text in completions], prompts[:4], prompts[4:])  # fmt: skip
    init = weights_of(task.policy)  # another iteration's: its adapted weights have moved
    for name, value in task.policy.named_parameters():
        if value.requires_grad:
            init[name] += 1e-3
    before, peaks = resident(), []
    config = WarpConfig(T=2, batch_size=2, max_new_tokens=4, lr=1e-4)
    train(config, task, init, i=1, m=1, parts=PLAIN, on_step=lambda row: peaks.append(peak()))
    beyond = sum(counted.values()) - counted["θ_sft"]
    if settings is not None:  # on a CPU θ_init is in memory anyway, and the task has its factors
        beyond -= counted["θ_init, or the policy"] + counted["factors"] // 3
    turns.next(counted=beyond, measured=peaks[-1] - before, weights=counted["θ_sft"])


def resident() -> int:
    """Give freed memory back to Linux and return this process's resident memory, bytes."""
    import ctypes
    import gc

    import psutil

    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Return the peak of this process's resident memory, bytes."""
    from warp_nb.measure.machine import peak_rss_mb

    return int(peak_rss_mb() * 1e6)


def measured_table() -> str:
    """Return the table of the small model, MB, each figure from a fresh process.

    The C library maps tensors one by one there, so that a tensor that is freed is given back at once.
    """
    os.environ["MALLOC_MMAP_THRESHOLD_"] = str(2**20)
    lines = ["| MB beyond θ_sft and θ_init | counted | measured |", "|---|---|---|"]
    for way, settings in WAYS.items():
        found = once("benchmarks.lora:side", settings=settings)
        lines.append(f"| {way} | {found['counted'] / 1e6:.0f} | {found['measured'] / 1e6:.0f} |")
    return "\n".join(lines)


def filled(page: str, **tables: str) -> str:
    """Return a page with tables between the markers of their names."""
    for name, table in tables.items():
        page = re.sub(rf"(<!-- {name} -->\n).*?(\n<!-- /{name} -->)", rf"\g<1>{table}\2", page, flags=re.DOTALL)
    return page


def main(page: Path = PAGE) -> None:
    """Fill the tables of the page."""
    tables = {"counted": counted_table(), "measured": measured_table()}
    page.write_text(filled(page.read_text(encoding="utf-8"), **tables), encoding="utf-8")


if __name__ == "__main__":
    main()
