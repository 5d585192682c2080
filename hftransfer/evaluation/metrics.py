"""What is measured for each task, on whole arrays, with nothing to download.

Names are exact: the F1 of more than one class is `macro_f1` or `micro_f1`, never a bare "f1". A metric that the rows at
hand leave undefined (the AUROC of a part with one class, the correlation with a constant) is NaN, not a made-up number.
"""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
from scipy import stats
from sklearn import metrics as sk

from hftransfer.evaluation.entities import Counts, entity_metrics
from hftransfer.evaluation.masks import mask_metrics, statistics_of
from hftransfer.tasks import Task
from hftransfer.tasks.tokens import ragged


def compute_metrics(task: Task, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    """Every metric of the task.

    Args:
        targets: int (N,), or float (N, C) / (N, K), as `Task.encode_all` gives them.
        scores: float (N, C) / (N, K), as `Task.probabilities` gives them.
    """
    with warnings.catch_warnings():
        # An undefined value is answered by NaN, so the warning that says so has no news.
        warnings.simplefilter("ignore", category=UserWarning)
        warnings.simplefilter("ignore", category=stats.ConstantInputWarning)
        found = _function(task)(task, np.asarray(targets), scores if task.by_part else np.asarray(scores, np.float64))
    return {name: float(value) for name, value in found.items()}


def _function(task: Task) -> Callable[..., dict[str, float]]:
    if task.by_word:
        return _entities
    if task.by_pixel:
        return _masks
    return _single_label if task.exclusive else _multi_label if task.has_classes else _regression


def metric_names(task: Task) -> list[str]:
    """Names of all metrics of the task, as two made-up rows have them."""
    if task.by_word:
        return list(compute_metrics(task, *(ragged([np.zeros(shape, int)] * 2) for shape in (1, (1, task.head_size)))))
    if task.by_pixel:
        return list(compute_metrics(task, ragged([]), ragged([])))
    targets = np.arange(2) % task.head_size if task.exclusive else np.zeros((2, task.head_size))
    return list(compute_metrics(task, targets, np.full((2, task.head_size), 1 / task.head_size)))


def _single_label(task: Task, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    # Sums, not scikit-learn's functions: their checks take 30 ms, and every step that is evaluated pays them.
    predicted, classes = task.decide(scores), range(task.head_size)
    hit, guessed, present = (
        np.bincount(rows, minlength=len(classes)) for rows in (targets[targets == predicted], predicted, targets)
    )
    involved = guessed + present
    return {
        "accuracy": hit.sum() / len(targets),
        "balanced_accuracy": mean_defined(hit[present > 0] / present[present > 0]),
        "macro_f1": mean_defined(2 * hit[involved > 0] / involved[involved > 0]),
        "log_loss": row_losses(task, targets, scores).mean(),
        "auroc": mean_defined(area_under_roc(targets == c, scores[:, c]) for c in classes),
        "mcc": _matthews(hit.sum(), guessed, present) if (present > 0).sum() > 1 else np.nan,
    }


def _matthews(hit: int, guessed: np.ndarray, present: np.ndarray) -> float:
    """Matthews' correlation from counts of the classes (C,) (Gorodkin 2004, eq. 8); 0 where one class is always guessed."""
    total = present.sum()
    spreads = float(total**2 - guessed @ guessed) * float(total**2 - present @ present)
    return (hit * total - guessed @ present) / np.sqrt(spreads) if spreads else 0.0


def _multi_label(task: Task, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    predicted = task.decide(scores)
    seen = targets.any(0)
    # Sums, not scikit-learn's averages: it reads a single label as two classes, yes and no.
    hit, involved = (targets * predicted).sum(0), (targets + predicted).sum(0)
    return {
        "macro_f1": mean_defined(2 * hit[involved > 0] / involved[involved > 0]),
        "micro_f1": 2 * hit.sum() / involved.sum() if involved.sum() else np.nan,
        "mean_average_precision": mean_defined(
            sk.average_precision_score(targets[:, c], scores[:, c]) for c in np.flatnonzero(seen)
        ),
        "subset_accuracy": (targets == predicted).all(1).mean(),
        "log_loss": row_losses(task, targets, scores).mean(),
    }


def _regression(task: Task, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    columns = [(targets[:, k], scores[:, k]) for k in range(task.head_size)]
    enough = len(targets) > 1
    varies = enough and (np.ptp(targets, axis=0) > 0).all()  # nothing explains a constant
    return {
        "mae": sk.mean_absolute_error(targets, scores),
        "rmse": sk.root_mean_squared_error(targets, scores),
        "r2": sk.r2_score(targets, scores) if varies else np.nan,
        "pearson": np.mean([stats.pearsonr(*pair).statistic for pair in columns]) if enough else np.nan,
        "spearman": np.mean([stats.spearmanr(*pair).statistic for pair in columns]) if enough else np.nan,
    }


def _entities(task: Task, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    losses = row_losses(task.of_unit, task.units(targets).astype(int), task.units(scores))
    return entity_metrics(Counts.of(task, targets, scores)) | {"log_loss": losses.mean()}


def _masks(task: Task, targets: np.ndarray, scores: np.ndarray) -> dict[str, float]:
    return mask_metrics(statistics_of(targets, scores, len(task.names)))


def row_losses(task: Task, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Each row's negative log-likelihood in nats, (N,); the mean over labels for multi-label.

    Probabilities are kept off 0 and 1 by the float64 epsilon, as scikit-learn does, so that the loss stays finite.
    """
    tiny = np.finfo(np.float64).eps
    scores = np.clip(scores, tiny, 1 - tiny)
    if task.exclusive:
        return -np.log(scores[np.arange(len(targets)), targets])
    return -(targets * np.log(scores) + (1 - targets) * np.log1p(-scores)).mean(-1)


@dataclass(frozen=True)
class MeanLoss:
    """A metric that is the mean of losses `terms` (N,) of the examples, or its root; `worst` is the largest possible value."""

    terms: np.ndarray
    worst: float = np.inf
    root: bool = False

    def of_mean(self, mean: np.ndarray) -> np.ndarray:
        """Return the metric at another mean of the terms."""
        return np.sqrt(self.terms.mean() * mean) if self.root else mean


def mean_losses(task: Task, targets: np.ndarray, scores: np.ndarray) -> dict[str, MeanLoss]:
    """Return the metrics of the task that are means of losses, by name.

    The squares of RMSE are divided by the RMSE of their target: their mean is then the RMSE, also that of several targets.
    """
    if task.by_pixel:
        return {}  # probabilities of pixels are not kept
    if task.by_word:  # of words; each text has the sum of its own
        sizes = np.array([len(tags) for tags in targets])
        losses = row_losses(task.of_unit, task.units(targets).astype(int), task.units(scores))
        sums = np.bincount(np.repeat(np.arange(len(sizes)), sizes), losses, minlength=len(sizes))
        return {"log_loss": MeanLoss(sums * len(sizes) / max(sizes.sum(), 1), -np.log(np.finfo(np.float64).eps))}
    if task.has_classes:
        return {"log_loss": MeanLoss(row_losses(task, targets, scores), -np.log(np.finfo(np.float64).eps))}
    errors = np.abs(targets - scores)
    each = np.sqrt((errors**2).mean(0))
    squares = np.divide(errors**2, each, out=np.zeros(errors.shape), where=each > 0)
    return {"mae": MeanLoss(errors.mean(1)), "rmse": MeanLoss(squares.mean(1), root=True)}


def area_under_roc(positive: np.ndarray, score: np.ndarray) -> float:
    """AUROC of one class against the rest, from ranks (Mann & Whitney 1947); NaN when one of the two sides is empty."""
    ones, zeros = positive.sum(), (~positive).sum()
    if not ones or not zeros:
        return np.nan
    return (stats.rankdata(score)[positive].sum() - ones * (ones + 1) / 2) / (ones * zeros)


def mean_defined(values: Iterable[float]) -> float:
    """Return the mean over the values that are not NaN; NaN when there is none."""
    values = np.array([value for value in values if not np.isnan(value)])
    return values.mean() if len(values) else np.nan
