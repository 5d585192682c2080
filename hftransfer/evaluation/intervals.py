"""Every number with its 95 % interval: 90 % right on 100 rows means 82.6 to 94.5 %.

Proportions (accuracy, recall, precision) have Wilson's interval (Wilson 1927). The rest have a bootstrap standard
error, taken to a scale that has no ends and back again: logit for what lies in 0..1, Fisher's z for correlations, log
for what is positive. Percentiles of the resamples themselves cover far too seldom where small data lives, near the
ends: an AUROC of 0.997 with 100 rows and four classes lies in 74 % of percentile intervals and in 94 % of these. Rows
of one group are not independent, so with groups whole groups are drawn, for the proportions too.

Two limits: intervals of macro averages are too narrow when classes have one or two rows, for what they hide shows in
no resample; and the log-loss of a model that is seldom wrong hangs on rows that a small set does not hold (91 %).
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hftransfer.evaluation import bootstrap
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.tasks import Task

logger = logging.getLogger(__name__)

_LEVEL = 0.95
_BASIS = {"precision": "guessed", "recall": "present", "f1": "union"}  # the rows that each is a share of
_PROPORTIONS = {"accuracy", "subset_accuracy", "precision", "recall"}
_CORRELATIONS = {"mcc", "pearson", "spearman"}
_POSITIVE = {"log_loss", "brier", "mae", "rmse"}


@dataclass(frozen=True)
class Measured:
    """A value with its 95 % interval, from `n` rows."""

    value: float
    low: float
    high: float
    n: int


def measure(
    task: Task,
    targets: np.ndarray,
    scores: np.ndarray,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Measured]:
    """The task's metrics with intervals; a metric that these rows leave undefined is left out.

    Args:
        targets, scores: as in `compute_metrics`.
        groups: (N,), rows of one group are resampled together; None stands for a row of its own.
    """
    targets, scores = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    draws = Draws(len(targets), groups, _classes(task, targets), seed, resamples)
    errors = draws.standard_errors(bootstrap.statistics(task, targets, scores))
    rows = len(targets)
    return {
        name: Measured(value, *draws.interval(name, value, errors[name], rows), rows)
        for name, value in compute_metrics(task, targets, scores).items()
        if np.isfinite(value)
    }


def per_class(
    task: Task,
    targets: np.ndarray,
    scores: np.ndarray,
    groups: Sequence[str | None] | None = None,
    seed: int = 0,
    resamples: int = 2000,
) -> list[dict]:
    """One entry per class: its `name`, `n` rows, and `precision`, `recall`, `f1` as `Measured` (None where undefined).

    For regression one entry per target with its own `mae`, `rmse`, `r2`, `pearson`, `spearman`.
    """
    targets, scores = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    if task.type == "regression":
        return _per_target(task, targets, scores, groups, seed, resamples)
    draws = Draws(len(targets), groups, _classes(task, targets), seed, resamples)
    compute = bootstrap.by_class(task, targets, scores)
    values = {name: found[0] for name, found in compute(np.ones((1, len(targets)), np.float32)).items()}
    errors = draws.standard_errors(compute)
    return [
        {"name": label, "n": int(values["present"][c])}
        | {name: _class_measure(draws, name, values, errors, c) for name in _BASIS}
        for c, label in enumerate(task.names)
    ]


def _class_measure(draws: "Draws", name: str, values: dict, errors: dict, c: int) -> Measured | None:
    value, rows = float(values[name][c]), int(values[_BASIS[name]][c])
    return None if np.isnan(value) else Measured(value, *draws.interval(name, value, errors[name][c], rows), rows)


def _per_target(task: Task, targets: np.ndarray, scores: np.ndarray, *how) -> list[dict]:
    columns = [(targets[:, [k]], scores[:, [k]]) for k in range(task.head_size)]
    return [
        {"name": name, "n": len(targets)} | measure(Task("regression", (name,)), *column, *how)
        for name, column in zip(task.names, columns, strict=True)
    ]


def measure_auroc(positive: np.ndarray, score: np.ndarray, seed: int = 0) -> Measured:
    """AUROC of any score, higher for the `positive` rows; both sides must have rows."""
    area, terms = bootstrap.auroc_influence(np.asarray(positive, dtype=bool), np.asarray(score))
    draws = Draws(len(terms), classes=np.asarray(positive, dtype=np.int64), seed=seed)
    error = draws.standard_errors(lambda weights: {"auroc": weights @ terms / weights.sum(1)})["auroc"]
    return Measured(float(area), *draws.interval("auroc", area, error, len(terms)), len(terms))


def _classes(task: Task, targets: np.ndarray) -> np.ndarray | None:
    return targets if task.type == "single_label" else None


def wilson(successes: float, n: int, level: float = _LEVEL) -> tuple[float, float]:
    """Wilson's interval of a proportion: where a score test would not reject it."""
    found = stats.binomtest(round(successes), n).proportion_ci(level, method="wilson")
    return float(found.low), float(found.high)


