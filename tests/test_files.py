"""Files that are whole or not there, sealed tensors, JSON any reader takes, fingerprints."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
import torch
from faulty import cut, flip
from safetensors.torch import load_file, save_file

from warp_nb.algorithm.merge import weights_of
from warp_nb.files import (
    DEEPEST,
    DamagedFile,
    _seal_of,  # to seal what `seal` would not write
    fingerprint,
    json_values,
    read_record,
    replacing,
    seal,
    unseal,
    write_json,
)

# atomic writes


def test_two_writers_of_a_file_leave_one_of_the_two_whole(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_a_writer_that_fails_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    path = tmp_path / "w.json"
    write_json(path, 1)
    with pytest.raises(ZeroDivisionError), replacing(path) as temporary:
        temporary.write_text("half")
        1 / 0  # noqa: B018
    assert path.read_text() == "1" and list(tmp_path.iterdir()) == [path]


# JSON


def test_json_has_no_nan_and_no_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"a": [1.5, math.nan, (math.inf, "я")], 2: None})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1.5, None, [None, "я"]], "2": None}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["2"] is None
    assert json_values({"x": True}) == {"x": True}


@pytest.mark.parametrize(
    "text", ["<script>", "</textarea>", "$x$", "`", "\u202e", "\x00", "\ud800", "a\udfff\U0001f600"]
)
def test_json_gives_any_text_back(text: str, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {text: [text]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {text: [text]}


NO_RECORDS = {
    "nothing": "",
    "cut": '{"a": [1, 2',
    "a list": "[]",
    "a number": "7",
    "a text": '"ok"',
    "null": "null",
    "no UTF-8": "{\xff}",
    "too deep for the parser": '{"a": ' + "[" * 200_000,
    "too deep for us": '{"a": ' + "[" * DEEPEST + "]" * DEEPEST + "}",
}


@pytest.mark.parametrize("kind", NO_RECORDS)
def test_what_is_no_record_is_named(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    path.write_bytes(NO_RECORDS[kind].encode("latin-1"))
    with pytest.raises(DamagedFile, match=r"r\.json is damaged"):
        read_record(path)


def test_a_record_is_an_object_of_few_levels(tmp_path: Path) -> None:
    deep = "[" * (DEEPEST - 1) + "]" * (DEEPEST - 1)
    (tmp_path / "r.json").write_text(f'{{"a": {deep}, "b": {{}}}}')
    assert set(read_record(tmp_path / "r.json")) == {"a", "b"}
    with pytest.raises(FileNotFoundError):
        read_record(tmp_path / "gone.json")
    with pytest.raises(DamagedFile, match="is damaged"):
        read_record(tmp_path)


# sealed tensors


@pytest.mark.parametrize(("kind", "tensors"), [(tiny.gpt2, 28), (tiny.llama, 21)])
def test_weights_come_back_to_the_bit_and_other_readers_read_them(
    kind: Callable[..., torch.nn.Module], tensors: int, tmp_path: Path
) -> None:
    weights = weights_of(kind(20))
    seal(tmp_path / "w.safetensors", weights, {"история": [1.5, 1e-300, None]})
    found, record = unseal(tmp_path / "w.safetensors")
    assert fingerprint(found) == fingerprint(weights) and record == {"история": [1.5, 1e-300, None]}
    assert fingerprint(load_file(tmp_path / "w.safetensors")) == fingerprint(weights) and len(found) == tensors
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


@pytest.mark.parametrize("damage", [flip, cut])
@pytest.mark.parametrize("place", [0.0, 0.01, 0.3, 0.6, 0.99])
def test_a_sealed_file_tells_damage_anywhere(damage: Callable[..., None], place: float, tmp_path: Path) -> None:
    path, tensors = tmp_path / "sealed.safetensors", {"b": torch.arange(40.0), "a": torch.ones(3, dtype=torch.uint8)}
    seal(path, tensors, {"loss": [1.5, 1e-300]})
    unseal(path)
    damage(path, place)
    with pytest.raises(DamagedFile, match=r"sealed\.safetensors is damaged"):
        unseal(path)


def test_a_sealed_record_that_nests_too_deep_is_named(tmp_path: Path) -> None:
    text, tensors = "[" * 100_000, {"a": torch.zeros(1)}
    save_file(tensors, tmp_path / "w", {"record": text, "sha256": _seal_of(tensors, text)})
    with pytest.raises(DamagedFile, match=r"w is damaged"):
        unseal(tmp_path / "w")


def test_what_was_read_stays_when_the_file_is_changed_in_place(tmp_path: Path) -> None:
    seal(tmp_path / "w.safetensors", {"a": torch.zeros(1000)}, None)
    found, _ = unseal(tmp_path / "w.safetensors")
    size = (tmp_path / "w.safetensors").stat().st_size
    (tmp_path / "w.safetensors").write_bytes(b"\xff" * size)
    assert found["a"].eq(0).all()


def test_a_missing_file_is_not_a_damaged_one_and_a_foreign_one_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        unseal(tmp_path / "gone.safetensors")
    save_file({"a": torch.zeros(1)}, tmp_path / "foreign.safetensors")
    with pytest.raises(DamagedFile, match="its sha256 is not the one written into it"):
        unseal(tmp_path / "foreign.safetensors")


def test_a_fingerprint_sees_a_bit_a_name_a_shape_and_a_dtype_and_no_order() -> None:
    state = {"a": torch.zeros(2), "n": torch.tensor(1)}
    others = [
        {"a": torch.tensor([0.0, 1e-45]), "n": torch.tensor(1)},
        {"b": torch.zeros(2), "n": torch.tensor(1)},
        {"a": torch.zeros(1, 2), "n": torch.tensor(1)},
        {"a": torch.zeros(2, dtype=torch.int32), "n": torch.tensor(1)},
        {"a": torch.zeros(2).bfloat16(), "n": torch.tensor(1)},
    ]
    assert fingerprint(state) == fingerprint({name: value.clone() for name, value in reversed(state.items())})
    assert len({fingerprint(value) for value in [state, *others]}) == 6
    turned = {"a": torch.arange(6).view(2, 3).t()}
    assert fingerprint(turned) == fingerprint({"a": torch.tensor([[0, 3], [1, 4], [2, 5]])})
