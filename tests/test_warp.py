"""`warp()` in memory: what it returns, what every parameter and every part changes, and what it leaves alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from brute import MODELS
from faulty import CONFIG as SHORT
from faulty import FOUR_RUNS as CONFIG
from faulty import everything, quick

from warp_nb.algorithm.merge import MERGES, Weights, front, liti, merge, weights_of
from warp_nb.config import WarpConfig
from warp_nb.files import fingerprint
from warp_nb.measure.evaluation import evaluate
from warp_nb.runs.training import FAST, PLAIN, derive_seed
from warp_nb.runs.warp import WarpResult, warp
from warp_nb.tasks.task import Task


def bits(result: WarpResult) -> str:
    return fingerprint(weights_of(result.policy))


# the plain and the fast parts


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-9), (torch.float32, 2e-3)])
@pytest.mark.parametrize("kind", MODELS)
def test_plain_and_fast_parts_give_the_same_run(kind: str, dtype: torch.dtype, tolerance: float) -> None:
    """The same completions, and weights that differ by rounding: relative to how far they moved.

    In fp32 Adam makes whole steps of the rounding of gradients that are zero, as those of a key's bias are.
    """
    task = tiny.task(policy=MODELS[kind](len(tiny.tokenizer()), spread=0.1).to(dtype))
    config = CONFIG.replace(baseline="rloo", samples_per_prompt=2)
    fast, plain = (quick(config, task, parts=parts) for parts in (FAST, PLAIN))
    for column in ("iteration", "run", "step", "reward", "tokens", "lr"):
        assert fast.history[column].equals(plain.history[column]), column
    for column in ("objective", "kl", "grad_norm"):
        assert fast.history[column].tolist() == pytest.approx(plain.history[column].tolist(), abs=1e-3), column
    sft = weights_of(task.policy)
    names = [name for name in sft if dtype == torch.float64 or not name.endswith("c_attn.bias")]
    for mine, theirs in ((weights_of(fast.policy), weights_of(plain.policy)), (fast.merged, plain.merged)):
        mine, theirs, start = (torch.cat([side[name].flatten() for name in names]) for side in (mine, theirs, sft))
        assert (mine - theirs).norm() < tolerance * (theirs - start).norm() != 0


def test_parts_that_compute_in_the_same_order_give_the_same_bits() -> None:
    mixed = replace(PLAIN, ema_update_=FAST.ema_update_, token_kl=FAST.token_kl)
    assert everything(quick(parts=mixed)) == everything(quick(parts=PLAIN))


def test_parts_are_the_default_ones_or_named() -> None:
    assert FAST.replaced() == [] and PLAIN.replaced() == ["sample", "token_log_probs", "token_kl", "ema_update_"]
    for part in fields(FAST):
        assert replace(FAST, **{part.name: lambda: None}).replaced() == [part.name]


def test_another_merge_is_a_part() -> None:
    """It gets theta_init, the policies and the configuration's method, block and lambda; line 13 follows it."""
    calls: list[dict[str, Any]] = []

    def best_of(init: Weights, policies: Sequence[Weights], **settings: Any) -> Weights:
        calls.append(settings)
        return policies[-1]

    config = CONFIG.replace(lam=0.3, merge="slerp_weights", merge_by="global")
    result = quick(config, parts=replace(FAST, merge=best_of))
    assert calls == [{"method": "slerp_weights", "by": "global", "lam": 0.3}] * 2
    assert fingerprint(result.merged) == fingerprint(result.ingredients[-1])
    assert (result.merges.liti_ratio - 0.3).abs().max() < 1e-3


# what it returns


def test_the_planted_reward_rises_on_held_out_prompts() -> None:
    task = tiny.task(reward=tiny.counted())
    config = CONFIG.replace(T=10, warmup_steps=0, beta=0.05, eta=0.8, batch_size=16)
    result = quick(config, task)
    found = evaluate(result.policy, task.policy, task, sampling=task.sampling(config.max_new_tokens), n_prompts=64)
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
    assert len(result.ingredients) == 2 and result.snapshots == {} and result.runs.loaded.eq(0).all()


