"""Cost of a step, an evaluation and an experiment from sizes alone: FLOPs, bytes, lower bounds of seconds.

It counts matrix products and the bytes that no implementation avoids. It omits the reward model's
arithmetic, element-wise arithmetic, kernel launches, Python, merging and files. Seconds are lower bounds.
`python -m benchmarks.cost` prints the tables of docs/gpu.md.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from warp_nb.fast.decoding import BLOCK
from warp_nb.fast.scoring import LARGE_SLICE

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LOGITS_ALIVE = 3  # [B, C, V] at the peak: the policy's, the anchor's, the gradient
SLICES_ALIVE = 4  # fp32 slices of them (scoring.py), in `token_kl`: log-softmax of both, difference, a temporary
ACTIVATIONS = 30  # numbers kept for the backward pass a token, layer and channel: what autograd saves of GPT-2's block
REWARD_PARAMETERS = 66_954_241  # DistilBERT with one output


@dataclass(frozen=True)
class Sizes:
    """A transformer: numbers of weights and channels."""

    parameters: int
    body: int
    """Weights of the blocks' matrices: each is multiplied once per token."""
    vocabulary: int
    width: int
    layers: int
    kv_width: int
    """Channels of the keys (and of the values) per layer; the width if keys are not grouped."""

    @property
    def products(self) -> int:
        """Weights that a decode step multiplies: blocks and output head (an embedding look-up is not a product)."""
        return self.body + self.vocabulary * self.width


GPT2 = Sizes(124_439_808, 84_934_656, 50_257, 768, 12, 768)


@dataclass(frozen=True)
class Work:
    """FLOPs (a multiply-add is two) and bytes moved between memory and processor."""

    flops: float
    bytes: float

    def seconds(self, flop_per_s: float, bytes_per_s: float) -> float:
        """Return max(FLOPs / rate, bytes / bandwidth), the roofline's lower bound."""
        return max(self.flops / flop_per_s, self.bytes / bytes_per_s)


def sizes_of(model: PreTrainedModel) -> Sizes:
    """Return the sizes of a causal language model; for a config, build it on torch's device "meta" first."""
    import torch

    config: Any = model.config.get_text_config()
    looked_up = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}
    looked_up.add(id(model.get_output_embeddings().weight))
    body = sum(p.numel() for p in model.parameters() if p.ndim == 2 and id(p) not in looked_up)
    heads = config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    keys = (getattr(config, "num_key_value_heads", None) or heads) * head_width
    sizes = model.num_parameters(), body, config.vocab_size, config.hidden_size, config.num_hidden_layers, keys
    return Sizes(*sizes)


def forward_flops(sizes: Sizes, batch: int, queries: int, keys: int, predicted: int) -> int:
    """B * (2 * body * queries + 4 * width * layers * queries * keys + 2 * width * V * predicted).

    `queries` tokens go through the blocks and attend to `keys` positions, the mask's zeros included;
    the head predicts from `predicted` of them.
    """
    attention = 4 * sizes.width * sizes.layers * queries * keys
    head = 2 * sizes.width * sizes.vocabulary * predicted
    return batch * (2 * sizes.body * queries + attention + head)


def step_work(sizes: Sizes, batch: int, prompt: int, completion: int, bf16: bool = False) -> dict[str, Work]:
    """Count one policy-gradient step by phase; prompts of `prompt` tokens, completions of `completion` tokens.

    prefill: P tokens give the first token; decode: C - 1 forwards of one token, each reads all weights and the
    keys and values so far. policy: P + C - 1 tokens, C of them predicted, backward twice the forward; weights
    read twice, gradients written, logits and their gradient written and read. anchor: the same forward alone.
    update: Adam reads 4 and writes 3 numbers a parameter, the norm reads 1, the EMA reads 2 and writes 1.
    With bf16 autocast the policy's weights are cast once per phase (4 bytes read, 2 written), then read as 2.
    """
    number, cast = (2, 6 * sizes.products) if bf16 else (4, 0)
    weights = number * sizes.products
    cached = 2 * number * sizes.layers * sizes.kv_width * batch
    tokens, logits = prompt + completion - 1, number * batch * completion * sizes.vocabulary
    spans = range(prompt + 1, prompt + completion)
    forward = forward_flops(sizes, batch, tokens, tokens, completion)
    decode = sum(forward_flops(sizes, batch, 1, keys, 1) for keys in spans)
    return {
        "prefill": Work(forward_flops(sizes, batch, prompt, prompt, 1), cast + weights + cached * prompt),
        "decode": Work(decode, weights * len(spans) + cached * sum(spans)),
        "policy": Work(3 * forward, cast + 2 * weights + 4 * sizes.parameters + 4 * logits),
        "anchor": Work(forward, cast + weights + 2 * logits),
        "update": Work(0, (8 + 3) * 4 * sizes.parameters),
    }


