"""Weights of a checkpoint folder, read slice by slice: safetensors, in one file or in shards.

Files are read with plain reads at the offsets of their headers, not mapped, so that memory holds one slice and no more.
"""

from __future__ import annotations

import json
import math
import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor

from warp_nb.algorithm.merge import wide
from warp_nb.files import DamagedFile, loading, read_record

INDEX = "model.safetensors.index.json"
FLOATS = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
"""Types of weights that are merged, by safetensors' names; what is of another type is copied."""
HEADS = ("lm_head.weight", "embed_out.weight")
"""Ends of the names of an output head, which may be tied to the embedding."""
SPAN = 2**18
"""Elements of a tensor that are in memory at once."""


@dataclass(frozen=True)
class Stored:
    """A tensor in a safetensors file; `start` is its first byte. What is no float is seen as its bytes (uint8)."""

    path: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    count: int

    def read(self, first: int = 0, last: int | None = None) -> Tensor:
        """Return the elements [first, last) of the flattened tensor, all by default.

        Raises:
            DamagedFile: the file ends before the last of them.
        """
        count = (self.count if last is None else last) - first
        if not count:
            return torch.empty(0, dtype=self.dtype)
        content = bytearray(count * self.dtype.itemsize)
        with self.path.open("rb") as file:
            file.seek(self.start + first * self.dtype.itemsize)
            if file.readinto(content) != len(content):
                raise DamagedFile(f"{self.path} ends within a tensor that its header names; copy the file again")
        return torch.frombuffer(content, dtype=self.dtype)


def header_of(path: Path) -> tuple[bytes, dict[str, Stored]]:
    """Return the header of a safetensors file as it stands there, and the tensors in the order of their bytes.

    Raises:
        DamagedFile: it is no sound safetensors file.
    """
    with loading(path, "safetensors"), safe_open(path, "pt"):  # checks the names, types, shapes and offsets
        with path.open("rb") as file:
            size = file.read(8)
            text = file.read(int.from_bytes(size, "little"))
        found = {name: about for name, about in json.loads(text).items() if name != "__metadata__"}
    tensors = {}
    for name, about in sorted(found.items(), key=lambda item: item[1]["data_offsets"]):
        begin, end = about["data_offsets"]
        dtype, shape = FLOATS.get(about["dtype"], torch.uint8), tuple(about["shape"])
        count = math.prod(shape) if about["dtype"] in FLOATS else end - begin
        tensors[name] = Stored(path, dtype, shape, 8 + len(text) + begin, count)
    return size + text, tensors


def weight_paths(folder: Path) -> list[Path]:
    """Return the safetensors files of a checkpoint: the shards of its index, or `model.safetensors`.

    Raises:
        ValueError: there are none, or a shard is missing.
    """
    if (folder / INDEX).is_file():
        with loading(folder / INDEX, "index of shards"):
            names = sorted(set(map(str, read_record(folder / INDEX)["weight_map"].values())))
        missing = [name for name in names if Path(name).name != name or not (folder / name).is_file()]
        if missing or not names:
            raise ValueError(
                f"{folder / INDEX} names {missing[:5] or 'no shards'}, which {folder} lacks; copy them there"
            )
        return [folder / name for name in names]
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    pickles = sorted(path.name for pattern in ("*.bin", "*.pt", "*.pth") for path in folder.glob(pattern))
    found = f"only {', '.join(pickles[:3])}, and pickles are not read" if pickles else "no model.safetensors"
    raise ValueError(f"{folder} holds {found}; save it with model.save_pretrained(folder), which writes safetensors")


def existing_folder(folder: Path) -> Path:
    """Return the folder; raise ValueError unless it is one."""
    if not folder.is_dir():
        raise ValueError(f"{folder} is no folder; pass a folder that model.save_pretrained wrote (not a hub id)")
    return folder


class Checkpoint:
    """A model's folder: its configuration and its tensors by name. A tied head is read where its embedding stands."""

    def __init__(self, folder: Path) -> None:
        self.folder = existing_folder(folder)
        self.paths = weight_paths(folder)
        if not (folder / "config.json").is_file():
            raise ValueError(f"{folder} holds no config.json; save it with model.save_pretrained(folder)")
        self.config = read_record(folder / "config.json")
        stored = [item for path in self.paths for item in header_of(path)[1].items()]
        self.tensors = dict(stored)
        if len(stored) > len(self.tensors):
            raise ValueError(f"{folder} holds a tensor in two of its files; save it again with model.save_pretrained")

    @cached_property
    def tied(self) -> dict[str, str]:
        """Names of a stored head that is tied -> the name of the tensor with the same bits.

        Raises:
            ValueError: config.json says that the head is tied, and no tensor has its bits.
        """
        said = self.config.get("tie_word_embeddings", self.config.get("text_config", {}).get("tie_word_embeddings"))
        found = {}
        for head in (name for name in self.tensors if name.endswith(HEADS) and said is not False):
            twins = (name for name in self.tensors if name != head and self.same(name, head))
            if twin := next(twins, None):
                found[head] = twin
            elif said:
                raise ValueError(
                    f"{self.folder} stores {head}, whose bits no other tensor has, and config.json says "
                    f"tie_word_embeddings: true; load the model with transformers and save it again"
                )
        return found

    def same(self, one: str, other: str) -> bool:
        """Return whether two stored tensors have the same shape and values."""
        a, b = self.tensors[one], self.tensors[other]
        if (a.shape, a.dtype) != (b.shape, b.dtype):
            return False
        return all(a.read(*part).equal(b.read(*part)) for part in spans(a.count))

    @cached_property
    def names(self) -> list[str]:
        """The names of its parameters and buffers, a tied one once, layers in the order of their numbers."""
        return sorted((name for name in self.tensors if name not in self.tied), key=by_number)

    def delta(self, name: str, start: Tensor, first: int, last: int) -> Tensor:
        """Return theta - theta_init of the elements [first, last) of a tensor, in fp32 or better; `start` is wide."""
        policy = wide(self.tensors[name].read(first, last))
        equal = policy.dtype == start.dtype and policy.equal(start)
        return torch.zeros_like(start) if equal else policy - start  # -inf - -inf is NaN


def spans(count: int) -> list[tuple[int, int]]:
    """Return the parts [first, last) of SPAN elements that a tensor of `count` elements is read in."""
    return [(first, min(first + SPAN, count)) for first in range(0, count, SPAN)]


def by_number(name: str) -> list[tuple[int, str]]:
    """Return the key that sorts `layers.2` before `layers.10`."""
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
