"""A merge of folders on disk against the merge in memory, PEFT and mergekit; its memory; what it refuses."""

from __future__ import annotations

import json
import math
import re
import shlex
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import peft
import pytest
import tiny
import torch
import yaml
from faulty import cut
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from warp_nb import cli
from warp_nb.algorithm.merge import Weights, liti, merge, slerp, weights_of, wide
from warp_nb.files import DamagedFile, file_sha256, fingerprint, write_json
from warp_nb.runs import merge_files as streaming
from warp_nb.runs import merge_inputs, weight_files
from warp_nb.runs.geometry import pairwise_angles
from warp_nb.runs.merge_files import MergeRecipe, arc, merge_files
from warp_nb.runs.merge_inputs import open_inputs

V = 40
MODELS = {"gpt2": tiny.gpt2, "llama": tiny.llama}


def moved(model: Any, seed: int, size: float = 0.05) -> Any:
    """A copy of a model moved by noise, in its dtype."""
    other, generator = type(model)(model.config).to(model.dtype), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value, start in zip(other.parameters(), model.parameters(), strict=True):
            value.copy_(start + size * torch.randn(start.shape, generator=generator).to(start.dtype))
    return other.eval()


def saved(folder: Path, models: Sequence[Any], shard: str = "5GB") -> list[Path]:
    """Folders of models: base, run1, run2 …; the base has a tokenizer."""
    paths = [folder / ("base" if place == 0 else f"run{place}") for place in range(len(models))]
    for path, model in zip(paths, models, strict=True):
        model.save_pretrained(path, max_shard_size=shard)
    tiny.tokenizer().save_pretrained(paths[0])
    return paths


def merged(paths: Sequence[Path], out: Path, **recipe: Any) -> dict[str, Any]:
    return merge_files(*open_inputs(paths[0], paths[1:], out), out, MergeRecipe(**recipe))


def stored(folder: Path) -> Weights:
    return {name: value for path in sorted(folder.glob("*.safetensors")) for name, value in load_file(path).items()}


def family(kind: str = "gpt2", count: int = 2, dtype: torch.dtype = torch.float32) -> list[Any]:
    base = MODELS[kind](V).to(dtype)
    return [base, *(moved(base, seed) for seed in range(1, count + 1))]


# equal to the merge in memory


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize(
    ("method", "by"), [("slerp", "layer"), ("slerp", "tensor"), ("slerp", "global"), ("lerp", "layer")]
)
@pytest.mark.parametrize("kind", MODELS)
def test_the_bits_are_those_of_the_merge_in_memory(
    kind: str, method: str, by: str, count: int, dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_files, "SPAN", 100)  # every tensor in several slices, their ends inside of rows
    models = family(kind, count, dtype)
    lam, eta = (0.3 if count == 2 else 0.5), 0.7
    record = merged(saved(tmp_path, models, "10KB"), tmp_path / "out", method=method, by=by, lam=lam, eta=eta)
    init, *policies = map(weights_of, models)
    wanted = liti(init, merge(init, policies, method=method, by=by, lam=lam), eta)
    assert fingerprint(stored(tmp_path / "out")) == fingerprint(wanted)
    rows = {(row["run_a"], row["run_b"], row["block"]): row for row in record["angles"]}
    known = pairwise_angles({name: wide(value) for name, value in init.items()}, policies, by)
    assert len(rows) == len(known)
    for row in known:
        found = rows[row["run_a"], row["run_b"], row["block"]]
        assert all(
            found[name] == pytest.approx(row[name], rel=1e-9) for name in ("cosine", "omega", "norm_a", "norm_b")
        )


