"""The model card of a saved policy: what it is, what was measured, what was not, and how to make it again."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from warp_nb import __version__
from warp_nb.config import WarpConfig
from warp_nb.tasks.identity import task_identity
from warp_nb.tasks.prepared import LOADERS
from warp_nb.tasks.pretrained import HUB_ID
from warp_nb.tasks.task import Task, describe

if TYPE_CHECKING:
    from huggingface_hub import ModelCard

CARD_TAGS = ["warp", "rlhf", "weight-averaging", "arxiv:2406.16768"]
MEASURE_TITLES = {
    "reward_reference": "reward of θ_sft",
    "reward_policy": "reward of this policy",
    "reward_difference": "difference of rewards, paired by prompt",
    "judge_reference": "judge's score of θ_sft",
    "judge_policy": "judge's score of this policy",
    "judge_difference": "difference of the judge's scores, paired by prompt",
    "kl_policy_reference": "KL(policy ‖ θ_sft), nats per sequence",
    "kl_reference_policy": "KL(θ_sft ‖ policy), nats per sequence",
    "perplexity_reference": "perplexity of θ_sft's completions under θ_sft",
    "perplexity_policy": "perplexity of this policy's completions under θ_sft",
    "distinct_reference": "share of distinct bigrams in a completion of θ_sft",
    "distinct_policy": "share of distinct bigrams in a completion of this policy",
}
"""Measures of an evaluation, in the order of the card's table."""
SIGNS = re.compile(r"([\\`*_{}\[\]()<>#+!|~$&])")
"""What Markdown or HTML would read as its own."""


class MeanWithInterval(Protocol):
    """A mean with a 95 % interval, as `Estimate` is; `low` and `high` are NaN where it is unknown."""

    @property
    def value(self) -> float: ...
    @property
    def low(self) -> float: ...
    @property
    def high(self) -> float: ...
    @property
    def known(self) -> bool: ...


class Evaluated(Protocol):
    """The part of an `Evaluation` that a card takes."""

    @property
    def rewards_policy(self) -> list[float]: ...
    def measures(self) -> Mapping[str, MeanWithInterval]: ...


class Checked(Protocol):
    """The part of a `Check` that a card takes."""

    @property
    def name(self) -> str: ...
    @property
    def applies(self) -> bool: ...
    @property
    def failed(self) -> bool: ...
    @property
    def figures(self) -> Mapping[str, Any]: ...


def model_card(
    task: Task,
    point: str,
    *,
    config: WarpConfig | None,
    eta: float | None,
    evaluation: Evaluated | None,
    checks: Sequence[Checked] | None,
) -> ModelCard:
    """Return the card of a policy that was trained on `task`.

    Args:
        task: policy θ_sft, reward, judge and prompts.
        point: in words, which weights these are.
        config: the configuration of the training; None if it is unknown.
        eta: the argument that `WarpResult.save` is called with; None: the default.
        evaluation: of these weights; None if they were not evaluated.
        checks: of the training and the evaluation; None if they were not run.
    """
    from huggingface_hub import ModelCard, ModelCardData

    base = base_model(task)
    data = ModelCardData(
        library_name="transformers", pipeline_tag="text-generation", tags=CARD_TAGS, base_model=base or None
    )
    parts = [
        f"# WARP policy of task {escaped(task.name)}",
        f"{point} The method is WARP ([arXiv 2406.16768](https://arxiv.org/abs/2406.16768)), the program is warp-nb "
        f"{__version__}. θ_sft is {escaped(base) if base else 'a policy without a name on the hub'}, "
        f"{task.policy.num_parameters():,} parameters.",
        "```python\nfrom transformers import pipeline\n\n"
        'pipeline("text-generation", "this folder or repository")("a prompt")\n```',
        "The generation config samples as the policy was trained and evaluated: from the full distribution.",
        "## Measured on held-out prompts",
        figures_table(evaluation, judged=task.judge is not None),
        "## Failed checks",
        failed_checks(checks),
        "## Configuration",
        configuration(config),
        "## Data and rewards",
        f"{len(task.train_prompts):,} training prompts, {len(task.eval_prompts):,} held-out prompts. The reward that "
        f"the policy was trained on, the judge that no policy was trained on, and other facts:",
        fenced(json.dumps(facts_of(task), indent=1, ensure_ascii=False, default=str), "json"),
        "## How to make it again",
        fenced(recipe(task, config, eta), "python"),
        "The policy, the prompts, the reward and the versions that the weights depend on:",
        fenced(json.dumps(identity_of(task), indent=1, ensure_ascii=False), "json"),
    ]
    return ModelCard(f"---\n{data.to_yaml()}\n---\n\n" + "\n\n".join(parts) + "\n", ignore_metadata_errors=False)


