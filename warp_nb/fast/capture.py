"""Rollouts and steps captured in CUDA graphs; each model is first tried on a small scale and compared with itself.

Random numbers are drawn on the CPU before a rollout, so they are the same on every device.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch.nn.utils import get_total_norm

from warp_nb.algorithm import objective
from warp_nb.algorithm.merge import wide
from warp_nb.algorithm.objective import Rollout, Sampling
from warp_nb.fast.agreement import computed_dtype, has_window, is_altered, probe, rounding, structure
from warp_nb.fast.decoders import Decoder
from warp_nb.fast.forwards import FixedForward
from warp_nb.fast.graphs import Graph
from warp_nb.fast.layout import Layout
from warp_nb.fast.sampler import Sampler, slots_of
from warp_nb.fast.scoring import masked_logits, token_log_probs

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Terms = Callable[..., tuple[torch.Tensor, Mapping[str, torch.Tensor]]]
"""(rollout, rewards, completion_logits=…) -> (loss, measurements), all of them tensors on the device."""


def computed(dtype: torch.dtype, device: torch.device) -> torch.autocast:
    """Return a region of autocast to `dtype`, for a graph: what is cast in it is not cached beyond it."""
    below = dtype.itemsize < 4
    return torch.autocast(device.type, dtype if below else None, enabled=below, cache_enabled=False)


# Rollouts


class CapturedSampler:
    """A `Sampler` whose two steps are captured, for the rollouts of one policy; it holds no reference to the policy."""

    def __init__(self, policy: PreTrainedModel, shape: tuple[int, int], sampling: Sampling) -> None:
        length = slots_of(shape[1] + sampling.max_new_tokens, policy.device)
        layout = Layout.fits(policy)
        decoder: Decoder = Layout(policy, shape[0], length) if layout else FixedForward(policy, shape[0], length, True)
        self.sampler = Sampler(decoder, shape, sampling, next(policy.parameters()), whole=True)
        self.dtype = computed_dtype(policy.device)
        self.graphs: list[Graph] = []

    def __call__(self, ids: torch.Tensor, mask: torch.Tensor, noise: torch.Tensor) -> Rollout:
        """Return the rollout of prompts [B, P] by uniform noise [C, B]."""
        begin = partial(self.sampler.begin, ids, mask, noise)
        if not self.graphs:
            steps = self.sampler.first, self.sampler.next
            self.graphs = [Graph(partial(self._computed, step), ids.device, begin) for step in steps]
        begin()
        return self.sampler.run(*(graph.replay for graph in self.graphs))

    def _computed(self, step: Callable[[], None]) -> None:
        with computed(self.dtype, self.sampler.device):
            step()


_CAPTURED: WeakKeyDictionary[torch.nn.Module, tuple[Any, CapturedSampler]] = WeakKeyDictionary()


def captured_sampler(policy: PreTrainedModel, shape: tuple[int, int], sampling: Sampling) -> CapturedSampler:
    """Return the policy's sampler for prompts of this shape; it is made anew when shape, settings or storage differ."""
    storage = tuple(value.data_ptr() for value in policy.parameters())
    wanted = shape, sampling, computed_dtype(policy.device), storage
    known = _CAPTURED.get(policy)
    if known is None or known[0] != wanted:
        known = _CAPTURED[policy] = wanted, CapturedSampler(policy, shape, sampling)
    return known[1]


# Steps


class CapturedStep:
    """A step's forwards, loss and backward pass in one graph, for rollouts of B prompts of P tokens, `shape`.

    `loss.backward()` of what it returns hands over the gradients that the graph has computed, without a copy.
    """

    def __init__(self, terms: Terms, policy: PreTrainedModel, shape: tuple[int, int], sampling: Sampling) -> None:
        (batch, self.width), count, device = shape, sampling.max_new_tokens, policy.device
        self.terms, self.shape, self.sampling = terms, shape, sampling
        self.trained = [value for value in policy.parameters() if value.requires_grad]
        self.dtype = computed_dtype(device)
        ids = torch.full((batch, self.width + count), sampling.pad_id, device=device)
        kept = torch.zeros(batch, count, dtype=torch.bool, device=device)
        drawn = torch.zeros(batch, count, dtype=wide(next(policy.parameters())[:0]).dtype, device=device)
        self.rollout = Rollout(ids, torch.zeros_like(ids), kept, drawn, sampling.temperature)
        self.rewards = torch.zeros(batch, device=device)
        self.graph: Graph | None = None

    def load(self, rollout: Rollout, rewards: torch.Tensor) -> None:
        """Copy a rollout of at most C tokens, and its rewards, into the fixed tensors."""
        mine, length = self.rollout, rollout.tokens.shape[1]
        end = self.width + length
        mine.ids.fill_(self.sampling.pad_id)[:, :end] = rollout.ids
        mine.attention_mask.zero_()[:, :end] = rollout.attention_mask
        mine.completion_mask.zero_()[:, :length] = rollout.completion_mask
        mine.sampled_log_probs.zero_()[:, :length] = rollout.sampled_log_probs
        self.rewards.copy_(rewards)

    def compute(self) -> None:
        """Compute loss, measurements and gradients of what was loaded."""
        with torch.enable_grad(), computed(self.dtype, self.rewards.device):
            loss, measured = self.terms(self.rollout, self.rewards, completion_logits=masked_logits)
        with torch.autocast(self.rewards.device.type, enabled=False):  # the caller's, for `backward` runs outside of it
            self.gradients = torch.autograd.grad(loss, self.trained, allow_unused=True)
        self.loss, self.measured = loss.detach(), measured

    def __call__(self, rollout: Rollout, rewards: torch.Tensor) -> tuple[torch.Tensor, Mapping[str, torch.Tensor]]:
        """Return the loss and the measurements of a rollout."""
        self.load(rollout, rewards)
        if self.graph is None:
            self.graph = Graph(self.compute, rewards.device)
        self.graph.replay()
        marker = torch.zeros((), requires_grad=True)
        return _Handed.apply(marker, self.loss, (self.trained, self.gradients)), self.measured


