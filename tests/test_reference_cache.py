"""The reference's side of an evaluation is computed once, and what was saved gives the same bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from brute import MODELS

from warp_nb.files import seal, unseal
from warp_nb.measure import reference_cache
from warp_nb.measure.evaluation import evaluate
from warp_nb.measure.reference_cache import ReferenceSide

PROMPTS = ["the", "the film was", "it was the best movie we saw"]


@pytest.fixture
def saved(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """The folder of what is saved."""
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    return tmp_path / "reference"


def side(policy: Any, temperature: float = 0.8, tokens: int = 5, large: int = 0) -> ReferenceSide:
    """Of a policy that counts as large unless `large` says otherwise."""
    task = tiny.task(policy=policy)
    return ReferenceSide(policy, task, task.sampling(tokens, temperature), large=large)


def forbid_sampling(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("computed again")

    monkeypatch.setattr(reference_cache, "sample_by_seeds", refuse)


@pytest.mark.parametrize("kind", MODELS)
def test_what_was_saved_gives_the_same_bits(kind: str, saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    policy = MODELS[kind](len(tiny.tokenizer()))
    plain, plain_logits = side(policy, large=1 << 60).rollout(PROMPTS, [3])
    assert not saved.exists(), "a small policy's side is not saved"
    made = side(policy).rollout(PROMPTS, [3])
    assert len(list(saved.glob("*.safetensors"))) == 1
    forbid_sampling(monkeypatch)
    loaded = side(policy).rollout(PROMPTS, [3])
    for rollout, logits in (made, loaded):
        assert torch.equal(logits, plain_logits) and rollout.temperature == plain.temperature
        for name in ("ids", "attention_mask", "completion_mask", "sampled_log_probs"):
            assert torch.equal(getattr(rollout, name), getattr(plain, name)), name


def test_everything_that_changes_the_bits_makes_another_file(saved: Path) -> None:
    words, policy, threads = len(tiny.tokenizer()), tiny.llama(len(tiny.tokenizer())), torch.get_num_threads()
    side(policy).rollout(PROMPTS, [3])
    side(policy).rollout(PROMPTS, [4])
    side(policy).rollout(PROMPTS[:2], [3])
    side(policy, temperature=1.0).rollout(PROMPTS, [3])
    side(policy, tokens=4).rollout(PROMPTS, [3])
    side(tiny.llama(words, seed=1)).rollout(PROMPTS, [3])
    try:
        torch.set_num_threads(threads + 1)
        side(policy).rollout(PROMPTS, [3])
    finally:
        torch.set_num_threads(threads)
    other = tiny.llama(words)
    other.config.rms_norm_eps = 1e-3
    side(other).rollout(PROMPTS, [3])
    assert len(list(saved.iterdir())) == 8
    side(policy).rollout(PROMPTS, [3])
    assert len(list(saved.iterdir())) == 8


def test_a_model_whose_head_is_not_all_is_never_saved(saved: Path) -> None:
    class Capped(type(tiny.llama(4))):  # type: ignore[misc]
        def forward(self, *args: Any, **kwargs: Any) -> Any:
            out = super().forward(*args, **kwargs)
            out.logits = out.logits.tanh()
            return out

    policy = tiny.llama(len(tiny.tokenizer()))
    policy.__class__ = Capped
    first, again = (side(policy).rollout(PROMPTS, [3]) for _ in range(2))
    assert not saved.exists() and torch.equal(first[1], again[1])


def test_an_evaluation_is_the_same_with_what_was_saved(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Large(ReferenceSide):
        """Takes every policy for a large one."""

        def __init__(self, *args: Any) -> None:
            super().__init__(*args, large=0)

    task, policy = tiny.task(), tiny.gpt2(len(tiny.tokenizer()), seed=1, spread=0.05)
    settings: dict[str, Any] = {"sampling": task.sampling(5), "n_prompts": 40}
    plain = evaluate(policy, task.policy, task, **settings)
    monkeypatch.setattr("warp_nb.measure.evaluation.ReferenceSide", Large)
    assert evaluate(policy, task.policy, task, **settings) == plain
    assert len(list(saved.iterdir())) == 2, "two batches of prompts"
    forbid_sampling(monkeypatch)
    assert evaluate(policy, task.policy, task, **settings) == plain


def test_what_is_damaged_is_named_and_made_again(saved: Path) -> None:
    policy = tiny.llama(len(tiny.tokenizer()))
    made = side(policy).rollout(PROMPTS, [3])
    (path,) = saved.iterdir()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .*; it is made again"):
        again = side(policy).rollout(PROMPTS, [3])
    assert torch.equal(again[1], made[1]) and torch.equal(side(policy).rollout(PROMPTS, [3])[1], made[1])


def test_a_folder_that_cannot_be_written_costs_a_warning(saved: Path) -> None:
    """As on a read-only or full disk."""
    saved.write_text("a file where the folder should be")
    policy = tiny.llama(len(tiny.tokenizer()))
    plain, logits = side(policy, large=1 << 60).rollout(PROMPTS, [3])
    with pytest.warns(UserWarning, match=rf"{saved} cannot be written .*, so the reference's side .* WARP_NB_CACHE"):
        found = side(policy).rollout(PROMPTS, [3])
    assert torch.equal(found[1], logits) and torch.equal(found[0].ids, plain.ids)


def test_a_cache_folder_that_has_no_name_costs_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARP_NB_CACHE", "~nobody-of-this-name/x")
    policy = tiny.llama(len(tiny.tokenizer()))
    with pytest.warns(UserWarning, match="a home folder that is unknown .*; the reference's side .* is not saved"):
        found = side(policy).rollout(PROMPTS, [3])
    assert torch.equal(found[1], side(policy, large=1 << 60).rollout(PROMPTS, [3])[1])


@pytest.mark.parametrize("damage", ["shape", "name", "prompts"])
def test_a_sealed_file_of_other_tensors_is_named_and_made_again(damage: str, saved: Path) -> None:
    policy = tiny.llama(len(tiny.tokenizer()))
    made = side(policy).rollout(PROMPTS, [3])
    (path,) = saved.iterdir()
    tensors, record = unseal(path)
    if damage == "shape":
        tensors["hidden"] = tensors["hidden"][:1].clone()
    elif damage == "name":
        tensors["other"] = tensors.pop("sampled_log_probs")
    else:
        tensors["ids"][0, -6] += 1
    seal(path, tensors, record)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .*; it is made again"):
        again = side(policy).rollout(PROMPTS, [3])
    assert torch.equal(again[1], made[1])
