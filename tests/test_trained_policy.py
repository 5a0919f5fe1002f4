"""A trained policy as a folder: it loads with transformers, its card says what was measured, and it goes to a hub."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from faulty import CONFIG, FOUR_RUNS, flip, quick, stopped
from hub_stand_in import hub
from huggingface_hub import ModelCard, constants
from transformers import AutoModelForCausalLM, AutoTokenizer, pipeline

from warp_nb.algorithm.merge import liti, weights_of
from warp_nb.files import fingerprint
from warp_nb.measure.checks import check_result
from warp_nb.measure.estimates import Estimate
from warp_nb.measure.evaluation import Evaluation, evaluate
from warp_nb.measure.front import Front, FrontPoint, pareto_front
from warp_nb.runs.model_card import MEASURE_TITLES, escaped, fenced
from warp_nb.runs.trained_policy import TrainedPolicy
from warp_nb.runs.warp import WarpResult
from warp_nb.tasks.task import Task

ETAS = [0.0, 0.5, 1.0]
FILES = ["README.md", "config.json", "generation_config.json", "model.safetensors", "tokenizer.json",
         "tokenizer_config.json", "warp.json"]  # fmt: skip


@cache
def trained(**changes: Any) -> WarpResult:
    return quick(FOUR_RUNS.replace(T=1, temperature=0.7), tiny.task(**changes))


def evaluated(result: WarpResult, eta: float | None = None) -> Evaluation:
    task = result.task
    return evaluate(result.at(eta).model(), task.policy, task, sampling=task.sampling(5, 0.7), n_prompts=16)


def loaded(folder: Path) -> str:
    return fingerprint(weights_of(AutoModelForCausalLM.from_pretrained(folder)))


def section(card: str, heading: str) -> str:
    return card.partition(f"## {heading}\n")[2].partition("\n## ")[0]


# the folder


@pytest.mark.parametrize(("eta", "which"), [(None, "policy"), (1.0, "merged"), (0.0, "sft"), (0.7, "between")])
def test_a_saved_point_has_the_bits_of_its_weights(eta: float | None, which: str, tmp_path: Path) -> None:
    result = trained()
    sft = weights_of(result.task.policy)
    wanted = {
        "policy": weights_of(result.policy),
        "merged": result.merged,
        "sft": sft,
        "between": liti(sft, result.merged, 0.7),
    }
    assert len({fingerprint(one) for one in wanted.values()}) == 4
    folder = result.save(tmp_path / "deep" / "policy", eta)
    assert sorted(path.name for path in folder.iterdir()) == FILES
    assert loaded(folder) == fingerprint(wanted[which]) == fingerprint(weights_of(result.at(eta).model()))


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_the_pipeline_generates_what_the_model_in_memory_does(kind: str, tmp_path: Path) -> None:
    words = tiny.tokenizer(pad=True)
    result = quick(CONFIG.replace(T=1), tiny.task(tokenizer=words, policy=getattr(tiny, kind)(len(words))))
    folder = result.save(tmp_path / "policy")
    generate = pipeline("text-generation", str(folder))
    (said,) = generate("the film was", do_sample=False, return_full_text=False)
    rows = words("the film was", return_tensors="pt")
    with torch.no_grad():
        ids = result.policy.generate(**rows, do_sample=False, max_new_tokens=5, eos_token_id=words.eos_token_id)
    assert said["generated_text"].split() == words.decode(ids[0, 3:], skip_special_tokens=True).split() != []
    assert AutoTokenizer.from_pretrained(folder).get_vocab() == words.get_vocab()


def test_the_generation_config_samples_as_the_evaluation_does(tmp_path: Path) -> None:
    result = trained()
    found = AutoModelForCausalLM.from_pretrained(result.save(tmp_path / "policy")).generation_config
    sampling = result.task.sampling(5, 0.7)
    assert (found.do_sample, found.temperature, found.top_k, found.top_p) == (True, 0.7, 0, 1.0)
    assert tuple(found.eos_token_id) == sampling.end_ids == (38,) and found.pad_token_id == sampling.pad_id
    assert found.max_new_tokens == 5


def test_a_users_folder_is_never_replaced(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name, said in (("mine", "is not empty"), ("file", "is a file")):
        with pytest.raises(ValueError, match=f"{name} {said}.*pass a new folder"):
            trained().save(tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "mine", "notes.txt"]


def test_a_folder_that_could_not_be_written_whole_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainedPolicy, "card", lambda self: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained().save(tmp_path / "policy")
    assert list(tmp_path.iterdir()) == []


def test_an_eta_beyond_two_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"eta must be in \[0, 2\], got 2.5"):
        trained().save(tmp_path / "policy", eta=2.5)


# the card


def test_the_card_states_what_was_measured_and_how_to_make_it_again(tmp_path: Path) -> None:
    result = trained(judge=tiny.counted("film"))
    found = evaluated(result, 0.7)
    checks = check_result(result, [found])
    folder = result.save(tmp_path / "policy", eta=0.7, evaluation=found, checks=checks)
    card = ModelCard.load(folder / "README.md")
    assert card.data.library_name == "transformers" and card.data.pipeline_tag == "text-generation"
    table = section(card.text, "Measured on held-out prompts")
    for name, title in MEASURE_TITLES.items():
        one = found.measures()[name]
        assert f"| {title} | {one.value:.3g} [{one.low:.3g}, {one.high:.3g}] |" in table
    assert "16 held-out prompts" in table
    failed = [check for check in checks if check.failed]
    said = section(card.text, "Failed checks")
    assert [name for name in (check.name for check in checks) if f"- `{name}`: " in said] == [c.name for c in failed]
    assert "`reward-gate-accuracy`" in said.partition("Not applicable")[2]
    program = card.text.partition("```python\nfrom warp_nb")[2].partition("```")[0]
    assert "T=1" in program and "seed=0" in program and "temperature=0.7" in program and "eta=0.7)" in program
    parts = json.loads(card.text.rpartition("```json\n")[2].partition("\n```")[0])
    assert parts["policy_sha256"] == fingerprint(weights_of(result.task.policy)) and parts["versions"]["torch"]


def test_the_card_says_what_was_not_measured() -> None:
    bare = trained().at().card()
    measured = section(bare, "Measured on held-out prompts")
    assert "were not measured" in measured and "[" not in measured
    assert "Checks were not run" in section(bare, "Failed checks")
    judged = trained().at(evaluation=evaluated(trained())).card()
    assert judged.count("not measured: the task has no judge |") == 3
    result = trained()
    weights = TrainedPolicy(weights=result.merged, task=result.task, point="x").card()
    assert "Unknown" in section(weights, "Configuration") and "configuration is unknown" in weights


def test_hostile_names_stay_text() -> None:
    hostile = "a: b | `c` **d** <script>x</script>\n---\n# e ```"
    task = tiny.task(name=hostile, facts={"note": "````\n<script>"})
    card = TrainedPolicy(weights=weights_of(task.policy), task=task, point="x").card()
    parsed = ModelCard(card)
    assert parsed.data.tags[0] == "warp" and "<script>" not in escaped(hostile) and "\n" not in escaped(hostile)
    assert f"# WARP policy of task {escaped(hostile)}\n" in parsed.text
    assert fenced("````", "json").startswith("`````json\n")


@pytest.mark.parametrize(("name", "base"), [("me/model", "me/model"), ("/home/me/model", None), ("", None)])
def test_the_base_is_named_if_the_hub_would_know_it(name: str, base: str | None) -> None:
    task = tiny.task()
    task.policy.config._name_or_path = name
    card = ModelCard(TrainedPolicy(weights=weights_of(task.policy), task=task, point="x").card())
    assert card.data.base_model == base and "/home/me" not in str(card)


# the front


def front_of(*points: tuple[float, float, float]) -> Front:
    """A front of (eta, KL, reward) that was never evaluated."""
    first = evaluated(trained())
    rows = Front()
    for eta, kl, reward in points:
        found = replace(first, reward_policy=Estimate(reward), kl_policy_reference=Estimate(kl))
        policy = TrainedPolicy(weights=trained().merged, task=trained().task, point="x", eta=eta)
        rows.append(FrontPoint(policy, found))
    return rows


@pytest.mark.parametrize(("max_kl", "eta"), [(100, 0.5), (3, 0.25), (2, 0.25), (0, 0)])
def test_the_best_point_has_the_largest_reward_within_the_kl(max_kl: float, eta: float) -> None:
    front = front_of((0, 0, 0.1), (0.25, 2, 0.3), (0.5, 8, 0.9), (1, 20, 0.6))
    assert front.best(max_kl=max_kl)["eta"] == eta


def test_no_point_within_the_kl_is_an_error_that_names_the_nearest() -> None:
    told = r"no point of the front has KL <= 1 nats: the nearest, eta = 0.5, has 2; pass a larger max_kl or more etas"
    with pytest.raises(ValueError, match=told):
        front_of((1, 8, 0.1), (0.5, 2, 0.3)).best(max_kl=1)


def test_a_point_of_the_front_is_saved_with_its_own_figures(tmp_path: Path) -> None:
    result = trained()
    task: Task = result.task
    rows = pareto_front(task.policy, result, ETAS, task, sampling=task.sampling(5, 0.7), n_prompts=16)
    assert isinstance(rows, list) and [row["eta"] for row in rows] == ETAS
    point = rows.best(max_kl=1e9)
    card = ModelCard.load(point.save(tmp_path / "best") / "README.md").text
    assert loaded(tmp_path / "best") == fingerprint(liti(weights_of(task.policy), result.merged, point["eta"]))
    reward = point["reward"]
    assert f"| reward of this policy | {reward.value:.3g} [{reward.low:.3g}, {reward.high:.3g}] |" in card
    assert "Checks were not run" not in card and f"`T` | {result.config.T} |" in card
    alone = pareto_front(task.policy, result.merged, [1.0], task, sampling=task.sampling(5, 0.7), n_prompts=16)
    assert "Checks were not run" in alone[0].policy.card()


# out_dir


def test_final_and_merged_policies_are_in_the_folder_of_the_runs(tmp_path: Path) -> None:
    result = quick(FOUR_RUNS.replace(T=1), out_dir=tmp_path)
    wanted = {"final": weights_of(result.policy), "merged": result.merged}
    for name, weights in wanted.items():
        assert loaded(tmp_path / name) == fingerprint(weights)
    before = {path: path.stat().st_mtime_ns for name in wanted for path in (tmp_path / name).iterdir()}
    (tmp_path / "final" / "README.md").write_text("measured since")
    quick(FOUR_RUNS.replace(T=1), out_dir=tmp_path)
    changed = {path.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"README.md"} and (tmp_path / "final" / "README.md").read_text() == "measured since"
    flip(tmp_path / "merged" / "model.safetensors")
    quick(FOUR_RUNS.replace(T=1), out_dir=tmp_path)
    assert loaded(tmp_path / "merged") == fingerprint(result.merged)


@pytest.mark.parametrize("name", ["final", "merged", "run_1_1.steps.jsonl"])
def test_what_has_our_name_and_is_not_ours_is_refused_and_stays(name: str, tmp_path: Path) -> None:
    if name.endswith("jsonl"):
        (tmp_path / name).write_text("mine")
    else:
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(ValueError, match=rf"{name} .*pass another out_dir"):
        quick(CONFIG.replace(T=1), out_dir=tmp_path)
    assert {path.name for path in tmp_path.iterdir()} <= {name, ".lock"}


# the steps


def steps_in(path: Path) -> list[int]:
    return [json.loads(line)["step"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_step_is_a_line_while_the_run_goes_on(tmp_path: Path) -> None:
    seen = []
    result = quick(
        CONFIG, out_dir=tmp_path, progress=lambda row: seen.append(steps_in(tmp_path / "run_1_1.steps.jsonl"))
    )
    assert seen == [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4]]
    lines = (tmp_path / "run_1_1.steps.jsonl").read_text(encoding="utf-8").splitlines()
    assert [json.loads(line) for line in lines] == result.history.to_dict("records")


@pytest.mark.parametrize("save_every", [0, 2])
def test_a_resumed_run_has_each_step_once(save_every: int, tmp_path: Path) -> None:
    path = tmp_path / "run_1_1.steps.jsonl"
    stopped(tmp_path, 3, save_every=save_every)
    assert steps_in(path) == [1, 2, 3]
    with path.open("a") as file:  # a killed process wrote a step that its checkpoint lacks, and half of another
        file.write('{"step": 4}\n{"st')
    quick(CONFIG.replace(save_every=save_every), out_dir=tmp_path)
    assert steps_in(path) == [1, 2, 3, 4]


# the hub


def test_a_policy_is_pushed_as_one_commit_of_the_files_that_are_saved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    point = trained().at(0.7)
    with hub() as there:
        monkeypatch.setattr(constants, "ENDPOINT", there.address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        url = point.push_to_hub("me/policy", private=True, token="hf_of_this_test", commit_message="Mine")
    assert url.startswith(f"{there.address}/me/policy/commit/")
    assert there.created["name"] == "policy" and there.created["organization"] == "me"
    assert there.created.get("visibility") == "private" or there.created.get("private") is True
    assert [commit["summary"] for commit in there.commits] == ["Mine"]
    assert there.tokens == {"Bearer hf_of_this_test"}
    saved = {path.name: path.read_bytes() for path in point.save(tmp_path / "policy").iterdir()}
    assert there.files == saved


def test_a_name_that_no_repository_has_is_refused_before_anything_is_written(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(TrainedPolicy, "save", lambda *_: pytest.fail("saved"))
    with pytest.raises(ValueError, match="Repo id must"):
        trained().at().push_to_hub("not a name/")
