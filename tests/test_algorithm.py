"""The whole of Algorithm 1 against a naive loop in float64, and what a folder of runs promises."""

from __future__ import annotations

import copy
import json
import math
import re
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from warp_nb.config import WarpConfig
from warp_nb.fast.rollout import sample
from warp_nb.measure.evaluation import evaluate
from warp_nb.runs import policy_gradient
from warp_nb.runs.jobs import record_sha256
from warp_nb.runs.warping import final_front, warp
from warp_nb.runs.weights import fingerprint, snapshot
from warp_nb.tasks.task import Task

CONFIG = WarpConfig(I=2, M=2, T=3, lr=1e-2, warmup_steps=2, beta=0.5, mu=0.1, eta=0.3, batch_size=4, max_new_tokens=5)
Weights = dict[str, torch.Tensor]


def quick(config: WarpConfig, task: Task | None = None, **settings: Any) -> Any:
    return warp(config, task or tiny.task(), progress=False, **settings)


# the naive loop


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
        """Line 11 for two runs: a layer is a block, everything else a block of its own."""
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
        """(θ_init of the algorithm's end, θ_slerp of the last iteration)."""
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


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-8), (torch.float32, 2e-3)])
def test_warp_against_a_naive_loop_in_float64(
    dtype: torch.dtype, tolerance: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fed with the same completions."""
    recorded: list[list[tuple[list[int], list[int]]]] = []

    def record(policy: Any, tokenizer: Any, prompts: list[str], *rest: Any) -> Any:
        found = sample(policy, tokenizer, prompts, *rest)
        rows = zip(prompts, found.ids[:, -found.width :], found.completion_mask, strict=True)
        recorded.append([(tokenizer(prompt)["input_ids"], ids[keep].tolist()) for prompt, ids, keep in rows])
        return found

    monkeypatch.setattr(policy_gradient, "sample", record)
    task = tiny.task(policy=tiny.gpt2(39, spread=0.2).to(dtype))
    result = quick(CONFIG, task)
    assert len(recorded) == 12
    naive = Naive(task, CONFIG, recorded)
    policy, merged = naive.warp()
    # a key's bias has no gradient at all (softmax does not see it): Adam makes steps of its rounding
    noise = "c_attn.bias" if dtype == torch.float32 else "nothing"
    assert gap(result.policy.state_dict(), policy, naive.sft, noise) < tolerance
    assert gap(result.merged, merged, naive.sft, noise) < tolerance
    other = Naive(task, CONFIG.replace(eta=0.7), recorded).warp()[0]  # the comparison tells a fault
    assert gap(result.policy.state_dict(), other, naive.sft) > 10 * tolerance


# what it returns


def test_the_planted_reward_rises_on_held_out_prompts() -> None:
    task = tiny.task(reward=tiny.counted())
    config = CONFIG.replace(T=10, warmup_steps=0, beta=0.05, eta=0.8, batch_size=16)
    result = quick(config, task)
    found = evaluate(result.policy, task.policy, task, 64, 0, config.max_new_tokens, 1.0)
    assert found.reward_difference.low > 0 and found.reward_difference.value > 0.1


def test_shapes_of_what_it_returns() -> None:
    result = quick(CONFIG)
    assert result.history.groupby(["iteration", "run"]).step.apply(list).tolist() == [[1, 2, 3]] * 4
    assert list(result.history.lr) == pytest.approx([5e-3, 1e-2, 1e-2] * 4)
    assert set(result.geometry.block) >= {"transformer.h.0", "transformer.h.1", "transformer.wte.weight"}
    assert len(result.geometry) == 2 * 6 and len(result.runs) == 4 and result.merges.iteration.tolist() == [1, 2]
    assert (result.merges.liti_ratio - 0.3).abs().max() < 1e-3
    assert result.merges.delta_cosine.max() < 0.9 and (result.runs.delta_norm > 0).all()
    assert not result.policy.training and result.runs.run_seed.nunique() == 4


def test_theta_sft_is_never_mutated() -> None:
    task = tiny.task()
    before = fingerprint(task.policy.state_dict())
    result = quick(CONFIG, task)
    assert fingerprint(task.policy.state_dict()) == before != fingerprint(result.policy.state_dict())


def test_runs_are_equal_to_the_bit_only_with_one_seed() -> None:
    same, apart = (quick(CONFIG.replace(I=1, independent_seeds=switch)) for switch in (False, True))
    curves = [[list(run.objective) for _, run in result.history.groupby("run")] for result in (same, apart)]
    assert curves[0][0] == curves[0][1] and curves[1][0] != curves[1][1]
    assert same.merges.delta_cosine[0] == pytest.approx(1, abs=1e-6)


def test_repeating_gives_the_same_bits_and_another_seed_does_not() -> None:
    first, again, other = (quick(CONFIG.replace(seed=seed)) for seed in (0, 0, 1))
    prints = [fingerprint(result.policy.state_dict()) for result in (first, again, other)]
    assert prints[0] == prints[1] != prints[2]


def test_every_switch_changes_the_result() -> None:
    base = CONFIG.replace(I=1, T=2, warmup_steps=0, max_new_tokens=3)
    switches = [
        {}, {"merge": "lerp"}, {"merge_by": "tensor"}, {"merge_by": "global"}, {"anchor": "sft"},
        {"baseline": "mean"}, {"baseline": "loo"}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, {"beta": 0.0},
        {"M": 1}, {"M": 3}, {"eta": 0.5}, {"temperature": 0.7}, {"warmup_steps": 2},
    ]  # fmt: skip
    prints = {fingerprint(quick(base.replace(**change)).policy.state_dict()) for change in switches}
    assert len(prints) == len(switches)


def test_an_ema_that_never_moves_is_the_sft_anchor_in_the_first_iteration_only() -> None:
    prints = [
        [fingerprint(quick(CONFIG.replace(I=count, **change)).policy.state_dict()) for count in (1, 2)]
        for change in ({"mu": 0.0}, {"anchor": "sft"})
    ]
    assert prints[0][0] == prints[1][0] and prints[0][1] != prints[1][1]


def test_lerp_merges_to_the_mean(tmp_path: Path) -> None:
    from warp_nb.runs.weights import load_weights

    task = tiny.task()
    result = quick(CONFIG.replace(I=1, M=3, merge="lerp"), task, out_dir=tmp_path)
    ends = [load_weights(tmp_path / f"run_1_{run}.safetensors", task.policy.state_dict()) for run in (1, 2, 3)]
    for name, value in result.merged.items():
        assert torch.allclose(value, sum(end[name] for end in ends) / 3, atol=1e-6)


def test_eta_zero_stays_and_eta_one_is_the_merged_policy() -> None:
    task = tiny.task()
    sft = fingerprint(snapshot(task.policy))
    assert fingerprint(quick(CONFIG.replace(eta=0.0), task).policy.state_dict()) == sft
    full = quick(CONFIG.replace(eta=1.0), task)
    assert fingerprint(full.policy.state_dict()) == fingerprint(full.merged)


def test_the_final_front_runs_from_theta_sft_to_the_last_merge() -> None:
    task = tiny.task()
    result, sft = quick(CONFIG, task), snapshot(task.policy)
    front = final_front(sft, result.merged, [0.0, 0.5, 1.0])
    assert [fingerprint(state) for state in front[::2]] == [fingerprint(sft), fingerprint(result.merged)]
    middle = {name: (sft[name].double() + result.merged[name].double()) / 2 for name in sft}
    assert gap(front[1], middle, sft) < 1e-5


def test_llama_and_a_tokenizer_without_an_end_run_too() -> None:
    words = tiny.tokenizer(end=False, begin=True)
    task = Task(tiny.llama(len(words)), words, tiny.opinion, tiny.prompts(8, 0), [*tiny.prompts(16, 1)[:3], "never"])
    result = quick(CONFIG.replace(I=1, T=2), task)
    assert (result.history.tokens == CONFIG.max_new_tokens).all()
    assert "model.layers.1" in set(result.geometry.block)


def test_progress_is_called_with_every_row() -> None:
    rows: list[Any] = []
    warp(CONFIG.replace(I=1), tiny.task(), progress=rows.append)
    assert [(row["run"], row["step"]) for row in rows] == [(m, t) for m in (1, 2) for t in (1, 2, 3)]


# a folder of runs


def dead(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    raise AssertionError("the reward was called again")


def named(reward: Any, name: str) -> Any:
    """The reward under another name."""

    def call(**columns: Any) -> list[float]:
        return reward(**columns)

    call.__name__ = name
    return call


def test_a_run_from_another_start_is_made_again(tmp_path: Path) -> None:
    quick(CONFIG, out_dir=tmp_path)
    record = tmp_path / "run_2_1.json"
    other = json.loads(record.read_text()) | {"init_sha256": "0" * 64}
    record.write_text(json.dumps(other | {"sha256": record_sha256(other)}))
    assert quick(CONFIG, out_dir=tmp_path).runs.loaded.tolist() == [1, 1, 0, 1]


def test_a_jobs_threads_are_its_own() -> None:
    before, seen = torch.get_num_threads(), []

    def watching(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        seen.append(torch.get_num_threads())
        return tiny.opinion(prompts, completions)

    quick(CONFIG.replace(I=1, M=1, T=1, threads=before + 1), tiny.task(reward=watching))
    assert seen == [before + 1] and torch.get_num_threads() == before


def test_finished_runs_are_loaded_and_not_repeated(tmp_path: Path) -> None:
    first = quick(CONFIG, out_dir=tmp_path)
    again = quick(CONFIG, tiny.task(reward=named(dead, "opinion")), out_dir=tmp_path)
    assert fingerprint(first.policy.state_dict()) == fingerprint(again.policy.state_dict())
    assert first.history.equals(again.history) and first.geometry.equals(again.geometry)
    assert first.runs.loaded.eq(0).all() and again.runs.loaded.eq(1).all()
    assert first.runs.drop(columns="loaded").equals(again.runs.drop(columns="loaded"))


def test_a_missing_run_is_made_again_to_the_bit(tmp_path: Path) -> None:
    first = quick(CONFIG, out_dir=tmp_path)
    for name in ("run_1_2.json", "run_2_1.json", "run_2_1.safetensors"):
        (tmp_path / name).unlink()
    again = quick(CONFIG, out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [1, 0, 0, 1]
    assert fingerprint(first.policy.state_dict()) == fingerprint(again.policy.state_dict())


def test_an_interrupted_call_is_continued_to_the_bit(tmp_path: Path) -> None:
    calls = 0

    def mortal(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 8:
            raise RuntimeError("power cut")
        return tiny.opinion(prompts, completions)

    with pytest.raises(RuntimeError, match="power cut"):
        quick(CONFIG, tiny.task(reward=named(mortal, "opinion")), out_dir=tmp_path)
    again = quick(CONFIG, out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [1, 1, 1 / 3, 0]
    assert fingerprint(again.policy.state_dict()) == fingerprint(quick(CONFIG).policy.state_dict())


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    quick(CONFIG.replace(I=1, M=1, T=1), out_dir=tmp_path)
    kept = json.loads((tmp_path / "config.json").read_text())
    with pytest.raises(ValueError, match=r"lr: 0\.01 there, 0\.02 here; eta: 0\.3 there, 0\.9 here\); pass another"):
        quick(
            CONFIG.replace(I=1, M=1, T=1, lr=0.02, eta=0.9), tiny.task(reward=named(dead, "opinion")), out_dir=tmp_path
        )
    with pytest.raises(ValueError, match=r"configuration \(reward: {'name': 'opinion'} there, {'name': 'dead'} here"):
        quick(CONFIG.replace(I=1, M=1, T=1), tiny.task(reward=dead), out_dir=tmp_path)
    with pytest.raises(ValueError, match=r"configuration \(prompts_sha256"):
        quick(CONFIG.replace(I=1, M=1, T=1), tiny.task(train_prompts=["the film"]), out_dir=tmp_path)
    with pytest.raises(ValueError, match=rf"threads: \d+ there, {torch.get_num_threads() + 1} here"):
        quick(CONFIG.replace(I=1, M=1, T=1, threads=torch.get_num_threads() + 1), out_dir=tmp_path)
    with pytest.raises(ValueError, match=r"holds a run of another configuration \(policy_sha256"):
        quick(CONFIG.replace(I=1, M=1, T=1), tiny.task(policy=tiny.gpt2(39, seed=5)), out_dir=tmp_path)
    with pytest.raises(ValueError, match="task_name: 'tiny' there, 'other' here"):
        quick(CONFIG.replace(I=1, M=1, T=1), tiny.task(name="other"), out_dir=tmp_path)
    assert json.loads((tmp_path / "config.json").read_text()) == kept
