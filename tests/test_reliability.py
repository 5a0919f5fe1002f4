"""Faults around a call: kills, full disks, other processes, interrupts, long runs; and that promises have tests."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from faulty import CONFIG, STATE, Opinion, everything, quick, stopped

from warp_nb.files import unseal
from warp_nb.runs.interrupts import ENDING, interrupts_wait
from warp_nb.runs.training import FAST
from warp_nb.tasks.prepared import SMALL, load_policy

HERE = Path(__file__).parent


@pytest.fixture(autouse=True)
def heard() -> Iterator[None]:
    """Hear the signals of ENDING, which `nohup` and a shell's background jobs begin with ignored."""
    ignored = [number for number in ENDING if signal.getsignal(number) == signal.SIG_IGN]
    for number in ignored:
        signal.signal(number, signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL)
    yield
    for number in ignored:
        signal.signal(number, signal.SIG_IGN)


PATHS = f"import sys; sys.path[:0] = [{str(HERE)!r}]\n"


def python(code: str, *arguments: Any, **settings: Any) -> subprocess.CompletedProcess[str]:
    """Another process that finds the helpers of the tests."""
    command = [sys.executable, "-c", PATHS + code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=600, **settings)


# killed at every point


def killed(folder: Path, points: list[Any]) -> list[Any]:
    """What `killed.py` found for the points [function, number, when, save_every]."""
    text = "\n".join(map(json.dumps, points))
    done = subprocess.run(
        [sys.executable, HERE / "killed.py", folder], input=text, capture_output=True, text=True, timeout=1100
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


SAVED = ("README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json", "warp.json")  # fmt: skip
"""Files of a saved policy."""


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [0, 1])
def test_killed_anywhere_it_resumes_to_the_same_bits(save_every: int, tmp_path: Path) -> None:
    """SIGKILL of a real process before and after every rename and deletion, amid every write, between the steps, in
    rewards, updates and merges. Weights, history, moments, anchor, noise, snapshots end the same; nothing is left."""
    from killed import WHEN

    ((ended, whole),) = killed(tmp_path / "runs", [["", 0, "", save_every]])
    runs = [f"run_{i}_{m}" for i in (1, 2) for m in (1, 2)]
    finished = [f"{run}{at}.safetensors" for run in runs for at in ("", ".at-1", ".at-2", ".at-anchor")]
    steps = [f"{run}.steps.jsonl" for run in runs]
    saved = [f"{folder}/{name}" for folder in ("final", "merged") for name in SAVED]
    assert ended == 0
    assert set(whole["files"]) == {".lock", "config.json", "policy", "merged", *finished, *steps, *saved}
    assert min(whole["calls"].values()) > 0 and len(whole["states"]) == 4
    points = [
        [name, number, when, save_every]
        for name, count in whole["calls"].items()
        for when in WHEN[name]
        for number in range(1, count + 1, 1 + save_every)  # a checkpoint a step: every second call
    ]
    found = killed(tmp_path / "runs", points)
    print(f"killed at {len(points)} points, save_every = {save_every}")
    assert len(found) == len(points) > 80
    for point, (signalled, again) in zip(points, found, strict=True):
        assert signalled == signal.SIGKILL, point
        assert again["files"] == whole["files"], point
        assert again["states"].items() <= whole["states"].items(), point  # of the runs that were not yet finished
    assert any(len(again["states"]) == 4 for _, again in found)


# the disk

