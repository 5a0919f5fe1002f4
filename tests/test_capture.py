"""Rollouts and steps on fixed tensors, replayed, against the plain ones: on a CPU by the same code, on a GPU captured.

On a CPU `replay` calls the function itself. What a CPU cannot show is shown on the meta device: that a step asks
nothing of the host.
"""

from __future__ import annotations

import copy
import gc
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakMethod, ref

import pytest
import tiny
import torch
from brute import encoded
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from warp_nb import WarpConfig, evaluate, warp
from warp_nb.algorithm import objective
from warp_nb.algorithm.merge import weights_of
from warp_nb.algorithm.objective import Rollout, Sampling
from warp_nb.fast import capture, decoding, graphs
from warp_nb.fast.agreement import structure
from warp_nb.fast.capture import CapturedSampler, CapturedStep, captured_sampler, why_eager
from warp_nb.fast.devices import arithmetic
from warp_nb.fast.forwards import FixedForward
from warp_nb.fast.layout import Layout
from warp_nb.fast.sampler import Sampler, slots_of
from warp_nb.fast.scoring import masked_logits, token_log_probs
from warp_nb.measure import evaluation
from warp_nb.runs import training
from warp_nb.runs.training import FAST, PLAIN, train
from warp_nb.tasks.task import Task

PROMPTS = ["the", "the film was", "it was the best movie we saw", "story of it"] * 2
CUDA = pytest.param("cuda", marks=pytest.mark.gpu)
KINDS: dict[str, Callable[..., Any]] = {
    "llama": tiny.llama,
    "gpt2": tiny.gpt2,
    "own forward": lambda *args, **settings: own_forward(tiny.llama(*args, **settings)),
}


def own_forward(policy: Any) -> Any:
    """Let a Llama's epsilon be one that the layout does not read, so that its own forward decodes."""
    policy.model.norm.variance_epsilon = 0.05
    return policy


