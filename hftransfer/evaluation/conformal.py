"""Answers with a promise: a set of classes that holds the true one in a stated share of cases.

Split-conformal prediction with the score 1 - p(class) (Sadinle, Lei & Wasserman 2019, "Least ambiguous set-valued
classifiers"). The promise holds for rows drawn like the calibration rows, whatever the model; it is about the average
over such draws: with 100 calibration rows the coverage of a 90 % set still lies anywhere in 84 to 95 %.
"""

import logging

import numpy as np
from scipy import stats

from hftransfer.evaluation.intervals import Draws, Groups, Measured
from hftransfer.tasks import Task

logger = logging.getLogger(__name__)

_ENOUGH = 20  # calibration rows that a class needs for a threshold of its own


def fit_thresholds(task: Task, scores: np.ndarray, targets: np.ndarray, level: float) -> np.ndarray:
    """Return the lowest probability at which a class enters the set, (C,); for regression the half-width per target, (K,).

    A class with 20 calibration rows has its own threshold, so that a rare class is not left out to please the frequent
    ones (Vovk 2012, "Conditional validity of inductive conformal predictors"). The others share one that is fitted on
    their own rows: a shared quantile over all rows is that of the frequent classes (Ding et al. 2023, "Class-conditional
    conformal prediction with many classes", cluster by size here). A threshold of 0 puts a class into every set: there
    are too few rows to promise the level. For multi-label the rows that carry a label decide.

    Args:
        scores, targets: of rows that neither the weights nor, strictly, the temperature were fitted on.
        level: the share of sets that shall hold the truth, between 0 and 1.
    """
    if not task.has_classes:
        return _quantile(np.abs(scores - targets), level)
    actual = task.one_hot(targets)
    rows, classes = np.nonzero(actual)
    ood_score = 1 - scores[rows, classes]
    own = np.array([_quantile(ood_score[classes == c], level) for c in range(task.head_size)])
    enough = _own_threshold(np.bincount(classes, minlength=task.head_size), level)
    shared = _quantile(ood_score[~enough[classes]], level)
    if not enough.all():
        logger.info("Prediction sets: %d of %d classes share a threshold.", (~enough).sum(), len(enough))
    return np.clip(1 - np.where(enough, own, shared), 0, 1)


def _own_threshold(counts: np.ndarray, level: float) -> np.ndarray:
    """Return which classes (bool, (C,)) have calibration examples enough for a threshold of their own."""
    return (counts >= _ENOUGH) & (_rank(counts, level) <= counts)


def threshold_examples(task: Task, targets: np.ndarray, level: float) -> np.ndarray:
    """Return how many calibration examples (C,) each threshold of `fit_thresholds` comes from; for each half-width (K,)."""
    if not task.has_classes:
        return np.full(task.head_size, len(targets))
    counts = task.counts(targets)
    enough = _own_threshold(counts, level)
    return np.where(enough, counts, counts[~enough].sum())


def achievable_coverage(examples: np.ndarray, level: float) -> np.ndarray:
    """Return the 2.5 % and 97.5 % quantiles (C, 2) of the coverage that a threshold from n examples has on new ones.

    With rank k = ceil((n + 1) level) it follows Beta(k, n + 1 - k) (Vovk 2012, proposition 2a), for independent examples
    and a score without ties. It is 1 where n is too small for the level: then the threshold lets everything in.
    """
    examples = np.asarray(examples)
    rank = _rank(examples, level)
    ends = stats.beta.ppf([0.025, 0.975], rank[:, None], np.maximum(examples + 1 - rank, 1)[:, None])
    return np.where((rank <= examples)[:, None], ends, 1.0)


def _rank(examples: np.ndarray, level: float) -> np.ndarray:
    """Return ceil((n + 1) level), the rank of the quantile among n scores."""
    return np.ceil((np.asarray(examples) + 1) * level - 1e-9).astype(int)


def _quantile(ood_score: np.ndarray, level: float) -> np.ndarray:
    """Return the ceil((n + 1) level)-th smallest along the first axis; infinite when n is too small to promise the level."""
    n = len(ood_score)
    rank = _rank(n, level)
    return np.sort(ood_score, axis=0)[rank - 1] if rank <= n else np.full(ood_score.shape[1:], np.inf)


def prediction_sets(task: Task, scores: np.ndarray, thresholds: np.ndarray) -> np.ndarray:
    """Which classes are in each row's set, bool (N, C); for regression the ends of the interval, (N, K, 2).

    The decision itself is always in a single-label set: an empty answer helps nobody, and one more class only raises
    the coverage.
    """
    if not task.has_classes:
        return np.stack([scores - thresholds, scores + thresholds], axis=-1)
    sets = scores >= thresholds
    if task.exclusive:
        sets[np.arange(len(scores)), task.decide(scores)] = True
    return sets


def measure_sets(task: Task, sets: np.ndarray, targets: np.ndarray, groups: Groups) -> dict:
    """`coverage` (share of truths held, `Measured`) and `mean_size` (classes per set, or mean width).

    An example with several labels or numbers is one observation, and so is a group.
    """
    if not task.has_classes:
        held, true = (sets[..., 0] <= targets) & (targets <= sets[..., 1]), np.ones(targets.shape, bool)
        size = (sets[..., 1] - sets[..., 0]).mean()
    else:
        true = task.one_hot(targets) > 0.5
        held, size = sets & true, sets.sum(1).mean()
    return {"coverage": _coverage(held.sum(1), true.sum(1), groups), "mean_size": float(size)}


def describe_sets(task: Task, found: dict) -> str:
    """Return in words what `metrics.json` has under `conformal` of a part: measured and achievable coverage."""
    kind, size = ("intervals", "mean width") if not task.has_classes else ("sets", "mean size")
    low, high = found["coverage"]["low"], found["coverage"]["high"]
    known = low is not None and np.isfinite([low, high]).all()
    interval = f"95 % interval {low:.3f} to {high:.3f}" if known else "interval not known"
    mean = found["mean_size"]
    width = f"{mean:.3g}" if mean is not None and np.isfinite(mean) else "unbounded (too few examples for this level)"
    least = min(found["achievable"].values(), key=lambda each: each["examples"])
    return (
        f"Prediction {kind} at {100 * found['level']:.0f} %: coverage {found['coverage']['value']:.3f} ({interval}), "
        f"{size} {width}. The limit with the fewest calibration examples ({least['examples']}) has a "
        f"coverage of {least['low']:.2f} to {least['high']:.2f} on new examples (95 % Beta interval)."
    )


def _coverage(held: np.ndarray, true: np.ndarray, groups: Groups) -> Measured:
    """Return the share of all truths that are held, from how many of its own (N,) each example has."""
    ends = Draws(len(held), groups).share_interval(held, true)
    return Measured(float(held.sum() / true.sum()), *ends, int((true > 0).sum()))
