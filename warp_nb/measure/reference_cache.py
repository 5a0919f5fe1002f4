"""The reference's side of an evaluation: the same for every policy compared with it, so made once.

Of a large policy it is kept in the cache folder: the completions, and the hidden states that its output head
read when it scored them. The head gives the logits again, to the bit; where it does not (a model that does more
than multiply), nothing is kept and everything is computed as ever.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.fast.devices import LARGE
from warp_nb.fast.rollout import Rollout, completion_texts, context_length, encode_prompts, sample
from warp_nb.fast.scoring import completion_logits, scored_inputs
from warp_nb.runs.sealed import DamagedFile, seal, unseal
from warp_nb.runs.weights import fingerprint
from warp_nb.tasks.wheels import cache_dir

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class ReferenceSide:
    """Rollouts of `reference` in fp32 and its own logits on them, a batch of prompts at a time."""

    def __init__(
        self,
        reference: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        max_new_tokens: int,
        temperature: float,
    ) -> None:
        self.reference, self.tokenizer = reference, tokenizer
        self.max_new_tokens, self.temperature = max_new_tokens, temperature
        kept = reference.num_parameters() >= LARGE
        self.weights = fingerprint(reference.state_dict()) if kept else ""

    @torch.no_grad()
    def rollout(self, prompts: list[str], seed: int) -> tuple[Rollout, torch.Tensor]:
        """(completions drawn with the noise of `seed`, the reference's logits of them [B, C, V])."""
        path = self._path(prompts, seed) if self.weights else None
        if path is not None and path.exists():
            try:
                return self._load(path, prompts)
            except DamagedFile as error:
                warnings.warn(f"{error}; it is made again", stacklevel=2)
        noise = torch.Generator().manual_seed(seed)
        rollout = sample(self.reference, self.tokenizer, prompts, self.max_new_tokens, self.temperature, noise)
        if path is None:
            return rollout, completion_logits(self.reference, rollout)
        return rollout, self._score_and_keep(path, rollout)

    def _score_and_keep(self, path: Path, rollout: Rollout) -> torch.Tensor:
        """The logits; written to `path` when the head gives them again from the hidden states."""
        out = self.reference(**scored_inputs(rollout), output_hidden_states=True)
        hidden = out.hidden_states[-1]
        if torch.equal(self._head(hidden, rollout.width), out.logits):
            tensors = {name: getattr(rollout, name) for name in ("ids", "attention_mask", "sampled_log_probs")}
            tensors |= {"completion_mask": rollout.completion_mask, "hidden": hidden}
            path.parent.mkdir(parents=True, exist_ok=True)
            seal(path, {name: tensor.cpu() for name, tensor in tensors.items()}, None)
        return out.logits

    def _load(self, path: Path, prompts: list[str]) -> tuple[Rollout, torch.Tensor]:
        """What `_score_and_keep` wrote, on the reference's device."""
        stored = {name: tensor.to(self.reference.device) for name, tensor in unseal(path)[0].items()}
        hidden, ids, mask = stored.pop("hidden"), stored["ids"], stored["completion_mask"]
        texts = completion_texts(self.tokenizer, ids, mask)
        rollout = Rollout(**stored, prompts=list(prompts), completions=texts)
        return rollout, self._head(hidden, rollout.width)

    def _head(self, hidden: torch.Tensor, width: int) -> torch.Tensor:
        return self.reference.get_output_embeddings()(hidden[:, -width:, :])

    def _path(self, prompts: list[str], seed: int) -> Path:
        """A file for all that the bits depend on: weights, tokens, noise, settings, torch, processor, threads."""
        limit = context_length(self.reference) - self.max_new_tokens
        ids, mask = encode_prompts(self.tokenizer, prompts, limit)
        facts: dict[str, Any] = {
            "layout": 2,
            "weights": self.weights,
            "prompts": [ids.tolist(), mask.tolist()],
            "special": [self.tokenizer.eos_token_id, self.tokenizer.pad_token_id],
            "settings": [seed, self.max_new_tokens, self.temperature],
            "machine": [torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
            "device": str(self.reference.device),
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return cache_dir() / "reference" / f"{key[:32]}.safetensors"
