"""The short SFT on a Llama of two layers; the real one is marked slow."""

from __future__ import annotations

import json
import random
from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import tiny
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from warp_nb.tasks import imdb, sft, wheels

RECIPE = sft.SftRecipe(steps=12, batch_size=8, tokens=10, lr=1e-2, warmup_steps=1)
TEXTS = ["the film was wonderful and the story was superb with my plot scene"] * 40 + ["too short"]


@pytest.fixture(scope="module")
def tuned(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    words = tiny.tokenizer(begin=True)
    folder = tmp_path_factory.mktemp("sft") / "policy"
    model = tiny.llama(len(words), spread=0.02)
    return folder, sft.train_sft(folder, model, words, TEXTS, held_out=TEXTS[:5], recipe=RECIPE)


def test_texts_become_begin_token_and_their_first_tokens() -> None:
    words = tiny.tokenizer(begin=True)
    rows = sft.tokenised_beginnings(words, TEXTS, 10)["input_ids"]
    assert len(rows) == 40 and {len(row) for row in rows} == {10}
    assert words.decode(rows[0]) == "<begin> the film was wonderful and the story was superb"


@pytest.mark.slow
def test_sft_lowers_the_perplexity_it_reports(tuned: tuple[Path, dict[str, Any]]) -> None:
    folder, facts = tuned
    assert facts["perplexity_after"] < facts["perplexity_before"] / 2
    model, words = AutoModelForCausalLM.from_pretrained(folder).eval(), tiny.tokenizer(begin=True)
    assert sft.word_perplexity(model, words, TEXTS[:5]) == pytest.approx(facts["perplexity_after"], rel=1e-5)


@pytest.mark.slow
def test_the_folder_holds_safetensors_and_json_only(tuned: tuple[Path, dict[str, Any]]) -> None:
    names = {path.name for path in tuned[0].iterdir()}
    assert {"model.safetensors", "config.json", "sft.json"} <= names
    assert not [name for name in names if not name.endswith((".safetensors", ".json", ".jinja"))]
    assert json.loads((tuned[0] / "sft.json").read_text())["recipe"]["steps"] == RECIPE.steps


@pytest.mark.slow
def test_the_callers_state_comes_back_and_a_bar_is_drawn(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    words = tiny.tokenizer(begin=True)
    before = torch.get_rng_state().tolist(), random.getstate(), torch.get_num_threads()
    short = sft.SftRecipe(steps=1, batch_size=2, tokens=8)
    sft.train_sft(tmp_path / "p", tiny.llama(len(words)), words, TEXTS, held_out=TEXTS[:2], recipe=short)
    assert before == (torch.get_rng_state().tolist(), random.getstate(), torch.get_num_threads())
    out, bar = capfd.readouterr()
    assert out == "" and "SFT: " in bar


def test_texts_that_are_all_too_short_are_refused(tmp_path: Path) -> None:
    words = tiny.tokenizer(begin=True)
    with pytest.raises(ValueError, match="none of 2 texts has 10 tokens; pass longer texts or fewer tokens"):
        sft.train_sft(tmp_path, tiny.llama(len(words)), words, ["too short"] * 2, held_out=TEXTS[:2], recipe=RECIPE)


@pytest.mark.parametrize("name", [field.name for field in fields(sft.SftRecipe)])
def test_every_setting_is_part_of_the_cache_key(name: str) -> None:
    value: Any = getattr(RECIPE, name)
    other = (not value) if isinstance(value, bool) else value + 1
    assert sft.sft_key(replace(RECIPE, **{name: other})) != sft.sft_key(RECIPE)


def test_parts_split_and_libraries_are_part_of_the_cache_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = [sft.sft_key(RECIPE)]
    for owner, name, value in [
        (wheels, "SMOLLM2", replace(wheels.SMOLLM2, sha256="0" * 64)),
        (wheels, "REVIEWS", replace(wheels.REVIEWS, sha256="0" * 64)),
        (imdb, "SIZES", imdb.SIZES | {"eval": 999}),
        (sft, "trainer_versions", lambda: {"trl": "0"}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            keys.append(sft.sft_key(RECIPE))
    assert len(set(keys)) == 5 and sft.sft_key(RECIPE) == keys[0]


@pytest.mark.slow
def test_load_sft_trains_once_and_sets_the_special_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    calls: list[int] = []
    asked: dict[str, list[str]] = {}

    def smollm2() -> tuple[Any, Any]:
        calls.append(1)
        words = tiny.tokenizer([*tiny.WORDS, sft.BEGIN, sft.PAD], end=False)
        return tiny.llama(len(words)), words

    monkeypatch.setattr(sft, "load_smollm2", smollm2)
    monkeypatch.setattr(sft, "SftRecipe", lambda bf16: RECIPE)
    monkeypatch.setattr(imdb, "reviews", lambda part: pd.DataFrame({"text": asked.setdefault(part, TEXTS)}))
    (first, facts), (second, again) = sft.load_sft(), sft.load_sft()
    assert first == second and facts == again and calls == [1] and set(asked) == {"sft", "eval"}
    assert set(facts) == {"perplexity_before", "perplexity_after", "held_out_reviews"}
    words = AutoTokenizer.from_pretrained(first)
    assert (words.bos_token, words.eos_token, words.pad_token) == (sft.BEGIN, sft.BEGIN, sft.PAD)


def test_word_perplexity_is_the_models_own_loss_by_word() -> None:
    words = tiny.tokenizer(begin=True)
    model, texts, total = tiny.llama(len(words)), ["the film was superb", "we", "the plot of a movie"], 0.0
    for text in texts:
        ids = torch.tensor([[words.bos_token_id, *words(" ".join(text.split()[:4]))["input_ids"]]])
        with torch.no_grad():
            total += model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
    wanted = torch.tensor(total / (4 + 1 + 4)).exp().item()
    found = [sft.word_perplexity(model, words, texts, words=4, batch_size=size) for size in (1, 2, 32)]
    assert found == pytest.approx([wanted] * 3, rel=1e-5)
    other = sft.word_perplexity(model, words, texts, words=4, begin=0)
    assert other != pytest.approx(wanted, rel=1e-3), "another token may open the texts"


@pytest.mark.slow
def test_the_real_policy_learns_reviews(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the steps that the reports take; trains at first use, about two minutes, the folder is cached."""
    monkeypatch.setattr(sft, "SftRecipe", partial(sft.SftRecipe, steps=16))
    _, facts = sft.load_sft()
    assert facts["perplexity_after"] < 0.9 * facts["perplexity_before"]
