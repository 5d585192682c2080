"""Is this one of the classes at all? Scores of out-of-distribution score, and where to draw the line.

Higher means stranger. The distance to the training rows in the feature space is the stronger of the two; the energy
needs nothing but the logits.
"""

import logging

import numpy as np

from hftransfer.evaluation.intervals import Measured, measure_auroc, wilson

logger = logging.getLogger(__name__)

_CHUNK = 4_000_000  # similarities held at one time


def knn_distance(
    features: np.ndarray, training: np.ndarray, k: int = 10, groups: np.ndarray | None = None
) -> np.ndarray:
    """Distance (N,) to the k-th nearest training row on the unit sphere.

    Sun et al. 2022, "Out-of-distribution detection with deep nearest neighbors", sec. 3.

    Args:
        features: (N, D).
        training: (M, D) of training rows; with fewer than k the farthest one counts.
        groups: (N,) when `features` are the training rows themselves: each is measured against those of other groups,
            with fewer than k of them the farthest one counts; NaN where there is no other group.
    """
    rows, known = _unit(features), _unit(training)
    step = max(1, _CHUNK // len(known))
    found = []
    for start in range(0, len(rows), step):
        similarity = rows[start : start + step] @ known.T
        own = np.zeros(similarity.shape, bool) if groups is None else groups[start : start + step, None] == groups
        found.append(_kth_largest(np.where(own, -np.inf, similarity), np.minimum(k, (~own).sum(1))))
    return np.sqrt(np.maximum(2 - 2 * np.concatenate(found), 0))


def _kth_largest(values: np.ndarray, k: np.ndarray) -> np.ndarray:
    """Return the k-th largest of each row (N,), with a k (N,) for each; NaN where it is 0."""
    ordered = -np.sort(-values, axis=1)
    return np.where(k > 0, ordered[np.arange(len(values)), np.maximum(k, 1) - 1], np.nan)


def _unit(rows: np.ndarray) -> np.ndarray:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return rows / np.where(length > 0, length, 1)


def energy(logits: np.ndarray, temperature: float = 1.0) -> np.ndarray:
    """-T logsumexp(logits / T), (N,) from (N, C) (Liu et al. 2020, "Energy-based out-of-distribution detection")."""
    scaled = np.asarray(logits, dtype=np.float64) / temperature
    top = scaled.max(1)
    return -temperature * (top + np.log(np.exp(scaled - top[:, None]).sum(1)))


def enough_for(keep: float) -> int:
    """How many held-out examples it takes to promise a share `keep`: the fewest n with ceil((n + 1) keep) <= n."""
    return int(np.ceil(keep / (1 - keep) - 1e-9))


def unknown_threshold(held_out: np.ndarray, keep: float = 0.95) -> float:
    """Return the out-of-distribution score above which the prediction is "none of these".

    A share `keep` of known rows lies below it.

    Args:
        held_out: out-of-distribution scores (N,) of known rows outside of the training rows, which are their own neighbours.
            NaN counts as not measured. Infinity is returned where none is.
    """
    held_out = held_out[~np.isnan(held_out)]
    if len(held_out) < enough_for(keep):
        logger.warning(
            "Unknown inputs: %d held-out examples cannot promise that %.0f %% of the known ones are answered (%d can); "
            "the threshold is the largest score among them.", len(held_out), 100 * keep, enough_for(keep),
        )  # fmt: skip
    if not len(held_out):
        return float("inf")
    rank = min(len(held_out), int(np.ceil((len(held_out) + 1) * keep - 1e-9)))
    return float(np.sort(held_out)[rank - 1])


def separation(known: np.ndarray, unknown: np.ndarray) -> dict[str, Measured]:
    """`auroc` of unknown against known, and `fpr_at_95`.

    The latter is the share of unknown rows that are answered when 95 % of the known ones are.

    Args:
        known, unknown: out-of-distribution score (N,) and (M,) of rows that no threshold was taken from.
    """
    area = measure_auroc(np.repeat([False, True], [len(known), len(unknown)]), np.concatenate([known, unknown]))
    answered = unknown <= np.quantile(known, 0.95)
    fpr = Measured(float(answered.mean()), *wilson(answered.sum(), len(unknown)), len(unknown))
    return {"auroc": area, "fpr_at_95": fpr}
