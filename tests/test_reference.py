"""The reference's side of an evaluation is made once, and what is kept gives the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from warp_nb.measure import reference_cache as module
from warp_nb.measure.evaluation import evaluate
from warp_nb.measure.reference_cache import ReferenceSide

PROMPTS = ["the", "the film was", "it was the best movie we saw"]
MODELS = {"gpt2": tiny.gpt2, "llama": tiny.llama}


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what is kept, where every policy counts as large."""
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    monkeypatch.setattr(module, "LARGE", 0)
    return tmp_path / "reference"


def side(policy: Any, temperature: float = 0.8, tokens: int = 5) -> ReferenceSide:
    return ReferenceSide(policy, tiny.tokenizer(), tokens, temperature)


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(module, "sample", refuse)


@pytest.mark.parametrize("kind", MODELS)
def test_what_is_kept_gives_the_same_bits(kind: str, kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = MODELS[kind](len(tiny.tokenizer()))
    with monkeypatch.context() as context:
        context.setattr(module, "LARGE", 1 << 60)
        plain = side(policy).rollout(PROMPTS, 3)
    assert not kept.exists()
    made = side(policy).rollout(PROMPTS, 3)
    assert len(list(kept.glob("*.safetensors"))) == 1
    forbid(monkeypatch)
    loaded = side(policy).rollout(PROMPTS, 3)
    for rollout, logits in (made, loaded):
        assert torch.equal(logits, plain[1])
        assert (rollout.prompts, rollout.completions) == (PROMPTS, plain[0].completions)
        for name in ("ids", "attention_mask", "completion_mask", "sampled_log_probs"):
            assert torch.equal(getattr(rollout, name), getattr(plain[0], name))


def test_everything_that_changes_the_bits_makes_another_file(kept: Path) -> None:
    words = len(tiny.tokenizer())
    policy = tiny.llama(words)
    side(policy).rollout(PROMPTS, 3)
    side(policy).rollout(PROMPTS, 4)
    side(policy).rollout(PROMPTS[:2], 3)
    side(policy, temperature=1.0).rollout(PROMPTS, 3)
    side(policy, tokens=4).rollout(PROMPTS, 3)
    side(tiny.llama(words, seed=1)).rollout(PROMPTS, 3)
    assert len(list(kept.iterdir())) == 6
    side(policy).rollout(PROMPTS, 3)
    assert len(list(kept.iterdir())) == 6


def test_a_model_whose_head_is_not_all_is_never_kept(kept: Path) -> None:
    class Capped(type(tiny.llama(4))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.tanh()
            return out

    policy = tiny.llama(len(tiny.tokenizer()))
    policy.__class__ = Capped
    first, again = (side(policy).rollout(PROMPTS, 3) for _ in range(2))
    assert not kept.exists() and torch.equal(first[1], again[1])


def test_an_evaluation_is_the_same_with_what_is_kept(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    task, policy = tiny.task(), tiny.gpt2(len(tiny.tokenizer()), seed=1, spread=0.05)
    first = evaluate(policy, task.policy, task, 40, 0, 5, 1.0)
    assert len(list(kept.iterdir())) == 2  # two batches of prompts
    forbid(monkeypatch)
    assert evaluate(policy, task.policy, task, 40, 0, 5, 1.0) == first


def test_what_is_kept_and_damaged_is_named_and_made_again(kept: Path) -> None:
    policy = tiny.llama(len(tiny.tokenizer()))
    made = side(policy).rollout(PROMPTS, 3)
    (path,) = kept.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .*; it is made again"):
        again = side(policy).rollout(PROMPTS, 3)
    assert torch.equal(again[1], made[1]) and torch.equal(side(policy).rollout(PROMPTS, 3)[1], made[1])
