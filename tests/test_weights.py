"""Snapshots, safetensors with ties, JSON any reader takes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import tiny
import torch
from safetensors.torch import load_file

from warp_nb.runs.weights import fingerprint, load_weights, plain, save_weights, snapshot, write_json


@pytest.mark.parametrize("kind", [tiny.gpt2, tiny.llama])
def test_weights_come_back_to_the_bit_with_their_ties(kind, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    policy = kind(20)
    state, like = snapshot(policy), policy.state_dict()
    save_weights(tmp_path / "w.safetensors", state)
    found = load_weights(tmp_path / "w.safetensors", like)
    assert list(found) == list(like) and all(torch.equal(found[name], like[name]) for name in like)
    tied = kind is tiny.gpt2
    first = "transformer.wte.weight" if tied else "model.embed_tokens.weight"
    assert (found["lm_head.weight"].data_ptr() == found[first].data_ptr()) is tied
    assert len(load_file(tmp_path / "w.safetensors")) == len(like) - tied
    assert [path.name for path in tmp_path.iterdir()] == ["w.safetensors"]


def test_a_snapshot_is_a_copy() -> None:
    policy = tiny.gpt2(20)
    state, before = snapshot(policy), fingerprint(policy.state_dict())
    state["transformer.wte.weight"] += 1
    assert fingerprint(policy.state_dict()) == before != fingerprint(state)
    assert torch.equal(state["lm_head.weight"], state["transformer.wte.weight"])
    assert not any(value.requires_grad for value in state.values())


def test_weights_of_another_shape_are_refused(tmp_path: Path) -> None:
    save_weights(tmp_path / "w.safetensors", snapshot(tiny.gpt2(20)))
    with pytest.raises(ValueError, match=r"transformer\.wte\.weight \(21, 16\) against \(20, 16\)"):
        load_weights(tmp_path / "w.safetensors", tiny.gpt2(21).state_dict())
    with pytest.raises(ValueError, match="only in one"):
        load_weights(tmp_path / "w.safetensors", tiny.gpt2(20, layers=3).state_dict())


def test_a_fingerprint_sees_a_bit_a_name_and_a_dtype() -> None:
    state = {"a": torch.zeros(2), "n": torch.tensor(1)}
    others = [
        {"a": torch.tensor([0.0, 1e-45]), "n": torch.tensor(1)},
        {"b": torch.zeros(2), "n": torch.tensor(1)},
        {"a": torch.zeros(2, dtype=torch.int32), "n": torch.tensor(1)},
        {"a": torch.zeros(2).bfloat16(), "n": torch.tensor(1)},
    ]
    assert fingerprint(state) == fingerprint({name: value.clone() for name, value in state.items()})
    assert len({fingerprint(value) for value in [state, *others]}) == 5


def test_json_has_no_nan_and_no_half_written_file(tmp_path: Path) -> None:
    path = tmp_path / "r.json"
    write_json(path, {"a": [1.5, math.nan, (math.inf, "я")], 2: None})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": [1.5, None, [None, "я"]], "2": None}
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    assert json.loads(path.read_text(encoding="utf-8"))["2"] is None
    assert plain({"x": True}) == {"x": True}


@pytest.mark.parametrize(
    "text", ["<script>", "</textarea>", "$x$", "`", "\u202e", "\x00", "\ud800", "a\udfff\U0001f600"]
)
def test_json_gives_any_text_back(text: str, tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {text: [text]})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {text: [text]}
