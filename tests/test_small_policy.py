"""The script that made the shipped policy, on a tiny model; and the policy it left."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tokenizers.decoders import ByteLevel
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from scripts import comparison, small_policy
from scripts.cutting import check_growth, cut, evenly, grow, trim_tokenizer
from scripts.distillation import (
    IGNORED,
    Targets,
    Teacher,
    aligned_positions,
    boundaries,
    distillation_loss,
    first_ids,
    first_pieces,
    rows_of,
    student_distribution,
)
from scripts.small_policy import Recipe, Texts, learning_rate
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
    small = cut(whole, [0, 2], rows, begin=0, pad=1)
    source, target = whole.state_dict(), small.state_dict()
    assert torch.equal(target["model.embed_tokens.weight"], source["model.embed_tokens.weight"][rows])
    assert small.lm_head.weight is small.model.embed_tokens.weight
    layer = "self_attn.q_proj.weight"
    assert torch.equal(target[f"model.layers.1.{layer}"], source[f"model.layers.2.{layer}"])
    assert small.config.num_hidden_layers == 2 and small.config.vocab_size == 5


def test_the_learning_rate_warms_up_and_falls() -> None:
    rates = [learning_rate(step, 3000, 1e-3) for step in range(3000)]
    assert rates[0] == pytest.approx(1e-5)
    assert max(rates) == pytest.approx(1e-3, rel=0.01)
    assert rates[-1] == pytest.approx(2e-5, rel=0.01)


def test_layers_are_taken_at_equal_distances() -> None:
    assert evenly(30, 2) == [0, 29] and evenly(30, 4) == [0, 10, 19, 29] and evenly(3, 3) == [0, 1, 2]


def test_a_grown_policy_begins_as_the_one_it_was_grown_from() -> None:
    whole = llama(40, 5)
    small = cut(whole, [0, 4], torch.arange(20), begin=0, pad=1).eval()
    grown = grow(small, whole, 4).eval()
    ids = torch.arange(12).reshape(2, 6)
    assert grown.config.num_hidden_layers == 4
    assert torch.equal(grown(input_ids=ids).logits, small(input_ids=ids).logits)
    assert torch.equal(grown.model.layers[1].self_attn.q_proj.weight, whole.model.layers[1].self_attn.q_proj.weight)
    grown(input_ids=ids, labels=ids).loss.backward()
    for layer in grown.model.layers[1:3]:
        assert layer.self_attn.o_proj.weight.grad.abs().max() > 0
        assert layer.mlp.down_proj.weight.grad.abs().max() > 0


def test_a_growth_that_cannot_be_is_refused() -> None:
    whole = llama(40, 5)
    small = cut(whole, [0, 2, 4], torch.arange(20), begin=0, pad=1)
    with pytest.raises(ValueError, match="--start has 3 layers, more than --layers 2; pass --layers 3"):
        grow(small, whole, 2)
    other = llama(40, 5)
    other.config.hidden_size = 32
    with pytest.raises(ValueError, match=r"hidden_size.*\(16, 32\)"):
        grow(small, other, 4)
    real = AutoConfig.from_pretrained(SMALL)
    assert check_growth(real, 4).num_hidden_layers == 4
    with pytest.raises(ValueError, match="5 layers and 6001 tokens make 21157632 parameters, at most 18000000"):
        check_growth(real, 5)


def bpe_pair(tokenizer: PreTrainedTokenizerFast) -> tuple[PreTrainedTokenizerFast, PreTrainedTokenizerFast]:
    return trim_tokenizer(tokenizer, TEXTS, 270)[0], tokenizer


def test_the_teachers_distribution_is_moved_to_first_pieces(tokenizer: PreTrainedTokenizerFast) -> None:
    student, teacher = bpe_pair(tokenizer)
    pieces = first_pieces(student, teacher)
    logits = torch.randn(3, len(teacher), generator=torch.Generator().manual_seed(0)) * 3
    found = student_distribution(logits, pieces, len(student))
    wanted = torch.zeros(3, len(student), dtype=torch.float64)
    moved = 0
    for token, index in teacher.get_vocab().items():
        if token == "<|im_start|>":
            piece = BEGIN
        elif token in (BEGIN, PAD):
            piece = token
        else:  # as the student cuts the text that the token spells, if it spells whole characters
            text = teacher.backend_tokenizer.decoder.decode([token])
            whole = "\ufffd" not in text
            piece = student.convert_ids_to_tokens(student(text)["input_ids"])[0] if whole else token
        moved += piece != token
        wanted[:, student.get_vocab()[piece]] += logits.double().softmax(-1)[:, index]
    assert moved > 10
    torch.testing.assert_close(found.double(), wanted, atol=1e-6, rtol=0)
    torch.testing.assert_close(found.sum(-1), torch.ones(3))
    wider = torch.cat([logits, torch.full((3, 7), 50.0)], 1)
    assert torch.equal(student_distribution(wider, pieces, len(student)), found)


def test_positions_are_aligned_where_the_same_text_was_read(tokenizer: PreTrainedTokenizerFast) -> None:
    student, teacher = bpe_pair(tokenizer)
    text = "the film was — good 🎬 and the actors"
    mine, theirs = (first_ids(side, [text], 200)[0] for side in (student, teacher))
    ends = boundaries(mine, student), boundaries(theirs, teacher)
    assert ends[0][-1] == ends[1][-1] == len(text.encode())
    pairs = aligned_positions(*ends)
    assert len(theirs) == len(pairs) < len(mine)  # the student has no token that the teacher lacks
    for here, there in pairs:
        assert student.decode(mine[1 : here + 1]) == teacher.decode(theirs[1 : there + 1])


def test_the_teachers_targets_are_those_of_its_own_reading(tokenizer: PreTrainedTokenizerFast) -> None:
    student, words = bpe_pair(tokenizer)
    model, texts = llama(len(words)).eval(), ["the film was long", "good actors and a very good story"]
    targets = Teacher(model, words, student).targets(texts, window=64, top=len(student))
    pieces = first_pieces(student, words)
    for line, text in enumerate(texts):
        mine, theirs = (first_ids(side, [text], 65)[0] for side in (student, words))
        pairs = dict(aligned_positions(boundaries(mine, student), boundaries(theirs, words)))
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([theirs])).logits[0]
        wanted = student_distribution(logits, pieces, len(student))
        assert targets.ids[line, : len(mine)].tolist() == mine
        assert targets.aligned[line].nonzero().flatten().tolist() == list(pairs)
        for here, there in pairs.items():
            found = torch.zeros(len(student)).scatter(0, targets.tokens[line, here], targets.logs[line, here].exp())
            torch.testing.assert_close(found, wanted[there], atol=1e-5, rtol=0)
        inside = [place for place in range(len(mine) - 1) if place not in pairs]
        assert inside and targets.labels[line, inside].tolist() == [mine[place + 1] for place in inside]
        assert (targets.labels[line] != IGNORED).sum() == len(inside)


def test_the_loss_against_the_formulas_in_float64() -> None:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(1, 3, 8, generator=draw)
    teacher = torch.randn(8, generator=draw).double().softmax(-1)
    best = teacher.topk(3)
    logs = torch.zeros(1, 3, 3)
    logs[0, 0] = best.values.log()
    tokens = torch.zeros(1, 3, 3, dtype=torch.int64)
    tokens[0, 0] = best.indices
    labels = torch.tensor([[IGNORED, 5, IGNORED]])
    aligned = torch.tensor([[True, False, False]])
    found = distillation_loss(logits, Targets(torch.zeros(1, 3).long(), labels, aligned, tokens, logs))
    student = logits[0].double().softmax(-1)
    kept, mine = best.values, student[0, best.indices]
    divergence = (kept * (kept / mine).log()).sum()
    divergence += (1 - kept.sum()) * ((1 - kept.sum()) / (1 - mine.sum())).log()
    assert found.item() == pytest.approx((divergence - student[1, 5].log()).item() / 2, rel=1e-5)
    assert divergence < (teacher * (teacher / student[0]).log()).sum()


def test_a_student_that_is_the_teacher_has_no_loss() -> None:
    logits = torch.randn(1, 2, 6, generator=torch.Generator().manual_seed(0))
    best = logits.log_softmax(-1).topk(4)
    none = torch.full((1, 2), IGNORED)
    same = Targets(torch.zeros(1, 2).long(), none, torch.ones(1, 2, dtype=torch.bool), best.indices, best.values)
    assert distillation_loss(logits, same).item() == pytest.approx(0, abs=1e-6)


TINY = Recipe(layers=3, vocabulary=270, steps=4, batch=2, texts=8, shard=4, lr=1e-2)


@pytest.fixture
def smollm(tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that stands for θ_sft and SmolLM2, as every part's reviews do for IMDb's."""
    model, folder = llama(len(tokenizer), 5), tmp_path / "teacher"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    monkeypatch.setattr(sft, "load_sft", lambda device="cpu": (folder, {}))
    monkeypatch.setattr(sft, "load_smollm2", lambda: (model.eval(), tokenizer))
    monkeypatch.setattr(imdb, "reviews", lambda part: pd.DataFrame({"text": [f"{part} {text}" for text in TEXTS]}))
    return folder