def base_model(task: Task) -> str:
    """Return the hub's name of the policy that θ_sft was loaded from; empty if it was a folder or has no name."""
    name = str(getattr(task.policy.config, "_name_or_path", "") or "")
    return name if HUB_ID.fullmatch(name) and not Path(name).exists() else ""


def figures_table(evaluation: Evaluated | None, *, judged: bool) -> str:
    """Return the table of an evaluation with 95 % intervals; what was not measured is said so."""
    if evaluation is None:
        return (
            "Rewards, judge's scores, KLs, perplexities and diversity were not measured: the policy was saved without "
            "an evaluation."
        )
    measures = evaluation.measures()
    why = "not measured" if judged else "not measured: the task has no judge"
    rows = [
        f"| {title} | {figure(measures[name]) if name in measures else why} |" for name, title in MEASURE_TITLES.items()
    ]
    head = f"| measure, {len(evaluation.rewards_policy)} held-out prompts | mean, 95 % interval over prompts |"
    return "\n".join([head, "|---|---|", *rows])


def figure(found: MeanWithInterval) -> str:
    """Return a mean and its interval with three significant digits; an unknown interval is said so."""
    ends = f"[{found.low:.3g}, {found.high:.3g}]" if found.known else "[interval unknown]"
    return f"{found.value:.3g} {ends}"


def failed_checks(checks: Sequence[Checked] | None) -> str:
    """List the checks that failed with what they measured, then those that did not apply."""
    if checks is None:
        return "Checks were not run: the policy was saved without them."
    failed = [f"- `{one.name}`: {escaped(json.dumps(one.figures, default=str))}" for one in checks if one.failed]
    silent = [f"`{one.name}`" for one in checks if not one.applies]
    applied = len(checks) - len(silent)
    lines = failed or [f"None of the {applied} checks that applied failed."]
    return "\n".join([*lines, *([f"\nNot applicable: {', '.join(silent)}."] if silent else [])])


def configuration(config: WarpConfig | None) -> str:
    """Return a table of all parameters."""
    if config is None:
        return "Unknown: the policy was saved from weights alone."
    rows = [f"| `{name}` | {escaped(value)} |" for name, value in settings_of_training(config).items()]
    return "\n".join(["| parameter | value |", "|---|---|", *rows])


def settings_of_training(config: WarpConfig) -> dict[str, Any]:
    """Return the parameters of Algorithm 1, without those that an experiment adds."""
    return config.model_dump(include=set(WarpConfig.model_fields))


def facts_of(task: Task) -> dict[str, Any]:
    """Return what banners and result files say of a task, and that there is no judge where there is none."""
    return {"judge": None} | describe(task)


def identity_of(task: Task) -> dict[str, Any]:
    """Return the fingerprints of the task's parts and the versions of the libraries."""
    found = task_identity(task)
    names = ("policy_sha256", "prompts_sha256", "reward", "versions")
    versions = found["versions"] | {"warp-nb": __version__, "python": platform.python_version()}
    return {name: found[name] for name in names} | {"versions": versions}


def recipe(task: Task, config: WarpConfig | None, eta: float | None) -> str:
    """Return the program that makes the policy again; what it cannot know is a comment."""
    load = (
        f"task = load_task({task.name!r})" if task.name in LOADERS else "task = ...  # the policy, reward and prompts"
    )
    if config is None:
        return f"from warp_nb import load_task, warp\n\n{load}\n# the configuration is unknown"
    changed = {
        name: value
        for name, value in settings_of_training(config).items()
        if value != WarpConfig.model_fields[name].default or name == "seed"
    }
    given = ", ".join(f"{name}={value!r}" for name, value in changed.items())
    to_eta = "" if eta is None else f", eta={eta!r}"
    names = "WarpConfig, load_task, warp" if task.name in LOADERS else "WarpConfig, warp"
    return (
        f"from warp_nb import {names}\n\n{load}\nresult = warp(WarpConfig({given}), task)\n"
        f'result.save("policy"{to_eta})'
    )


def escaped(value: Any) -> str:
    """Return text that Markdown and HTML show as it is, in one line, also in a cell of a table."""
    return SIGNS.sub(r"\\\1", " ".join(str(value).split())).replace("\\<", "&lt;").replace("\\>", "&gt;")


def fenced(text: str, language: str) -> str:
    """Return a block of code whose fence is longer than any in the text."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text}\n{fence}"