def evaluation_work(
    sizes: Sizes, n_prompts: int, prompt: int, completion: int, reference_kept: bool = False
) -> dict[str, Work]:
    """Count one `evaluate`, fp32, in chunks of BLOCK prompts.

    Both sides sample and are scored by both models. With `reference_kept` the reference's side is read from the
    cache folder (`measure.reference_cache`): the policy samples, three forwards score, and the reference's head is
    multiplied.
    """
    total: dict[str, Work] = {}
    for start in range(0, n_prompts, BLOCK):
        batch = min(BLOCK, n_prompts - start)
        step = step_work(sizes, batch, prompt, completion)
        samplings, forwards = (1, 3) if reference_kept else (2, 4)
        times = [("prefill", samplings), ("decode", samplings), ("anchor", forwards)]
        found = {name: Work(count * step[name].flops, count * step[name].bytes) for name, count in times}
        if reference_kept:
            weights, logits = sizes.vocabulary * sizes.width, batch * completion * sizes.vocabulary
            found["head"] = Work(2 * sizes.width * logits, 4 * (weights + logits))
        for name, new in found.items():
            old = total.get(name, Work(0, 0))
            total[name] = Work(old.flops + new.flops, old.bytes + new.bytes)
    return total


def seconds(work: dict[str, Work], flop_per_s: float, bytes_per_s: float) -> float:
    """Return the lower bound of sequential phases, seconds."""
    return sum(phase.seconds(flop_per_s, bytes_per_s) for phase in work.values())


def step_memory(sizes: Sizes, batch: int, prompt: int, completion: int, bf16: bool = False) -> dict[str, int]:
    """Return the bytes on the device at the peak of a step, at the end of the backward pass.

    Activations are estimated: 30 fp32 numbers per token, layer and channel (bf16 is not counted smaller, and
    attention's own matrices are left out). bf16 adds the cast copies of the multiplied weights.
    """
    model, tokens = 4 * sizes.parameters, prompt + completion - 1
    logits = batch * completion * sizes.vocabulary
    return {
        "policy, anchor, θ_sft": 3 * model,
        "gradients": model,
        "two moments of Adam": 2 * model,
        "reward model": 4 * REWARD_PARAMETERS,
        "logits": LOGITS_ALIVE * (2 if bf16 else 4) * logits + SLICES_ALIVE * 4 * min(logits, LARGE_SLICE),
        "activations, estimated": ACTIVATIONS * 4 * sizes.width * sizes.layers * batch * tokens,
        "bf16 copies of weights": 2 * sizes.products if bf16 else 0,
    }


def host_memory(sizes: Sizes, M: int) -> int:
    """Return the largest number of bytes of weights in host memory: when an iteration after the first one merges.

    θ_sft, θ_init, the M runs of this iteration and of the one before, θ_slerp of this one and of the one before.
    """
    return 4 * sizes.parameters * (2 * M + 4)


GPUS = (
    ("T4, 16 GB", "fp32", 8.1e12, 320e9),
    ("L4, 24 GB", "fp32", 30e12, 300e9),
    ("L4, 24 GB", "bf16", 121e12, 300e9),
    ("A100, 40 GB", "fp32", 19.5e12, 1555e9),
    ("A100, 40 GB", "bf16", 312e12, 1555e9),
    ("H100 SXM, 80 GB", "fp32", 67e12, 3350e9),
    ("H100 SXM, 80 GB", "bf16", 989e12, 3350e9),
)
"""Name, arithmetic, dense FLOP/s and bytes/s from the vendor's data sheet."""


def markdown_table(prompt: int = 13, completion: int = 24, steps: int = 40, n_prompts: int = 256) -> str:
    """Return the tables of docs/gpu.md: GPT-2 124M, batches of 16 and 64, prompts of a begin token and 12 others."""
    lines = ["| memory, GB (1e9 bytes) | batch 16 | batch 64 |", "|---|---|---|"]
    small, large = (step_memory(GPT2, batch, prompt, completion, bf16=True) for batch in (16, 64))
    lines += [f"| {name} | {small[name] / 1e9:.2f} | {large[name] / 1e9:.2f} |" for name in small]
    lines.append(f"| sum on the GPU | {sum(small.values()) / 1e9:.2f} | {sum(large.values()) / 1e9:.2f} |")
    host = f"{host_memory(GPT2, 2) / 1e9:.2f}"
    lines += [f"| weights in the computer's memory (M = 2) | {host} | {host} |", ""]
    head = f"step of 16, ms | step of 64, ms | {steps} steps of 16 and the evaluation, s"
    lines += [f"| at least | dtype | {head} |", "|---|---|---|---|---|"]
    fp32 = {gpu: rate for gpu, kind, rate, _ in GPUS if kind == "fp32"}
    for gpu, kind, rate, bandwidth in GPUS:
        first, second = (
            seconds(step_work(GPT2, batch, prompt, completion, kind == "bf16"), rate, bandwidth) for batch in (16, 64)
        )
        evaluation = seconds(evaluation_work(GPT2, n_prompts, prompt, completion), fp32[gpu], bandwidth)
        whole = steps * first + evaluation
        lines.append(f"| {gpu} | {kind} | {first * 1e3:.0f} | {second * 1e3:.0f} | {whole:.1f} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(markdown_table())
