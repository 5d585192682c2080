"""Thousands of resamples at once: a resample is a row of weights, a metric is a function of weighted sums.

Drawing N rows with replacement gives row i a count w_i. Every metric here is computed from sums such as
`weights @ terms`, so 2,000 resamples are one matrix product instead of 2,000 calls (Efron & Tibshirani 1993, ch. 6).
The two metrics that rank rows, AUROC and average precision, would need a sort per resample; they enter through each
row's influence on them, the first-order term in the weights (infinitesimal jackknife, Efron 1982, ch. 6).
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata

from hftransfer.evaluation.entities import Counts, entity_statistics
from hftransfer.evaluation.masks import mask_statistics, statistics_of
from hftransfer.evaluation.metrics import row_losses
from hftransfer.tasks import Task

Statistics = Callable[[np.ndarray], dict[str, np.ndarray]]

_CHUNK = 4_000_000  # weights held at one time: 16 MB of float32


def draw_weights(units: np.ndarray, strata: np.ndarray, resamples: int, seed: int) -> Iterator[np.ndarray]:
    """Weights of every row in `resamples` resamples, in chunks (R, N) of float32.

    n - 1 of a stratum's n units are drawn and weighted n / (n - 1): plain resampling understates the variance by that
    factor, which is a half for a class with two rows (Rao & Wu 1988, sec. 3).

    Args:
        units: int (N,): rows with the same unit are drawn together (its group; its own number without groups).
        strata: int (number of units,): every stratum keeps its weight; those of a single unit are joined into one.
    """
    rng = np.random.default_rng(seed)
    sizes = np.bincount(strata)
    strata = np.where(sizes[strata] == 1, -1, strata)
    step = max(1, _CHUNK // len(units))
    for start in range(0, resamples, step):
        yield _unit_weights(rng, strata, min(step, resamples - start))[:, units]


def _unit_weights(rng: np.random.Generator, strata: np.ndarray, resamples: int) -> np.ndarray:
    weights = np.empty((resamples, len(strata)), dtype=np.float32)
    for stratum in np.unique(strata):
        members = np.flatnonzero(strata == stratum)
        size, drawn = len(members), max(1, len(members) - 1)
        picks = rng.integers(size, size=(resamples, drawn)) + np.arange(resamples)[:, None] * size
        weights[:, members] = np.bincount(picks.ravel(), minlength=resamples * size).reshape(resamples, size)
        weights[:, members] *= size / drawn
    return weights


def statistics(task: Task, targets: np.ndarray, scores: np.ndarray) -> Statistics:
    """Return the task's metrics as a function of weights (R, N) that returns, by name, their values (R,)."""
    if task.by_word:
        return entity_statistics(Counts.of(task, targets, scores))
    if task.by_pixel:
        return mask_statistics(statistics_of(targets, scores, len(task.names)))
    make = _single_label if task.exclusive else _multi_label if task.has_classes else _regression
    return make(task, np.asarray(targets), np.asarray(scores, dtype=np.float64))


def _single_label(task: Task, targets: np.ndarray, scores: np.ndarray) -> Statistics:
    one_hot = np.eye(task.head_size, dtype=np.float32)
    actual, predicted = one_hot[targets], one_hot[task.decide(scores)]
    losses = row_losses(task, targets, scores)
    area, area_terms = _macro(auroc_influence, actual, scores)

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        hit, guessed, present = weights @ (actual * predicted), weights @ predicted, weights @ actual
        total = weights.sum(1)
        return {
            "accuracy": hit.sum(1) / total,
            "balanced_accuracy": _mean_defined(hit, present),
            "macro_f1": _mean_defined(2 * hit, guessed + present),
            "log_loss": weights @ losses / total,
            "auroc": area + weights @ area_terms / total,
            "mcc": _matthews(hit, guessed, present, total),
        }

    return compute


def _multi_label(task: Task, targets: np.ndarray, scores: np.ndarray) -> Statistics:
    actual, predicted = targets.astype(np.float32), task.decide(scores).astype(np.float32)
    losses = row_losses(task, targets, scores)
    exact = (actual == predicted).all(1).astype(np.float32)
    precision, precision_terms = _macro(precision_influence, actual, scores)

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        hit, guessed, present = weights @ (actual * predicted), weights @ predicted, weights @ actual
        total = weights.sum(1)
        return {
            "macro_f1": _mean_defined(2 * hit, guessed + present),
            "micro_f1": _ratio(2 * hit.sum(1), (guessed + present).sum(1)),
            "mean_average_precision": precision + weights @ precision_terms / total,
            "subset_accuracy": weights @ exact / total,
            "log_loss": weights @ losses / total,
        }

    return compute


