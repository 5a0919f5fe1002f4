"""A policy is taken if padding, later tokens and the cache change nothing, and refused by its class otherwise."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import tiny
import torch
import transformers as tf

from warp_nb.algorithm.objective import completion_logits
from warp_nb.fast.decoding import sample
from warp_nb.tasks.policy_check import check_policy

V = 39
NO_IDS: dict[str, Any] = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None}
SIZE: dict[str, Any] = {"vocab_size": V, "hidden_size": 16}
BERT: dict[str, Any] = {**SIZE, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
LLAMA: dict[str, Any] = {**BERT, **NO_IDS, "num_key_value_heads": 1, "initializer_range": 0.3}
TROCR: dict[str, Any] = {"d_model": 16, "decoder_layers": 1, "decoder_ffn_dim": 24, "decoder_attention_heads": 2}
OPT: dict[str, Any] = {"ffn_dim": 24, "word_embed_proj_dim": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
MAMBA: dict[str, Any] = {**SIZE, **NO_IDS, "num_hidden_layers": 1, "state_size": 4}
GPT1: dict[str, Any] = {"vocab_size": V, "n_embd": 16, "n_layer": 1, "n_head": 2, "n_positions": 48}
T5: dict[str, Any] = {"vocab_size": V, "d_model": 16, "d_kv": 8, "d_ff": 16, "num_layers": 1, "num_heads": 2}
Make = Callable[[], Any]
TAKEN: dict[str, Make] = {
    "learned positions": lambda: tiny.gpt2(V),
    "rotary positions": lambda: tiny.llama(V),
    "a sliding window": lambda: tf.MistralForCausalLM(tf.MistralConfig(**LLAMA, sliding_window=3)),
    "alibi": lambda: tf.BloomForCausalLM(tf.BloomConfig(**SIZE, n_layer=1, n_head=2)),
    "positions from the mask": lambda: tf.OPTForCausalLM(tf.OPTConfig(**SIZE, **OPT)),
    "a decoder made of an encoder": lambda: tf.BertLMHeadModel(tf.BertConfig(**BERT, is_decoder=True)),
    "a state, no keys and values": lambda: tf.MambaForCausalLM(tf.MambaConfig(**MAMBA)),
    "no cache at all": lambda: tf.OpenAIGPTLMHeadModel(tf.OpenAIGPTConfig(**GPT1)),
}
REFUSED: dict[str, Make] = {
    "an encoder-decoder": lambda: tf.MT5ForConditionalGeneration(tf.MT5Config(**T5)),
    "positions of its own": lambda: tf.TrOCRForCausalLM(tf.TrOCRConfig(vocab_size=V, **TROCR)),
    "a state that reads padding": lambda: tf.RwkvForCausalLM(tf.RwkvConfig(**SIZE, **NO_IDS, num_hidden_layers=2)),
    "later tokens": lambda: tf.ElectraForMaskedLM(tf.ElectraConfig(**BERT, embedding_size=16)),
    "classes of a token": lambda: tf.LlamaForTokenClassification(tf.LlamaConfig(**LLAMA, num_labels=3)),
    "classes of a text": lambda: tf.LlamaForSequenceClassification(tf.LlamaConfig(**LLAMA, num_labels=1)),
    "no head": lambda: tf.LlamaModel(tf.LlamaConfig(**LLAMA)),
}


def made(make: Make) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return make().eval()


@pytest.mark.parametrize("kind", TAKEN)
def test_a_causal_policy_samples_what_it_scores(kind: str) -> None:
    task = tiny.task(policy=made(TAKEN[kind]))
    sampling = task.sampling(5)
    ids, mask = task.encode(["we", "the film was"] * 2, sampling)
    drawn = sample(task.policy, ids, mask, sampling, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        scored = completion_logits(task.policy, drawn).log_softmax(-1).gather(2, drawn.tokens[..., None])[..., 0]
        short = ids.shape[1] - 1
        row = torch.cat([ids[:1, short:], drawn.tokens[:1, :1]], 1)
        alone = task.policy(row).logits[0, 0].log_softmax(-1)[drawn.tokens[0, 0]]
    kept = drawn.completion_mask
    assert torch.allclose(scored[kept], drawn.sampled_log_probs[kept], atol=1e-5)
    assert torch.isclose(scored[0, 0], alone, atol=1e-5), "the padded prompt alone"


@pytest.mark.parametrize("kind", REFUSED)
def test_another_model_is_refused_by_its_class(kind: str) -> None:
    policy = made(REFUSED[kind])
    with pytest.raises(ValueError, match=rf"the policy \({type(policy).__name__}\) .*; pass "):
        tiny.task(policy=policy)


class Shifted(tf.GPT2LMHeadModel):
    """A future architecture with a fault in its cache: a step with one is another than the step without."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        if kwargs.get("past_key_values") is not None:
            out.logits = out.logits.roll(1, -1)
        return out


def test_a_fault_of_the_cache_alone_is_seen() -> None:
    policy = tiny.gpt2(V)
    policy.__class__ = Shifted
    with pytest.raises(ValueError, match=r"the policy \(Shifted\) .* nats when it decodes with its cache"):
        check_policy(policy, [5, 7, 3], context=32)


@pytest.mark.parametrize("context", [2, 3, 5])
@pytest.mark.parametrize("tokens", [[5], [5, 7, 3, 9, 4, 8, 6, 11, 12, 13]])
def test_short_contexts_and_prompts_are_enough(context: int, tokens: list[int]) -> None:
    check_policy(tiny.gpt2(V), tokens, context)


def test_a_policy_that_is_frozen_as_a_whole_is_refused() -> None:
    with pytest.raises(ValueError, match=r"every weight of the policy \(GPT2LMHeadModel\) is frozen; call"):
        tiny.task(policy=tiny.gpt2(V).requires_grad_(False))
