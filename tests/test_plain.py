"""The plain Algorithm 1 of the lessons says the same as the fast code."""

from __future__ import annotations

import copy
import math

import pytest
import tiny
import torch

from warp_nb.algorithm import plain
from warp_nb.algorithm.average import ema_update_, liti, merge, slerp
from warp_nb.config import WarpConfig
from warp_nb.course.cases import near, randn, weights
from warp_nb.fast.rollout import sample
from warp_nb.fast.scoring import completion_logits, token_kl, token_log_probs
from warp_nb.runs.policy_gradient import policy_gradient_loss
from warp_nb.runs.warping import final_front, warp
from warp_nb.runs.weights import snapshot
from warp_nb.tasks.reward_model import measure_gate


def close(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor], tolerance: float) -> None:
    torch.testing.assert_close(dict(one), dict(two), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_slerp(lam: float) -> None:
    one, two = randn(4, 5, seed=1).double(), randn(4, 5, seed=2).double()
    torch.testing.assert_close(plain.slerp(one, two, lam), slerp(one, two, lam))
    torch.testing.assert_close(plain.slerp(one, 2 * one, lam), slerp(one, 2 * one, lam))
    torch.testing.assert_close(plain.slerp(0 * one, two, lam), slerp(0 * one, two, lam))


@pytest.mark.parametrize("M", [1, 2, 4])
def test_merge_and_liti(M: int) -> None:
    init = {name: value.double() for name, value in weights(0).items()}
    merged = merge(init, policies := [near(init, seed) for seed in range(1, 1 + M)])
    close(plain.merge(init, policies), merged, 1e-10)
    close(plain.liti(init, merged, 0.3), liti(init, merged, 0.3), 1e-12)
    for mine, theirs in zip(plain.front(init, merged, [0, 0.7]), final_front(init, merged, [0, 0.7]), strict=True):
        close(mine, theirs, 1e-12)


def test_merge_keeps_ties() -> None:
    init = snapshot(tiny.gpt2(20))
    merged = plain.merge(init, [near(init, 1), near(init, 2)])
    assert merged["lm_head.weight"].data_ptr() == merged["transformer.wte.weight"].data_ptr()


def test_the_loss_of_pairs_by_its_closed_form() -> None:
    chosen, rejected = torch.tensor([0.3, 2.0, -1.0]).double(), torch.tensor([0.3, -1.0, 4.0]).double()
    expected = torch.log1p((rejected - chosen).exp()).mean()
    torch.testing.assert_close(plain.bradley_terry_loss(chosen, rejected), expected)
    assert plain.bradley_terry_loss(chosen[:1], rejected[:1]).item() == pytest.approx(math.log(2))


def test_pair_accuracy_counts_a_tie_as_the_gate_does() -> None:
    chosen, rejected = torch.tensor([1.0, 0.5, 0.0, 3.0]), torch.tensor([0.0, 0.5, 2.0, -1.0])
    assert plain.pair_accuracy(chosen, rejected) == (2 + 0.5) / 4
    pairs = [((f"{a}", ""), (f"{b}", "")) for a, b in zip(chosen.tolist(), rejected.tolist(), strict=True)]

    def reward(prompts: list[str], completions: list[str]) -> list[float]:
        return [float(prompt) if prompt[-1].isdigit() else 0.0 for prompt in prompts]

    assert measure_gate(reward, pairs=pairs).pair_accuracy == plain.pair_accuracy(chosen, rejected)


def test_the_best_point_within_a_budget() -> None:
    points = [
        {"eta": e, "reward": r, "kl": k} for e, r, k in [(0, 0.0, 0.0), (0.5, 2.0, 1.0), (1, 1.5, 0.9), (2, 9, 5)]
    ]
    assert plain.best_within(points, 1.0)["eta"] == 0.5 and plain.best_within(points, 0.95)["eta"] == 1


def test_ema() -> None:
    policy, anchors = tiny.gpt2(20, seed=1), [tiny.gpt2(20, seed=2) for _ in range(2)]
    ema_update_(anchors[0], policy, 0.1)
    plain.ema_update_(anchors[1], policy, 0.1)
    close(anchors[1].state_dict(), anchors[0].state_dict(), 1e-6)


def test_the_loss_and_its_gradient() -> None:
    task, config = tiny.task(), WarpConfig(beta=0.3, temperature=0.8)
    policy, anchor = task.policy.double(), copy.deepcopy(task.policy).double()
    for parameter in anchor.parameters():
        parameter.data += 0.02 * randn(*parameter.shape)
    rollout = sample(policy, task.tokenizer, task.train_prompts[:5], 6, 0.8, torch.Generator().manual_seed(0))
    rewards, found = torch.arange(5.0).double(), []
    for loss in (
        policy_gradient_loss(policy, anchor, rollout, rewards, config)[0],
        plain.step_loss(policy, anchor, rollout, rewards, config.beta, config.temperature),
    ):
        policy.zero_grad()
        loss.backward()
        found.append([loss.detach(), *(p.grad.clone() for p in policy.parameters() if p.grad is not None)])
    torch.testing.assert_close(found[0], found[1])
    tokens, mask = rollout.ids[:, -rollout.width :], rollout.completion_mask
    logits = [completion_logits(model, rollout).detach() for model in (policy, anchor)]
    torch.testing.assert_close(
        plain.token_log_probs(logits[0], tokens, mask, 0.8), token_log_probs(logits[0], rollout, 0.8)
    )
    torch.testing.assert_close(plain.token_kl(*logits, mask, 0.8), token_kl(*logits, rollout, 0.8))


def test_the_whole_algorithm() -> None:
    """In fp64, where rounding is far below what a mistake would change: weights, history and front."""
    policy = tiny.gpt2(len(tiny.tokenizer()), spread=0.05).double()
    task = tiny.task(policy=policy)
    config = WarpConfig(I=2, M=3, T=3, lr=1e-2, warmup_steps=0, batch_size=4, max_new_tokens=5, eta=0.3)
    fast, rows = warp(config, task, progress=False), []
    end, merged = plain.warp(snapshot(policy), plain.run_of(task, config, rows.append), config.I, config.M, config.eta)
    close(end, fast.policy.state_dict(), 1e-9)
    close(merged, fast.merged, 1e-9)
    for column in ("iteration", "run", "step", "reward", "objective", "kl"):
        assert [row[column] for row in rows] == pytest.approx(fast.history[column].tolist(), abs=1e-6), column
    moved = max((end[name] - value).abs().max().item() for name, value in snapshot(policy).items())
    assert moved > 1e-3
