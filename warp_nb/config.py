"""Every parameter of an experiment: symbol, unit, range. All of them are validated before any expensive work."""

from __future__ import annotations

import ast
from collections.abc import Collection, Iterable
from contextlib import suppress
from difflib import get_close_matches
from numbers import Number
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator, model_validator

from warp_nb.paths import expanded

RESERVED = {"result_file"}
VALUE_LENGTH = 80
"""Characters of a value that an error repeats."""


def _number(value: Any) -> Any:
    """Read a number that YAML 1.1 left as text ("1e-4"); refuse booleans, which pydantic would take as 0 and 1."""
    if isinstance(value, bool):
        raise ValueError("must be a number")
    if isinstance(value, str):
        for kind in (int, float):  # int first: a float would round a long seed
            with suppress(ValueError):
                return kind(value)
    return value


Int = Annotated[int, BeforeValidator(_number)]
Float = Annotated[float, BeforeValidator(_number)]


class WarpConfig(BaseModel):
    """The symbols of Algorithm 1 and the choices that the paper leaves open; frozen and validated.

    Raises:
        ValueError: a value is invalid; the message gives each such parameter with its value, the rule and a remedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True, allow_inf_nan=False)

    I: Int = Field(2, ge=1, le=10_000, description="iterations of the outer loop (line 2)")  # noqa: E741
    M: Int = Field(2, ge=1, le=1_000, description="independent RL runs per iteration (line 3)")
    T: Int = Field(10, ge=1, description="training steps per run (line 5)")
    lr: Float = Field(1e-6, gt=0, lt=1, description="peak learning rate of the optimizer (line 8)")
    warmup_steps: Int = Field(100, ge=0, description="linear warm-up: lr * min(1, t / warmup_steps); 0 is none")
    beta: Float = Field(0.1, ge=0, description="strength of the KL penalty (line 7)")
    mu: Float = Field(0.01, ge=0, le=1, description="EMA update rate of the anchor (line 9)")
    eta: Float = Field(0.5, ge=0, le=1, description="LITI update rate (line 13)")
    lam: Float = Field(0.5, ge=0, le=1, description="weight of run 2 in the merge of M = 2 (line 12)")
    batch_size: Int = Field(16, ge=1, le=100_000, description="completions per step")
    samples_per_prompt: Int = Field(1, ge=1, description="completions of one prompt in a batch")
    max_new_tokens: Int = Field(24, ge=1, le=100_000, description="largest length of a completion, tokens")
    temperature: Float = Field(1.0, gt=0, description="of sampling and of every log-probability")
    baseline: Literal["none", "mean", "batch_loo", "rloo"] = Field("none", description="subtracted from r_beta")
    anchor: Literal["ema", "sft"] = Field("ema", description="the model that the KL penalty is measured against")
    merge: Literal["slerp", "lerp", "slerp_weights"] = Field("slerp", description="how runs are merged (line 12)")
    merge_by: Literal["layer", "tensor", "global"] = Field("layer", description="weights that share one angle")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="Opt in line 8")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="compute dtype of training; evaluation: fp32")
    seed: Int = Field(0, ge=0, description="all randomness of the experiment derives from it")
    save_every: Int = Field(0, ge=0, description="steps between checkpoints of a run; 0: only when it stops early")
    snapshot_every: Int = Field(0, ge=0, description="steps between snapshots of a run's weights; 0: none")
    keep_anchors: bool = Field(False, description="whether the final anchors are saved as snapshots")
    threads: Int = Field(
        0, ge=0, le=1024, description="CPU threads of a run (their number changes bits); 0: torch's default"
    )

    @model_validator(mode="after")
    def _together(self) -> Self:
        """Rules between parameters."""
        B, K, by = self.batch_size, self.samples_per_prompt, self.baseline
        for broken, rule, remedy in (
            (B % K, f"batch_size = {B} must be a multiple of samples_per_prompt = {K}", "samples_per_prompt 1"),
            (by == "rloo" and K < 2, "baseline = 'rloo' needs samples_per_prompt >= 2, got 1", "samples_per_prompt 2"),
            (by == "batch_loo" and B < 2, "baseline = 'batch_loo' needs batch_size >= 2, got 1", "batch_size 2"),
            (self.lam != 0.5 and self.M != 2, f"lam = {self.lam} needs M = 2, got M = {self.M}", "lam 0.5"),
        ):
            if broken:
                raise ValueError(f"{rule}; pass -p {remedy}")
        return self

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(explain(type(self), error, values)) from None

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed, validated again."""
        return type(self)(**(self.model_dump() | changes))

    @classmethod
    def from_notebook(cls, names: dict[str, Any]) -> Self:
        """Read the parameters cell and the values that papermill injected from `names`, a notebook's `globals()`.

        Raises:
            ValueError: the parameters cell was not run, or assigns a name that is no parameter; another cell has taken
                a parameter's name; or a value is invalid.
        """
        known = set(cls.model_fields) | RESERVED
        unknown = stated(names, known) - known
        if unknown:
            raise ValueError(say_unknown(sorted(unknown), cls.model_fields))
        if "In" in names and not cls.model_fields.keys() & names.keys():
            raise ValueError("no parameter has a value here; run the cell of parameters before this one")
        rebound = [say_rebound(name, names[name]) for name in sorted(known & names.keys()) if is_object(names[name])]
        if rebound:
            raise ValueError("\n".join(rebound))
        check_result_file(names.get("result_file", ""))
        return cls(**{name: names[name] for name in cls.model_fields if name in names})


