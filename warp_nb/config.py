"""Every parameter of an experiment: symbol, unit, range; checked before anything expensive."""

from __future__ import annotations

import ast
import math
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

RESERVED = {"result_file"}


class WarpConfig(BaseModel):
    """Algorithm 1's symbols and the choices the paper leaves open; frozen and validated.

    Raises ValueError (pydantic's ValidationError) that names value, rule and remedy.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", validate_default=True)

    I: int = Field(2, ge=1, description="iterations of the outer loop (line 2)")  # noqa: E741
    M: int = Field(2, ge=1, description="independent RL runs an iteration (line 3)")
    T: int = Field(10, ge=1, description="training steps a run (line 5)")
    lr: float = Field(1e-6, gt=0, lt=1, description="peak learning rate of the optimizer")
    warmup_steps: int = Field(100, ge=0, description="linear warm-up: lr * min(1, t / warmup_steps); 0 is none")
    beta: float = Field(0.1, ge=0, description="strength of the KL penalty (line 7)")
    mu: float = Field(0.01, ge=0, le=1, description="EMA update rate of the anchor (line 9)")
    eta: float = Field(0.5, ge=0, le=1, description="LITI update rate (line 12)")
    batch_size: int = Field(16, ge=1, description="completions a step")
    max_new_tokens: int = Field(24, ge=1, description="longest completion, tokens")
    temperature: float = Field(1.0, gt=0, description="of sampling and of every log-probability")
    baseline: Literal["none", "mean", "loo"] = Field("none", description="subtracted from r_beta; none as written")
    anchor: Literal["ema", "sft"] = Field("ema", description="what the KL penalty is measured against")
    merge: Literal["slerp", "lerp"] = Field("slerp", description="how task vectors are merged (line 11)")
    merge_by: Literal["layer", "tensor", "global"] = Field("layer", description="block that shares one angle")
    optimizer: Literal["adam", "adamw", "sgd"] = Field("adam", description="Opt of line 8")
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="arithmetic of training (evaluation is fp32)")
    independent_seeds: bool = Field(True, description="False gives all I·M runs one seed: for the diagnosis only")
    seed: int = Field(0, ge=0, description="all randomness of the experiment derives from it")
    save_every: int = Field(0, ge=0, description="steps between saved states of a run; 0: one when it is stopped")
    threads: int = Field(
        0, ge=0, le=1024, description="CPU threads of a run (they change bits); 0 is torch's own number"
    )

    @field_validator("*", mode="before")
    @classmethod
    def _plain(cls, value: Any, info: Any) -> Any:
        """Repair what papermill and YAML make of a number where that is unambiguous."""
        kind = cls.model_fields[info.field_name].annotation
        if kind is bool and not isinstance(value, bool):
            if value not in ("true", "false", "True", "False"):
                raise ValueError(f"must be True or False, got {value!r}")
            return value in ("true", "True")
        if kind in (int, float) and isinstance(value, bool):
            raise ValueError(f"must be a number, got {value!r}")
        if kind in (int, float) and isinstance(value, str):
            try:
                value = float(value)
            except ValueError:
                raise ValueError(f"must be a number, got {value!r}") from None
        if isinstance(value, float) and not math.isfinite(value):
            raise ValueError(f"must be a finite number, got {value!r}")
        if kind is int and isinstance(value, float) and value.is_integer():
            return int(value)
        return value

    @model_validator(mode="after")
    def _together(self) -> Self:
        """Rules between parameters."""
        if self.baseline == "loo" and self.batch_size < 2:
            raise ValueError("baseline = 'loo' needs the others of a batch: pass -p batch_size 2 or more")
        return self

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise ValueError(explain(type(self), error, values)) from None

    def replace(self, **changes: Any) -> Self:
        """The same configuration with some fields changed, validated again."""
        return type(self)(**(self.model_dump() | changes))

    @classmethod
    def from_notebook(cls, names: dict[str, Any]) -> Self:
        """Read the parameters cell (and what papermill injected) out of a notebook's globals.

        Raises ValueError for an injected name that is no parameter and for a value out of range.
        """
        unknown = injected(names) - set(cls.model_fields) - RESERVED
        if unknown:
            known = ", ".join(cls.model_fields)
            raise ValueError(f"unknown parameter {', '.join(sorted(unknown))}; the notebook has: {known}")
        check_result_file(names.get("result_file", ""))
        return cls(**{name: names[name] for name in cls.model_fields if name in names})


class ExperimentConfig(WarpConfig):
    """A WarpConfig and what an experiment notebook adds around it."""

    task: str = Field("auto", min_length=1, description="auto, small, smollm or gpt2")
    device: str = Field("", description="cpu, cuda, mps; empty chooses")
    n_seeds: int = Field(1, ge=1, description="repetitions of the whole training")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(  # type: ignore[assignment]
        "auto", description="arithmetic of training; auto: bfloat16 for a large policy if the device is good at it"
    )
    n_eval_prompts: int = Field(256, ge=8, description="held-out prompts of the evaluation")
    out_dir: str = Field("", description="folder of a resumable run; empty runs afresh")


def check_result_file(path: Any) -> None:
    """Raises ValueError unless `path` is empty or names a file in a folder that exists."""
    if not isinstance(path, str):
        raise ValueError(f"result_file = {path!r} refused: must be the path of a file; pass e.g. -p result_file r.json")
    if path and (Path(path).is_dir() or not Path(path).absolute().parent.is_dir()):
        raise ValueError(f"result_file = {path!r} refused: its folder must exist, and it must be no folder itself")


def injected(names: dict[str, Any]) -> set[str]:
    """Names assigned by papermill's injected cell, found in IPython's input history."""
    found: set[str] = set()
    for source in names.get("In", []):
        if source.lstrip().startswith("# Parameters"):
            with suppress(SyntaxError):  # a reader's own cell with a magic; papermill writes plain Python
                for node in ast.walk(ast.parse(source)):
                    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
                        found.add(node.id)
    return found


def explain(cls: type[BaseModel], error: ValidationError, given: dict[str, Any]) -> str:
    """One line a fault: name, value as it was given, rule, remedy."""
    lines = []
    for fault in error.errors():
        if not fault["loc"]:
            lines.append(fault["msg"].removeprefix("Value error, "))
            continue
        name = str(fault["loc"][0])
        if name not in cls.model_fields:
            lines.append(f"unknown parameter {name}; known: {', '.join(cls.model_fields)}")
            continue
        field, value = cls.model_fields[name], given.get(name, fault["input"])
        rule = fault["msg"].removeprefix("Value error, ").removeprefix("Input should be ")
        lines.append(f"{name} = {value!r} refused ({field.description}): {rule}; pass e.g. -p {name} {field.default}")
    return "\n".join(lines)