def files(folder: Path) -> dict[str, bytes]:
    """What a training leaves, without the seconds."""
    state = json.loads((folder / "scratch" / "state.json").read_text())
    paths = [folder / "model.safetensors", folder / "scratch" / state["tensors"]]
    curve = [row | {"seconds": 0} for row in json.loads((folder / "curve.json").read_text())]
    return {path.name: path.read_bytes() for path in paths} | {"curve": json.dumps(curve).encode()}


def ticks(step: float) -> Iterator[float]:
    return iter(itertools.count(0, step))


def test_a_budget_stops_a_training_and_its_resumption_has_the_same_bits(smollm: Path, tmp_path: Path) -> None:
    small_policy.train(tmp_path / "whole", TINY, device="cpu")
    halved = tmp_path / "halved"
    seconds = ticks(10.0)
    small_policy.train(halved, TINY, device="cpu", minutes=0.7, clock=lambda: next(seconds))
    done = json.loads((halved / "scratch" / "state.json").read_text())["done"]
    assert 0 < done < TINY.steps and (halved / "model.safetensors").exists()
    assert json.loads((halved / "curve.json").read_text()) == []
    small_policy.train(halved, TINY, device="cpu")
    assert files(halved) == files(tmp_path / "whole")
    assert len([*(halved / "scratch").glob("state-*")]) == 1
    (row,) = json.loads((halved / "curve.json").read_text())
    assert row["step"] == TINY.steps and row["loss"] > 0 and row["perplexity_per_word"] > 1 and row["tokens"] > 0


