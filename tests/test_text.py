"""Prompts become ids with padding on the left, whatever the tokenizer lacks; completions become text again."""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from typing import Any

import pytest
import tiny
import torch
from brute import FOUR, MODELS, drawn, scored
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from warp_nb.algorithm import objective
from warp_nb.algorithm.objective import Sampling, completion_logits, token_log_probs
from warp_nb.fast import decoding, scoring
from warp_nb.fast.scoring import without_early_ends
from warp_nb.tasks.text import (
    decode_completions,
    encode_prompts,
    end_at_stops,
    end_ids,
    first_tokens,
    pad_id,
    prompt_ids,
)


@pytest.mark.parametrize("special", [{"end": False}, {"begin": True}, {"pad": True}, {"begin": True, "pad": True}])
def test_tokenizers_without_special_tokens_and_with_them(special: dict[str, bool]) -> None:
    words = tiny.tokenizer(**special)
    policy = tiny.gpt2(len(words))
    found = drawn(policy, words, ["the film", "we"], 5)
    prompt = ([words.bos_token_id] if special.get("begin") else []) + words("the film")["input_ids"]
    width = found.ids.shape[1] - found.tokens.shape[1]
    assert found.ids[0, :width].tolist() == prompt
    assert found.attention_mask[1, :width].tolist() == [0] + [1] * (width - 1)
    assert torch.allclose(
        token_log_probs(completion_logits(policy, found), *scored(found)), found.sampled_log_probs, atol=1e-5
    )
    if not special.get("end", True):
        assert found.completion_mask.all() and found.tokens.shape[1] == 5


def test_prompts_are_refused_by_name() -> None:
    words, begun = tiny.tokenizer(), tiny.tokenizer(begin=True)
    with pytest.raises(ValueError, match="prompts is empty"):
        encode_prompts(words, [], 8)
    with pytest.raises(ValueError, match="prompt '' has no tokens and the tokenizer no begin token"):
        encode_prompts(words, ["the", ""], 8)
    ids, mask = encode_prompts(begun, ["the", ""], 8)
    assert ids[1, -1] == begun.bos_token_id and mask.tolist() == [[1, 1], [0, 1]]
    task = tiny.task()
    with pytest.raises(ValueError, match=r"prompt of 30 tokens, at most 24 fit beside the completion: 'the the"):
        task.encode(["the " * 30], task.sampling(8))
    assert task.encode(["the " * 24], task.sampling(8))[0].shape == (1, 24)


@pytest.mark.parametrize("special", [{"end": False}, {"pad": True}, {"begin": True}, {}], ids=str)
def test_the_side_a_tokenizer_pads_on_changes_nothing(special: dict[str, bool]) -> None:
    found: list[Any] = []
    for side in ("left", "right"):
        words = tiny.tokenizer(**special)
        words.padding_side = side
        found.append([value.tolist() for value in encode_prompts(words, ["the", "the film was"], 8)])
    assert found[0] == found[1] and found[0][1][0][0] == 0


def test_completions_are_text_without_the_end_token_and_what_follows_it() -> None:
    words = tiny.tokenizer(FOUR)
    found = drawn(tiny.gpt2(4, spread=0.1), words, ["a b"] * 64, 10)
    texts = decode_completions(words, found)
    for row, text in zip(found.tokens.tolist(), texts, strict=True):
        until = row.index(3) if 3 in row else len(row)
        assert text == "".join(f" {FOUR[token]}" for token in row[:until])
    assert "" in texts and len(set(texts)) > 10


# what a tokenizer declares


def template(words: Any, *parts: str) -> Any:
    """The tokenizer with a post-processor that adds special tokens to a text, as those of Llama and BERT do."""
    ids = [(part, words.convert_tokens_to_ids(part)) for part in parts if part != "$A"]
    words.backend_tokenizer.post_processor = processors.TemplateProcessing(single=" ".join(parts), special_tokens=ids)
    return words


@pytest.mark.parametrize(
    ("make", "opened"),
    [
        (lambda: tiny.tokenizer(), []),
        (lambda: tiny.tokenizer(begin=True), ["<begin>"]),
        (lambda: template(tiny.tokenizer(begin=True), "<begin>", "$A"), ["<begin>"]),
        (lambda: template(tiny.tokenizer(begin=True), "<begin>", "$A", tiny.END), ["<begin>"]),
        (lambda: template(tiny.tokenizer(begin=True, pad=True), "<pad>", "<begin>", "$A"), ["<pad>", "<begin>"]),
        (lambda: template(tiny.tokenizer(pad=True), "<pad>", "$A", tiny.END), ["<pad>"]),
        (lambda: template(tiny.tokenizer(), "$A", tiny.END), []),
        (lambda: tiny.tokenizer(begin=True, add_bos_token=False), []),
    ],
    ids=[
        "none",
        "declared",
        "added",
        "added with an end",
        "two",
        "no begin token",
        "an end alone",
        "declared not added",
    ],
)
def test_a_prompt_is_opened_once_as_the_tokenizer_opens_a_text(make: Callable[[], Any], opened: list[str]) -> None:
    words = make()
    begin = words.convert_tokens_to_ids(opened)
    own = words("the film", add_special_tokens=False)["input_ids"]
    written = " ".join([*opened, "the film"])  # by a chat template
    assert prompt_ids(words, ["the film", written]) == [begin + own, begin + own]


