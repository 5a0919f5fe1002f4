"""WARP (Weight Averaged Rewarded Policies, arXiv 2406.16768) for notebooks.

The names below are loaded when first used, so that `import warp_nb` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warp_nb.config import ExperimentConfig, WarpConfig
    from warp_nb.measure.evaluation import Estimate, Evaluation, evaluate, pareto_front
    from warp_nb.runs.warping import WarpResult, warp
    from warp_nb.studies.experiment import ExperimentResult, run_experiment
    from warp_nb.tasks.task import Task, load_task

__version__ = "0.1.0"
_HOMES = {
    "WarpConfig": "config",
    "ExperimentConfig": "config",
    "Task": "tasks.task",
    "load_task": "tasks.task",
    "warp": "runs.warping",
    "WarpResult": "runs.warping",
    "evaluate": "measure.evaluation",
    "pareto_front": "measure.evaluation",
    "Estimate": "measure.evaluation",
    "Evaluation": "measure.evaluation",
    "run_experiment": "studies.experiment",
    "ExperimentResult": "studies.experiment",
}
__all__ = [
    "Estimate",
    "Evaluation",
    "ExperimentConfig",
    "ExperimentResult",
    "Task",
    "WarpConfig",
    "WarpResult",
    "evaluate",
    "load_task",
    "pareto_front",
    "run_experiment",
    "warp",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"warp_nb.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'warp_nb' has no attribute {name!r}")
