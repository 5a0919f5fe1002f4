"""What holds for every test: no hub, no display, no bars; the same examples every time.

`pytest --hypothesis-profile=explore` draws others.
"""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import settings

if "PYTEST_XDIST_WORKER" in os.environ:  # processes that share the cores: a thread each
    os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.update(HF_HUB_OFFLINE="1", HF_DATASETS_OFFLINE="1", TOKENIZERS_PARALLELISM="false", MPLBACKEND="Agg")

settings.register_profile("repeatable", derandomize=True)
settings.register_profile("explore")
settings.load_profile("repeatable")

gc.disable()  # while the tests are imported, which makes many objects and hardly any garbage


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip the tests under the marker `gpu` where torch sees no card; `make gpu` fails if one is skipped."""
    import torch  # not before OMP_NUM_THREADS is set

    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="no CUDA device here; `make gpu` runs it on one"))


def pytest_collection_finish() -> None:
    """Leave what the imports made out of every later collection of garbage, which would walk through all of it."""
    gc.enable()
    gc.freeze()
