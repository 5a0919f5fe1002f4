"""Weights on disk: safetensors, written atomically, tied tensors once."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors.torch import load_file, save_file

from warp_nb.average import StateDict, check_same, first_names, tied_to

if TYPE_CHECKING:
    import torch


def snapshot(module: torch.nn.Module) -> StateDict:
    """A detached copy of a module's state dict, on the CPU, ties kept as ties."""
    state = module.state_dict()
    copies = {name: state[name].detach().cpu().clone() for name in first_names(state).values()}
    return {name: copies[source] for name, source in tied_to(state).items()}


def save_weights(path: Path, state: StateDict) -> None:
    """Write the distinct tensors of `state` to `path` (temporary name, fsync, rename)."""
    temporary = path.with_name(f".{path.name}.new")
    save_file({name: state[name].contiguous() for name in first_names(state).values()}, temporary)
    with open(temporary, "rb") as handle:
        os.fsync(handle.fileno())
    os.replace(temporary, path)


def load_weights(path: Path, like: StateDict) -> StateDict:
    """Read what `save_weights` wrote, with the ties of `like` restored.

    Raises ValueError when names or shapes differ from `like`.
    """
    stored = load_file(path)
    full = {name: stored[source] for name, source in tied_to(like).items() if source in stored}
    check_same(like, full)
    return full
