"""Logits of rows, and the table they become."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.tasks import Task
from hftransfer.tasks.tokens import ragged


@dataclass(frozen=True)
class Predictions:
    """Logits (N, C) of the rows of the data frame at `positions`, in the user's units, after calibration.

    Of rows with several units they are an object array (N,) with an array (W, C) for each row.

    `out_of_fold` marks rows that the head was fitted on: their logits come from folds that did not see them.
    """

    positions: np.ndarray
    logits: np.ndarray
    out_of_fold: np.ndarray
    temperature: float = 1.0

    def of_split(self, frame: pd.DataFrame, split: str) -> "Predictions":
        chosen = (frame["split"].to_numpy()[self.positions] == split).nonzero()[0]
        return Predictions(self.positions[chosen], self.logits[chosen], self.out_of_fold[chosen], self.temperature)


Units = tuple[Sequence[str], Sequence[np.ndarray | None]]  # the texts of the rows, and the places of their units
NO_UNITS: Units = ((), ())  # of rows that are units themselves


def prediction_table(ids: Sequence[str], task: Task, logits: np.ndarray, units: Units = NO_UNITS) -> pd.DataFrame:
    """id, prediction, one `score:` and one `logit:` column per output.

    Of rows with several units these hold a list for each row, and `starts` and `ends` have the places of the units.
    """
    scores = task.probabilities(logits)
    if task.by_pixel:
        return _mask_table(ids, task, scores)
    columns = {"id": list(ids), "prediction": task.answers(scores, *units)}
    if task.by_word:
        columns |= {name: [words[:, side].tolist() for words in units[1]] for side, name in enumerate(PLACES)}
    columns |= {f"score:{name}": _column(scores, number) for number, name in enumerate(task.output_names)}
    columns |= {f"logit:{name}": _column(logits, number) for number, name in enumerate(task.output_names)}
    return pd.DataFrame({name: _series(values) for name, values in columns.items()})


def _mask_table(ids: Sequence[str], task: Task, masks: np.ndarray) -> pd.DataFrame:
    """Return id, the names of the classes found, largest first, the share of each class, and the mask as it is kept."""
    areas = task.answers(masks, (), ())
    columns = {"id": list(ids), "prediction": pd.Series([list(each) for each in areas], dtype=object)}
    columns |= {f"area:{name}": [each.get(name, 0.0) for each in areas] for name in task.names}
    return pd.DataFrame(columns | {"mask": list(masks)})


PLACES = ("starts", "ends")


def _series(values: Any) -> Any:
    return (
        pd.Series(values, dtype=object)
        if isinstance(values, list) and values and isinstance(values[0], list)
        else values
    )


def _column(values: np.ndarray, number: int) -> Any:
    return [row[:, number].tolist() for row in values] if values.dtype == object else values[:, number]


def outputs_of(frame: pd.DataFrame, task: Task, what: str = "score") -> np.ndarray:
    """Return the scores, or logits, (N, C) in a table of predictions; of rows with several units (N,) of (W, C)."""
    if task.by_pixel:
        return ragged(frame["mask"].tolist())
    columns = [f"{what}:{name}" for name in task.output_names]
    if not task.by_word:
        return frame[columns].to_numpy(dtype=np.float64)
    rows = zip(*(frame[name] for name in columns), strict=True)
    return ragged([np.array([np.asarray(cell, np.float64) for cell in row]).T for row in rows])


def places_of(frame: pd.DataFrame) -> list[np.ndarray | None]:
    """Return the places (W, 2) of the units of each row of a table of predictions, None where it has none."""
    if not {*PLACES} <= set(frame.columns):
        return [None] * len(frame)
    sides = zip(*(frame[name] for name in PLACES), strict=True)
    return [np.array([np.asarray(side, np.int64) for side in both]).T for both in sides]
