"""Which inputs to label next: where the model is in doubt, and not the same doubt twice.

The most doubtful rows, ten times as many as are asked for, are put into as many clusters as are asked for, rows weighted
by their doubt; of each cluster the row nearest to its centre is taken (Zhdanov 2019, "Diverse mini-batch active learning",
arXiv 1901.05954). The row nearest to the centre stands for many; an odd one stands for itself alone. What else was tried,
and how it did, is in docs/labels.md.
"""

from dataclasses import dataclass

import numpy as np

from hftransfer.tasks import Task

PREFILTER = 10
MOST_ROWS = 20_000  # that are clustered: more cost minutes and change little


@dataclass(frozen=True)
class Choice:
    """`rows` (n,) of the pool, the most telling first, and for how many rows of its cluster each stands."""

    rows: np.ndarray
    stands_for: np.ndarray


def doubt(task: Task, probabilities: np.ndarray) -> np.ndarray:
    """(N,) from 0 to 1: how near the least likely of the expected answers is to the likeliest of the others.

    That is the margin between two classes (Scheffer et al. 2001), and for several labels the one after as many as are
    expected. Regression has no such thing: all rows are equal.
    """
    if not task.has_classes:
        return np.ones(len(probabilities))
    falling = -np.sort(-probabilities, axis=1)
    bounded = np.pad(falling, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))  # none may be expected, or all
    rows, count = np.arange(len(probabilities)), expected(probabilities)
    return 1 - (bounded[rows, count] - bounded[rows, count + 1])


def expected(probabilities: np.ndarray) -> np.ndarray:
    """(N,) how many answers a row is expected to have: one class, or the sum of its labels' probabilities."""
    return np.rint(probabilities.sum(1)).astype(int)


def choose(features: np.ndarray, doubts: np.ndarray, count: int, seed: int = 0) -> Choice:
    """`count` rows of features (N, D), or all of them, the most doubtful first, where there are no more."""
    kept = _most_doubtful(doubts, count, seed)
    if count >= len(kept):
        return Choice(kept, np.ones(len(kept), dtype=int))
    weights = np.maximum(doubts[kept], 1e-6)
    labels, distance = _clusters(directions(features)[kept], weights, count, seed)
    members = [rows for rows in (np.flatnonzero(labels == label) for label in range(count)) if len(rows)]
    members.sort(key=lambda rows: -weights[rows].sum())
    taken = np.array([rows[np.argmin(distance[rows])] for rows in members])
    others = np.setdiff1d(np.arange(len(kept)), taken)[: count - len(taken)]  # equal rows leave clusters empty
    sizes = [len(rows) for rows in members] + [1] * len(others)
    return Choice(kept[np.concatenate([taken, others])], np.array(sizes))


def _most_doubtful(doubts: np.ndarray, count: int, seed: int) -> np.ndarray:
    """Where to look, the most doubtful first. Equal doubts come in random order, and alone decide nothing."""
    limit = MOST_ROWS if np.ptp(doubts) == 0 else min(PREFILTER * count, MOST_ROWS)
    mixed = np.random.default_rng(seed).permutation(len(doubts))
    return mixed[np.argsort(-doubts[mixed], kind="stable")][:limit]


def directions(features: np.ndarray) -> np.ndarray:
    """Rows of length 1 seen from their middle, which pooled activations share (see `prediction.reliability.distance`)."""
    centred = np.asarray(features, dtype=np.float64) - np.mean(features, axis=0)
    return centred / np.maximum(np.linalg.norm(centred, axis=1, keepdims=True), 1e-12)


def _clusters(rows: np.ndarray, weights: np.ndarray, count: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cluster of each row, and its distance to the centre."""
    import warnings

    from sklearn.cluster import KMeans
    from sklearn.exceptions import ConvergenceWarning
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer different rows than clusters: see `choose`
        found = KMeans(count, n_init=1, random_state=seed).fit(rows, sample_weight=weights)
    return found.labels_, np.linalg.norm(rows - found.cluster_centers_[found.labels_], axis=1)
