"""Part choices: what each choice of a step saves, and what was left out because it saves nothing.

A choice is reversed, or one that was left out is made, and that step is timed against the real step, in pairs.

    python -m benchmarks.choices freed_memory_kept --task small --pairs 7    # some of them alone; no result is saved
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figure, compare_units
from benchmarks.sides import Side, Turns, interleave

if TYPE_CHECKING:
    import torch

    from benchmarks.work import Setup

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
"""Names of settings in glibc's malloc.h."""


def run(say: Callable[[str], None], pairs: int, only: Sequence[str] = (), **settings: Any) -> Figure:
    """Compare, for each choice (of `only`, or all), the real step with the other way; add the shares of padding."""
    found: list[Figure] = []
    with Side("benchmarks.choices:step", other="", **settings) as ours:
        for other in only or CHOICES:
            title, in_use, _ = CHOICES[other]
            with Side("benchmarks.choices:step", other=other, **settings) as theirs:
                units = interleave(ours, theirs, pairs, say, f"{title}, pair")
            seconds, memory = compare_units(title, other, *units, {})
            ready = {"ours_ready": ours.warmup["seconds"], "theirs_ready": theirs.warmup["seconds"]}
            found += [seconds | ready | {"in_use": in_use}, memory | {"in_use": in_use}]
        padding = {name: ours.warmup[name] for name in ("prompt_padding", "after_the_end")}
    return {"choices": found, "padding": padding}


def step(turns: Turns, *, other: str, warmup: int, **shape: Any) -> None:
    """Run the side: real steps, or steps the `other` way; a unit is one untimed step and one timed step."""
    from benchmarks import work

    setup = work.setup(**shape)
    _, mask = setup.task.encode(setup.task.train_prompts, setup.task.sampling(1))
    padding = 1 - mask.double().mean().item()
    if other:
        setup = CHOICES[other][2](setup)

    def on_step(row: dict[str, float]) -> None:
        shares = {"prompt_padding": padding, "after_the_end": 1 - row["tokens"] / shape["completion"]}
        turns.at_step(int(row["step"]), warmup=warmup, settle=1, steps=1, **shares)

    setup.run(on_step=on_step)


# The other way


def plain_decoding(setup: Setup) -> Setup:
    """Decode every new token by transformers' own forward and cache."""
    from warp_nb.algorithm.objective import sample
    from warp_nb.fast.agreement import CachedForward

    sampled = partial(sample, decoder=lambda policy, batch, length: CachedForward(policy))
    return replace(setup, parts=replace(setup.parts, sample=sampled))


def bf16_attention(setup: Setup) -> Setup:
    """Train with transformers' attention, in bf16; the name `sdpa` is the one for which a run chooses its own."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    AttentionInterface.register("plain-sdpa", sdpa_attention_forward)
    AttentionMaskInterface.register("plain-sdpa", sdpa_mask)
    setup.task.policy.set_attn_implementation("plain-sdpa")
    return setup


def fp32(setup: Setup) -> Setup:
    """Compute all products in fp32."""
    return replace(setup, config=setup.config.replace(dtype="float32"))


def whole_logits(setup: Setup) -> Setup:
    """Compute the log-softmax of all logits in fp32 at once, and its gradient by autograd."""
    from warp_nb.algorithm.objective import token_kl, token_log_probs

    return replace(setup, parts=replace(setup.parts, token_log_probs=token_log_probs, token_kl=token_kl))


def unfused_adam(setup: Setup) -> Setup:
    """Update with torch's default on the CPU, a loop over the tensors."""
    import torch

    def train_run(*args: Any, **settings: Any) -> Any:
        return setup.parts.train_run(*args, **settings | {"optimizer": torch.optim.Adam})

    return replace(setup, parts=replace(setup.parts, train_run=train_run))


def ema_in_a_loop(setup: Setup) -> Setup:
    """Update the anchor tensor by tensor."""
    from warp_nb.algorithm.merge import ema_update_

    return replace(setup, parts=replace(setup.parts, ema_update_=ema_update_))


def freed_memory_kept(setup: Setup) -> Setup:
    """Let glibc keep freed blocks for the next step instead of returning them to the system, which clears them."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not (mallopt(M_MMAP_MAX, 0) and mallopt(M_TRIM_THRESHOLD, 2**31 - 1)):
        raise RuntimeError("this C library has no mallopt; measure this choice on Linux with glibc")
    return setup


def compiled(setup: Setup, **options: Any) -> Setup:
    """Score with Inductor's kernels, forward and backward, for any length; `options` are those of torch.compile."""
    import torch

    known: dict[int, Any] = {}

    def completion_logits(policy: Any, rollout: Any) -> torch.Tensor:
        if id(policy) not in known:
            known[id(policy)] = torch.compile(policy, dynamic=True, **options)
        return setup.parts.completion_logits(known[id(policy)], rollout)

    return replace(setup, parts=replace(setup.parts, completion_logits=completion_logits))


CHOICES: dict[str, tuple[str, bool, Callable[[Setup], Setup]]] = {
    "plain_decoding": ("weights laid out for decoding", True, plain_decoding),
    "bf16_attention": ("attention in fp32 beside bf16 products", True, bf16_attention),
    "fp32": ("products in bf16", True, fp32),
    "whole_logits": ("log-probabilities and KL in slices", True, whole_logits),
    "unfused_adam": ("fused Adam", True, unfused_adam),
    "ema_in_a_loop": ("EMA in one launch", True, ema_in_a_loop),
    "freed_memory_kept": ("freed memory kept (mallopt)", False, freed_memory_kept),
    "compiled": ("torch.compile of both models", False, compiled),
}
"""The other way -> the choice, whether a step makes it, and the function that makes the other step."""


def main(argv: Sequence[str] | None = None) -> None:
    """Measure some choices and print their table."""
    import argparse

    from benchmarks.__main__ import CHOICE_SETTINGS
    from benchmarks.page import choices_table

    parser = argparse.ArgumentParser(prog="python -m benchmarks.choices", description=main.__doc__)
    parser.add_argument("choices", nargs="+", choices=CHOICES)
    parser.add_argument("--task", choices=CHOICE_SETTINGS, default="smollm")
    parser.add_argument("--pairs", type=int, default=7)
    given = parser.parse_args(argv)
    settings = CHOICE_SETTINGS[given.task] | {"pairs": given.pairs}
    print(choices_table({"choices": run(print, only=given.choices, **settings)}))


if __name__ == "__main__":
    main()
