"""The runs of Algorithm 1 on a task, in memory or in a folder: run(theta_init, i, m) for `algorithm_1`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from warp_nb.algorithm.merge import Weights
from warp_nb.config import WarpConfig
from warp_nb.files import fingerprint, seal
from warp_nb.runs.folder import claimed, identity
from warp_nb.runs.jobs import (
    Job,
    SnapshotFiles,
    default_threads,
    device_name,
    finished,
    make,
    pickled_rebuild,
    send,
    start_file,
    torch_threads,
)
from warp_nb.runs.training import OnStep, Parts, RunResult, train
from warp_nb.tasks.task import Task


class Runs:
    """The run(θ_init, i, m) of `algorithm_1`: lines 4 to 9 in memory, one run after another."""

    def __init__(self, config: WarpConfig, task: Task, parts: Parts, on_step: OnStep) -> None:
        self.config, self.task, self.parts, self.on_step = config, task, parts, on_step
        self.results: dict[tuple[int, int], RunResult] = {}
        self.snapshots: Mapping[tuple[int, int, int | str], Weights] = {}

    def __call__(self, init: Weights, i: int, m: int) -> Weights:
        def keep(at: int | str, weights: Weights) -> None:
            self.snapshots = {**self.snapshots, (i, m, at): weights}

        with torch_threads(self.config.threads):
            settings: dict[str, Any] = {"parts": self.parts, "on_step": self.on_step, "keep": keep}
            return self.recorded(i, m, train(self.config, self.task, init, i=i, m=m, **settings))

    def recorded(self, i: int, m: int, result: RunResult) -> Weights:
        """Store history and facts of a run, but not its weights, which are returned."""
        self.results[i, m] = RunResult({}, result.history, result.facts)
        return result.weights


class DurableRuns(Runs):
    """`Runs` with results in a folder: a finished run is loaded; others are trained here or by an executor."""

    def __init__(
        self,
        config: WarpConfig,
        task: Task,
        parts: Parts,
        on_step: OnStep,
        *,
        folder: Path,
        executor: Executor | None,
    ) -> None:
        if executor is not None and parts.replaced():
            raise ValueError(
                f"workers use the default parts of a run, got others for {', '.join(parts.replaced())}; "
                f"call warp() without an executor"
            )
        self.rebuild, self.device = pickled_rebuild(executor, task), device_name(task.policy.device)
        config = config.replace(threads=config.threads or default_threads(executor, config.M))
        super().__init__(config, task, parts, on_step)
        self.folder, self.executor = folder, executor
        self.snapshots = SnapshotFiles(folder, dict(task.policy.named_parameters()))

    @contextmanager
    def claimed(self) -> Iterator[None]:
        """Lock the folder for this call (see `folder.claimed`)."""
        mine = identity(self.config, self.task, self.parts.replaced())
        with claimed(self.folder, mine, alone=self.executor is None):
            yield

    def __call__(self, init: Weights, i: int, m: int) -> Weights:
        if m == 1:
            self.jobs, self.ready = self.begin(init, i)
        result = self.ready.pop(m, None)
        if result is None:
            result = make(self.jobs[m - 1], init, self.config, self.task, parts=self.parts, on_step=self.on_step)
        return self.recorded(i, m, result)

    def begin(self, init: Weights, i: int) -> tuple[list[Job], dict[int, RunResult]]:
        """Return the jobs of iteration i and, by run, the results that are in the folder or that the executor makes."""
        start = fingerprint(init)
        jobs = [
            Job(str(self.folder.absolute()), i, m, start, self.device, self.rebuild)
            for m in range(1, self.config.M + 1)
        ]
        # a listing: a network disk may report for a minute that a file which was missing before is still missing
        present = {path.name for path in self.folder.iterdir()}
        found = {job.m: finished(job, init, self.config.T) for job in jobs if job.result.name in present}
        ready = {m: result for m, result in found.items() if result is not None}
        for result in ready.values():
            result.facts["loaded"] = 1.0
            self.tell(result)
        missing = [job for job in jobs if job.m not in ready]
        if self.executor is not None and missing:
            seal(start_file(self.folder, i), init, None)
            for job in send(self.executor, missing):
                ready[job.m] = self.arrived(job, init)
                self.tell(ready[job.m])
        return jobs, ready

    def arrived(self, job: Job, init: Weights) -> RunResult:
        """Load the result of a job that a worker reported as done; raise RuntimeError if it is not in the folder."""
        result = finished(job, init, self.config.T)
        if result is None:
            raise RuntimeError(
                f"run {job.m} of iteration {job.i} was reported done, but {job.result} is missing or damaged; "
                f"pass an out_dir on a disk that all workers share"
            )
        return result

    def tell(self, result: RunResult) -> None:
        """Call `on_step` with every row of a run that was loaded or that a worker trained."""
        for row in result.history:
            self.on_step(row)
