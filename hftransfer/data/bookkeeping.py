"""Columns that are neither input nor label: those that number the examples, and the one that divides them."""

import logging
import re
from collections.abc import Collection

import pandas as pd

from hftransfer.data.sources import SPLIT_WORDS
from hftransfer.data.values import number

log = logging.getLogger(__name__)

# Columns that number the examples: pandas writes the first two.
INDEX_NAMES = re.compile(r"unnamed: \d+|__index_level_\d+__|index|idx|id|uid|guid|split", re.IGNORECASE)
SPLIT_NAMES = {"split", "usage", "subset", "partition", "set", "data_split", "dataset_split"}


def numbers_examples(name: str, values: pd.Series) -> bool:
    """Return whether a column identifies the examples: by its name, or since it counts them up."""
    if INDEX_NAMES.fullmatch(name.strip()) or not name.strip():
        return True
    numbers = [number(value) for value in values]
    return len(numbers) > 2 and None not in numbers and set(pd.Series(numbers).diff().dropna()) == {1.0}


def split_column(frame: pd.DataFrame, labels: Collection[str] = ()) -> str | None:
    """Return the column that divides the examples, by its name and its values; not one of those that `labels` names."""
    for name in frame.columns:
        if name in labels:
            continue
        if divides(name, frame[name]):
            return name
        if name.lower() == "split":
            words = {str(value).strip().lower() for value in frame[name]}
            log.warning(
                "Column %r is no division into train, validation and test (values: %s). The division in column %r is "
                "ignored: %s cannot be told. Call its values train, validation and test if it is one.",
                name, sorted(words)[:5], name, ", ".join(sorted(words - set(SPLIT_WORDS))[:5]),
            )  # fmt: skip
    return None


def divides(name: str, values: pd.Series) -> bool:
    """Return whether a column is called like a split (`Usage` in FER2013) and holds words for splits alone."""
    return name.strip().lower() in SPLIT_NAMES and {str(value).strip().lower() for value in values} <= set(SPLIT_WORDS)
