"""What stands around a trainer of TRL: silence, one progress bar, and the caller's state given back."""

from __future__ import annotations

import os
import random
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch


@contextmanager
def quiet() -> Iterator[None]:
    """No warnings, log lines or bars of the libraries inside; their verbosity comes back after."""
    with warnings.catch_warnings(action="ignore"):  # tqdm warns at import where ipywidgets is missing
        import datasets
        import transformers

    log = transformers.logging
    verbosity, bar, data_bar = log.get_verbosity(), log.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()
        if not data_bar:
            datasets.enable_progress_bars()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Give the caller back what a trainer changes: random states, number of threads, environment."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  the legacy state is the one trainers seed
    threads, environment = torch.get_num_threads(), {**os.environ}
    try:
        with torch.random.fork_rng(), quiet():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_num_threads(threads)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


def fit(
    trainer: Any, settings: Any, model: Any, data: Any, tokenizer: Any, *, title: str, bar: bool, **given: Any
) -> None:
    """Train `model` in place by a trainer of TRL on tokenised `data`; no file is left, `bar` draws one.

    Args:
        trainer: the trainer's class.
        settings: the class of its settings, which get `given`.
    """
    from tqdm import tqdm
    from transformers import PrinterCallback, TrainerCallback

    class Bar(TrainerCallback):
        def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.bar = tqdm(total=state.max_steps, desc=title, leave=False, disable=not bar)

        def on_step_end(self, *args: Any, **kwargs: Any) -> None:
            self.bar.update()

        def on_train_end(self, *args: Any, **kwargs: Any) -> None:
            self.bar.close()

    given |= {"max_length": None, "gradient_checkpointing": False, "dataloader_pin_memory": False}
    given |= {"save_strategy": "no", "logging_strategy": "no", "report_to": "none", "disable_tqdm": True}
    with tempfile.TemporaryDirectory() as scratch:
        chosen = settings(output_dir=scratch, use_cpu=model.device.type == "cpu", **given)
        training = trainer(model, chosen, train_dataset=data, processing_class=tokenizer)
        training.remove_callback(PrinterCallback)
        training.add_callback(Bar())
        training.train()


def trainer_versions() -> dict[str, str]:
    """Libraries whose version changes the trained weights."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "trl")}
