"""The same bits one after the other, in a pool, on Dask and by commands; what goes wrong is said or done again."""

from __future__ import annotations

import json
import pickle
import shutil
import warnings
from collections.abc import Iterator
from concurrent.futures import BrokenExecutor, Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import replace
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import remote
import tiny
import torch
from distributed import Client, LocalCluster
from faulty import FOUR_RUNS as CONFIG
from faulty import everything, flip

from warp_nb.algorithm.merge import weights_of
from warp_nb.config import WarpConfig
from warp_nb.files import DamagedFile, fingerprint, seal, unseal
from warp_nb.runs.jobs import Job, default_threads, device_name, finished, main, process_pool, round_robin, work
from warp_nb.runs.training import FAST
from warp_nb.runs.warp import WarpResult, warp
from warp_nb.tasks.prepared import load_task
from warp_nb.tasks.task import Task

ONE = CONFIG.replace(I=1, T=1)


@pytest.fixture(scope="module")
def pool() -> Iterator[Executor]:
    with process_pool(2) as executor:
        yield executor


@pytest.fixture(scope="module")
def serial() -> WarpResult:
    return warp(CONFIG, tiny.task(), progress=False)


def run(config: WarpConfig, task: Task, *folder: Path, executor: Any = None) -> WarpResult:
    return warp(config, task, *folder, executor=executor, progress=False)


# the same bits


@pytest.mark.slow
def test_a_pool_gives_the_bits_of_a_loop_and_reports_every_step(pool: Executor, serial: WarpResult) -> None:
    rows: list[Any] = []
    result = warp(CONFIG, remote.opinion("cpu"), executor=pool, progress=rows.append)
    assert everything(result) == everything(serial)
    assert not result.runs.loaded.any()
    steps = sorted((row["iteration"], row["run"], row["step"]) for row in rows)
    assert steps == [(i, m, t) for i in (1, 2) for m in (1, 2) for t in (1, 2, 3)]


@pytest.mark.slow
def test_the_runs_are_done_in_other_processes(pool: Executor) -> None:
    here = run(ONE, remote.identified("cpu")).history.reward
    there = run(ONE, remote.identified("cpu"), executor=pool).history.reward
    assert here.nunique() == 1 and not set(there) & set(here)


@pytest.mark.slow
@pytest.mark.parametrize("threads", [1, 3])
def test_a_worker_has_the_threads_of_the_configuration(threads: int, pool: Executor) -> None:
    result = run(ONE.replace(threads=threads), remote.counting("cpu"), executor=pool)
    assert result.history.reward.tolist() == [threads, threads]


def test_threads_not_given_are_shared_by_the_runs_and_written_down(tmp_path: Path) -> None:
    own = torch.get_num_threads()
    torch.set_num_threads(5)
    try:
        result = run(ONE.replace(threads=0), remote.counting("cpu"), tmp_path / "side", executor=remote.Inline())
        run(ONE.replace(threads=0), remote.counting("cpu"), tmp_path / "after")
        assert [default_threads(remote.Inline(), runs) for runs in (1, 2, 8)] == [5, 2, 1]
        assert torch.get_num_threads() == 5
    finally:
        torch.set_num_threads(own)
    written = [json.loads((tmp_path / name / "config.json").read_text())["threads"] for name in ("side", "after")]
    assert result.history.reward.tolist() == [2, 2] and written == [2, 5]


def test_a_folder_begun_in_a_loop_is_continued_by_an_executor(tmp_path: Path, serial: WarpResult) -> None:
    run(CONFIG, tiny.task(), tmp_path)
    (tmp_path / "run_1_2.safetensors").unlink()
    flip(tmp_path / "run_2_1.safetensors")
    executor = remote.Inline()
    with pytest.warns(UserWarning, match=r"run_2_1\.safetensors is damaged .*; the run is made again"):
        result = run(CONFIG, remote.opinion("cpu"), tmp_path, executor=executor)
    assert result.runs.loaded.tolist() == [1, 0, 0, 1] and len(executor.sent) == 2
    assert everything(result) == everything(serial)
    for (i, m), rows in result.history.groupby(["iteration", "run"]):
        lines = (tmp_path / f"run_{i}_{m}.steps.jsonl").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line) for line in lines] == rows.to_dict("records"), "also those of a worker"


