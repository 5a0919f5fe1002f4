"""Isolation of a TRL trainer: no output of the libraries, one progress bar, and the caller's state restored."""

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
    """Silence the warnings, log lines and bars of transformers in the block; restore its verbosity after it."""
    with warnings.catch_warnings(action="ignore"):  # tqdm warns at import where ipywidgets is missing
        import transformers

    log = transformers.logging
    verbosity, bar = log.get_verbosity(), log.is_progress_bar_enabled()
    log.set_verbosity_error()
    log.disable_progress_bar()
    try:
        with warnings.catch_warnings(action="ignore"):
            yield
    finally:
        log.set_verbosity(verbosity)
        if bar:
            log.enable_progress_bar()


@contextmanager
def quiet_datasets() -> Iterator[None]:
    """Hide the bars of `datasets` in the block, as before after it; only a training imports that library."""
    import datasets

    hidden = datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if not hidden:
            datasets.enable_progress_bars()


@contextmanager
def undisturbed() -> Iterator[None]:
    """Restore what a trainer changes: random states, number of threads, environment variables, verbosity."""
    python, numpy = random.getstate(), np.random.get_state()  # noqa: NPY002  the legacy state is the one trainers seed
    threads, environment = torch.get_num_threads(), {**os.environ}
    try:
        with torch.random.fork_rng(), quiet(), quiet_datasets():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)  # noqa: NPY002
        torch.set_num_threads(threads)
        for name in set(os.environ) - set(environment):
            del os.environ[name]
        os.environ.update(environment)


def fit(
    trainer: Any, settings: Any, model: Any, data: Any, *, tokenizer: Any, title: str, bar: bool, **given: Any
) -> None:
    """Train `model` in place with a TRL trainer on tokenised `data`; leave no file.

    Args:
        trainer: the trainer's class.
        settings: the class of its arguments; `given` are passed to it. `bar` shows a progress bar called `title`.
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
    """Return the versions of the libraries that change the trained weights."""
    from importlib.metadata import version

    return {name: version(name) for name in ("torch", "transformers", "trl")}
