"""The sides of `benchmarks.gpu`: what runs in a process of its own on the device, and imports torch."""

from __future__ import annotations

import copy
import dataclasses
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from itertools import pairwise
from typing import Any

import torch

from benchmarks import work
from benchmarks.cost import evaluation_work, seconds, sizes_of
from benchmarks.floor import best_rates, machine_rates, phase_floors, products
from benchmarks.sides import Turns
from warp_nb import evaluate
from warp_nb.fast.capture import why_eager
from warp_nb.fast.decoding import BLOCK
from warp_nb.fast.devices import arithmetic
from warp_nb.files import cache_dir

PARTS_OF = {
    "sampling": ("prefill", "decode"),
    "reward": (),
    "loss and backward": ("forward", "anchor", "backward"),
    "optimizer": ("optimizer",),
    "EMA": ("ema",),
}
"""Phases that are seen from outside of a captured step -> those of `benchmarks.phases` whose floors they add up."""
LAUNCHES = ("cudaLaunchKernel", "cuLaunchKernel")
COPIES = ("cudaMemcpy", "cudaMemset")
ANNOTATIONS = ("ProfilerStep", "Optimizer.")
"""Beginnings of names that the profiler writes over kernels: they take no time of their own."""
SETTLED = 3
"""Steps before the one that is profiled, or before those whose phases are measured."""


def prepare(turns: Turns, *, task: str, device: str) -> None:
    """Run the side: load a task; the answer names the folders of the cache that this made."""
    from warp_nb import load_task

    def folders() -> set[str]:
        return {path.name for path in cache_dir().iterdir() if path.is_dir()} if cache_dir().is_dir() else set()

    before = folders()
    load_task(task, device)
    turns.next(made=sorted(name for name in folders() - before if not name.startswith(".")))


# A step


def step(
    turns: Turns,
    *,
    pairs: int,
    steps: int,
    warmup: int,
    profiled: bool,
    buffers: Mapping[str, int],
    device: str,
    **shape: Any,
) -> None:
    """Run the side: `pairs` units of `steps` steps, one unit with the floors, one with profile and phases of a step."""
    turns.wait = work.waiter(device)
    setup = work.setup(steps=warmup + pairs * steps, device=device, **shape)
    _, mask = setup.task.encode(setup.task.train_prompts, setup.task.sampling(1))
    width = mask.sum(1).double().mean().item()

    def on_step(row: dict[str, float]) -> None:
        tokens = {"tokens": row["tokens"], "prompt_tokens": width, "peak_device": work.peak_device(device)}
        turns.at_step(int(row["step"]), warmup=warmup, settle=0, steps=steps, **tokens)

    setup.run(on_step=on_step)
    about = setup.task.facts.get("weights", "")
    with arithmetic(setup.config.dtype, setup.task.policy.device):
        eager = why_eager(setup.task.policy)
    floors, rates, tokens = step_floors(setup, buffers=buffers, device=device)
    turns.next(eager=eager, weights=about, floors=floors, rates=rates, shape=tokens)
    phases = phases_outside(setup, turns.wait, steps)
    turns.next(phases=phases, **{"profile": profile(setup, device)} if profiled else {})


def step_floors(
    setup: work.Setup, *, buffers: Mapping[str, int], device: str
) -> tuple[dict[str, float], dict[str, float], dict[str, int]]:
    """Return the floor of every phase (see PARTS_OF), the rates measured for it, and the shape of the step."""
    task, config = setup.task, setup.config
    completion = config.max_new_tokens
    prompt = task.encode(task.train_prompts, task.sampling(completion))[0].shape[1]
    sizes, tokens = sizes_of(task.policy), {"batch": config.batch_size, "prompt": prompt, "completion": completion}
    shapes = products(task.policy, config.batch_size, prompt + completion - 1, completion)
    kind = getattr(torch, config.dtype)
    rates = best_rates([machine_rates(shapes, kind, sizes.products, device=device, buffers=buffers)])
    fine = phase_floors(sizes, **tokens, bf16=config.dtype == "bfloat16", rates=rates)
    return {name: sum(fine[part] for part in parts) for name, parts in PARTS_OF.items()}, rates, tokens


def profile(setup: work.Setup, device: str) -> dict[str, float]:
    """Count the launches of one step by torch's profiler, and the seconds in which the GPU was busy (see `launches`).

    Empty where the profiler sees no device: on the CPU, and where CUPTI is missing.
    """
    kinds, wait = [torch.profiler.ProfilerActivity.CPU], work.waiter(device)
    kinds += [torch.profiler.ProfilerActivity.CUDA] if device.startswith("cuda") else []
    profiler = torch.profiler.profile(activities=kinds)

    def on_step(row: dict[str, float]) -> None:
        wait()
        if row["step"] == SETTLED:
            profiler.start()
        elif row["step"] == SETTLED + 1:
            profiler.stop()

    shortened(setup, SETTLED + 1).run(on_step=on_step)
    return launches(profiler.events())


