"""Part floor-*: what the machine allows for a step, and what each phase of a real step takes.

The rates are measured in the process of the steps: matrix products in the step's own shapes and dtype, and memory
bandwidth. A phase's floor is the roofline's bound of `benchmarks.cost.step_work` at the best rate of each kind.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from functools import partial
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figure, spread
from benchmarks.sides import Turns, forget_peak, once, peak_rss

if TYPE_CHECKING:
    import torch

    from benchmarks.cost import Sizes

REPEATS = 7
BUFFERS = {"numbers": 1 << 28, "square": 4096}
"""Sizes that no cache holds: fp32 numbers of a vector, rows and columns of a matrix."""


def run(say: Callable[[str], None], target: float | None, **settings: Any) -> Figure:
    """Compare medians over the steps, with their spread, to the floors; the step's ratio should be at most `target`."""
    say("rates, then steps")
    found = once("benchmarks.floor:measure", **settings)
    floors = found["floors"] | {"step": sum(found["floors"].values())}
    rows: list[Figure] = []
    for phase in found["steps"][0]:
        took, floor = [step[phase] for step in found["steps"]], floors.get(phase, 0.0)
        ratio = median(took) / floor if floor else None
        rows.append({"phase": phase, "seconds": spread(took), "floor": floor, "ratio": ratio})
        say(f"{phase:>9}: {median(took):8.4f} s, floor {floor:8.4f} s, ratio {ratio or math.nan:5.1f}")
    rows[-1]["target"] = target
    return {"rates": found["rates"], "phases": rows, "shape": found["shape"], "memory": found["memory"]}


def measure(turns: Turns, *, steps: int, warmup: int, buffers: Mapping[str, int] = BUFFERS, **shape: Any) -> None:
    """Run the side: rates before and after the steps, the phases of every settled step, the floors."""
    import dataclasses

    import torch

    from benchmarks import work
    from benchmarks.cost import sizes_of, step_memory
    from benchmarks.phases import Event, noted_parts, phases, with_rest

    setup = work.setup(steps=warmup + steps, **shape)
    task, completion, bf16 = setup.task, shape["completion"], shape["dtype"] == "bfloat16"
    prompt = task.encode(task.train_prompts, task.sampling(completion))[0].shape[1]
    sizes, tokens = sizes_of(task.policy), {"batch": shape["batch"], "prompt": prompt, "completion": completion}
    shapes = products(task.policy, shape["batch"], prompt + completion - 1, completion)
    kind = getattr(torch, shape["dtype"])
    rates = [machine_rates(shapes, kind, sizes.products, buffers=buffers)]
    events: list[Event] = []
    found: list[dict[str, float]] = []
    peaks: list[int] = []

    def on_step(row: dict[str, float]) -> None:
        found.append(with_rest(phases(events), row["seconds"]))
        peaks.append(peak_rss())
        events.clear()

    forget_peak()
    dataclasses.replace(setup, parts=noted_parts(events)).run(on_step=on_step)
    best = best_rates([*rates, machine_rates(shapes, kind, sizes.products, buffers=buffers)])
    memory = step_memory(sizes, **tokens, bf16=bf16)
    del memory["reward model"]  # the reward here is free
    floors = phase_floors(sizes, **tokens, bf16=bf16, rates=best)
    turns.next(
        rates=best, steps=found[warmup:], floors=floors, shape=tokens, memory=memory | {"measured peak": max(peaks)}
    )


def phase_floors(
    sizes: Sizes, *, batch: int, prompt: int, completion: int, bf16: bool, rates: dict[str, float]
) -> dict[str, float]:
    """Return the least seconds of each phase at the measured rates.

    The policy's forward is the anchor's; what is left of `policy` is the backward. The update's bytes are
    Adam and norm but for three passes of the EMA.
    """
    from benchmarks.cost import Work, step_work

    work = step_work(sizes, batch, prompt, completion, bf16)
    policy, anchor, update = work["policy"], work["anchor"], work["update"]
    ema = 3 * 4 * sizes.parameters
    parts = {
        "prefill": work["prefill"],
        "decode": work["decode"],
        "forward": anchor,
        "anchor": anchor,
        "backward": Work(policy.flops - anchor.flops, policy.bytes - anchor.bytes),
        "optimizer": Work(0, update.bytes - ema),
        "ema": Work(0, ema),
    }
    return {name: part.seconds(rates["flop_per_s"], rates["bytes_per_s"]) for name, part in parts.items()}