class _Handed(torch.autograd.Function):
    """A loss whose gradients are known: its backward pass sets them."""

    @staticmethod
    def forward(ctx: Any, marker: torch.Tensor, loss: torch.Tensor, found: Any) -> torch.Tensor:
        ctx.found = found
        return loss.clone()

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[None, ...]:
        for value, gradient in zip(*ctx.found, strict=True):
            value.grad = gradient
        return (None,) * 3


# A trial

KINDS = {"cuda"}
"""Kinds of device on which rollouts and steps are captured."""
TRIED: dict[tuple[str, torch.dtype, bool], str] = {}


def why_eager(policy: PreTrainedModel) -> str:
    """Return why sampling and steps of `policy` are not captured here; an empty string if they are.

    On CUDA a small rollout and a small step are captured, replayed and compared with the model's own, once per
    structure of a model and dtype of the computation.
    """
    if policy.device.type not in KINDS:
        return policy.device.type
    if is_altered(policy):
        return "a forward is hooked or replaced"
    if has_window(policy):
        return "attention has a window"
    trains = any(value.requires_grad for value in policy.parameters())
    key = structure(policy), computed_dtype(policy.device), trains
    if key not in TRIED:
        try:
            TRIED[key] = trial(policy)
        except Exception as error:  # of any model's forward, and of CUDA
            cause: BaseException = error
            while cause.__context__ is not None:  # a capture that failed ends with an error of its own
                cause = cause.__context__
            TRIED[key] = f"{type(cause).__name__}: {(str(cause).strip().splitlines() or [''])[0][:200]}"
    return TRIED[key]


def trial(policy: PreTrainedModel) -> str:
    """Capture a rollout and a step of two short prompts; return what differs from the model's own, if anything does."""
    device, count = policy.device, 4
    ids, mask = probe(policy)
    sampling = Sampling(count, end_ids=(), pad_id=0)
    captured = CapturedSampler(policy, (2, 4), sampling)
    for seed in (0, 1):  # two rollouts: the second one replays on other values
        noise = torch.rand(count, 2, generator=torch.Generator().manual_seed(seed))
        rollout = captured(ids.flip(0) if seed else ids, mask.flip(0) if seed else mask, noise.to(device))
    with torch.no_grad():
        logits = objective.completion_logits(policy, rollout)
        own = token_log_probs(logits, rollout.tokens, rollout.completion_mask, 1.0)
    slack = rounding(logits.float().log_softmax(-1))
    if computed_dtype(device).itemsize < 4:  # logits themselves are rounded, and so is all below them
        slack = 100 * slack + torch.finfo(computed_dtype(device)).eps * logits.abs().max().item()
    gap = (own - rollout.sampled_log_probs).abs().max().item()
    if not gap <= slack:
        return f"the captured rollout differs by {gap:.2g} nats"
    if not any(value.requires_grad for value in policy.parameters()):
        return ""

    def terms(rollout: Rollout, rewards: Any, completion_logits: Any) -> Any:
        logits = completion_logits(policy, rollout)
        found = token_log_probs(logits, rollout.tokens, rollout.completion_mask, rollout.temperature)
        return found.sum(), {"log_probs": found.detach()}

    step = CapturedStep(terms, policy, (2, 4), sampling)
    rewards = torch.zeros(2, device=device)
    _, measured = step(rollout, rewards)
    gap = (own - measured["log_probs"]).abs().max().item()
    if not gap <= slack:
        return f"the captured step differs by {gap:.2g} nats"
    captured_norm = get_total_norm(present(step.gradients))
    step.compute()
    wanted = get_total_norm(present(step.gradients))
    share = ((captured_norm - wanted).abs() / wanted).item()
    alike = share <= 0.05 or wanted == 0
    return "" if alike else f"the gradient of the captured step differs by {share:.2g} of its norm"


def present(gradients: Sequence[torch.Tensor | None]) -> list[torch.Tensor]:
    """Return the gradients of those weights that have one."""
    return [gradient for gradient in gradients if gradient is not None]
