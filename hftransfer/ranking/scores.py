"""Cheap scores of features for labels, without folds. Pre-filters: they rank, their size means nothing by itself.

Features are (N, D) as the checkpoint gives them; targets as in `tasks`.
"""

import numpy as np

from hftransfer.tasks import Task

_ROUNDS, _TOLERANCE = 100, 1e-8


def logme(task: Task, features: np.ndarray, targets: np.ndarray) -> float:
    """Log of the maximum evidence a row (You et al. 2021, arXiv 2102.11005, algorithm 1), the mean over outputs.

    Each output (a class against the rest, a label, a value) is a linear function of the features with a Gaussian prior;
    precision of prior and noise are those that make the observed targets likeliest.
    """
    features = np.asarray(features, dtype=np.float64)
    wanted = np.eye(task.head_size)[targets] if task.type == "single_label" else np.asarray(targets, np.float64)
    left, singular, _ = np.linalg.svd(features, full_matrices=False)
    return float(np.mean([_evidence(left.T @ column, singular**2, column, features.shape[1]) for column in wanted.T]))


def _evidence(projected: np.ndarray, squares: np.ndarray, target: np.ndarray, width: int) -> float:
    """The largest log evidence of one `target` (N,), divided by N.

    `projected` is the target on the left singular vectors of the features, `squares` are their singular values squared.
    """
    rows, outside = len(target), float(target @ target - projected @ projected)
    prior, noise = 1.0, 1.0  # precisions: alpha and beta of the paper
    for _ in range(_ROUNDS):
        ratio = prior / noise
        effective = float((squares / (squares + ratio)).sum())
        length = float((squares * projected**2 / (squares + ratio) ** 2).sum())  # |m|^2
        residual = float((projected**2 * (ratio / (squares + ratio)) ** 2).sum()) + max(outside, 0.0)
        prior, noise = effective / max(length, 1e-300), (rows - effective) / max(residual, 1e-300)
        if abs(prior / noise - ratio) <= _TOLERANCE * ratio:
            break
    ratio = prior / noise
    length = float((squares * projected**2 / (squares + ratio) ** 2).sum())
    residual = float((projected**2 * (ratio / (squares + ratio)) ** 2).sum()) + max(outside, 0.0)
    logdet = float(np.log(prior + noise * squares).sum()) + (width - len(squares)) * np.log(prior)
    evidence = width * np.log(prior) + rows * np.log(noise / (2 * np.pi)) - logdet - noise * residual - prior * length
    return evidence / (2 * rows)


def h_score(task: Task, features: np.ndarray, targets: np.ndarray) -> float | None:
    """The share of variance between classes, tr(cov(f)^-1 cov(E[f|y])) (Bao et al. 2019), with the shrunk covariance of
    Ledoit & Wolf and the between-class part shrunk likewise (Ibrahim et al. 2021, arXiv 2110.06893, definition 2).

    None where rows have no class of their own (several labels, numbers).
    """
    if task.type != "single_label":
        return None
    from sklearn.covariance import ledoit_wolf

    centred = np.asarray(features, dtype=np.float64) - np.mean(features, axis=0)
    covariance, shrinkage = ledoit_wolf(centred, assume_centered=True)
    counts = np.bincount(targets, minlength=task.head_size)
    sums = np.zeros((task.head_size, centred.shape[1]))
    np.add.at(sums, targets, centred)
    roots = sums[counts > 0] / np.sqrt(counts[counts > 0, None] * len(centred))  # roots.T @ roots = cov(E[f|y])
    return float((1 - shrinkage) * np.einsum("cd,dc->", roots, np.linalg.solve(covariance, roots.T)))