def _regression(task: Task, targets: np.ndarray, scores: np.ndarray) -> Statistics:
    # Centred, so that the sums of squares below lose no digits; none of the metrics sees the shift.
    middle = targets.mean(0)
    targets, scores = (targets - middle).astype(np.float64), scores - middle
    absolute, squared = np.abs(targets - scores).mean(1), (targets - scores) ** 2
    columns = list(zip(targets.T, scores.T, strict=True))

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        total = weights.sum(1)
        mean_square = weights @ squared / total[:, None]
        ranks = [(_weighted_ranks(weights, t), _weighted_ranks(weights, s)) for t, s in columns]
        return {
            "mae": weights @ absolute / total,
            "rmse": np.sqrt(mean_square).mean(1),
            "r2": (1 - _ratio(mean_square, _spread(weights, targets))).mean(1),
            "pearson": np.mean([_correlation(weights, t, s) for t, s in columns], axis=0),
            "spearman": np.mean([_correlation(weights, *pair) for pair in ranks], axis=0),
        }

    return compute


def influences(task: Task, targets: np.ndarray, scores: np.ndarray) -> dict[str, np.ndarray]:
    """Return the influence (N,) of each example on R2 and correlations; other metrics have none here.

    The influence is the derivative in the weight of the example (Hampel 1974); for ranks, with the ranks held fixed.
    """
    if task.has_classes:
        return {}
    pairs = [(t, s) for t, s in zip(targets.T, scores.T, strict=True) if np.ptp(t) > 0 and np.ptp(s) > 0]
    kinds = {
        "r2": _r2_influence,
        "pearson": _correlation_influence,
        "spearman": lambda t, s: _correlation_influence(rankdata(t), rankdata(s)),
    }
    return {name: sum(kind(*pair) for pair in pairs) for name, kind in kinds.items() if pairs}


def _r2_influence(target: np.ndarray, score: np.ndarray) -> np.ndarray:
    error, spread = (target - score) ** 2, (target - target.mean()) ** 2
    return (error.mean() / spread.mean() * spread - error) / spread.mean()


