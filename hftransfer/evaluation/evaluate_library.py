"""Hugging Face's `evaluate` on both sides: our metrics as its classes, and its metrics by name in our results.

`from hftransfer.evaluation.evaluate_library import SingleLabelMetrics` gives an `evaluate.Metric` that works with
`add_batch`, `combine` and `evaluator`, and that needs no network. This is the one file that imports `evaluate`, which
imports torch: nothing else here waits for it.
"""

import logging
from collections.abc import Sequence
from typing import Any

import evaluate
import numpy as np
from scipy import stats

from hftransfer.core.errors import UserError
from hftransfer.evaluation.intervals import Draws, Measured, group_units
from hftransfer.evaluation.kinds import METRICS
from hftransfer.tasks import Task

logger = logging.getLogger(__name__)

_RESAMPLES = 200  # a metric of the library is called once per resample, some milliseconds each


def load_metric(name: str) -> evaluate.EvaluationModule:
    """Return a metric of the evaluate library by name (fetched from the Hub) or from a local script.

    Raises `UserError` when it cannot be had, above all offline.
    """
    try:
        return evaluate.load(name, keep_in_memory=True)
    except (OSError, ImportError, ValueError) as error:
        raise UserError(
            f"The metric {name!r} of the evaluate library could not be loaded: {_first_line(error)} "
            "Without network, give the path of a metric script on this machine in evaluation.metrics, or leave it out: "
            "the metrics of the task need no download and are always computed."
        ) from error


def load_further(names: Sequence[str]) -> dict[str, evaluate.EvaluationModule]:
    """Return the metrics that are not ours, by name; ours are measured anyway. Raises `UserError` as `load_metric`."""
    return {name: load_metric(name) for name in names if name not in METRICS}


def measure_further(
    names: Sequence[str], task: Task, targets: np.ndarray, scores: np.ndarray, groups: Sequence[str | None] | None
) -> dict[str, Measured]:
    """Metrics of the evaluate library, with intervals, on what was decided (`Task.as_lists`)."""
    truth, decided, found = task.as_lists(targets), task.as_lists(task.decide(scores)), {}
    for name, metric in load_further(names).items():
        found |= _measure_one(name, metric, truth, decided, groups)
    return found


def _measure_one(name: str, metric: Any, truth: list, decided: list, groups: Sequence[str | None] | None):
    value = _numbers(name, metric, decided, truth)
    drawn = [
        _numbers(name, metric, [decided[row] for row in rows], [truth[row] for row in rows])
        for rows in _draw_rows(groups, len(truth))
    ]
    draws = Draws(len(truth), groups)
    return {key: _with_ends(draws, value[key], [found.get(key, np.nan) for found in drawn]) for key in value}


def _with_ends(draws: Draws, value: float, drawn: list[float]) -> Measured:
    """Return a metric with two standard errors of its resamples: its scale is not known, and percentiles are too narrow."""
    rows = len(draws.units)
    if draws.count < 2 or not np.isfinite(value):
        return Measured(value, np.nan, np.nan, rows)
    reach = stats.t.ppf(0.975, draws.count - 1) * float(np.nanstd(drawn)) * np.sqrt(draws.count / (draws.count - 1))
    return Measured(value, value - reach, value + reach, rows) if reach > 0 else Measured(value, np.nan, np.nan, rows)


def _numbers(name: str, metric: Any, predictions: list, references: list) -> dict[str, float]:
    try:
        answer = metric.compute(predictions=predictions, references=references)
    except Exception as error:  # the script is somebody's code: it can raise anything
        raise UserError(f"The metric {name!r} does not fit this task: {_first_line(error)}") from error
    return {key: float(value) for key, value in answer.items() if np.isscalar(value) and not isinstance(value, str)}


def _draw_rows(groups: Sequence[str | None] | None, rows: int):
    units, rng = group_units(groups, rows), np.random.default_rng(0)
    members = np.split(np.argsort(units, kind="stable"), np.cumsum(np.bincount(units))[:-1])
    for _ in range(_RESAMPLES):
        yield np.concatenate([members[unit] for unit in rng.integers(len(members), size=len(members))])


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
