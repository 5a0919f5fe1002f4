"""A run (i, m) as a job of a folder: in this process, in a pool of processes, on Dask, as a command.

A job reads `config.json` and θ_init of the folder and leaves one file, `run_{i}_{m}.safetensors`: weights, history and
facts, with a sha256 of all of them. Weights never travel through the executor: both sides meet in the folder. A job
whose result is there returns at once, and two workers at one job leave one whole result, so it may be sent again at
any time.
"""

from __future__ import annotations

import argparse
import json
import math
import pickle
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import current_process, get_context
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from warp_nb.algorithm.merge import Weights
from warp_nb.config import WarpConfig
from warp_nb.files import DamagedFile, fingerprint, json_values, seal, unseal
from warp_nb.runs.checkpoint import Checkpoints
from warp_nb.runs.folder import differences, task_identity
from warp_nb.runs.training import FAST, OnStep, Parts, RunResult, train
from warp_nb.tasks.prepared import LOADERS, load_task
from warp_nb.tasks.task import Task

ALONE = Lock()
"""One job at a time in a process: torch's number of threads belongs to the process."""


@dataclass(frozen=True)
class Job:
    """Run (i, m) of a folder, small enough to be sent anywhere.

    Args:
        folder: where its files are.
        i, m: iteration and run, from 1.
        start: fingerprint of the θ_init where it begins; a job of another start is another job.
        device: where a worker makes the task.
        rebuild: `Task.rebuild`, pickled; empty where the job does not leave its process.
    """

    folder: str
    i: int
    m: int
    start: str
    device: str = "cpu"
    rebuild: bytes = b""

    @property
    def result(self) -> Path:
        """Weights θ^m, history and facts."""
        return Path(self.folder) / f"run_{self.i}_{self.m}.safetensors"

    @property
    def checkpoints(self) -> Checkpoints:
        """Where the run is between two steps."""
        return Checkpoints(self.result.with_suffix(".state.safetensors"), self.start)


def start_file(folder: Path, i: int) -> Path:
    """θ_init of iteration i, for workers."""
    return folder / f"init_{i}.safetensors"


# One job


def finished(job: Job) -> RunResult | None:
    """The job's result, or None when it has to be made. Warns when the file is damaged.

    Beside a result there are no checkpoints: those of a process that was killed before it deleted them are deleted.
    """
    try:
        weights, record = unseal(job.result)
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        warnings.warn(f"{error}; the run is made again", stacklevel=2)
        return None
    if record["start"] != job.start:
        return None
    job.checkpoints.clear()
    facts = {name: math.nan if value is None else value for name, value in record["facts"].items()}
    return RunResult(weights, record["history"], facts)


def make(
    job: Job, init: Weights, config: WarpConfig, task: Task, *, parts: Parts = FAST, on_step: OnStep = lambda row: None
) -> RunResult:
    """Train the run from its last checkpoint or from its start, and write its result."""

    def keep(at: int | str, weights: Weights) -> None:
        seal(SnapshotFiles.path(Path(job.folder), (job.i, job.m, at)), weights, at)

    checkpoints = job.checkpoints
    with torch_threads(config.threads):
        settings = {"parts": parts, "on_step": on_step, "checkpoints": checkpoints, "keep": keep}
        result = train(config, task, init, job.i, job.m, **settings)
    record = {"start": job.start, "history": result.history, "facts": result.facts}
    seal(job.result, result.weights, json_values(record))
    checkpoints.clear()
    return result


class SnapshotFiles(Mapping[tuple[int, int, int | str], Weights]):
    """(i, m, step) -> weights of run (i, m) after that step; (i, m, "anchor") -> its final anchor. Read when asked."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @staticmethod
    def path(folder: Path, key: tuple[int, int, int | str]) -> Path:
        """The file of a snapshot."""
        i, m, at = key
        return folder / f"run_{i}_{m}.at-{at}.safetensors"

    def __getitem__(self, key: tuple[int, int, int | str]) -> Weights:
        try:
            return unseal(self.path(self.folder, key))[0]
        except FileNotFoundError:
            raise KeyError(key) from None

    def __iter__(self) -> Iterator[tuple[int, int, int | str]]:
        names = [path.name.removesuffix(".safetensors") for path in self.folder.glob("run_*.at-*.safetensors")]
        for run, _, at in (name.partition(".at-") for name in names):
            _, i, m = run.split("_")
            yield int(i), int(m), int(at) if at.isdigit() else at

    def __len__(self) -> int:
        return sum(1 for _ in self)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """`count` CPU threads of torch inside (0: as many as it has), the former number after."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# In a worker


def work(job: Job) -> None:
    """Do `job` in this process with the task rebuilt here; this is what an executor is given.

    Raises:
        RuntimeError: the process was forked, θ_init is missing or is not the job's, or the rebuilt task is not the
            one in `config.json`.
        ValueError: the GPU asked for is not here.
    """
    if type(current_process()).__name__ == "ForkProcess":
        raise RuntimeError("this worker was forked, which OpenMP does not survive; pass process_pool(workers)")
    with ALONE:
        if finished(job) is not None:
            return
        init = load_start(job)
        agreed = json.loads((Path(job.folder) / "config.json").read_text(encoding="utf-8"))
        device = round_robin(job.device, job.m - 1, torch.cuda.device_count())
        task, facts = rebuilt(job.rebuild, device)
        differing = differences(agreed, facts)
        if differing:
            raise RuntimeError(
                f"the task rebuilt in this worker is not the one of {job.folder} ({differing}); rebuild must make "
                f"the same policy, prompts and reward again: share WARP_NB_CACHE, install the same versions"
            )
        make(job, init, WarpConfig(**{name: agreed[name] for name in WarpConfig.model_fields}), task)


