"""Faults that are injected: a run goes on to the same bits, or says what is wrong, and nothing is lost."""

from __future__ import annotations

import ast
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch

from warp_nb.config import WarpConfig
from warp_nb.runs.checkpoint import RunStates
from warp_nb.runs.policy_gradient import Run, train_run
from warp_nb.runs.sealed import DamagedFile, seal, unseal
from warp_nb.runs.warping import WarpResult, warp
from warp_nb.runs.weights import fingerprint, snapshot

HERE = Path(__file__).parent
CONFIG = WarpConfig(
    I=1, M=1, T=4, lr=1e-2, warmup_steps=2, beta=0.5, mu=0.1, eta=0.3, batch_size=4, max_new_tokens=5, threads=1
)
STATE, BEFORE = "run_1_1.state.safetensors", "run_1_1.state-before.safetensors"


def quick(config: WarpConfig = CONFIG, task: Any = None, **kwargs: Any) -> WarpResult:
    return warp(config, task or tiny.task(), progress=False, **kwargs)


class Opinion:
    """`tiny.opinion` that does something else at one of its calls."""

    __name__ = "opinion"

    def __init__(self, at: int, instead: Any) -> None:
        self.at, self.instead, self.calls = at, instead, 0

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> Any:
        self.calls += 1
        scores = tiny.opinion(prompts, completions)
        return self.instead(scores) if self.calls == self.at else scores


def fail(scores: list[float]) -> list[float]:
    raise OSError("the scoring service is gone")


def stopped(folder: Path, after: int, **changes: Any) -> None:
    """A run of CONFIG whose reward fails after `after` steps."""
    with pytest.raises(RuntimeError, match="service is gone"):
        quick(CONFIG.replace(**changes), tiny.task(reward=Opinion(after + 1, fail)), out_dir=folder)


# killed at every point


def killed(folder: Path, points: list[Any]) -> list[Any]:
    """What `killed.py` found for the points [function, number, when, save_every]."""
    text = "\n".join(map(json.dumps, points))
    done = subprocess.run(
        [sys.executable, HERE / "killed.py", folder], input=text, capture_output=True, text=True, timeout=1000
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [0, 1])
def test_killed_anywhere_it_goes_on_to_the_same_bits(save_every: int, tmp_path: Path) -> None:
    """SIGKILL of a real process before and after every rename, amid every write, in merges, rewards and updates."""
    ((ended, plain, _),) = killed(tmp_path / "runs", [["", 0, "", save_every]])
    assert ended == 0 and len(plain["digest"]) == 2 + 4 + 4 + (4 if save_every else 0)
    times = {"replace": ("before", "after"), "write_tensors": ("amid",)}
    points = [
        [name, number, when, save_every]
        for name, count in plain["calls"].items()
        for when in times.get(name, ("before",))
        for number in range(1, count + 1)
    ]
    found = killed(tmp_path / "runs", points)
    print(f"killed at {len(points)} points, save_every = {save_every}")
    assert len(found) == len(points) > 20
    for point, (signalled, again, left) in zip(points, found, strict=True):
        assert signalled == signal.SIGKILL, point
        assert again["digest"] == plain["digest"], point
        assert left == [], point


# states


