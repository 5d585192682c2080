"""From answers to a choice: scores, paired differences, and the simplest of those that the rows cannot separate."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
import pandas as pd
from scipy import stats

from hftransfer.evaluation.comparison import compare_parts, value_of
from hftransfer.evaluation.intervals import Measured, measure
from hftransfer.evaluation.kinds import higher_is_better
from hftransfer.evaluation.resampling import corrected_t_interval
from hftransfer.runs.reader import Part
from hftransfer.tasks import Task

Preference = Literal["simplicity", "accuracy"]


@dataclass(frozen=True, eq=False)
class HeldOutPredictions:
    """What one candidate said about held-out rows: their numbers (n,) and its scores (n, C) as `Task.probabilities` has them.

    `seconds` of one fit, `total_seconds` of all that was done for it; `changes` are what a configuration needs to become
    this candidate, None for a baseline that cannot be deployed.
    """

    name: str
    rows: np.ndarray
    scores: np.ndarray
    folds: int = 1
    seconds: float = 0.0
    total_seconds: float = 0.0
    trainable_share: float = 0.0
    row_milliseconds: float = 0.0
    changes: dict[str, Any] | None = None
    notes: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Difference:
    """How much better one candidate is than another on the `rows` that both have answered: above 0 is better."""

    value: float
    low: float
    high: float
    rows: int

    @property
    def is_better(self) -> bool:
        return self.low > 0

    @property
    def is_worse(self) -> bool:
        return self.high < 0

    def corrected(self, candidates: int, tested_per_trained: float) -> "Difference":
        """Return the gain of the best of `candidates`, shrunk, with an interval for all of them.

        The interval is Bonferroni's, which is Holm's for the largest gain. Its variance grows by 1 + n_test / n_train for
        other training sets (Nadeau & Bengio 2003, sec. 4). The value is shrunk because the best was partly lucky
        (positive part of James & Stein 1961, towards 0; Efron 2011, "Tweedie's formula and selection bias").
        """
        middle, error = (self.low + self.high) / 2, (self.high - self.low) / 2 / stats.norm.ppf(0.975)
        error *= np.sqrt(1 + tested_per_trained)
        kept = max(0.0, 1 - (error / self.value) ** 2) if self.value else 0.0
        width = float(error * stats.norm.ppf(1 - 0.025 / candidates))
        return Difference(self.value * kept, middle - width, middle + width, self.rows)


@dataclass(frozen=True)
class Evaluator:
    """Knows the truth. `targets` and `groups` follow all rows of the data; answers name theirs by number.

    Values and differences are kept: the search asks for the same ones at every step.
    """

    task: Task
    targets: np.ndarray
    groups: Sequence[str | None] | None = None
    resamples: int = 1000
    _known: dict[tuple, Any] = field(default_factory=dict, repr=False)

    @property
    def metric(self) -> str:
        return self.task.headline

    def score(self, predictions: HeldOutPredictions) -> Measured:
        """Return the metric that decides, with its 95 % interval."""
        groups = None if self.groups is None else [self.groups[row] for row in predictions.rows]
        targets = self.targets[predictions.rows]
        return measure(self.task, targets, predictions.scores, groups, resamples=self.resamples)[self.metric]

    def value(self, predictions: HeldOutPredictions, rows: np.ndarray | None = None) -> float:
        """Return the metric alone, on some of the rows that were answered."""
        rows = predictions.rows if rows is None else rows
        asked = predictions, rows.tobytes()
        if asked not in self._known:
            self._known[asked] = value_of(self.task, self._part(predictions, rows), self.metric)
        return self._known[asked]

    def difference(self, new: HeldOutPredictions, old: HeldOutPredictions) -> Difference:
        """Paired, on the rows that both have answered (McNemar's table, or the paired bootstrap).

        The interval is that of these rows under these fits; how much another training set would move it is not in it.
        """
        if (new, old) not in self._known:
            self._known[new, old] = self._difference(new, old)
        return self._known[new, old]

    def _difference(self, new: HeldOutPredictions, old: HeldOutPredictions) -> Difference:
        rows = np.intersect1d(new.rows, old.rows)
        parts = [self._part(old, rows), self._part(new, rows)]
        (pair,) = compare_parts(self.task, parts, [old.name, new.name], self.metric, self.resamples)
        if higher_is_better(self.metric):
            return Difference(pair.difference, pair.low, pair.high, len(rows))
        return Difference(-pair.difference, -pair.high, -pair.low, len(rows))

    def by_folds(
        self, new: HeldOutPredictions, old: HeldOutPredictions, folds: Sequence[np.ndarray], trained_on: int
    ) -> Difference | None:
        """Return the mean of the differences in each fold's held-out `rows`, with the corrected resampled t interval.

        Every fold was trained on other rows, so it holds what `difference` does not (Nadeau & Bengio 2003, sec. 4). None
        for fewer than three folds. `trained_on` are the training rows of one fold.
        """
        if len(folds) < 3:
            return None
        found = corrected_t_interval([self.gain(new, old, rows) for rows in folds], trained_on, len(folds[0]))
        return Difference(found.value, found.low, found.high, sum(map(len, folds)))

    def _part(self, predictions: HeldOutPredictions, rows: np.ndarray) -> Part:
        place = {row: number for number, row in enumerate(predictions.rows.tolist())}
        groups = [None] * len(rows) if self.groups is None else [self.groups[row] for row in rows]
        frame = pd.DataFrame({"id": [str(row) for row in rows], "group": pd.Series(groups, dtype=object)})
        return Part(frame, self.targets[rows], predictions.scores[[place[row] for row in rows.tolist()]])

    def best(self, candidates: Sequence[HeldOutPredictions]) -> HeldOutPredictions:
        """Return the highest estimate: each candidate seen from the first, on the rows that it shares with it."""
        return max(candidates, key=lambda candidate: self.gain(candidate, candidates[0]))

    def gain(self, new: HeldOutPredictions, old: HeldOutPredictions, rows: np.ndarray | None = None) -> float:
        """Return the difference without its interval, on the rows that both have answered or on some of them."""
        rows = np.intersect1d(new.rows, old.rows) if rows is None else rows
        change = self.value(new, rows) - self.value(old, rows)
        return change if higher_is_better(self.metric) else -change

    def simplest(self, candidates: Sequence[HeldOutPredictions]) -> HeldOutPredictions:
        """Return the simplest candidate that cannot be told from the best; `candidates` from simple to expensive."""
        best = self.best(candidates)
        return next(
            candidate for candidate in candidates if candidate is best or not self.difference(best, candidate).is_better
        )

    def could_be_beaten(self, predictions: HeldOutPredictions, prefer: Preference = "simplicity") -> bool:
        """Whether something else could be chosen: a faultless candidate would be separated, or for accuracy just be better."""
        if not self.task.has_classes:
            return True
        targets = self.targets[predictions.rows]
        faultless = self.task.faultless(targets)
        gain = self.difference(HeldOutPredictions("faultless", predictions.rows, faultless), predictions)
        return gain.is_better if prefer == "simplicity" else gain.value > 0
