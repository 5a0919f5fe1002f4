"""The inputs of a merge on disk: opened, compared and refused by name before the merge begins."""

from __future__ import annotations

import shutil
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from warp_nb.files import read_record
from warp_nb.runs.adapters import Adapter, open_run
from warp_nb.runs.weight_files import Checkpoint
from warp_nb.tasks.identity import VOLATILE

MAY_DIFFER = VOLATILE - {"architectures"} | {"use_cache", "pad_token_id", "bos_token_id", "eos_token_id"}
"""Entries of config.json that trainers change and that no weight depends on; those of BASE are copied."""
VOCABULARIES = ("vocab.json", "merges.txt", "vocab.txt", "tokenizer.model", "spiece.model", "sentencepiece.bpe.model")
"""Files of tokenizers that have no tokenizer.json."""
COPIED = (
    "config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", *VOCABULARIES,
)  # fmt: skip
"""Files that a merge copies from BASE."""
ROOM = 2**20
"""Bytes of a result beside its weights and what is copied."""


def open_inputs(base: Path, runs: Sequence[Path], out: Path) -> tuple[Checkpoint, list[Checkpoint | Adapter]]:
    """Open BASE and the runs; only headers, configurations, tied heads and whole numbers are read.

    Warns if an adapter was trained on a base of another name.

    Raises:
        ValueError: a folder is no checkpoint, or is of another architecture, tokenizer or base; `out` cannot be used.
        DamagedFile: a file is no sound safetensors or JSON file.
    """
    check_out(out)
    start = Checkpoint(base)
    opened = [open_run(run, start) for run in runs]
    for run in opened:
        check_tokenizer(start.folder, run.folder)
        if isinstance(run, Adapter):
            warn_of_base(start, run)
        else:
            check_config(start, run)
            check_same_tensors(start, run)
    needed = sum(path.stat().st_size for path in start.paths) + ROOM
    above = next(folder for folder in out.absolute().parents if folder.is_dir())
    free = shutil.disk_usage(above).free
    if free < needed:
        raise ValueError(
            f"{above} has {free / 1e9:.2f} GB left and the result needs {needed / 1e9:.2f}; pass another --out"
        )
    return start, opened


def check_out(out: Path) -> None:
    """Raise ValueError unless `out` is missing or an empty folder."""
    if out.is_dir() and any(out.iterdir()):
        raise ValueError(f"{out} is not empty, and nothing in it is replaced; pass a new folder")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; pass a new folder")


def check_config(base: Checkpoint, run: Checkpoint) -> None:
    """Raise ValueError if two configurations differ; an entry that only one of them has is a default written out."""
    faults = config_faults(base.config, run.config)
    if faults:
        raise ValueError(
            f"{run.folder} is another model than {base.folder}: {'; '.join(faults[:5])}; merge runs of one BASE"
        )


def config_faults(base: Mapping[str, Any], run: Mapping[str, Any], above: str = "") -> list[str]:
    """Describe how the entries that both configurations have differ, inner ones too."""
    found = []
    for name in sorted((base.keys() & run.keys()) - MAY_DIFFER):
        mine, other = run[name], base[name]
        if isinstance(mine, dict) and isinstance(other, dict):
            found += config_faults(other, mine, f"{above}{name}.")
        elif mine != other:
            found.append(f"{above}{name} is {mine!r}, BASE's is {other!r}")
    return found


def check_same_tensors(base: Checkpoint, run: Checkpoint) -> None:
    """Raise ValueError unless a run has BASE's tensors, a tied head aside, and equal ones where they are no floats."""
    shapes = [{name: one.tensors[name].shape for name in one.names} for one in (base, run)]
    pairs = {name: [side.get(name, "missing") for side in shapes] for name in sorted({**shapes[0], **shapes[1]})}
    faults = [f"{name} {other} against {mine}" for name, (mine, other) in pairs.items() if mine != other]
    kinds = (
        {name: {one.tensors[name].dtype == torch.uint8 for one in (base, run)} for name in pairs} if not faults else {}
    )
    faults += [f"{name} is quantised in one of them" for name, kind in kinds.items() if len(kind) > 1]
    if faults:
        raise ValueError(
            f"{run.folder} has other tensors than {base.folder}: {'; '.join(faults[:5])}; if it is the same model, "
            f"load both with transformers and save them with save_pretrained"
        )
    whole = [name for name in base.names if base.tensors[name].dtype == torch.uint8]
    other = [name for name in whole if not base.tensors[name].read().equal(run.tensors[name].read())]
    if other:
        raise ValueError(
            f"{run.folder} differs from {base.folder} in {', '.join(other[:5])}, which hold no floats and cannot be "
            f"merged; save both in bfloat16, float16 or float32"
        )


def check_tokenizer(base: Path, run: Path) -> None:
    """Raise ValueError if both folders have a tokenizer and the tokens or their ids differ."""
    for name in ("tokenizer.json", *VOCABULARIES):
        mine, other = run / name, base / name
        if not (mine.is_file() and other.is_file()) or mine.read_bytes() == other.read_bytes():
            continue
        if name != "tokenizer.json":
            raise ValueError(f"{mine} differs from {other}; merge runs that share BASE's tokenizer")
        ours, theirs = (set(vocabulary(path).items()) for path in (mine, other))
        if ours != theirs:
            shown = ", ".join(f"{token!r} {place}" for token, place in sorted(ours ^ theirs, key=str)[:3])
            raise ValueError(
                f"{run} has another tokenizer than {base} ({len(ours ^ theirs)} tokens or ids differ, e.g. {shown}); "
                f"merge runs that share BASE's tokenizer"
            )


def vocabulary(path: Path) -> dict[str, int]:
    """Return token -> id of a tokenizer.json, with the added tokens."""
    record = read_record(path)
    tokens = record.get("model", {}).get("vocab", {})
    if isinstance(tokens, list):  # Unigram: [token, score] in the order of ids
        tokens = {token: place for place, (token, _) in enumerate(tokens)}
    return tokens | {added["content"]: added["id"] for added in record.get("added_tokens", [])}


def warn_of_base(base: Checkpoint, run: Adapter) -> None:
    """Warn if adapter_config.json names another base than the folder of BASE or the model it came from."""
    named = run.config.get("base_model_name_or_path")
    names = {base.folder.name, base.folder.absolute().name, Path(str(base.config.get("_name_or_path", ""))).name}
    if named and Path(named).name not in names:
        warnings.warn(
            f"{run.folder} was trained on {named}, which may be another model than {base.folder}", stacklevel=2
        )
