"""The reward model on a BERT of two small layers and invented reviews; the real one is marked slow."""

from __future__ import annotations

import json
import os
import pickle
import random
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from warp_nb.tasks import hub, imdb, wheels
from warp_nb.tasks import reward_model as rm
from warp_nb.tasks.imdb_gate import imdb_gate

FILLER = [f"word{i}" for i in range(40)]
WORDS = [*FILLER, "good", "bad"]
TINY = rm.Recipe(pairs=640, batch_pairs=16, lr=3e-3, words=(6, 12))


def invented_reviews(count: int, seed: int) -> pd.DataFrame:
    """Reviews of 12 to 40 filler words, every fourth word replaced by the label's own."""
    generator = np.random.default_rng(seed)
    rows = []
    for index in range(count):
        words = generator.choice(FILLER, size=generator.integers(12, 41)).tolist()
        words[::4] = ["good" if index % 2 else "bad"] * len(words[::4])
        rows.append((" ".join(words), index % 2))
    return pd.DataFrame(rows, columns=["text", "label"])


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder of an untrained small BERT, its tokenizer without an end token (as MiniLM's)."""
    folder = tmp_path_factory.mktemp("base")
    vocabulary = {token: i for i, token in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token="[UNK]"))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.Whitespace()
    inner.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    PreTrainedTokenizerFast(
        tokenizer_object=inner, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=160,
    )
    BertModel(config).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def trained(base: Path, tmp_path_factory: pytest.TempPathFactory) -> rm.RewardModel:
    folder = tmp_path_factory.mktemp("trained") / "reward"
    return rm.train_reward_model(folder, base, invented_reviews(400, seed=0), TINY)


def area(good: list[float], bad: list[float]) -> float:
    """Share of all pairs of a good and a bad score that are in order; a tie counts half."""
    return float(((np.sign(np.subtract.outer(good, bad)) + 1) / 2).mean())


# Excerpts


def test_excerpts_come_from_where_they_say() -> None:
    generator = np.random.default_rng(0)
    text = "a b c d e"
    assert rm.excerpt(text, 2, "start", generator) == "a b"
    assert rm.excerpt(text, 2, "end", generator) == "d e"
    assert {rm.excerpt(text, 2, "anywhere", generator) for _ in range(100)} == {"a b", "b c", "c d", "d e"}


@pytest.mark.parametrize("place", ["start", "anywhere", "end"])
def test_a_short_review_is_taken_whole(place: rm.Place) -> None:
    assert rm.excerpt("a b", 9, place, np.random.default_rng(0)) == "a b"


def test_a_batch_of_pairs_has_one_length_and_lengths_vary() -> None:
    texts = [" ".join(["word"] * 100)] * 20
    recipe = replace(TINY, pairs=160, words=(16, 64))
    lengths = [tuple(len(side.split()) for side in pair) for pair in rm.training_pairs(texts, texts, recipe)]
    batches = [set(lengths[start : start + 16]) for start in range(0, 160, 16)]
    assert all(len(batch) == 1 for batch in batches)
    drawn = {length for batch in batches for pair in batch for length in pair}
    assert len(drawn) > 5 and min(drawn) >= 16 and max(drawn) <= 64


def test_pairs_keep_their_sides_and_use_every_review_before_repeating() -> None:
    positive, negative = [f"p{i}" for i in range(10)], [f"n{i}" for i in range(7)]
    pairs = rm.training_pairs(positive, negative, replace(TINY, pairs=20))
    chosen, rejected = map(list, zip(*pairs, strict=True))
    assert sorted(chosen[:10]) == sorted(chosen[10:]) == sorted(positive)
    assert sorted(rejected[:7]) == sorted(rejected[7:14]) == sorted(negative)
    assert chosen[:10] != chosen[10:]


def test_pairs_depend_on_the_seed_only() -> None:
    frame = invented_reviews(60, seed=0)
    sides = [frame.loc[frame["label"] == label, "text"].tolist() for label in (1, 0)]
    first, again = (rm.training_pairs(sides[0], sides[1], TINY) for _ in range(2))
    assert first == again
    assert first != rm.training_pairs(sides[0], sides[1], replace(TINY, seed=1))


# Training


@pytest.mark.slow
def test_training_learns_the_label(trained: rm.RewardModel) -> None:
    good, bad = rm.held_out_excerpts(invented_reviews(200, seed=9), (6, 12))
    assert area(trained.score(good), trained.score(bad)) > 0.98


@pytest.mark.slow
def test_zero_is_between_the_classes(trained: rm.RewardModel) -> None:
    good, bad = rm.held_out_excerpts(invented_reviews(200, seed=9), rm.SCORED_WORDS)
    assert np.mean(trained.score(good)) == pytest.approx(-np.mean(trained.score(bad)), rel=0.2)
    assert np.mean(np.array(trained.score(good)) > 0) > 0.95
    assert np.mean(np.array(trained.score(bad)) < 0) > 0.95


