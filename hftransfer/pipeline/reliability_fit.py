"""Fit the limits of a finished model, and measure them on the test part (docs/calibration.md, docs/unknowns.md)."""

import logging
from collections.abc import Sequence
from dataclasses import asdict, is_dataclass, replace
from typing import Any

import numpy as np
from torch import nn

from hftransfer.evaluation.calibration import calibration_report, cross_fitted_scores
from hftransfer.evaluation.conformal import measure_sets, prediction_sets
from hftransfer.evaluation.intervals import Groups
from hftransfer.pipeline.run_context import RunContext, calibration_rows
from hftransfer.prediction.reliability import Reliability, answers, distance, unit
from hftransfer.probe.fit import Probe
from hftransfer.runs.predictions import Predictions
from hftransfer.tasks import Task

log = logging.getLogger(__name__)

MOST_ROWS = 5000  # of the reference: beyond, the search costs more than the further rows tell


def fit_reliability(
    context: RunContext,
    model: nn.Module,
    predictions: Predictions,
    probe: Probe | None,
    steps: Sequence[np.ndarray] = (),
) -> Reliability | None:
    """Return the limits of a finished `model`, whose `predictions` are settled; None with nothing to fit on.

    A head alone leaves the features as they were: all rows it was fitted on are the reference, and each is measured
    against the others. A network that trained draws its own training rows together: validation rows are measured.
    """
    task, level = context.data.task, context.config.evaluation.conformal_level
    if task.by_part:
        return None
    evaluated = calibration_rows(context, predictions)
    if not evaluated.any():
        log.info("No held-out examples: no prediction sets or intervals, no unknown inputs")
        return None
    positions = predictions.positions[evaluated]
    scores = _honest_scores(context, predictions, probe, steps, evaluated)
    if not task.has_classes:
        reliability = Reliability.of_scores(task, level, scores, context.targets[positions])
        log.info("Regression: prediction intervals at %.0f %% from %d held-out examples, half-width %s; no unknown inputs",
                 100 * level, len(positions), ", ".join(f"{width:.3g}" for width in reliability.thresholds))  # fmt: skip
        return reliability
    rows = _some(context, context.positions("train") if context.trains else context.fitted)
    neighbours = neighbours_of(task, context.targets[rows])
    if context.trains:
        reference, distances = _trained(context, model, rows, positions, neighbours)
    else:
        reference, distances = _frozen(context, probe, rows, neighbours)
    reliability = Reliability.fit(
        task, level, predictions.logits[evaluated], context.targets[positions], distances, reference, neighbours, scores
    )
    log.info("Prediction sets at %.0f %%; unknown: farther than %.3g from %d training rows",
             100 * level, reliability.distance, len(reference))  # fmt: skip
    if not context.config.evaluation.reference:
        log.info("evaluation.reference=false: no features of training rows are kept, the energy tells unknown inputs")
        return replace(reliability, reference=None)
    return replace(reliability, ids=context.data.frame["id"].iloc[rows].tolist())


def _honest_scores(
    context: RunContext,
    predictions: Predictions,
    probe: Probe | None,
    steps: Sequence[np.ndarray],
    evaluated: np.ndarray,
) -> np.ndarray:
    """Return scores (N, C) of the evaluated examples that their own labels helped to choose as little as can be.

    Of a probe, the feature source of each fold is chosen by the other folds; of a training, the step is, from the
    logits of the validation part at each (`trainer.Trained.steps_logits`). The temperature is always cross-fitted.
    """
    task, positions = context.data.task, predictions.positions[evaluated]
    logits = predictions.logits[evaluated] * predictions.temperature
    if predictions.out_of_fold.any() and probe is not None and probe.cross_validated is not None:
        logits = task.in_units(probe.cross_validated[np.searchsorted(context.fitted, positions)])
    groups = None if context.groups is None else context.groups[positions]
    return cross_fitted_scores(
        task, logits, context.targets[positions], groups, [task.in_units(step) for step in steps]
    )


def neighbours_of(task: Task, targets: np.ndarray) -> int:
    """Which neighbour is measured: a tenth of the rows of the middle class, from 1 to 10.

    The tenth nearest of a class of ten rows is one of another class, and says nothing of this one (docs/unknowns.md).
    """
    counts = task.counts(targets)
    return int(np.clip(np.median(counts[counts > 0]) // 10, 1, 10))


def _frozen(context: RunContext, probe: Probe, rows: np.ndarray, neighbours: int) -> tuple[np.ndarray, np.ndarray]:
    """Features of fitted rows, and the distance of each to all others, those of its own group left out."""
    features, groups = unit(probe.features[rows]), context.groups
    apart = np.arange(len(rows)) if groups is None else np.unique(groups[rows].astype(str), return_inverse=True)[1]
    return features, distance(features, features, neighbours, apart)


def _trained(
    context: RunContext, model: nn.Module, rows: np.ndarray, held_out: np.ndarray, neighbours: int
) -> tuple[np.ndarray, np.ndarray]:
    """Features of training rows, and the distance of the held-out rows to them."""
    wanted = np.concatenate([rows, held_out])
    _, features = answers(model, context.modality, [context.items[row] for row in wanted], context.compute_config)
    reference = unit(features[: len(rows)])
    return reference, distance(features[len(rows) :], reference, neighbours)


def _some(context: RunContext, rows: np.ndarray) -> np.ndarray:
    if len(rows) <= MOST_ROWS:
        return rows
    return np.sort(np.random.default_rng(context.config.seed).choice(rows, MOST_ROWS, replace=False))


def reliability_metrics(
    task: Task, reliability: Reliability | None, part: Predictions, targets: np.ndarray, groups: Groups
) -> dict[str, Any]:
    """Return what `metrics.json` says of the test part: `calibration` before and after the temperature, `conformal` sets.

    `conformal` also has the coverage that is `achievable` with the calibration examples (`achievable_coverage`), of each
    class or target. `targets` and `groups` belong to the rows of `part`. Empty where the part is; regression has no
    `calibration`.
    """
    if not len(part.positions) or task.by_part:
        return {}
    found = {}
    if task.has_classes:
        report = calibration_report(task, part.logits * part.temperature, targets, part.temperature, groups)
        found["calibration"] = {"test": report}
    if reliability is not None and (not task.several or targets.any()):
        sets = prediction_sets(task, task.probabilities(part.logits), reliability.thresholds)
        measured = measure_sets(task, sets, targets, groups) | {"achievable": reliability.achievable(task)}
        found["conformal"] = {"test": {"level": reliability.level} | measured}
    return _plain(found)


def _plain(value: Any) -> Any:
    if is_dataclass(value):
        return asdict(value)
    return {key: _plain(inner) for key, inner in value.items()} if isinstance(value, dict) else value