@pytest.mark.parametrize("folder", [[], ["runs"]], ids=["own", "given"])
def test_weights_do_not_travel_through_the_executor_and_snapshots_are_there(folder: list[str], tmp_path: Path) -> None:
    """The snapshots of a folder of its own outlive it."""
    executor, config = remote.Inline(), ONE.replace(snapshot_every=1, keep_anchors=True)
    task = remote.opinion("cpu")
    result = run(config, task, *(tmp_path / name for name in folder), executor=executor)
    assert executor.returned == [None, None]
    assert max(map(len, executor.sent)) < 1000 < sum(value.nbytes for value in task.policy.parameters())
    assert everything(result) == everything(run(config, tiny.task())) and len(result.snapshots) == 4


# deaths


@pytest.mark.slow
def test_a_worker_killed_in_a_pool_ends_the_call_and_the_next_one_goes_on(tmp_path: Path, serial: WarpResult) -> None:
    task = remote.mortal("cpu", tmp_path / "killed")
    with (
        process_pool(1) as pool,
        pytest.raises(BrokenExecutor, match=r"call warp\(\) again with a new pool and the same"),
    ):
        run(CONFIG, task, tmp_path / "runs", executor=pool)
    assert (tmp_path / "killed").exists()
    result = run(CONFIG, task, tmp_path / "runs")
    assert everything(result) == everything(serial)


@pytest.mark.slow
def test_dask_gives_the_bits_of_a_loop_also_when_a_worker_is_killed(tmp_path: Path, serial: WarpResult) -> None:
    with (
        LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=None) as cluster,
        Client(cluster) as client,
        client.get_executor(pure=False, retries=2) as executor,
    ):
        whole = run(CONFIG, remote.opinion("cpu"), tmp_path / "whole", executor=executor)
        killed = run(CONFIG, remote.mortal("cpu", tmp_path / "killed"), tmp_path / "torn", executor=executor)
        threads = run(ONE.replace(threads=3), remote.counting("cpu"), executor=executor)
    assert (tmp_path / "killed").exists()
    assert everything(whole) == everything(killed) == everything(serial)
    assert threads.history.reward.tolist() == [3, 3]  # Dask's own OMP_NUM_THREADS=1 does not count


@pytest.mark.slow
def test_a_job_is_a_command_too(tmp_path: Path) -> None:
    config = WarpConfig(I=1, M=2, T=1, lr=1e-3, warmup_steps=0, batch_size=2, max_new_tokens=4, threads=1)
    task = load_task("small", "cpu")
    rebuild = pickle.loads(pickle.dumps(task.rebuild))
    assert (rebuild.func, rebuild.args, rebuild.keywords) == (load_task, ("small",), {})
    by_commands = run(config, task, tmp_path, executor=remote.Commands())
    assert everything(by_commands) == everything(run(config, task))


# one job


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """The first job of a folder as a caller with an executor leaves it, its run not done."""
    run(ONE, tiny.task(rebuild=remote.opinion), tmp_path, executor=remote.Inline())
    start = fingerprint(unseal(tmp_path / "init_1.safetensors")[0])
    job = Job(str(tmp_path), 1, 1, start, "cpu", pickle.dumps(remote.opinion))
    job.result.unlink()
    return job


def test_a_job_that_is_done_returns_at_once(job: Job) -> None:
    work(job)
    before = job.result.stat().st_mtime_ns
    again = replace(job, rebuild=pickle.dumps(remote.refused))
    work(again)
    assert before == job.result.stat().st_mtime_ns
    job.result.unlink()
    with pytest.raises(LookupError, match="rebuild was called"):
        work(again)


@pytest.mark.parametrize("harm", ["damage", "start", "none"])
def test_a_result_that_does_not_fit_is_made_again(harm: str, job: Job) -> None:
    work(job)
    weights, record = unseal(job.result)
    if harm == "damage":
        flip(job.result)
    elif harm == "start":
        seal(job.result, weights, record | {"start": "0" * 64})
    else:
        job.result.unlink()
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        assert finished(job, weights, ONE.T) is None
        work(job)
    assert all("damaged" in str(warning.message) for warning in told) and bool(told) == (harm == "damage")
    again = finished(job, weights, ONE.T)
    assert again is not None and fingerprint(again.weights) == fingerprint(weights)