@pytest.fixture(params=["cpu", CUDA])
def device(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A device on which rollouts and steps are replayed; on the CPU by calling them."""
    monkeypatch.setattr(capture, "KINDS", {"cpu", "cuda"})
    monkeypatch.setattr(capture, "TRIED", {})
    yield request.param


@pytest.fixture(params=KINDS)
def policy(request: pytest.FixtureRequest, device: str) -> Any:
    found = KINDS[request.param](len(tiny.tokenizer())).to(device)
    assert Layout.fits(found) == (request.param != "own forward")
    return found


def prompts(device: str, texts: list[str] = PROMPTS, count: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    ids, mask = encoded(tiny.tokenizer(), texts, count)
    return ids.to(device), mask.to(device)


def settings(count: int = 8, temperature: float = 0.8) -> Sampling:
    end = tiny.tokenizer().eos_token_id
    return Sampling(count, temperature, (end,), end)


# rollouts


def test_replayed_rollouts_are_the_plain_ones(policy: Any, device: str) -> None:
    """Ids, masks, log-probabilities and the generator's state, rollout after rollout, after every kind of change."""
    mine, plain, noise = (torch.Generator().manual_seed(3) for _ in range(3))
    ended = set()
    for change in (None, None, "weights", "prompts", "length"):
        if change == "weights":
            with torch.no_grad():
                for value in policy.parameters():
                    value.mul_(1.1)
        given = prompts(device, PROMPTS[:3] if change == "prompts" else PROMPTS)
        sampling = settings(5 if change == "length" else 8)
        before = mine.get_state()
        found = FAST.sample(policy, *given, sampling, generator=mine)
        wanted = PLAIN.sample(policy, *given, sampling, generator=plain)
        for name in ("ids", "attention_mask", "completion_mask"):
            assert torch.equal(getattr(found, name), getattr(wanted, name)), (change, name)
        assert torch.allclose(found.sampled_log_probs, wanted.sampled_log_probs, atol=1e-4)
        assert torch.equal(mine.get_state(), plain.get_state())
        noise.set_state(before)
        there = PLAIN.sample(copy.deepcopy(policy).cpu(), *map(torch.Tensor.cpu, given), sampling, generator=noise)
        assert (found.ids.cpu() == there.ids).all(1).float().mean() > 0.7, "the CPU's completions, up to rounding"
        ended |= set(found.completion_mask.sum(1).tolist())
    assert len(ended) > 3, "sequences of many lengths"


def test_a_rollout_ends_when_all_sequences_have(device: str) -> None:
    """The generator goes on as if the noise of the tokens that nobody needed had not been drawn."""
    policy = tiny.gpt2(len(tiny.tokenizer()), spread=0.02).to(device)
    given, sampling = prompts(device, PROMPTS[:1], 24), Sampling(24, end_ids=tuple(range(0, 39, 2)))
    mine, plain = (torch.Generator().manual_seed(0) for _ in range(2))
    widths = []
    for _ in range(6):
        found = FAST.sample(policy, *given, sampling, generator=mine)
        assert torch.equal(found.ids, PLAIN.sample(policy, *given, sampling, generator=plain).ids)
        widths.append(found.tokens.shape[1])
    assert torch.equal(mine.get_state(), plain.get_state())
    assert min(widths) < 8 and len(set(widths)) > 1, "some end before the first check of a GPU, none at the limit"


def test_one_capture_serves_all_rollouts_of_a_shape(policy: Any, device: str) -> None:
    made = captured_sampler(policy, (8, 8), settings())
    assert captured_sampler(policy, (8, 8), settings()) is made
    for other in (captured_sampler(policy, (4, 8), settings()), captured_sampler(policy, (8, 8), settings(5))):
        assert other is not made
    again = captured_sampler(policy, (8, 8), settings())
    policy.get_output_embeddings().weight = torch.nn.Parameter(policy.get_output_embeddings().weight.clone())
    assert captured_sampler(policy, (8, 8), settings()) is not again, "its storage is another"


def test_a_capture_ends_with_its_policy(device: str) -> None:
    for kind in KINDS.values():
        policy = kind(len(tiny.tokenizer())).to(device)
        FAST.sample(policy, *prompts(device), settings(), generator=torch.Generator())
        sampler = ref(captured_sampler(policy, (8, 7), settings()))
        assert sampler() is not None
        del policy
        for _ in range(2):  # the policy may be in a cycle, and the sampler is
            gc.collect()
        assert sampler() is None


def test_blocks_have_the_noise_of_their_seeds(policy: Any, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A batch of several blocks is what the blocks are alone; without a capture it is refused."""
    monkeypatch.setattr(decoding, "BLOCK", 3)
    ids, mask = prompts(device)
    whole = decoding.sample_by_seeds(policy, ids, mask, settings(), seeds=[5, 6, 7])
    for number, start in enumerate(range(0, 8, 3)):
        rows = slice(start, start + 3)
        alone = decoding.sample_by_seeds(policy, ids[rows], mask[rows], settings(), seeds=[5 + number])
        width = alone.ids.shape[1]
        assert torch.equal(whole.ids[rows, :width], alone.ids) and not whole.attention_mask[rows, width:].any()
    monkeypatch.setattr(capture, "KINDS", set())
    with pytest.raises(ValueError, match=r"3 blocks need a captured policy, this one is not \((cpu|cuda)\); pass one"):
        decoding.sample_by_seeds(policy, ids, mask, settings(), seeds=[5, 6, 7])


# steps


def terms(policy: Any, rollout: Rollout, rewards: torch.Tensor, completion_logits: Any) -> Any:
    found = token_log_probs(
        completion_logits(policy, rollout), rollout.tokens, rollout.completion_mask, rollout.temperature
    )
    return -(rewards * found.sum(1)).mean(), {"log_probs": found.detach().sum()}


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_replayed_step_has_the_plain_loss_and_gradients(policy: Any, device: str, dtype: str) -> None:
    """Of rollouts of several lengths, with padding on both sides, and of weights that have changed."""
    policy.get_input_embeddings().weight.requires_grad_(False)
    with arithmetic(dtype, torch.device(device)):
        step = CapturedStep(lambda *given, **way: terms(policy, *given, **way), policy, (8, 7), settings())
    assert step.dtype == getattr(torch, dtype)
    generator, lengths = torch.Generator().manual_seed(1), set()
    for scale in (1.0, 0.7, 0.5):
        with torch.no_grad():
            for value in policy.parameters():
                value.mul_(scale)
        rollout = PLAIN.sample(policy, *prompts(device), settings(), generator=generator)
        rewards = torch.randn(8, generator=generator).to(device)
        lengths.add(rollout.tokens.shape[1])
        gradients = []
        for way in ("replayed", "plain"):
            policy.zero_grad()
            with arithmetic(dtype, torch.device(device)):
                if way == "replayed":
                    loss, measured = step(rollout, rewards)
                else:
                    loss, measured = terms(policy, rollout, rewards, objective.completion_logits)
            loss.backward()
            found = {name: p.grad for name, p in policy.named_parameters() if p.grad is not None}
            gradients.append(found | {"loss": loss.detach(), "log_probs": measured["log_probs"]})
        mine, plain = gradients
        assert mine.keys() == plain.keys() and len(plain) > 10
        left, right = (torch.cat([side[name].flatten() for name in plain]) for side in (mine, plain))
        assert (left - right).norm() <= (1e-5 if dtype == "float32" else 0.1) * right.norm() and right.norm() > 1


def test_logits_under_the_whole_mask_are_those_under_a_mask_of_tokens(policy: Any, device: str) -> None:
    rollout = PLAIN.sample(policy, *prompts(device), settings(), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        mine, plain = (way(policy, rollout) for way in (masked_logits, objective.completion_logits))
    seen = rollout.completion_mask
    assert torch.allclose(mine[seen], plain[seen], atol=1e-4) and plain[seen].std() > 0.5


def task(device: str, kind: str = "llama") -> Task:
    """The tiny task on a device; prompts of several lengths, an end token, a policy with uneven choices."""
    words = tiny.tokenizer()
    return tiny.task(policy=KINDS[kind](len(words), spread=0.1).to(device), tokenizer=words)


CONFIG = WarpConfig(I=1, M=1, T=4, lr=1e-2, warmup_steps=0, batch_size=8, max_new_tokens=6, samples_per_prompt=2)


@pytest.mark.parametrize("baseline", ["none", "rloo"])
@pytest.mark.parametrize("anchor", ["ema", "sft"])
def test_a_run_of_replayed_steps_is_the_eager_run(
    device: str, baseline: str, anchor: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    config, found = CONFIG.replace(baseline=baseline, anchor=anchor, beta=0.5), []
    for kinds in ({"cpu", "cuda"}, set()):
        monkeypatch.setattr(capture, "KINDS", kinds)
        given = task(device)
        found.append(train(config, given, weights_of(given.policy), i=1, m=1))
    mine, eager = found
    for left, right in zip(mine.history, eager.history, strict=True):
        assert left.keys() == right.keys()
        for name in left.keys() - {"seconds", "sampling_gap"}:
            assert left[name] == pytest.approx(right[name], rel=1e-3, abs=1e-4), name
    moved = [(eager.weights[name] - value).norm().item() for name, value in weights_of(given.policy).items()]
    apart = [(mine.weights[name] - value).norm().item() for name, value in eager.weights.items()]
    assert max(apart) < 1e-2 * max(moved) and mine.facts["sampling_gap"] < 1e-3


@pytest.mark.parametrize(
    "kind", ["llama", *(pytest.param(kind, marks=pytest.mark.slow) for kind in ("gpt2", "own forward"))]
)
def test_repeated_and_resumed_runs_have_the_same_bits(device: str, kind: str, tmp_path: Path) -> None:
    config = CONFIG.replace(I=2, M=2, save_every=1)
    first, again = (warp(config, task(device, kind), progress=False) for _ in range(2))
    reward = tiny.opinion
    calls = 0

    def failing(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        nonlocal calls
        calls += 1
        if calls == 7:
            raise RuntimeError("planted")
        return reward(prompts, completions)

    failing.__name__ = reward.__name__
    broken = task(device, kind)
    object.__setattr__(broken, "reward", failing)
    with pytest.raises(RuntimeError, match="planted"):
        warp(config, broken, tmp_path, progress=False)
    resumed = warp(config, broken, tmp_path, progress=False)
    assert calls > 7 and resumed.runs["loaded"].max() > 0
    for other in (again, resumed):
        assert all(torch.equal(value, other.merged[name]) for name, value in first.merged.items())
        assert first.history.drop(columns="seconds").equals(other.history.drop(columns="seconds"))


def test_what_a_run_held_is_freed_with_it(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a collection of garbage: memory of a GPU that is used up calls none."""
    made: list[Any] = []

    class Noted(CapturedStep):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            made.append(ref(self))

    class Unheld(graphs.Graph):
        """As a captured graph it does not hold the function."""

        def __init__(self, function: Any, *args: Any) -> None:
            super().__init__(function, *args)
            if device == "cpu" and hasattr(function, "__self__"):
                weak = WeakMethod(function)
                self.replay = lambda: weak()()

    monkeypatch.setattr(training, "CapturedStep", Noted)
    monkeypatch.setattr(capture, "Graph", Unheld)
    given = task(device)
    start = weights_of(given.policy)
    why_eager(given.policy)
    gc.collect()
    gc.disable()
    try:
        train(CONFIG, given, start, i=1, m=1)
        assert made and {one() for one in made} == {None}
        assert device == "cpu" or len(made) == 1, "on a GPU all batches have one shape"
    finally:
        gc.enable()


def test_replaced_parts_are_called_at_every_step(device: str) -> None:
    """A part of the user's own may do anything, so nothing is captured around it."""
    calls = []

    def noted(*args: Any) -> torch.Tensor:
        calls.append(1)
        return FAST.reinforce_loss(*args)

    given = task(device)
    parts = type(FAST)(reinforce_loss=noted)
    train(CONFIG, given, weights_of(given.policy), i=1, m=1, parts=parts)
    assert len(calls) == CONFIG.T


# evaluation


def test_an_evaluation_in_large_batches_is_that_in_blocks(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "BLOCK", 16)
    monkeypatch.setattr(evaluation, "BLOCK", 16)
    given, found = task(device), []
    policy = tiny.llama(len(tiny.tokenizer()), seed=1, spread=0.1).to(device)
    sizes = []
    for kinds in ({"cpu", "cuda"}, set()):
        monkeypatch.setattr(capture, "KINDS", kinds)
        sizes.append(evaluation.batch_size(policy, given.policy, given.sampling(6)))
        found.append(evaluate(policy, given.policy, given, sampling=given.sampling(6), n_prompts=40))
    assert sizes[0] > 40 and sizes[1] == 16
    assert found[0].samples == found[1].samples
    for name, estimate in found[0].measures().items():
        assert estimate.value == pytest.approx(found[1].measures()[name].value, rel=1e-4, abs=1e-5)


@pytest.mark.parametrize("saved", [True, False])
def test_an_evaluation_leaves_its_models_as_they_were(
    saved: bool, device: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Also of a large policy, whose hidden states are saved: what follows in the process is captured as before."""
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(evaluation, "ReferenceSide", partial(evaluation.ReferenceSide, large=0 if saved else 1 << 60))
    given = task(device)
    before = structure(given.policy)
    evaluate(copy.deepcopy(given.policy), given.policy, given, sampling=given.sampling(6), n_prompts=40)
    assert any(tmp_path.rglob("*.safetensors")) == saved
    assert structure(given.policy) == before
    assert why_eager(given.policy) == why_eager(copy.deepcopy(given.policy)) == ""


# which policy is captured


def test_a_trial_finds_what_a_capture_would_change(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A forward that depends on what the host counts, one that is hooked, and a trial that fails."""
    assert why_eager(task(device).policy) == ""
    hooked = task(device).policy
    hooked.lm_head.register_forward_hook(lambda module, given, out: None)
    assert why_eager(hooked) == "a forward is hooked or replaced"

    class Wrong(Layout):
        def __call__(self, *args: Any) -> torch.Tensor:
            return super().__call__(*args) * 1.5

    monkeypatch.setattr(capture, "Layout", Wrong)
    monkeypatch.setattr(capture, "TRIED", {})
    assert why_eager(task(device).policy).startswith("the captured rollout differs by ")

    class Failing(Layout):
        def __init__(self, *args: Any) -> None:
            raise RuntimeError("cannot be captured\nmore")

    monkeypatch.setattr(capture, "Layout", Failing)
    monkeypatch.setattr(capture, "TRIED", {})
    policy = task(device).policy
    assert why_eager(policy) == "RuntimeError: cannot be captured"
    generator = torch.Generator().manual_seed(0)
    mine = FAST.sample(policy, *prompts(device), settings(), generator=generator)
    plain = PLAIN.sample(policy, *prompts(device), settings(), generator=torch.Generator().manual_seed(0))
    assert torch.equal(mine.ids, plain.ids), "eager, by the same code"


def test_a_policy_whose_attention_has_a_window_is_not_captured(device: str) -> None:
    policy = task(device).policy
    policy.config.sliding_window = 4
    assert why_eager(policy) == "attention has a window"


def test_hooks_that_transformers_leaves_do_not_count(device: str) -> None:
    policy = task(device).policy
    before = structure(policy)
    with torch.no_grad():
        policy(torch.arange(4, device=device)[None], output_hidden_states=True)
    assert any(module._forward_hooks for module in policy.modules()), "they stay in the model"
    assert structure(policy) == before and why_eager(policy) == "" and Layout.fits(policy)


def test_a_frozen_policy_is_tried_without_a_step(device: str) -> None:
    policy = task(device).policy.requires_grad_(False)
    assert why_eager(policy) == ""
    assert why_eager(policy.requires_grad_(True)) == "" and len(capture.TRIED) == 2


def test_without_cuda_nothing_is_captured() -> None:
    assert why_eager(tiny.gpt2(20)) == "cpu"


# graphs


@pytest.mark.parametrize("broken", [False, True])
def test_a_graph_is_prepared_warmed_up_and_captured_without_collections(
    broken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order of calls, by stand-ins for torch.cuda: every call of the function finds its tensors prepared."""
    calls: list[str] = []

    class Named:
        def __init__(self, *args: Any, **settings: Any) -> None:
            self.stream = settings.get("stream")

        def __enter__(self) -> None:
            calls.append("capture" if isinstance(self.stream, Named) else "enter")

        def __exit__(self, *error: Any) -> None:
            calls.append("exit")

        def wait_stream(self, other: Any) -> None:
            calls.append("wait")

        def replay(self) -> None:
            calls.append("replay")

    for name in ("CUDAGraph", "stream", "graph", "device"):
        monkeypatch.setattr(torch.cuda, name, Named)
    monkeypatch.setattr(torch.cuda, "current_stream", Named)
    monkeypatch.setattr(torch.cuda, "set_stream", lambda stream: calls.append("back"))
    monkeypatch.setattr(graphs, "stream_beside", Named)
    collects: list[bool] = []

    def function() -> None:
        calls.append("function")
        collects.append(gc.isenabled())
        if broken and len(collects) == graphs.WARMING + 1:
            raise RuntimeError("not permitted while a stream is captured")

    def make() -> graphs.Graph:
        return graphs.Graph(function, torch.device("cuda", 0), lambda: calls.append("prepare"))

    before = gc.isenabled()
    gc.enable()
    try:
        with pytest.raises(RuntimeError, match="captured") if broken else nullcontext():
            made = make()
        assert gc.isenabled() and collects == [True] * graphs.WARMING + [False]
    finally:
        gc.enable() if before else gc.disable()
    warm_up = ["prepare", "function"] * graphs.WARMING
    begun = ["enter", "wait", "enter", *warm_up, "prepare", "exit", "wait"]
    assert calls == [*begun, "capture", "function", "exit", "back", "exit"], "back on the stream it came from"
    if not broken:
        made.replay()
        assert calls[-1] == "replay" and collects[-1] is False and len(collects) == graphs.WARMING + 1


# what the host is asked


class Asked(TorchDispatchMode):
    """Notes the operations that move values between devices, or work on the host."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **kwargs or {})
        self.count += 1
        tensors = [value for value in tree_leaves((args, kwargs, out)) if isinstance(value, torch.Tensor)]
        if {value.device.type for value in tensors} - {"meta"}:
            self.found.append(str(func))
        return out


@pytest.fixture
def no_autocast(monkeypatch: pytest.MonkeyPatch) -> None:
    """The meta device has no autocast."""
    monkeypatch.setattr(torch, "autocast", lambda *args, **settings: nullcontext())
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda *args: False)


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("kind", [Layout, FixedForward])
@pytest.mark.parametrize("family", [tiny.llama, tiny.gpt2])
def test_a_token_asks_nothing_of_the_host(kind: Any, family: Callable[..., Any]) -> None:
    policy = family(len(tiny.tokenizer())).to("meta")
    decoder = kind(policy, 4, slots_of(8 + 4, policy.device))
    sampler = Sampler(decoder, (4, 8), Sampling(4, end_ids=(3, 4)), next(policy.parameters()), whole=True)
    for step in (sampler.first, sampler.next):
        step()  # what is made at the first call is made before a capture
        with Asked() as asked:
            step()
        assert asked.found == [] and asked.count > 50
    with Asked() as asked, pytest.raises(RuntimeError, match="meta"):
        bool(sampler.alive.any())


@pytest.mark.usefixtures("no_autocast")
@pytest.mark.parametrize("baseline", ["none", "mean", "batch_loo", "rloo"])
@pytest.mark.parametrize("family", [tiny.llama, tiny.gpt2])
def test_a_step_asks_nothing_of_the_host(baseline: str, family: Callable[..., Any]) -> None:
    given = tiny.task(policy=family(len(tiny.tokenizer())))
    run = training.Training(CONFIG.replace(baseline=baseline), given, 1, 1)
    policy, anchor = (family(len(tiny.tokenizer())).to("meta") for _ in range(2))
    anchor.requires_grad_(False)
    step = CapturedStep(lambda *sides, **way: run.terms(policy, anchor, *sides, **way), policy, (8, 7), run.sampling)
    with Asked() as asked:
        step.compute()
    assert asked.found == [] and asked.count > 200
    assert {gradient.device.type for gradient in step.gradients} == {"meta"}


def test_captures_are_told_apart_by_what_they_hold() -> None:
    """A captured sampler of a policy under autocast holds weights of that dtype."""
    policy = tiny.llama(len(tiny.tokenizer()))
    with arithmetic("bfloat16", torch.device("cpu")):
        low = CapturedSampler(policy, (2, 4), settings(4))
    assert isinstance(low.sampler.decoder, Layout) and low.dtype == low.sampler.decoder.dtype == torch.bfloat16
