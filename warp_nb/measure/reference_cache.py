"""The reference's side of an evaluation, computed once for all policies that are compared with it.

For a large policy it is saved in the cache folder: the completions, and the hidden states that the output head read
when it scored them. From these the head reproduces the logits bit-identically. If it does not (a head that does more
than multiply), or if the folder cannot be written, nothing is saved and everything is computed each time.
"""

from __future__ import annotations

import hashlib
import json
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.algorithm.objective import Rollout, Sampling, completion_logits
from warp_nb.fast.decoding import sample_by_seeds
from warp_nb.fast.devices import LARGE
from warp_nb.files import DamagedFile, cache_dir, seal, unseal
from warp_nb.tasks.identity import policy_identity, versions
from warp_nb.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel


class ReferenceSide:
    """Rollouts of `reference` in fp32 and its logits on them, one batch of prompts at a time."""

    def __init__(self, reference: PreTrainedModel, task: Task, sampling: Sampling, large: int = LARGE) -> None:
        self.reference, self.task, self.sampling = reference, task, sampling
        saved = reference.num_parameters() >= large
        self.identity = policy_identity(reference) | versions() if saved else {}

    @torch.no_grad()
    def rollout(self, prompts: list[str], seeds: list[int]) -> tuple[Rollout, torch.Tensor]:
        """Return completions sampled with noise by `seeds`, and the reference's logits on them [B, C, V].

        `prompts` are held-out prompts of the task, and every block of them has a seed (see `sample_by_seeds`).
        """
        ids, mask = self.task.encode(prompts, self.sampling, "eval_prompts")
        path = self._path(ids, mask, seeds) if self.identity else None
        if path is not None:
            try:
                return self._load(path, ids)
            except FileNotFoundError:
                pass
            except DamagedFile as error:
                warnings.warn(f"{error}; it is made again", stacklevel=2)
        rollout = sample_by_seeds(self.reference, ids, mask, self.sampling, seeds=seeds)
        if path is None:
            return rollout, completion_logits(self.reference, rollout)
        return rollout, self._score_and_save(path, rollout)

    def _score_and_save(self, path: Path, rollout: Rollout) -> torch.Tensor:
        """Return the logits; save the rollout to `path` if the head reproduces them from the hidden states."""
        head: Any = self.reference.get_output_embeddings()
        read: list[torch.Tensor] = []
        # not output_hidden_states: for them transformers leaves hooks in the model, which is captured no more
        handle = head.register_forward_pre_hook(lambda module, given: read.append(given[0]))
        try:
            logits = completion_logits(self.reference, rollout)
        finally:
            handle.remove()
        if len(read) == 1 and torch.equal(head(read[0]), logits):
            hidden = read[0]
            tensors = {name: value for name, value in vars(rollout).items() if isinstance(value, torch.Tensor)}
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                seal(path, {name: tensor.cpu() for name, tensor in (tensors | {"hidden": hidden}).items()}, None)
            except OSError as error:
                warnings.warn(
                    f"{path.parent} cannot be written ({error}), so the reference's side of the evaluation is not "
                    f"saved; WARP_NB_CACHE moves the cache",
                    stacklevel=2,
                )
        return logits

    def _load(self, path: Path, ids: torch.Tensor) -> tuple[Rollout, torch.Tensor]:
        """Load what `_score_and_save` wrote for these prompts, on the reference's device."""
        saved, _ = unseal(path)
        rows, width = ids.shape
        length, channels = self.sampling.max_new_tokens, self.reference.get_output_embeddings().weight.shape[1]
        drawn = saved["completion_mask"].shape[-1] if "completion_mask" in saved else 0
        wanted = {
            "ids": (rows, width + drawn, False),
            "attention_mask": (rows, width + drawn, False),
            "completion_mask": (rows, drawn, False),
            "sampled_log_probs": (rows, drawn, True),
            "hidden": (rows, drawn, channels, True),
        }
        found = {name: (*tensor.shape, tensor.is_floating_point()) for name, tensor in saved.items()}
        if found != wanted or not 0 < drawn <= length or not torch.equal(saved["ids"][:, :width], ids.cpu()):
            raise DamagedFile(f"{path} is damaged (its tensors are not those of these prompts)")
        saved = {name: tensor.to(self.reference.device) for name, tensor in saved.items()}
        hidden = saved.pop("hidden")
        rollout = Rollout(**saved, temperature=self.sampling.temperature)
        return rollout, self.reference.get_output_embeddings()(hidden)

    def _path(self, ids: torch.Tensor, mask: torch.Tensor, seeds: list[int]) -> Path | None:
        """Return the file for all that the bits depend on: the policy, tokens, noise, sampling, CPU, threads.

        Without a cache folder there is none.
        """
        try:
            folder = cache_dir() / "reference"
        except ValueError as error:
            warnings.warn(f"{error}; the reference's side of the evaluation is not saved", stacklevel=2)
            return None
        facts: dict[str, Any] = {
            "layout": 6,
            "reference": self.identity,
            "prompts": [ids.tolist(), mask.tolist()],
            "settings": [seeds, *vars(self.sampling).values()],
            "machine": [torch.__version__, torch.backends.cpu.get_cpu_capability(), torch.get_num_threads()],
            "device": str(self.reference.device),
        }
        key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
        return folder / f"{key[:32]}.safetensors"
