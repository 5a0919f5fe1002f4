"""One experiment: `n_seeds` trainings by `warp()`, their evaluation, checks and record."""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from warp_nb.config import ExperimentConfig
from warp_nb.fast.devices import training_dtype
from warp_nb.files import json_values
from warp_nb.measure.checks import Check, check_result, run_checks
from warp_nb.measure.estimates import Estimate
from warp_nb.measure.evaluation import MEASURES, Evaluation, check_eval_prompts, evaluate, over_trainings
from warp_nb.measure.machine import machine, peak_rss_mb
from warp_nb.runs.facts import Row
from warp_nb.runs.folder import FINAL
from warp_nb.runs.training import FAST, OnStep, Parts, derive_seed
from warp_nb.runs.warp import WarpResult, reporting, warp
from warp_nb.tasks.gate import RewardGate
from warp_nb.tasks.prepared import LOADERS
from warp_nb.tasks.task import Task, describe

if TYPE_CHECKING:
    import pandas as pd

TABLES = ("history", "geometry", "runs", "merges")
"""Tables of a `WarpResult`."""
CHECK_FIELDS = tuple(field.name for field in fields(Check))


@dataclass(kw_only=True)
class ExperimentResult:
    """Result of an experiment. The notebooks show it, and reports are made from its JSON.

    Args:
        config: parameters, with `dtype` and `n_eval_prompts` resolved.
        about: facts about the task.
        evaluations: one per training.
        summary: each measure with its interval: over prompts (n_seeds = 1) or over trainings (t interval).
        history, geometry, runs, merges: the tables of `WarpResult` with a column `seed`.
        gate: measurements of the reward; None if the task has no gate.
        checks: results of the checks for silent failures.
        seconds: duration of this call, s.
        peak_rss_mb: peak memory of the process, MB.
    """

    config: ExperimentConfig
    about: dict[str, Any]
    evaluations: list[Evaluation]
    summary: dict[str, Estimate]
    history: pd.DataFrame
    geometry: pd.DataFrame
    runs: pd.DataFrame
    merges: pd.DataFrame
    gate: RewardGate | None
    checks: list[Check]
    seconds: float
    peak_rss_mb: float

    def to_json(self) -> dict[str, Any]:
        """Return everything as plain JSON values; NaN becomes null."""
        return json_values(
            {
                "status": "ok",
                "task": self.about,
                "config": self.config.model_dump(exclude={"out_dir"}),
                "summary": {name: asdict(estimate) for name, estimate in self.summary.items()},
                "checks": [check.to_json() for check in self.checks],
                "gate": self.gate and asdict(self.gate),
                **{name: getattr(self, name).to_dict("records") for name in TABLES},
                "samples": self.evaluations[0].samples,
                "evaluations": [
                    {"seed": self.config.seed + index} | evaluation.figures()
                    for index, evaluation in enumerate(self.evaluations)
                ],
                "seconds": self.seconds,
                "peak_rss_mb": self.peak_rss_mb,
                "machine": machine(),
            }
        )

    @classmethod
    def from_json(cls, record: dict[str, Any]) -> Self:
        """Read what `to_json` wrote, so that words and figures can be made again without training.

        NaN and infinities, which are null in JSON, become NaN. Of the samples the first training's are there.

        Args:
            record: a result file of an experiment that ended (`read_result_of`).

        Raises:
            ValueError: the parameters are not valid ones.
        """
        import pandas as pd

        summary, gate, checks, evaluations = (
            _with_nan(record[name]) for name in ("summary", "gate", "checks", "evaluations")
        )
        samples = [record["samples"]] + [[]] * (len(evaluations) - 1)
        return cls(
            config=ExperimentConfig(**record["config"]),
            about=record["task"],
            evaluations=[_evaluation(*pair) for pair in zip(evaluations, samples, strict=True)],
            summary={name: Estimate(**estimate) for name, estimate in summary.items()},
            **{name: pd.DataFrame(_with_nan(record[name])) for name in TABLES},
            gate=gate and RewardGate(**gate),
            checks=[Check(**{name: check[name] for name in CHECK_FIELDS}) for check in checks],
            seconds=record["seconds"],
            peak_rss_mb=record["peak_rss_mb"],
        )