def test_another_start_is_refused_before_training_and_the_caller_writes_it_again(job: Job) -> None:
    start = Path(job.folder) / "init_1.safetensors"
    sound, _ = unseal(start)
    seal(start, weights_of(tiny.gpt2(39, seed=5)), None)
    with pytest.raises(
        RuntimeError, match=rf"init_1\.safetensors has fingerprint \w+, run 1 was to begin at {job.start}; give every"
    ):
        work(job)
    flip(start)
    with pytest.raises(RuntimeError, match=r"init_1\.safetensors is damaged"):
        work(job)
    start.unlink()
    with pytest.raises(
        RuntimeError, match=r"init_1\.safetensors is not here; pass an out_dir on a disk that all workers"
    ):
        work(job)
    assert not job.result.exists()
    seal(start, sound, None)
    flip(start)
    result = run(ONE, remote.opinion("cpu"), Path(job.folder), executor=remote.Inline())
    assert fingerprint(unseal(start)[0]) == job.start and result.runs.loaded.tolist() == [0, 1]


def test_what_a_worker_reads_is_named_when_it_does_not_fit(job: Job) -> None:
    """θ_init of another policy, and a configuration that is none, missing or incomplete."""
    folder, start = Path(job.folder), Path(job.folder) / "init_1.safetensors"
    sound, _ = unseal(start)
    narrow = weights_of(tiny.gpt2(len(tiny.tokenizer()), width=8))
    seal(start, narrow, None)
    with pytest.raises(
        DamagedFile, match=r"init_1\.safetensors is damaged .*c_attn.bias torch\.float32 \[24\], the policy"
    ):
        work(replace(job, start=fingerprint(narrow)))
    start.unlink()
    with pytest.raises(RuntimeError, match=r"init_1\.safetensors is not here"):
        main([str(folder), "1", "1", "--task", "small"])
    seal(start, sound, None)
    for text in ("[]", '{"status": "ok"}', (folder / "config.json").read_text().replace('"lr": ', '"lr": -')):
        (folder / "config.json").write_text(text)
        with pytest.raises(DamagedFile, match=r"config\.json is damaged"):
            work(job)
    (folder / "config.json").unlink()
    with pytest.raises(RuntimeError, match=r"config\.json is not here; pass an out_dir on a disk that all workers"):
        work(job)
    assert not job.result.exists()


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"policy": tiny.gpt2(39, seed=5)}, "policy_sha256"),
        ({"train_prompts": ["the film"]}, "prompts_sha256"),
        ({"reward": tiny.counted()}, r"reward\.name: 'count' there, 'opinion' here"),
    ],
)
def test_a_worker_that_makes_another_task_says_what_differs(changes: dict[str, Any], said: str) -> None:
    """The caller's task has been changed, the worker's has not."""
    task = tiny.task(**changes, rebuild=remote.opinion)
    with pytest.raises(RuntimeError, match=f"task rebuilt in this worker is not the one of .*{said}"):
        run(ONE, task, executor=remote.Inline())


def test_a_result_that_does_not_arrive_is_an_error(tmp_path: Path) -> None:
    class Elsewhere(remote.Inline):
        """Its folder is not the caller's."""

        def submit(self, function: Any, job: Any, /) -> Any:  # type: ignore[override]
            shutil.copytree(tmp_path / "here", tmp_path / "there", dirs_exist_ok=True)
            return super().submit(function, replace(job, folder=str(tmp_path / "there")))

    with pytest.raises(RuntimeError, match=r"run \d of iteration 1 was reported done, but .* is missing or damaged"):
        run(ONE, remote.opinion("cpu"), tmp_path / "here", executor=Elsewhere())


def test_an_error_in_a_job_comes_through_and_the_others_are_cancelled(tmp_path: Path) -> None:
    class Late(remote.Inline):
        """Fails the first job and never begins the others."""

        def __init__(self) -> None:
            super().__init__()
            self.futures: list[Any] = []

        def submit(self, function: Any, /, *args: Any, **kwargs: Any) -> Any:
            self.futures.append(super().submit(function, *args, **kwargs) if not self.futures else Future())
            return self.futures[-1]

    executor = Late()
    with pytest.raises(LookupError, match="rebuild was called"):
        run(ONE, tiny.task(rebuild=remote.refused), tmp_path, executor=executor)
    assert [future.cancelled() for future in executor.futures] == [False, True]


def test_threads_of_one_worker_take_turns() -> None:
    """A worker of Dask may have several; torch's settings are one."""

    class Threads(Executor):
        """Not refused by name, as Dask's is not."""

        def __init__(self) -> None:
            self.submit = ThreadPoolExecutor(2).submit  # type: ignore[method-assign]

    remote.HELD.clear()
    run(ONE, remote.alone("cpu"), executor=Threads())
    assert remote.HELD == [True, True]
    run(ONE, remote.alone("cpu"))
    assert remote.HELD == [True, True, False, False]  # in the caller there are no others


