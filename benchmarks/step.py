"""Part step-*: a policy-gradient step against TRL's RLOOTrainer on the same work.

Sampling, a free reward call, log-probabilities, anchor, backward, Adam, EMA; the same policy, prompts, number and
length of completions, temperature, dtype, optimizer steps per batch (one). TRL keeps its defaults: two completions per
prompt, a second forward for the log-probabilities of the weights that sampled. Neither clips gradients, logs or saves.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from statistics import fmean
from typing import Any

from benchmarks.figures import Figure, compare_units
from benchmarks.sides import Side, Turns, interleave

PEER = "TRL RLOOTrainer"


def run(
    say: Callable[[str], None], pairs: int, checkpointing_pairs: int, targets: dict[str, float], **settings: Any
) -> Figure:
    """Measure interleaved pairs against the trainer without gradient checkpointing, then with it (TRL's default)."""
    found: list[Figure] = []
    with Side("benchmarks.step:ours", **settings) as ours:
        for checkpointing in [False, True] if checkpointing_pairs else [False]:
            count = checkpointing_pairs if checkpointing else pairs
            peer = f"{PEER}, gradient checkpointing (its default)" if checkpointing else PEER
            with Side("benchmarks.step:trl", checkpointing=checkpointing, **settings) as theirs:
                mine, other = interleave(ours, theirs, count, say, f"{peer}, pair")
            same_work(mine[-1], other[-1])
            goals = {} if checkpointing else targets
            found += compare_units(f"{settings['task']} step", peer, mine, other, goals, settings["steps"])
    return {"comparisons": found, "tokens": {"ours": mine[-1]["tokens"], "theirs": other[-1]["tokens"]}}


def same_work(mine: Figure, other: Figure, tolerance: float = 0.05) -> None:
    """Raise RuntimeError if prompts or completions of the two sides differ in length, tokens per row."""
    for name in ("prompt_tokens", "tokens"):
        if abs(mine[name] - other[name]) > tolerance * other[name]:
            raise RuntimeError(f"{name}: {mine[name]} on our side, {other[name]} on the peer's; not the same work")


def ours(turns: Turns, *, settle: int, steps: int, warmup: int, **shape: Any) -> None:
    """Run the side: a run as in `warp`, in units of `settle` + `steps` steps."""
    from benchmarks import work

    setup = work.setup(**shape)
    _, mask = setup.task.encode(setup.task.train_prompts, setup.task.sampling(1))
    width = mask.sum(1).double().mean().item()

    def on_step(row: dict[str, float]) -> None:
        tokens = {"tokens": row["tokens"], "prompt_tokens": width}
        turns.at_step(int(row["step"]), warmup=warmup, settle=settle, steps=steps, **tokens)

    setup.run(on_step=on_step)


def trl(
    turns: Turns, *, settle: int, steps: int, warmup: int, checkpointing: bool, device: str = "cpu", **shape: Any
) -> None:
    """Run the side: the same run by RLOOTrainer, whose reference model is the EMA anchor."""
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import RLOOConfig, RLOOTrainer

    from benchmarks import work

    turns.wait = work.waiter(device)
    setup = work.setup(device=device, **shape)
    task, begin = setup.task, setup.task.tokenizer.bos_token or ""
    texts = [f"{begin}{prompt}" for prompt in task.train_prompts]
    given = task.tokenizer(texts)["input_ids"]
    ids, mask = task.encode(task.train_prompts, task.sampling(1))
    if given != [row[keep].tolist() for row, keep in zip(ids, mask.bool(), strict=True)]:
        raise RuntimeError("the two sides tokenise the prompts differently; not the same work")
    tokens = {"prompt_tokens": fmean(map(len, given))}

    def reward(prompts: list[str], completions: list[str], completion_ids: list[list[int]], **_: Any) -> Any:
        tokens["tokens"] = fmean(map(len, completion_ids))
        return work.free_reward(prompts, completions)

    class Stepwise(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            peak = {"peak_device": work.peak_device(device)}
            turns.at_step(state.global_step, warmup=warmup, settle=settle, steps=steps, **tokens, **peak)

    with tempfile.TemporaryDirectory() as folder:
        config = RLOOConfig(
            output_dir=folder,
            use_cpu=device == "cpu",
            per_device_train_batch_size=shape["batch"],
            num_generations=2,
            max_steps=work.ENDLESS,
            max_completion_length=shape["completion"],
            temperature=1.0,
            top_k=0,
            generation_kwargs={"use_cache": True},
            beta=work.BETA,
            sync_ref_model=True,
            ref_model_mixup_alpha=work.MU,
            ref_model_sync_steps=1,
            disable_dropout=True,
            learning_rate=work.LR,
            lr_scheduler_type="constant",
            max_grad_norm=0.0,
            bf16=shape["dtype"] == "bfloat16",
            gradient_checkpointing=checkpointing,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        data = Dataset.from_dict({"prompt": texts})
        trainer = RLOOTrainer(
            task.policy, reward, config, train_dataset=data, processing_class=task.tokenizer, callbacks=[Stepwise()]
        )
        trainer.train()