def test_theta_sft_is_never_mutated() -> None:
    task = tiny.task()
    before = fingerprint(task.policy.state_dict())
    result = quick(CONFIG, task)
    assert fingerprint(task.policy.state_dict()) == before != fingerprint(result.policy.state_dict())


def test_runs_are_equal_to_the_bit_only_with_one_seed() -> None:
    one = replace(FAST, run_seed=lambda seed, i, m: derive_seed(seed))
    same, apart = (quick(CONFIG.replace(I=1), parts=parts) for parts in (one, FAST))
    curves = [[list(run.objective) for _, run in result.history.groupby("run")] for result in (same, apart)]
    assert curves[0][0] == curves[0][1] and curves[1][0] != curves[1][1]
    assert same.merges.delta_cosine[0] == pytest.approx(1, abs=1e-6)


def test_repeating_gives_the_same_bits_and_another_seed_does_not() -> None:
    first, again, other = (everything(quick(CONFIG.replace(seed=seed))) for seed in (0, 0, 1))
    assert first == again and first[0] != other[0]


SWITCHES = [
    {}, {"merge": "lerp"}, {"merge": "slerp_weights"}, {"merge_by": "tensor"}, {"merge_by": "global"}, {"lam": 0.3},
    {"anchor": "sft"}, {"baseline": "mean"}, {"baseline": "batch_loo"}, {"samples_per_prompt": 2},
    {"samples_per_prompt": 2, "baseline": "rloo"}, {"optimizer": "adamw"}, {"optimizer": "sgd"}, {"beta": 0.0},
    {"mu": 0.5}, {"M": 1}, {"M": 3}, {"eta": 0.5}, {"temperature": 0.7}, {"warmup_steps": 2}, {"dtype": "bfloat16"},
    {"lr": 1e-3}, {"I": 2}, {"T": 3}, {"batch_size": 6}, {"max_new_tokens": 4}, {"seed": 1},
]  # fmt: skip


@pytest.mark.slow
def test_every_switch_changes_the_result_and_what_only_records_does_not() -> None:
    base = CONFIG.replace(I=1, T=2, warmup_steps=0, max_new_tokens=3)
    prints = [bits(quick(base.replace(**change))) for change in SWITCHES]
    assert len(set(prints)) == len(prints)
    assert bits(quick(base.replace(save_every=1, snapshot_every=1, keep_anchors=True))) == prints[0]
    tried = {name for change in SWITCHES for name in change}
    assert set(WarpConfig.model_fields) - tried == {"save_every", "snapshot_every", "keep_anchors", "threads"}


def test_an_ema_that_never_moves_is_the_sft_anchor_in_the_first_iteration_only() -> None:
    prints = [
        [bits(quick(CONFIG.replace(I=count, **change))) for count in (1, 2)]
        for change in ({"mu": 0.0}, {"anchor": "sft"})
    ]
    assert prints[0][0] == prints[1][0] and prints[0][1] != prints[1][1]


@pytest.mark.slow
@pytest.mark.parametrize("change", [{}, {"merge": "slerp_weights"}, {"optimizer": "adamw"}, {"anchor": "sft"}], ids=str)
def test_frozen_weights_stay_frozen(change: dict[str, Any], tmp_path: Path) -> None:
    task = tiny.task(policy=tiny.gpt2(len(tiny.tokenizer()), spread=0.1))
    for module in (task.policy.transformer.wte, task.policy.transformer.h[0].mlp):
        module.requires_grad_(False)
    frozen = {name for name, value in task.policy.named_parameters() if not value.requires_grad}
    config, sft = CONFIG.replace(keep_anchors=True, snapshot_every=2, **change), weights_of(task.policy)
    result = quick(config, task, out_dir=tmp_path)
    sides = [weights_of(result.policy), result.merged, *result.ingredients, *result.snapshots.values()]
    for weights in sides:
        assert {name for name, value in weights.items() if value.equal(sft[name])} >= frozen
    assert not any(result.merged[name].equal(sft[name]) for name in set(sft) - frozen)
    assert {name for name, value in result.policy.named_parameters() if not value.requires_grad} == frozen
    assert result.runs.unmoved.max() < 0.5, "of the weights that are trained"