@pytest.mark.slow
def test_swapped_labels_turn_the_reward_around(base: Path, tmp_path: Path) -> None:
    frame = invented_reviews(400, seed=0)
    wrong = rm.train_reward_model(tmp_path, base, frame.assign(label=1 - frame["label"]), TINY)
    good, bad = rm.held_out_excerpts(invented_reviews(200, seed=9), (6, 12))
    assert area(wrong.score(good), wrong.score(bad)) < 0.02


@pytest.mark.slow
def test_the_folder_holds_no_pickle(trained: rm.RewardModel) -> None:
    assert trained.folder is not None
    names = {path.name for path in trained.folder.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", rm.CONFIG_FILE} <= names
    assert {Path(name).suffix for name in names} == {".json", ".safetensors"}
    assert json.loads((trained.folder / rm.CONFIG_FILE).read_text())["recipe"]["pairs"] == TINY.pairs


@pytest.mark.slow
def test_loading_gives_the_same_scores(trained: rm.RewardModel) -> None:
    assert trained.folder is not None
    texts = invented_reviews(10, seed=3)["text"].tolist()
    expected = pytest.approx(trained.score(texts), abs=1e-5)
    assert rm.RewardModel.load(trained.folder).score(texts) == expected
    assert pickle.loads(pickle.dumps(trained)).score(texts) == expected
    assert len(pickle.dumps(trained)) < 1000, "a job gets the path, not the weights"


@pytest.mark.slow
def test_training_leaves_the_caller_as_it_was(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    def state() -> list[Any]:
        return [
            random.getstate(),
            np.random.get_state()[1].tolist(),  # type: ignore[index]  # noqa: NPY002
            torch.get_rng_state().tolist(),
            torch.get_num_threads(),
            dict(os.environ),
        ]

    random.seed(7)
    np.random.seed(7)  # noqa: NPY002
    torch.manual_seed(7)
    before = state()
    capfd.readouterr()
    rm.train_reward_model(tmp_path / "r", base, invented_reviews(40, seed=0), replace(TINY, pairs=32))
    rm.RewardModel.load(tmp_path / "r")
    assert state() == before
    assert capfd.readouterr() == ("", ""), "training is silent unless a bar is asked for"


@pytest.mark.slow
def test_a_bar_is_drawn_on_request(base: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    recipe = replace(TINY, pairs=32)
    rm.train_reward_model(tmp_path / "r", base, invented_reviews(40, seed=0), recipe, progress=True)
    assert "reward model" in capfd.readouterr().err


@pytest.mark.slow
def test_equal_recipes_give_equal_weights(base: Path, tmp_path: Path) -> None:
    recipe, frame, texts = replace(TINY, pairs=64), invented_reviews(60, seed=0), FILLER[:5]
    first = rm.train_reward_model(tmp_path / "a", base, frame, recipe).score(texts)
    torch.manual_seed(123)
    assert rm.train_reward_model(tmp_path / "b", base, frame, recipe).score(texts) == first
    assert rm.train_reward_model(tmp_path / "c", base, frame, replace(recipe, seed=1)).score(texts) != first


def test_one_sided_reviews_are_refused(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="0 positive and 36 negative"):
        rm.train_reward_model(tmp_path, base, invented_reviews(40, seed=0).assign(label=0), TINY)


def test_an_unfinished_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"reward\.json"):
        rm.RewardModel.load(tmp_path)


# Scoring


@pytest.mark.slow
def test_batched_scores_equal_the_logits_of_single_texts(trained: rm.RewardModel) -> None:
    texts = [*invented_reviews(30, seed=4)["text"], "good", "bad word1"]
    expected = []
    with torch.no_grad():
        for text in texts:
            ids = torch.tensor([trained.tokenizer(text)["input_ids"]])
            expected.append(trained.model(input_ids=ids).logits.item() - trained.offset)
    assert trained.score(texts, batch_size=7) == pytest.approx(expected, abs=1e-5)
    assert abs(trained.offset) > 0


@pytest.mark.slow
def test_the_reward_reads_prompt_and_completion_as_one_text(trained: rm.RewardModel) -> None:
    prompts, completions = ["word1 good", "word2 bad"], [" good word3", " bad"]
    assert trained(prompts, completions, trainer_state=None) == trained.score(
        ["word1 good good word3", "word2 bad bad"]
    )
    assert trained([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        trained(["one prompt"], [])


@pytest.mark.slow
def test_long_texts_are_cut_at_the_documented_length(trained: rm.RewardModel) -> None:
    body = ["word1"] * (rm.MAX_TOKENS - 2)
    last_changed, one_too_many = [*body[:-1], "good"], [*body, "good"]
    plain, changed, over = trained.score([" ".join(words) for words in (body, last_changed, one_too_many)])
    assert plain == over and plain != changed


@pytest.mark.slow
def test_describe_is_plain(trained: rm.RewardModel) -> None:
    facts = trained.describe()
    assert facts["offset"] == trained.offset and facts["parameters"] == trained.model.num_parameters()
    assert json.loads(json.dumps(facts)) == facts


# Cache


@pytest.mark.parametrize("name", [field.name for field in fields(rm.Recipe)])
def test_every_setting_is_part_of_the_cache_key(name: str) -> None:
    value: Any = getattr(TINY, name)
    other: Any = (not value) if isinstance(value, bool) else value[:1] if isinstance(value, tuple) else value + 1
    assert rm.reward_key(replace(TINY, **{name: other})) != rm.reward_key(TINY)


OTHER = {
    "embedded": [
        (wheels, "MINILM", replace(wheels.MINILM, sha256="0" * 64)),
        (wheels, "REVIEWS", replace(wheels.REVIEWS, sha256="0" * 64)),
    ],
    "hub": [
        (hub, "DISTILBERT", replace(hub.DISTILBERT, commit="0" * 40)),
        (hub, "IMDB", replace(hub.IMDB, commit="0" * 40)),
    ],
}
"""Parts that a source's reward model is made of, at other versions."""


@pytest.mark.parametrize("source", OTHER)
def test_parts_split_and_libraries_are_part_of_the_cache_key(
    source: imdb.Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = [rm.reward_key(TINY, source), rm.reward_key(TINY, source, "judge_train")]
    for owner, name, value in [
        *OTHER[source],
        (rm, "SCORED_WORDS", (24, 41)),
        (rm, "MAX_TOKENS", 127),
        (rm, "CALIBRATION_REVIEWS", 499),
        (imdb, "SIZES", imdb.SIZES | {"reward_train": 5000}),
        (rm, "trainer_versions", lambda: {"trl": "0"}),
    ]:
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, value)
            keys.append(rm.reward_key(TINY, source))
    assert len(set(keys)) == 9
    for owner, name, value in OTHER["hub" if source == "embedded" else "embedded"]:
        monkeypatch.setattr(owner, name, value)
    assert rm.reward_key(TINY, source) == keys[0]


@pytest.mark.slow
def test_reward_and_judge_are_each_trained_once(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    train, calls = rm.train_reward_model, list[tuple[list[str], int]]()
    monkeypatch.setattr(wheels, "minilm_folder", lambda: base)
    parts = {"reward_train": invented_reviews(40, seed=0), "judge_train": invented_reviews(40, seed=1)}
    monkeypatch.setattr(imdb, "reviews", lambda part, source: parts[part])

    def small(folder: Path, given: Path, frame: pd.DataFrame, recipe: rm.Recipe, **settings: Any) -> rm.RewardModel:
        assert given == base
        calls.append(([part for part in parts if parts[part] is frame], recipe.seed))
        return train(folder, base, frame, replace(TINY, pairs=32, seed=recipe.seed))

    monkeypatch.setattr(rm, "train_reward_model", small)
    first, second = rm.load_reward(), rm.load_reward()
    assert calls == [(["reward_train"], 0)]
    judge, again = rm.load_judge(), rm.load_judge()
    assert calls == [(["reward_train"], 0), (["judge_train"], 1)], "another seed, other reviews"
    assert judge.score(["good", "bad"]) == again.score(["good", "bad"]) != first.score(["good", "bad"])
    assert first.folder == second.folder and first.folder is not None and first.folder.parent == tmp_path
    assert first.score(["good", "bad"]) == second.score(["good", "bad"])


# The real one


@pytest.fixture(scope="module")
def real() -> rm.RewardModel:
    return rm.load_reward()


@pytest.mark.slow
def test_the_embedded_reward_is_accurate_on_texts_as_long_as_completions(real: rm.RewardModel) -> None:
    good, bad = (real.score(texts) for texts in rm.held_out_excerpts(imdb.reviews("reward_test"), rm.SCORED_WORDS))
    assert area(good, bad) >= 0.82
    balance = np.mean(np.array(good) > 0), np.mean(np.array(bad) < 0)
    assert min(balance) > 0.65, "the zero is calibrated: neither class is sacrificed"


@pytest.mark.slow
def test_the_embedded_reward_passes_its_gate(real: rm.RewardModel) -> None:
    gate = imdb_gate(real)
    assert gate.n_pairs == 256 and gate.pair_accuracy > 0.78, "0.82 less what 256 pairs leave uncertain"
    assert gate.spread > 0.5 and gate.swap_change > 0.3 * gate.spread and gate.good_above_bad >= 0.9


@pytest.mark.slow
def test_the_embedded_reward_gets_better_with_length(real: rm.RewardModel) -> None:
    reviews = imdb.reviews("reward_test")[:600]
    short, long = (area(*map(real.score, rm.held_out_excerpts(reviews, (words, words)))) for words in (8, 64))
    assert long > short + 0.05, "twice the standard error of an area over 300 and 300 texts"
