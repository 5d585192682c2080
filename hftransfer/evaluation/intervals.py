"""Every number with its 95 % interval: 90 % right on 100 rows means 82.6 to 94.5 %.

Proportions (accuracy, recall, precision) have Wilson's interval (Wilson 1927), and so has the F1 of one class or of all
labels, as F1 / (2 - F1) is a proportion. Mean losses have that of `Draws.loss_interval`. The rest have a bootstrap
standard error, taken to a scale that has no ends and back again: logit for what lies in 0..1, Fisher's z for correlations.
Percentiles of the resamples themselves cover far too seldom where small data lives, near the ends: an AUROC of 0.997 with
100 rows and four classes lies in 74 % of percentile intervals and in 94 % of these. Rows of one group are not independent,
so with groups whole groups are drawn, for the proportions too.

Functions of the confusion matrix have intervals of their own (`confusion`), the area under the ROC curve has Newcombe's.
Where the rows or groups are too few for any of these, the ends are NaN: not known. docs/coverage.md holds what was
measured: how often each interval covers the truth.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

from hftransfer.evaluation import bootstrap
from hftransfer.evaluation.confusion import confusion_intervals
from hftransfer.evaluation.entities import Counts
from hftransfer.evaluation.kinds import is_macro, scale_of
from hftransfer.evaluation.masks import MaskCounts, class_shares, statistics_of
from hftransfer.evaluation.metrics import MeanLoss, compute_metrics, mean_losses
from hftransfer.tasks import Regression, Task

logger = logging.getLogger(__name__)

_LEVEL = 0.95
_NORMAL = float(stats.norm.ppf((1 + _LEVEL) / 2))
_ROUNDING = 1e-5  # of float32 weights: a smaller step is none
_MOST_STEP = 50.0  # of the logarithm of 1 - R2: with fewer than two effective examples the ends say nothing
LEAST_UNITS = 5  # rows (or 2 groups) of the smallest class behind a macro average; fewer are not known
LEAST_GROUPS = 5  # behind a loss, where there are groups; the intervals of three groups hold 92 % (docs/coverage.md)


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
    """Return the task's metrics with intervals; a metric that these rows leave undefined is left out.

    Args:
        targets, scores: as in `compute_metrics`.
        groups: (N,), rows of one group are resampled together; None stands for a row of its own.
    """
    targets, scores = _arrays(task, targets, scores)
    values = compute_metrics(task, targets, scores)
    draws = Draws(len(targets), groups, None, seed, resamples)  # class frequencies are uncertain: docs/comparison.md
    ends = _direct(draws, task, targets, scores)
    if remaining := [name for name in values if name not in ends]:
        errors = draws.standard_errors(bootstrap.statistics(task, targets, scores))
        influences = bootstrap.influences(task, targets, scores)
        fewest = draws.fewest(_memberships(task, targets))
        for name in remaining:
            units = fewest if is_macro(name) else draws.freedom(influences.get(name)) + 1
            ends[name] = draws.interval(name, values[name], errors[name], units)
    return {
        name: Measured(value, *_around(value, ends[name]), len(targets))
        for name, value in values.items()
        if np.isfinite(value)
    }


def _arrays(task: Task, targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and scores as arrays: numbers, or one array or mask for each example with several units."""
    return np.asarray(targets), scores if task.by_part else np.asarray(scores, dtype=np.float64)


