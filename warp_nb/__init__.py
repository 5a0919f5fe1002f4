"""WARP (Weight Averaged Rewarded Policies, arXiv 2406.16768) for notebooks.

The names below are loaded when first used, so that `import warp_nb` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from warp_nb.algorithm import WarpResult, warp
    from warp_nb.config import ExperimentConfig, WarpConfig
    from warp_nb.evaluation import Estimate, Evaluation, evaluate, pareto_front
    from warp_nb.experiment import ExperimentResult, run_experiment
    from warp_nb.tasks import Task, load_task

__version__ = "0.1.0"
_HOMES = {
    "WarpConfig": "config",
    "ExperimentConfig": "config",
    "Task": "tasks",
    "load_task": "tasks",
    "warp": "algorithm",
    "WarpResult": "algorithm",
    "evaluate": "evaluation",
    "pareto_front": "evaluation",
    "Estimate": "evaluation",
    "Evaluation": "evaluation",
    "run_experiment": "experiment",
    "ExperimentResult": "experiment",
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
