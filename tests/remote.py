"""Tasks that a worker makes again (functions of a module, as `Task.rebuild` wants them), and executors of our own."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import tiny
import torch

from warp_nb.runs.jobs import ALONE, Job
from warp_nb.tasks.task import Task


class Mortal:
    """`opinion`, but the first process at its third call, of all that know `marker`, is killed there."""

    __name__ = "opinion"

    def __init__(self, marker: Path) -> None:
        self.marker, self.calls = marker, 0

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        self.calls += 1
        if self.calls == 3 and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return tiny.opinion(prompts, completions)


def opinion(device: str) -> Task:
    """The tiny task as it is."""
    return tiny.task(rebuild=opinion)


def mortal(device: str, marker: Path) -> Task:
    """The tiny task, its reward deadly once."""
    return tiny.task(reward=Mortal(marker), rebuild=partial(mortal, marker=marker))


def thread_count(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """torch's number of threads: what the history then shows of the worker."""
    return [float(torch.get_num_threads())] * len(completions)


def counting(device: str) -> Task:
    """The tiny task, its reward the number of threads."""
    return tiny.task(reward=thread_count, rebuild=counting)


def process_id(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """The number of the process: what the history then shows of the worker."""
    return [float(os.getpid())] * len(completions)


def identified(device: str) -> Task:
    """The tiny task, its reward the number of the process."""
    return tiny.task(reward=process_id, rebuild=identified)


def refused(device: str) -> Task:
    """No task at all."""
    raise LookupError(f"rebuild was called for {device}")


HELD: list[bool] = []
"""Whether this process's lock was held, at every call of `lonely`."""


def lonely(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    """Constant; notes whether the job that calls it keeps the others out."""
    HELD.append(ALONE.locked())
    return [1.0] * len(completions)


def alone(device: str) -> Task:
    """The tiny task, its reward `lonely`."""
    return tiny.task(reward=lonely, rebuild=alone)


class Inline(Executor):
    """Does every job at once in this process, through pickle, and keeps what went in and came out."""

    def __init__(self) -> None:
        self.sent: list[bytes] = []
        self.returned: list[Any] = []

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        future: Future[Any] = Future()
        self.sent.append(pickle.dumps((function, args, kwargs)))
        function, args, kwargs = pickle.loads(self.sent[-1])
        try:
            self.returned.append(function(*args, **kwargs))
            future.set_result(self.returned[-1])
        except Exception as error:
            future.set_exception(error)
        return future


class Commands(Executor):
    """Every job as a command of its own, as `srun` would start it: the class of docs/scaling.md."""

    def __init__(self, *prefix: str) -> None:
        self.prefix, self.threads = prefix, ThreadPoolExecutor()

    def submit(self, work: Any, job: Job, /) -> Future[Any]:  # type: ignore[override]
        where = [job.folder, str(job.i), str(job.m)]
        command = [*self.prefix, sys.executable, "-m", "warp_nb", "job", *where, "--task", "small"]
        return self.threads.submit(subprocess.run, command, check=True)
