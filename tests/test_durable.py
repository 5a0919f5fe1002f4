"""A folder of runs: a second call resumes bit-identically, damage is named, and another caller's folder is refused."""

from __future__ import annotations

import errno
import json
import os
import socket
import subprocess
import sys
import warnings
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from faulty import BEFORE, CONFIG, FOUR_RUNS, STATE, Opinion, cut, everything, fail, flip, quick, stopped

from warp_nb.algorithm.merge import weights_of
from warp_nb.config import WarpConfig
from warp_nb.files import DamagedFile, fingerprint, seal, unseal, write_json
from warp_nb.runs.checkpoint import Checkpoints
from warp_nb.runs.folder import owner
from warp_nb.runs.jobs import SnapshotFiles, torch_threads
from warp_nb.runs.training import FAST, PLAIN, Training, train

RESULT = "run_1_1.safetensors"


@cache
def whole(config: WarpConfig = CONFIG) -> list[Any]:
    """All of the result of an uninterrupted call in memory."""
    return everything(quick(config))


def dead(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    raise AssertionError("the reward was called again")


never = Opinion(1, lambda scores: pytest.fail("the reward was called again"))
"""Known to a folder as `opinion`."""

# finished runs


def test_finished_runs_are_loaded_and_not_repeated(tmp_path: Path) -> None:
    rows: list[Any] = []
    first = quick(FOUR_RUNS, out_dir=tmp_path)
    again = quick(FOUR_RUNS, tiny.task(reward=never), out_dir=tmp_path, progress=rows.append)
    assert everything(first) == everything(again) == whole(FOUR_RUNS)
    assert first.runs.loaded.eq(0).all() and again.runs.loaded.eq(1).all()
    assert first.runs.seconds.equals(again.runs.seconds) and len(rows) == len(again.history)
    runs = [f"run_{i}_{m}{end}" for i in (1, 2) for m in (1, 2) for end in (".safetensors", ".steps.jsonl")]
    assert sorted(path.name for path in tmp_path.iterdir()) == [".lock", "config.json", "final", "merged", *runs]


def test_a_missing_run_and_one_of_another_start_are_made_again_to_the_bit(tmp_path: Path) -> None:
    quick(FOUR_RUNS, out_dir=tmp_path)
    (tmp_path / "run_1_2.safetensors").unlink()
    weights, record = unseal(tmp_path / "run_2_1.safetensors")
    seal(tmp_path / "run_2_1.safetensors", weights, record | {"start": "0" * 64})
    again = quick(FOUR_RUNS, out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [1, 0, 0, 1]
    assert everything(again) == whole(FOUR_RUNS)


def test_a_call_that_failed_in_its_third_run_resumes_there(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="service is gone"):
        quick(FOUR_RUNS, tiny.task(reward=Opinion(8, fail)), out_dir=tmp_path)
    again = quick(FOUR_RUNS, out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [1, 1, 1 / 3, 0]
    assert everything(again) == whole(FOUR_RUNS)


# checkpoints


def test_a_stopped_run_goes_on_at_its_next_step(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="service is gone") as caught:
        quick(task=tiny.task(reward=Opinion(4, fail)), out_dir=tmp_path)
    saved = str(tmp_path / STATE)
    assert caught.value.__notes__ == [f"The state after step 3 is saved in {saved}; the same call resumes there"]
    calls, rows = Opinion(0, fail), []
    again = quick(task=tiny.task(reward=calls), out_dir=tmp_path, progress=rows.append)
    assert calls.calls == 1 and again.runs.loaded.tolist() == [0.75]
    assert everything(again) == whole() and [row["step"] for row in rows] == [1, 2, 3, 4]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        ".lock", "config.json", "final", "merged", RESULT, "run_1_1.steps.jsonl"
    ]  # fmt: skip


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("anchor", ["ema", "sft"])
def test_a_checkpoint_is_all_that_the_next_step_depends_on(optimizer: str, anchor: str, tmp_path: Path) -> None:
    """Weights, moments, anchor, noise, order of prompts and the facts of the whole run."""
    task, config = tiny.task(), CONFIG.replace(optimizer=optimizer, anchor=anchor)
    init = weights_of(task.policy)
    ends: list[str] = []

    def remembering(*args: Any, watch: Training, **settings: Any) -> Any:
        weights = FAST.train_run(*args, watch=watch, **settings)
        ends.append(fingerprint(watch.state_dict()))
        return weights

    settings = {"parts": replace(FAST, train_run=remembering)}
    whole = train(config, task, init, i=1, m=1, **settings)
    with pytest.raises(RuntimeError):
        checkpoints = Checkpoints(tmp_path / STATE, "start")
        train(config, tiny.task(reward=Opinion(3, fail)), init, i=1, m=1, checkpoints=checkpoints, **settings)
    found = train(config, task, init, i=1, m=1, checkpoints=Checkpoints(tmp_path / STATE, "start"), **settings)
    assert len(ends) == 2 and ends[0] == ends[1]
    assert fingerprint(found.weights) == fingerprint(whole.weights)
    assert [row | {"seconds": 0} for row in found.history] == [row | {"seconds": 0} for row in whole.history]
    assert found.facts | {"seconds": 0} == whole.facts | {"seconds": 0, "loaded": 0.5}


def test_the_last_two_checkpoints_are_kept_and_no_more(tmp_path: Path) -> None:
    stopped(tmp_path, 3, save_every=1)
    assert [len(unseal(tmp_path / name)[1]["history"]) for name in (STATE, BEFORE)] == [3, 2]
    assert len(list(tmp_path.glob("*state*"))) == 2


def test_how_often_checkpoints_are_saved_may_change(tmp_path: Path) -> None:
    stopped(tmp_path, 2, save_every=1)
    again = quick(CONFIG.replace(save_every=2), out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [0.5] and everything(again) == whole()
    assert json.loads((tmp_path / "config.json").read_text())["save_every"] == 2


def test_checkpoints_of_another_start_are_left_out(tmp_path: Path) -> None:
    task, path = tiny.task(), tmp_path / STATE
    init = weights_of(task.policy)
    train(CONFIG.replace(T=1, save_every=1), task, init, i=1, m=1, checkpoints=Checkpoints(path, "start"))
    with pytest.warns(UserWarning, match=r"run_1_1\.state\.safetensors belongs to a run from another θ_init"):
        found = train(CONFIG, task, init, i=1, m=1, checkpoints=Checkpoints(path, "other"))
    assert found.facts["loaded"] == 0
    assert fingerprint(found.weights) == fingerprint(train(CONFIG, task, init, i=1, m=1).weights)


def test_saving_checkpoints_changes_no_bit_and_warns_of_nothing(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        saved = quick(CONFIG.replace(save_every=1), out_dir=tmp_path)
    assert everything(saved) == whole()


def test_an_error_amid_the_update_is_not_saved(tmp_path: Path) -> None:
    def half_done(anchor: Any, policy: Any, mu: float) -> None:
        raise MemoryError("no memory for the anchor")

    sound = replace(FAST, ema_update_=lambda *args: FAST.ema_update_(*args))  # the same parts by name
    with pytest.raises(RuntimeError, match="service is gone"):
        quick(task=tiny.task(reward=Opinion(2, fail)), out_dir=tmp_path, parts=sound)
    before = (tmp_path / STATE).read_bytes()
    with pytest.raises(MemoryError) as caught:
        quick(out_dir=tmp_path, parts=replace(FAST, ema_update_=half_done))
    assert (tmp_path / STATE).read_bytes() == before and not hasattr(caught.value, "__notes__")
    assert everything(quick(out_dir=tmp_path, parts=sound)) == whole()


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


@pytest.mark.slow
@pytest.mark.parametrize("kind", BAD)
def test_a_bad_reward_is_named_and_the_state_before_it_is_saved(kind: str, tmp_path: Path) -> None:
    with pytest.raises((ValueError, RuntimeError), match=r"reward opinion at iteration 1, run 1, step 3") as caught:
        quick(task=tiny.task(reward=Opinion(3, BAD[kind])), out_dir=tmp_path)
    if kind not in ("too few", "too many", "a number", "nothing"):
        assert "prompt" in str(caught.value)
    again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [0.5]
    assert everything(again) == whole()


# snapshots


SNAPSHOTS = CONFIG.replace(snapshot_every=1, keep_anchors=True)
EVERY = {(1, 1, at) for at in (1, 2, 3, 4, "anchor")}


def test_snapshots_in_a_folder_have_the_bits_of_those_in_memory(tmp_path: Path) -> None:
    config = FOUR_RUNS.replace(snapshot_every=2, keep_anchors=True)
    memory, folder = quick(config), quick(config, out_dir=tmp_path)
    assert everything(memory) == everything(folder)
    assert set(folder.snapshots) == {(i, m, at) for i in (1, 2) for m in (1, 2) for at in (2, "anchor")}
    again = quick(config, tiny.task(reward=never), out_dir=tmp_path)
    assert everything(again) == everything(memory) and len(again.snapshots) == 8
    with pytest.raises(KeyError):
        again.snapshots[1, 1, 3]
    flip(tmp_path / "run_2_1.at-2.safetensors")
    with pytest.raises(DamagedFile, match=r"run_2_1\.at-2\.safetensors is damaged"):
        again.snapshots[2, 1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("save_every", [0, 1, 3])
@pytest.mark.parametrize("after", [1, 3])
def test_a_resumed_run_has_all_its_snapshots(after: int, save_every: int, tmp_path: Path) -> None:
    config = SNAPSHOTS.replace(save_every=save_every)
    with pytest.raises(RuntimeError):
        quick(config, tiny.task(reward=Opinion(after + 1, fail)), out_dir=tmp_path)
    assert set(SnapshotFiles(tmp_path, {})) == {(1, 1, step) for step in range(1, after + 1)}
    again = quick(config, out_dir=tmp_path)
    assert set(again.snapshots) == EVERY and again.runs.loaded.tolist() == [after / 4]
    assert everything(again) == whole(SNAPSHOTS)


@pytest.mark.parametrize(("at", "loaded"), [(3, 0.75), ("anchor", 1.0)])
def test_a_snapshot_that_could_not_be_written_is_written_on_resuming(
    at: int | str, loaded: float, tmp_path: Path
) -> None:
    """The step was whole, so its state is saved; only its snapshot is missing, and the next call makes it up."""
    task, init = tiny.task(), weights_of(tiny.task().policy)
    found: dict[Any, Any] = {}

    def full(place: int | str, weights: Any) -> None:
        if place == at:
            raise OSError("no space left")
        found[place] = weights

    def resumed(keep: Any) -> Any:
        checkpoints = Checkpoints(tmp_path / STATE, "start")
        return train(SNAPSHOTS, task, init, i=1, m=1, keep=keep, checkpoints=checkpoints)

    with torch_threads(SNAPSHOTS.threads):
        with pytest.raises(OSError, match="no space left"):
            resumed(full)
        assert resumed(found.__setitem__).facts["loaded"] == loaded
    memory = quick(SNAPSHOTS).snapshots
    assert {at: fingerprint(found[at]) for at in found} == {at: fingerprint(memory[1, 1, at]) for *_, at in EVERY}


def test_steps_are_saved_when_their_result_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / RESULT).mkdir()  # no file can take the name of a folder
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(OSError) as caught:
        quick(out_dir=tmp_path)
    assert f"The state after step {CONFIG.T} is saved" in caught.value.__notes__[0]
    (tmp_path / RESULT).rmdir()
    again = quick(CONFIG, tiny.task(reward=never), out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [1] and everything(again) == whole()


# damage


@pytest.mark.parametrize("damage", [flip, cut])
def test_a_damaged_checkpoint_is_named_and_the_one_before_is_used(damage: Callable[..., None], tmp_path: Path) -> None:
    stopped(tmp_path, 3, save_every=1)
    damage(tmp_path / STATE)
    with pytest.warns(UserWarning, match=r"run_1_1\.state\.safetensors is damaged .*; the run resumes after step 2"):
        again = quick(CONFIG.replace(save_every=1), out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [0.5]
    assert everything(again) == whole()


def test_a_damaged_checkpoint_never_takes_the_place_of_the_sound_one(tmp_path: Path) -> None:
    stopped(tmp_path, 3, save_every=1)
    sound = (tmp_path / BEFORE).read_bytes()
    flip(tmp_path / STATE)
    with pytest.warns(UserWarning, match="is damaged"), pytest.raises(RuntimeError, match="service is gone"):
        quick(CONFIG.replace(save_every=1), tiny.task(reward=Opinion(2, fail)), out_dir=tmp_path)
    assert (tmp_path / BEFORE).read_bytes() == sound and len(unseal(tmp_path / STATE)[1]["history"]) == 3


def test_two_damaged_checkpoints_are_an_error_and_stay(tmp_path: Path) -> None:
    stopped(tmp_path, 3, save_every=1)
    for name in (STATE, BEFORE):
        flip(tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.glob("*state*")}
    with pytest.raises(
        DamagedFile, match=r"state\.safetensors is damaged .*; .*state-before.* is damaged .* or delete both"
    ) as caught:
        quick(out_dir=tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.glob("*state*")} == before
    assert not hasattr(caught.value, "__notes__")  # nothing is said to be saved


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("place", [0.1, 0.7])
def test_a_damaged_result_is_named_and_made_again(damage: Callable[..., None], place: float, tmp_path: Path) -> None:
    """Its record stands in front, its weights behind; one seal covers both."""
    quick(out_dir=tmp_path)
    damage(tmp_path / RESULT, place)
    with pytest.warns(UserWarning, match=r"run_1_1\.safetensors is damaged .*; the run is made again"):
        again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [0.0]
    assert everything(again) == whole()


def test_a_number_changed_in_a_record_is_seen(tmp_path: Path) -> None:
    quick(out_dir=tmp_path)
    content = bytearray((tmp_path / RESULT).read_bytes())
    at = content.index(b".", content.index(b"reward")) + 1
    content[at] = ord("7") if content[at] != ord("7") else ord("3")
    (tmp_path / RESULT).write_bytes(content)
    with pytest.warns(UserWarning, match="is damaged"):
        quick(out_dir=tmp_path)


def test_a_damaged_configuration_is_refused(tmp_path: Path) -> None:
    quick(out_dir=tmp_path)
    cut(tmp_path / "config.json")
    with pytest.raises(ValueError, match=r"config\.json is damaged .* put it back, or pass another out_dir"):
        quick(out_dir=tmp_path)


HARMS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "policy shape": lambda tensors, record: tensors.update({POLICY: tensors[POLICY][:1].clone()}),
    "policy name": lambda tensors, record: tensors.update({"policy.other": tensors.pop(POLICY)}),
    "policy dtype": lambda tensors, record: tensors.update({POLICY: tensors[POLICY].half()}),
    "anchor missing": lambda tensors, record: tensors.pop("anchor.transformer.wpe.weight"),
    "moment shape": lambda tensors, record: tensors.update({"optimizer.0.exp_avg": torch.zeros(1)}),
    "moment missing": lambda tensors, record: tensors.pop("optimizer.3.exp_avg_sq"),
    "moment of no parameter": lambda tensors, record: tensors.update({"optimizer.99.step": torch.zeros(())}),
    "moment of no number": lambda tensors, record: tensors.update({"optimizer.x.step": torch.zeros(())}),
    "noise": lambda tensors, record: tensors.update(noise=torch.zeros_like(tensors["noise"])),
    "short noise": lambda tensors, record: tensors.update(noise=tensors["noise"][:9].clone()),
    "probe": lambda tensors, record: tensors.update({"probe.expected": torch.zeros(1, dtype=torch.float64)}),
    "no history": lambda tensors, record: record.update(history=[]),
    "long history": lambda tensors, record: record.update(history=record["history"] * 2),
    "no rows": lambda tensors, record: record.update(history=[[]]),
    "rows without figures": lambda tensors, record: record.update(history=[{"step": 1}]),
    "another run": lambda tensors, record: record["history"][0].update(run=2),
    "no start": lambda tensors, record: record.pop("start"),
}
"""What a sealed checkpoint may hold that is not of the run."""
POLICY = "policy.transformer.wte.weight"


@pytest.mark.slow
@pytest.mark.parametrize("harm", HARMS)
def test_a_checkpoint_that_does_not_fit_is_named_and_the_one_before_is_used(harm: str, tmp_path: Path) -> None:
    stopped(tmp_path, 3, save_every=1)
    tensors, record = unseal(tmp_path / STATE)
    HARMS[harm](tensors, record)
    seal(tmp_path / STATE, tensors, record)
    with pytest.warns(UserWarning, match=r"run_1_1\.state\.safetensors is damaged \(.*; the run resumes after step 2"):
        again = quick(CONFIG.replace(save_every=1), out_dir=tmp_path)
    assert everything(again) == whole()


WRONG_RESULTS: dict[str, Callable[[dict[str, Any], dict[str, Any]], Any]] = {
    "shape": lambda weights, record: weights.update({"transformer.wte.weight": torch.zeros(1)}),
    "name": lambda weights, record: weights.update(other=weights.pop("transformer.wte.weight")),
    "no facts": lambda weights, record: record.pop("facts"),
    "empty facts": lambda weights, record: record.update(facts={}),
    "text for a fact": lambda weights, record: record["facts"].update(unmoved="0"),
    "facts are a list": lambda weights, record: record.update(facts=[]),
    "no steps": lambda weights, record: record.update(history=[]),
    "no figures": lambda weights, record: record["history"][0].pop("reward"),
    "null for a figure": lambda weights, record: record["history"][1].update(kl=None),
}


@pytest.mark.slow
@pytest.mark.parametrize("harm", WRONG_RESULTS)
def test_a_result_of_another_kind_is_named_and_made_again(harm: str, tmp_path: Path) -> None:
    quick(out_dir=tmp_path)
    weights, record = unseal(tmp_path / RESULT)
    WRONG_RESULTS[harm](weights, record)
    seal(tmp_path / RESULT, weights, record)
    with pytest.warns(UserWarning, match=r"run_1_1\.safetensors is damaged \(.*; the run is made again"):
        again = quick(out_dir=tmp_path)
    assert again.runs.loaded.tolist() == [0.0] and everything(again) == whole()


@pytest.mark.slow
@pytest.mark.parametrize("record", [None, [], 7, "ok", {"status": "ok"}])
def test_a_sealed_record_that_is_none_is_named(record: Any, tmp_path: Path) -> None:
    quick(out_dir=tmp_path)
    weights, _ = unseal(tmp_path / RESULT)
    seal(tmp_path / RESULT, weights, record)
    with pytest.warns(UserWarning, match="its record lacks facts, history, start"):
        assert everything(quick(out_dir=tmp_path)) == whole()


def test_a_snapshot_of_another_policy_is_named(tmp_path: Path) -> None:
    found = quick(SNAPSHOTS, out_dir=tmp_path).snapshots
    seal(tmp_path / "run_1_1.at-2.safetensors", weights_of(tiny.gpt2(len(tiny.tokenizer()), width=8)), 2)
    with pytest.raises(DamagedFile, match=r"run_1_1\.at-2\.safetensors is damaged \(its tensors are not the policy's"):
        found[1, 1, 2]
    (tmp_path / "run_x_y.at-end.safetensors").touch()  # not ours
    assert set(found) == EVERY


@pytest.mark.slow
@pytest.mark.parametrize("text", ["", "[]", "null", "[" * 100_000, '{"lr": ' * 100_000, '"ok"', '{"status": "ok"}'])
def test_a_configuration_that_is_no_record_is_refused(text: str, tmp_path: Path) -> None:
    quick(out_dir=tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json is damaged .* put it back, or pass another out_dir"):
        quick(out_dir=tmp_path)


# whose folder it is


def test_another_configuration_is_refused_with_what_differs(tmp_path: Path) -> None:
    small = CONFIG.replace(T=1)
    quick(small, out_dir=tmp_path)
    saved = (tmp_path / "config.json").read_text()
    refusals: list[tuple[dict[str, Any], dict[str, Any], str]] = [
        ({"lr": 0.02, "eta": 0.9}, {"reward": never}, r"lr: 0\.01 there, 0\.02 here; eta: 0\.3 there, 0\.9 here"),
        ({"snapshot_every": 1}, {}, "snapshot_every: 0 there, 1 here"),
        ({"threads": 2}, {}, "threads: 1 there, 2 here"),
        (
            {},
            {"reward": dead},
            r"configuration \(reward\.name: 'opinion' there, 'dead' here; reward\.source_sha256: '\w+' there, ",
        ),
        ({}, {"train_prompts": ["the film"]}, r"configuration \(prompts_sha256"),
        (
            {},
            {"policy": tiny.gpt2(len(tiny.tokenizer()), seed=5, spread=0.05)},
            r"configuration \(policy_sha256: '\w+' there",
        ),
        ({}, {"name": "other"}, "task_name: 'tiny' there, 'other' here"),
    ]
    for changes, task, said in refusals:
        with pytest.raises(ValueError, match=rf"{said}.*\); pass another out_dir"):
            quick(small.replace(**changes), tiny.task(**task), out_dir=tmp_path)
    assert (tmp_path / "config.json").read_text() == saved


def own_merge(*args: Any, **settings: Any) -> Any:
    return FAST.merge(*args, **settings)


def test_a_folder_names_the_parts_that_were_replaced(tmp_path: Path) -> None:
    parts = replace(FAST, merge=own_merge, run_seed=lambda seed, i, m: seed)
    quick(parts=parts, out_dir=tmp_path / "own")
    assert json.loads((tmp_path / "own" / "config.json").read_text())["parts"] == ["merge", "run_seed"]
    with pytest.raises(ValueError, match=r"parts: \['merge', 'run_seed'\] there, \[\] here"):
        quick(out_dir=tmp_path / "own")
    assert quick(parts=parts, out_dir=tmp_path / "own").runs.loaded.tolist() == [1.0]
    quick(out_dir=tmp_path / "fast")
    with pytest.raises(ValueError, match=r"parts: \[\] there, \['sample', 'token_log_probs', 'token_kl', "):
        quick(parts=PLAIN, out_dir=tmp_path / "fast")


# files that are not ours


def test_no_file_that_is_not_ours_is_deleted(tmp_path: Path) -> None:
    hexes = "0123456789abcdef" * 2
    theirs = [
        ".notes.new", ".config.json.new", f".thesis.tex.{hexes}.new", f".run_1_1.csv.{hexes}.new", "run_1_1.csv",
        f".config.json.{hexes[:-1]}.new", f".config.json.{hexes.upper()}.new", f".index.html.{hexes}.new",
    ]  # fmt: skip
    kinds = ("state", "state-before", "at-10", "at-anchor")
    names = ["config.json", "owner.json", "init_12.safetensors", "run_1_2.safetensors", "run_1_2.steps.jsonl"]
    ours = [f".{name}.{hexes}.new" for name in [*names, *(f"run_1_2.{kind}.safetensors" for kind in kinds)]]
    for name in theirs + ours:
        (tmp_path / name).write_text(name)
    (tmp_path / f".run_1_3.safetensors.{hexes}.new").mkdir()
    (tmp_path / f".final-{hexes}").mkdir()
    quick(CONFIG.replace(T=1), out_dir=tmp_path)
    left = {path.name: path for path in tmp_path.iterdir()}
    assert all(left[name].read_text() == name for name in theirs) and not left.keys() & set(ours)
    assert f".run_1_3.safetensors.{hexes}.new" in left and f".final-{hexes}" not in left


@pytest.mark.parametrize("name", [".lock", "owner.json", "config.json", "run_1_1.safetensors", "init_1.safetensors"])
def test_a_file_of_anothers_that_has_our_name_is_refused_and_stays(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_text('{"owner": "me"}')
    with pytest.raises(ValueError, match=rf"{name} .*pass another out_dir"):
        quick(out_dir=tmp_path)
    assert (tmp_path / name).read_text() == '{"owner": "me"}'
    assert {path.name for path in tmp_path.iterdir()} <= {name, ".lock"}


@pytest.mark.parametrize("found", ["[]", '{"pid": -1, "host": "x", "started": "y"}', '{"pid": "1"}', "[" * 100_000])
def test_a_record_of_an_owner_that_is_none_is_refused_by_name(found: str, tmp_path: Path) -> None:
    (tmp_path / "owner.json").write_text(found)
    with pytest.raises(ValueError, match=r"owner\.json does not name a process, .*; move it, or pass another out_dir"):
        quick(out_dir=tmp_path)
    assert owner(tmp_path) == "another process"


def test_a_dead_process_is_not_named_as_the_owner(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", ""]) as dead_process:
        dead_process.wait()
    found = {"pid": dead_process.pid, "host": socket.gethostname(), "started": "2026-01-01T00:00:00+00:00"}
    write_json(tmp_path / "owner.json", found)
    assert owner(tmp_path) == "another process"
    write_json(tmp_path / "owner.json", found | {"host": "elsewhere"})
    assert owner(tmp_path) == f"process {dead_process.pid} on elsewhere since 2026-01-01T00:00:00+00:00"
    quick(CONFIG.replace(T=1), out_dir=tmp_path)
    assert not (tmp_path / "owner.json").exists()


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_disk_without_locks_is_named(code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fcntl = pytest.importorskip("fcntl")

    def refused(handle: int, how: int) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refused)
    with pytest.raises(
        ValueError, match=rf"{tmp_path} lies on a disk without locks .*; pass another out_dir"
    ) as caught:
        quick(out_dir=tmp_path)
    assert "make it writable" not in str(caught.value)


def test_a_tilde_in_out_dir_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("USERPROFILE", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    quick(CONFIG.replace(T=1), out_dir="~/runs")
    assert (tmp_path / "runs" / RESULT).exists() and not (tmp_path / "~").exists()