def load_start(job: Job) -> Weights:
    """θ_init of the job's iteration. Raises RuntimeError where it is missing, damaged or not the job's."""
    path = start_file(Path(job.folder), job.i)
    try:
        init, _ = unseal(path)
    except FileNotFoundError:
        raise RuntimeError(f"{path} is not here; pass an out_dir on a disk that all workers share") from None
    found = fingerprint(init)
    if found != job.start:
        raise RuntimeError(
            f"{path} has fingerprint {found}, run {job.m} was to begin at {job.start}; "
            f"give every call of warp() a folder of its own, and let no one else write there"
        )
    return init


@lru_cache(maxsize=1)
def rebuilt(rebuild: bytes, device: str) -> tuple[Task, dict[str, Any]]:
    """The task and its identity, cached for the worker's next job on this device."""
    task = pickle.loads(rebuild)(device)
    return task, task_identity(task)


def round_robin(device: str, place: int, count: int) -> str:
    """The device of an iteration's job number `place` (from 0) on a machine with `count` CUDA devices.

    `cuda` becomes cuda:{place % count}; another device, `cuda:1` too, stays.

    Raises:
        ValueError: the device is `cuda` and there is none.
    """
    if device != "cuda":
        return device
    if not count:
        raise ValueError("the task lies on cuda and this worker sees no CUDA device; give it one, or load it on cpu")
    return f"cuda:{place % count}"


# In the caller


def process_pool(workers: int) -> ProcessPoolExecutor:
    """`workers` processes of this machine, started by spawn, with torch's threads shared among them.

    A script that calls this needs `if __name__ == "__main__":`, since spawn imports it again.

    Example:
        with process_pool(2) as pool:
            warp(config, task, folder, executor=pool)
    """
    share = max(1, torch.get_num_threads() // max(1, workers))
    return ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (share,))


def default_threads(executor: Executor | None, runs: int) -> int:
    """CPU threads of a run where `threads` is 0: torch's own number; with an executor its share, 1/`runs`."""
    return max(1, torch.get_num_threads() // (runs if executor is not None else 1))


def device_name(device: torch.device) -> str:
    """The device as `load_task` takes it; the first GPU is `cuda`, which is what `.to("cuda")` leaves."""
    return str(device) if device.type == "cuda" and device.index else device.type


def pickled_rebuild(executor: Executor | None, task: Task) -> bytes:
    """`task.rebuild` for the workers of `executor`; empty without one.

    Raises:
        ValueError: it is no executor of processes, or the task cannot be rebuilt elsewhere.
    """
    if executor is None:
        return b""
    if not isinstance(executor, Executor) or isinstance(executor, ThreadPoolExecutor):
        raise ValueError(
            f"executor must be a concurrent.futures.Executor of processes, got {type(executor).__name__} (threads "
            f"share torch's settings, so one run would wait for the other); pass process_pool(workers), or Dask's "
            f"client.get_executor(pure=False, retries=2)"
        )
    remedy = "pass Task(…, rebuild=f), f(device) -> Task a function of a module that the workers can import"
    if task.rebuild is None:
        raise ValueError(f"task {task.name!r} has no rebuild and the executor's workers must make it anew; {remedy}")
    try:
        recipe = pickle.dumps(task.rebuild)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"rebuild of task {task.name!r} does not pickle ({error}); {remedy}") from error
    if b"__main__" in recipe:
        raise ValueError(f"rebuild of task {task.name!r} is defined in the script or notebook itself; {remedy}")
    return recipe


def send(executor: Executor, jobs: Sequence[Job]) -> Iterator[Job]:
    """Submit all jobs; each comes back when it is done, in whatever order.

    A job's error is raised here, and those that have not begun are cancelled.

    Raises:
        BrokenExecutor: the executor has lost a worker and does not start another.
    """
    futures = {executor.submit(work, job): job for job in jobs}
    try:
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenExecutor as error:
        remedy = "finished runs are saved: call warp() again with a new pool and the same out_dir"
        raise BrokenExecutor(f"a worker died ({error}); {remedy}") from error
    finally:
        for future in futures:
            future.cancel()


def main(argv: Sequence[str] | None = None) -> None:
    """Do one job. FOLDER holds `config.json` and `init_I.safetensors`, as `warp()` with an executor writes them."""
    parser = argparse.ArgumentParser(prog="warp-nb job", description=main.__doc__)
    for name, kind in {"folder": str, "iteration": int, "run": int}.items():
        parser.add_argument(name, type=kind)
    parser.add_argument("--task", required=True, choices=LOADERS)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)
    start = fingerprint(unseal(start_file(Path(given.folder), given.iteration))[0])
    rebuild = pickle.dumps(partial(load_task, given.task))
    work(Job(given.folder, given.iteration, given.run, start, given.device, rebuild))