def run_experiment(
    config: ExperimentConfig, task: Task, *, progress: bool | OnStep = True, parts: Parts = FAST
) -> ExperimentResult:
    """Train `n_seeds` times with independent seeds, evaluate each training, and run all checks.

    Each training is evaluated on a separate draw of held-out prompts, so the spread between trainings includes that
    between prompts.

    Args:
        config: the parameters; with `out_dir` runs are durable, as in `warp`, in a folder `seed_<seed>` for each
            training, and the model card of its policy states the evaluation and the checks.
        task: policy, tokenizer, reward and prompts.
        progress: True (a bar), False, or a function that is called with every history row and its `seed`.
        parts: the functions that a run calls (see `warp`).

    Raises:
        ValueError: another task is loaded than `config` asks for; the task has fewer than `n_eval_prompts`
            held-out prompts; and what `warp` raises.
    """
    started = time.perf_counter()
    check_loaded(config, task)
    config = resolved(config, task)
    check_eval_prompts(config.n_eval_prompts, task, config.max_new_tokens)
    gate = task.gate(task.of_texts(task.reward)) if task.gate else None
    results: list[WarpResult] = []
    evaluations: list[Evaluation] = []
    seeds = [config.seed + index for index in range(config.n_seeds)]
    with reporting(progress, config.n_seeds * config.I * config.M * config.T) as on_step:
        for seed in seeds:
            result = warp(
                config.replace(seed=seed),
                task,
                folder_of(config, seed),
                progress=partial(with_seed, on_step, seed),
                parts=parts,
            )
            results.append(result)
            settings = evaluation_settings(config.replace(seed=seed), task)
            evaluations.append(evaluate(result.policy, task.policy, task, **settings))
    tables = stacked(results, seeds)
    for seed, result, evaluation in zip(seeds, results, evaluations, strict=True):
        if folder := folder_of(config, seed):
            checks = check_result(result, [evaluation], gate)
            result.at(evaluation=evaluation, checks=checks).keep_card(folder / FINAL)
    return ExperimentResult(
        config=config,
        about=describe(task),
        evaluations=evaluations,
        summary={name: over_trainings(evaluations, name) for name in MEASURES},
        **tables,
        gate=gate,
        checks=run_checks(
            gate, tables["history"], tables["runs"], tables["merges"], evaluations=evaluations, config=config
        ),
        seconds=time.perf_counter() - started,
        peak_rss_mb=peak_rss_mb(),
    )


def resolved(config: ExperimentConfig, task: Task) -> ExperimentConfig:
    """Return the parameters that a task leaves open: `dtype`, and as many held-out prompts as a user's file allows."""
    count = min(config.n_eval_prompts, len(task.eval_prompts)) if config.policy else config.n_eval_prompts
    return config.replace(dtype=training_dtype(config.dtype, task.policy), n_eval_prompts=count)


def with_seed(on_step: OnStep, seed: int, row: Row) -> None:
    """Call `on_step` with a row of the history of one training and its seed."""
    on_step({"seed": seed} | row)


def folder_of(config: ExperimentConfig, seed: int) -> Path | None:
    """Return the folder of a training's runs; None if nothing is saved."""
    return Path(config.out_dir) / f"seed_{seed}" if config.out_dir else None


def check_loaded(config: ExperimentConfig, task: Task) -> None:
    """Raise ValueError if a task is not the one that `config` asks for, or lies on another kind of device.

    Of a task that was made without `config`, nothing is known.
    """
    asked = {"policy": config.policy, "prompts": config.prompts, "device": config.device.partition(":")[0]}
    loaded = {"policy": task.facts.get("policy"), "prompts": task.facts.get("prompts")}
    loaded |= {"device": task.policy.device.type}
    if not config.own:
        if task.name not in LOADERS:
            return
        asked["task"], loaded["task"] = config.task.replace("auto", ""), task.name
    for name, value in asked.items():
        if value and value != loaded[name]:
            raise ValueError(f"the loaded task has {name} = {loaded[name]!r}, got {value!r} in config; load it again")


def evaluation_settings(config: ExperimentConfig, task: Task) -> dict[str, Any]:
    """Return the keywords of `evaluate` for one training; prompts and noise follow from its seed."""
    return {
        "n_prompts": config.n_eval_prompts,
        "seed": derive_seed(config.seed, "evaluation"),
        "sampling": task.sampling(config.max_new_tokens, config.temperature),
    }


def stacked(results: Sequence[Any], seeds: Sequence[int]) -> dict[str, pd.DataFrame]:
    """Concatenate the tables of all trainings, with a column `seed`."""
    import pandas as pd

    return {
        name: pd.concat(
            [getattr(result, name).assign(seed=seed) for result, seed in zip(results, seeds, strict=True)],
            ignore_index=True,
        )
        for name in TABLES
    }


def _with_nan(value: Any) -> Any:
    """Replace None by NaN in nested lists and dicts of measurements; a missing gate stays None."""
    if isinstance(value, dict):
        return {key: math.nan if item is None else _with_nan(item) for key, item in value.items()}
    return [_with_nan(item) for item in value] if isinstance(value, list) else value


def _evaluation(figures: dict[str, Any], samples: list[dict[str, Any]]) -> Evaluation:
    """Return the evaluation that has these figures (`Evaluation.figures`)."""
    measured: dict[str, Any] = {
        name: Estimate(**one) if isinstance(one, dict) else one for name, one in figures.items() if name != "seed"
    }
    return Evaluation(**measured, samples=samples)
