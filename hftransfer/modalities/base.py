"""Define what every modality answers to."""

from collections.abc import Sequence
from typing import Any, Protocol

import pandas as pd
import torch


class Modality(Protocol):
    """Turns rows of the data frame (`input`, and `input_pair` for pairs) into the tensors a model takes."""

    name: str
    pipeline_task: str  # the task name of `transformers.pipeline`
    inspects_cheaply: bool  # whether faults of inputs are found without decoding them
    processor_type: str  # the class of transformers that loads the saved processor
    truncated_share: float  # of the rows last encoded, how many lost their end
    augmentation: Any  # the `AugmentationConfig` of training batches; None where examples are never changed

    def encode(self, frame: pd.DataFrame) -> list[Any]:
        """One light item a row: the image's source, or the token ids. What `collate` takes."""
        ...

    def lengths(self, items: Sequence[Any]) -> list[int]:
        """The cost of each item in tokens (1 where all items cost the same): batches are made of like lengths."""
        ...

    def collate(self, items: Sequence[Any], training: bool = False) -> dict[str, torch.Tensor]:
        """The model's inputs for a batch; `training` applies the augmentation, otherwise the transform that is saved."""
        ...

    def plain_batch(self, processor: Any, frame: pd.DataFrame) -> dict[str, torch.Tensor]:
        """Return raw inputs as an outside user's `processor` reads them, in one batch."""
        ...

    def recorded(self, value: Any) -> str:
        """Return an input as a run records it, whatever the working directory: a text, a path, "" where there is none."""
        ...

    def mix(self, batch: dict[str, torch.Tensor], labels: torch.Tensor, classes: int) -> torch.Tensor:
        """Mix examples of a training batch in place of hard labels where that is asked for; returns the labels."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that decides the tensors `collate` makes for evaluation: part of the feature store's key."""
        ...

    def skeleton(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        """A batch without what only the stem reads: enough to run a model from stored activations."""
        ...