@pytest.mark.parametrize(
    ("declared", "found"), [(None, [27]), (3, [3, 27]), ([5, 3, 27], [3, 5, 27]), ([99, -1], [27]), ([], [27])]
)
def test_a_completion_ends_at_any_declared_end(declared: Any, found: list[int]) -> None:
    words = tiny.tokenizer(tiny.WORDS[:27])
    policy = tiny.gpt2(len(words))
    policy.generation_config.eos_token_id = declared
    sampling = tiny.task(tokenizer=words, policy=policy, train_prompts=["wonderful"], eval_prompts=["superb"]).sampling(
        9
    )
    assert words.eos_token_id == 27 and list(sampling.end_ids) == found
    policy.generation_config = None
    assert end_ids(words, policy) == (27,)


def test_sampling_stops_at_an_end_of_the_generation_config() -> None:
    words = tiny.tokenizer(end=False)
    policy = tiny.gpt2(len(words), spread=0.01)
    policy.generation_config.eos_token_id = [3, 4]
    sampling = Sampling(30, 1.0, end_ids(words, policy), pad_id(words, policy))
    ids, mask = encode_prompts(words, ["the"] * 64, 2)
    rollout = objective.sample(policy, ids, mask, sampling, generator=torch.Generator().manual_seed(0))
    rows = [row[keep].tolist() for row, keep in zip(rollout.tokens, rollout.completion_mask, strict=True)]
    ended = [row for row in rows if len(row) < 30]
    assert len(ended) > 40 and {row[-1] for row in ended} == {3, 4} and not any({3, 4} & {*row[:-1]} for row in rows)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
@pytest.mark.parametrize("sample", [objective.sample, decoding.sample], ids=["plain", "fast"])
def test_no_completion_ends_before_the_fewest_tokens(kind: str, sample: Any) -> None:
    """It is scored by the policy that drew it: one whose early places have no end token."""
    words, count, fewest, ends = tiny.tokenizer(), 8, 5, (3, 17, 38)
    policy = MODELS[kind](len(words), spread=0.05)
    given = {"temperature": 0.7, "sample": sample, "ends": ends}
    found, free = (drawn(policy, words, ["the film", "we"] * 60, count, fewest=few, **given) for few in (fewest, 0))
    lengths = found.completion_mask.sum(1)
    assert lengths.min() == fewest + 1 and lengths.max() == count and free.completion_mask.sum(1).min() == 1
    assert not torch.isin(found.tokens[:, :fewest], torch.tensor(ends)).any()
    sampling = Sampling(count, 0.7, ends, 0, fewest)
    logits = without_early_ends(objective.completion_logits(policy, found), sampling)
    for log_probs in (objective.token_log_probs, scoring.token_log_probs):
        mine = log_probs(logits, found.tokens, found.completion_mask, 0.7)
        torch.testing.assert_close(mine, found.sampled_log_probs, rtol=0, atol=1e-5)
    kept = [token for token in range(len(words)) if token not in ends]
    other = without_early_ends(objective.completion_logits(MODELS[kind](len(words), seed=1), found), sampling)
    for token_kl in (objective.token_kl, scoring.token_kl):
        whole = token_kl(logits, other, found.completion_mask, 0.7)[:, :fewest]
        among = token_kl(logits[..., kept], other[..., kept], found.completion_mask, 0.7)[:, :fewest]
        torch.testing.assert_close(whole, among, rtol=1e-5, atol=1e-6)


def test_logits_without_early_ends_are_the_others_to_the_bit() -> None:
    logits = torch.randn(2, 4, 6, requires_grad=True)
    assert without_early_ends(logits, Sampling(4, 1.0, (1,))) is logits
    assert without_early_ends(logits, Sampling(4, 1.0, (), 0, 3)) is logits
    found = without_early_ends(logits, Sampling(9, 1.0, (1, 5), 0, 3))
    barred = torch.zeros(2, 4, 6, dtype=torch.bool)
    barred[:, :3, [1, 5]] = True
    assert torch.equal(found[~barred], logits[~barred])
    assert (found.softmax(-1)[barred] == 0).all()
    (gradient,) = torch.autograd.grad(found.sum(), logits)
    assert torch.equal(gradient, (~barred).float())