@pytest.mark.parametrize("method", MERGES)
@pytest.mark.parametrize(("M", "lam"), [(2, 0.3), (3, 0.5)])
def test_the_last_iteration_is_what_lines_12_and_13_make_of_its_ingredients(method: str, M: int, lam: float) -> None:
    task, config = tiny.task(), CONFIG.replace(I=1, M=M, lam=lam, merge=method, merge_by="tensor")
    result, sft = quick(config, task), weights_of(task.policy)
    wanted = merge(sft, result.ingredients, method=method, by="tensor", lam=lam)
    assert fingerprint(result.merged) == fingerprint(wanted)
    assert bits(result) == fingerprint(liti(sft, wanted, config.eta))


def test_eta_zero_stays_and_eta_one_is_the_merged_policy() -> None:
    task = tiny.task()
    assert bits(quick(CONFIG.replace(eta=0.0), task)) == fingerprint(weights_of(task.policy))
    full = quick(CONFIG.replace(eta=1.0), task)
    assert bits(full) == fingerprint(full.merged)


def test_the_front_runs_from_theta_sft_through_the_last_merge_and_beyond() -> None:
    task = tiny.task()
    result, sft = quick(CONFIG, task), weights_of(task.policy)
    found = front(sft, result.merged, [0.0, 0.5, 1.0, 2.0])
    assert [fingerprint(found[at]) for at in (0, 2)] == [fingerprint(sft), fingerprint(result.merged)]
    for at, eta in ((1, 0.5), (3, 2.0)):
        for name, value in found[at].items():
            wanted = (1 - eta) * sft[name].double() + eta * result.merged[name].double()
            assert torch.allclose(value.double(), wanted, rtol=0, atol=1e-6)


def test_llama_and_a_tokenizer_without_an_end_run_too() -> None:
    words = tiny.tokenizer(end=False, begin=True)
    task = Task(tiny.llama(len(words)), words, tiny.opinion, tiny.prompts(8, 0), [*tiny.prompts(16, 1)[:3], "never"])
    result = quick(CONFIG.replace(I=1, T=2), task)
    assert (result.history.tokens == CONFIG.max_new_tokens).all()
    assert "model.layers.1" in set(result.geometry.block)


def test_progress_is_called_with_every_row() -> None:
    rows: list[Any] = []
    quick(CONFIG.replace(I=1), progress=rows.append)
    assert [(row["run"], row["step"]) for row in rows] == [(m, t) for m in (1, 2) for t in (1, 2, 3)]


def test_a_runs_threads_are_its_own() -> None:
    before, seen = torch.get_num_threads(), []

    def watching(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        seen.append(torch.get_num_threads())
        return tiny.opinion(prompts, completions)

    quick(SHORT.replace(T=1, threads=before + 1), tiny.task(reward=watching))
    assert seen == [before + 1] and torch.get_num_threads() == before


def test_snapshots_of_every_run_by_iteration_run_and_step() -> None:
    result = quick(CONFIG.replace(T=4, snapshot_every=2, keep_anchors=True))
    assert set(result.snapshots) == {(i, m, at) for i in (1, 2) for m in (1, 2) for at in (2, 4, "anchor")}
    for m in (1, 2):  # the last snapshot is what line 12 merges
        assert fingerprint(result.snapshots[2, m, 4]) == fingerprint(result.ingredients[m - 1])
    assert len({fingerprint(weights) for weights in result.snapshots.values()}) == 12


# shapes


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"M": 1, "T": 1}, {"max_new_tokens": 1}], ids=str)
def test_the_least_there_is_runs(changes: dict[str, int]) -> None:
    assert quick(SHORT.replace(**changes), tiny.task(train_prompts=["the film"])).history.reward.notna().all()


