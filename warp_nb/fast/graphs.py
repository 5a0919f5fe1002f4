"""CUDA graphs: a function on fixed tensors is captured once and replayed, so that Python launches no kernels.

What a captured function reads and writes keeps its address, and nothing in it asks the host: no `.item()`, no control
flow on values, no random numbers but those from a tensor. Elsewhere than on CUDA the function itself is called.
"""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import cache
from typing import Any

import torch

WARMING = 2
"""Calls before the capture: libraries allocate their workspaces at first use."""


class Graph:
    """A function without arguments, captured on CUDA; `replay` repeats it on the present values of its tensors.

    The calls that warm it up change these tensors, so `prepare` sets them before each; set them again before a replay.
    """

    def __init__(
        self, function: Callable[[], Any], device: torch.device, prepare: Callable[[], Any] = lambda: None
    ) -> None:
        self.replay: Callable[[], Any] = function
        if device.type == "cuda":
            with torch.cuda.device(device):
                self.replay = captured(function, prepare, stream_beside(device))


@cache
def stream_beside(device: torch.device) -> torch.cuda.Stream:
    """Return the one stream on which functions are captured: every stream has workspaces of cuBLAS, megabytes each."""
    return torch.cuda.Stream(device)


def captured(function: Callable[[], Any], prepare: Callable[[], Any], beside: torch.cuda.Stream) -> Callable[[], None]:
    """Warm a function up on the stream `beside`, capture it there, and return the function that replays it."""
    graph, own = torch.cuda.CUDAGraph(), torch.cuda.current_stream()
    beside.wait_stream(own)
    with torch.cuda.stream(beside):
        for _ in range(WARMING):
            prepare()
            function()
        prepare()
    own.wait_stream(beside)
    collects = gc.isenabled()
    gc.disable()  # what a collection frees in between, such as another graph, would spoil the capture
    try:
        with torch.cuda.graph(graph, stream=beside):
            function()
    finally:
        torch.cuda.set_stream(own)  # torch leaves the stream of a capture that failed
        if collects:
            gc.enable()
    return graph.replay
