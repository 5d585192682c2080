"""What no pretrained network is needed for: the commonest answer, and a linear model on the input as it is.

A probe that does not beat them has found nothing in its features.
"""

from typing import Any, Protocol

import numpy as np
import pandas as pd

from hftransfer.probe.solver import make_folds, solve_head
from hftransfer.tasks import Task


class Fitted(Protocol):
    """Scores (n, C) of other rows."""

    def __call__(self, rows: np.ndarray) -> np.ndarray: ...


def majority(task: Task, targets: np.ndarray, train: np.ndarray) -> Fitted:
    """Return the class frequencies, the label frequencies, or the mean of the training rows, whatever the input."""
    return lambda rows: task.commonest(targets[train], targets[rows])


def raw_text(task: Task, frame: pd.DataFrame, targets: np.ndarray, train: np.ndarray) -> Fitted:
    """TF-IDF of words and of word pairs in a linear model; the two texts of a pair have columns of their own."""
    from scipy.sparse import hstack
    from sklearn.feature_extraction.text import TfidfVectorizer

    columns = [name for name in ("input", "input_pair") if name in frame]
    texts = {name: frame[name].to_numpy() for name in columns}
    counters = {
        name: TfidfVectorizer(ngram_range=(1, 2), sublinear_tf=True, token_pattern=r"\w+|[^\w\s]") for name in columns
    }
    fitted = hstack([counters[name].fit_transform(texts[name][train]) for name in columns]).tocsr()
    answer = _linear(task, fitted, targets[train])
    return lambda rows: answer(hstack([counters[name].transform(texts[name][rows]) for name in columns]).tocsr())


def _linear(task: Task, features: Any, targets: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression, Ridge

    if not task.has_classes:
        ridge = Ridge(alpha=1.0).fit(features, targets)
        return lambda rows: ridge.predict(rows).reshape(-1, task.head_size)
    if task.exclusive:
        model = LogisticRegression(C=10.0, max_iter=200).fit(features, targets)
        return lambda rows: _spread(model.predict_proba(rows), model.classes_, task.head_size)
    predictions = [_one_label(features, column) for column in targets.T]
    return lambda rows: np.stack([answer(rows) for answer in predictions], axis=1)


def _one_label(features: Any, column: np.ndarray) -> Any:
    from sklearn.linear_model import LogisticRegression

    if column.min() == column.max():  # a label that these rows have always or never
        return lambda rows: np.full(rows.shape[0], float(column[0]))
    model = LogisticRegression(C=10.0, max_iter=200).fit(features, column)
    return lambda rows: model.predict_proba(rows)[:, 1]


def _spread(scores: np.ndarray, classes: np.ndarray, count: int) -> np.ndarray:
    """Columns for all classes, also for those that the training rows lacked."""
    wide = np.zeros((len(scores), count))
    wide[:, classes] = scores
    return wide


def raw_numbers(
    task: Task, features: np.ndarray, targets: np.ndarray, train: np.ndarray, groups: np.ndarray | None, seed: int
) -> Fitted:
    """Fit the linear probe on `ModalityKind.raw_features` (N, D); its penalty is chosen on whole `groups` (N,)."""
    folds = make_folds(task, targets[train], None if groups is None else groups[train], 3, seed)
    head = solve_head(features[train], task.standardised(targets[train]), task, folds)
    return lambda rows: task.probabilities(task.in_units(head.logits(features[rows])))
