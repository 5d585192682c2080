"""Does 80 % mean 80 %? One temperature that mends overconfidence, and the numbers before and after.

A temperature divides the logits: the order of the classes, and with it every decision, stays as it was
(Guo et al. 2017, "On calibration of modern neural networks", sec. 4.2). It has to be fitted on rows that no weight was
trained on: out-of-fold or validation logits. Regression has no probabilities to calibrate.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats
from scipy.optimize import bisect, minimize_scalar

from hftransfer.evaluation.intervals import Draws, Groups, Measured, group_units, measure, wilson
from hftransfer.evaluation.metrics import MeanLoss, row_losses
from hftransfer.tasks import Task

logger = logging.getLogger(__name__)

MIN_ROWS_FOR_TEMPERATURE = 30
_ROWS_PER_BIN = 20
_MOST_BINS = 15
_COLDEST, _HOTTEST = 0.05, 20.0
LEAST_GROUPS = 10  # behind the interval of the calibration error: fewer do not reach 93 % coverage


def fit_temperature(task: Task, logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the temperature with the lowest negative log-likelihood, within 0.05..20; 1 for regression.

    A share of 1 / (N + 2) of each target goes to all classes alike: on a few rows that are all right, the bare likelihood
    is best at endless confidence (Platt 1999, "Probabilistic outputs for support vector machines", sec. 2.2).

    Args:
        logits: (N, C) of rows that the weights were not trained on.
        targets: as `Task.encode_all` gives them.
    """
    if not task.has_classes:
        return 1.0
    temperature = _best_temperature(task, logits, targets)
    if not _COLDEST * 1.01 < temperature < _HOTTEST / 1.01:
        logger.warning(
            "The temperature ends at its limit, %.3g: %d rows do not determine it.", temperature, len(logits)
        )
    return temperature


