"""A run (lines 4 to 9) and the loop around the runs, against a second implementation written from the pseudo-code."""

from __future__ import annotations

import copy
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
import tiny
import torch

from warp_nb.algorithm.merge import Weights, load_, weights_of
from warp_nb.algorithm.run import Run, Watch, train_run
from warp_nb.algorithm.warp import algorithm_1
from warp_nb.config import WarpConfig
from warp_nb.runs.training import FAST
from warp_nb.runs.warp import warp
from warp_nb.tasks.task import Task

CONFIG = WarpConfig(
    I=2, M=2, T=3, lr=1e-2, warmup_steps=2, beta=0.5, mu=0.1, eta=0.3, batch_size=4, max_new_tokens=5, threads=1
)

# one run, of a model that is two numbers


def line() -> torch.nn.Linear:
    """w x + b with known weights."""
    model = torch.nn.Linear(1, 1).double()
    load_(model, {"weight": torch.tensor([[2.0]]), "bias": torch.tensor([1.0])})
    return model


INIT = {"weight": torch.tensor([[0.5]], dtype=torch.float64), "bias": torch.tensor([-1.0], dtype=torch.float64)}


def pulled(policy: Any, anchor: Any) -> torch.Tensor:
    """A loss with the gradient (w, b) -> (w - 2 w_anchor, 3)."""
    return (policy.weight**2 / 2 - 2 * policy.weight * anchor.weight + 3 * policy.bias).sum()


def by_hand(w: float, b: float, anchor: float, steps: int) -> tuple[float, float]:
    """`pulled` under SGD with lr 0.1, mu 0.25."""
    for _ in range(steps):
        w, b = w - 0.1 * (w - 2 * anchor), b - 0.1 * 3
        anchor = 0.75 * anchor + 0.25 * w
    return w, b


@pytest.mark.parametrize("steps", [0, 1, 4])
@pytest.mark.parametrize("anchored", [False, True])
def test_a_run_against_its_recurrence(anchored: bool, steps: int) -> None:
    """The anchor starts at theta_init (line 4), or at another model where one is given."""
    template, other = line(), line()
    settings = {"lr": 0.1, "mu": 0.25, "optimizer": torch.optim.SGD, "anchor": other if anchored else None}
    found = train_run(INIT, template, pulled, steps, **settings)
    wanted = by_hand(0.5, -1.0, 2.0 if anchored else 0.5, steps)
    assert [found["weight"].item(), found["bias"].item()] == pytest.approx(wanted, abs=1e-12)
    for model in (template, other):  # neither the template nor the anchor that was given changes
        assert (model.weight.item(), model.bias.item()) == (2.0, 1.0) and model.weight.grad is None
    assert INIT["weight"].item() == 0.5


def test_what_a_run_returns_is_a_copy_and_frozen_weights_do_not_move() -> None:
    models: list[Any] = []

    def loss_of(policy: Any, anchor: Any) -> torch.Tensor:
        models.append(policy)
        return pulled(policy, anchor)

    template = line()
    template.bias.requires_grad_(False)
    found = train_run(INIT, template, loss_of, 1, lr=0.1, mu=0.25)
    before = found["weight"].clone()
    with torch.no_grad():
        models[0].weight += 1
    assert torch.equal(found["weight"], before) and found["bias"].item() == -1.0


class Diary(Watch):
    """Writes down what it is called with."""

    def __init__(self, stop_at: int = 0) -> None:
        self.lines: list[tuple[str, int, bool, float]] = []
        self.stop_at = stop_at

    def note(self, name: str, run: Run) -> None:
        self.lines.append((name, run.step, run.whole, run.policy.weight.item()))

    def begin(self, run: Run) -> None:
        self.note("begin", run)
        assert run.anchor is not run.policy and not run.anchor.weight.requires_grad

    def before_update(self, run: Run, loss: torch.Tensor) -> None:
        self.note("before", run)
        assert run.policy.weight.grad is not None and loss.requires_grad
        if run.step + 1 == self.stop_at:
            raise ArithmeticError

    def after_step(self, run: Run) -> None:
        self.note("after", run)


def test_a_watch_is_called_after_line_4_before_line_8_and_after_line_9() -> None:
    diary, path = Diary(), [by_hand(0.5, -1.0, 0.5, steps)[0] for steps in range(3)]
    train_run(INIT, line(), pulled, 2, lr=0.1, mu=0.25, optimizer=torch.optim.SGD, watch=diary)
    wanted = [("begin", 0, 0), ("before", 0, 0), ("after", 1, 1), ("before", 1, 1), ("after", 2, 2)]
    assert [(name, step, whole) for name, step, whole, _ in diary.lines] == [(n, s, True) for n, s, _ in wanted]
    assert [weight for *_, weight in diary.lines] == pytest.approx([path[at] for *_, at in wanted])