FULL_DISK = """
import resource, signal
from pathlib import Path
import tiny
from faulty import CONFIG, Opinion, contents, fail, quick
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
before, task = contents(folder), tiny.task(reward=Opinion(0, fail))
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    quick(CONFIG.replace(save_every=1), task, out_dir=folder)
except OSError as error:
    print("".join([str(error), *error.__notes__]))
assert contents(folder) == before, sorted(path.name for path in folder.iterdir())
"""


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "said"), [("limit", "File too large"), ("tmpfs", "No space left on device")])
def test_a_full_disk_leaves_the_old_state_and_no_other_file(kind: str, said: str, tmp_path: Path) -> None:
    """A file may not grow beyond a limit; a small disk, mounted in a namespace of its own."""
    runs, disk = tmp_path / "runs", tmp_path / "disk"
    stopped(runs, 2, save_every=1)
    state = (runs / STATE).stat().st_size
    if kind == "limit":
        done = python(FULL_DISK, runs, state - 100)
    else:
        private = ["unshare", "--user", "--map-root-user", "--mount"]
        if shutil.which("unshare") is None or subprocess.run([*private, "true"], capture_output=True).returncode:
            pytest.skip("this system mounts nothing without root; the limit stands for it")
        disk.mkdir()
        size = sum(path.stat().st_size + 4096 for path in runs.iterdir()) + state // 2
        script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && cp -a "$3/." "$2" && exec "$4" -c "$5" "$2" 0'
        words = [str(size), disk, runs, sys.executable, PATHS + FULL_DISK]
        done = subprocess.run([*private, "sh", "-c", script, "sh", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout and "could not be saved" in done.stdout, done.stdout
    again = quick(out_dir=runs)
    assert again.runs.loaded.tolist() == [0.5]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    never = Opinion(1, lambda scores: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match=r"cannot be written .*; pass another out_dir"):
        quick(task=tiny.task(reward=never), out_dir=blocked / "runs")
    code = """
import os, pandas, tiny
from faulty import quick
task = tiny.task()
os.getuid() or os.setuid(65534)  # root may write anywhere
quick(task=task, out_dir=sys.argv[1])
"""
    with tempfile.TemporaryDirectory() as parent:
        shut = Path(parent) / "shut"
        shut.mkdir()
        shut.chmod(0o555)
        Path(parent).chmod(0o755)
        done = python(code, shut)
    assert "shut cannot be written" in done.stderr and "Permission denied" in done.stderr, done.stderr[-2000:]


# two at once


def test_the_second_in_a_folder_is_told_of_the_first(tmp_path: Path) -> None:
    def intrude(scores: list[float]) -> list[float]:
        with pytest.raises(RuntimeError, match=rf"is in use by process {os.getpid()} on .* since 20\d\d-"):
            quick(out_dir=tmp_path)
        return scores

    intruder = Opinion(2, intrude)
    quick(task=tiny.task(reward=intruder), out_dir=tmp_path)
    assert intruder.calls == CONFIG.T and not (tmp_path / "owner.json").exists()


@pytest.mark.slow
def test_another_process_is_refused_at_once_and_a_dead_ones_lock_is_gone(tmp_path: Path) -> None:
    code = f"""
import tiny
from faulty import Opinion, quick
def wait(scores):
    print("inside", flush=True)
    sys.stdin.read()
quick(task=tiny.task(reward=Opinion(2, wait)), out_dir={str(tmp_path)!r})
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PATHS + code], stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "inside\n"
        with pytest.raises(RuntimeError, match=rf"is in use by process {first.pid} on "):
            quick(out_dir=tmp_path)
        first.kill()
    quick(out_dir=tmp_path)


# interrupts

WAITING = """
import os, signal, tiny
from faulty import Opinion, quick
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell starts what runs in the background with it ignored
signal.signal(signal.SIGHUP, signal.SIG_DFL)

def wait(scores, signals=1):
    # Return when that many signals have come and Python has called their handler.
    told, tells = os.pipe()
    os.set_blocking(tells, False)
    before = signal.set_wakeup_fd(tells, warn_on_full_buffer=False)
    try:
        for _ in range(signals):
            print("inside", flush=True)
            os.read(told, 1)
            signal.pthread_sigmask(signal.SIG_BLOCK, [])  # calls the handlers that are due
    finally:
        signal.set_wakeup_fd(before)
    return scores
"""


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "steps"), [(1, 2), (2, 1)])
def test_ctrl_c_ends_after_the_step_and_twice_at_once(signals: int, steps: int, tmp_path: Path) -> None:
    """The second step waits in its reward: it ends after one signal, and does not outlive two."""
    code = f"quick(task=tiny.task(reward=Opinion(2, lambda s: wait(s, {signals}))), out_dir={str(tmp_path)!r})"
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", PATHS + WAITING + code], stdout=pipe, stderr=pipe, text=True) as run:
        assert run.stdout is not None
        for _ in range(signals):
            assert run.stdout.readline() == "inside\n"
            run.send_signal(signal.SIGINT)
        error = run.communicate(timeout=120)[1]
    assert "KeyboardInterrupt" in error and f"The state after step {steps} is saved in" in error
    again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [steps / CONFIG.T]
    assert everything(again) == everything(quick())


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize(("signals", "steps"), [(1, 2), (2, 1)])
def test_a_scheduler_that_ends_the_process_leaves_the_state(
    number: signal.Signals, signals: int, steps: int, tmp_path: Path
) -> None:
    """As Ctrl+C; the exit code is that of a process which the signal ended, and `finally` has run."""
    code = f"""
try:
    quick(task=tiny.task(reward=Opinion(2, lambda s: wait(s, {signals}))), out_dir={str(tmp_path)!r})
finally:
    print("cleaned", flush=True)
"""
    with subprocess.Popen([sys.executable, "-c", PATHS + WAITING + code], stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        for _ in range(signals):
            assert run.stdout.readline() == "inside\n"
            run.send_signal(number)
        assert run.communicate(timeout=120)[0] == "cleaned\n" and run.returncode == 128 + number
    assert not (tmp_path / "owner.json").exists()
    again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [steps / CONFIG.T]
    assert everything(again) == everything(quick())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_between_two_runs_unwinds_the_call(number: signal.Signals, tmp_path: Path) -> None:
    """Here in the merge: the folder is released, finished runs stay."""

    def merge(*args: Any, **settings: Any) -> Any:
        signal.raise_signal(number)
        pytest.fail("the signal was lost")

    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped:
        quick(CONFIG.replace(T=1), out_dir=tmp_path, parts=replace(FAST, merge=merge))
    assert stopped.value.code == 128 + number and signal.getsignal(number) is before
    kept = {".lock", "config.json", "run_1_1.safetensors", "run_1_1.steps.jsonl"}
    assert {path.name for path in tmp_path.iterdir()} == kept


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_that_ends_processes_waits_and_a_second_one_does_not(number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(SystemExit) as stopped, interrupts_wait() as interrupted:
        signal.raise_signal(number)
        stop = interrupted()
        assert isinstance(stop, SystemExit) and stop.code == 128 + number
        signal.raise_signal(number)
        pytest.fail("the second signal was lost")
    assert signal.getsignal(number) is before and stopped.value.code == 128 + number


def test_the_programs_own_handler_is_called_after_the_block_and_an_ignored_signal_stays_ignored() -> None:
    called: list[bool] = []
    inside = [True]
    before = [signal.signal(signal.SIGTERM, lambda *_: called.append(inside[0])), signal.getsignal(signal.SIGHUP)]
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts_wait() as interrupted:
            signal.raise_signal(signal.SIGHUP)
            assert interrupted() is None
        with pytest.raises(SystemExit), interrupts_wait():
            signal.raise_signal(signal.SIGTERM)
            assert not called
            inside[0] = False
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGHUP, before[1])
    assert called == [False]


def test_a_first_interrupt_is_noted_a_second_one_raises_and_python_has_its_handler_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt), interrupts_wait() as interrupted:
        assert not interrupted()
        signal.raise_signal(signal.SIGINT)
        assert interrupted()
        signal.raise_signal(signal.SIGINT)
        pytest.fail("the second interrupt was lost")
    assert signal.getsignal(signal.SIGINT) is before
    reached: list[int] = []
    with pytest.raises(KeyboardInterrupt), interrupts_wait():  # one that nobody asked about is raised at the end
        signal.raise_signal(signal.SIGINT)
        reached.append(1)
    assert reached and signal.getsignal(signal.SIGINT) is before
    quick(CONFIG.replace(T=1))
    assert signal.getsignal(signal.SIGINT) is before


def kernel_error(client: Any, code: str, after: Callable[[], Any] = lambda: None) -> str:
    """Run a cell, calling `after` when it has printed "inside"; the name of its error, or nothing."""
    client.execute(code)
    error = ""
    while True:
        message = client.get_iopub_msg(timeout=120)
        kind, content = message["msg_type"], message["content"]
        if kind == "stream" and "inside" in content["text"]:
            after()
        elif kind == "error":
            error = content["ename"]
        elif kind == "status" and content["execution_state"] == "idle":
            return error


@pytest.mark.slow
def test_jupyters_stop_button_and_the_cell_again(tmp_path: Path) -> None:
    """The kernel is interrupted as JupyterLab's button does it; the same cell then resumes to the same bits."""
    from jupyter_client.manager import start_new_kernel

    cell = f"result = quick(task=tiny.task(reward=reward), out_dir={str(tmp_path)!r})"
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        assert kernel_error(client, PATHS + WAITING + "reward = Opinion(2, wait)") == ""
        assert kernel_error(client, cell, manager.interrupt_kernel) == "KeyboardInterrupt"
        assert len(unseal(tmp_path / STATE)[1]["history"]) == 2
        assert kernel_error(client, cell) == ""
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [1.0]
    assert everything(again) == everything(quick())


# long runs


def slope(values: list[float]) -> tuple[float, float]:
    """Slope of `values` by step, least squares, and the half width of its 95 % interval."""
    from scipy.stats import linregress, t

    fitted = linregress(range(len(values)), values)
    return fitted.slope, t.ppf(0.975, len(values) - 2) * fitted.stderr


@pytest.mark.slow
@pytest.mark.timeout(2400)
def test_a_long_run_needs_no_more_than_a_short_one(tmp_path: Path) -> None:
    """600 steps of a real policy, a checkpoint every 60: memory and open files by step, after the first 200."""
    import psutil

    policy, words = load_policy(SMALL)
    task = tiny.task(policy=policy.eval(), tokenizer=words)
    process, memory, files, sizes = psutil.Process(), [], [], []

    def watch(row: dict[str, float]) -> None:
        memory.append(process.memory_info().rss / 1e6)
        files.append(process.num_fds())
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))

    config = CONFIG.replace(T=600, lr=1e-6, batch_size=2, max_new_tokens=2, save_every=60)
    quick(config, task, out_dir=tmp_path, progress=watch)
    settled, handles = memory[200:], [float(count) for count in files[200:]]
    growth, half = slope(settled)
    print(
        f"memory: {1e3 * growth:.2f} +- {1e3 * half:.2f} MB in 1,000 steps of {settled[0]:.0f} MB; files: {set(files)}"
    )
    assert 1000 * (growth - half) < 0.01 * settled[0]
    assert slope(handles)[0] < 1e-3 and max(handles) <= min(handles) + 3
    state = max(path.stat().st_size for path in tmp_path.iterdir())
    history = 1000 * len(sizes)  # bytes: the rows of two checkpoints, which grow with the steps
    assert max(sizes) < 2 * 5 * state and max(sizes[300:]) <= max(sizes[:150]) + history