def products(policy: Any, batch: int, tokens: int, predicted: int) -> list[tuple[int, int, int]]:
    """Return the distinct (m, k, n) of the products [m, k] @ [k, n] of a scoring forward: blocks and head."""
    head = policy.get_output_embeddings().weight
    looked_up = {id(policy.get_input_embeddings().weight), id(head)}
    shapes = {tuple(p.shape) for p in policy.parameters() if p.ndim == 2 and id(p) not in looked_up}
    return [(batch * tokens, k, n) for n, k in sorted(shapes)] + [(batch * predicted, head.shape[1], head.shape[0])]


def machine_rates(
    shapes: list[tuple[int, int, int]],
    dtype: torch.dtype,
    weights: int,
    *,
    buffers: Mapping[str, int],
    device: str = "cpu",
) -> dict[str, float]:
    """Measure the rates of a device, each as the best of REPEATS.

    FLOP/s of a product of each of the shapes and of two square matrices; bytes/s of a copy, a read and an EMA of
    `numbers` fp32 numbers (see BUFFERS), and of a read of as many weights as a decode step multiplies.
    """
    import torch

    numbers, square = buffers["numbers"], buffers["square"]
    best = partial(best_time, seconds_of_cuda if device.startswith("cuda") else seconds_of)
    rates = {
        f"product {m} × {k} × {n}": 2 * m * k * n / best(torch.nn.functional.linear, *matrices(m, k, n, dtype, device))
        for m, k, n in [*shapes, (square, square, square)]
    }
    source, sink = torch.ones(numbers, device=device), torch.zeros(numbers, device=device)
    own = torch.ones(weights // 2 * 2, dtype=dtype, device=device).view(torch.int32)
    return rates | {
        "bytes copied": 2 * source.nbytes / best(sink.copy_, source),
        "bytes read": source.nbytes / best(source.sum),
        "bytes of an EMA": 3 * source.nbytes / best(sink.lerp_, source, 0.5),
        "bytes of the weights read": own.nbytes / best(own.max),
    }


def best_rates(rates: list[dict[str, float]]) -> dict[str, float]:
    """Return the best of each rate, and flop_per_s and bytes_per_s, the best product and the best bandwidth.

    A floor must not be too high, so the best is taken where other figures are medians.
    """
    best = {name: max(rate[name] for rate in rates) for name in rates[0]}
    flops = max(rate for name, rate in best.items() if name.startswith("product"))
    bandwidth = max(rate for name, rate in best.items() if name.startswith("bytes"))
    return {"flop_per_s": flops, "bytes_per_s": bandwidth} | best


def matrices(m: int, k: int, n: int, dtype: torch.dtype, device: str) -> tuple[torch.Tensor, torch.Tensor]:
    """Make a random input [m, k] and weight [n, k] of a linear layer."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, k, generator=generator).to(device, dtype) for rows in (m, n))
    return left, right


def best_time(clock: Callable[..., float], function: Callable[..., Any], *args: Any) -> float:
    """Return the shortest of REPEATS calls after one warm-up call, seconds by `clock`."""
    function(*args)
    return min(clock(function, *args) for _ in range(REPEATS))


def seconds_of(function: Callable[..., Any], *args: Any) -> float:
    """Return the seconds of a call by the clock."""
    start = time.perf_counter()
    function(*args)
    return time.perf_counter() - start


def seconds_of_cuda(function: Callable[..., Any], *args: Any) -> float:
    """Return the seconds between two events of the current CUDA stream, one before and one after a call."""
    import torch

    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    function(*args)
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3