@pytest.mark.parametrize(("first", "tokens"), [(38, 1.0), (1, (3 * 1 + SHORT.max_new_tokens) / 4)])
def test_completions_that_end_with_their_first_token(first: int, tokens: float) -> None:
    """All at once, and all but one: empty text, one token each, a gradient all the same."""

    def ended(log_probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.tensor([first] + [38] * (len(log_probs) - 1))

    def sample(*args: Any, **settings: Any) -> Any:
        return FAST.sample(*args, **settings, draw=ended)

    assert tiny.tokenizer().eos_token_id == 38
    result = quick(parts=replace(FAST, sample=sample))
    assert result.history.tokens.eq(tokens).all() and result.history.grad_norm.gt(0).all()
    assert result.runs.scored_after_end.eq(0).all()


def test_a_prompt_beyond_the_context_is_refused_before_anything_is_sampled() -> None:
    never = replace(FAST, sample=lambda *args, **settings: pytest.fail("sampled"))
    with pytest.raises(ValueError, match=r"train_prompts\[0\] has 28 tokens .* leaves 4 for a completion"):
        quick(task=tiny.task(train_prompts=[" ".join(["the"] * 28)]), parts=never)


# the disk

NO_DISK = f"""
import json, resource, signal, sys
sys.path[:0] = [{str(Path(__file__).parent)!r}]
import pandas, tiny
from faulty import FOUR_RUNS, quick

task, wrote = tiny.task(), []
quick(FOUR_RUNS.replace(T=1), task)  # what is imported, compiled or cached at first use
CHANGES = {{"os.mkdir", "os.rename", "os.remove", "os.rmdir", "os.truncate", "os.link", "os.symlink", "os.chmod"}}

def hook(event, args):
    writes = event == "open" and (set(str(args[1] or "")) & set("wax+") or (args[2] or 0) & 3)
    if writes and args[0] != "/dev/null" or event in CHANGES or event.startswith(("tempfile.", "shutil.")):
        wrote.append([event, str(args[0])])

sys.addaudithook(hook)
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))  # no file may take a byte, whatever language writes it
config = FOUR_RUNS.replace(snapshot_every=1, save_every=1, keep_anchors=True)
quick(config, task)
in_memory = list(wrote)
try:
    quick(config, task, out_dir="runs")
except ValueError as error:
    print(json.dumps([in_memory, wrote, str(error)]))
"""


@pytest.mark.slow
def test_in_memory_nothing_touches_the_disk(tmp_path: Path) -> None:
    """A process that may write no byte and notes every file that is opened to write, made, moved or deleted.

    With a folder it then writes and fails, so it would have noticed.
    """
    settings = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300}
    environment = {"TMPDIR": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, "-c", NO_DISK], env=os.environ | environment, **settings)
    assert done.returncode == 0, done.stderr[-2000:]
    in_memory, in_a_folder, error = json.loads(done.stdout)
    assert in_memory == []
    assert ["os.mkdir", "runs"] in in_a_folder and "File too large" in error
    assert [path.name for path in tmp_path.iterdir()] == ["runs"]


def test_the_tasks_policy_may_be_deleted_and_the_result_stays() -> None:
    """Nothing of a result is the task's own memory."""
    task = tiny.task()
    result = warp(CONFIG.replace(eta=0.0, M=1, I=1), task, progress=False)
    before = bits(result), fingerprint(result.merged)
    with torch.no_grad():
        for value in task.policy.parameters():
            value.zero_()
    assert before == (bits(result), fingerprint(result.merged))