def test_the_teacher_reads_a_text_once(smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    targets = Teacher.targets

    def counted(self: Teacher, texts: list[str], **given: int) -> Targets:
        read.extend(texts)
        return targets(self, texts, **given)

    monkeypatch.setattr(Teacher, "targets", counted)
    small_policy.train(tmp_path / "out", replace(TINY, steps=12), device="cpu")
    assert len(read) == TINY.texts  # of three passes
    assert all(any(f"sft {text}".find(one.split("\n")[0]) >= 0 for text in TEXTS) for one in read[:3])
    assert "eval" not in " ".join(read)


def test_every_pass_reads_every_text_in_another_order(tmp_path: Path) -> None:
    recipe = replace(TINY, texts=64, shard=8)
    source = Texts(tmp_path, None, [], recipe)  # type: ignore[arg-type]  # the shards are here
    for number in range(8):
        ids = torch.arange(number * 8, number * 8 + 8)[:, None]
        empty = torch.zeros(8, 1, 1)
        source_file = tmp_path / f"shard-{number:06d}.safetensors"
        save_file(Targets(ids, ids, ids > -1, empty, empty).compact(), source_file)
    passes = [[int(i) for step in range(32) for i in source.batch(32 * turn + step).ids] for turn in range(2)]
    assert [sorted(one) for one in passes] == [list(range(64))] * 2
    assert passes[0] != passes[1]


@pytest.mark.slow
def test_a_loss_falls_and_a_start_is_grown(smollm: Path, tmp_path: Path) -> None:
    small_policy.train(tmp_path / "two", replace(TINY, layers=2, steps=1), device="cpu")
    recipe = replace(TINY, layers=3, steps=120, lr=1e-2)
    small_policy.train(tmp_path / "three", recipe, start=tmp_path / "two", device="cpu")
    state = json.loads((tmp_path / "three" / "scratch" / "state.json").read_text())
    assert state["facts"]["layers"] == 3 and state["facts"]["start"]
    small, words = (kind.from_pretrained(tmp_path / "three") for kind in (AutoModelForCausalLM, AutoTokenizer))
    two = AutoModelForCausalLM.from_pretrained(tmp_path / "two", dtype=torch.float32)
    teacher = Teacher(AutoModelForCausalLM.from_pretrained(smollm), AutoTokenizer.from_pretrained(smollm), words)
    targets = teacher.targets(TEXTS[:3], window=64, top=32)
    after, before = (distillation_loss(one.float()(input_ids=targets.ids).logits, targets) for one in (small, two))
    assert small.config.num_hidden_layers == 3 and after < before


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"layers": 1}, "--layers must be at least 2, got 1"),
        ({"lr": -1.0}, "--lr must be a positive finite number, got -1.0"),
        ({"batch": 3}, "--shard must be a multiple of --batch 3, got 4"),
        ({"texts": 6}, "--texts must be a multiple of --shard 4, got 6"),
        ({"steps": 0}, "--steps must be at least 1, got 0"),
        ({"vocabulary": 40_000}, "--vocabulary must be at most 32767, got 40000"),
    ],
)
def test_a_bad_setting_is_refused(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(TINY, **wrong)


def test_bad_folders_and_another_recipe_are_refused(
    smollm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small_policy.train(tmp_path / "out", replace(TINY, steps=1), device="cpu")
    with pytest.raises(ValueError, match=r"is of another training .*'lr': \(0.01, 0.5\)"):
        small_policy.train(tmp_path / "out", replace(TINY, steps=1, lr=0.5), device="cpu")
    monkeypatch.setattr(sft, "load_sft", lambda device: pytest.fail("the teacher was loaded before the refusal"))
    with pytest.raises(ValueError, match="--minutes must be positive, got 0"):
        small_policy.train(tmp_path / "new", TINY, device="cpu", minutes=0)
    with pytest.raises(ValueError, match="pass another folder"):
        small_policy.train(SMALL, TINY, device="cpu")
    with pytest.raises(ValueError, match=r"has no config.json"):
        small_policy.train(tmp_path / "new", TINY, start=tmp_path / "none", device="cpu")
    with pytest.raises(ValueError, match="21157632 parameters"):
        small_policy.train(tmp_path / "new", replace(TINY, layers=5), start=SMALL, device="cpu")
    assert not (tmp_path / "new").exists()


def test_a_student_with_strange_tokens_is_refused(tokenizer: PreTrainedTokenizerFast) -> None:
    student, teacher = bpe_pair(tokenizer)
    found = rows_of(student, teacher).tolist()
    assert teacher.convert_ids_to_tokens(found) == student.convert_ids_to_tokens(range(len(student)))
    with pytest.raises(ValueError, match=r"tokens of the student are unknown to the teacher"):
        rows_of(teacher, student)


@pytest.mark.slow
def test_the_policy_is_compared_on_the_same_held_out_reviews(
    smollm: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    small_policy.train(tmp_path / "out", replace(TINY, steps=1), device="cpu")
    found, texts = comparison.compare(tmp_path / "out"), [f"eval {text}" for text in TEXTS]
    teacher, words = AutoModelForCausalLM.from_pretrained(smollm).eval(), tokenizer
    for name, begin in (("own_begin", "<|im_start|>"), ("best_begin", BEGIN)):
        wanted = sft.word_perplexity(teacher, words, texts, begin=words.get_vocab()[begin])
        assert found[f"smollm2_135m_{name}"] == pytest.approx(wanted)
        assert found[f"ratio_{name}"] == pytest.approx(found["small"] / wanted)
    for name, folder in (("small", tmp_path / "out"), ("shipped", SMALL), ("sft", smollm)):
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
        wanted = sft.word_perplexity(model, AutoTokenizer.from_pretrained(folder), texts)
        assert found[name] == pytest.approx(wanted, rel=1e-5)
    assert found["ratio_shipped"] == pytest.approx(found["small"] / found["shipped"])
    assert found["step_ratio_shipped"] > 0
    assert json.loads((tmp_path / "out" / "perplexity.json").read_text()) == found
    samples = json.loads((tmp_path / "out" / "scratch" / "samples.json").read_text())
    assert len(samples) == comparison.SAMPLES
    assert all(row["new"].startswith("eval ") and row["shipped"].startswith("eval ") for row in samples)


@pytest.mark.slow
def test_the_shipped_policy_has_the_recorded_perplexity() -> None:
    recorded = json.loads((SMALL / "perplexity.json").read_text())
    model = AutoModelForCausalLM.from_pretrained(SMALL, dtype=torch.float32).eval()
    texts = imdb.reviews("eval")["text"].tolist()[: comparison.CURVE_REVIEWS]
    found = sft.word_perplexity(model, AutoTokenizer.from_pretrained(SMALL), texts)
    assert found == pytest.approx(recorded["small"], rel=0.01)
    for begin in ("own_begin", "best_begin"):
        ratio = recorded["small"] / recorded[f"smollm2_135m_{begin}"]
        assert recorded[f"ratio_{begin}"] == pytest.approx(ratio)
    curve = json.loads((SMALL / "curve.json").read_text())
    assert curve[-1]["perplexity_per_word"] == pytest.approx(found, rel=0.05)