def launches(events: Iterable[Any]) -> dict[str, float]:
    """Count kernel launches, graph launches, copies and kernels in a profile; add the seconds of a busy device.

    Kernels that run at the same time count once. Empty if the profile holds no event of a device.
    """
    found: dict[str, float] = {"kernel launches": 0, "graph launches": 0, "copies": 0, "kernels": 0}
    spans = []
    for event in events:
        if event.device_type == torch.autograd.DeviceType.CUDA:
            if not event.name.startswith(ANNOTATIONS) and not getattr(event, "is_user_annotation", False):
                spans.append((event.time_range.start, event.time_range.end))
        elif event.name.startswith("cudaGraphLaunch"):
            found["graph launches"] += 1
        elif event.name.startswith(LAUNCHES):
            found["kernel launches"] += 1
        elif event.name.startswith(COPIES):
            found["copies"] += 1
    if not spans:
        return {}
    busy, end = 0.0, 0.0
    for start, stop in sorted(spans):
        busy += max(0.0, stop - max(start, end))
        end = max(end, stop)
    return found | {"kernels": len(spans), "busy": busy / 1e6}  # the profiler counts in microseconds


def shortened(setup: work.Setup, steps: int) -> work.Setup:
    """Return the setup of a run with `steps` steps."""
    return dataclasses.replace(setup, config=setup.config.replace(T=steps))


def phases_outside(setup: work.Setup, wait: Any, steps: int) -> dict[str, list[float]]:
    """Measure the phases of PARTS_OF in seconds, step by step, without replacing a part of the run.

    What can be seen from outside: the reward's call, torch's hooks around an optimizer's step, and the step's end. The
    device is waited for at each, so these steps are not those that are timed as a whole. Empty if the optimizer's step
    does not call its hooks.
    """
    from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook

    moments: list[float] = []
    found: list[list[float]] = []

    def now(*args: Any, **kwargs: Any) -> None:
        wait()
        moments.append(time.perf_counter())

    def reward(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        now()
        scores = work.free_reward(prompts, completions)
        now()
        return scores

    def on_step(row: dict[str, float]) -> None:
        now()
        found.append(list(moments))
        del moments[:-1]

    task = dataclasses.replace(setup.task, reward=reward)
    hooks = register_optimizer_step_pre_hook(now), register_optimizer_step_post_hook(now)
    try:
        dataclasses.replace(shortened(setup, SETTLED + steps), task=task).run(on_step=on_step)
    finally:
        for hook in hooks:
            hook.remove()
    return per_phase(found[SETTLED:])


def per_phase(steps: list[list[float]]) -> dict[str, list[float]]:
    """Return the seconds between the moments of each step, by phase; empty if a step has another number of moments."""
    if any(len(moments) != len(PARTS_OF) + 1 for moments in steps):
        return {}
    spans = [[end - start for start, end in pairwise(one)] for one in steps]
    return {name: list(values) for name, values in zip(PARTS_OF, zip(*spans, strict=True), strict=True)}


# The evaluation


def evaluation(
    turns: Turns, *, task: str, n_prompts: int, completion: int, buffers: Mapping[str, int], device: str
) -> None:
    """Run the side: every unit is a held-out evaluation with both sides sampled and scored; then the floor.

    The answer of a unit has also the seconds of the same evaluation again, which finds the reference's side saved if
    the policy is a large one (`measure.reference_cache`).
    """
    turns.wait = work.waiter(device)
    given = work.load_task(task, device)
    sizes, policy, sampling = sizes_of(given.policy), copy.deepcopy(given.policy), given.sampling(completion)
    with torch.no_grad():
        for value in policy.parameters():
            value.mul_(1.001)

    def run(prompts: int) -> float:
        started = time.perf_counter()
        evaluate(policy, given.policy, given, sampling=sampling, n_prompts=prompts)
        turns.wait()
        return time.perf_counter() - started

    with saved_elsewhere():
        run(min(BLOCK, n_prompts))
    prompt = given.encode(given.eval_prompts, sampling)[0].shape[1]
    shapes = products(policy, min(BLOCK, n_prompts), prompt + completion - 1, completion)
    rates = best_rates([machine_rates(shapes, torch.float32, sizes.products, device=device, buffers=buffers)])
    floor = seconds(evaluation_work(sizes, n_prompts, prompt, completion), rates["flop_per_s"], rates["bytes_per_s"])
    turns.next(rates=rates, floor=floor)
    while True:
        with saved_elsewhere():
            first, again = run(n_prompts), run(n_prompts)
        eager = why_eager(policy) or why_eager(given.policy)
        turns.next(first=first, again=again, eager=eager, peak_device=work.peak_device(device))


@contextmanager
def saved_elsewhere() -> Iterator[None]:
    """Give the block an empty cache folder; the task is loaded before."""
    before = os.environ.get("WARP_NB_CACHE")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["WARP_NB_CACHE"] = folder
        try:
            yield
        finally:
            del os.environ["WARP_NB_CACHE"]
            if before is not None:
                os.environ["WARP_NB_CACHE"] = before