def test_the_result_is_laid_out_as_the_base_and_loads_with_its_tokenizer(tmp_path: Path) -> None:
    paths = saved(tmp_path, family(), "10KB")
    merged(paths, tmp_path / "deep" / "out", eta=0.5)
    out = tmp_path / "deep" / "out"
    copied = {path.name: path for path in paths[0].iterdir() if path.suffix != ".safetensors"}
    assert "tokenizer.json" in copied and "model.safetensors.index.json" in copied
    for name, path in copied.items():
        assert (out / name).read_bytes() == path.read_bytes()
    shards = sorted(path.name for path in paths[0].glob("*.safetensors"))
    assert len(shards) > 2 and sorted(path.name for path in out.iterdir()) == sorted([*copied, *shards, "merge.json"])
    for name in shards:
        size = 8 + int.from_bytes((out / name).read_bytes()[:8], "little")
        assert (out / name).read_bytes()[:size] == (paths[0] / name).read_bytes()[:size]
    model = AutoModelForCausalLM.from_pretrained(out)
    assert model(torch.tensor([[1, 2]])).logits.isfinite().all()
    assert list((tmp_path / "deep").iterdir()) == [out], "nothing temporary is left"


def test_the_record_names_the_inputs_by_their_sha256(tmp_path: Path) -> None:
    paths = saved(tmp_path, family())
    record = merged(paths, tmp_path / "out", method="lerp", eta=0.5, lam=0.25)
    found = json.loads((tmp_path / "out" / "merge.json").read_text())
    assert found == json.loads(json.dumps(record))
    assert {name: found[name] for name in ("method", "by", "lam", "eta")} == {
        "method": "lerp", "by": "layer", "lam": 0.25, "eta": 0.5,
    }  # fmt: skip
    for one, path in zip([found["base"], *found["runs"]], paths, strict=True):
        assert one == {"folder": str(path), "sha256": {"model.safetensors": file_sha256(path / "model.safetensors")}}


def test_what_no_run_moved_stays_to_the_bit_and_has_no_part_in_an_angle(tmp_path: Path) -> None:
    base, first, second = family("llama")
    name = "model.layers.0.mlp.up_proj.weight"
    with torch.no_grad():
        base.get_parameter(name)[0, 0], base.get_parameter(name)[0, 1] = -math.inf, -0.0
        for run in (first, second):
            run.get_parameter(name).copy_(base.get_parameter(name))
    record = merged(saved(tmp_path, [base, first, second]), tmp_path / "out", eta=0.3)
    found = stored(tmp_path / "out")
    assert record["unmoved_tensors"] == 1
    assert fingerprint({name: found[name]}) == fingerprint({name: base.get_parameter(name).detach()})
    assert all(value.isfinite().all() for other, value in found.items() if other != name)
    assert all(math.isfinite(row["omega"]) for row in record["angles"])


def test_whole_numbers_are_copied_and_must_agree(tmp_path: Path) -> None:
    paths = saved(tmp_path, family())
    for path in paths:
        save_file(stored(path) | {"transformer.mask": torch.tensor([[True, False]])}, path / "model.safetensors")
    merged(paths, tmp_path / "out")
    assert stored(tmp_path / "out")["transformer.mask"].tolist() == [[True, False]]
    save_file(stored(paths[2]) | {"transformer.mask": torch.tensor([[True, True]])}, paths[2] / "model.safetensors")
    with pytest.raises(ValueError, match=r"run2 differs from .*base in transformer\.mask, which hold no floats"):
        merged(paths, tmp_path / "other")


@pytest.mark.parametrize("lam", [0.0, 0.3, 0.5, 1.0])
def test_a_part_of_a_block_turns_as_the_whole(lam: float) -> None:
    generator = torch.Generator().manual_seed(0)
    for angle in (0.0, 1e-4, 0.3, 1.5, math.pi):
        a, noise = torch.randn(2, 999, generator=generator)
        b = math.cos(angle) * a + math.sin(angle) * noise
        products = torch.tensor(streaming.gram([a, b]), dtype=torch.float64)
        omega = streaming.cosine(products, 0, 1).acos()
        for part in (slice(0, 7), slice(7, 999)):
            assert torch.equal(arc(a[part], b[part], lam, omega), slerp(a, b, lam)[part]), angle