def test_a_watch_that_raises_stops_before_the_update() -> None:
    diary = Diary(stop_at=2)
    with pytest.raises(ArithmeticError):
        train_run(INIT, line(), pulled, 3, lr=0.1, mu=0.25, optimizer=torch.optim.SGD, watch=diary)
    assert [name for name, *_ in diary.lines] == ["begin", "before", "after", "before"]
    assert diary.lines[-1][-1] == pytest.approx(by_hand(0.5, -1.0, 0.5, 1)[0])


def test_a_watch_may_load_a_checkpoint_and_set_the_learning_rate() -> None:
    class Resumed(Watch):
        def begin(self, run: Run) -> None:
            w, b = by_hand(0.5, -1.0, 0.5, 2)
            load_(run.policy, {"weight": torch.tensor([[w]]), "bias": torch.tensor([b])})
            run.step = 2

        def before_update(self, run: Run, loss: torch.Tensor) -> None:
            run.optimizer.param_groups[0]["lr"] = 0.0

    found = train_run(INIT, line(), pulled, 3, lr=0.1, mu=0.25, optimizer=torch.optim.SGD, watch=Resumed())
    assert found["weight"].item() == pytest.approx(by_hand(0.5, -1.0, 0.5, 2)[0])


def test_an_update_that_fails_half_way_is_not_whole() -> None:
    runs: list[Run] = []

    class Holder(Watch):
        def begin(self, run: Run) -> None:
            runs.append(run)

    def full(anchor: Any, policy: Any, mu: float) -> None:
        raise MemoryError

    with pytest.raises(MemoryError):
        train_run(INIT, line(), pulled, 3, lr=0.1, mu=0.25, ema_update_=full, watch=Holder())
    assert not runs[0].whole and runs[0].step == 0


# the loop around the runs


def test_the_loop_hands_theta_init_to_every_run_and_reports_every_iteration() -> None:
    """With runs that add known vectors: line 12 of two orthogonal ones by hand, line 13, and the order of calls."""
    calls: list[tuple[list[float], int, int]] = []
    seen: list[list[Any]] = []

    def run(init: Weights, i: int, m: int) -> Weights:
        calls.append((init["w"].tolist(), i, m))
        return {"w": init["w"] + torch.eye(2, dtype=torch.float64)[m - 1]}

    def note(i: int, init: Weights, policies: list[Weights], merged: Weights, updated: Weights) -> None:
        rows = (init, *policies, merged, updated)
        seen.append([i, *(row["w"].tolist() for row in rows)])

    sft = {"w": torch.tensor([1.0, 2.0], dtype=torch.float64)}
    end, merged = algorithm_1(sft, run, I=2, M=2, eta=0.5, seen=note)
    step = math.sqrt(2) / 2  # SLERP keeps the length of 1: sin(45) / sin(90) of both
    assert calls[:2] == [([1.0, 2.0], 1, 1), ([1.0, 2.0], 1, 2)] and [c[1:] for c in calls[2:]] == [(2, 1), (2, 2)]
    assert calls[2][0] == calls[3][0] == pytest.approx([1 + step / 2, 2 + step / 2])
    assert merged["w"].tolist() == pytest.approx([1 + 1.5 * step, 2 + 1.5 * step])
    assert end["w"].tolist() == pytest.approx([1 + step, 2 + step])
    assert seen[0][:4] == [1, [1.0, 2.0], [2.0, 2.0], [1.0, 3.0]] and seen[1][0] == 2
    assert seen[1][4:] == [merged["w"].tolist(), end["w"].tolist()] and seen[0][5] == seen[1][1]
    assert sft["w"].tolist() == [1.0, 2.0]


# the whole of it


