"""One experiment: `n_seeds` trainings by `warp()`, their evaluation, checks and record."""

from __future__ import annotations

import platform
import resource
import sys
import time
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from warp_nb.config import ExperimentConfig
from warp_nb.fast.devices import training_dtype
from warp_nb.measure.checks import Check, run_checks
from warp_nb.measure.evaluation import MEASURES, Estimate, Evaluation, check_eval_prompts, evaluate, over_trainings
from warp_nb.runs.policy_gradient import derive_seed
from warp_nb.runs.warping import WarpResult, reporting, warp
from warp_nb.runs.weights import plain, write_json
from warp_nb.tasks.reward_model import RewardGate, gate_pairs, measure_gate
from warp_nb.tasks.task import Task, describe

if TYPE_CHECKING:
    import pandas as pd

PACKAGES = ("torch", "transformers", "trl", "datasets", "numpy", "papermill")


@dataclass
class ExperimentResult:
    """What an experiment measured; the notebooks show it, reports are made from its JSON."""

    config: ExperimentConfig
    about: dict[str, Any]
    evaluations: list[Evaluation]
    summary: dict[str, Estimate]
    """Each measure with its interval: over prompts (n_seeds = 1) or over trainings (t interval)."""
    history: pd.DataFrame
    geometry: pd.DataFrame
    runs: pd.DataFrame
    merges: pd.DataFrame
    gate: RewardGate
    checks: list[Check]
    seconds: float
    peak_rss_mb: float

    def to_json(self) -> dict[str, Any]:
        """Everything as plain JSON values; NaN as null."""
        from warp_nb.notebook.conclusions import conclude

        return plain(
            {
                "status": "ok",
                "task": self.about,
                "config": self.config.model_dump(exclude={"out_dir"}),
                "summary": {name: asdict(estimate) for name, estimate in self.summary.items()},
                "checks": [asdict(check) for check in self.checks],
                "conclusion": conclude(self),
                "gate": asdict(self.gate),
                "history": self.history.to_dict("records"),
                "geometry": self.geometry.to_dict("records"),
                "runs": self.runs.to_dict("records"),
                "merges": self.merges.to_dict("records"),
                "samples": self.evaluations[0].samples,
                "seconds": self.seconds,
                "peak_rss_mb": self.peak_rss_mb,
                "machine": machine(),
            }
        )

    def save(self, path: str | Path) -> None:
        """Write `to_json()` atomically; an empty path writes nothing."""
        if path:
            write_json(Path(path), self.to_json())


def run_experiment(config: ExperimentConfig, task: Task, progress: bool = True) -> ExperimentResult:
    """Train `n_seeds` times with independent seeds, evaluate each, check everything.

    Every training is evaluated on its own draw of held-out prompts, so the spread between
    trainings holds the prompts' share too.
    """
    import pandas as pd

    started = time.perf_counter()
    config = config.replace(dtype=training_dtype(config.dtype, task.policy))
    check_eval_prompts(config.n_eval_prompts, task)
    gate = measure_gate(task.reward, pairs=gate_pairs(source=task.reviews))
    results: list[WarpResult] = []
    evaluations: list[Evaluation] = []
    seeds = [config.seed + index for index in range(config.n_seeds)]
    with reporting(progress, config.n_seeds * config.I * config.M * config.T) as on_step:
        for seed in seeds:
            folder = Path(config.out_dir) / f"seed_{seed}" if config.out_dir else None
            result = warp(config.replace(seed=seed), task, folder, progress=on_step)
            results.append(result)
            evaluations.append(
                evaluate(
                    result.policy,
                    task.policy,
                    task,
                    config.n_eval_prompts,
                    derive_seed(seed, "evaluation"),
                    config.max_new_tokens,
                    config.temperature,
                )
            )
    frames = {}
    for name in ("history", "geometry", "runs", "merges"):
        parts = [getattr(result, name).assign(seed=seed) for result, seed in zip(results, seeds, strict=True)]
        frames[name] = pd.concat(parts, ignore_index=True)
    return ExperimentResult(
        config=config,
        about=describe(task),
        evaluations=evaluations,
        summary=summarise(evaluations),
        **frames,
        gate=gate,
        checks=run_checks(gate, frames["history"], frames["runs"], frames["merges"], evaluations, config),
        seconds=time.perf_counter() - started,
        peak_rss_mb=peak_rss_mb(),
    )


def summarise(evaluations: list[Evaluation]) -> dict[str, Estimate]:
    """Every measure over the trainings."""
    return {name: over_trainings(evaluations, name) for name in MEASURES}


def peak_rss_mb() -> float:
    """Peak resident memory of this process, MB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak / 1e3


def machine() -> dict[str, Any]:
    """Versions and hardware, recorded with every result."""
    model = platform.processor() or platform.machine()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        model = names[0] if names else model
    return {
        "cpu": model,
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "python": platform.python_version(),
        "versions": {name: version(name) for name in PACKAGES},
    }
