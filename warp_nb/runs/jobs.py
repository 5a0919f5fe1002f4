"""A run (i, m) as a job for any `concurrent.futures.Executor`: a pool of processes, Dask, a command.

A job reads `config.json` and `init_{i}.safetensors` of a folder and leaves `run_{i}_{m}.safetensors`
and `run_{i}_{m}.json` there. Weights never travel through the executor: both sides meet in the folder
and check sha256. A job whose valid result is there returns at once, and two workers at one job leave
one whole result, so it may be sent again at any time.

    python -m warp_nb job FOLDER I M --task small       # one job, for any scheduler
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import pickle
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import BrokenExecutor, Executor, ProcessPoolExecutor, ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache, partial
from multiprocessing import current_process, get_context
from pathlib import Path
from threading import Lock
from typing import Any

import torch

from warp_nb.algorithm.average import StateDict
from warp_nb.config import WarpConfig
from warp_nb.runs.checkpoint import RunStates
from warp_nb.runs.policy_gradient import Row, RunResult, train_run
from warp_nb.runs.weights import fingerprint, load_weights, plain, save_weights, write_json
from warp_nb.tasks.task import LOADERS, Task, describe_reward, load_task
from warp_nb.tasks.wheels import file_sha256

ALONE = Lock()
"""One job at a time in a process: torch's number of threads belongs to the process."""


@dataclass(frozen=True)
class Job:
    """Run (i, m) of a folder, small enough to be sent anywhere."""

    folder: str
    iteration: int
    run: int
    init_sha256: str
    """Of `init_{i}.safetensors`: a job of another start is another job."""
    device: str = "cpu"
    rebuild: bytes = b""
    """`Task.rebuild`, pickled; empty where the job does not leave its process."""
    resumable: bool = True
    """Whether states between two steps are kept: not in a folder that is thrown away."""

    @property
    def start(self) -> Path:
        """θ_init of the iteration."""
        return Path(self.folder) / f"init_{self.iteration}.safetensors"

    @property
    def weights(self) -> Path:
        """θ^m, what the run leaves."""
        return Path(self.folder) / f"run_{self.iteration}_{self.run}.safetensors"

    @property
    def states(self) -> RunStates | None:
        """Where the run is between two steps."""
        return RunStates(self.weights.with_suffix(".state.safetensors"), self.init_sha256) if self.resumable else None

    @property
    def record(self) -> Path:
        """History, facts and both sha256; written last."""
        return self.weights.with_suffix(".json")


# One job


def finished(job: Job) -> dict[str, Any] | None:
    """The record of the job's run, or None when it is to be made.

    Warns when record or weights are there, of this start, and not what was written.
    """
    if not job.record.exists():
        return None
    try:
        saved = json.loads(job.record.read_text(encoding="utf-8"))
        whole = saved["sha256"] == record_sha256(saved)
    except (ValueError, KeyError, TypeError):
        whole = False
    if not whole:
        warnings.warn(f"{job.record} is damaged; the run is made again", stacklevel=2)
        return None
    if saved["init_sha256"] != job.init_sha256:
        return None
    if not job.weights.exists() or saved["weights_sha256"] != file_sha256(job.weights):
        warnings.warn(f"{job.weights} is missing or damaged (its sha256); the run is made again", stacklevel=2)
        return None
    return saved


