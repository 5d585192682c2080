"""One of several classes applies to each example. Targets are class indices, int64 (N,)."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hftransfer.tasks.base import Task


@dataclass(frozen=True)
class SingleLabel(Task):
    type = "single_label"
    problem_type = "single_label_classification"
    output, outputs = "class", "classes"
    exclusive = True
    least_outputs = 2
    headline = learning_metric = "accuracy"
    macro_metric, class_metric = "balanced_accuracy", "recall"

    @property
    def uninformed_loss(self) -> float:
        return math.log(max(2, self.head_size))

    def encode(self, label: Any) -> int:
        return self._index(label)

    def encode_all(self, labels: list[Any]) -> np.ndarray:
        return np.array([self.encode(label) for label in labels], dtype=np.int64)

    def decode(self, prediction: Any) -> str:
        return self.names[int(prediction)]

    def label_names(self, label: Any) -> list[str]:
        return [label]

    def one_hot(self, targets: np.ndarray) -> np.ndarray:
        return np.eye(self.head_size)[targets]

    def counts(self, targets: np.ndarray) -> np.ndarray:
        return np.bincount(targets, minlength=self.head_size)

    def strata(self, targets: np.ndarray) -> np.ndarray:
        return targets

    def loss(self, logits: Any, labels: Any, smoothing: float) -> Any:
        from torch import tensor
        from torch.nn.functional import cross_entropy

        weights = tensor(self.weights, device=logits.device) if self.weights else None
        return cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="none")

    def with_balance(self, targets: np.ndarray) -> Task:
        counts = np.maximum(self.counts(targets), 1)
        return replace(self, weights=tuple(map(float, len(targets) / (self.head_size * counts))))

    def importance(self, targets: np.ndarray) -> np.ndarray | float:
        return np.array(self.weights)[targets] if self.weights else 1.0

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        from scipy.special import softmax  # a tenth of a second that no `--help` pays

        return softmax(np.asarray(logits, dtype=np.float64), axis=-1)

    def decide(self, scores: np.ndarray) -> np.ndarray:
        return scores.argmax(-1)

    def decides_otherwise(self, recorded: np.ndarray, found: np.ndarray, tie: float, share: float = 0.05) -> np.ndarray:
        top = np.sort(recorded, axis=1)
        return (recorded.argmax(1) != np.nanargmax(found, axis=1)) & (top[:, -1] - top[:, -2] > tie)

    def evidence(self, logits: Any, output: int) -> Any:
        """Return the lead over the mean of all classes, as adding a constant to all logits changes nothing."""
        return logits[:, output] - logits.mean(1)