def calibrated_log_loss(task: Task, logits: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean log-loss that is left at the best temperature; with too few rows for one, the log-loss as it is.

    What chooses the step of a training: networks grow too sure long before their answers stop getting better, and a
    temperature mends the former afterwards (Berta et al. 2025, arXiv 2501.19195, their refinement error by temperature).
    """
    enough = len(logits) >= MIN_ROWS_FOR_TEMPERATURE
    temperature = _best_temperature(task, logits, targets) if enough else 1.0
    return _mean_loss(task, targets, apply_temperature(task, logits, temperature))


def _best_temperature(task: Task, logits: np.ndarray, targets: np.ndarray) -> float:
    doubt = 1 / (len(logits) + 2)

    def loss(log_temperature: float) -> float:
        scores = apply_temperature(task, logits, np.exp(log_temperature))
        return (1 - doubt) * _mean_loss(task, targets, scores) + doubt * _indifferent_loss(task, scores, targets)

    found = minimize_scalar(loss, bounds=(np.log(_COLDEST), np.log(_HOTTEST)), method="bounded")
    return float(np.exp(found.x))


def cross_fitted_scores(
    task: Task,
    logits: np.ndarray,
    targets: np.ndarray,
    groups: Groups,
    steps: Sequence[np.ndarray] = (),
    folds: int = 5,
    seed: int = 0,
) -> np.ndarray:
    """Return scores (N, C), each at a step and a temperature that its own example did not take part in choosing.

    What thresholds are fitted on (Vovk 2015, "Cross-conformal predictors"): scores at a temperature of their own
    examples are too good. Examples of one group are left out together. A single group has the step and the
    temperature of the model. The temperature is 1 below 30 examples, as for the model (`MIN_ROWS_FOR_TEMPERATURE`).

    Args:
        logits: (N, C) of the model that is kept.
        steps: logits (N, C) of the same examples at all steps that it was chosen from; none where it was not chosen.
    """
    units, steps = group_units(groups, len(logits)), steps or [logits]
    count = min(folds, len(np.unique(units)))
    enough = task.has_classes and len(logits) >= MIN_ROWS_FOR_TEMPERATURE
    if count < 2:
        return apply_temperature(task, logits, _best_temperature(task, logits, targets) if enough else 1.0)
    fold = (np.random.default_rng(seed).permutation(units.max() + 1) % count)[units]
    scores = np.empty(logits.shape)
    for held_out in (fold == number for number in range(count)):
        losses = [_selection_loss(task, step[~held_out], targets[~held_out]) for step in steps]
        best = steps[int(np.argmin(losses))] if len(steps) > 1 else logits
        temperature = _best_temperature(task, best[~held_out], targets[~held_out]) if enough else 1.0
        scores[held_out] = apply_temperature(task, best[held_out], temperature)
    return scores


def _selection_loss(task: Task, logits: np.ndarray, targets: np.ndarray) -> float:
    """Return what chooses the step of a training (`Task.selection_metric`), for logits in the units of the targets."""
    if not task.has_classes:
        return float((((logits - targets) / np.array(task.std or 1.0)) ** 2).mean())
    return calibrated_log_loss(task, logits, targets)


def _mean_loss(task: Task, targets: np.ndarray, scores: np.ndarray) -> float:
    """Return the mean log-loss; of a task that balances its classes, with the weights that the training has."""
    weights = np.broadcast_to(task.importance(targets), np.shape(targets))
    if task.exclusive:
        return float(np.average(row_losses(task, targets, scores), weights=weights))
    tiny = np.finfo(np.float64).eps
    scores = np.clip(scores, tiny, 1 - tiny)
    return float(-(weights * (targets * np.log(scores) + (1 - targets) * np.log1p(-scores))).sum() / weights.sum())


def _indifferent_loss(task: Task, scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the loss if every class that occurs, or every label's yes and no, were equally often true.

    A class that a head has never seen has no probability to speak of: it would heat all others.
    """
    sides = (scores[:, np.unique(targets)],) if task.exclusive else (scores, 1 - scores)
    return float(-np.mean([np.log(np.clip(side, np.finfo(float).tiny, None)) for side in sides]))


def apply_temperature(task: Task, logits: np.ndarray, temperature: float) -> np.ndarray:
    """Scores (N, C) from logits at this temperature."""
    return task.probabilities(np.asarray(logits, dtype=np.float64) / temperature)


def calibration_report(
    task: Task, logits: np.ndarray, targets: np.ndarray, temperature: float, groups: Groups, seed: int = 0
) -> dict:
    """`{"temperature", "before": {...}, "after": {...}}` with `log_loss`, `brier` and `ece`, each a `Measured`.

    Args:
        logits, targets: rows that the temperature was not fitted on; on its own rows the numbers after it flatter.
    """
    scores = {"before": apply_temperature(task, logits, 1.0), "after": apply_temperature(task, logits, temperature)}
    return {"temperature": temperature} | {
        when: {
            "log_loss": measure(task, targets, found, groups, seed)["log_loss"],
            "brier": brier(task, targets, found, groups, seed),
            "ece": expected_calibration_error(task, targets, found, groups, seed),
        }
        for when, found in scores.items()
    }


def brier(task: Task, targets: np.ndarray, scores: np.ndarray, groups: Groups, seed: int = 0) -> Measured:
    """Return the squared distance of probabilities from the truth, 0 to 2 (Brier 1950); multi-label: mean of the labels."""
    if task.exclusive:
        loss = MeanLoss(((scores - np.eye(task.head_size)[targets]) ** 2).sum(1), worst=2.0)
    else:
        loss = MeanLoss(((scores - targets) ** 2).mean(1), worst=1.0)
    ends = Draws(len(targets), groups).loss_interval(loss)
    return Measured(float(loss.terms.mean()), *ends, len(targets))


@dataclass(frozen=True)
class _Bins:
    """Statements of a confidence and whether they came true, in bins of equally many."""

    rows: np.ndarray  # (M,) the row that each statement is about
    confidence: np.ndarray  # (M,)
    outcome: np.ndarray  # (M,) 0 or 1
    index: np.ndarray  # (M,) the bin
    count: int


def _bins(task: Task, targets: np.ndarray, scores: np.ndarray) -> _Bins:
    """Return the top label's probability of each row, or each label's for multi-label; 20 or more in a bin, 15 bins at most.

    Bins of equal size, not width (Nguyen & O'Connor 2015): a confident model leaves most bins of equal width empty.
    """
    if task.exclusive:
        rows, confidence = np.arange(len(scores)), scores.max(1)
        outcome = (task.decide(scores) == targets).astype(float)
    else:
        rows, confidence = np.repeat(np.arange(len(scores)), task.head_size), scores.ravel()
        outcome = np.asarray(targets, dtype=float).ravel()
    count = int(np.clip(len(rows) // _ROWS_PER_BIN, 1, _MOST_BINS))
    place = np.empty(len(rows), dtype=np.int64)
    place[np.argsort(confidence, kind="stable")] = np.arange(len(rows))
    return _Bins(rows, confidence, outcome, place * count // len(rows), count)


def reliability(task: Task, targets: np.ndarray, scores: np.ndarray, groups: Groups) -> list[dict]:
    """Points of a reliability diagram: a bin's mean `confidence`, its `frequency` with `low` and `high`, its `n`."""
    bins, points = _bins(task, targets, scores), []
    units = group_units(groups, len(targets))[
        bins.rows
    ]  # labels of one example, and examples of one group, go together
    for b in range(bins.count):
        outcome = bins.outcome[bins.index == b]
        independent = len(np.unique(units[bins.index == b]))
        low, high = wilson(outcome.mean() * independent, independent)
        confidence = float(bins.confidence[bins.index == b].mean())
        points.append(
            {"confidence": confidence, "frequency": outcome.mean(), "low": low, "high": high, "n": len(outcome)}
        )
    return points


def expected_calibration_error(
    task: Task, targets: np.ndarray, scores: np.ndarray, groups: Groups, seed: int = 0
) -> Measured:
    """Return the mean distance between confidence and frequency over the bins, with an interval; NaN below ten groups.

    An absolute value is never below 0, so small sets show a calibration error where there is none: a perfect model
    reads 5 % on 100 rows. The interval therefore inverts a test: it has every multiple of the observed gaps that shows as
    much as was observed neither too rarely nor too often (Carpenter 1999, "Test inversion bootstrap confidence intervals").
    It reaches down to 0 when a perfectly calibrated model would show as much. docs/coverage.md has its coverage.
    """
    bins, units = _bins(task, targets, scores), group_units(groups, len(targets))
    gaps = np.bincount(bins.index, bins.confidence - bins.outcome, minlength=bins.count)
    observed = np.abs(gaps).sum()
    value = float(observed / len(bins.rows))
    count = int(units.max()) + 1
    if count < (2 if count == len(targets) else LEAST_GROUPS):
        return Measured(value, np.nan, np.nan, len(scores))
    noise = _gap_noise(bins, units[bins.rows], gaps, seed)
    if not noise.any():  # every confidence is 1 or 0
        return Measured(value, np.nan, np.nan, len(scores))

    def multiple(share: float) -> float:
        """Return the multiple of the gaps that shows no more than was observed in this share of test sets."""

        def excess(factor: float) -> float:
            return float((np.abs(factor * gaps + noise).sum(1) <= observed).mean() - share)

        if excess(0.0) <= 0:
            return 0.0
        return bisect(excess, 0.0, 2 + 2 * float(np.abs(noise).sum(1).max() / max(observed, 1e-300)), rtol=1e-3)

    low, high = (value * multiple(share) for share in (0.975, 0.025))
    return Measured(value, min(low, value), min(max(high, value), 1.0), len(scores))


def _gap_noise(bins: _Bins, units: np.ndarray, gaps: np.ndarray, seed: int) -> np.ndarray:
    """Draws (2000, bins) of how sums of confidence minus outcome vary between test sets, with the covariance of units.

    A bin without errors has no observed variance. Where the confidences themselves imply a larger variance, p (1 - p) each,
    the mean of both counts. Student's t takes the place of the normal distribution for few units.
    """
    count = int(units.max()) + 1
    sums, sizes = np.zeros((2, count, bins.count))
    np.add.at(sums, (units, bins.index), bins.confidence - bins.outcome)
    np.add.at(sizes, (units, bins.index), 1)
    away = sums - sizes * gaps / np.bincount(bins.index, minlength=bins.count)
    covariance = away.T @ away * count / (count - 1)
    implied = np.bincount(bins.index, bins.confidence * (1 - bins.confidence), minlength=bins.count)
    covariance += np.diag(np.maximum(implied - np.diag(covariance), 0) / 2)
    return (
        stats.multivariate_t(shape=covariance, df=count - 1, allow_singular=True, seed=seed).rvs(2000).reshape(2000, -1)
    )
