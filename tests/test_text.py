"""Prompts become ids with padding on the left, whatever the tokenizer lacks; completions become text again."""

from __future__ import annotations

from typing import Any

import pytest
import tiny
import torch
from brute import FOUR, drawn, scored

from warp_nb.algorithm.objective import completion_logits, token_log_probs
from warp_nb.tasks.text import decode_completions, encode_prompts


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
        assert text == " ".join(FOUR[token] for token in row[:until])
    assert "" in texts and len(set(texts)) > 10
