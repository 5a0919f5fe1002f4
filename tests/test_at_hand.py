"""Task `auto` on a GPU: the hub is asked once, for seconds at most, and not at all where its parts are here."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hub_miniature
import pytest
import tiny
import torch
from huggingface_hub import close_session, constants

from warp_nb.config import ExperimentConfig
from warp_nb.notebook import experiment_banner
from warp_nb.tasks import hub, prepared
from warp_nb.tasks.prepared import load_task, resolve

NOBODY = "http://127.0.0.1:9"
Online = Callable[[str], Path]
Patch = pytest.MonkeyPatch


@pytest.fixture
def online(tmp_path: Path, monkeypatch: Patch) -> Iterator[Online]:
    """Points the hub's client to an address; gives its empty cache. The answer of another test is forgotten."""

    def at(address: str) -> Path:
        monkeypatch.setattr(constants, "ENDPOINT", address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        return tmp_path / "hub"

    hub.at_hand.cache_clear()
    yield at
    hub.at_hand.cache_clear()


@pytest.fixture
def repositories(tmp_path: Path) -> dict[str, Path]:
    """Empty folders by the names of the repositories: enough for a server that is only asked for revisions."""
    return {part.repo: tmp_path for part in hub.PARTS}


def save_locally(part: hub.HubPart, cache: Path, commit: str = "", without: str = "") -> None:
    """Write the part into a hub cache as the hub's client does, at another commit or without one file."""
    commit = commit or hub_miniature.full_commit(part)
    folder = cache / f"{part.kind}s--{part.repo.replace('/', '--')}"
    (folder / "refs" / part.revision).parent.mkdir(parents=True)
    (folder / "refs" / part.revision).write_text(commit)
    for name in part.files:
        path = folder / "snapshots" / commit / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name != without:
            path.touch()


def about_gpt2(asked: list[str]) -> list[str]:
    """The requests of ours; the hub's client makes others of its own accord."""
    return [path for path in asked if path.startswith("/api/models/")]


def test_a_hub_that_answers_is_asked_once(online: Online, repositories: dict[str, Path]) -> None:
    with hub_miniature.server(repositories) as (address, asked):
        online(address)
        assert hub.at_hand() and hub.at_hand()
        assert about_gpt2(asked) == ["/api/models/lvwerra/gpt2-imdb/revision/refs/pr/1"]
    assert hub.at_hand(), "the hub is gone, and the answer stays"


def test_an_answer_that_comes_later_changes_nothing(online: Online, repositories: dict[str, Path]) -> None:
    online(NOBODY)
    assert not hub.at_hand()
    with hub_miniature.server(repositories) as (address, asked):
        online(address)
        assert not hub.at_hand() and not asked


def test_a_moved_or_absent_revision_is_a_no(online: Online, repositories: dict[str, Path]) -> None:
    for served, commits in ((repositories, {hub.GPT2_IMDB.repo: "a" * 40}), ({}, {})):
        with hub_miniature.server(served, commits) as (address, asked):
            online(address)
            assert not hub.answers() and len(about_gpt2(asked)) == 1


def test_offline_mode_asks_nobody(online: Online, repositories: dict[str, Path], monkeypatch: Patch) -> None:
    with hub_miniature.server(repositories) as (address, asked):
        online(address)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        assert not hub.at_hand() and not asked


def test_a_hub_that_takes_connections_and_is_silent_is_given_up(online: Online, monkeypatch: Patch) -> None:
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        online(f"http://127.0.0.1:{listening.getsockname()[1]}")
        started = time.monotonic()
        assert not hub.answers() and time.monotonic() - started < 5


def test_a_name_that_is_looked_up_for_minutes_is_given_up(online: Online, monkeypatch: Patch) -> None:
    looked_up = threading.Event()

    def lost(*_: Any, **__: Any) -> Any:
        assert looked_up.wait(60)
        raise socket.gaierror("Temporary failure in name resolution")

    monkeypatch.setattr(socket, "getaddrinfo", lost)
    monkeypatch.setattr(hub, "PATIENCE", 0.5)
    online("http://hub.example")
    started = time.monotonic()
    assert not hub.answers() and 0.4 < time.monotonic() - started < 5
    (asking,) = [one for one in threading.enumerate() if one.name == "hub"]
    assert asking.daemon, "it does not keep the process from ending"
    looked_up.set()
    asking.join()


def test_parts_that_are_here_need_no_hub(online: Online, repositories: dict[str, Path]) -> None:
    with hub_miniature.server(repositories) as (address, asked):
        cache = online(address)
        for part in hub.PARTS:
            assert not hub.is_local(part)
            save_locally(part, cache)
        assert all(map(hub.is_local, hub.PARTS)) and hub.at_hand() and not asked


@pytest.mark.parametrize("harm", [{"commit": "a" * 40}, {"without": "a file"}], ids=["another commit", "a file less"])
@pytest.mark.parametrize("part", hub.PARTS, ids=lambda part: part.repo)
def test_a_part_that_is_not_whole_is_not_here(part: hub.HubPart, harm: dict[str, str], online: Online) -> None:
    cache = online(NOBODY)
    harm = {"without": part.files[-1]} if "without" in harm else harm
    for one in hub.PARTS:
        save_locally(one, cache, **(harm if one is part else {}))
    assert [one for one in hub.PARTS if not hub.is_local(one)] == [part] and not hub.at_hand()


def test_a_cache_that_is_a_file_is_a_no(online: Online) -> None:
    online(NOBODY).write_text("no folder")
    assert not hub.at_hand()


@pytest.mark.parametrize(("answer", "name", "why"), [(True, "gpt2", "gpu"), (False, "smollm", "no-hub")])
def test_what_is_loaded_is_what_the_banner_names(answer: bool, name: str, why: str, monkeypatch: Patch) -> None:
    """The answer is the first one, also for a hub that would answer otherwise a moment later."""
    later = iter([answer, not answer, not answer])
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    monkeypatch.setattr(hub, "is_local", lambda part: False)
    monkeypatch.setattr(hub, "answers", lambda: next(later))
    hub.at_hand.cache_clear()
    loaded: list[str] = []

    def policy_of(name: str) -> Any:
        def load(device: str) -> Any:
            loaded.append(name)
            raise RuntimeError("far enough")

        return load

    monkeypatch.setattr(prepared, "LOADERS", {name: policy_of(name) for name in prepared.LOADERS})
    with pytest.raises(RuntimeError, match="far enough"):
        load_task("auto")
    assert loaded == [name] and resolve("auto") == (name, "mps", why)
    said = experiment_banner.banner(ExperimentConfig(), tiny.task(name=name)).data
    words = {
        "gpt2": "есть GPU: как в исходном отчёте, модели с Hugging Face Hub",
        "smollm": "есть GPU, но Hugging Face Hub недоступен",
    }
    assert f"{name} ({words[name]}" in said
    hub.at_hand.cache_clear()


def test_nobody_is_asked_without_a_gpu_or_of_a_named_task(monkeypatch: Patch) -> None:
    def asked() -> bool:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr(hub, "at_hand", asked)
    assert resolve("auto", "cpu") == ("small", "cpu", "no-gpu")
    assert [resolve(name, "cpu")[::2] for name in prepared.LOADERS] == [(name, "named") for name in prepared.LOADERS]


def test_a_proxy_is_heeded(online: Online, repositories: dict[str, Path], monkeypatch: Patch) -> None:
    with hub_miniature.server(repositories) as (address, asked):
        for name in ("HTTP_PROXY", "http_proxy"):
            monkeypatch.setenv(name, address)
        for name in ("NO_PROXY", "no_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.delenv(name, raising=False)
        online("http://hub.example")
        close_session()
        try:
            assert hub.answers() and len(about_gpt2(asked)) == 1
        finally:
            close_session()