def _direct(draws: "Draws", task: Task, targets: np.ndarray, scores: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return the intervals that need no resampling, by name; among them some of metrics that other tasks have."""
    if task.by_word:
        return _direct_of_entities(draws, Counts.of(task, targets, scores)) | {
            name: draws.loss_interval(loss) for name, loss in mean_losses(task, targets, scores).items()
        }
    if task.by_pixel:
        counts = statistics_of(targets, scores, len(task.names))
        return {"pixel_accuracy": draws.share_interval(counts.hit.sum(1), counts.present.sum(1))}
    actual, predicted = _memberships(task, targets) > 0, _memberships(task, task.decide(scores)) > 0
    right, every = (actual == predicted).all(1), np.ones(len(targets))
    shares = {"accuracy": draws.share_interval(right, every), "subset_accuracy": draws.share_interval(right, every)}
    losses = {name: draws.loss_interval(loss) for name, loss in mean_losses(task, targets, scores).items()}
    jaccard = draws.share_interval((actual & predicted).sum(1), (actual | predicted).sum(1))
    found = shares | losses | {"micro_f1": tuple(map(_f1_of_jaccard, jaccard))}
    if draws.grouped:
        return found
    if task.exclusive:
        found |= confusion_intervals(actual.T.astype(float) @ predicted, seed=draws.seed)
        found["auroc"] = bootstrap.area_interval(actual.astype(float), scores)
    elif task.several:
        found["mean_average_precision"] = bootstrap.precision_interval(actual.astype(float), scores)
    return found


def _direct_of_entities(draws: "Draws", counts: Counts) -> dict[str, tuple[float, float]]:
    """Return the intervals of shares of entities; the entities of one text go together."""
    present, found, hit, near = (each.sum(1) for each in (counts.present, counts.found, counts.hit, counts.overlapping))
    jaccard = {"entity_f1": (hit, present + found - hit), "overlap_f1": (near, present + found - near)}
    return {
        "entity_precision": draws.share_interval(hit, found),
        "entity_recall": draws.share_interval(hit, present),
    } | {name: tuple(map(_f1_of_jaccard, draws.share_interval(*parts))) for name, parts in jaccard.items()}


def _around(value: float, ends: tuple[float, float]) -> tuple[float, float]:
    """Return the ends, with `value` between them."""
    return float(np.minimum(ends[0], value)), float(np.maximum(ends[1], value))


def _memberships(task: Task, targets: np.ndarray) -> np.ndarray:
    """(N, C) which rows each part of a macro average stands on; one column of all rows for regression."""
    if not task.has_classes:
        return np.ones((len(targets), 1))
    if task.by_word:
        return np.minimum(task.one_hot(targets), 1)
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
    targets, scores = _arrays(task, targets, scores)
    if not task.has_classes:
        return _per_target(task, targets, scores, groups, seed, resamples)
    draws = Draws(len(targets), groups)
    if task.by_word:
        counts = Counts.of(task, targets, scores)
        return [_of_type(draws, name, *(each[:, kind] for each in (counts.present, counts.found, counts.hit)))
                for kind, name in enumerate(task.names)]  # fmt: skip
    if task.by_pixel:
        counts = statistics_of(targets, scores, len(task.names))
        return [_of_pixels(draws, name, counts, kind) for kind, name in enumerate(task.names)]
    actual, predicted = _memberships(task, targets) > 0, _memberships(task, task.decide(scores)) > 0
    return [
        {"name": label, "n": int(true.sum())}
        | {
            "precision": _measure_share(draws, true & said, said),
            "recall": _measure_share(draws, true & said, true),
            "f1": _measure_share(draws, true & said, true | said, _f1_of_jaccard),
        }
        for label, true, said in zip(task.names, actual.T, predicted.T, strict=True)
    ]


def _of_type(draws: "Draws", name: str, present: np.ndarray, found: np.ndarray, hit: np.ndarray) -> dict:
    """Return what `per_class` does of one type of entity; `n` counts entities."""
    return {"name": name, "n": int(present.sum())} | {
        "precision": _measure_share(draws, hit, found),
        "recall": _measure_share(draws, hit, present),
        "f1": _measure_share(draws, hit, present + found - hit, _f1_of_jaccard),
    }


def _of_pixels(draws: "Draws", name: str, counts: MaskCounts, kind: int) -> dict:
    """Return IoU, Dice, precision and recall of one class over all images; `n` counts the images that have it."""
    parts = {metric: (hit[:, kind], trials[:, kind]) for metric, (hit, trials) in class_shares(counts).items()}
    shares = {metric: _measure_share(draws, *pair) for metric, pair in parts.items()}
    dice = _measure_share(draws, *parts["iou"], _f1_of_jaccard)
    return {"name": name, "n": int((counts.present[:, kind] > 0).sum()), "dice": dice} | shares


def _measure_share(draws: "Draws", hit: np.ndarray, trials: np.ndarray, onto: Callable = float) -> Measured | None:
    """Return the share of `trials` (N,) that are `hit`, or what `onto` makes of it; None without trials."""
    count = int(trials.sum())
    if not count:
        return None
    return Measured(*map(onto, (hit.sum() / count, *draws.share_interval(hit, trials))), count)


def _f1_of_jaccard(share: float) -> float:
    """F1 from the share of hits among all that is true or predicted, a proportion (Lam, Gopal & Qian 2023, sec. 3)."""
    return float(2 * share / (1 + share))


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
    return Measured(area, *_around(area, ends), len(positive))


def wilson(successes: float, n: int, level: float = _LEVEL) -> tuple[float, float]:
    """Wilson's interval of a proportion: where a score test would not reject it (1927, J. Am. Stat. Assoc. 22:209)."""
    hits, z = round(successes), float(stats.norm.ppf((1 + level) / 2))
    middle = (hits + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(hits * (n - hits) / max(n, 1) + z**2 / 4)
    return 0.0 if hits == 0 else middle - half, 1.0 if hits == n else middle + half


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
        """Return the statistics of weights in every resample, one along the first axis."""
        chunks = [
            compute(weights) for weights in bootstrap.draw_weights(self.units, self.strata, self.resamples, self.seed)
        ]
        return {name: np.concatenate([chunk[name] for chunk in chunks]) for name in chunks[0]}

    def standard_errors(self, compute: bootstrap.Statistics) -> dict[str, np.ndarray]:
        """Return the spread of the statistics over those resamples that define them."""
        values = self.resample(compute)
        return {name: np.ma.filled(np.ma.masked_invalid(value).std(0), 0.0) for name, value in values.items()}

    def units_of(self, rows: np.ndarray) -> int:
        """How many independent units hold the `rows` (bool, (N,)): rows, or groups where there are any."""
        return len(np.unique(self.units[rows]))

    def fewest(self, memberships: np.ndarray) -> int:
        """Return the least number of units that any column (N, C) with a row has."""
        return min((self.units_of(column > 0) for column in memberships.T if (column > 0).any()), default=0)

    def interval(self, name: str, value: float, error: float, units: float) -> tuple[float, float]:
        """Return the ends around `value`, which stands on so many `units` and has the standard error `error`.

        NaN where they are not known: of fewer than three groups (two covered in 91 %, docs/coverage.md), or of a macro
        average whose smallest class is too small.
        """
        if units < (2 if self.grouped or not is_macro(name) else LEAST_UNITS) or (self.grouped and self.count < 3):
            return np.nan, np.nan
        reach = stats.t.ppf((1 + _LEVEL) / 2, units - 1)
        error = float(error) if error > _ROUNDING * abs(value) else 0.0
        if scale_of(name) == "explained":  # 1 - R2 is a ratio of squares
            step = reach * error / (1 - value) if value < 1 else 0.0
            factor = np.exp(step) if 0 < step < _MOST_STEP else np.nan
            return float(1 - (1 - value) * factor), float(1 - (1 - value) / factor)
        if scale_of(name) == "correlation":
            low, high = _share_interval((value + 1) / 2, error / 2, units, reach)
            return 2 * low - 1, 2 * high - 1
        return _share_interval(value, error, units, reach)

    def share_interval(self, hit: np.ndarray, trials: np.ndarray) -> tuple[float, float]:
        """Return the ends of a share: so many `hit` among so many `trials` of each example, both (N,).

        Wilson's interval where every trial is a unit of its own. Else the trials of a unit go together: the standard error
        is that of a ratio of sums over units (Cochran 1977, sec. 6.4). NaN for the trials of one unit, and without any.
        """
        units, count = self.units_of(trials > 0), trials.sum()
        if units == count and count:
            return wilson(hit.sum(), int(count))
        if units < 2:
            return np.nan, np.nan
        share = hit.sum() / count
        away = np.bincount(self.units, hit - share * trials)
        error = np.sqrt((away**2).sum() * units / (units - 1)) / count
        reach = stats.t.ppf((1 + _LEVEL) / 2, units - 1)
        least = np.sqrt(share * (1 - share) / count) * _NORMAL / reach  # trials are not worth more than their number
        return _share_interval(share, max(error, least), units, reach)

    def freedom(self, influence: np.ndarray | None) -> float:
        """Return the degrees of freedom of a standard error from the influence (N,) of each example on the metric.

        A variance estimated from n terms of kurtosis k is worth 2 n / (k - 1) degrees of freedom (Satterthwaite 1946): few
        examples or groups that move the metric most leave less than their number says. At least 1, at most units - 1.
        """
        most = self.count - 1
        if influence is None:
            return most
        squares = np.bincount(self.units, influence, minlength=self.count) ** 2
        if squares.sum() == 0:
            return most
        kurtosis = self.count * (squares**2).sum() / squares.sum() ** 2
        return min(most, max(1.0, 2 * self.count / max(kurtosis - 1, 1e-9) - 1))

    def loss_interval(self, loss: MeanLoss) -> tuple[float, float]:
        """Return the ends around a mean loss; NaN for few groups, where one unit makes it alone, or none varies.

        The few units with a large loss determine both the mean and its error. Two measures of that bound the degrees of
        freedom: the effective number of units, (sum of losses)² / sum of squares, and `freedom`. The error grows with the
        mean, so the upper end is farther away: the logarithms of mean and end differ by x with x² = step² (1 + x / 2). To
        second order it is the scale mean^(-1/2), between those of a gamma and of an inverse Gaussian mean (docs/coverage.md).
        """
        totals, mean = np.bincount(self.units, loss.terms, minlength=self.count), loss.terms.mean()
        away = totals - mean * np.bincount(self.units, minlength=self.count)
        effective = totals.sum() ** 2 / max((totals**2).sum(), 1e-300)
        if self.count < (LEAST_GROUPS if self.grouped else 2) or effective < 2 or not away.any():
            return np.nan, np.nan
        error = np.sqrt((away**2).sum() * self.count / (self.count - 1)) / totals.sum()
        freedom = min(effective - 1, self.freedom(loss.terms - mean))
        step = stats.t.ppf((1 + _LEVEL) / 2, freedom) * error
        up = step**2 / 4 + step * np.sqrt(1 + step**2 / 16)
        ends = mean * np.exp([-(step**2) / up, up])  # the product of the two roots is -step²
        return tuple(map(float, np.minimum(loss.of_mean(ends), loss.worst)))


def group_units(groups: Sequence[str | None] | None, rows: int) -> np.ndarray:
    """Return a number (N,) for every row's group, its own for a row without one."""
    alone = np.arange(rows)
    if groups is None:
        return alone
    names = [f"row {i}" if group is None or group != group else f"group {group}" for i, group in enumerate(groups)]
    found = np.unique(names, return_inverse=True)[1]
    if found.max() == 0 and rows > 1:
        logger.warning("All %d rows are of one group: no interval is known.", rows)
    return found if found.max() + 1 < rows else alone


def _share_interval(value: float, error: float, units: float, reach: float) -> tuple[float, float]:
    """Return Wilson's interval of a share with the standard error `error`, `reach` of which are on either side.

    The share counts as one of value (1 - value) / error² examples (Korn & Graubard 1998; Dean & Pagano 2015). Where no
    resample differs, for lack of errors rather than of doubt, it counts as one of `units` examples.
    """
    value = min(max(value, 0.0), 1.0)
    differs = error > 0 and 0 < value < 1
    count, reach = (value * (1 - value) / error**2, reach) if differs else (units, _NORMAL)
    middle = (value + reach**2 / (2 * count)) / (1 + reach**2 / count)
    width = reach / (1 + reach**2 / count) * np.sqrt(value * (1 - value) / count + reach**2 / (4 * count**2))
    return float(max(middle - width, 0.0)), float(min(middle + width, 1.0))