class Naive:
    """Algorithm 1 from its pseudo-code: dictionaries of float64 tensors, one sequence at a time."""

    def __init__(self, task: Task, config: WarpConfig, completions: list[list[tuple[list[int], list[int]]]]) -> None:
        self.model, self.config, self.reward = copy.deepcopy(task.policy).double(), config, task.reward
        self.tokenizer, self.completions = task.tokenizer, iter(completions)
        self.sft = {name: value.detach().clone() for name, value in self.model.named_parameters()}

    def log_prob(self, weights: Weights, prompt: list[int], completion: list[int]) -> torch.Tensor:
        ids = torch.tensor([prompt + completion])
        logits = torch.func.functional_call(self.model, weights, (ids,)).logits[0] / self.config.temperature
        total = torch.zeros((), dtype=torch.float64)
        for place, token in enumerate(completion, start=len(prompt) - 1):
            total = total + logits[place, token] - torch.log(torch.exp(logits[place]).sum())
        return total

    def score(self, completion: list[int]) -> float:
        text = self.tokenizer.decode([token for token in completion if token != self.tokenizer.eos_token_id])
        return self.reward(prompts=[""], completions=[text])[0]

    def run(self, init: Weights) -> Weights:
        """Lines 4 to 9, Adam written out."""
        c = self.config
        theta, ema = ({name: value.clone() for name, value in init.items()} for _ in range(2))
        first, second = ({name: torch.zeros_like(value) for name, value in init.items()} for _ in range(2))
        for t in range(1, c.T + 1):
            batch = next(self.completions)
            leaves = {name: value.clone().requires_grad_() for name, value in theta.items()}
            total = torch.zeros((), dtype=torch.float64)
            for prompt, completion in batch:
                log_pi = self.log_prob(leaves, prompt, completion)
                log_ema = self.log_prob(ema, prompt, completion)
                r_beta = self.score(completion) - c.beta * (log_pi - log_ema).item()
                total = total + r_beta * log_pi / len(batch)
            gradients = dict(zip(leaves, torch.autograd.grad(total, list(leaves.values())), strict=True))
            lr = c.lr * min(1, t / c.warmup_steps)
            for name, g in gradients.items():
                first[name] = 0.9 * first[name] + 0.1 * g
                second[name] = 0.999 * second[name] + 0.001 * g * g
                m, v = first[name] / (1 - 0.9**t), second[name] / (1 - 0.999**t)
                theta[name] = theta[name] + lr * m / (v.sqrt() + 1e-8)
                ema[name] = (1 - c.mu) * ema[name] + c.mu * theta[name]
        return theta

    def slerp(self, init: Weights, one: Weights, two: Weights) -> Weights:
        """Line 12 for two runs: a layer is a block, everything else a block of its own."""
        merged: Weights = {}
        for block in {re.sub(r"(transformer\.h\.\d+)\..*", r"\1", name) for name in init}:
            names = [name for name in init if name == block or name.startswith(block + ".")]
            d1, d2 = (torch.cat([(end[name] - init[name]).flatten() for name in names]) for end in (one, two))
            omega = torch.arccos(d1 @ d2 / (d1.norm() * d2.norm()))
            mixed = (torch.sin(omega / 2) * d1 + torch.sin(omega / 2) * d2) / torch.sin(omega)
            for name, piece in zip(names, mixed.split([init[name].numel() for name in names]), strict=True):
                merged[name] = init[name] + piece.reshape(init[name].shape)
        return merged

    def warp(self) -> tuple[Weights, Weights]:
        """(theta_init of the algorithm's end, theta_slerp of the last iteration)."""
        init = self.sft
        for _ in range(self.config.I):
            one, two = self.run(init), self.run(init)
            merged = self.slerp(init, one, two)
            init = {n: (1 - self.config.eta) * init[n] + self.config.eta * merged[n] for n in init}
        return init, merged


def gap(found: Weights, wanted: Weights, start: Weights, leave_out: str = "nothing") -> float:
    """Distance to `wanted`, relative to its distance from `start`."""
    names = [name for name in wanted if leave_out not in name]
    far, near = (sum((x[n].double() - wanted[n]).square().sum().item() for n in names) for x in (start, found))
    return math.sqrt(near / far)


def rows(ids: torch.Tensor, mask: torch.Tensor) -> Iterator[list[int]]:
    yield from (row[keep.bool()].tolist() for row, keep in zip(ids, mask, strict=True))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-3)])
def test_warp_against_a_naive_loop_in_float64(dtype: torch.dtype, tolerance: float) -> None:
    """Fed with the same completions."""
    recorded: list[list[tuple[list[int], list[int]]]] = []

    def record(policy: Any, ids: torch.Tensor, mask: torch.Tensor, *rest: Any, **settings: Any) -> Any:
        found = FAST.sample(policy, ids, mask, *rest, **settings)
        recorded.append(list(zip(rows(ids, mask), rows(found.tokens, found.completion_mask), strict=True)))
        return found

    task = tiny.task(policy=tiny.gpt2(39, spread=0.2).to(dtype))
    result = warp(CONFIG, task, progress=False, parts=replace(FAST, sample=record))
    assert len(recorded) == 12
    naive = Naive(task, CONFIG, recorded)
    policy, merged = naive.warp()
    # a key's bias has no gradient at all (softmax does not see it): Adam makes steps of its rounding
    noise = "c_attn.bias" if dtype == torch.float32 else "nothing"
    assert gap(weights_of(result.policy), policy, naive.sft, noise) < tolerance
    assert gap(result.merged, merged, naive.sft, noise) < tolerance
    assert gap(weights_of(result.policy), merged, naive.sft, noise) > 10 * tolerance  # the comparison tells a fault