# tied heads


def heads(path: Path, value: torch.Tensor | None) -> None:
    """Store a head in a folder, by default a copy of the embedding."""
    weights = stored(path)
    weights["lm_head.weight"] = weights["transformer.wte.weight"].clone() if value is None else value
    save_file(weights, path / "model.safetensors", {"format": "pt"})


@pytest.mark.parametrize("where", [[0], [1], [0, 2], [0, 1, 2]])
def test_a_tied_head_may_be_stored_or_not(where: list[int], tmp_path: Path) -> None:
    models = family()
    paths = saved(tmp_path, models)
    for place in where:
        heads(paths[place], None)
    merged(paths, tmp_path / "out", by="global")
    init, *policies = map(weights_of, models)
    found = stored(tmp_path / "out")
    if 0 in where:
        assert torch.equal(found.pop("lm_head.weight"), found["transformer.wte.weight"])
    assert fingerprint(found) == fingerprint(merge(init, policies, by="global"))


def test_a_head_that_is_said_to_be_tied_and_is_not_is_refused(tmp_path: Path) -> None:
    paths = saved(tmp_path, family())
    for path in paths:
        write_json(path / "config.json", json.loads((path / "config.json").read_text()) | {"tie_word_embeddings": True})
    heads(paths[1], torch.zeros(V, 16))
    with pytest.raises(ValueError, match=r"run1 stores lm_head\.weight, whose bits no other tensor has"):
        merged(paths, tmp_path / "out")


# adapters


def lora(base: Any, seed: int, **settings: Any) -> Any:
    """A LoRA of a copy of `base`, with factors of noise."""
    copy = type(base)(base.config)
    copy.load_state_dict(base.state_dict())
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = peft.get_peft_model(copy, peft.LoraConfig(**{"r": 4, "lora_alpha": 6, **settings}))
        with torch.no_grad():
            for name, value in model.named_parameters():
                if "lora_" in name:
                    value.normal_(std=0.3)
    return model


ADAPTERS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {"target_modules": ["q_proj", "k_proj", "down_proj"]}),
    "rslora": ("llama", {"target_modules": "all-linear", "use_rslora": True}),
    "patterns": (
        "llama",
        {
            "target_modules": ["q_proj", "up_proj"],
            "rank_pattern": {"layers.0.self_attn.q_proj": 2, "up_proj": 3},
            "alpha_pattern": {"up_proj": 11},
        },
    ),
    "conv1d": ("gpt2", {"target_modules": ["c_attn", "c_proj", "c_fc"], "fan_in_fan_out": True}),
}


@pytest.mark.parametrize("name", ADAPTERS)
@pytest.mark.parametrize("mixed", [False, True], ids=["adapters", "an adapter and a full model"])
def test_an_adapter_is_its_product(name: str, mixed: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_files, "SPAN", 100)
    kind, settings = ADAPTERS[name]
    base = MODELS[kind](V)
    models = [lora(base, 1, **settings), moved(base, 5) if mixed else lora(base, 2, **settings)]
    paths = saved(tmp_path, [base, *models])
    merged(paths, tmp_path / "out", by="layer", eta=0.6)
    whole = [weights_of(m.merge_and_unload() if hasattr(m, "merge_and_unload") else m) for m in models]
    init = weights_of(base)
    wanted, found = liti(init, merge(init, whole), 0.6), stored(tmp_path / "out")
    assert found.keys() == wanted.keys()
    for tensor, value in wanted.items():
        assert torch.allclose(found[tensor], value, rtol=0, atol=2e-6), tensor
    assert max((wanted[tensor] - init[tensor]).abs().max().item() for tensor in wanted) > 0.1


