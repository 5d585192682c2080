"""What comes out of the model: label type, size of the head, loss, probabilities and the decision.

Targets are arrays of one row per example: class indices (N,) for single-label, 0/1 floats (N, C) for multi-label,
floats (N, K) for regression. Everything that depends on which of the three it is stands in this file.
"""

from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from hftransfer.core.errors import UserError, did_you_mean

TaskType = Literal["single_label", "multi_label", "regression"]


@dataclass(frozen=True)
class Task:
    """A target type with the names of its outputs, in the order of the head's rows.

    `names` are class names, label names, or the names of the target columns. `mean` and `std` of the training targets
    are kept for regression: the network is trained on standardised targets and the scale is folded into its head.
    `weights`, where there are any, are what a row of each class (single-label) or a label that is on (multi-label) counts in
    the loss, against 1 otherwise.
    """

    type: TaskType
    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    @property
    def problem_type(self) -> str:
        """The name transformers has for it, stored in the model's config."""
        return "regression" if self.type == "regression" else f"{self.type}_classification"

    @property
    def head_size(self) -> int:
        return len(self.names)

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @property
    def selection_metric(self) -> str:
        """The validation metric that early stopping and the best checkpoint look at (see `higher_is_better`)."""
        return "rmse" if self.type == "regression" else "calibrated_log_loss"

    def with_scale(self, targets: np.ndarray, centred: bool = True) -> "Task":
        """The same task knowing mean and spread of the training `targets` (regression; unchanged otherwise).

        A head without bias cannot express a mean: `centred` False takes 0 for it.
        """
        if self.type != "regression":
            return self
        mean, std = targets.mean(0) * centred, targets.std(0)
        return replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, np.where(std > 0, std, 1.0))))

    def with_balance(self, targets: np.ndarray) -> "Task":
        """The same task with weights that make every class, or the two sides of each label, count alike in `targets`.

        Those of labels lie between 1 and 100. Regression has no classes: it stays as it is.
        """
        if self.type == "regression":
            return self
        single = self.type == "single_label"
        counts = np.bincount(targets, minlength=self.head_size) if single else targets.sum(0)
        counts = np.maximum(counts, 1)
        weights = len(targets) / (self.head_size * counts) if single else (len(targets) - counts) / counts
        return replace(self, weights=tuple(map(float, weights if single else np.clip(weights, 1, 100))))

    def importance(self, targets: np.ndarray) -> np.ndarray | float:
        """What the loss of each row, (N,), or of each of its labels, (N, C), is multiplied by."""
        if not self.weights:
            return 1.0
        weights = np.array(self.weights)
        return weights[targets] if self.type == "single_label" else 1 + targets * (weights - 1)

    def standardised(self, targets: np.ndarray) -> np.ndarray:
        """Targets as the loss sees them: zero mean and unit spread for regression, unchanged otherwise."""
        if self.type != "regression" or not self.std:
            return targets
        return ((targets - np.array(self.mean)) / np.array(self.std)).astype(np.float32)

    def in_units(self, logits: np.ndarray) -> np.ndarray:
        """Outputs of a network trained on `standardised` targets, in the user's units (regression; else unchanged)."""
        return logits * np.array(self.std) + np.array(self.mean) if self.std else logits

    def encode(self, label: Any) -> Any:
        """One example's target from its label: a name, a list of names, or a float or list of floats.

        Raises `UserError` for a name that is not in `names`.
        """
        if self.type == "regression":
            return [float(value) for value in (label if isinstance(label, list | tuple) else [label])]
        if self.type == "single_label":
            return self._index(label)
        row = [0.0] * len(self.names)
        for name in label:
            row[self._index(name)] = 1.0
        return row

    def encode_all(self, labels: list[Any]) -> np.ndarray:
        """All targets as one array: int64 (N,), float32 (N, C), or float64 (N, K) for regression.

        Single precision loses 64 at 1e9, the size of a timestamp or a turnover.
        """
        dtype = {"single_label": np.int64, "multi_label": np.float32, "regression": np.float64}[self.type]
        encoded = np.array([self.encode(label) for label in labels], dtype=dtype)
        return encoded if self.type == "single_label" else encoded.reshape(len(labels), self.head_size)

    def _index(self, name: str) -> int:
        try:
            return self.names.index(str(name))
        except ValueError:
            raise UserError(f"Unknown label {str(name)!r}.{did_you_mean(str(name), self.names)}") from None

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Scores to report, (N, C): softmax, element-wise sigmoid, or for regression the values themselves."""
        logits = np.asarray(logits, dtype=np.float64)
        if self.type == "single_label":
            shifted = np.exp(logits - logits.max(-1, keepdims=True))
            return shifted / shifted.sum(-1, keepdims=True)
        if self.type == "multi_label":
            return 0.5 * (1 + np.tanh(0.5 * logits))  # the sigmoid without overflow
        return logits

    def evidence(self, logits: Any, output: int) -> Any:
        """What speaks for one output, (N,) of (N, C) logits (numpy or torch): what an explanation explains.

        Of one class among several it is the lead over the mean of all, as adding a constant to all logits changes nothing.
        """
        chosen = logits[:, output]
        return chosen - logits.mean(1) if self.type == "single_label" else chosen

    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Predictions in the form of targets from `probabilities`: argmax, more than one half, or the values."""
        if self.type == "single_label":
            return scores.argmax(-1)
        return (scores > 0.5).astype(np.float32) if self.type == "multi_label" else scores

    def decides_otherwise(self, recorded: np.ndarray, found: np.ndarray, tie: float, share: float = 0.05) -> np.ndarray:
        """Return for each example (N,) whether two arrays of scores (N, C) decide differently, ties apart.

        `found` may hold NaN for scores that are not shown. Values of a regression differ when they are farther apart than
        `share` of their spread.
        """
        if self.type == "regression":
            return (np.abs(recorded - found) > share * np.maximum(recorded.std(0), 1e-6)).any(1)
        if self.type == "multi_label":
            shown = ~np.isnan(found)
            return (((recorded > 0.5) != (found > 0.5)) & (np.abs(recorded - 0.5) > tie / 2) & shown).any(1)
        top = np.sort(recorded, axis=1)
        return (recorded.argmax(1) != np.nanargmax(found, axis=1)) & (top[:, -1] - top[:, -2] > tie)

    def decode(self, prediction: Any) -> Any:
        """A prediction or target in the user's words: a name, a list of names, or a float or list of floats."""
        if self.type == "single_label":
            return self.names[int(prediction)]
        if self.type == "multi_label":
            return [name for name, on in zip(self.names, prediction, strict=True) if on > 0.5]
        values = [float(value) for value in prediction]
        return values[0] if len(values) == 1 else values
