"""The script that made the shipped policy, on a tiny model; and the policy it left."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from scripts import small_policy
from scripts.small_policy import WINDOW, Trainer, cut, learning_rate, token_stream, trim_tokenizer, windows
from warp_nb.tasks import imdb, sft
from warp_nb.tasks.prepared import SMALL
from warp_nb.tasks.sft import BEGIN, PAD

TEXTS = ["the film was good and the film was long", "a bad film, a very bad film", "good actors and a good story"] * 40


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    special = [BEGIN, "<|im_start|>", PAD]
    bpe.train_from_iterator(
        TEXTS, trainers.BpeTrainer(vocab_size=320, special_tokens=special, initial_alphabet=alphabet)
    )
    return PreTrainedTokenizerFast(tokenizer_object=bpe, bos_token="<|im_start|>")


def llama(vocabulary: int, layers: int = 3) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=layers,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=8,
        tie_word_embeddings=True,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return LlamaForCausalLM(config)


def test_a_trimmed_tokenizer_still_writes_everything(tokenizer: PreTrainedTokenizerFast) -> None:
    trimmed, rows = trim_tokenizer(tokenizer, TEXTS, 275)
    assert len(trimmed) == len(rows) <= 277
    for text in [*TEXTS[:3], "Ünknown wörds — 1234 🎬"]:
        assert trimmed.decode(trimmed(text)["input_ids"]) == text
    old = {index: token for token, index in tokenizer.get_vocab().items()}
    assert trimmed.convert_ids_to_tokens(range(len(rows))) == [old[row] for row in rows.tolist()]
    assert trimmed.bos_token_id == trimmed.eos_token_id != trimmed.pad_token_id


def test_the_kept_tokens_are_the_ones_most_used(tokenizer: PreTrainedTokenizerFast) -> None:
    trimmed, _ = trim_tokenizer(tokenizer, TEXTS, 275)
    assert len(trimmed("the film")["input_ids"]) < len("the film")
    assert "Ġfilm" in trimmed.get_vocab()


def test_a_cut_model_is_the_layers_and_rows_it_was_cut_from() -> None:
    whole, rows = llama(40), torch.tensor([0, 2, 5, 7, 11])
    small = cut(whole, [0, 2], rows, bos=0, pad=1)
    source, target = whole.state_dict(), small.state_dict()
    assert torch.equal(target["model.embed_tokens.weight"], source["model.embed_tokens.weight"][rows])
    assert small.lm_head.weight is small.model.embed_tokens.weight
    layer = "self_attn.q_proj.weight"
    assert torch.equal(target[f"model.layers.1.{layer}"], source[f"model.layers.2.{layer}"])
    assert small.config.num_hidden_layers == 2 and small.config.vocab_size == 5


def test_half_of_the_windows_begin_a_review(tokenizer: PreTrainedTokenizerFast) -> None:
    trimmed, _ = trim_tokenizer(tokenizer, TEXTS, 275)
    stream, starts = token_stream(trimmed, TEXTS)
    drawn = windows(stream, starts, 8, torch.Generator().manual_seed(0))
    assert drawn.shape == (8, WINDOW + 1)
    assert (stream[starts] == trimmed.bos_token_id).all()
    assert (drawn[:4, 0] == trimmed.bos_token_id).all()


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 3000, 1e-3) for step in range(3000)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3, rel=0.01)
    assert rates[-1] == pytest.approx(2e-5, rel=0.01)


def test_a_resumed_training_gives_the_same_bits(tmp_path: Path) -> None:
    batches = [torch.randint(0, 30, (4, 9), generator=torch.Generator().manual_seed(seed)) for seed in range(4)]
    whole = Trainer(tmp_path / "whole", llama(30), 1e-2)
    losses = [whole.step(batch, 1e-2) for batch in batches]
    (tmp_path / "halved").mkdir()
    first = Trainer(tmp_path / "halved", llama(30), 1e-2)
    for batch in batches[:2]:
        first.step(batch, 1e-2)
    first.save({"step": 2}, first.full_precision())
    second = Trainer(tmp_path / "halved", llama(30), 1e-2)
    assert second.done == 2
    assert [second.step(batch, 1e-2) for batch in batches[2:]] == losses[2:]
    for name, master in whole.masters.items():
        assert torch.equal(master, second.masters[name]), name


@pytest.fixture
def smollm2(tokenizer: PreTrainedTokenizerFast, monkeypatch: pytest.MonkeyPatch) -> LlamaForCausalLM:
    """Stands for SmolLM2, as every part's reviews do for IMDb's."""
    model = llama(len(tokenizer))
    monkeypatch.setattr(small_policy.sft, "load_smollm2", lambda: (model, tokenizer))
    monkeypatch.setattr(imdb, "reviews", lambda part: pd.DataFrame({"text": [f"{part} {text}" for text in TEXTS]}))
    return model


def test_only_the_sft_part_is_learnt(
    smollm2: LlamaForCausalLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    learnt: list[list[str]] = []

    def stream(words: Any, texts: list[str]) -> Any:
        learnt.append(texts)
        return token_stream(words, texts)

    monkeypatch.setattr(small_policy, "token_stream", stream)
    small_policy.train(tmp_path, [0, 2], 275, 2, 2, 1e-3, 0)
    assert learnt == [[f"sft {text}" for text in TEXTS]]
    (row,) = json.loads((tmp_path / "curve.json").read_text())
    assert row["step"] == 2 and row["perplexity_per_word"] > 1
    small_policy.train(tmp_path, [0, 2], 275, 3, 2, 1e-3, 0)
    assert [row["step"] for row in json.loads((tmp_path / "curve.json").read_text())] == [2, 3]


def test_the_policy_is_compared_on_the_same_held_out_reviews(
    smollm2: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    small_policy.train(tmp_path, [0, 2], 275, 1, 2, 1e-3, 0)
    found, texts = small_policy.compare(tmp_path), [f"eval {text}" for text in TEXTS]
    for name, begin in (("own_begin", "<|im_start|>"), ("best_begin", BEGIN)):
        wanted = sft.word_perplexity(smollm2, tokenizer, texts, begin=tokenizer.get_vocab()[begin])
        assert found[f"smollm2_135m_{name}"] == wanted and found[f"ratio_{name}"] == found["small"] / wanted
    small, words = (kind.from_pretrained(tmp_path) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert found["small"] == pytest.approx(sft.word_perplexity(small.float(), words, texts), rel=1e-5)
    assert json.loads((tmp_path / "perplexity.json").read_text()) == found


@pytest.mark.slow
def test_the_shipped_policy_has_the_recorded_perplexity() -> None:
    recorded = json.loads((SMALL / "perplexity.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32).eval()
    texts = imdb.reviews("eval")["text"].tolist()[: small_policy.CURVE_REVIEWS]
    found = sft.word_perplexity(model, AutoTokenizer.from_pretrained(SMALL), texts)
    assert found == pytest.approx(recorded["small"], rel=0.01)
    for begin in ("own_begin", "best_begin"):
        ratio = recorded["small"] / recorded[f"smollm2_135m_{begin}"]
        assert recorded[f"ratio_{begin}"] == pytest.approx(ratio)
    curve = json.loads((SMALL / "curve.json").read_text())
    assert curve[-1]["perplexity_per_word"] == pytest.approx(found, rel=0.05)