def test_a_stopped_run_goes_on_at_its_next_step(tmp_path: Path) -> None:
    whole = quick()
    stopped(tmp_path, 3)
    assert (tmp_path / STATE).exists()
    calls = Opinion(0, fail)
    again = quick(task=tiny.task(reward=calls), out_dir=tmp_path)
    assert calls.calls == 1 and again.runs.loaded.tolist() == [0.75]
    assert fingerprint(again.policy.state_dict()) == fingerprint(whole.policy.state_dict())
    assert again.history.drop(columns="seconds").equals(whole.history.drop(columns="seconds"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock", "config.json", "init_1.safetensors", "run_1_1.json", "run_1_1.safetensors"
    ]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("anchor", ["ema", "sft"])
def test_a_state_is_all_that_the_next_step_depends_on(optimizer: str, anchor: str, tmp_path: Path) -> None:
    task, config = tiny.task(), CONFIG.replace(optimizer=optimizer, anchor=anchor)
    first, other = (Run(task, config, snapshot(task.policy), 1, 1) for _ in range(2))
    states = RunStates(tmp_path / STATE, "start")
    first.step(), first.step()
    states.save(first)
    RunStates(tmp_path / STATE, "start").restore(other)
    rows = [{k: v for k, v in run.step().items() if k != "seconds"} for run in (first, other)]
    ends = [fingerprint(dict(sorted(run.tensors().items()))) for run in (first, other)]
    assert rows[0] == rows[1] and ends[0] == ends[1]
    assert first.facts == other.facts and other.restored == 2


def test_the_last_two_states_are_kept_and_no_more(tmp_path: Path) -> None:
    stopped(tmp_path, 3, save_every=1)
    assert [len(unseal(tmp_path / name)[1]["history"]) for name in (STATE, BEFORE)] == [3, 2]
    assert len(list(tmp_path.glob("*state*"))) == 2


def test_how_often_states_are_kept_may_change(tmp_path: Path) -> None:
    stopped(tmp_path, 2, save_every=1)
    again = quick(CONFIG.replace(save_every=2), out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [0.5]
    assert json.loads((tmp_path / "config.json").read_text())["save_every"] == 2


def test_without_a_folder_no_state_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(RunStates, "save", lambda self, run: pytest.fail("a state was written"))
    with pytest.raises(RuntimeError, match="service is gone"):
        quick(CONFIG.replace(save_every=1), tiny.task(reward=Opinion(3, fail)))


def test_states_of_another_start_are_left_out(tmp_path: Path) -> None:
    task = tiny.task()
    run = Run(task, CONFIG, snapshot(task.policy), 1, 1)
    run.step()
    RunStates(tmp_path / STATE, "start").save(run)
    with pytest.warns(UserWarning, match=r"run_1_1\.state\.safetensors belongs to a run of another start"):
        RunStates(tmp_path / STATE, "other").restore(other := Run(task, CONFIG, snapshot(task.policy), 1, 1))
    assert other.history == []


# damage


def flip(path: Path, place: float) -> None:
    """Change one bit of the byte at a share of the file."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 4
    path.write_bytes(content)


def cut(path: Path, place: float) -> None:
    os.truncate(path, int(place * path.stat().st_size))


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_sealed_file_tells_damage_anywhere(damage: Any, place: float, tmp_path: Path) -> None:
    path, tensors = tmp_path / "sealed.safetensors", {"b": torch.arange(40.0), "a": torch.ones(3, dtype=torch.uint8)}
    seal(path, tensors, {"история": [1.5, 1e-300]})
    found, record = unseal(path)
    assert fingerprint({name: found[name] for name in tensors}) == fingerprint(tensors)
    assert record == {"история": [1.5, 1e-300]}
    damage(path, place)
    with pytest.raises(DamagedFile, match=r"sealed\.safetensors is damaged"):
        unseal(path)


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_state_is_named_and_the_one_before_is_used(damage: Any, tmp_path: Path) -> None:
    stopped(tmp_path, 3, save_every=1)
    damage(tmp_path / STATE, 0.7)
    with pytest.warns(UserWarning, match=r"run_1_1\.state\.safetensors is damaged .*; the run goes on after step 2"):
        again = quick(CONFIG.replace(save_every=1), out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [0.5]
    assert fingerprint(again.policy.state_dict()) == fingerprint(quick().policy.state_dict())


def test_a_damaged_state_never_takes_the_place_of_the_sound_one(tmp_path: Path) -> None:
    stopped(tmp_path, 3, save_every=1)
    sound = (tmp_path / BEFORE).read_bytes()
    flip(tmp_path / STATE, 0.7)
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(RuntimeError, match="service is gone"):
        quick(CONFIG.replace(save_every=1), tiny.task(reward=Opinion(2, fail)), out_dir=tmp_path)
    assert (tmp_path / BEFORE).read_bytes() == sound and len(unseal(tmp_path / STATE)[1]["history"]) == 3


def test_two_damaged_states_are_an_error_and_stay(tmp_path: Path) -> None:
    stopped(tmp_path, 3, save_every=1)
    for name in (STATE, BEFORE):
        flip(tmp_path / name, 0.7)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*state*")}
    with pytest.raises(
        DamagedFile, match=r"state\.safetensors is damaged .*; .*state-before.* is damaged .* or delete both"
    ):
        quick(out_dir=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*state*")} == before


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("name", ["run_1_1.json", "run_1_1.safetensors"])
def test_a_damaged_result_is_named_and_made_again(damage: Any, name: str, tmp_path: Path) -> None:
    first = quick(out_dir=tmp_path)
    damage(tmp_path / name, 0.5)
    with pytest.warns(UserWarning, match=rf"{name} is .*damaged.*; the run is made again"):
        again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [0.0]
    assert fingerprint(again.policy.state_dict()) == fingerprint(first.policy.state_dict())


def test_a_number_changed_in_a_record_is_seen(tmp_path: Path) -> None:
    quick(out_dir=tmp_path)
    record = json.loads((tmp_path / "run_1_1.json").read_text())
    record["history"][0]["reward"] += 1
    (tmp_path / "run_1_1.json").write_text(json.dumps(record))
    with pytest.warns(UserWarning, match="is damaged"):
        quick(out_dir=tmp_path)


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    quick(out_dir=tmp_path)
    cut(tmp_path / "config.json", 0.5)
    with pytest.raises(ValueError, match=r"config\.json is damaged .* put it back, or pass another out_dir"):
        quick(out_dir=tmp_path)


def test_a_damaged_start_is_written_again(tmp_path: Path) -> None:
    first = quick(out_dir=tmp_path)
    flip(tmp_path / "init_1.safetensors", 0.5)
    again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [1.0]
    assert fingerprint(again.policy.state_dict()) == fingerprint(first.policy.state_dict())


# the disk


FULL_DISK = f"""
import resource, signal, sys
from pathlib import Path
sys.path[:0] = [{str(HERE)!r}]
import tiny, test_reliability as t
folder, limit = Path(sys.argv[1]), int(sys.argv[2])
before, task = t.contents(folder), tiny.task()
if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
try:
    t.quick(t.CONFIG.replace(save_every=1), task, out_dir=folder)
except OSError as error:
    print("".join([str(error), *error.__notes__]))
assert t.contents(folder) == before, sorted(path.name for path in folder.iterdir())
"""


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the lock."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != ".lock"}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "said"), [("limit", "File too large"), ("tmpfs", "No space left on device")])
def test_a_full_disk_leaves_the_old_state_and_no_other_file(kind: str, said: str, tmp_path: Path) -> None:
    """A file may not grow beyond a limit; a small disk, mounted in a namespace of its own."""
    runs, disk = tmp_path / "runs", tmp_path / "disk"
    stopped(runs, 2, save_every=1)
    state = (runs / STATE).stat().st_size
    if kind == "limit":
        done = subprocess.run([sys.executable, "-c", FULL_DISK, runs, str(state - 100)], capture_output=True, text=True)
    else:
        private = ["unshare", "--user", "--map-root-user", "--mount"]
        if shutil.which("unshare") is None or subprocess.run([*private, "true"], capture_output=True).returncode:
            pytest.skip("this system mounts nothing without root; the limit stands for it")
        disk.mkdir()
        size = sum(path.stat().st_size + 4096 for path in runs.iterdir()) + state // 2
        script = 'mount -t tmpfs -o size="$1" tmpfs "$2" && cp -a "$3/." "$2" && exec "$4" -c "$5" "$2" 0'
        words = [str(size), disk, runs, sys.executable, FULL_DISK]
        done = subprocess.run([*private, "sh", "-c", script, "sh", *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert said in done.stdout and "could not be kept" in done.stdout, done.stdout
    again = quick(CONFIG, out_dir=runs)
    assert again.runs.loaded.tolist() == [0.5]


@pytest.mark.slow
def test_a_folder_that_cannot_be_written_is_refused_before_the_first_step(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("in the way")
    never = Opinion(1, lambda scores: pytest.fail("a step was made"))
    with pytest.raises(ValueError, match=r"cannot be written .*; pass another out_dir"):
        quick(task=tiny.task(reward=never), out_dir=blocked / "runs")
    with tempfile.TemporaryDirectory() as parent:
        shut = Path(parent) / "shut"
        shut.mkdir()
        shut.chmod(0o555)
        Path(parent).chmod(0o755)
        code = f"""
import os, sys; sys.path[:0] = [{str(HERE)!r}]
import pandas, test_reliability as t, tiny
task = tiny.task()
os.getuid() or os.setuid(65534)  # root may write anywhere
t.quick(task=task, out_dir={str(shut)!r})
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)
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
import sys; sys.path[:0] = [{str(HERE)!r}]
import time, test_reliability as t, tiny
def wait(scores):
    print("inside", flush=True)
    time.sleep(600)
t.quick(task=tiny.task(reward=t.Opinion(2, wait)), out_dir={str(tmp_path)!r})
"""
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout.readline() == "inside\n"
        with pytest.raises(RuntimeError, match=rf"is in use by process {first.pid} on "):
            quick(out_dir=tmp_path)
        first.kill()
    quick(out_dir=tmp_path)


# interrupts


def interrupted(folder: Path, signals: int, takes: float) -> tuple[float, str]:
    """Seconds from SIGINT to the end, and the error, of a run whose second step `takes` so many seconds.

    The process gets Python's own handler: a shell starts what runs in the background with SIGINT ignored.
    """
    code = f"""
import sys; sys.path[:0] = [{str(HERE)!r}]
import signal, time, test_reliability as t, tiny
signal.signal(signal.SIGINT, signal.default_int_handler)
def wait(scores):
    print("inside", flush=True)
    end = time.monotonic() + {takes}
    while time.monotonic() < end: time.sleep(0.05)
    return scores
t.quick(task=tiny.task(reward=t.Opinion(2, wait)), out_dir={str(folder)!r})
"""
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", code], stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout.readline() == "inside\n"
        started = time.monotonic()
        for _ in range(signals):
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
        error = process.communicate(timeout=60)[1]
    return time.monotonic() - started, error


@pytest.mark.slow
@pytest.mark.parametrize(("signals", "takes", "steps"), [(1, 3, 2), (2, 120, 1)])
def test_ctrl_c_ends_after_the_step_and_twice_at_once(signals: int, takes: float, steps: int, tmp_path: Path) -> None:
    seconds, error = interrupted(tmp_path, signals, takes)
    assert "KeyboardInterrupt" in error and f"The state after step {steps} is kept in" in error
    assert (seconds < takes) == (signals == 2)
    again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [steps / CONFIG.T]
    assert fingerprint(again.policy.state_dict()) == fingerprint(quick().policy.state_dict())


def test_an_interrupt_is_pythons_again_after_a_run() -> None:
    before = signal.getsignal(signal.SIGINT)
    quick(CONFIG.replace(T=1))
    assert signal.getsignal(signal.SIGINT) is before


# errors of a step


def test_an_error_amid_the_update_is_not_kept_as_a_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped(tmp_path, 1)
    before = (tmp_path / STATE).read_bytes()

    def half_done(anchor: Any, policy: Any, mu: float) -> None:
        raise MemoryError("no memory for the anchor")

    with monkeypatch.context() as context, pytest.raises(MemoryError):
        context.setattr("warp_nb.runs.policy_gradient.ema_update_", half_done)
        quick(out_dir=tmp_path)
    assert (tmp_path / STATE).read_bytes() == before
    assert fingerprint(quick(out_dir=tmp_path).policy.state_dict()) == fingerprint(quick().policy.state_dict())


def test_a_failed_step_changes_nothing() -> None:
    task = tiny.task(reward=Opinion(2, fail))
    run = Run(task, CONFIG, snapshot(task.policy), 1, 1)
    run.step()
    before, facts = fingerprint(run.tensors()), dict(run.facts)
    with pytest.raises(RuntimeError, match=r"reward opinion at iteration 1, run 1, step 2 raised OSError: the scoring"):
        run.step()
    assert fingerprint(run.tensors()) == before and run.facts == facts and len(run.history) == 1 and run.whole
    assert all(value.grad is None for value in run.policy.parameters())


BAD = {
    "nan": lambda scores: [float("nan"), *scores[1:]],
    "infinity": lambda scores: [*scores[:-1], float("inf")],
    "None": lambda scores: [None, *scores[1:]],
    "text": lambda scores: ["0.5", *scores[1:]],
    "too few": lambda scores: scores[1:],
    "too many": lambda scores: [*scores, 0.0],
    "a number": lambda scores: 0.5,
    "nothing": lambda scores: None,
    "a column": lambda scores: torch.tensor(scores)[:, None],
    "rows": lambda scores: [[value] for value in scores],
    "error": fail,
}


@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reward_is_named_and_the_state_before_it_is_kept(kind: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"reward opinion at iteration 1, run 1, step 3") as caught:
        quick(task=tiny.task(reward=Opinion(3, BAD[kind])), out_dir=tmp_path)
    if kind not in ("too few", "too many", "a number", "nothing"):
        assert "prompt" in str(caught.value)
    again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [0.5]
    assert fingerprint(again.policy.state_dict()) == fingerprint(quick().policy.state_dict())


@pytest.mark.parametrize("where", ["loss", "kl", "gradient"])
def test_a_number_that_is_not_finite_stops_before_the_update(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from warp_nb.runs import policy_gradient

    task = tiny.task()
    run = Run(task, CONFIG, snapshot(task.policy), 1, 1)
    run.step()
    before, true = fingerprint(run.tensors()), policy_gradient.policy_gradient_loss

    def poisoned(*args: Any) -> Any:
        loss, row = true(*args)
        if where == "kl":
            return loss, row | {"kl": float("inf")}
        return (loss * float("nan") if where == "loss" else loss + next(run.policy.parameters()).sum() * 1e38 * 10), row

    monkeypatch.setattr(policy_gradient, "policy_gradient_loss", poisoned)
    with pytest.raises(FloatingPointError, match=r"at iteration 1, run 1, step 2; lower lr"):
        run.step()
    assert fingerprint(run.tensors()) == before


def test_keeping_states_changes_no_bit(tmp_path: Path) -> None:
    """`train_run` with states and without: one result."""
    task = tiny.task()
    init = snapshot(task.policy)
    plain = train_run(task, CONFIG, init, 1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        kept = train_run(task, CONFIG.replace(save_every=1), init, 1, 1, states=RunStates(tmp_path / STATE, "start"))
    assert fingerprint(plain.state) == fingerprint(kept.state) and (tmp_path / STATE).exists()


def kernel_error(client: Any, code: str, after: Any = lambda: None) -> str:
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
    """The kernel is interrupted as JupyterLab's button does it; the same cell then goes on to the same bits."""
    from jupyter_client.manager import start_new_kernel

    prepare = f"""
import sys; sys.path[:0] = [{str(HERE)!r}]
import time, test_reliability as t, tiny
def wait(scores):
    print("inside", flush=True)
    time.sleep(1)
    return scores
reward = t.Opinion(2, wait)
"""
    cell = f"result = t.quick(task=tiny.task(reward=reward), out_dir={str(tmp_path)!r})"
    manager, client = start_new_kernel(kernel_name="python3")
    try:
        assert kernel_error(client, prepare) == ""
        assert kernel_error(client, cell, manager.interrupt_kernel) == "KeyboardInterrupt"
        assert len(unseal(tmp_path / STATE)[1]["history"]) == 2
        assert kernel_error(client, cell) == ""
    finally:
        client.stop_channels()
        manager.shutdown_kernel(now=True)
    again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [1.0]
    assert fingerprint(again.policy.state_dict()) == fingerprint(quick().policy.state_dict())


# shapes


@pytest.mark.parametrize("changes", [{"batch_size": 1}, {"M": 1, "T": 1}, {"max_new_tokens": 1}], ids=str)
def test_the_least_there_is_runs(changes: dict[str, int]) -> None:
    assert quick(CONFIG.replace(**changes), tiny.task(train_prompts=["the film"])).history.reward.notna().all()


def test_completions_that_end_with_their_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    """All at once, and all but one: empty text, one token each, a gradient all the same."""
    words = tiny.tokenizer()
    from warp_nb.fast import rollout

    def ended(log_probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return torch.full((len(log_probs),), words.eos_token_id)

    def but_one(log_probs: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        tokens = ended(log_probs, generator)
        tokens[0] = 1
        return tokens

    for draw, lengths in ((ended, 1.0), (but_one, (3 * 1 + CONFIG.max_new_tokens) / 4)):
        monkeypatch.setattr(rollout, "_draw", draw)
        result = quick()
        assert result.history.tokens.eq(lengths).all() and result.history.grad_norm.gt(0).all()
        assert result.runs.scored_after_end.eq(0).all()


@pytest.mark.parametrize("special", [{"end": False}, {"pad": True}, {"begin": True}, {}], ids=str)
def test_the_side_a_tokenizer_pads_on_changes_no_bit(special: dict[str, bool]) -> None:
    found = []
    for side in ("left", "right"):
        words = tiny.tokenizer(**special)
        words.padding_side = side
        found.append(quick(task=tiny.task(tokenizer=words)))
    first, other = (fingerprint(result.policy.state_dict()) for result in found)
    assert first == other


def test_a_prompt_beyond_the_context_is_refused_before_anything_is_sampled() -> None:
    with pytest.raises(ValueError, match="prompt of 28 tokens, at most 27 fit beside the completion: 'the the"):
        quick(task=tiny.task(train_prompts=[" ".join(["the"] * 28)]))


# long runs


def slope(values: list[float]) -> tuple[float, float]:
    """Slope of `values` by step, least squares, and the half width of its 95 % interval."""
    from scipy.stats import linregress, t

    fitted = linregress(range(len(values)), values)
    return fitted.slope, t.ppf(0.975, len(values) - 2) * fitted.stderr


@pytest.mark.slow
def test_a_long_run_needs_no_more_than_a_short_one(tmp_path: Path) -> None:
    """2,000 steps of a real policy, a state every 200: memory and open files by step, after the first 400."""
    import psutil

    from warp_nb.tasks.task import SMALL, _load

    policy, words = _load(SMALL)
    task = tiny.task(policy=policy.eval(), tokenizer=words)
    process, memory, files, sizes = psutil.Process(), [], [], []

    def watch(row: dict[str, float]) -> None:
        memory.append(process.memory_info().rss / 1e6)
        files.append(process.num_fds())
        sizes.append(sum(path.stat().st_size for path in tmp_path.iterdir()))

    config = CONFIG.replace(T=2000, lr=1e-6, batch_size=2, max_new_tokens=2, save_every=200, threads=2)
    warp(config, task, tmp_path, progress=watch)
    settled, handles = memory[400:], [float(count) for count in files[400:]]
    growth, half = slope(settled)
    print(
        f"memory: {1e3 * growth:.2f} +- {1e3 * half:.2f} MB in 1,000 steps of {settled[0]:.0f} MB; files: {set(files)}"
    )
    assert 1000 * (growth - half) < 0.01 * settled[0]
    assert slope(handles)[0] < 1e-3 and max(handles) <= min(handles) + 3
    state = max(path.stat().st_size for path in tmp_path.iterdir())
    history = 1000 * len(sizes)  # bytes: the rows of two states, which grow with the steps
    assert max(sizes) < 2 * 5 * state and max(sizes[1000:]) <= max(sizes[:500]) + history


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
        elif isinstance(node, ast.keyword):
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
