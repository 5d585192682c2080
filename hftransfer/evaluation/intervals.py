"""Every number with its 95 % interval: 90 % right on 100 rows means 82.6 to 94.5 %.

Proportions (accuracy, recall, precision) have Wilson's interval (Wilson 1927). The rest have a bootstrap standard
error, taken to a scale that has no ends and back again: logit for what lies in 0..1, Fisher's z for correlations, log
for what is positive. Percentiles of the resamples themselves cover far too seldom where small data lives, near the
ends: an AUROC of 0.997 with 100 rows and four classes lies in 74 % of percentile intervals and in 94 % of these. Rows
of one group are not independent, so with groups whole groups are drawn, for the proportions too.

Functions of the confusion matrix have intervals of their own (`confusion`), the area under the ROC curve has Newcombe's.
Where the rows or groups are too few for any of these, the ends are NaN: not known. docs/coverage.md holds what was
measured: how often each interval covers the truth.
"""

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hftransfer.evaluation import bootstrap
from hftransfer.evaluation.confusion import confusion_intervals
from hftransfer.evaluation.metrics import compute_metrics, row_losses
from hftransfer.tasks import Regression, Task

logger = logging.getLogger(__name__)

_LEVEL = 0.95
_ROUNDING = 1e-5  # of float32 weights: a smaller step is none
_BASIS = {"precision": "guessed", "recall": "present", "f1": "union"}  # the rows that each is a share of
_PROPORTIONS = {"accuracy", "subset_accuracy", "precision", "recall"}
CORRELATIONS = {"mcc", "pearson", "spearman"}
POSITIVE = {"log_loss", "brier", "mae", "rmse"}
_MACRO = {"balanced_accuracy", "macro_f1", "mcc", "auroc", "mean_average_precision"}  # hang on the smallest class
LEAST_UNITS = 5  # rows (or 2 groups) of the smallest class behind a macro average; fewer are not known


Groups = Sequence[str | None] | None  # of each row; None stands for a row of its own, or for no groups at all


@dataclass(frozen=True)
class Measured:
    """A value with its 95 % interval, from `n` rows; NaN for ends that are not known."""

    value: float
    low: float
    high: float
    n: int


def measure(
    task: Task,
    targets: np.ndarray,
    scores: np.ndarray,
    groups: Sequence[str | None] | None,
    seed: int = 0,
    resamples: int = 2000,
) -> dict[str, Measured]:
    """The task's metrics with intervals; a metric that these rows leave undefined is left out.

    Args:
        targets, scores: as in `compute_metrics`.
        groups: (N,), rows of one group are resampled together; None stands for a row of its own.
    """
    targets, scores = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    draws = Draws(len(targets), groups, None, seed, resamples)  # class frequencies are uncertain: docs/comparison.md
    errors = draws.standard_errors(bootstrap.statistics(task, targets, scores))
    rows, own = len(targets), {}
    if task.exclusive and not draws.grouped:
        matrix = np.zeros((task.head_size, task.head_size))
        np.add.at(matrix, (targets, task.decide(scores)), 1)
        own = confusion_intervals(matrix, seed=seed) | {
            "auroc": bootstrap.area_interval(np.eye(task.head_size)[targets], scores)
        }
    fewest = draws.fewest(_memberships(task, targets))
    found = {}
    for name, value in compute_metrics(task, targets, scores).items():
        if name in own:
            found[name] = Measured(value, *_around(value, own[name], name), rows)
        elif name == "log_loss":
            found[name] = Measured(value, *draws.loss_interval(row_losses(task, targets, scores)), rows)
        elif np.isfinite(value):
            units = fewest if name in _MACRO else draws.count
            found[name] = Measured(value, *draws.interval(name, value, errors[name], rows, units), rows)
    return {name: measured for name, measured in found.items() if np.isfinite(measured.value)}


def _around(value: float, ends: tuple[float, float], name: str) -> tuple[float, float]:
    """The ends, inside of what the metric can be, with `value` between them."""
    least = -1.0 if name in CORRELATIONS else 0.0
    return float(min(max(ends[0], least), value)), float(max(min(ends[1], 1.0), value))


def _memberships(task: Task, targets: np.ndarray) -> np.ndarray:
    """(N, C) which rows each part of a macro average stands on; one column of all rows for regression."""
    if not task.has_classes:
        return np.ones((len(targets), 1))
    return task.one_hot(targets)


def per_class(
    task: Task,
    targets: np.ndarray,
    scores: np.ndarray,
    groups: Sequence[str | None] | None,
    seed: int = 0,
    resamples: int = 2000,
) -> list[dict]:
    """One entry per class: its `name`, `n` rows, and `precision`, `recall`, `f1` as `Measured` (None where undefined).

    For regression one entry per target with its own `mae`, `rmse`, `r2`, `pearson`, `spearman`.
    """
    targets, scores = np.asarray(targets), np.asarray(scores, dtype=np.float64)
    if not task.has_classes:
        return _per_target(task, targets, scores, groups, seed, resamples)
    draws = Draws(len(targets), groups, _classes(task, targets), seed, resamples)
    compute = bootstrap.by_class(task, targets, scores)
    values = {name: found[0] for name, found in compute(np.ones((1, len(targets)), np.float32)).items()}
    errors = draws.standard_errors(compute)
    actual, guessed = _memberships(task, targets) > 0, _memberships(task, task.decide(scores)) > 0
    basis = {"precision": guessed, "recall": actual, "f1": actual | guessed}
    return [
        {"name": label, "n": int(values["present"][c])}
        | {name: _class_measure(draws, name, values, errors, c, basis[name][:, c]) for name in _BASIS}
        for c, label in enumerate(task.names)
    ]


