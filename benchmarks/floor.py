"""Part floor-*: what the machine allows for a step, and what each phase of a real step takes.

The rates are measured in the process of the steps: matrix products in the step's own shapes and
dtype, and memory bandwidth. A phase's floor is the roofline's bound of `warp_nb.cost.step_work`
at the best rate of each kind. Phases are timed from outside: the functions named in WRAPPED are
replaced by ones that note when they begin and end, so the algorithm carries no timing code.
"""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from statistics import median
from typing import TYPE_CHECKING, Any

from benchmarks.figures import Figure, spread
from benchmarks.sides import Turns, forget_peak, once, peak_rss

if TYPE_CHECKING:
    import torch

WRAPPED = {
    "sample": ("warp_nb.runs.policy_gradient", "sample"),
    "draw": ("warp_nb.fast.rollout", "_draw"),
    "loss": ("warp_nb.runs.policy_gradient", "policy_gradient_loss"),
    "logits": ("warp_nb.runs.policy_gradient", "completion_logits"),
    "log_probs": ("warp_nb.runs.policy_gradient", "token_log_probs"),
    "backward": ("torch", "Tensor.backward"),
    "norm": ("torch", "nn.utils.get_total_norm"),
    "optimizer": ("torch", "optim.Adam.step"),
    "ema": ("warp_nb.runs.policy_gradient", "ema_update_"),
}
"""Event -> the module and the name in it that a step of `train_run` calls."""
PHASES = ("prefill", "decode", "forward", "anchor", "backward", "optimizer", "ema")
REST = "the rest"
REPEATS = 7
LARGE, SQUARE = 1 << 28, 4096


@dataclass(frozen=True)
class Event:
    """A call of a wrapped function: seconds at its begin and end, and whether autograd recorded it."""

    name: str
    start: float
    end: float
    recorded: bool

    @property
    def seconds(self) -> float:
        """How long the call took."""
        return self.end - self.start


def run(say: Callable[[str], None], target: float | None, **settings: Any) -> Figure:
    """Medians over the steps with their spread, beside the floors."""
    say("rates, then steps")
    found = once("benchmarks.floor:measure", **settings)
    rates = found["rates"]
    floors = found["floors"] | {REST: 0.0, "step": sum(found["floors"].values())}
    rows: list[Figure] = []
    for phase, floor in floors.items():
        took = [step[phase] for step in found["steps"]]
        ratio = median(took) / floor if floor else None
        rows.append({"phase": phase, "seconds": spread(took), "floor": floor, "ratio": ratio})
        say(f"{phase:>9}: {median(took):8.4f} s, floor {floor:8.4f} s, ratio {ratio or math.nan:5.1f}")
    rows[-1]["target"] = target
    return {"rates": rates, "phases": rows, "shape": found["shape"], "memory": found["memory"]}


def measure(
    turns: Turns, task: str, batch: int, completion: int, dtype: str, steps: int, warmup: int, threads: int
) -> None:
    """The side: rates before and after the steps, phases of every settled step, floors."""
    import torch

    from benchmarks import work
    from benchmarks.step import BETA, LR, MU
    from warp_nb import WarpConfig
    from warp_nb.fast.rollout import encode_prompts
    from warp_nb.measure.cost import sizes_of, step_memory
    from warp_nb.runs.policy_gradient import train_run

    torch.set_num_threads(threads)
    work_task = work.task(task)
    prompt = encode_prompts(work_task.tokenizer, work_task.train_prompts, 1 << 20)[0].shape[1]
    sizes = sizes_of(work_task.policy)
    shapes = products(work_task.policy, batch, prompt + completion - 1, completion)
    kind = getattr(torch, dtype)
    rates = [machine_rates(shapes, kind, sizes.products)]
    forget_peak()
    found: list[dict[str, float]] = []
    with recorded() as events:
        mark = [time.perf_counter()]

        def on_step(row: dict[str, float]) -> None:
            now = time.perf_counter()
            found.append(with_rest(phases(events), now - mark[0]))
            events.clear()
            mark[0] = time.perf_counter()

        config = WarpConfig(T=warmup + steps, lr=LR, warmup_steps=0, beta=BETA, mu=MU, dtype=dtype)
        config = config.replace(batch_size=batch, max_new_tokens=completion)
        train_run(work_task, config, work_task.policy.state_dict(), 1, 1, on_step)
    peak = peak_rss()
    rates.append(machine_rates(shapes, kind, sizes.products))
    best = best_rates(rates)
    floors = phase_floors(sizes, batch, prompt, completion, dtype == "bfloat16", best)
    shape = {"batch": batch, "prompt": prompt, "completion": completion}
    memory = step_memory(sizes, batch, prompt, completion, dtype == "bfloat16")
    del memory["reward model"]  # the reward here is free
    memory["measured peak"] = peak
    turns.next(rates=best, steps=found[warmup:], floors=floors, shape=shape, memory=memory)


@contextmanager
def recorded() -> Iterator[list[Event]]:
    """The calls of every function in WRAPPED inside, in the order they ended.

    Raises AttributeError naming the function when one is gone: WRAPPED is then to be adapted.
    """
    import torch

    events: list[Event] = []
    originals = []
    try:
        for name in WRAPPED:
            holder, attribute, function = wrapped(name)
            setattr(holder, attribute, noting(name, function, events, torch.is_grad_enabled))
            originals.append((holder, attribute, function))
        yield events
    finally:
        for holder, attribute, function in originals:
            setattr(holder, attribute, function)