def record_sha256(record: dict[str, Any]) -> str:
    """Over all of a record but its own `sha256`."""
    rest = {name: value for name, value in record.items() if name != "sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def load_run(job: Job, like: StateDict) -> RunResult | None:
    """The finished run with the ties of `like`, or None: see `finished`."""
    saved = finished(job)
    if saved is None:
        return None
    facts = {name: math.nan if value is None else value for name, value in saved["facts"].items()}
    return RunResult(load_weights(job.weights, like), saved["history"], facts)


def make_run(job: Job, config: WarpConfig, task: Task, on_step: Callable[[Row], None] = lambda row: None) -> None:
    """Train the run, from its start or from the state that an interrupted one left, and write its two files.

    Raises RuntimeError when the start is missing or is not the one the job was given for.
    """
    if not job.start.exists():
        raise RuntimeError(f"{job.start} is not here; pass an out_dir on a disk that all workers share")
    found = file_sha256(job.start)
    if found != job.init_sha256:
        raise RuntimeError(
            f"{job.start} has sha256 {found}, run {job.run} was to begin at {job.init_sha256}; "
            f"give every call of warp() a folder of its own, and let no one else write there"
        )
    with torch_threads(config.threads):
        init = load_weights(job.start, task.policy.state_dict())
        result = train_run(task, config, init, job.iteration, job.run, on_step, job.states)
    save_weights(job.weights, result.state)
    record = plain({"history": result.history, "facts": result.facts})
    record |= {"init_sha256": job.init_sha256, "weights_sha256": file_sha256(job.weights)}
    write_json(job.record, record | {"sha256": record_sha256(record)})
    if job.states is not None:
        job.states.clear()


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
    """Do `job` in this process with the task rebuilt here; what an executor is given.

    Raises RuntimeError in a forked process, for a start that is not the job's (see `make_run`), and
    when the rebuilt task is not the one in `config.json`; ValueError when the GPU asked for is not here.
    """
    if type(current_process()).__name__ == "ForkProcess":
        raise RuntimeError("this worker was forked, which OpenMP does not survive; pass process_pool(workers)")
    with ALONE:
        if finished(job) is not None:
            return
        agreed = json.loads((Path(job.folder) / "config.json").read_text(encoding="utf-8"))
        device = round_robin(job.device, job.run - 1, torch.cuda.device_count())
        task, facts = rebuilt(job.rebuild, device)
        differing = differences(agreed, facts)
        if differing:
            raise RuntimeError(
                f"the task rebuilt in this worker is not the one of {job.folder} ({differing}); rebuild must make "
                f"the same policy, prompts and reward again: share WARP_NB_CACHE, install the same versions"
            )
        make_run(job, WarpConfig(**{name: agreed[name] for name in WarpConfig.model_fields}), task)


@lru_cache(maxsize=1)
def rebuilt(rebuild: bytes, device: str) -> tuple[Task, dict[str, Any]]:
    """The task and its facts, kept for the worker's next job on this device."""
    task = pickle.loads(rebuild)(device)
    return task, task_facts(task)


def task_facts(task: Task) -> dict[str, Any]:
    """What the runs of a folder depend on beside the configuration, as plain JSON values."""
    prompts = hashlib.sha256("\0".join(task.train_prompts).encode()).hexdigest()
    facts = {"task_name": task.name, "policy_sha256": fingerprint(task.policy.state_dict()), "prompts_sha256": prompts}
    return json.loads(json.dumps(facts | {"reward": describe_reward(task.reward)}))


def differences(theirs: dict[str, Any], mine: dict[str, Any]) -> str:
    """What of `mine` is otherwise in `theirs`, in words; empty when nothing is."""
    return "; ".join(f"{k}: {theirs.get(k)!r} there, {mine[k]!r} here" for k in mine if theirs.get(k) != mine[k])


def round_robin(device: str, place: int, count: int) -> str:
    """The device of an iteration's job number `place` (from 0) on a machine with `count` CUDA devices.

    `cuda` becomes cuda:{place % count}; another device, `cuda:1` too, stays. Raises ValueError
    for `cuda` where there is none.
    """
    if device != "cuda":
        return device
    if not count:
        raise ValueError("the task lies on cuda and this worker sees no CUDA device; give it one, or load it on cpu")
    return f"cuda:{place % count}"


# In the caller


def process_pool(workers: int) -> ProcessPoolExecutor:
    """`workers` processes of this machine, started by spawn, torch's threads shared among them.

    A script that calls this needs `if __name__ == "__main__":`, since spawn imports it again.
    Use as `with process_pool(2) as pool: warp(config, task, folder, executor=pool)`.
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
    """`task.rebuild` for the workers of `executor`; nothing without one.

    Raises ValueError for what is no executor of processes and for a task that cannot be rebuilt elsewhere.
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

    A job's error is raised here and those not begun are cancelled. Raises BrokenExecutor when the
    executor itself has lost a worker and does not start another.
    """
    futures = {executor.submit(work, job): job for job in jobs}
    try:
        for future in as_completed(futures):
            future.result()
            yield futures[future]
    except BrokenExecutor as error:
        remedy = "what was finished is kept: call warp() again with a new pool and the same out_dir"
        raise BrokenExecutor(f"a worker died ({error}); {remedy}") from error
    finally:
        for future in futures:
            future.cancel()


def main(argv: Sequence[str] | None = None) -> None:
    """One job as a command. FOLDER holds `config.json` and `init_I.safetensors`, as `warp()` writes them."""
    parser = argparse.ArgumentParser(prog="python -m warp_nb job", description=main.__doc__)
    for name, kind in {"folder": str, "iteration": int, "run": int}.items():
        parser.add_argument(name, type=kind)
    parser.add_argument("--task", required=True, choices=LOADERS)
    parser.add_argument("--device", default="cpu")
    given = parser.parse_args(argv)
    sha256 = file_sha256(Path(given.folder) / f"init_{given.iteration}.safetensors")
    rebuild = pickle.dumps(partial(load_task, given.task))
    work(Job(given.folder, given.iteration, given.run, sha256, given.device, rebuild))


if __name__ == "__main__":
    main()