def test_an_adapter_of_a_base_of_another_name_is_named(tmp_path: Path) -> None:
    base = tiny.llama(V)
    paths = saved(tmp_path, [base, lora(base, 1, target_modules=["q_proj"])])
    config = paths[1] / "adapter_config.json"
    for name, warned in (("org/base", False), (str(paths[0]), False), ("org/another", True)):
        write_json(config, json.loads(config.read_text()) | {"base_model_name_or_path": name})
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            open_inputs(paths[0], paths[1:], tmp_path / "out")
        mine = [str(one.message) for one in caught if "was trained on" in str(one.message)]
        assert (mine != []) == warned and all("org/another" in text for text in mine)


# mergekit


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
def test_by_tensor_it_is_mergekits_nuslerp(tmp_path: Path) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    paths = saved(tmp_path, family(), "10KB")
    merged(paths, tmp_path / "ours", by="tensor", lam=0.3)
    weights = zip(paths[1:], (0.7, 0.3), strict=True)
    recipe = {
        "merge_method": "nuslerp",
        "base_model": str(paths[0]),
        "models": [{"model": str(path), "parameters": {"weight": weight}} for path, weight in weights],
        "dtype": "float32",
    }
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(recipe), str(tmp_path / "theirs"), options)
    ours, theirs = (stored(tmp_path / name) for name in ("ours", "theirs"))
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-6), name


FROM_MERGEKIT = (Path(__file__).parents[1] / "docs" / "from-mergekit.md").read_text(encoding="utf-8")
PAIRS = re.findall(r"```yaml\n(.*?)```\n\n```bash\nwarp-nb (.*?)\n```", FROM_MERGEKIT, re.DOTALL)


