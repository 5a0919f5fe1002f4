"""Part step-*: a policy-gradient step against TRL's RLOOTrainer on the same work.

Sampling, a free reward call, log-probabilities, anchor, backward, Adam, EMA; the same policy,
prompts, number and length of completions, temperature, dtype, optimizer steps a batch (one).
TRL keeps its own way: two completions a prompt, a second forward for the log-probabilities of
the weights that sampled. Neither clips gradients, logs or saves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from typing import Any

from benchmarks.figures import Figure, compare_units
from benchmarks.sides import Side, Turns, interleave

BETA, MU, LR = 0.1, 0.01, 1e-6
ENDLESS = 100_000
PEER = "TRL RLOOTrainer"


def run(
    say: Callable[[str], None], pairs: int, checkpointing_pairs: int, targets: dict[str, float], **settings: Any
) -> Figure:
    """Interleaved pairs against the trainer without gradient checkpointing, then a few with it (TRL's default)."""
    found: list[Figure] = []
    with Side("benchmarks.step:ours", **settings) as ours:
        for checkpointing, count in ((False, pairs), (True, checkpointing_pairs)):
            peer = f"{PEER}, gradient checkpointing (its default)" if checkpointing else PEER
            with Side("benchmarks.step:trl", checkpointing=checkpointing, **settings) as theirs:
                mine, other = interleave(ours, theirs, count, say, f"{peer}, pair")
            same_work(mine[-1], other[-1])
            goals = {} if checkpointing else targets
            found += compare_units(f"{settings['task']} step", peer, mine, other, goals, settings["steps"])
    return {"comparisons": found, "tokens": {"ours": mine[-1]["tokens"], "theirs": other[-1]["tokens"]}}


def same_work(mine: Figure, other: Figure, tolerance: float = 0.05) -> None:
    """Raises RuntimeError when prompts or completions of the two sides differ in length, tokens a row."""
    for name in ("prompt_tokens", "tokens"):
        if abs(mine[name] - other[name]) > tolerance * other[name]:
            raise RuntimeError(f"{name}: {mine[name]} on our side, {other[name]} on the peer's; not the same work")


def in_turn(turns: Turns, step: int, settle: int, steps: int, **figures: Any) -> None:
    """A turn is `settle` steps that bring back what the other side displaced and `steps` that are timed."""
    place = step % (settle + steps)
    if place == 0:
        turns.next(**figures)
    elif place == settle:
        turns.begin()


def ours(
    turns: Turns, task: str, batch: int, completion: int, dtype: str, settle: int, steps: int, warmup: int, threads: int
) -> None:
    """A run of `train_run`, in turns of `settle` + `steps` steps."""
    import torch

    from benchmarks import work
    from warp_nb import WarpConfig
    from warp_nb.fast.rollout import encode_prompts
    from warp_nb.runs.policy_gradient import train_run

    torch.set_num_threads(threads)
    work_task = work.task(task)
    width = encode_prompts(work_task.tokenizer, work_task.train_prompts, 1 << 20)[1].sum(1).float().mean().item()
    config = WarpConfig(
        T=ENDLESS, lr=LR, warmup_steps=0, beta=BETA, mu=MU, batch_size=batch, max_new_tokens=completion, dtype=dtype
    )

    def on_step(row: dict[str, float]) -> None:
        if row["step"] >= warmup:
            in_turn(turns, int(row["step"]) - warmup, settle, steps, tokens=row["tokens"], prompt_tokens=width)

    train_run(work_task, config, work_task.policy.state_dict(), 1, 1, on_step)


def trl(
    turns: Turns,
    task: str,
    batch: int,
    completion: int,
    dtype: str,
    settle: int,
    steps: int,
    warmup: int,
    threads: int,
    checkpointing: bool,
) -> None:
    """The same run by RLOOTrainer: its reference model is the EMA anchor."""
    import torch
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    from benchmarks import work
    from warp_nb.fast.rollout import encode_prompts

    torch.set_num_threads(threads)
    policy, tokenizer = work.load(task)
    texts = [f"{tokenizer.bos_token or ''}{prompt}" for prompt in work.prompts(tokenizer)]
    given = tokenizer(texts)["input_ids"]
    ids, mask = encode_prompts(tokenizer, work.prompts(tokenizer), 1 << 20)
    if given != [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)]:
        raise RuntimeError("the two sides tokenise the prompts differently; not the same work")

    class Stepwise(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step >= warmup:
                tokens, width = trainer._metrics["train"]["completions/mean_length"][-1], mask.sum(1).float().mean()
                in_turn(turns, state.global_step - warmup, settle, steps, tokens=tokens, prompt_tokens=width.item())

    with tempfile.TemporaryDirectory() as folder:
        config = RLOOConfig(
            output_dir=folder,
            use_cpu=True,
            per_device_train_batch_size=batch,
            num_generations=2,
            max_steps=ENDLESS,
            max_completion_length=completion,
            temperature=1.0,
            top_k=0,
            generation_kwargs={"use_cache": True},
            beta=BETA,
            sync_ref_model=True,
            ref_model_mixup_alpha=MU,
            ref_model_sync_steps=1,
            disable_dropout=True,
            learning_rate=LR,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=dtype == "bfloat16",
            gradient_checkpointing=checkpointing,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = Dataset.from_dict({"prompt": texts})
        reward: Any = work.free_reward
        trainer = RLOOTrainer(policy, reward, config, train_dataset=data, processing_class=tokenizer)
        trainer.add_callback(Stepwise())
        trainer.train()