class ExperimentConfig(WarpConfig):
    """A `WarpConfig` with the parameters that an experiment adds: task, device, seeds, evaluation, folder."""

    task: str = Field("auto", min_length=1, description="auto, small, smollm, gpt2, or module:function of your own")
    policy: str = Field("", description="folder or hub id of a policy of your own; empty: the task's")
    reward: str = Field("", description="module:function in TRL's convention, for a policy of your own")
    prompts: str = Field("", description="file of prompts, for a policy of your own")
    device: str = Field("", description="cpu, cuda, mps; empty: the fastest one here")
    n_seeds: Int = Field(1, ge=1, le=1_000, description="repetitions of the whole training")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(  # type: ignore[assignment]
        "auto", description="compute dtype of training; auto: bfloat16 for a large policy on a device with native bf16"
    )
    n_eval_prompts: Int = Field(256, ge=8, description="held-out prompts of the evaluation")
    out_dir: str = Field("", description="folder of a resumable run; empty: nothing is saved")

    @property
    def own(self) -> bool:
        """Whether the task is a user's: made of `policy`, `reward` and `prompts`, or by a `module:function`."""
        return bool(self.policy) or ":" in self.task

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Policy, reward and prompts go together, and stand in the place of a task."""
        parts = {name: getattr(self, name) for name in ("policy", "reward", "prompts")}
        given = [f"{name} = {shortened(value)}" for name, value in parts.items() if value]
        lacking = [name for name, value in parts.items() if not value]
        if given and lacking:
            raise ValueError(
                f"{given[0]} needs {' and '.join(lacking)} too; pass -p policy DIR -p reward module:function "
                f"-p prompts FILE, or -p task module:function"
            )
        if given and self.task != "auto":
            raise ValueError(f"task = {shortened(self.task)} and {given[0]} are two tasks; pass -p task auto")
        return self

    @field_validator("out_dir")
    @classmethod
    def _home(cls, path: str) -> str:
        """Replace a leading `~` by the home folder."""
        return str(expanded(path)) if path else path


def check_result_file(path: Any) -> None:
    """Raise ValueError unless `path` is empty or names a file in a folder that exists."""
    if not isinstance(path, str):
        raise ValueError(
            f"result_file = {shortened(path)} refused: must be the path of a file; pass e.g. -p result_file r.json"
        )
    if path and (expanded(path).is_dir() or not expanded(path).absolute().parent.is_dir()):
        raise ValueError(f"result_file = {path!r} refused: its folder must exist, and it must not be a folder itself")


def stated(names: dict[str, Any], known: Collection[str]) -> set[str]:
    """Return the names that the cells of parameters assign, found in IPython's input history.

    The parameters cell consists of annotated assignments, at least one of a known name; papermill's injected cell
    begins with `# Parameters`. Only the last run of each counts, the parameters cell run again replaces what was
    injected before, and `del` removes a name.
    """
    cell: set[str] = set()
    injected: set[str] = set()
    for source in names.get("In", []):
        with suppress(SyntaxError):  # a user's cell with a magic; papermill writes plain Python
            tree = ast.parse(source)
            found = [node for node in ast.walk(tree) if isinstance(node, ast.Name)]
            assigned = {node.id for node in found if isinstance(node.ctx, ast.Store)}
            deleted = {node.id for node in found if isinstance(node.ctx, ast.Del)}
            if all(isinstance(node, ast.AnnAssign) for node in tree.body) and not assigned.isdisjoint(known):
                cell, injected = assigned, set()
            elif source.lstrip().startswith("# Parameters"):
                injected = assigned
            cell, injected = cell - deleted, injected - deleted
    return cell | injected


def is_object(value: Any) -> bool:
    """Return whether a value is neither a number nor text, nor a plain collection: no parameter was ever such."""
    return not isinstance(value, str | Number | list | tuple | dict | set | None)


def say_rebound(name: str, value: Any) -> str:
    """Name a parameter whose name another cell has taken, and the remedy."""
    kind = type(value).__name__
    return (
        f"{name} must be a parameter's value, got an object of type {kind}: another cell assigns this name; "
        f"give the object another name, and run the cell of parameters again before this one"
    )


def shortened(value: Any) -> str:
    """Return the representation of a value, cut to VALUE_LENGTH characters."""
    text = repr(value)
    return text if len(text) <= VALUE_LENGTH else f"{text[:VALUE_LENGTH]}… ({len(text)} characters)"


def explain(cls: type[BaseModel], error: ValidationError, given: dict[str, Any]) -> str:
    """Describe each fault in one line: name, value as given, rule, remedy."""
    lines = []
    for fault in error.errors():
        if not fault["loc"]:
            lines.append(fault["msg"].removeprefix("Value error, "))
            continue
        name = str(fault["loc"][0])
        if name not in cls.model_fields:
            lines.append(say_unknown([name], cls.model_fields))
            continue
        field, value = cls.model_fields[name], given.get(name, fault["input"])
        rule = fault["msg"].removeprefix("Value error, ").replace("Input should be", "must be")
        lines.append(
            f"{name} = {shortened(value)} refused ({field.description}): {rule}; pass e.g. -p {name} {field.default}"
        )
    return "\n".join(lines)


def say_unknown(names: Iterable[str], known: Collection[str]) -> str:
    """Name the unknown parameters, each with its closest match, and list the known ones."""
    spelled, said = {name.lower(): name for name in known}, []
    for name in names:
        closest = get_close_matches(name.lower(), spelled, n=1)
        said.append(f"{name} (did you mean {spelled[closest[0]]}?)" if closest else name)
    return f"unknown parameter {', '.join(said)}; pass one of {', '.join(known)}"
