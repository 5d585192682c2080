"""Cheap scores of features for labels, without folds. Pre-filters: they rank, their size means nothing by itself.

Features are (N, D) as the checkpoint gives them; targets as in `tasks`.
"""

import numpy as np

from hftransfer.tasks import Task


def logme(task: Task, features: np.ndarray, targets: np.ndarray) -> float:
    """Log of the maximum evidence a row (You et al. 2021, arXiv 2102.11005, eq. 2), the mean over outputs.

    Each output (a class against the rest, a label, a value) is a linear function of the features with a Gaussian prior;
    the precisions of prior and noise are those that make the observed targets likeliest.
    """
    features = np.asarray(features, dtype=np.float64)
    wanted = task.one_hot(targets)
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    found = [_evidence(left.T @ column, singular**2, column) for column in wanted.T if column.any()]
    return float(np.mean(found))


def _evidence(projected: np.ndarray, squares: np.ndarray, target: np.ndarray) -> float:
    """The largest log evidence of one `target` (N,), divided by N.

    `projected` is the target on the left singular vectors of the features, `squares` are their singular values squared.
    For a given ratio of the precisions the best noise has a closed form; the ratio itself is searched. The paper's fixed
    point finds the same where it converges, and divides by zero where features outnumber the rows.
    """
    from scipy.optimize import minimize_scalar

    rows, outside = len(target), max(float(target @ target - projected @ projected), 0.0)

    def negative(log_ratio: float) -> float:
        ratio = np.exp(log_ratio)
        residual = max(float((projected**2 * ratio / (squares + ratio)).sum()) + outside, 1e-300)
        return 0.5 * (rows * np.log(2 * np.pi * np.e * residual / rows) + np.log1p(squares / ratio).sum()) / rows

    grid = np.log(squares.mean()) + np.linspace(-20, 20, 41)
    best = grid[np.argmin([negative(place) for place in grid])]
    found = minimize_scalar(negative, bounds=(best - 1, best + 1), method="bounded", options={"xatol": 1e-8})
    return float(-min(found.fun, negative(best)))


def h_score(task: Task, features: np.ndarray, targets: np.ndarray) -> float | None:
    """The share of variance between classes, tr(cov(f)^-1 cov(E[f|y])) (Bao et al. 2019), with the shrunk covariance of
    Ledoit & Wolf and the between-class part shrunk likewise (Ibrahim et al. 2021, arXiv 2110.06893, definition 2).

    None where rows have no class of their own (several labels, numbers).
    """
    if not task.exclusive:
        return None
    from sklearn.covariance import ledoit_wolf

    centred = np.asarray(features, dtype=np.float64) - np.mean(features, axis=0)
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    counts = np.bincount(targets, minlength=task.head_size)
    sums = np.zeros((task.head_size, centred.shape[1]))
    np.add.at(sums, targets, centred)
    roots = sums[counts > 0] / np.sqrt(counts[counts > 0, None] * len(centred))  # roots.T @ roots = cov(E[f|y])
    return float((1 - shrinkage) * np.einsum("cd,dc->", roots, np.linalg.solve(covariance, roots.T)))
