"""The short SFT on a Llama of two layers; the real one is marked slow."""

from __future__ import annotations

import json
import random
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM

from warp_nb.tasks import sft

RECIPE = sft.SftRecipe(steps=12, batch_size=8, tokens=10, lr=1e-2, warmup_steps=1)
TEXTS = ["the film was wonderful and the story was superb with my plot scene"] * 40 + ["too short"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    words = tiny.tokenizer(begin=True)
    folder = tmp_path_factory.mktemp("sft") / "policy"
    return folder, sft.train_sft(folder, tiny.llama(len(words), spread=0.02), words, TEXTS, TEXTS[:5], RECIPE)


def test_texts_become_begin_token_and_their_first_tokens() -> None:
    words = tiny.tokenizer(begin=True)
    rows = sft.beginnings(words, TEXTS, 10)["input_ids"]
    assert len(rows) == 40 and {len(row) for row in rows} == {10}
    assert words.decode(rows[0]) == "<begin> the film was wonderful and the story was superb"


def test_sft_lowers_the_perplexity_it_reports(tuned: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = tuned
    assert facts["perplexity_after"] < facts["perplexity_before"] / 2
    model, words = AutoModelForCausalLM.from_pretrained(folder).eval(), tiny.tokenizer(begin=True)
    assert sft.word_perplexity(model, words, TEXTS[:5]) == pytest.approx(facts["perplexity_after"], rel=1e-5)


def test_the_folder_holds_safetensors_and_json_only(tuned: tuple[Path, dict[str, Any]]) -> None:
    names = {path.name for path in tuned[0].iterdir()}
    assert {"model.safetensors", "config.json", "sft.json"} <= names
    assert not [name for name in names if not name.endswith((".safetensors", ".json", ".jinja"))]
    assert json.loads((tuned[0] / "sft.json").read_text())["recipe"]["steps"] == RECIPE.steps


def test_the_callers_random_states_come_back(tmp_path: Path) -> None:
    words = tiny.tokenizer(begin=True)
    before = torch.get_rng_state(), random.getstate(), torch.get_num_threads()
    short = sft.SftRecipe(steps=1, batch_size=2, tokens=8)
    sft.train_sft(tmp_path / "p", tiny.llama(len(words)), words, TEXTS, TEXTS[:2], short)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1:] == (random.getstate(), torch.get_num_threads())


def test_texts_that_are_all_too_short_are_refused(tmp_path: Path) -> None:
    words = tiny.tokenizer(begin=True)
    with pytest.raises(ValueError, match="none of 2 texts has 10 tokens; pass longer texts or fewer tokens"):
        sft.train_sft(tmp_path, tiny.llama(len(words)), words, ["too short"] * 2, TEXTS[:2], RECIPE)


def test_the_cache_key_follows_everything_the_policy_depends_on(monkeypatch: pytest.MonkeyPatch) -> None:
    key = sft.cache_key(RECIPE)
    assert key == sft.cache_key(RECIPE) != sft.cache_key(sft.SftRecipe())
    monkeypatch.setitem(sft.imdb.SIZES, "eval", 999)
    assert sft.cache_key(RECIPE) != key


def test_load_sft_trains_once_and_sets_the_special_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import pandas as pd

    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    calls: list[int] = []

    def smollm2() -> tuple[Any, Any]:
        calls.append(1)
        words = tiny.tokenizer([*tiny.WORDS, sft.BEGIN, sft.PAD], end=False)
        return tiny.llama(len(words)), words

    monkeypatch.setattr(sft, "load_smollm2", smollm2)
    monkeypatch.setattr(sft, "SftRecipe", lambda bf16: RECIPE)
    monkeypatch.setattr(sft.imdb, "reviews", lambda part: pd.DataFrame({"text": TEXTS}))
    (first, facts), (second, _) = sft.load_sft(), sft.load_sft()
    assert first == second and calls == [1] and set(facts) >= {"perplexity_before", "perplexity_after"}
    from transformers import AutoTokenizer

    words = AutoTokenizer.from_pretrained(first)
    assert (words.bos_token, words.eos_token, words.pad_token) == (sft.BEGIN, sft.BEGIN, sft.PAD)


@pytest.mark.slow
def test_the_real_policy_learns_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the steps that the reports take; trains at first use, about two minutes, the folder is cached."""
    monkeypatch.setattr(sft, "SftRecipe", partial(sft.SftRecipe, steps=16))
    _, facts = sft.load_sft()
    assert facts["perplexity_after"] < 0.9 * facts["perplexity_before"]
