"""Logits of rows, and the table they become."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from hftransfer.tasks import Task


@dataclass(frozen=True)
class Predictions:
    """Logits (N, C) of the rows of the data frame at `positions`, in the user's units, after calibration.

    `out_of_fold` marks rows that the head was fitted on: their logits come from folds that did not see them.
    """

    positions: np.ndarray
    logits: np.ndarray
    out_of_fold: np.ndarray
    temperature: float = 1.0

    def of_split(self, frame: pd.DataFrame, split: str) -> "Predictions":
        chosen = (frame["split"].to_numpy()[self.positions] == split).nonzero()[0]
        return Predictions(self.positions[chosen], self.logits[chosen], self.out_of_fold[chosen], self.temperature)


def prediction_table(ids: Sequence[str], task: Task, logits: np.ndarray) -> pd.DataFrame:
    """id, prediction, one `score:` and one `logit:` column per name."""
    scores = task.probabilities(logits)
    columns = {"id": list(ids), "prediction": [task.decode(p) for p in task.decide(scores)]}
    columns |= {f"score:{name}": scores[:, column] for column, name in enumerate(task.names)}
    columns |= {f"logit:{name}": logits[:, column] for column, name in enumerate(task.names)}
    return pd.DataFrame(columns)
