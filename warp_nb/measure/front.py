"""The front between θ_sft and the merged policy, evaluated; the best point within a KL is chosen and saved."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from warp_nb.algorithm.merge import Weights, front, weights_of
from warp_nb.measure.checks import check_result
from warp_nb.measure.evaluation import Evaluation, evaluate_weights
from warp_nb.runs.trained_policy import TrainedPolicy, point_of_front
from warp_nb.tasks.task import Task

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from warp_nb.runs.warp import WarpResult


class FrontPoint(dict[str, Any]):
    """A row of the front: eta, reward and kl (Estimates), evaluation; `policy` is what `save` writes."""

    def __init__(self, policy: TrainedPolicy, evaluation: Evaluation) -> None:
        super().__init__(
            eta=policy.eta,
            reward=evaluation.reward_policy,
            kl=evaluation.kl_policy_reference,
            evaluation=evaluation,
        )
        self.policy = policy

    def save(self, folder: str | Path) -> Path:
        """Save the policy with its evaluation as a folder that transformers loads (see `TrainedPolicy.save`)."""
        return self.policy.save(folder)

    def push_to_hub(self, repo_id: str, **settings: Any) -> str:
        """Upload the same files to the hub (see `TrainedPolicy.push_to_hub`)."""
        return self.policy.push_to_hub(repo_id, **settings)


class Front(list[FrontPoint]):
    """The rows of a front, in the order of the etas that were asked for."""

    def best(self, max_kl: float) -> FrontPoint:
        """Return the point of the largest mean reward among those whose mean KL is at most `max_kl`, nats per sequence.

        The points are compared by the prompts that chose among them, so the reward of the best one is optimistic:
        evaluate it with another seed before you report it.

        Raises:
            ValueError: every point is farther.
        """
        within = [row for row in self if row["kl"].value <= max_kl]
        if not within:
            nearest = min(self, key=lambda row: row["kl"].value, default=None)
            found = (
                f"the nearest, eta = {nearest['eta']:g}, has {nearest['kl'].value:.3g}" if nearest else "it is empty"
            )
            raise ValueError(
                f"no point of the front has KL <= {max_kl:g} nats: {found}; pass a larger max_kl or more etas"
            )
        return max(within, key=lambda row: row["reward"].value)


def pareto_front(
    sft: PreTrainedModel, merged: Weights | WarpResult, etas: Sequence[float], task: Task, **settings: Any
) -> Front:
    """Evaluate the front {(1 - eta) θ_sft + eta θ_slerp^I}: one row per eta.

    Args:
        sft: θ_sft.
        merged: θ_slerp of the last iteration: a `WarpResult`, or its `merged` alone. A saved point of a result states
            its configuration and the checks; one of weights alone says that they are unknown.
        etas: points of the front, in [0, 1]; up to 2 extrapolates (figure 10b).
        task, settings: as for `evaluate`.

    Returns:
        A list of rows of eta, reward and kl (Estimates of the policy's held-out reward and of KL(policy || sft)),
        evaluation.

    Example:
        rows = pareto_front(task.policy, result, [0.25, 0.5, 0.75, 1.0], task, sampling=task.sampling(24))
        rows.best(max_kl=4).save("policy")
    """
    config, end = (None, merged) if isinstance(merged, dict) else (merged.config, merged.merged)
    rows = Front()
    for eta, weights in zip(etas, front(weights_of(sft), end, etas), strict=True):
        found = evaluate_weights(weights, sft, task, **settings)
        policy = TrainedPolicy(
            weights=weights,
            task=task,
            point=point_of_front(eta),
            config=config,
            eta=eta,
            evaluation=found,
            checks=None if isinstance(merged, dict) else check_result(merged, [found]),
        )
        rows.append(FrontPoint(policy, found))
    return rows
