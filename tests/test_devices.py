"""The device is the one named or the fastest there is; bf16 only where it pays and never unasked elsewhere."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import tiny
import torch

from warp_nb.fast import devices
from warp_nb.fast.devices import bf16_is_fast, choose_device, training_dtype
from warp_nb.tasks import hub
from warp_nb.tasks.prepared import resolve


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes torch report the devices named."""

    def has(*kinds: str, bf16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: bf16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: False)

    return has


@pytest.mark.parametrize(("kinds", "chosen"), [("", "cpu"), ("mps", "mps"), ("cuda mps", "cuda")])
def test_the_fastest_device_and_its_task_are_chosen(
    machine: Any, kinds: str, chosen: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(*kinds.split())
    assert choose_device() == chosen
    for answer, task in ((True, "gpt2"), (False, "smollm")):
        monkeypatch.setattr(hub, "at_hand", lambda answer=answer: answer)
        assert resolve("auto")[:2] == (task if kinds else "small", chosen)


def test_a_named_device_decides(machine: Any) -> None:
    machine("cuda")
    assert choose_device("cpu") == "cpu" and choose_device("cuda:0") == "cuda:0"
    assert resolve("auto", "cpu")[:2] == ("small", "cpu") and resolve("smollm", "cuda")[:2] == ("smollm", "cuda")


@pytest.mark.parametrize("named", ["gpu", "cuda:x", "cpu:0", "mps:1", "CPU"])
def test_an_unknown_device_is_refused(named: str) -> None:
    with pytest.raises(ValueError, match=f"device must be cuda, cuda:N, mps or cpu, got '{named}'"):
        choose_device(named)


@pytest.mark.parametrize("named", ["cuda", "cuda:1", "mps"])
def test_an_absent_device_is_refused_with_those_there_are(machine: Any, named: str) -> None:
    machine(*(["cuda"] if named == "cuda:1" else []))
    with pytest.raises(ValueError, match=f"device '{named}' is not here, this machine has .*cpu; pass -p device cpu"):
        choose_device(named)


@pytest.mark.parametrize("fast", [True, False])
def test_bf16_is_asked_of_the_hardware(machine: Any, fast: bool) -> None:
    machine("cuda", "mps", bf16=fast)
    assert bf16_is_fast("cuda") == bf16_is_fast("cuda:0") == bf16_is_fast("cpu") == bf16_is_fast() == fast
    assert not bf16_is_fast("mps")


def policy(parameters: int) -> Any:
    return SimpleNamespace(num_parameters=lambda: parameters, device=torch.device("cpu"))


def test_auto_is_bf16_for_a_large_policy_on_hardware_that_is_good_at_it(machine: Any) -> None:
    machine(bf16=True)
    assert training_dtype("auto", policy(devices.LARGE)) == "bfloat16"
    assert training_dtype("auto", policy(devices.LARGE - 1)) == "float32"
    machine(bf16=False)
    assert training_dtype("auto", policy(devices.LARGE)) == "float32"
    assert training_dtype("bfloat16", policy(1)) == "bfloat16" and training_dtype("float32", policy(10**9)) == "float32"


@pytest.mark.parametrize("kind", [tiny.gpt2, tiny.llama])
def test_attention_in_fp32_gives_what_transformers_own_gives(kind: Any) -> None:
    """Logits and gradients of a padded batch: equal in fp32, nearer to them in bf16 than torch's own kernel."""
    ids, mask = torch.arange(18).view(3, 6), torch.ones(3, 6, dtype=torch.long)
    mask[0, :3] = 0
    found = {}
    for name, dtype in (("own", "float32"), ("own", "bfloat16"), ("theirs", "float32"), ("theirs", "bfloat16")):
        model = kind(39, seed=1)
        if name == "own":
            devices.prepare_attention(model, "bfloat16")
            assert model.config._attn_implementation == "fp32"
        with devices.arithmetic(dtype, torch.device("cpu")):
            logits = model(ids, attention_mask=mask).logits
        logits[mask.bool()].float().square().mean().backward()
        found[name, dtype] = torch.cat(
            [logits[mask.bool()].float().flatten()] + [p.grad.flatten() for p in model.parameters()]
        )
    exact = found["theirs", "float32"]
    assert torch.allclose(found["own", "float32"], exact, atol=1e-5, rtol=1e-4)
    own, theirs = ((found[name, "bfloat16"] - exact).norm().item() for name in ("own", "theirs"))
    assert 0 < own < 1.2 * theirs < 0.1 * exact.norm().item()


def test_attention_stays_as_it_is_elsewhere() -> None:
    plain, eager = tiny.llama(39), tiny.llama(39)
    eager.set_attn_implementation("eager")
    devices.prepare_attention(plain, "float32")
    devices.prepare_attention(eager, "bfloat16")
    assert (plain.config._attn_implementation, eager.config._attn_implementation) == ("sdpa", "eager")