class Draws:
    """The resamples of one part: which rows move together, which classes keep their size."""

    def __init__(
        self,
        rows: int,
        groups: Sequence[str | None] | None = None,
        classes: np.ndarray | None = None,
        seed: int = 0,
        resamples: int = 2000,
    ):
        """`classes` (N,) are strata; groups win over them, for a group may hold rows of several classes."""
        self.units = group_units(groups, rows)
        self.count = int(self.units.max()) + 1
        self.grouped = self.count < rows
        one_stratum = classes is None or self.grouped
        self.strata = np.zeros(self.count, dtype=np.int64) if one_stratum else classes
        self.seed, self.resamples = seed, resamples

    def resample(self, compute: bootstrap.Statistics) -> dict[str, np.ndarray]:
        """The statistics of weights in every resample, one along the first axis."""
        chunks = [
            compute(weights) for weights in bootstrap.draw_weights(self.units, self.strata, self.resamples, self.seed)
        ]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def standard_errors(self, compute: bootstrap.Statistics) -> dict[str, np.ndarray]:
        """The spread of the statistics over those resamples that define them."""
        values = self.resample(compute)
        return {name: np.ma.filled(np.ma.masked_invalid(value).std(0), 0.0) for name, value in values.items()}

    def interval(self, name: str, value: float, error: float, rows: int) -> tuple[float, float]:
        """The ends around `value`, which stands on `rows` rows and has the standard error `error`."""
        if name in _PROPORTIONS and not self.grouped:
            return wilson(value * rows, rows)
        step = stats.t.ppf((1 + _LEVEL) / 2, max(1, self.count - 1)) * float(error)
        low, high = _unbounded(name, value, step, min(rows, self.count))
        return float(low), float(high)


def group_units(groups: Sequence[str | None] | None, rows: int) -> np.ndarray:
    """A number (N,) for every row's group, its own for a row without one. A single group says nothing: rows count."""
    alone = np.arange(rows)
    if groups is None:
        return alone
    names = [f"row {i}" if group is None or group != group else f"group {group}" for i, group in enumerate(groups)]
    found = np.unique(names, return_inverse=True)[1]
    if found.max() == 0 and rows > 1:
        logger.warning("All %d rows are of one group: the intervals take rows as independent and are too narrow.", rows)
        return alone
    return found if found.max() + 1 < rows else alone


def _unbounded(name: str, value: float, step: float, rows: int) -> tuple[float, float]:
    """`value` plus and minus `step`, taken on the scale on which the metric has no ends."""
    if name == "r2":  # 1 - R2 is a ratio of squares
        low, high = _unbounded("rmse", 1 - value, step, rows)
        return 1 - high, 1 - low
    if name in _CORRELATIONS:
        low, high = _unbounded("share", (value + 1) / 2, step / 2, rows)
        return 2 * low - 1, 2 * high - 1
    if name in _POSITIVE:
        return (value * np.exp(-step / value), value * np.exp(step / value)) if value > 0 else (value, value)
    if step == 0 or not 0 < value < 1:
        # No resample differs, for lack of errors rather than of doubt: as much is known as of `rows` of `rows`.
        return wilson(min(max(value, 0.0), 1.0) * rows, rows)
    middle, reach = np.log(value / (1 - value)), step / (value * (1 - value))
    return 1 / (1 + np.exp(reach - middle)), 1 / (1 + np.exp(-reach - middle))
