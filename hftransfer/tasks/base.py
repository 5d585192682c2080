"""Define what every task answers to: targets, probabilities, decisions, and the words for its outputs.

Callers ask what a task can do (`has_classes`, `exclusive`), never what it is called.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from hftransfer.core.errors import UserError, did_you_mean


@dataclass(frozen=True)
class Task(ABC):
    """A kind of target with the names of its outputs, in the order of the head's rows.

    `names` are names of classes, of labels, or of target columns. `mean` and `std` of the training targets are kept for
    numbers: the network is trained on standardised targets and the scale is folded into its head. `weights`, where there
    are any, are the loss weights of each class (exclusive) or of a label that applies, against 1 otherwise.
    """

    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    type: ClassVar[str]  # the name in configurations and in run.json
    problem_type: ClassVar[str | None]  # the name in transformers, stored in the model's config; None where it has none
    architecture: ClassVar[str] = ""  # the end of the model's class that tells the task; "": its problem type does
    output: ClassVar[str]  # the noun for one output, and for several
    outputs: ClassVar[str]
    unit: ClassVar[str] = "example"  # the noun for what one prediction is of
    by_word: ClassVar[bool] = (
        False  # each word of an example has a class: one array of targets and scores for each example
    )
    by_pixel: ClassVar[bool] = False  # each pixel has a class: targets and scores of an example are one mask
    lacks: ClassVar[frozenset[str]] = frozenset()  # commands and settings that do not take this task
    has_classes: ClassVar[bool] = True  # outputs are classes with probabilities; otherwise numbers
    exclusive: ClassVar[bool] = False  # exactly one class applies to each example
    least_outputs: ClassVar[int] = 1  # below, there is nothing to learn
    selection_metric: ClassVar[str] = "calibrated_log_loss"  # of the validation part, for early stopping
    learning_metric: ClassVar[str]  # of learning curves: smooth in the number of examples
    macro_metric: ClassVar[str] = ""  # the mean over classes, and the metric of one class; "" for numbers
    class_metric: ClassVar[str] = ""
    class_columns: ClassVar[tuple[str, ...]] = ("precision", "recall", "f1")  # of tables; the last one rates a class

    @property
    @abstractmethod
    def headline(self) -> str:
        """The metric that decides between runs, and that report and card show first."""

    @property
    def by_part(self) -> bool:
        """Whether parts of an example have a class each, words or pixels; else it has one row of scores itself."""
        return self.by_word or self.by_pixel

    @property
    def several(self) -> bool:
        """Whether several classes, or none, may apply to one example."""
        return self.has_classes and not self.exclusive

    @property
    def head_size(self) -> int:
        return len(self.names)

    @property
    def output_names(self) -> tuple[str, ...]:
        """The names of the head's rows."""
        return tuple(self.id2label.values())

    @property
    def id2label(self) -> dict[int, str]:
        return dict(enumerate(self.names))

    @classmethod
    def of_outputs(cls, outputs: Sequence[str]) -> "Task":
        """Return the task of a model with these outputs. Raises `UserError` where they are not such as it makes."""
        return cls(tuple(outputs))

    @classmethod
    def require(cls, command: str) -> None:
        """Raise `UserError` where a command or setting does not take this task."""
        if command in cls.lacks:
            raise UserError(f"{command} does not take the task {cls.type} ({cls.outputs}) yet.")

    # --- units of prediction ------------------------------------------------------------------------------------------

    @property
    def of_unit(self) -> "Task":
        """The task of a single unit of prediction: this one, unless an example has several units."""
        return self

    def units(self, values: np.ndarray) -> np.ndarray:
        """Return targets, logits or scores with one row for each unit, from those with one for each example."""
        return values

    def collected(self, values: np.ndarray, labels: np.ndarray) -> np.ndarray:
        """Return logits or labels as the Trainer collects them in the form of this class, by the labels of all batches."""
        return values

    def answers(self, scores: np.ndarray, texts: Sequence[str], places: Sequence[np.ndarray | None]) -> list[Any]:
        """Return the decisions in the user's words; texts and `places` are those of the examples."""
        return [self.decode(decided) for decided in self.decide(scores)]

    # --- targets ------------------------------------------------------------------------------------------------------

    @abstractmethod
    def encode(self, label: Any) -> Any:
        """Return one example's target from its label; raise `UserError` for a name that is not in `names`."""

    @abstractmethod
    def encode_all(self, labels: list[Any]) -> np.ndarray:
        """Return all targets as one array with one row per example."""

    def targets(self, labels: list[Any], places: Sequence[np.ndarray | None]) -> np.ndarray:
        """Return what predictions are compared with; `places` are those of the units of each example, if it has several."""
        return self.encode_all(labels)

    @abstractmethod
    def decode(self, prediction: Any) -> Any:
        """Return a prediction or target in the user's words: a name, a list of names, a float or a list of floats."""

    def same_label(self, label: Any, other: Any) -> bool:
        """Return whether two labels of one example say the same."""
        return self.encode(label) == self.encode(other)

    @abstractmethod
    def label_names(self, label: Any) -> list[str]:
        """Return the names of classes in one label; none for numbers."""

    def describe(self, label: Any) -> str:
        """Return a label or prediction as one line of text."""
        return str(label)

    def row_noun(self, flat: bool) -> str:
        """Return what a file of predictions holds one of in each row; `flat` as `as_rows` has them."""
        return "predictions"

    def as_rows(self, table: Any) -> Any:
        """Return a table of predictions in the form of a flat file, where a cell holds one value."""
        return table

    def as_lists(self, decided: np.ndarray) -> list[Any]:
        """Return targets or decisions as the metrics of the evaluate library read them: one plain value for each example."""
        single = decided.ndim == 2 and decided.shape[1] == 1
        return (decided[:, 0] if single else decided).tolist()

    @abstractmethod
    def one_hot(self, targets: np.ndarray) -> np.ndarray:
        """Return as floats (N, C) which outputs apply to each example; of numbers, the targets themselves."""

    def counts(self, targets: np.ndarray) -> np.ndarray:
        """Return how many examples have each class (C,)."""
        return self.one_hot(targets).sum(0).astype(np.int64)

    @abstractmethod
    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return the stratum (N,) that folds and subsamples balance."""

    def classes_of(self, targets: np.ndarray) -> np.ndarray | None:
        """Return the only class of each example (N,), or None where an example may have several or none."""
        return targets if self.exclusive else None

    def with_scale(self, targets: np.ndarray, centred: bool = True) -> "Task":
        """Return the task with mean and spread of the training `targets`; unchanged where there are classes."""
        return self

    def standardised(self, targets: np.ndarray) -> np.ndarray:
        """Return targets as the loss sees them."""
        return targets

    def in_units(self, logits: np.ndarray) -> np.ndarray:
        """Return outputs of a network trained on `standardised` targets in the user's units."""
        return logits * np.array(self.std) + np.array(self.mean) if self.std else logits

    @property
    @abstractmethod
    def uninformed_loss(self) -> float:
        """The loss of a model that knows nothing: all classes alike, or the mean."""

    # --- loss ---------------------------------------------------------------------------------------------------------

    @abstractmethod
    def loss(self, logits: Any, labels: Any, smoothing: float) -> Any:
        """Return the loss of torch tensors before any mean, with the task's weights and label smoothing."""

    def with_balance(self, targets: np.ndarray) -> "Task":
        """Return the task with weights that make every class count alike in `targets`; unchanged for numbers."""
        return self

    def importance(self, targets: np.ndarray) -> np.ndarray | float:
        """Return what the loss of each example, (N,), or of each of its labels, (N, C), is multiplied by."""
        return 1.0

    # --- scores and decisions -----------------------------------------------------------------------------------------

    @abstractmethod
    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        """Return scores to report, (N, C): probabilities, or the values themselves."""

    @abstractmethod
    def decide(self, scores: np.ndarray) -> np.ndarray:
        """Return predictions in the form of targets from `probabilities`."""

    @abstractmethod
    def decides_otherwise(self, recorded: np.ndarray, found: np.ndarray, tie: float, share: float = 0.05) -> np.ndarray:
        """Return for each example (N,) whether two arrays of scores (N, C) decide differently, ties apart.

        `found` may hold NaN for scores that are not shown. Numbers differ when they are farther apart than `share` of
        their spread.
        """

    def faultless(self, targets: np.ndarray) -> np.ndarray:
        """Return scores, as `probabilities` has them, that decide for the targets."""
        return self.one_hot(targets)

    def commonest(self, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Return scores for the examples of the targets `asked` from the frequencies, or the mean, of `known` targets."""
        return np.repeat(self.one_hot(known).mean(0, dtype=np.float64)[None], len(asked), axis=0)

    def evidence(self, logits: Any, output: int) -> Any:
        """Return what speaks for one output, (N,) of (N, C) logits (numpy or torch): what an explanation explains."""
        return logits[:, output]

    def _index(self, name: str) -> int:
        try:
            return self.names.index(str(name))
        except ValueError:
            raise UserError(f"Unknown label {str(name)!r}.{did_you_mean(str(name), self.names)}") from None
