"""A remembered value is computed once for equal facts; damage and a folder that cannot be written cost time only."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from warp_nb.files import file_sha256
from warp_nb.tasks import remembered as module
from warp_nb.tasks.remembered import code_of, remembered

VALUE = {"texts": ["ё", "half \ud83d", "a\n\u2028b", ""], "numbers": [0.1, 1e-300, 3, True, None]}


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("WARP_NB_CACHE", str(tmp_path))
    return tmp_path


class Counted:
    """Makes a value and counts how often."""

    def __init__(self, value: Any = VALUE) -> None:
        self.value, self.calls = value, 0

    def __call__(self) -> Any:
        self.calls += 1
        return self.value


def test_a_value_is_computed_once_for_equal_facts(cache: Path) -> None:
    make = Counted()
    found = [remembered("kind", facts, make) for facts in ({"a": 1, "b": [2]}, {"b": [2], "a": 1})]
    assert found == [VALUE, VALUE] and make.calls == 1
    assert [str(value) for value in found[1]["numbers"]] == ["0.1", "1e-300", "3", "True", "None"]
    for kind, facts in (("other", {"a": 1, "b": [2]}), ("kind", {"a": 1, "b": [3]}), ("kind", {"a": 1})):
        other = Counted([kind, facts])
        assert remembered(kind, facts, other) == [kind, facts] and other.calls == 1
    assert remembered("kind", {"a": 1, "b": [2]}, make) == VALUE and make.calls == 1
    assert not [path for path in cache.rglob("*") if path.name.startswith(".")], "temporary files"


@pytest.mark.parametrize("damage", ["a letter", "the end", "the value", "no value", "another object"])
def test_a_damaged_file_is_named_and_made_again(damage: str, cache: Path) -> None:
    make = Counted(["the film"])
    remembered("kind", 1, make)
    (path,) = (cache / "kind").iterdir()
    text = path.read_text()
    record = json.loads(text)
    other = {
        "a letter": text.replace("film", "filn"),
        "the end": text[:-3],
        "the value": json.dumps(record | {"value": []}),
        "no value": json.dumps({"sha256": record["sha256"]}),
        "another object": "[]",
    }[damage]
    assert other != text
    path.write_text(other)
    with pytest.warns(UserWarning, match=rf"{path.name} is damaged .*; it is made again"):
        assert remembered("kind", 1, make) == ["the film"]
    assert make.calls == 2 and path.read_text() == text


def test_a_folder_that_cannot_be_written_costs_a_warning(cache: Path) -> None:
    """As on a read-only or full disk."""
    (cache / "kind").write_text("a file where the folder should be")
    make = Counted()
    for calls in (1, 2):
        with pytest.warns(UserWarning, match=rf"{cache / 'kind'} cannot be written .* WARP_NB_CACHE moves the cache"):
            assert remembered("kind", 1, make) == VALUE
        assert make.calls == calls


def test_a_full_cache_that_cannot_be_written_is_read(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Counted()
    remembered("kind", 1, make)

    def forbidden(*_: Any) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(module, "write_bytes", forbidden)
    assert remembered("kind", 1, make) == VALUE and make.calls == 1
    with pytest.warns(UserWarning, match="Read-only file system"):
        assert remembered("kind", 2, make) == VALUE


def test_what_was_interrupted_leaves_nothing_to_read(cache: Path) -> None:
    def interrupted() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        remembered("kind", 1, interrupted)
    assert remembered("kind", 1, Counted()) == VALUE


def test_the_code_of_a_module_is_its_file() -> None:
    assert code_of(module.__name__) == [file_sha256(Path(module.__file__))]
    assert len(set(code_of(module.__name__, "warp_nb.files"))) == 2
