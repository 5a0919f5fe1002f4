"""Task `gpt2` on miniatures in the hub's own formats, fetched from a local server that speaks its protocol."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import hub_miniature
import pytest
import tiny
from huggingface_hub import constants

from warp_nb.config import ExperimentConfig
from warp_nb.studies.experiment import run_experiment
from warp_nb.tasks import hub, imdb
from warp_nb.tasks import reward_model as rm
from warp_nb.tasks.identity import task_identity
from warp_nb.tasks.prepared import load_task
from warp_nb.tasks.task import Task

pytestmark = pytest.mark.slow
PARTS = (hub.GPT2_IMDB, hub.DISTILBERT, hub.IMDB)
Patch = pytest.MonkeyPatch


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return hub_miniature.write_all(tmp_path_factory.mktemp("hub"))


@pytest.fixture
def online(tmp_path: Path, monkeypatch: Patch) -> Any:
    """Points the hub's client to an address, with an empty cache of its own."""

    def at(address: str) -> None:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(
            constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}"
        )

    return at


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.repo)
def test_exactly_the_named_files_are_fetched_once(part: hub.HubPart, folders: dict[str, Path], online: Any) -> None:
    with hub_miniature.server(folders) as (address, asked):
        online(address)
        folder = hub.fetch_from_hub(part)
        found = {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}
        assert found == set(part.files)
        assert not [path for path in asked if path.endswith((".bin", "unsupervised-00000-of-00001.parquet"))]
        asked.clear()
        assert hub.fetch_from_hub(part) == folder and not asked


def test_a_prepared_machine_needs_no_network(folders: dict[str, Path], online: Any, monkeypatch: Patch) -> None:
    with hub_miniature.server(folders) as (address, _):
        online(address)
        folder = hub.fetch_from_hub(hub.GPT2_IMDB)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert hub.fetch_from_hub(hub.GPT2_IMDB) == folder


def test_another_commit_under_the_name_is_refused(folders: dict[str, Path], online: Any) -> None:
    moved = {hub.GPT2_IMDB.repo: "a" * 40}
    with hub_miniature.server(folders, moved) as (address, _):
        online(address)
        with pytest.raises(RuntimeError, match=r"is commit aaaa.*, expected f0c412a6.*-p task smollm"):
            hub.fetch_from_hub(hub.GPT2_IMDB)


def test_a_repository_without_safetensors_is_refused(folders: dict[str, Path], online: Any) -> None:
    part = replace(hub.GPT2_IMDB, files=(*hub.GPT2_IMDB.files, "other.safetensors"))
    with hub_miniature.server(folders) as (address, _):
        online(address)
        with pytest.raises(RuntimeError, match=r"lacks other.safetensors; run another task: -p task smollm"):
            hub.fetch_from_hub(part)


def test_an_absent_repository_is_a_clear_error(folders: dict[str, Path], online: Any) -> None:
    with hub_miniature.server(folders) as (address, _):
        online(address)
        with pytest.raises(RuntimeError, match=r"could not fetch nobody/nothing .*-p task smollm"):
            hub.fetch_from_hub(replace(hub.GPT2_IMDB, repo="nobody/nothing"))


