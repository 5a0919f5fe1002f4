"""Evaluations saved beside the runs, so that a repeated or resumed call does not make them again.

A file counts only if all that it depends on is unchanged: weights, prompts, settings, reward, judge, versions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, TypeVar

from warp_nb.algorithm.merge import Weights
from warp_nb.files import DamagedFile, fingerprint, read_record, write_json
from warp_nb.measure.best_of_n import BestOfN, best_of_n
from warp_nb.measure.estimates import Estimate
from warp_nb.measure.evaluation import Evaluation, evaluate_weights
from warp_nb.measure.front import pareto_front
from warp_nb.tasks.identity import plain, reward_identity, seen_identity, sha256, task_identity
from warp_nb.tasks.task import Task

Found = TypeVar("Found", Evaluation, BestOfN)


@dataclass(frozen=True)
class EvaluationStore:
    """Makes the evaluations of one training and saves each of them.

    Args:
        folder: where they are saved.
        task: policy, held-out prompts, reward and judge.
        settings: keywords of `evaluate`.
        depends: what all of them depend on (see `evaluation_identity`).
    """

    folder: Path
    task: Task
    settings: Mapping[str, Any]
    depends: Mapping[str, Any]

    def front(self, name: str, merged: Weights, etas: Sequence[float]) -> list[Evaluation]:
        """Evaluate (1 - eta) θ_sft + eta `merged` at every eta."""
        digest, found = fingerprint(merged), []
        for eta in etas:

            def make(eta: float = eta) -> list[Evaluation]:
                rows = pareto_front(self.task.policy, merged, [eta], self.task, **self.settings)
                return [row["evaluation"] for row in rows]

            found += self.load_or_make(f"{name}-{eta:g}", Evaluation, {"weights": digest, "eta": eta}, make)
        return found

    def policy(self, name: str, weights: Weights) -> Evaluation:
        """Evaluate one policy."""
        return self.load_or_make(
            name,
            Evaluation,
            {"weights": fingerprint(weights)},
            lambda: [evaluate_weights(weights, self.task.policy, self.task, **self.settings)],
        )[0]

    def best_of_n(self, name: str) -> list[BestOfN]:
        """Measure best-of-N from θ_sft."""
        return self.load_or_make(name, BestOfN, {}, lambda: best_of_n(self.task, **self.settings))

    def load_or_make(
        self, name: str, kind: type[Found], depends: Mapping[str, Any], make: Callable[[], list[Found]]
    ) -> list[Found]:
        """Return what is saved as `name`; make and save it if there is nothing, or it depended on something else.

        A damaged file is made again.
        """
        path, key = self.folder / f"{name}.json", plain({**self.depends, **depends})
        with suppress(FileNotFoundError, DamagedFile):
            saved = read_record(path)
            names = {one.name for one in fields(kind)}
            if saved.get("depends") == key and all(one.keys() == names for one in saved["found"]):
                return [kind(**{name: revived(value) for name, value in one.items()}) for one in saved["found"]]
        found = make()
        self.folder.mkdir(parents=True, exist_ok=True)
        write_json(path, {"depends": key, "found": [asdict(one) for one in found]})
        return found


def evaluation_identity(task: Task, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what an evaluation depends on beside the policy: task, held-out prompts, judge, settings of `evaluate`."""
    return plain(
        {
            "task": task_identity(task),
            "eval_prompts_sha256": sha256(json.dumps(task.eval_prompts)),
            "judge": reward_identity(task.judge) if task.judge else None,
            **{f"eval_{name}": value for name, value in seen_identity(task, task.eval_prompts).items()},
            "settings": {**settings, "sampling": asdict(settings["sampling"])},
        }
    )


def revived(value: Any) -> Any:
    """Return a field of an evaluation as it was before it was saved: an estimate again, and NaN for null."""
    if isinstance(value, dict) and value.keys() == {"value", "low", "high"}:
        return Estimate(**{name: math.nan if one is None else one for name, one in value.items()})
    return math.nan if value is None else value
