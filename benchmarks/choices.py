"""Part choices: what each choice of a step saves, and what was left out for want of it.

A choice is taken back (or a left-out one made) from outside, and the step timed beside the step as it is, in pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figure, compare
from benchmarks.sides import Side, Turns, interleave

if TYPE_CHECKING:
    import torch

    from warp_nb.fast.rollout import Rollout

MADE = {
    "weights laid out for decoding": "plain_decoding",
    "laid-out weights packed by oneDNN": "unpacked",
    "attention in fp32 beside bf16 products": "bf16_attention",
    "products in bf16": "fp32",
    "log-probabilities and KL in slices": "whole_logits",
    "fused Adam": "unfused_adam",
    "freed memory kept": "freed_memory_given_back",
}
"""What a step does -> the function here that takes it back."""
LEFT_OUT = {"torch.compile of both models": "compiled"}
"""What a step does not do -> the function here that makes it so."""


def run(say: Callable[[str], None], pairs: int, **settings: Any) -> Figure:
    """For each choice the step as it is beside the step the other way; the shares of padding in the work."""
    found: list[Figure] = []
    with Side("benchmarks.choices:step", other="", **settings) as ours:
        for titles, in_use in ((MADE, True), (LEFT_OUT, False)):
            for title, other in titles.items():
                with Side("benchmarks.choices:step", other=other, **settings) as theirs:
                    mine, its = interleave(ours, theirs, pairs, say, f"{title}, pair")
                    fast, slow = ([unit["seconds"] for unit in side] for side in (mine, its))
                    ready = {"ours_ready": ours.warmup["seconds"], "theirs_ready": theirs.warmup["seconds"]}
                found.append(compare(title, "s", other, fast, slow) | ready | {"in_use": in_use})
        padding = {name: ours.warmup[name] for name in ("prompt_padding", "after_the_end")}
    return {"choices": found, "padding": padding}


def step(
    turns: Turns,
    other: str,
    task: str,
    batch: int,
    completion: int,
    dtype: str,
    warmup: int,
    threads: int,
) -> None:
    """The side: `train_run` as it is or the `other` way; a turn is a step that settles and one that is timed."""
    import torch

    from benchmarks import work
    from benchmarks.step import BETA, ENDLESS, LR, MU, in_turn
    from warp_nb import WarpConfig
    from warp_nb.fast.rollout import encode_prompts
    from warp_nb.runs.policy_gradient import train_run

    torch.set_num_threads(threads)
    if other == "fp32":
        dtype = "float32"
    elif other:
        globals()[other]()
    work_task = work.task(task)
    mask = encode_prompts(work_task.tokenizer, work_task.train_prompts, 1 << 20)[1]
    padding = 1 - mask.double().mean().item()
    config = WarpConfig(T=ENDLESS, lr=LR, warmup_steps=0, beta=BETA, mu=MU, dtype=dtype)

    def on_step(row: dict[str, float]) -> None:
        if row["step"] >= warmup:
            after = 1 - row["tokens"] / completion
            in_turn(turns, int(row["step"]) - warmup, 1, 1, prompt_padding=padding, after_the_end=after)

    config = config.replace(batch_size=batch, max_new_tokens=completion)
    train_run(work_task, config, work_task.policy.state_dict(), 1, 1, on_step)


def plain_decoding() -> None:
    """transformers' own forward and cache for every new token."""
    from warp_nb.fast.decoder import LlamaDecoder

    LlamaDecoder.fits = staticmethod(lambda policy: False)  # type: ignore[method-assign]


def unpacked() -> None:
    """Fused projections, multiplied as torch has them."""
    from warp_nb.fast import decoder

    decoder._can_pack = lambda dtype: False


def bf16_attention() -> None:
    """torch's bf16 attention in training."""
    from warp_nb.runs import policy_gradient

    policy_gradient.prepare_attention = lambda model, dtype: None


def whole_logits() -> None:
    """Log-softmax of all logits in fp32 at once, its gradient by autograd."""
    from warp_nb.runs import policy_gradient

    def masked(values: torch.Tensor, rollout: Rollout) -> torch.Tensor:
        return values.masked_fill(~rollout.completion_mask, 0.0)

    def token_log_probs(logits: torch.Tensor, rollout: Rollout, temperature: float = 1.0) -> torch.Tensor:
        tokens = rollout.ids[:, -rollout.width :, None]
        return masked((logits.float() / temperature).log_softmax(2).gather(2, tokens)[:, :, 0], rollout)

    def token_kl(
        logits_p: torch.Tensor, logits_q: torch.Tensor, rollout: Rollout, temperature: float = 1.0
    ) -> torch.Tensor:
        log_p, log_q = ((logits.detach().float() / temperature).log_softmax(2) for logits in (logits_p, logits_q))
        return masked((log_p.exp() * (log_p - log_q)).sum(2), rollout)

    policy_gradient.token_log_probs, policy_gradient.token_kl = token_log_probs, token_kl


def unfused_adam() -> None:
    """torch's default on the CPU: a loop over the tensors."""
    import torch

    from warp_nb.runs import policy_gradient

    policy_gradient.build_optimizer = lambda config, policy: torch.optim.Adam(policy.parameters(), lr=config.lr)


def freed_memory_given_back() -> None:
    """glibc's default."""
    from warp_nb.runs import policy_gradient

    policy_gradient.keep_freed_memory = lambda: False  # type: ignore[assignment]


def compiled() -> None:
    """Inductor's kernels for the scoring forwards and the backward pass, for any length."""
    import torch

    from warp_nb.fast.scoring import scored_inputs
    from warp_nb.runs import policy_gradient

    known: dict[int, Any] = {}

    def completion_logits(policy: Any, rollout: Rollout) -> torch.Tensor:
        compiled_policy = known.setdefault(id(policy), torch.compile(policy, dynamic=True))
        return compiled_policy(**scored_inputs(rollout)).logits

    policy_gradient.completion_logits = completion_logits