def test_the_command_reads_its_start_from_the_folder(job: Job, capsys: pytest.CaptureFixture[str]) -> None:
    """Of a run that is done already it makes nothing, so this is quick."""
    work(job)
    before = job.result.stat().st_mtime_ns
    main([job.folder, "1", "1", "--task", "small"])
    assert job.result.stat().st_mtime_ns == before
    with pytest.raises(SystemExit):
        main([job.folder, "1", "1", "--task", "large"])
    assert "invalid choice: 'large'" in capsys.readouterr().err


# refusals, before any work


def test_other_parts_are_refused_where_workers_would_not_have_them(tmp_path: Path) -> None:
    parts = replace(FAST, merge=lambda init, policies, **settings: init, run_seed=lambda seed, i, m: seed)
    with pytest.raises(ValueError, match=r"got others for merge, run_seed; call warp\(\) without an executor"):
        warp(ONE, remote.opinion("cpu"), tmp_path / "runs", executor=remote.Inline(), parts=parts)
    assert not (tmp_path / "runs").exists()


def test_a_forked_worker_is_refused() -> None:
    with (
        ProcessPoolExecutor(1, get_context("fork")) as forked,
        pytest.raises(RuntimeError, match=r"forked, which OpenMP does not survive; pass process_pool\(workers\)"),
    ):
        run(ONE, remote.opinion("cpu"), executor=forked)


@pytest.mark.parametrize("kind", [object, ThreadPoolExecutor])
def test_what_is_no_executor_of_processes_is_refused_by_name(kind: Any, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=rf"of processes, got {kind.__name__}.*pass process_pool\(workers\), or Dask's"
    ):
        run(ONE, remote.opinion("cpu"), tmp_path / "runs", executor=kind())
    assert not (tmp_path / "runs").exists()


def at_home(device: str) -> Task:
    return tiny.task()


at_home.__module__ = "__main__"


@pytest.mark.parametrize(
    ("rebuild", "words"),
    [
        (None, "task 'tiny' has no rebuild"),
        (lambda device: tiny.task(), "does not pickle"),
        (partial(at_home), "does not pickle|defined in the script or notebook itself"),
    ],
)
def test_a_task_that_no_worker_can_make_is_refused(rebuild: Any, words: str, tmp_path: Path) -> None:
    task = tiny.task(rebuild=rebuild)
    with pytest.raises(ValueError, match=rf"({words}).*pass Task\(…, rebuild=f\).* a function of a module"):
        run(ONE, task, tmp_path / "runs", executor=remote.Inline())
    assert not (tmp_path / "runs").exists()
    run(ONE, task)  # without an executor nothing is asked of it


def test_a_function_of_the_notebook_itself_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """It pickles here, as a name that means something else in a worker."""
    import __main__

    monkeypatch.setattr(__main__, "at_home", at_home, raising=False)
    with pytest.raises(ValueError, match="defined in the script or notebook itself"):
        run(ONE, tiny.task(rebuild=at_home), executor=remote.Inline())


# devices


def test_gpus_are_handed_out_in_turn() -> None:
    assert [round_robin("cuda", place, 3) for place in range(5)] == ["cuda:0", "cuda:1", "cuda:2", "cuda:0", "cuda:1"]
    assert [round_robin("cuda", place, 1) for place in range(2)] == ["cuda:0", "cuda:0"]
    assert [round_robin(named, 1, 8) for named in ("cuda:5", "cpu", "mps")] == ["cuda:5", "cpu", "mps"]
    with pytest.raises(ValueError, match="lies on cuda and this worker sees no CUDA device; give it one"):
        round_robin("cuda", 0, 0)


@pytest.mark.parametrize(("number", "device"), [(1, "cuda:0"), (5, "cuda:1"), (6, "cuda:2")])
def test_a_worker_makes_the_task_on_its_turns_gpu(
    number: int, device: str, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    with pytest.raises(LookupError, match=f"rebuild was called for {device}"):
        work(replace(job, m=number, device="cuda", rebuild=pickle.dumps(remote.refused)))


def test_the_first_gpu_is_cuda_without_a_number() -> None:
    named = {"cpu": "cpu", "cuda": "cuda", "cuda:0": "cuda", "cuda:2": "cuda:2", "mps:0": "mps"}
    assert {device: device_name(torch.device(device)) for device in named} == named