@pytest.fixture
def silent() -> Iterator[str]:
    """The address of a server that takes connections and never answers."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


def test_a_silent_hub_is_given_up(online: Any, silent: str, monkeypatch: Patch) -> None:
    monkeypatch.setattr(hub, "TIMEOUT", 1.0)
    online(silent)
    with pytest.raises(RuntimeError, match=r"could not fetch lvwerra/gpt2-imdb .*Timeout.*-p task smollm"):
        load_task("gpt2", "cpu")


def test_a_hub_that_refuses_connections_is_a_clear_error(online: Any) -> None:
    online("http://127.0.0.1:9")
    with pytest.raises(RuntimeError, match=r"could not fetch lvwerra/gpt2-imdb .*Connect.*-p task smollm"):
        load_task("gpt2", "cpu")


def test_offline_mode_is_a_clear_error(online: Any, monkeypatch: Patch) -> None:
    online("http://127.0.0.1:9")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(RuntimeError, match=r"could not fetch stanfordnlp/imdb .*Offline.*-p task smollm"):
        hub.fetch_from_hub(hub.IMDB)


@pytest.fixture
def gpt2(folders: dict[str, Path], online: Any, tmp_path: Path, monkeypatch: Patch) -> Iterator[Task]:
    """The task as a user loads it, reward model trained, on the miniatures."""
    sizes = {"eval": 40, "reward_test": 60, "reward_train": 80, "prompts": 40}
    monkeypatch.setattr(imdb, "SIZES", sizes)
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(rm, "LR", {"hub": 3e-3})
    real = rm.Recipe
    monkeypatch.setattr(rm, "Recipe", lambda **given: real(**(given | {"pairs": 480, "batch_pairs": 16})))
    imdb._reviews.cache_clear()
    with hub_miniature.server(folders) as (address, _):
        online(address)
        yield load_task("gpt2", "cpu")
    imdb._reviews.cache_clear()


def test_the_task_is_whole(gpt2: Task) -> None:
    assert gpt2.name == "gpt2" and gpt2.facts == {}
    assert gpt2.tokenizer.bos_token == gpt2.tokenizer.eos_token == hub_miniature.END
    assert gpt2.policy.config.model_type == "gpt2" and not gpt2.policy.training
    assert gpt2.reward.model.config.model_type == "distilbert"
    assert all(prompt.startswith("The story number") for prompt in [*gpt2.train_prompts, *gpt2.eval_prompts])
    good, bad = gpt2.reward(["The story"] * 2, [f" is {hub_miniature.GOOD}.", f" is {hub_miniature.BAD}."])
    assert good > bad


def test_its_judge_is_another_model_of_the_hubs_kind(gpt2: Task) -> None:
    task = load_task("gpt2", "cpu", judge=True)
    assert isinstance(task.judge, rm.RewardModel) and task.judge.model.config.model_type == "distilbert"
    assert task.judge.folder != task.reward.folder and task.judge.describe()["recipe"]["seed"] == 1
    assert task.facts["judge_correlation"] > 0.5 and task.gates()["judge"].pair_accuracy > 0.8


def test_an_experiment_runs_on_it(gpt2: Task) -> None:
    config = ExperimentConfig(I=1, T=2, lr=1e-3, warmup_steps=0, batch_size=4, max_new_tokens=6, n_eval_prompts=8)
    result = run_experiment(config, gpt2, progress=False)
    assert result.config.dtype == "float32" and len(result.history) == 4 and result.about["task"] == "gpt2"
    assert result.gate is not None and result.gate.n_pairs > 8, "the gate's pairs are the hub's reviews"
    assert result.gate.pair_accuracy > 0.8


def test_a_policy_of_ones_own_is_a_hub_id_whose_pickles_nobody_asks_for(
    folders: dict[str, Path], online: Any, monkeypatch: Patch
) -> None:
    """Its small files come first; a task that is refused by its prompts never asks for the weights."""
    repo, given = hub.GPT2_IMDB.repo, {"reward": tiny.opinion, "device": "cpu"}
    with hub_miniature.server(folders) as (address, asked):
        online(address)
        with pytest.raises(ValueError, match="no chat template"):
            Task.from_pretrained(repo, prompts=[[{"role": "user", "content": "the"}]], **given)
        assert not [path for path in asked if path.endswith((".safetensors", ".bin"))]
        task = Task.from_pretrained(repo, prompts=tiny.prompts(16, seed=0), **given)
        assert not [path for path in asked if path.endswith(".bin")]
    assert task.facts["commit"] == hub_miniature.full_commit(hub.GPT2_IMDB) and task.facts["policy"] == repo
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert task.rebuild is not None and task_identity(task.rebuild("cpu")) == task_identity(task)


def test_a_repository_with_a_pickle_only_is_refused(tmp_path: Path, online: Any) -> None:
    folders = hub_miniature.write_all(tmp_path)
    (folders[hub.GPT2_IMDB.repo] / "model.safetensors").unlink()
    with hub_miniature.server(folders) as (address, asked):
        online(address)
        with pytest.raises(ValueError, match=r"^policy = 'lvwerra/gpt2-imdb' has its weights as a pickle only"):
            Task.from_pretrained(hub.GPT2_IMDB.repo, reward=tiny.opinion, prompts=tiny.prompts(16, seed=0))
    assert not [path for path in asked if path.endswith(".bin")]
