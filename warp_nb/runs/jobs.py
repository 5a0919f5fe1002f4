"""A run (i, m) as a job in a folder: in this process, in a pool of processes, on Dask, or as a command.

A job reads `config.json` and θ_init from the folder and writes one file, `run_{i}_{m}.safetensors`: weights, history
and facts, with a sha256 of all of them; `run_{i}_{m}.steps.jsonl` has its steps while it goes on. Weights never pass
through the executor: both sides use the folder. A job whose result exists returns at once, and two workers on one job
leave one complete result, so it may be submitted again at any time.
"""

from __future__ import annotations

import argparse
import math
import pickle
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import closing, contextmanager
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
from warp_nb.paths import expanded
from warp_nb.runs.checkpoint import Checkpoints
from warp_nb.runs.facts import Row
from warp_nb.runs.folder import differences, read_agreed
from warp_nb.runs.layout import check_facts, check_history, check_record, check_tensors, read_from
from warp_nb.runs.step_log import StepLog
from warp_nb.runs.training import FAST, OnStep, Parts, RunResult, train
from warp_nb.tasks.identity import task_identity
from warp_nb.tasks.prepared import LOADERS, load_task
from warp_nb.tasks.task import Task

ALONE = Lock()
"""Allows one job at a time in a process, because torch's number of threads is set per process."""


@dataclass(frozen=True)
class Job:
    """Run (i, m) of a folder, as it is sent to a worker; it holds no weights.

    Args:
        folder: the folder of its files.
        i, m: iteration and run, from 1.
        start: fingerprint of its θ_init; a result from another θ_init does not count.
        device: the device that a worker loads the task on.
        rebuild: `Task.rebuild`, pickled; empty if the job stays in its process.
    """

    folder: str
    i: int
    m: int
    start: str
    device: str = "cpu"
    rebuild: bytes = b""

    @property
    def result(self) -> Path:
        """The file with weights θ^m, history and facts."""
        return Path(self.folder) / f"run_{self.i}_{self.m}.safetensors"

    @property
    def checkpoints(self) -> Checkpoints:
        """The checkpoints of the run."""
        return Checkpoints(self.result.with_suffix(".state.safetensors"), self.start)

    @property
    def steps(self) -> Path:
        """The file with a line for every step."""
        return self.result.with_suffix(".steps.jsonl")


def start_file(folder: Path, i: int) -> Path:
    """Return the file with θ_init of iteration i, which workers read."""
    return folder / f"init_{i}.safetensors"


# One job


def finished(job: Job, init: Weights, steps: int) -> RunResult | None:
    """Load the job's result; None if the run has to be trained. Warns if the file is damaged.

    Deletes the checkpoints of a finished run, in case its process was killed before it did so.

    Args:
        job: its result must hold tensors of the names and shapes of `init`, θ_init, and `steps` steps.
    """
    try:
        weights, record = unseal(job.result)
        with read_from(job.result):
            check_record(record, {"start", "history", "facts"})
            if record["start"] != job.start:
                return None
            check_tensors(weights, init)
            check_history(record["history"], job.i, job.m, steps)
            check_facts(record["facts"])
    except FileNotFoundError:
        return None
    except DamagedFile as error:
        warnings.warn(f"{error}; the run is made again", stacklevel=2)
        return None
    job.checkpoints.clear()
    facts = {name: math.nan if value is None else value for name, value in record["facts"].items()}
    return RunResult(weights, record["history"], facts)


def make(
    job: Job, init: Weights, config: WarpConfig, task: Task, *, parts: Parts = FAST, on_step: OnStep = lambda row: None
) -> RunResult:
    """Train the run from its last checkpoint, or from θ_init, and write its steps and its result."""
    log = StepLog(job.steps)

    def step(row: Row) -> None:
        log(row)
        on_step(row)

    def keep(at: int | str, weights: Weights) -> None:
        seal(SnapshotFiles.path(Path(job.folder), (job.i, job.m, at)), weights, at)

    def finish(result: RunResult) -> None:
        log.finish(result.history)
        record = {"start": job.start, "history": result.history, "facts": result.facts}
        seal(job.result, result.weights, json_values(record))

    checkpoints = job.checkpoints
    with torch_threads(config.threads), closing(log):
        settings = {"parts": parts, "on_step": step, "checkpoints": checkpoints, "keep": keep, "finish": finish}
        result = train(config, task, init, i=job.i, m=job.m, **settings)
    checkpoints.clear()
    return result


class SnapshotFiles(Mapping[tuple[int, int, int | str], Weights]):
    """(i, m, step) -> weights of run (i, m) after that step; (i, m, "anchor") -> its final anchor. Read on access.

    A file whose tensors do not have the names and shapes of `like`, the policy's, is refused as damaged.
    """

    def __init__(self, folder: Path, like: Mapping[str, torch.Tensor]) -> None:
        self.folder, self.like = folder, like

    @staticmethod
    def path(folder: Path, key: tuple[int, int, int | str]) -> Path:
        """Return the file of a snapshot."""
        i, m, at = key
        return folder / f"run_{i}_{m}.at-{at}.safetensors"

    def __getitem__(self, key: tuple[int, int, int | str]) -> Weights:
        path = self.path(self.folder, key)
        try:
            found, _ = unseal(path)
        except FileNotFoundError:
            raise KeyError(key) from None
        with read_from(path):
            check_tensors(found, self.like)
        return found

    def __iter__(self) -> Iterator[tuple[int, int, int | str]]:
        for path in self.folder.iterdir():
            if found := re.fullmatch(r"run_(\d+)_(\d+)\.at-(\d+|anchor)\.safetensors", path.name):
                i, m, at = found.groups()
                yield int(i), int(m), at if at == "anchor" else int(at)

    def __len__(self) -> int:
        return sum(1 for _ in self)


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """Set torch's CPU threads to `count` in the block (0: unchanged); restore the former number after it."""
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


