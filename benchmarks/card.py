"""The CUDA card that rows are measured on, as a side that imports no more than torch."""

from __future__ import annotations

from typing import Any

import torch

from benchmarks.sides import Turns


def card(turns: Turns, *, device: str) -> None:
    """Run the side: name, memory and CUDA version of the device.

    Raises:
        RuntimeError: torch sees no CUDA device.
    """
    found: dict[str, Any] = {"device": device, "gpu": "no card, a trial on the CPU", "gpu_memory_gb": 0, "cuda": None}
    if device.startswith("cuda"):
        if not torch.cuda.is_available():
            raise RuntimeError(f"device {device}, but this torch ({torch.__version__}) sees no CUDA device")
        memory = torch.cuda.get_device_properties(0).total_memory
        found |= {"gpu": torch.cuda.get_device_name(), "gpu_memory_gb": round(memory / 1e9), "cuda": torch.version.cuda}
    turns.next(**found)