@pytest.mark.filterwarnings("ignore:numpy.core:DeprecationWarning")
@pytest.mark.parametrize(("recipe", "command"), PAIRS, ids=lambda text: text.split()[1])
def test_the_pairs_of_the_page_from_mergekit_are_equal(
    recipe: str, command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mergekit.config import MergeConfiguration
    from mergekit.merge import run_merge
    from mergekit.options import MergeOptions

    monkeypatch.chdir(tmp_path)
    saved(tmp_path, family(count=3))
    cli.main(shlex.split(command))
    options = MergeOptions(copy_tokenizer=False, write_model_card=False, quiet=True)
    run_merge(MergeConfiguration.model_validate(yaml.safe_load(recipe)), "theirs", options)
    ours, theirs = (stored(tmp_path / name) for name in ("merged", "theirs"))
    assert len(PAIRS) == 3 and ours.keys() == theirs.keys()
    for name, value in ours.items():
        assert torch.allclose(value, theirs[name], rtol=1e-5, atol=1e-6), name


# memory

PEAK = """
import sys
from pathlib import Path
from benchmarks.sides import peak_rss
from warp_nb.runs.merge_files import MergeRecipe, merge_files
from warp_nb.runs.merge_inputs import open_inputs
base, first, second, out = map(Path, sys.argv[1:])
opened = open_inputs(base, [first, second], out)
before = peak_rss()
merge_files(*opened, out, MergeRecipe(eta=0.3))
print(before, peak_rss())
"""


@pytest.mark.slow
def test_memory_is_a_few_slices_whatever_the_size_of_a_tensor(tmp_path: Path) -> None:
    """Three models of 200 MB in bf16, three shards of four tensors: less than half of three tensors per input."""
    size, generator = 2**23, torch.Generator().manual_seed(0)
    for folder in ("base", "first", "second"):
        (tmp_path / folder).mkdir()
        write_json(tmp_path / folder / "config.json", {"architectures": ["Planted"]})
        values, index = torch.randn(size, generator=generator).bfloat16(), {}
        for shard in ("a.safetensors", "b.safetensors", "c.safetensors"):
            weights = {f"layers.{place}.{shard[0]}": values.roll(place) for place in range(1, 5)}
            save_file(weights, tmp_path / folder / shard)
            index |= dict.fromkeys(weights, shard)
        write_json(tmp_path / folder / "model.safetensors.index.json", {"weight_map": index})
    command = [sys.executable, "-c", PEAK, *(str(tmp_path / name) for name in ("base", "first", "second", "out"))]
    done = subprocess.run(command, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    assert done.returncode == 0, done.stderr[-2000:]
    before, after = map(int, done.stdout.split())
    assert 0 < after - before < 9 * 2 * size / 2, f"{(after - before) / 1e6:.0f} MB"


# refusals


def edit(path: Path, **changes: Any) -> None:
    write_json(path, json.loads(path.read_text()) | changes)


def renamed(path: Path) -> None:
    weights = stored(path)
    weights["transformer.wxe.weight"] = weights.pop("transformer.wpe.weight")
    save_file(weights, path / "model.safetensors")


def pickled(path: Path) -> None:
    (path / "model.safetensors").rename(path / "pytorch_model.bin")


def retokenized(path: Path) -> None:
    tiny.tokenizer([*tiny.WORDS[1:], tiny.WORDS[0]]).save_pretrained(path)


def sharded(path: Path) -> None:
    edit_index = {"weight_map": {"transformer.wte.weight": "model-00002-of-00002.safetensors"}}
    write_json(path / "model.safetensors.index.json", edit_index)


REFUSED: dict[str, tuple[Callable[[Path], Any], str]] = {
    "no folder": (shutil.rmtree, r"run1 is no folder; pass a folder that model\.save_pretrained wrote"),
    "pickles": (pickled, r"run1 holds only pytorch_model\.bin, and pickles are not read; save it with"),
    "no weights": (lambda path: (path / "model.safetensors").unlink(), r"run1 holds no model\.safetensors"),
    "no config": (lambda path: (path / "config.json").unlink(), r"run1 holds no config\.json"),
    "a shard is missing": (sharded, r"names \['model-00002-of-00002\.safetensors'\], which .*run1 lacks"),
    "another architecture": (
        lambda path: edit(path / "config.json", architectures=["LlamaForCausalLM"]),
        r"run1 is another model than .*base: architectures is \['LlamaForCausalLM'\], BASE's is \['GPT2LMHeadModel'\]",
    ),
    "another width": (lambda path: edit(path / "config.json", n_embd=32), r"n_embd is 32, BASE's is 16"),
    "another name": (
        renamed,
        r"transformer\.wpe\.weight missing against \(32, 16\); transformer\.wxe\.weight \(32, 16\)",
    ),
    "another tokenizer": (retokenized, r"run1 has another tokenizer than .*base \(\d+ tokens or ids differ, e\.g\. "),
    "an adapter as well": (
        lambda path: write_json(path / "adapter_config.json", {}),
        r"run1 holds an adapter and a full model; move",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_run_that_does_not_fit_is_refused_by_name(name: str, tmp_path: Path) -> None:
    paths = saved(tmp_path, family(count=1))
    shutil.copy(paths[0] / "tokenizer.json", paths[1])
    spoil, words = REFUSED[name]
    spoil(paths[1])
    with pytest.raises(ValueError, match=words):
        open_inputs(paths[0], paths[1:], tmp_path / "out")


REFUSED_ADAPTERS: dict[str, tuple[dict[str, Any], str]] = {
    "DoRA": ({"use_dora": True}, r"no plain LoRA adapter \(use_dora: True\); merge it .* with PEFT's merge_and_unload"),
    "whole modules": ({"modules_to_save": ["lm_head"]}, r"modules_to_save: \['lm_head'\]"),
    "another kind": ({"peft_type": "IA3"}, "peft_type: IA3"),
    "biases": ({"bias": "all"}, "bias: all"),
    "a base that is moved": ({"init_lora_weights": "pissa"}, "init_lora_weights: pissa"),
    "another rank": ({"r": 5}, r"says rank 5 of model\.layers\.0\.self_attn\.[kq]_proj, and its factors have 4"),
    "another orientation": ({"fan_in_fan_out": True}, "fan_in_fan_out: true, which not all of its modules follow"),
}


@pytest.mark.parametrize("name", REFUSED_ADAPTERS)
def test_an_adapter_that_is_no_plain_product_is_refused(name: str, tmp_path: Path) -> None:
    base = tiny.llama(V)
    paths = saved(tmp_path, [base, lora(base, 1, target_modules=["q_proj", "k_proj"])])
    changes, words = REFUSED_ADAPTERS[name]
    edit(paths[1] / "adapter_config.json", **changes)
    with pytest.raises(ValueError, match=words):
        open_inputs(paths[0], paths[1:], tmp_path / "out")


def test_an_adapter_of_another_base_is_refused(tmp_path: Path) -> None:
    llama, wider = tiny.llama(V), tiny.gpt2(V, width=32)
    saved(tmp_path / "llama", [llama, lora(llama, 1, target_modules=["q_proj"])])
    saved(tmp_path / "wider", [wider, lora(wider, 1, target_modules=["c_attn"], fan_in_fan_out=True)])
    gpt2 = saved(tmp_path / "gpt2", [tiny.gpt2(V)])[0]
    for run, words in (
        ("llama", r"another base: .* has no untied model\.layers\.0\.self_attn\.q_proj\.weight"),
        (
            "wider",
            r"another base: transformer\.h\.0\.attn\.c_attn\.weight is \(16, 48\) in .*, the product .* \(96, 32\)",
        ),
    ):
        with pytest.raises(ValueError, match=words):
            open_inputs(gpt2, [tmp_path / run / "run1"], tmp_path / "out")


def test_an_adapter_with_other_tensors_is_refused(tmp_path: Path) -> None:
    base = tiny.llama(V)
    paths = saved(tmp_path, [base, lora(base, 1, target_modules=["q_proj"])])
    file = paths[1] / "adapter_model.safetensors"
    weights = load_file(file)
    key = "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight"
    for changed, words in (
        (
            weights | {key.replace("_A", "_embedding_A"): weights[key].clone()},
            r"lora_embedding_A\.weight .*no factor of",
        ),
        (
            {name: value for name, value in weights.items() if name != key},
            r"lacks factors A \[r, in\] and B \[out, r\]",
        ),
    ):
        save_file(changed, file)
        with pytest.raises(ValueError, match=words):
            open_inputs(paths[0], paths[1:], tmp_path / "out")


def test_equal_vocabularies_in_other_files_are_one_tokenizer(tmp_path: Path) -> None:
    paths = saved(tmp_path, family(count=1))
    shutil.copy(paths[0] / "tokenizer.json", paths[1])
    edit(paths[1] / "tokenizer.json", padding={"strategy": "BatchLongest"}, version="2.0")
    edit(paths[1] / "config.json", use_cache=False, dtype="bfloat16", transformers_version="0", pad_token_id=3, new=1)
    open_inputs(paths[0], paths[1:], tmp_path / "out")


def test_a_folder_with_files_is_never_replaced(tmp_path: Path) -> None:
    paths, out = saved(tmp_path, family(count=1)), tmp_path / "out"
    out.mkdir()
    merged(paths, out)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    for words, folder in ((r"out is not empty, and nothing in it is replaced", out), ("is a file", out / "merge.json")):
        with pytest.raises(ValueError, match=words):
            merged(paths, folder)
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_merge_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = saved(tmp_path, family(count=1))
    result, calls = streaming.StreamedMerge.result, []

    def failing(*given: Any) -> torch.Tensor:
        calls.append(given)
        if len(calls) > 5:
            raise OSError("No space left on device")
        return result(*given)

    monkeypatch.setattr(streaming.StreamedMerge, "result", failing)
    with pytest.raises(OSError, match="No space left"):
        merged(paths, tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "run1"]


def test_a_full_disk_is_seen_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(merge_inputs, "ROOM", 2**60)
    with pytest.raises(ValueError, match=r"has [\d.]+ GB left and the result needs 1152921504\.6\d"):
        merged(saved(tmp_path, family(count=1)), tmp_path / "deep" / "out")


def test_a_damaged_file_is_named(tmp_path: Path) -> None:
    paths = saved(tmp_path, family(count=1))
    cut(paths[1] / "model.safetensors")
    with pytest.raises(DamagedFile, match=r"run1/model\.safetensors holds no sound safetensors"):
        open_inputs(paths[0], paths[1:], tmp_path / "out")


def test_a_file_that_shrinks_meanwhile_is_named(tmp_path: Path) -> None:
    paths = saved(tmp_path, family(count=1))
    opened = open_inputs(paths[0], paths[1:], tmp_path / "out")
    cut(paths[1] / "model.safetensors")
    with pytest.raises(DamagedFile, match=r"run1/model\.safetensors ends within a tensor"):
        merge_files(*opened, tmp_path / "out", MergeRecipe())


# the command


def test_the_command_prints_the_angles_and_where_the_result_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = saved(tmp_path, family())
    out = tmp_path / "out"
    assert cli.main(["merge", *map(str, paths), "--out", str(out), "--lam", "0.3", "--eta", "0.3"]) == 0
    lines = capsys.readouterr().out.splitlines()
    rows = json.loads((out / "merge.json").read_text())["angles"]
    assert lines[0].split("  ")[0] == "block" and len(lines) == 1 + len(rows) + 1 + 2
    for line, row in zip(lines[1:], rows, strict=False):
        block, _, _, *numbers = line.split()
        assert block == row["block"]
        assert numbers == [f"{row[name]:.4g}" for name in ("cosine", "omega", "norm_a", "norm_b")]
    assert lines[-3].startswith("all weights") and lines[-2] == "tensors that no run moved: 0"
    assert re.fullmatch(rf"{re.escape(str(out))}: [\d.]+ s, peak memory \d+ MB", lines[-1])


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["--lam", "1.5"], "lam must be in [0, 1], got 1.5"),
        (["--lam", "nan"], "lam must be in [0, 1], got nan"),
        (["--eta", "2.5"], "eta must be in [0, 2], got 2.5"),
        (["RUN3", "--lam", "0.3"], "lam = 0.3 needs two runs, got 3"),
        (["--method", "ties"], "invalid choice: 'ties'"),
        ([], "BASE is no folder"),
    ],
)
def test_the_command_refuses_before_it_loads(
    given: list[str], words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        cli.main(["merge", "BASE", "RUN1", "RUN2", *given, "--out", "out"])
    assert stopped.value.code == 2 and words in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


PAGE = Path(__file__).parents[1] / "docs" / "merge.md"
LAST = re.compile(r"(.+: )[\d.]+ s, peak memory \d+ MB")


def test_the_page_shows_what_the_command_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    saved(tmp_path, family("llama"))
    monkeypatch.chdir(tmp_path)
    command = "warp-nb merge base run1 run2 --eta 0.3 --out merged"
    cli.main(command.split()[1:])
    printed = f"$ {command}\n{capsys.readouterr().out}"
    page = PAGE.read_text(encoding="utf-8")
    shown = page.partition("<!-- example -->\n```\n")[2].partition("```\n<!-- /example -->")[0]
    assert LAST.search(shown) and LAST.sub(r"\1", shown) == LAST.sub(r"\1", printed), printed


def test_a_vocabulary_of_unigram_pieces_is_read(tmp_path: Path) -> None:
    record = {"model": {"vocab": [["a", -1.0], ["b", -2.0]]}, "added_tokens": [{"content": "<end>", "id": 2}]}
    write_json(tmp_path / "tokenizer.json", record)
    assert merge_inputs.vocabulary(tmp_path / "tokenizer.json") == {"a": 0, "b": 1, "<end>": 2}
