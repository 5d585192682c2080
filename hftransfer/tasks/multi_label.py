"""Any number of labels applies to each example. Targets are 0 or 1, float32 (N, C)."""

import math
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from hftransfer.tasks.base import Task


@dataclass(frozen=True)
class MultiLabel(Task):
    type = "multi_label"
    problem_type = "multi_label_classification"
    output, outputs = "label", "labels"
    headline = "micro_f1"
    learning_metric = macro_metric = "mean_average_precision"
    class_metric = "f1"
    uninformed_loss = math.log(2)

    def encode(self, label: Any) -> list[float]:
        row = [0.0] * self.head_size
        for name in label:
            row[self._index(name)] = 1.0
        return row

    def encode_all(self, labels: list[Any]) -> np.ndarray:
        return np.array([self.encode(label) for label in labels], np.float32).reshape(len(labels), self.head_size)

    def decode(self, prediction: Any) -> list[str]:
        return [name for name, on in zip(self.names, prediction, strict=True) if on > 0.5]

    def label_names(self, label: Any) -> list[str]:
        return label

    def one_hot(self, targets: np.ndarray) -> np.ndarray:
        return np.asarray(targets, dtype=np.float64)

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return the rarest label of each example."""
        return np.where(targets > 0, -targets.sum(0), -np.inf).argmax(1)

    def loss(self, logits: Any, labels: Any, smoothing: float) -> Any:
        from torch import tensor
        from torch.nn.functional import binary_cross_entropy_with_logits

        weights = tensor(self.weights, device=logits.device) if self.weights else None
        smooth = labels * (1 - smoothing) + 0.5 * smoothing
        return binary_cross_entropy_with_logits(logits, smooth, pos_weight=weights, reduction="none")

    def with_balance(self, targets: np.ndarray) -> Task:
        """Return the task with weights between 1 and 100 that make both sides of each label count alike."""
        counts = np.maximum(targets.sum(0), 1)
        return replace(self, weights=tuple(map(float, np.clip((len(targets) - counts) / counts, 1, 100))))

    def importance(self, targets: np.ndarray) -> np.ndarray | float:
        return 1 + targets * (np.array(self.weights) - 1) if self.weights else 1.0

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        from scipy.special import expit  # a tenth of a second that no `--help` pays

        return expit(np.asarray(logits, dtype=np.float64))

    def decide(self, scores: np.ndarray) -> np.ndarray:
        return (scores > 0.5).astype(np.float32)

    def decides_otherwise(self, recorded: np.ndarray, found: np.ndarray, tie: float, share: float = 0.05) -> np.ndarray:
        shown = ~np.isnan(found)
        return (((recorded > 0.5) != (found > 0.5)) & (np.abs(recorded - 0.5) > tie / 2) & shown).any(1)
