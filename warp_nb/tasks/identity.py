"""What the bits of a run depend on beside its configuration: the policy, the tokenizer, the reward, prompts, versions.

Nothing here depends on where a model was loaded from or on its device, so a worker that rebuilds a task finds the same.
"""

from __future__ import annotations

import hashlib
import inspect
import json
import re
import textwrap
from collections.abc import Iterable
from functools import lru_cache, partial
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, cast

from warp_nb.files import fingerprint, json_values
from warp_nb.tasks.classifier import SequenceClassifier
from warp_nb.tasks.reward_interface import Reward, WeightedSum, describe_reward

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from warp_nb.tasks.task import Task

LIBRARIES = ("torch", "transformers", "tokenizers")
VOLATILE = {
    "_name_or_path", "_commit_hash", "_from_model_config", "transformers_version", "architectures", "dtype",
    "torch_dtype",
}  # fmt: skip
"""Entries of a model's configuration that change with saving and loading, and change no bit."""
PLAIN_VALUES = (bool, int, float, str, list, tuple, dict, type(None))
SPELLED = ("add_bos_token", "add_eos_token", "clean_up_tokenization_spaces", "split_special_tokens")
"""Settings that a tokenizer applies outside its backend."""


def task_identity(task: Task) -> dict[str, Any]:
    """Return all that the bits of a task's runs depend on, as plain JSON values."""
    found: dict[str, Any] = {"task_name": task.name, "prompts_sha256": sha256(json.dumps(task.train_prompts))}
    found |= policy_identity(task.policy) | {"tokenizer": tokenizer_identity(task.tokenizer)}
    found |= {"reward": reward_identity(task.reward), "versions": versions()}
    ends = {"stop_strings": task.stop_strings, "min_new_tokens": task.min_new_tokens}
    found |= {name: value for name, value in ends.items() if value}
    if task.run_rewards:
        found["run_rewards"] = numbered(map(reward_identity, task.run_rewards))
    if task.lora is not None:
        found["lora"] = task.lora.identity()
    return plain(found | seen_identity(task, task.train_prompts))


def seen_identity(task: Task, prompts: list[str]) -> dict[str, Any]:
    """Return the identity of what rewards see of prompts beside their text: columns and messages; empty without."""
    seen = {"columns": task.rows, "conversations": task.conversations}
    return {f"{name}_sha256": sha256_of([known[one] for one in prompts]) for name, known in seen.items() if known}


def policy_identity(policy: PreTrainedModel) -> dict[str, Any]:
    """Return the identity of a policy: weights, names of those that are not trained, class, both configurations."""
    stored, kind = policy.state_dict(), cast(Any, type(policy))
    tensors = dict(policy.named_parameters()) | {n: b for n, b in policy.named_buffers() if n in stored}
    return plain(
        {
            "policy_sha256": fingerprint(tensors),
            "policy_class": {"name": kind.__name__, "sha256": source_sha256(kind)},
            "frozen": [name for name, value in policy.named_parameters() if not value.requires_grad],
            "config": lasting(policy.config.to_dict()),
            "generation_config": lasting(settings_of(getattr(policy, "generation_config", None))),
        }
    )


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the identity of a tokenizer: what it makes of text and of ids; padding and truncation are the caller's."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        serialised: Any = [type(tokenizer).__name__, tokenizer.get_vocab()]
    else:
        serialised = json.loads(backend.to_str()) | {"padding": None, "truncation": None}
    template = tokenizer.chat_template
    return plain(
        {
            "sha256": sha256(json.dumps(serialised, sort_keys=True)),
            "special_tokens": tokenizer.special_tokens_map,
            "chat_template_sha256": None if template is None else sha256(json.dumps(template)),
            **{name: value for name, value in tokenizer.init_kwargs.items() if name in SPELLED},
        }
    )


def reward_identity(reward: Reward) -> dict[str, Any]:
    """Return what a reward says of itself, and the sha256 of its source: of a function, or of an object's class.

    Of an object without `describe` also the attributes that its constructor names; of a sum the weights and
    the identity of each reward; of a classifier model and tokenizer.
    """
    if isinstance(reward, WeightedSum):
        terms = zip(reward.weights, map(reward_identity, reward.rewards), strict=True)
        return {"sum": numbered(found | {"weight": weight} for weight, found in terms)}
    if isinstance(reward, SequenceClassifier):
        model = policy_identity(reward.model)
        del model["frozen"]
        return {"label": reward.label, "model": model, "tokenizer": tokenizer_identity(reward.tokenizer)}
    if isinstance(reward, partial):
        return reward_identity(reward.func) | {
            "bound": [without_address(reward.args), without_address(reward.keywords)]
        }
    inner = inspect.unwrap(reward)
    known: Any = inner if inspect.isroutine(inner) or inspect.isclass(inner) else type(inner)
    settings = {} if known is inner or hasattr(reward, "describe") else settings_of_object(inner)
    return describe_reward(reward) | settings | {"source_sha256": source_sha256(known)}


def settings_of_object(reward: Any) -> dict[str, Any]:
    """Return the attributes of an object that its class's constructor names, if they are plain values."""
    named = inspect.signature(type(reward)).parameters
    found = {name: value for name, value in getattr(reward, "__dict__", {}).items() if name in named}
    settings = {name: value for name, value in found.items() if isinstance(value, PLAIN_VALUES)}
    return {"settings": settings} if settings else {}


def numbered(found: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Return dicts by their number from 1, so that a difference is named by its path."""
    return {str(number): one for number, one in enumerate(found, start=1)}


def versions() -> dict[str, str]:
    """Return the versions of the libraries that compute, without the mark of a build (`+cpu`)."""
    return {name: version(name).partition("+")[0] for name in LIBRARIES}


@lru_cache(maxsize=64)
def source_sha256(function: Any) -> str | None:
    """Return the sha256 of the source of a function or class, None where there is no source.

    A class of a notebook cell has none; there it is that of its methods.
    """
    try:
        return sha256(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError):
        methods = filter(inspect.isfunction, vars(function).values()) if inspect.isclass(function) else []
        found = [source for source in map(source_sha256, methods) if source is not None]
        return sha256(" ".join(found)) if found else None


def settings_of(config: Any) -> dict[str, Any]:
    """Return a configuration as a dict; empty if there is none."""
    return {} if config is None else config.to_dict()


def lasting(settings: dict[str, Any]) -> dict[str, Any]:
    """Drop what is volatile, also in the configurations inside."""
    kept = {name: value for name, value in settings.items() if name not in VOLATILE}
    return {name: lasting(value) if isinstance(value, dict) else value for name, value in kept.items()}


def plain(value: Any) -> Any:
    """Return plain JSON values, as they are read from a file again; what JSON cannot hold becomes text."""
    return json.loads(json.dumps(json_values(value), default=without_address))


def without_address(value: Any) -> str:
    """Return the representation of an object without its address, which differs between processes."""
    return re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))


def sha256_of(value: Any) -> str:
    """Return the hex sha256 of a value of plain JSON values (see `plain`)."""
    return sha256(json.dumps(plain(value), sort_keys=True))


def sha256(text: str) -> str:
    """Return the hex sha256 of a text."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()
