"""How good is it, and how sure is that: metrics with intervals, calibration, and fair comparison of runs.

Importing this package is cheap; scikit-learn comes with the first call, torch never.
"""

from collections.abc import Sequence
from dataclasses import asdict, is_dataclass
from typing import TYPE_CHECKING

from pydantic import Field, field_validator

from hftransfer.core.settings import Count, Settings

if TYPE_CHECKING:
    import numpy as np

    from hftransfer.tasks import Task


class EvaluationConfig(Settings):
    """What is measured besides the task's own metrics, and how."""

    metrics: list[str] = Field([], description="further metrics of the evaluate library, by name or local path")
    folds: int | None = Field(
        None, ge=0, description="cross-validate with this many folds; None: 5 for a head below 300 examples; 0: never"
    )
    repeats: Count | None = Field(None, description="divide into folds so often; None: 20 scores of a head, else once")
    seeds: Count = Field(1, description="train this many times and report the spread")
    conformal_level: float = Field(0.9, gt=0, lt=1, description="share of prediction sets that shall hold the truth")
    reference: bool = Field(True, description="keep the features of training rows beside the model, for the distance")
    resamples: int = Field(2000, ge=100, description="bootstrap resamples of intervals without a formula and of pairs")
    explanations: bool = Field(
        True, description="show in the report which places or words led to its examples' answers"
    )

    @field_validator("folds")
    @classmethod
    def _hold_out_less_than_all(cls, folds: int | None) -> int | None:
        if folds == 1:
            raise ValueError("expected at least 2 folds, or 0 for none")
        return folds

    def for_task(self, task: "Task") -> "EvaluationConfig":
        """Return these settings as a task takes them. Raises `UserError` for one that it lacks and that is asked for."""
        for name in ("folds", "metrics"):
            if getattr(self, name):
                task.require(f"evaluation.{name}")
        return self.model_copy(update={"folds": 0}) if "evaluation.folds" in task.lacks else self


def evaluate_predictions(
    task: "Task",
    targets: "np.ndarray",
    scores: "np.ndarray",
    groups: Sequence[str | None] | None,
    config: EvaluationConfig,
) -> dict:
    """One split's piece of `metrics.json`: `{"metrics": {name: {"value", "low", "high", "n"}}, "per_class": [...]}`.

    Raises `UserError` when a metric named in `config.metrics` cannot be loaded or does not fit the task.
    """
    from hftransfer.evaluation.intervals import measure, per_class

    found = measure(task, targets, scores, groups, resamples=config.resamples)
    if config.metrics:
        from hftransfer.evaluation.evaluate_library import measure_further

        found |= measure_further(config.metrics, task, targets, scores, groups)
    classes = per_class(task, targets, scores, groups, resamples=config.resamples)
    return {"metrics": _plain(found), "per_class": [_plain(entry) for entry in classes]}


def _plain(entry: dict) -> dict:
    return {key: asdict(value) if is_dataclass(value) else value for key, value in entry.items()}