def _class_measure(draws: "Draws", name: str, values: dict, errors: dict, c: int, basis: np.ndarray) -> Measured | None:
    """One number of one class, from the rows that it is a share of (`basis`, bool (N,))."""
    value, rows = float(values[name][c]), int(values[_BASIS[name]][c])
    if np.isnan(value):
        return None
    return Measured(value, *draws.interval(name, value, errors[name][c], rows, draws.units_of(basis)), rows)


def _per_target(task: Task, targets: np.ndarray, scores: np.ndarray, *how) -> list[dict]:
    columns = [(targets[:, [k]], scores[:, [k]]) for k in range(task.head_size)]
    return [
        {"name": name, "n": len(targets)} | measure(Regression((name,)), *column, *how)
        for name, column in zip(task.names, columns, strict=True)
    ]


def measure_auroc(positive: np.ndarray, score: np.ndarray) -> Measured:
    """AUROC of any score of independent rows, higher for the `positive` ones; both sides must have rows."""
    positive = np.asarray(positive, dtype=bool)
    area = float(bootstrap.auroc_influence(positive, np.asarray(score))[0])
    ends = bootstrap.area_interval(positive[:, None].astype(float), np.asarray(score)[:, None])
    return Measured(area, *_around(area, ends, "auroc"), len(positive))


def _classes(task: Task, targets: np.ndarray) -> np.ndarray | None:
    return task.classes_of(targets)


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

    def units_of(self, rows: np.ndarray) -> int:
        """How many independent units hold the `rows` (bool, (N,)): rows, or groups where there are any."""
        return len(np.unique(self.units[rows]))

    def fewest(self, memberships: np.ndarray) -> int:
        """The least number of units that any column (N, C) with a row has."""
        return min((self.units_of(column > 0) for column in memberships.T if (column > 0).any()), default=0)

    def interval(
        self, name: str, value: float, error: float, rows: int, units: float | None = None
    ) -> tuple[float, float]:
        """The ends around `value`, which stands on `rows` rows of `units` units and has the standard error `error`.

        NaN where they are not known: of a single group, or of a macro average whose smallest class is too small.
        """
        units = self.count if units is None else units
        if name in _PROPORTIONS and not self.grouped:
            return wilson(value * rows, rows)
        if units < (2 if self.grouped or name not in _MACRO else LEAST_UNITS):
            return np.nan, np.nan
        step = stats.t.ppf((1 + _LEVEL) / 2, units - 1) * float(error)
        low, high = _unbounded(name, value, step if step > _ROUNDING * abs(value) else 0.0, min(rows, units))
        return float(low), float(high)

    def loss_interval(self, terms: np.ndarray) -> tuple[float, float]:
        """Return the ends around the mean of losses (N,), all at least 0; NaN where one of them makes it alone.

        The degrees of freedom are those of the effective number of examples, (sum of losses)² / sum of squares: the
        examples with a large loss determine both the mean and its error (docs/comparison.md).
        """
        error = self.standard_errors(lambda weights: {"mean": weights @ terms / weights.sum(1)})["mean"]
        squares = float((terms**2).sum())
        effective = float(terms.sum()) ** 2 / squares if squares > 0 else 0.0
        return self.interval("log_loss", float(terms.mean()), error, len(terms), min(effective, self.count))


def group_units(groups: Sequence[str | None] | None, rows: int) -> np.ndarray:
    """A number (N,) for every row's group, its own for a row without one."""
    alone = np.arange(rows)
    if groups is None:
        return alone
    names = [f"row {i}" if group is None or group != group else f"group {group}" for i, group in enumerate(groups)]
    found = np.unique(names, return_inverse=True)[1]
    if found.max() == 0 and rows > 1:
        logger.warning("All %d rows are of one group: no interval is known.", rows)
    return found if found.max() + 1 < rows else alone


def _unbounded(name: str, value: float, step: float, rows: int) -> tuple[float, float]:
    """`value` plus and minus `step`, taken on the scale on which the metric has no ends."""
    if name == "r2":  # 1 - R2 is a ratio of squares
        low, high = _unbounded("rmse", 1 - value, step, rows)
        return 1 - high, 1 - low
    if name in CORRELATIONS:
        low, high = _unbounded("share", (value + 1) / 2, step / 2, rows)
        return 2 * low - 1, 2 * high - 1
    if name in POSITIVE:
        return (value * np.exp(-step / value), value * np.exp(step / value)) if value > 0 else (np.nan, np.nan)
    if step == 0 or not 0 < value < 1:
        # No resample differs, for lack of errors rather than of doubt: as much is known as of `rows` of `rows`.
        return wilson(min(max(value, 0.0), 1.0) * rows, rows)
    middle, reach = np.log(value / (1 - value)), step / (value * (1 - value))
    return 1 / (1 + np.exp(reach - middle)), 1 / (1 + np.exp(-reach - middle))
