"""One or several numbers belong to each example. Targets are float64 (N, K)."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hftransfer.tasks.base import Task

# Of the size of predictions: where they differ by less, a share of their spread is no more than rounding (6e-8 of the size).
LEAST_SPREAD = 1e-4


@dataclass(frozen=True)
class Regression(Task):
    type = "regression"
    problem_type = "regression"
    output, outputs = "target", "targets"
    has_classes = False
    selection_metric = learning_metric = "rmse"
    uninformed_loss = 1.0  # of standardised targets

    @property
    def headline(self) -> str:
        """One without a unit where several targets have units of their own."""
        return "rmse" if self.head_size == 1 else "r2"

    def encode(self, label: Any) -> list[float]:
        return [float(value) for value in (label if isinstance(label, list | tuple) else [label])]

    def encode_all(self, labels: list[Any]) -> np.ndarray:
        """Return float64 (N, K): single precision loses 64 at 1e9, the size of a timestamp or a turnover."""
        return np.array([self.encode(label) for label in labels], np.float64).reshape(len(labels), self.head_size)

    def decode(self, prediction: Any) -> float | list[float]:
        values = [float(value) for value in prediction]
        return values[0] if len(values) == 1 else values

    def label_names(self, label: Any) -> list[str]:
        return []

    def one_hot(self, targets: np.ndarray) -> np.ndarray:
        return np.asarray(targets)

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return the quartile of the first target."""
        return np.searchsorted(np.quantile(targets[:, 0], [0.25, 0.5, 0.75]), targets[:, 0])

    def with_scale(self, targets: np.ndarray, centred: bool = True) -> Task:
        """Return the task with mean and spread of the targets; a head without bias expresses no mean (`centred` False)."""
        mean, std = targets.mean(0) * centred, targets.std(0)
        return replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, np.where(std > 0, std, 1.0))))

    def standardised(self, targets: np.ndarray) -> np.ndarray:
        """Return targets of zero mean and unit spread, float32."""
        return ((targets - np.array(self.mean)) / np.array(self.std)).astype(np.float32) if self.std else targets

    def loss(self, logits: Any, labels: Any, smoothing: float) -> Any:
        from torch.nn.functional import mse_loss

        return mse_loss(logits, labels, reduction="none")

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return np.asarray(logits, dtype=np.float64)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def decides_otherwise(self, recorded: np.ndarray, found: np.ndarray, tie: float, share: float = 0.05) -> np.ndarray:
        least = np.maximum(LEAST_SPREAD * np.abs(recorded).max(0, initial=0), 1e-6)
        return (np.abs(recorded - found) > share * np.maximum(recorded.std(0), least)).any(1)
