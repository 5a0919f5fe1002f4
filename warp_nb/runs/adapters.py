"""LoRA adapters as task vectors: scale * B @ A of every module, never A and B apart, made slice by slice."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from warp_nb.algorithm.merge import wide
from warp_nb.files import read_record
from warp_nb.runs.weight_files import INDEX, Checkpoint, Stored, existing_folder, header_of
from warp_nb.tasks.lora import ADAPTER_CONFIG, ADAPTER_WEIGHTS, lora_faults

LORA_FACTOR = re.compile(r"base_model\.model\.(.+)\.lora_([AB])\.weight")
MERGE_FIRST = (
    "merge it into its base with PEFT's merge_and_unload(), save that with save_pretrained, and pass that folder"
)


class Adapter:
    """A PEFT folder with LoRA factors of BASE; its task vector is scale * B @ A, made a slice at a time."""

    def __init__(self, folder: Path, base: Checkpoint) -> None:
        self.folder, self.config = existing_folder(folder), read_record(folder / ADAPTER_CONFIG)
        check_lora(folder, self.config)
        path = folder / ADAPTER_WEIGHTS
        if not path.is_file():
            raise ValueError(f"{folder} holds no {ADAPTER_WEIGHTS} (pickles are not read); save it again by PEFT")
        self.paths, self.tensors = [path], header_of(path)[1]
        modules = self.modules
        strange = sorted(f"{name}.weight" for name in modules if f"{name}.weight" not in base.names)
        if strange:
            raise ValueError(
                f"{folder} is an adapter of another base: {base.folder} has no untied {', '.join(strange[:5])}; "
                f"pass the base that adapter_config.json names, {self.config.get('base_model_name_or_path')}"
            )
        shapes = {name: base.tensors[f"{name}.weight"].shape for name in modules}
        turned = self.turned(base, shapes)
        self.factors = {f"{name}.weight": (*modules[name], self.scale(name), turned[name]) for name in modules}
        self._loaded: tuple[str, Tensor, Tensor] | None = None

    @cached_property
    def modules(self) -> dict[str, tuple[Stored, Stored]]:
        """Return the factors (A [r, in], B [out, r]) by the module's name in BASE."""
        found: dict[str, dict[str, Stored]] = {}
        for name, stored in self.tensors.items():
            factor = LORA_FACTOR.fullmatch(name)
            if factor is None or len(stored.shape) != 2 or stored.dtype == torch.uint8:
                raise ValueError(
                    f"{self.folder} holds {name} {stored.shape}, no factor of a linear layer; {MERGE_FIRST}"
                )
            found.setdefault(factor[1], {})[factor[2]] = stored
        bad = [name for name, pair in found.items() if len(pair) < 2 or pair["A"].shape[0] != pair["B"].shape[1]]
        if bad or not found:
            raise ValueError(
                f"{self.folder} lacks factors A [r, in] and B [out, r] of {bad[:5]}; save it again by PEFT"
            )
        return {name: (pair["A"], pair["B"]) for name, pair in found.items()}

    def scale(self, module: str) -> float:
        """Return lora_alpha / r, or lora_alpha / sqrt(r) with use_rslora, of a module.

        Raises:
            ValueError: the stored factors are of another rank than adapter_config.json says.
        """
        rank, said = self.modules[module][0].shape[0], self._of_module("rank_pattern", "r", module)
        if rank != said:
            raise ValueError(f"{self.folder} says rank {said} of {module}, and its factors have {rank}; save it again")
        alpha = self._of_module("alpha_pattern", "lora_alpha", module)
        return float(alpha) / (math.sqrt(rank) if self.config.get("use_rslora") else rank)

    def _of_module(self, pattern: str, default: str, module: str) -> Any:
        """Look a setting up as PEFT does: the first pattern that ends the module's name, else the default."""
        for key, value in (self.config.get(pattern) or {}).items():
            if re.match(rf"(.*\.)?({key})$", module):
                return value
        return self.config.get(default, 8)

    def turned(self, base: Checkpoint, shapes: Mapping[str, tuple[int, ...]]) -> dict[str, bool]:
        """Return which modules store [in, out] (GPT-2's Conv1D): by shape, a square one by fan_in_fan_out.

        Raises:
            ValueError: a product fits its module in neither way, or the setting contradicts a module that tells.
        """
        given, found = bool(self.config.get("fan_in_fan_out")), {}
        for name, (a, b) in self.modules.items():
            product = (b.shape[0], a.shape[1])
            if shapes[name] not in (product, product[::-1]):
                raise ValueError(
                    f"{self.folder} is an adapter of another base: {name}.weight is {shapes[name]} in {base.folder}, "
                    f"the product of the factors is {product}; pass the base that the adapter was trained on"
                )
            found[name] = given if product == product[::-1] else shapes[name] != product
        square = [name for name in found if shapes[name] == shapes[name][::-1]]
        if square and set(found.values()) != {given}:
            raise ValueError(
                f"{self.folder} says fan_in_fan_out: {str(given).lower()}, which not all of its modules follow, so "
                f"that nobody can tell how the square {square[0]} is stored; {MERGE_FIRST}"
            )
        return found

    def delta(self, name: str, start: Tensor, first: int, last: int) -> Tensor:
        """Return the elements [first, last) of scale * B @ A in fp32 or better; zeros where it changes nothing."""
        if name not in self.factors:
            return torch.zeros_like(start)
        left, right = self._factors_of(name)
        above, width = first // right.shape[1], right.shape[1]
        rows = left[above : -(-last // width)] @ right
        return rows.flatten()[first - above * width : last - above * width]

    def _factors_of(self, name: str) -> tuple[Tensor, Tensor]:
        """Return two factors whose product is the task vector as it is stored; those of one module are in memory."""
        if self._loaded is None or self._loaded[0] != name:
            *stored, scale, turned = self.factors[name]
            a, b = (wide(one.read().view(one.shape)) for one in stored)
            self._loaded = (name, a.T * scale, b.T) if turned else (name, b * scale, a)
        return self._loaded[1:]


def check_lora(folder: Path, config: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the setting, unless an adapter's task vector is scale * B @ A of BASE's own modules."""
    faults = lora_faults(config)
    if faults:
        raise ValueError(f"{folder} is no plain LoRA adapter ({'; '.join(faults)}); {MERGE_FIRST}")


def open_run(folder: Path, base: Checkpoint) -> Checkpoint | Adapter:
    """Open a run: an adapter of `base`, or a full checkpoint.

    Raises:
        ValueError: it is neither, or both.
    """
    if not (existing_folder(folder) / ADAPTER_CONFIG).is_file():
        return Checkpoint(folder)
    if (folder / INDEX).is_file() or (folder / "model.safetensors").is_file():
        raise ValueError(f"{folder} holds an adapter and a full model; move {ADAPTER_CONFIG} or the model out of it")
    return Adapter(folder, base)
