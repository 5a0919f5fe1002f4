"""The fields that pages take from a finished result file; a file that lacks one, or holds it otherwise, has failed."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

Number = float | None
"""None where the number is unknown."""


class Taken(BaseModel):
    """A part of a result file; what else stands there is not read."""

    model_config = ConfigDict(extra="ignore", strict=True)


class Interval(Taken):
    value: Number
    low: Number
    high: Number


class Settings(Taken):
    T: int
    lr: float
    warmup_steps: int
    n_seeds: int


class Repeated(Settings):
    seed: int
    n_eval_prompts: int


class RunRow(Taken):
    command: str
    seconds: float
    cores: int | None = None
    memory_gb: Number = None


class Machine(Taken):
    cpu: str
    gpu: str | None
    threads: int
    python: str
    versions: dict[str, str]


class Summary(Taken):
    reward_reference: Interval
    reward_policy: Interval
    reward_difference: Interval
    kl_reference_policy: Interval
    kl_policy_reference: Interval


class CheckRow(Taken):
    name: str
    applies: bool
    passed: bool


class StepRow(Taken):
    seed: int
    iteration: int
    run: int
    step: int
    objective: Number
    reward: Number
    kl: Number


class LoadedShare(Taken):
    loaded: float


class TaskRow(Taken):
    task: str
    parameters: int
    reward: str


class ExperimentRecord(Taken):
    """A row of the common table, its curves, its footer, and what `ExperimentResult.from_json` reads."""

    task: TaskRow
    config: Repeated
    summary: Summary
    checks: list[CheckRow]
    gate: dict[str, Any] | None
    history: list[StepRow]
    geometry: list[dict[str, Any]]
    runs: list[LoadedShare]
    merges: list[dict[str, Any]]
    samples: list[dict[str, Any]]
    evaluations: Annotated[list[dict[str, Any]], Field(min_length=1)]
    conclusion: list[str]
    machine: Machine
    seconds: float
    peak_rss_mb: float
    run: RunRow


class ArmSummary(Taken):
    steps: int


class Compared(Taken):
    """A front, or the difference of two, at every KL of the grid."""

    gain: list[Interval]
    judge: list[Interval]
    gap: list[Interval]
    variety: list[Interval]


class BesideFront(Taken):
    value: Interval
    front: Interval
    difference: Interval


class SinglePolicy(Taken):
    """A policy beside WARP's front at its own KL."""

    name: str
    n: int | None
    kl: Interval
    gain: BesideFront
    judge: BesideFront


class Declared(Taken):
    name: Literal["M = 1", "REINFORCE", "own runs"]
    p: Number
    p_holm: Number


class EqualKl(Taken):
    """The record that `summary` of equal_kl.py returns."""

    grid: list[float]
    declared_kl: float
    trainings: int
    earlier: bool
    fronts: dict[str, Compared]
    against: dict[str, Compared]
    declared: list[Declared]
    points: list[SinglePolicy]

    @model_validator(mode="after")
    def _whole(self) -> Self:
        """Every front, WARP's among them, is there at every KL."""
        rows = [
            row for found in (self.fronts, self.against) for front in found.values() for row in vars(front).values()
        ]
        if "WARP" not in self.fronts or self.declared_kl not in self.grid or {len(self.grid)} != set(map(len, rows)):
            raise ValueError("every front, WARP's among them, must have a value at every KL of the grid")
        return self


class ComparisonRecord(Taken):
    """The section of experiment 5."""

    config: Settings
    summary: dict[str, ArmSummary]
    equal_kl: EqualKl
    conclusion: list[str]


class LastPolicy(Taken):
    end: Summary


class WarpArm(Taken):
    history: list[StepRow]
    measured: Annotated[list[LastPolicy], Field(min_length=1)]


class Arms(Taken):
    WARP: WarpArm


class ArmFront(Taken):
    reward_difference: list[Interval]
    kl_policy_reference: list[Interval]


class CompleteComparison(Taken):
    """The parts of a comparison beside its section: curves, the points of its fronts, figures of the last policy."""

    arms: Arms
    summary: dict[str, ArmFront]
    checks: list[CheckRow]


class Mean(Taken):
    value: float


class EarlierFigures(Taken):
    reward_difference: Mean
    kl_policy_reference: Mean
    variety_reference: Annotated[float, Field(gt=0)]
    variety_policy: float


class EarlierMeasured(Taken):
    front: Annotated[list[EarlierFigures], Field(min_length=1)]
    end: EarlierFigures | None


class EarlierArm(Taken):
    measured: Annotated[list[EarlierMeasured], Field(min_length=1)]


class EarlierComparison(Taken):
    """Experiment 5 of an earlier version, which compared the fronts at a KL that its outcome chose."""

    config: Settings
    summary: dict[str, ArmSummary]
    arms: dict[str, EarlierArm]

    @model_validator(mode="after")
    def _paired(self) -> Self:
        """Every arm, WARP among them, has as many trainings."""
        if "WARP" not in self.arms or {len(arm.measured) for arm in self.arms.values()} != {self.config.n_seeds}:
            raise ValueError("every arm, WARP among them, must have n_seeds trainings")
        return self


class VerdictRow(Taken):
    name: str
    english: str
    verdict: str
    verdict_english: str
    outcomes: list[bool]


class BestFit(Taken):
    task: str
    reward: str
    runs: str
    warm_up: str
    lr: str
    scoring: str
    plotted: str
    matched: int
    judged: int
    traits: dict[str, bool | None]


class DiagnosisRecord(Taken):
    """The section of the diagnosis."""

    verdicts: list[VerdictRow]
    tried: int
    as_good: int
    missing: int
    best: BestFit
    conclusion: list[str]


class Trained(Taken):
    n_seeds: Annotated[int, Field(ge=1)]


class Computer(Taken):
    gpu: str | None
    cpu: str


class Timed(Taken):
    seconds: float


class TimedRecord(Taken):
    """The fields of a result file from which a duration is estimated."""

    config: Trained
    machine: Computer
    seconds: float
    history: Annotated[list[Timed], Field(min_length=1)]


class ReportedRecord(Taken):
    """The fields of a result file that say what an earlier report took."""

    config: Trained
    machine: Computer
    run: RunRow


RECORDS: dict[str, type[Taken]] = {"": ExperimentRecord, "comparison": ComparisonRecord, "diagnosis": DiagnosisRecord}
"""What a finished result holds, by the section of its experiment; empty for a row of the common table."""


def fault_of(kind: type[Taken], found: dict[str, Any]) -> str:
    """Describe the first three places where a record is not of its kind; empty if it is."""
    try:
        kind.model_validate(found)
    except ValidationError as error:
        faults = [f"{'.'.join(map(str, fault['loc']))}: {fault['msg']}" for fault in error.errors()]
        return "; ".join(faults[:3])
    return ""
