"""A trained policy leaves the program: as a folder that transformers loads, with a model card, or to the hub."""

from __future__ import annotations

import copy
import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb.algorithm.merge import Weights, load_
from warp_nb.config import WarpConfig
from warp_nb.files import (
    DamagedFile,
    compare_sha256,
    file_sha256,
    fingerprint,
    new_folder,
    read_record,
    write_json,
    write_text,
)
from warp_nb.paths import expanded
from warp_nb.runs.merge_inputs import check_out
from warp_nb.runs.model_card import Checked, Evaluated, model_card
from warp_nb.tasks.isolation import quiet
from warp_nb.tasks.task import Task
from warp_nb.tasks.text import begin_ids, end_ids, pad_id

if TYPE_CHECKING:
    from transformers import PreTrainedModel

RECORD = "warp.json"
"""File of a saved policy: the fingerprint of its weights and the sha256 of each other file but the card."""
CARD = "README.md"


@dataclass(frozen=True, kw_only=True)
class TrainedPolicy:
    """Weights that a training made, with all that a saved folder says of them.

    Args:
        weights: by the names of the policy's parameters.
        task: θ_sft, its tokenizer, the rewards and prompts.
        point: in words, which weights these are.
        config: configuration of the training; None if it is unknown.
        eta: argument of `WarpResult.save` that gives these weights.
        evaluation: an `Evaluation` of these weights; None if there is none.
        checks: as `run_checks` returns them; None if there are none.
    """

    weights: Weights
    task: Task
    point: str
    config: WarpConfig | None = None
    eta: float | None = None
    evaluation: Evaluated | None = None
    checks: Sequence[Checked] | None = None

    def model(self) -> PreTrainedModel:
        """Return a copy of θ_sft with these weights, in eval mode."""
        policy = copy.deepcopy(self.task.policy).eval()
        load_(policy, self.weights)
        return policy

    def card(self) -> str:
        """Return the model card, Markdown with YAML at its top."""
        found = model_card(
            self.task,
            self.point,
            config=self.config,
            eta=self.eta,
            evaluation=self.evaluation,
            checks=self.checks,
        )
        return str(found)

    def save(self, folder: str | Path) -> Path:
        """Write the policy to a new folder and return its path.

        The folder has weights (safetensors), configuration, generation config, tokenizer and a model card
        (README.md). `transformers.pipeline("text-generation", folder)` loads it. It is there when it is complete.

        Args:
            folder: a folder that does not exist or is empty.

        Raises:
            ValueError: it is a file or holds files, which are never replaced.
        """
        path = expanded(folder)
        check_out(path)
        with new_folder(path) as temporary:
            self._write(temporary)
        return path

    def push_to_hub(self, repo_id: str, *, private: bool | None = None, **settings: Any) -> str:
        """Upload the files that `save` writes to the hub, as one commit; return the commit's address.

        Args:
            repo_id: name of the repository, which is made if it does not exist, e.g. "me/warp".
            private: whether a new repository is private; None: as the account or organisation has it.
            settings: keywords of `huggingface_hub.upload_folder`, e.g. token, revision, create_pr, commit_message.

        Raises:
            ValueError: the hub allows no such name.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.utils import validate_repo_id

        validate_repo_id(repo_id)
        with tempfile.TemporaryDirectory() as scratch:
            folder = self.save(Path(scratch) / "policy")
            api = HfApi(token=settings.pop("token", None))
            api.create_repo(repo_id, private=private, exist_ok=True)
            message = {"commit_message": "Upload a policy trained by WARP"}
            return str(api.upload_folder(repo_id=repo_id, folder_path=folder, **(message | settings)))

    def keep(self, folder: Path) -> None:
        """Write the policy to a folder of `out_dir`; the same weights are left as they are, others are replaced."""
        found = fingerprint(self.weights)
        if not is_whole(folder, found):
            with new_folder(folder, replace=True) as temporary:
                self._write(temporary)

    def keep_card(self, folder: Path) -> None:
        """Write the model card anew, where something has been measured since the policy was saved."""
        write_text(folder / CARD, self.card())

    def _write(self, folder: Path) -> None:
        """Write all files; the record last."""
        policy = self.model()
        policy.generation_config = generation_settings(self.task, self.config)
        write_weights(policy, folder)
        self.task.tokenizer.save_pretrained(folder)
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        for path in files:
            settle(path, folder.stat().st_mode & 0o666)
        sums = {path.relative_to(folder).as_posix(): file_sha256(path) for path in files}
        write_text(folder / CARD, self.card())
        write_json(folder / RECORD, {"weights": fingerprint(self.weights), "sha256": sums})


def point_of_front(eta: float) -> str:
    """Say which weights a point of the front has."""
    return f"The point (1 − η) θ_sft + η θ_slerp of the front, at η = {eta:g}."


def write_weights(policy: PreTrainedModel, folder: Path) -> None:
    """Write the weights (safetensors) with configuration and generation config."""
    with quiet():
        policy.save_pretrained(folder)


def generation_settings(task: Task, config: WarpConfig | None) -> Any:
    """Return the generation config that samples as training and evaluation do: the full distribution, any end token.

    Stop strings are not in it, because `generate` takes them only with a tokenizer, which a pipeline does not pass.
    """
    from transformers import GenerationConfig

    begin = begin_ids(task.tokenizer)
    length = {} if config is None else {"max_new_tokens": config.max_new_tokens}
    if task.min_new_tokens:
        length["min_new_tokens"] = task.min_new_tokens
    return GenerationConfig(
        do_sample=True,
        temperature=1.0 if config is None else config.temperature,
        top_k=0,
        top_p=1.0,
        bos_token_id=begin[0] if begin else None,
        eos_token_id=list(end_ids(task.tokenizer, task.policy)) or None,
        pad_token_id=pad_id(task.tokenizer, task.policy),
        **length,
    )


def settle(path: Path, mode: int) -> None:
    """Give a file the permissions that the umask gives, which safetensors does not, and wait for the disk."""
    path.chmod(mode)
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def is_whole(folder: Path, weights: str) -> bool:
    """Return whether a folder holds a saved policy with weights of this fingerprint, and all of its files unchanged."""
    try:
        record = read_record(folder / RECORD)
        if record["weights"] != weights:
            return False
        compare_sha256(folder, record["sha256"])
    except (FileNotFoundError, DamagedFile, KeyError, TypeError, AttributeError):
        return False
    return True
