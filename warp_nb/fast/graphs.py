"""CUDA graphs: a function on fixed tensors is captured once and replayed, so that Python launches no kernels.

What a captured function reads and writes keeps its address, and nothing in it asks the host: no `.item()`, no control
flow on values, no random numbers but those from a tensor. Elsewhere than on CUDA the function itself is called.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

WARM_UPS = 2
"""Calls before the capture: libraries allocate their workspaces at first use."""


class Graph:
    """A function without arguments, captured on CUDA; `replay` repeats it on the present values of its tensors.

    The calls that warm it up change these tensors, so `prepare` sets them before each; set them again before a replay.
    """

    def __init__(
        self, function: Callable[[], Any], device: torch.device, prepare: Callable[[], Any] = lambda: None
    ) -> None:
        self.replay: Callable[[], Any] = function
        if device.type != "cuda":
            return
        beside, own = torch.cuda.Stream(device), torch.cuda.current_stream(device)
        beside.wait_stream(own)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                prepare()
                function()
        own.wait_stream(beside)
        prepare()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            function()
        self.replay = graph.replay