def _correlation_influence(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    x, y = (x - x.mean()) / x.std(), (y - y.mean()) / y.std()
    return x * y - (x * y).mean() * (x**2 + y**2) / 2


def by_class(task: Task, targets: np.ndarray, scores: np.ndarray) -> Statistics:
    """Precision, recall and F1 of each class with the rows they stand on, as a function of weights (R, N): (R, C) each.

    `present` rows carry the class, `guessed` rows are said to, `union` rows are one of the two; NaN where undefined. Of
    entities they are counts of these.
    """
    hits, predicted, actual = _counted(task, targets, scores)

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        hit, guessed, present = weights @ hits, weights @ predicted, weights @ actual
        return {
            "precision": _ratio(hit, guessed),
            "recall": _ratio(hit, present),
            "f1": _ratio(2 * hit, guessed + present),
            "guessed": guessed,
            "present": present,
            "union": guessed + present - hit,
        }

    return compute


def _counted(task: Task, targets: np.ndarray, scores: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return what is right, said and true of each class in each example, (N, C) each."""
    if task.by_word:
        counts = Counts.of(task, targets, scores)
        return counts.hit, counts.found, counts.present
    one_hot = np.eye(task.head_size, dtype=np.float32)
    predicted = task.decide(scores)
    if task.exclusive:
        targets, predicted = one_hot[targets], one_hot[predicted]
    actual, predicted = targets.astype(np.float32), predicted.astype(np.float32)
    return actual * predicted, predicted, actual


def _ratio(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _mean_defined(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Mean over the classes of top / bottom, (R, C) -> (R,), leaving out classes that have nothing below the line."""
    defined = bottom > 0
    return _ratio(np.where(defined, _ratio(top, bottom), 0).sum(1), defined.sum(1).astype(float))


def _matthews(hit: np.ndarray, guessed: np.ndarray, present: np.ndarray, total: np.ndarray) -> np.ndarray:
    """Matthews' correlation for any number of classes (Gorodkin 2004, eq. 8); 0 where scikit-learn has 0."""
    covariance = hit.sum(1) * total - (guessed * present).sum(1)
    return np.nan_to_num(_ratio(covariance, np.sqrt(_variety(guessed, total) * _variety(present, total))))


def _variety(counts: np.ndarray, total: np.ndarray) -> np.ndarray:
    """total² - sum of counts², (R,): 0 where one class has all; rounding of float32 must not take it below."""
    return np.maximum(total**2 - (counts**2).sum(1), 0)


def _spread(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    total = weights.sum(1)[:, None]
    return weights @ values**2 / total - (weights @ values / total) ** 2


def _correlation(weights: np.ndarray, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Weighted Pearson correlation (R,) of x and y, each (N,) or one row per resample (R, N)."""
    total = weights.sum(1)

    def mean(values: np.ndarray) -> np.ndarray:
        return np.einsum("rn,rn->r", weights, np.broadcast_to(values, weights.shape)) / total

    middle_x, middle_y = mean(x), mean(y)
    covariance = mean(x * y) - middle_x * middle_y
    spread = (mean(x * x) - middle_x**2) * (mean(y * y) - middle_y**2)
    return _ratio(covariance, np.sqrt(np.maximum(spread, 0)))


def _weighted_ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Mid-ranks (R, N) of `values` (N,) inside each resample over N: the weight below plus half the weight tied."""
    order = np.argsort(values)
    below = np.zeros((len(weights), len(values) + 1))
    np.cumsum(weights[:, order], axis=1, out=below[:, 1:])
    first, last = (np.searchsorted(values, values, side, sorter=order) for side in ("left", "right"))
    return (below[:, first] + below[:, last]) / (2 * len(values))


def _macro(influence: Callable, actual: np.ndarray, scores: np.ndarray) -> tuple[float, np.ndarray]:
    """Return the mean over classes of a ranking metric and of every row's influence on it; NaN when no class defines it."""
    found = [influence(actual[:, c] > 0, scores[:, c]) for c in range(actual.shape[1])]
    defined = [pair for pair in found if not np.isnan(pair[0])] or found
    return np.mean([value for value, _ in defined]), np.mean([terms for _, terms in defined], axis=0)


def auroc_influence(positive: np.ndarray, score: np.ndarray) -> tuple[float, np.ndarray]:
    """AUROC and each row's influence, from the share of the other side that it is ranked above (DeLong et al. 1988)."""
    ones, zeros = positive.sum(), (~positive).sum()
    if not ones or not zeros:
        return np.nan, np.zeros(len(score))
    overall = rankdata(score)
    above = np.empty(len(score))
    above[positive] = (overall[positive] - rankdata(score[positive])) / zeros
    above[~positive] = 1 - (overall[~positive] - rankdata(score[~positive])) / ones
    area = above[positive].mean()
    return area, (above - area) * np.where(positive, len(score) / ones, len(score) / zeros)


LEAST_SIDE = 5  # rows on the smaller side of any class; with fewer the interval is not known


def area_interval(actual: np.ndarray, scores: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean one-vs-rest AUROC from 0/1 truths (N, C) and scores (N, C).

    Each class has Newcombe's interval (2006, "Confidence intervals for an effect size measure based on the Mann-Whitney
    statistic", method 5). NaN where a side of any class has fewer than five rows.
    """
    sides = [
        (truth > 0, score) for truth, score in zip(actual.T, scores.T, strict=True) if truth.any() and not truth.all()
    ]
    if not sides or min(min(truth.sum(), (~truth).sum()) for truth, _ in sides) < LEAST_SIDE:
        return np.nan, np.nan
    found = [auroc_influence(*side) for side in sides]
    ends = [
        _newcombe(area, truth.sum(), (~truth).sum(), level) for (area, _), (truth, _) in zip(found, sides, strict=True)
    ]
    same = len(sides) == 2  # of two classes both are the same
    return _mean_interval([area for area, _ in found], ends, [terms for _, terms in found], 1.0 if same else 0.0)


def precision_interval(actual: np.ndarray, scores: np.ndarray, level: float = 0.95) -> tuple[float, float]:
    """Return the interval of the mean average precision from 0/1 truths (N, C) and scores (N, C).

    Each label has the logit interval of Boyd, Eng & Page (2013, "Area under the precision-recall curve", sec. 3.3), around the
    value without its bias: average precision of few positives is too high, and a mean over labels keeps that. Their mean
    follows as in `area_interval`. NaN where a label has fewer than five positives.
    """
    labels = [(truth > 0, score) for truth, score in zip(actual.T, scores.T, strict=True) if truth.any()]
    if not labels or min(truth.sum() for truth, _ in labels) < LEAST_SIDE:
        return np.nan, np.nan
    found, counts = [precision_influence(*label) for label in labels], np.array([truth.sum() for truth, _ in labels])
    unbiased = np.array([value - precision_bias(*label) for (value, _), label in zip(found, labels, strict=True)])
    middle = (counts * np.clip(unbiased, 0, 1) + 0.5) / (counts + 1)
    reach = norm.ppf((1 + level) / 2) / np.sqrt(counts * middle * (1 - middle))
    ends = expit(logit(middle)[:, None] + reach[:, None] * [-1, 1])
    return _mean_interval(np.clip(unbiased, ends[:, 0], ends[:, 1]), ends, [terms for _, terms in found], 0.0)


def _mean_interval(values: Sequence[float], ends: Sequence, terms: Sequence, otherwise: float) -> tuple[float, float]:
    """Return the interval of the mean of values from their own (C, 2), by MOVER (Zou & Donner 2008), within 0 to 1.

    `terms` (C, N) are the influences of the examples. Their correlations are those of the values; `otherwise` holds where a
    value has no influence.
    """
    values, ends, terms = np.asarray(values), np.asarray(ends), np.asarray(terms)
    norms = np.linalg.norm(terms, axis=1)
    together = np.full((len(values), len(values)), otherwise)
    known = np.outer(norms, norms) > 0
    together[known] = (terms @ terms.T)[known] / np.outer(norms, norms)[known]
    np.fill_diagonal(together, 1.0)
    below, above = values - ends[:, 0], ends[:, 1] - values
    low, high = (np.sqrt(max(reach @ together @ reach, 0.0)) / len(values) for reach in (below, above))
    return max(float(values.mean() - low), 0.0), min(float(values.mean() + high), 1.0)


def _newcombe(area: float, ones: int, zeros: int, level: float) -> tuple[float, float]:
    """Newcombe's method 5: the areas whose own standard error puts the observed one at the edge."""
    reach, mean = norm.ppf((1 + level) / 2), (ones + zeros) / 2

    def gap(theta: float) -> float:
        ratio = 1 + (mean - 1) * ((1 - theta) / (2 - theta) + theta / (1 + theta))
        return abs(area - theta) - reach * np.sqrt(theta * (1 - theta) * ratio / (ones * zeros))

    edge = 1e-9  # the observed area is a root itself where it is 0 or 1
    low = brentq(gap, 0.0, area - edge) if gap(0.0) > 0 > gap(area - edge) else 0.0
    high = brentq(gap, area + edge, 1.0) if area < 1 - edge and gap(1.0) > 0 > gap(area + edge) else 1.0
    return low, high


def precision_influence(positive: np.ndarray, score: np.ndarray) -> tuple[float, np.ndarray]:
    """Average precision and each row's influence: the derivative of the weighted form at equal weights, times N."""
    if not positive.any():
        return np.nan, np.zeros(len(score))
    order = np.argsort(-score)
    hit, ranked = positive[order].astype(float), -score[order]
    first, last = (np.searchsorted(ranked, ranked, side) for side in ("left", "right"))
    precision = np.cumsum(hit)[last - 1] / last  # tied rows share one place, the last of them
    # A row counts in the precision of every positive at or below its own place.
    raises, lowers = (np.cumsum(terms[::-1])[::-1][first] for terms in (hit / last, hit * precision / last))
    average = precision[hit > 0].mean()
    terms = np.empty(len(score))
    terms[order] = (hit * (precision - average + raises) - lowers) * len(score) / hit.sum()
    return average, terms


def precision_bias(positive: np.ndarray, score: np.ndarray) -> float:
    """Return the jackknife estimate of the bias of average precision (Quenouille 1956), from at least two positives.

    A positive with h positives among the first l rows has precision h / l; a row that is left out changes h, l, or neither.
    """
    rows, count = len(score), int(positive.sum())
    ranked = np.sort(-score)
    last = np.searchsorted(ranked, -score[positive], "right")
    hits = np.searchsorted(np.sort(-score[positive]), -score[positive], "right")
    fewer = np.maximum(last - 1, 1)
    without_negative = (last - hits) * hits / fewer + (rows - count - last + hits) * hits / last
    without_positive = (hits - 1) ** 2 / fewer + (count - hits) * hits / last
    mean = (without_negative.sum() / count + without_positive.sum() / (count - 1)) / rows
    return float((rows - 1) * (mean - (hits / last).mean()))