def wrapped(name: str) -> tuple[Any, str, Callable[..., Any]]:
    """(holder, attribute, function) of an entry of WRAPPED; AttributeError when it is gone."""
    module, path = WRAPPED[name]
    *holders, attribute = path.split(".")
    try:
        holder = functools.reduce(getattr, holders, import_module(module))
        return holder, attribute, getattr(holder, attribute)
    except AttributeError as error:
        raise AttributeError(f"{module}.{path} is gone ({error}); adapt WRAPPED in benchmarks/floor.py") from error


def noting(
    name: str, function: Callable[..., Any], events: list[Event], recording: Callable[[], bool]
) -> Callable[..., Any]:
    """`function` that adds an Event to `events` when it ends."""

    @functools.wraps(function)
    def noted(*args: Any, **kwargs: Any) -> Any:
        recorded_now, start = recording(), time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            events.append(Event(name, start, time.perf_counter(), recorded_now))

    return noted


def phases(events: list[Event]) -> dict[str, float]:
    """Seconds of each phase of one step.

    prefill: from the beginning of sampling to the first token drawn; decode: the rest of sampling.
    forward: the policy's logits and log-probabilities, recorded by autograd. anchor: the rest of the
    loss. optimizer: the gradient's norm and Adam. Raises ValueError when a wrapped function that
    belongs to every step was not called: the step no longer goes through it.
    """
    silent = [name for name in WRAPPED if not any(event.name == name for event in events)]
    if silent:
        raise ValueError(f"a step no longer calls {', '.join(silent)}; adapt WRAPPED in benchmarks/floor.py")

    def total(*names: str, recorded: bool | None = None) -> float:
        return sum(e.seconds for e in events if e.name in names and recorded in (None, e.recorded))

    begun = next(event.start for event in events if event.name == "sample")
    prefill = next(event.end for event in events if event.name == "draw") - begun
    forward = total("logits", "log_probs", recorded=True)
    return {
        "prefill": prefill,
        "decode": total("sample") - prefill,
        "forward": forward,
        "anchor": total("loss") - forward,
        "backward": total("backward"),
        "optimizer": total("norm", "optimizer"),
        "ema": total("ema"),
    }


def with_rest(parts: dict[str, float], step: float) -> dict[str, float]:
    """The phases, what no phase explains (tokenising, the reward's call, checks), and the whole step."""
    return parts | {REST: step - sum(parts.values()), "step": step}


def phase_floors(
    sizes: Any, batch: int, prompt: int, completion: int, bf16: bool, rates: dict[str, float]
) -> dict[str, float]:
    """Least seconds of each phase at the measured rates.

    The policy's forward is the anchor's; what is left of `policy` is the backward. The update's bytes are
    Adam and norm but for three passes of the EMA.
    """
    from warp_nb.measure.cost import Work, step_work

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
    """Distinct (m, k, n) of the products [m, k] @ [k, n] of a scoring forward: the blocks' matrices and the head's."""
    head = policy.get_output_embeddings().weight
    looked_up = {id(policy.get_input_embeddings().weight), id(head)}
    shapes = {tuple(p.shape) for p in policy.parameters() if p.ndim == 2 and id(p) not in looked_up}
    return [(batch * tokens, k, n) for n, k in sorted(shapes)] + [(batch * predicted, head.shape[1], head.shape[0])]


def machine_rates(shapes: list[tuple[int, int, int]], dtype: torch.dtype, weights: int) -> dict[str, float]:
    """FLOP/s of a product of each of the shapes and of a large square; bytes/s of a large copy, a large read, a
    large EMA, and of a read of as many weights as a decode step multiplies.
    """
    import torch

    rates = {
        f"product {m} × {k} × {n}": 2 * m * k * n / best_time(torch.nn.functional.linear, *matrices(m, k, n, dtype))
        for m, k, n in [*shapes, (SQUARE, SQUARE, SQUARE)]
    }
    source, sink = torch.ones(LARGE), torch.zeros(LARGE)
    own = torch.ones(weights, dtype=dtype).view(torch.int32)
    return rates | {
        "bytes copied": 2 * source.nbytes / best_time(sink.copy_, source),
        "bytes read": source.nbytes / best_time(source.sum),
        "bytes of an EMA": 3 * source.nbytes / best_time(sink.lerp_, source, 0.5),
        "bytes of the weights read": own.nbytes / best_time(own.max),
    }


def best_rates(rates: list[dict[str, float]]) -> dict[str, float]:
    """The best of each rate, and flop_per_s and bytes_per_s: the best product and the best bandwidth.

    A floor must not be too high, so the best is taken where other figures are medians.
    """
    best = {name: max(rate[name] for rate in rates) for name in rates[0]}
    flops = max(rate for name, rate in best.items() if name.startswith("product"))
    bandwidth = max(rate for name, rate in best.items() if name.startswith("bytes"))
    return {"flop_per_s": flops, "bytes_per_s": bandwidth} | best


def matrices(m: int, k: int, n: int, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    """Random input [m, k] and weight [n, k] of a linear layer."""
    import torch

    generator = torch.Generator().manual_seed(0)
    left, right = (torch.randn(rows, k, generator=generator).to(dtype) for rows in (m, n))
    return left, right


def best_time(function: Callable[..., Any], *args: Any) -> float:
    """The shortest of REPEATS calls, seconds; one more before them warms up."""
    function(*args)
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        function(*args)
        times.append(time.perf_counter() - start)
    return min(times)