def metaspace() -> Any:
    """SentencePiece's way: a space is part of the word after it, and the decoder drops the first."""
    pieces = [f"▁{word}" for word in tiny.PLAIN] + ["ly", "s", "."]
    inner = Tokenizer(models.WordPiece(dict(zip(pieces, count())), unk_token=pieces[0], continuing_subword_prefix=""))
    inner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first")
    inner.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    return PreTrainedTokenizerFast(tokenizer_object=inner)


def wordpiece() -> Any:
    """BERT's way: the mark of a continued word, lower case, and no space in front of a full stop."""
    pieces = [*tiny.PLAIN, "##ly", "##s", "."]
    inner = Tokenizer(models.WordPiece(dict(zip(pieces, count())), unk_token=pieces[0]))
    inner.normalizer, inner.pre_tokenizer = normalizers.Lowercase(), pre_tokenizers.BertPreTokenizer()
    inner.decoder = decoders.WordPiece(cleanup=True)
    return PreTrainedTokenizerFast(tokenizer_object=inner)


@pytest.mark.parametrize("make", [metaspace, wordpiece, tiny.tokenizer], ids=["SentencePiece", "WordPiece", "words"])
def test_prompt_and_completion_are_the_text_of_all_tokens(make: Callable[[], Any]) -> None:
    words = make()
    prompts = ["the film", "it was of the actor", "we"]
    found = drawn(tiny.gpt2(len(words), spread=0.05), words, prompts * 20, 8)
    texts = decode_completions(words, found)
    for prompt, text, row, keep in zip(prompts * 20, texts, found.ids, found.attention_mask, strict=True):
        assert prompt + text == words.decode(row[keep.bool()], skip_special_tokens=True)
    assert len(set(texts)) > 50 and any(text[0] != " " for text in texts if text) == (make is not tiny.tokenizer)


STOPS = {"a word": ["film"], "with a space": [" of"], "two tokens": ["of the"], "the earlier": ["actor", "the film"]}


@pytest.mark.parametrize("make", [metaspace, wordpiece, tiny.tokenizer], ids=["SentencePiece", "WordPiece", "words"])
@pytest.mark.parametrize("stops", STOPS.values(), ids=STOPS)
def test_a_completion_ends_with_the_token_that_completes_a_stop_string(
    make: Callable[[], Any], stops: list[str]
) -> None:
    """Against a search from the first token on; tokens up to there, and their log-probabilities, are as they were."""
    words, prompts = make(), ["the film", "it was of the actor", "we"] * 40
    before = drawn(tiny.gpt2(len(words), spread=0.01), words, prompts, 12)
    after = end_at_stops(words, before, stops, 5)
    changed = 0
    for row in range(len(prompts)):
        total = int(before.completion_mask[row].sum())
        prompt = before.ids[row][before.attention_mask[row].bool()][:-total].tolist()
        tokens = before.tokens[row].tolist()
        begun, ended = words.decode(prompt), total
        for length in range(1, total + 1):
            added = words.decode(prompt + tokens[:length]).removeprefix(begun)
            if any(stop in added for stop in stops):
                ended = length
                break
        changed += ended < total
        assert after.completion_mask[row].tolist() == [place < ended for place in range(len(tokens))]
        assert after.tokens[row].tolist() == tokens[:ended] + [5] * (len(tokens) - ended)
    assert changed > 0
    assert torch.equal(after.sampled_log_probs, before.sampled_log_probs * after.completion_mask)
    width = before.tokens.shape[1]
    assert torch.equal(after.attention_mask[:, -width:].bool(), after.completion_mask)
    for name in ("ids", "attention_mask"):
        assert torch.equal(getattr(after, name)[:, :-width], getattr(before, name)[:, :-width])


def test_a_special_token_is_a_stop_string_and_an_ended_completion_stays() -> None:
    words = tiny.tokenizer()
    end, film = words.eos_token_id, words.convert_tokens_to_ids("film")
    rollout = tiny.rollout([0], [[film, film, film], [end], [3, end]])
    found = end_at_stops(words, rollout, [tiny.END], 0)
    assert torch.equal(found.completion_mask, rollout.completion_mask) and torch.equal(found.ids, rollout.ids)
    assert end_at_stops(words, rollout, ["film film"], 0).completion_mask.sum(1).tolist() == [2, 1, 2]


@pytest.mark.parametrize(
    "text", ["Фильм мне очень понравился 😀😀, смотрел 日本語", "😀", "Luis Guzmán", "", "the film"]
)
def test_a_beginning_ends_with_a_whole_character(text: str) -> None:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    inner = Tokenizer(models.BPE(dict(zip(letters, count())), merges=[]))
    inner.pre_tokenizer, inner.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    words = PreTrainedTokenizerFast(tokenizer_object=inner)
    for many in range(1, 30):
        (found,) = first_tokens(words, [text], many)
        assert text.startswith(found) and bool(found) == bool(text)
        size = len(found.encode())
        assert size <= max(many, len(text[:1].encode())), "a byte is a token"
        assert found == text or size + len(text[len(found)].encode()) > many, "and no more fit"
