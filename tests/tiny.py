"""Small real models, tokenizers, rewards and tasks, made on the spot: no network, no files."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from warp_nb.algorithm.objective import Rollout
from warp_nb.tasks.task import Task

GOOD = ["wonderful", "superb", "touching", "masterpiece", "brilliant", "best", "perfect", "sharp", "enjoyed"]
BAD = ["terrible", "awful", "boring", "mess", "stupid", "worst", "lazy", "lame", "regretted"]
PLAIN = "the this film movie story was is of and it a we saw with my plot actor scene never very".split()
END = "<end>"
WORDS = [*GOOD, *BAD, *PLAIN]


def tokenizer(
    words: Sequence[str] = WORDS, end: bool = True, begin: bool = False, pad: bool = False, **settings: Any
) -> Any:
    """A word is a token; special tokens, where asked for, come after the words."""
    special = {"eos_token": END} if end else {}
    special |= {"bos_token": "<begin>"} if begin else {}
    special |= {"pad_token": "<pad>"} if pad else {}
    vocabulary = {word: index for index, word in enumerate([*words, *special.values()])}
    inner = Tokenizer(models.WordLevel(vocabulary, unk_token=words[0]))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=inner, **special, **settings)


def gpt2(vocabulary: int, seed: int = 0, spread: float = 0.3, width: int = 16, layers: int = 2) -> GPT2LMHeadModel:
    """GPT-2 with tied embeddings and dropout 0.1, in eval mode; `spread` of weights makes its choices uneven."""
    config = GPT2Config(
        vocab_size=vocabulary,
        n_embd=width,
        n_layer=layers,
        n_head=2,
        n_positions=32,
        initializer_range=spread,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return GPT2LMHeadModel(config).eval()


def llama(vocabulary: int, seed: int = 0, spread: float = 0.3) -> LlamaForCausalLM:
    """Llama with rotary positions, grouped keys and an untied head, in eval mode."""
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        initializer_range=spread,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config).eval()


def counted(word: str = "wonderful") -> Callable[..., list[float]]:
    """The planted reward: how often `word` occurs in the completion."""

    def count(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [float(text.split().count(word)) for text in completions]

    return count


def opinion(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Good words minus bad words of the completion: cheap, and a sound reward to the gate."""
    cleaned = [text.lower().replace(".", " ").replace(",", " ").replace("!", " ").split() for text in completions]
    return [float(sum((word in GOOD) - (word in BAD) for word in words)) for words in cleaned]


def prompts(count: int, seed: int) -> list[str]:
    """`count` distinct prompts of two to five plain words."""
    generator, found = torch.Generator().manual_seed(seed), {}
    while len(found) < count:
        length = int(torch.randint(2, 6, (1,), generator=generator))
        picked = torch.randint(len(PLAIN), (length,), generator=generator)
        found[" ".join(PLAIN[index] for index in picked)] = None
    return list(found)


def task(reward: Callable[..., Any] = opinion, policy: Any = None, **changes: Any) -> Task:
    """A GPT-2 of 16 channels that knows no language, with 48 training and 64 held-out prompts."""
    drawn = prompts(112, seed=0)
    fields = {"train_prompts": drawn[:48], "eval_prompts": drawn[48:], "name": "tiny", "tokenizer": tokenizer()}
    fields |= changes
    return Task(policy=policy or gpt2(len(fields["tokenizer"]), spread=0.05), reward=reward, **fields)


def sequences(vocabulary: int, length: int, end: int) -> Iterator[list[int]]:
    """Every completion: ends at the first `end` or at `length` tokens."""

    def grow(head: list[int]) -> Iterator[list[int]]:
        if len(head) == length or (head and head[-1] == end):
            yield head
            return
        for token in range(vocabulary):
            yield from grow([*head, token])

    return grow([])


def rollout(prompt: list[int], completions: Sequence[Sequence[int]], pad: int = 0) -> Rollout:
    """Given completions under one prompt, as `sample` would have returned them (log-probabilities unknown: 0)."""
    width = max(map(len, completions))
    mask = torch.tensor([[index < len(row) for index in range(width)] for row in completions])
    ids = torch.tensor([[*prompt, *row, *[pad] * (width - len(row))] for row in completions])
    attention = torch.cat([torch.ones(len(ids), len(prompt), dtype=torch.long), mask.long()], 1)
    return Rollout(ids, attention, mask, torch.zeros(mask.shape), 1.0)
