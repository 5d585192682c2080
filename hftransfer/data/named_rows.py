"""Rows of several inputs: one column for each in the frame of examples, None where an example lacks it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.data.values import without_point
from hftransfer.modalities import MODALITIES, kind_of
from hftransfer.modalities.inspection import Inspection, digest

Kinds = Mapping[str, str]  # name of an input -> a modality, "number" or "category"
NOTHING = Inspection("")


def column_of(name: str) -> str:
    """Return the column of the frame that holds an input."""
    return f"input:{name}"


def is_column(name: str) -> bool:
    """Return whether a column of the frame is that of one of several inputs."""
    return name.startswith(column_of(""))


def look_of(name: str) -> str:
    """Return the column that holds the inspections of an input while data are loaded."""
    return f"look:{name}"


def networks_of(kinds: Kinds) -> list[str]:
    """Return the inputs that a network reads."""
    return [name for name, kind in kinds.items() if kind in MODALITIES]


def category(value: Any) -> str:
    """Return the name that a value of a category stands for: 3.0 is the 3 of a column where nothing is missing."""
    text = str(value).strip()
    return without_point(text) if isinstance(value, float) else text


def inspections_of(frame: pd.DataFrame, kinds: Kinds) -> dict[str, list[Inspection]]:
    """Return what one look at each input shows, for each row: nothing where it is missing."""
    return {name: _inspected(frame[column_of(name)], kind) for name, kind in kinds.items()}


def _inspected(values: pd.Series, kind: str) -> list[Inspection]:
    present, found = values.notna().to_numpy(), [NOTHING] * len(values)
    given = pd.DataFrame({"input": values[present].tolist()}, dtype=object)
    if kind in MODALITIES:
        inspected = kind_of(kind).inspect(given)
    else:
        inspected = [Inspection(digest(str(value))) for value in given["input"]]
    for row, inspection in zip(np.flatnonzero(present), inspected, strict=True):
        found[row] = inspection
    return found


def together(inspections: Mapping[str, Sequence[Inspection]]) -> list[str]:
    """Return the content hash of each row from those of its inputs."""
    return [digest(*(each.digest for each in row)) for row in zip(*inspections.values(), strict=True)]


def faults(inspections: Mapping[str, Sequence[Inspection]]) -> list[str | None]:
    """Return why each row cannot be used: an input that cannot be read, or no input at all."""
    found = []
    for row in zip(*inspections.values(), strict=True):
        wrong = (f"{name}: {each.fault}" for name, each in zip(inspections, row, strict=True) if each.fault)
        found.append(next(wrong, "all inputs are missing" if all(each == NOTHING for each in row) else None))
    return found


def digests_of(frame: pd.DataFrame, kinds: Kinds) -> list[str]:
    return together(inspections_of(frame, kinds))


def faults_of(frame: pd.DataFrame, kinds: Kinds) -> pd.Series:
    return pd.Series(faults(inspections_of(frame, kinds)), index=frame.index, dtype=object)


def recorded(value: Any) -> str | None:
    """Return one input as a run records it: as text, None for what is missing or was given as bytes."""
    return None if value is None or isinstance(value, bytes) else str(value)


def missing_of(frame: pd.DataFrame, kinds: Kinds) -> dict[str, dict[str, int]]:
    """Return how many examples of each split lack each input; only what is lacking somewhere."""
    found = {}
    for name in kinds:
        counts = frame["split"][frame[column_of(name)].isna()].value_counts()
        if len(counts):
            found[name] = {str(split): int(count) for split, count in counts.items()}
    return found
