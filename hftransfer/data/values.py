"""Single values of a table: missing or not, a number or not."""

import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd


@dataclass(frozen=True)
class Fault:
    """Stand in place of a label that cannot be used, and say why."""

    reason: str


LARGEST = 1e100  # of a number: the sum of squares of many stays finite


def is_missing(value: Any) -> bool:
    """None, a NaN of any kind, or a text of blanks."""
    if isinstance(value, str):
        return not value.strip()
    return value is None or (not isinstance(value, list | tuple | dict | bytes | np.ndarray) and bool(pd.isna(value)))


def filled(values: pd.Series) -> pd.Series:
    """Return the values that are not missing."""
    return values[[not is_missing(value) for value in values]]


# A number as people and programs write it. `float` also takes codes: "1_2" for 12, and "3e2" for 300.
_WRITTEN = re.compile(r"\s*[-+]?(\d+|(\d+\.\d*|\.\d+)([eE][-+]?\d+)?|\d+[eE][-+]\d+)\s*")


def without_point(text: str) -> str:
    """Return the number "1.0" as "1": pandas adds the point to a column of integers where one is missing."""
    return re.sub(r"\.0*$", "", text.strip())


def number(value: Any) -> float | None:
    """Return a number below `LARGEST`, also one written as text; None for anything else (truth values and codes too)."""
    if isinstance(value, str) and not _WRITTEN.fullmatch(value):
        return None
    try:
        result = float(value)
    except (TypeError, ValueError):
        return None
    return result if abs(result) < LARGEST and not isinstance(value, bool) else None
