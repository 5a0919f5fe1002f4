"""One identity of a task: all that bits depend on changes it, and nothing that saving and loading change does."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from brute import MODELS
from faulty import CONFIG, quick
from transformers import AutoModelForCausalLM, AutoTokenizer

from warp_nb.runs.folder import differences
from warp_nb.tasks import identity
from warp_nb.tasks.identity import policy_identity, reward_identity, source_sha256, task_identity, tokenizer_identity

SMALL = CONFIG.replace(T=1)


def changed(policy: Any, **settings: Any) -> Any:
    """The same weights under a configuration that differs in `settings`."""
    config = copy.deepcopy(policy.config)
    for name, value in settings.items():
        setattr(config, name, value)
    other = type(policy)(config).eval()
    other.load_state_dict(policy.state_dict())
    return other


def frozen(policy: Any) -> Any:
    policy.get_input_embeddings().weight.requires_grad_(False)
    return policy


def ended(policy: Any) -> Any:
    policy.generation_config.eos_token_id = [3, 4]
    return policy


class Doubled(type(tiny.gpt2(4))):  # type: ignore[misc]
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = super().forward(*args, **kwargs)
        out.logits = 2 * out.logits
        return out


def doubled(policy: Any) -> Any:
    policy.__class__ = Doubled
    return policy


def with_template(tokenizer: Any) -> Any:
    tokenizer.chat_template = "{{ messages }}"
    return tokenizer


def without_end(tokenizer: Any) -> Any:
    tokenizer.eos_token = None
    return tokenizer


def shout(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
    return [float("!" in text) for text in completions]


def policy() -> Any:
    return tiny.gpt2(len(tiny.tokenizer()), spread=0.05)


OTHERS: dict[str, tuple[Callable[[], dict[str, Any]], str]] = {
    "heads": (lambda: {"policy": changed(policy(), n_head=4)}, "config.n_head: 2 there, 4 here"),
    "epsilon": (
        lambda: {"policy": changed(policy(), layer_norm_epsilon=1e-3)},
        "config.layer_norm_epsilon: 1e-05 there,",
    ),
    "end tokens": (lambda: {"policy": ended(policy())}, "generation_config.eos_token_id: None there, [3, 4] here"),
    "frozen": (lambda: {"policy": frozen(policy())}, "frozen: [] there, ['transformer.wte.weight'] here"),
    "own class": (lambda: {"policy": doubled(policy())}, "policy_class.name: 'GPT2LMHeadModel' there, 'Doubled' here"),
    "words": (lambda: {"tokenizer": tiny.tokenizer(tiny.WORDS[::-1])}, "tokenizer.sha256: '"),
    "no end": (
        lambda: {"tokenizer": without_end(tiny.tokenizer())},
        "tokenizer.special_tokens.eos_token: '<end>' there, None here",
    ),
    "template": (
        lambda: {"tokenizer": with_template(tiny.tokenizer())},
        "tokenizer.chat_template_sha256: None there, '",
    ),
    "reward": (lambda: {"reward": shout}, "reward.name: 'opinion' there, 'shout' here"),
    "prompts": (lambda: {"train_prompts": ["the film"]}, "prompts_sha256: '"),
}
"""The tiny task with one change, and what is said of it."""


@pytest.mark.parametrize("kind", OTHERS)
def test_what_bits_depend_on_is_told(kind: str) -> None:
    make, said = OTHERS[kind]
    told = differences(task_identity(tiny.task()), task_identity(tiny.task(**make())))
    assert said in told


def test_prompts_are_told_apart_where_they_are_joined_alike() -> None:
    joined, apart = (tiny.task(train_prompts=prompts) for prompts in (["the\0film"], ["the", "film"]))
    assert "prompts_sha256" in differences(task_identity(joined), task_identity(apart))


def test_only_the_configuration_is_named_when_only_it_differs() -> None:
    told = differences(task_identity(tiny.task()), task_identity(tiny.task(policy=changed(policy(), n_head=4))))
    assert told == "config.n_head: 2 there, 4 here"


def test_a_folder_of_another_tokenizer_is_refused(tmp_path: Path) -> None:
    quick(SMALL, tiny.task(), out_dir=tmp_path)
    with pytest.raises(
        ValueError, match=r"configuration \(tokenizer\.special_tokens\.eos_token: '<end>' there, None here"
    ):
        quick(SMALL, tiny.task(tokenizer=without_end(tiny.tokenizer())), out_dir=tmp_path)


@pytest.mark.parametrize("kind", MODELS)
def test_saving_and_loading_change_no_identity(kind: str, tmp_path: Path) -> None:
    words = tiny.tokenizer()
    model = MODELS[kind](len(words))
    before = policy_identity(model), tokenizer_identity(words)
    model.save_pretrained(tmp_path)
    words.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    found = policy_identity(again), tokenizer_identity(AutoTokenizer.from_pretrained(tmp_path))
    assert found == before and json.loads(json.dumps(found[0])) == found[0]


def test_a_judge_changes_no_identity() -> None:
    assert task_identity(tiny.task(judge=tiny.counted("awful"))) == task_identity(tiny.task())


def test_padding_a_batch_changes_no_identity() -> None:
    words = tiny.tokenizer(pad=True)
    before = tokenizer_identity(words)
    words(["the film", "we"], padding=True, truncation=True, max_length=4)
    assert tokenizer_identity(words) == before


def weighed(prompts: list[str], completions: list[str], weight: float, **kwargs: Any) -> list[float]:
    return [weight for _ in completions]


class Weighed:
    """Two classes of one name are told apart by their source."""

    def __call__(self, prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0 for _ in completions]


def test_a_reward_is_known_by_its_source() -> None:
    def one(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:
        return [0.0 for _ in completions]

    first = reward_identity(one)

    def one(prompts: list[str], completions: list[str], **kwargs: Any) -> list[float]:  # type: ignore[no-redef]
        return [1.0 for _ in completions]

    assert first["name"] == reward_identity(one)["name"] == "one"
    assert first["source_sha256"] != reward_identity(one)["source_sha256"]
    assert reward_identity(Weighed()) == {"name": "Weighed", "source_sha256": source_sha256(Weighed)}
    half, whole = (reward_identity(partial(weighed, weight=weight)) for weight in (0.5, 1.0))
    assert half["source_sha256"] == source_sha256(weighed) and half != whole
    by_objects = [reward_identity(partial(weighed, model=Weighed())) for _ in range(2)]
    assert by_objects[0] == by_objects[1], "an address is no identity"


def test_a_decorated_reward_is_known_by_the_source_of_what_is_decorated() -> None:
    cached = lru_cache(weighed)
    assert reward_identity(cached)["source_sha256"] == source_sha256(weighed) is not None


@pytest.mark.parametrize("changed", ["__call__", "helper"])
def test_a_class_of_a_notebook_is_known_by_its_methods(changed: str, tmp_path: Path) -> None:
    """Python finds the source of a function of a cell, and not that of a class."""

    def of_cell(value: str) -> Any:
        lines = {"__call__": "return [1.0]", "helper": "return 1"} | {changed: value}
        body = "\n".join(f"    def {name}(self, *args, **kwargs):\n        {line}" for name, line in lines.items())
        path = tmp_path / f"cell{len(list(tmp_path.iterdir()))}.py"
        path.write_text(f"class Own:\n{body}\n")
        names: dict[str, Any] = {"__name__": "a_cell"}
        exec(compile(path.read_text(), str(path), "exec"), names)
        return names["Own"]()

    first, same, other = (reward_identity(of_cell(value)) for value in ("return [2.0]", "return [2.0]", "return [3.0]"))
    assert first["source_sha256"] is not None and first == same != other


def test_a_reward_without_source_is_known_by_its_name() -> None:
    names: dict[str, Any] = {}
    exec("def typed(prompts, completions, **kwargs):\n    return [0.0] * len(completions)", names)
    assert reward_identity(names["typed"]) == {"name": "typed", "source_sha256": None}


def test_versions_are_named_without_their_build(monkeypatch: pytest.MonkeyPatch) -> None:
    before = task_identity(tiny.task())
    monkeypatch.setattr(identity, "version", lambda name: "0.1+cu99")
    told = differences(before, task_identity(tiny.task()))
    assert [entry.partition(":")[0] for entry in told.split("; ")] == [
        "versions.torch", "versions.transformers", "versions.tokenizers"
    ]  # fmt: skip
    assert told.endswith("there, '0.1' here")
