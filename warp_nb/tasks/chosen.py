"""The task that a configuration names: a prepared one, one that a user's function makes, or a policy of one's own."""

from __future__ import annotations

from warp_nb.config import ExperimentConfig
from warp_nb.tasks.imported import imported
from warp_nb.tasks.prepared import load_task
from warp_nb.tasks.task import Task


def chosen_task(config: ExperimentConfig, *, judge: bool = False) -> Task:
    """Load the task of an experiment.

    Args:
        config: `policy`, `reward` and `prompts` make a task (see `Task.from_pretrained`); otherwise `task` names a
            prepared one (see `load_task`) or a `module:function` that is called without arguments and returns a `Task`.
        judge: whether a prepared task has a judge; a task of your own has the one that it was made with.

    Raises:
        ValueError: what is named is not sound, or the function does not return a `Task`.
    """
    if config.policy:
        device = config.device or None
        return Task.from_pretrained(config.policy, reward=config.reward, prompts=config.prompts, device=device)
    if not config.own:
        return load_task(config.task, config.device, judge)
    task = imported(config.task, "task")()
    if not isinstance(task, Task):
        raise ValueError(f"task = {config.task!r} returned a {type(task).__name__}; it must return a warp_nb.Task")
    return task
