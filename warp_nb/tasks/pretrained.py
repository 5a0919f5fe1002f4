"""A policy and a tokenizer of one's own, from a folder or the hub: checked by their small files before any weight.

No code of the folder is ever run and no pickle is read.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from warp_nb.files import DamagedFile, read_record
from warp_nb.paths import expanded
from warp_nb.tasks.hub import first_line
from warp_nb.tasks.isolation import quiet

HUB_ID = re.compile(r"[\w-][\w.-]*(/[\w-][\w.-]*)?")
"""A name that the hub would know."""
SMALL_FILES = ("*.json", "*.txt", "*.model", "*.jinja")
"""Configuration and tokenizer, in a repository of the hub."""
WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
VOCABULARY_FILES = (
    "tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "sentencepiece.bpe.model",
    "tekken.json",
)  # fmt: skip


@dataclass(frozen=True)
class Pretrained:
    """A folder of transformers, or a repository of the hub whose small files are here.

    Args:
        source: the folder or the hub id, as transformers takes it.
        folder: where its configuration and tokenizer are.
        files: names of all its files.
        commit: of a repository of the hub; None for a folder.
    """

    source: str
    folder: Path
    files: frozenset[str]
    commit: str | None = None


def pretrained_at(given: str | PathLike[str], what: str, revision: str | None = None) -> Pretrained:
    """Find a folder, or a repository of the hub, of which only the small files are downloaded.

    Args:
        given: path of a folder, or a hub id.
        what: the argument, for messages.
        revision: branch, tag or commit of a hub id.

    Raises:
        ValueError: there is no such folder, and the hub gives no such repository.
    """
    path = expanded(str(given))
    if path.is_dir():
        if revision is not None:
            raise ValueError(f"revision = {revision!r} is for a hub id, and {what} = {str(given)!r} is a folder")
        return Pretrained(str(path.absolute()), path.absolute(), frozenset(file.name for file in path.iterdir()))
    if path.exists() or not HUB_ID.fullmatch(str(given)):
        fault = "is a file" if path.exists() else "is no folder here"
        raise ValueError(f"{what} = {str(given)!r} {fault}; pass the folder that save_pretrained wrote, or a hub id")
    return from_hub(str(given), what, revision)


def from_hub(repo: str, what: str, revision: str | None) -> Pretrained:
    """Download a repository's small files, or take them from the local hub cache (see `pretrained_at`)."""
    from huggingface_hub import HfApi, snapshot_download

    try:
        with quiet():
            folder = Path(snapshot_download(repo, revision=revision, allow_patterns=list(SMALL_FILES)))
    except Exception as error:  # the hub's client passes on its transport's errors, of no common kind
        raise ValueError(
            f"{what} = {repo!r} is neither a folder here nor a model that the hub gives ({type(error).__name__}: "
            f"{first_line(error)}); pass the folder that save_pretrained wrote, or a hub id"
        ) from error
    try:
        files = HfApi().list_repo_files(repo, revision=folder.name)
    except Exception:  # as above; without the hub there is what the local cache holds
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*")]
    return Pretrained(repo, folder, frozenset(files), folder.name)


def check_pretrained(found: Pretrained, what: str) -> None:
    """Check that a model can be loaded: configuration, architecture and weights, by the names of its files.

    Raises:
        ValueError: there is no configuration, the architecture is no causal language model of transformers, a
            classifier, or comes with code of its own, the weights are quantised, a pickle only, or missing.
    """
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES as KNOWN

    named = f"{what} = {found.source!r}"
    if "config.json" not in found.files:
        adapter = "adapter_config.json" in found.files
        fault = "is an adapter of PEFT without its base" if adapter else "has no config.json"
        remedy = "pass the model: AutoPeftModelForCausalLM" if adapter else "pass the folder that save_pretrained wrote"
        raise ValueError(f"{named} {fault}; {remedy}")
    try:
        about = read_record(found.folder / "config.json")
    except DamagedFile as error:
        raise ValueError(f"{named}: {error}; put the file back") from error
    if about.get("model_type") not in KNOWN:
        fault = f"is of model_type {about.get('model_type')!r}, no causal language model of transformers"
        if "auto_map" in about:
            fault = f"needs code of its own ({', '.join(map(str, about['auto_map'].values()))}), which is never run"
        raise ValueError(f"{named} {fault}; pass another one, or a model that you have loaded yourself")
    if any(str(name).endswith("Classification") for name in about.get("architectures") or []):
        raise ValueError(f"{named} is a classifier ({about['architectures'][0]}); pass a causal language model")
    if "quantization_config" in about:
        raise ValueError(f"{named} has quantised weights, which cannot be trained; pass the model they were made from")
    if not found.files.intersection(WEIGHTS):
        pickles = sorted(name for name in found.files if name.endswith((".bin", ".pt", ".pth", ".ckpt")))
        fault = f"has its weights as a pickle only ({pickles[0]}), which is never read" if pickles else "has no weights"
        raise ValueError(
            f"{named} {fault}; it must hold model.safetensors: model.save_pretrained(folder) of transformers writes it"
        )


def load_model(found: Pretrained, what: str, device: str) -> Any:
    """Load a checked model in fp32 and eval mode from safetensors.

    Raises:
        ValueError: the loader fails, or weights of the causal language model are missing, such as its head.
    """
    from transformers import AutoModelForCausalLM

    named = f"{what} = {found.source!r}"
    try:
        with quiet():
            loaded: Any = AutoModelForCausalLM.from_pretrained(
                found.source, revision=found.commit or "main", dtype=torch.float32, use_safetensors=True,
                trust_remote_code=False, output_loading_info=True,
            )  # fmt: skip
    except Exception as error:  # libraries pass on their parsers' errors, of no common kind
        raise ValueError(f"{named} does not load ({type(error).__name__}: {str(error)[:300]}); pass another") from error
    model, about = loaded
    missing = sorted(about["missing_keys"])
    if missing:
        raise ValueError(
            f"{named} lacks {len(missing)} weights of {type(model).__name__}, e.g. {missing[0]}, which would begin at "
            f"random; pass a causal language model, with its head"
        )
    return model.to(device).eval()


def load_tokenizer(found: Pretrained, what: str) -> Any:
    """Load a tokenizer by its files.

    Raises:
        ValueError: there is none, or the loader fails, e.g. because it needs code of its own.
    """
    from transformers import AutoTokenizer

    named = f"{what} = {found.source!r}"
    if not found.files.intersection(VOCABULARY_FILES):
        raise ValueError(
            f"{named} has no tokenizer ({', '.join(VOCABULARY_FILES[:3])}, …); pass tokenizer=, or save it there: "
            f"tokenizer.save_pretrained(folder)"
        )
    try:
        with quiet():
            return AutoTokenizer.from_pretrained(found.folder, trust_remote_code=False)
    except Exception as error:  # as in `load_model`
        raise ValueError(
            f"{named} has a tokenizer that does not load ({type(error).__name__}: {str(error)[:300]}); it must load "
            f"without code of its own: pass tokenizer="
        ) from error