# In a worker


def work(job: Job) -> None:
    """Do `job` in this process, with the task rebuilt here; executors call this function.

    Raises:
        RuntimeError: the process was forked, θ_init is missing or is not the job's, or the rebuilt task is not the
            one in `config.json`.
        ValueError: the task is on cuda and this worker sees no CUDA device.
    """
    if type(current_process()).__name__ == "ForkProcess":
        raise RuntimeError("this worker was forked, which OpenMP does not survive; pass process_pool(workers)")
    with ALONE:
        init = load_start(job)
        config, agreed = load_agreed(job)
        if finished(job, init, config.T) is not None:
            return
        device = round_robin(job.device, job.m - 1, torch.cuda.device_count())
        task, facts = rebuilt(job.rebuild, device)
        differing = differences({name: agreed.get(name) for name in facts}, facts)
        if differing:
            raise RuntimeError(
                f"the task rebuilt in this worker is not the one of {job.folder} ({differing}); rebuild must make "
                f"the same policy, prompts and reward again: share WARP_NB_CACHE, install the same versions"
            )
        with read_from(start_file(Path(job.folder), job.i)):
            check_tensors(init, dict(task.policy.named_parameters()))
        make(job, init, config, task)


def load_agreed(job: Job) -> tuple[WarpConfig, dict[str, Any]]:
    """Load what the runs of the job's folder depend on; raise RuntimeError if it is missing or damaged."""
    try:
        return read_agreed(Path(job.folder))
    except FileNotFoundError as error:
        raise RuntimeError(f"{error.filename} is not here; pass an out_dir on a disk that all workers share") from None


def load_start(job: Job) -> Weights:
    """Load θ_init of the job's iteration; raise RuntimeError if it is missing, damaged or not the job's."""
    path = start_file(Path(job.folder), job.i)
    init = read_start(path)
    found = fingerprint(init)
    if found != job.start:
        raise RuntimeError(
            f"{path} has fingerprint {found}, run {job.m} was to begin at {job.start}; "
            f"give every call of warp() a separate out_dir that nothing else writes to"
        )
    return init


def read_start(path: Path) -> Weights:
    """Read a file with θ_init; raise RuntimeError if it is missing or damaged."""
    try:
        return unseal(path)[0]
    except FileNotFoundError:
        raise RuntimeError(f"{path} is not here; pass an out_dir on a disk that all workers share") from None


@lru_cache(maxsize=1)
def rebuilt(rebuild: bytes, device: str) -> tuple[Task, dict[str, Any]]:
    """Rebuild the task; return it and its identity, cached for the worker's next job on this device."""
    task = pickle.loads(rebuild)(device)
    return task, task_identity(task)


def round_robin(device: str, place: int, count: int) -> str:
    """Return the device of an iteration's job number `place` (from 0) on a machine with `count` CUDA devices.

    `cuda` becomes cuda:{place % count}; any other device, also `cuda:1`, stays as it is.

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
    """Start a pool of `workers` processes on this machine, by spawn, with torch's threads divided among them.

    A script that calls this needs `if __name__ == "__main__":`, because spawn imports it again.

    Example:
        with process_pool(2) as pool:
            warp(config, task, folder, executor=pool)
    """
    share = max(1, torch.get_num_threads() // max(1, workers))
    return ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (share,))


def default_threads(executor: Executor | None, runs: int) -> int:
    """Return the CPU threads of a run with `threads` = 0: torch's number, divided by `runs` with an executor."""
    return max(1, torch.get_num_threads() // (runs if executor is not None else 1))


def device_name(device: torch.device) -> str:
    """Return the device as `load_task` takes it; cuda:0 becomes `cuda`, because `.to("cuda")` gives cuda:0 as well."""
    return str(device) if device.type == "cuda" and device.index else device.type


def pickled_rebuild(executor: Executor | None, task: Task) -> bytes:
    """Pickle `task.rebuild` for the workers of `executor`; empty without one.

    Raises:
        ValueError: it is not an executor of processes, or the task cannot be rebuilt in another process.
    """
    if executor is None:
        return b""
    if not isinstance(executor, Executor) or isinstance(executor, ThreadPoolExecutor):
        raise ValueError(
            f"executor must be a concurrent.futures.Executor of processes, got {type(executor).__name__} (threads "
            f"share torch's settings, so one run would wait for another); pass process_pool(workers), or Dask's "
            f"client.get_executor(pure=False, retries=2)"
        )
    remedy = "pass Task(…, rebuild=f), f(device) -> Task a function of a module that the workers can import"
    if task.rebuild is None:
        raise ValueError(f"task {task.name!r} has no rebuild, by which the executor's workers load it; {remedy}")
    try:
        recipe = pickle.dumps(task.rebuild)
    except (pickle.PicklingError, AttributeError, TypeError) as error:
        raise ValueError(f"rebuild of task {task.name!r} does not pickle ({error}); {remedy}") from error
    if b"__main__" in recipe:
        raise ValueError(f"rebuild of task {task.name!r} is defined in the script or notebook itself; {remedy}")
    return recipe


def send(executor: Executor, jobs: Sequence[Job]) -> Iterator[Job]:
    """Submit all jobs and yield each one when it is done, in any order.

    A job's error is raised here, and the jobs that have not started are cancelled.

    Raises:
        BrokenExecutor: the executor lost a worker and does not start another.
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
    folder = expanded(given.folder)
    start = fingerprint(read_start(start_file(folder, given.iteration)))
    rebuild = pickle.dumps(partial(load_task, given.task))
    work(Job(str(folder), given.iteration, given.run, start, given.device, rebuild))