# the page


def test_every_promise_has_its_test() -> None:
    """docs/reliability.md names a test a row, and each is there."""
    page = (HERE.parent / "docs" / "reliability.md").read_text(encoding="utf-8")
    rows = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("|")][2:]
    assert len(rows) > 20
    for row in rows:
        assert len(row) == 3, row
        file, _, name = row[2].strip("`").partition("::")
        assert f"\ndef {name}(" in (HERE / file).read_text(encoding="utf-8"), row


PICKLING = {"pickle", "cPickle", "_pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
UNSAFE = {"torch.load", "torch.save", "allow_pickle", "read_pickle", "to_pickle", "trust_remote_code", "weights_only"}


def unsafe_names(source: str) -> set[str]:
    """Modules that pickle, and names that do it or that run code from elsewhere, as `source` uses them."""
    found = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import | ast.ImportFrom):
            modules = [node.module or ""] if isinstance(node, ast.ImportFrom) else [name.name for name in node.names]
            found |= PICKLING & {module.partition(".")[0] for module in modules}
        elif isinstance(node, ast.Attribute):
            found |= UNSAFE & {node.attr, ast.unparse(node)}
        elif isinstance(node, ast.keyword) and ast.unparse(node) != "trust_remote_code=False":
            found |= UNSAFE & {node.arg}
    return found


def test_nothing_that_is_exchanged_is_pickled() -> None:
    """Only the recipe of a task is, for the workers of one's own executor."""
    package = sorted((HERE.parent / "warp_nb").rglob("*.py"))
    found = {path.name: names for path in package if (names := unsafe_names(path.read_text(encoding="utf-8")))}
    assert len(package) > 20 and found == {"jobs.py": {"pickle"}}


@pytest.mark.parametrize(
    "planted",
    [
        "from pickle import loads",
        "import joblib.memory",
        "import torch\ntorch.load('x', weights_only=False)",
        "numpy.load('x', allow_pickle=True)",
        "pandas.read_pickle('x')",
        "AutoModel.from_pretrained('x', trust_remote_code=True)",
    ],
)
def test_a_planted_pickle_is_seen(planted: str) -> None:
    assert unsafe_names(planted)
