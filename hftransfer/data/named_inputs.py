"""Columns that are one input together: a text and the values beside it, written as one text."""

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.values import filled, is_missing, number
from hftransfer.modalities import MODALITIES, by_preference, kind_of

log = logging.getLogger(__name__)

NUMBER, CATEGORY = "number", "category"
BETWEEN = " | "  # of the template `price: 12 | brand: acme | caption: the text`
DIGITS = 4  # of a number in a text: more are more tokens
_SAMPLE = 500
_TEXT = "text"


def input_kinds() -> list[str]:
    """Return the kinds that a named input can have: every modality, numbers and categories."""
    return [*MODALITIES, NUMBER, CATEGORY]


def kind_of_column(values: pd.Series) -> str:
    """Return the kind of input that the values of a column look like."""
    sample = list(filled(values).head(_SAMPLE))
    if sample and all(number(value) is not None for value in sample):
        return NUMBER
    return next((kind.name for kind in by_preference() if sample and kind.recognises(sample)), CATEGORY)


@dataclass(frozen=True)
class NamedInputs:
    """The columns of a combined input, each with its kind: a modality, "number" or "category"."""

    kinds: dict[str, str]

    @classmethod
    def of(cls, wanted: Any, frame: pd.DataFrame) -> "NamedInputs | None":
        """Return what `data.input` combines: a mapping, or several columns; None for one column or a pair of texts."""
        if isinstance(wanted, Mapping):
            return cls(dict(wanted))
        if not isinstance(wanted, list | tuple) or len(wanted) < 2:
            return None
        found = cls({name: kind_of_column(frame[name]) for name in wanted})
        return found if len(wanted) > 2 or found.files or NUMBER in found.kinds.values() else None

    @property
    def files(self) -> list[str]:
        """The inputs that are files: pictures and recordings."""
        return [name for name, kind in self.kinds.items() if kind in MODALITIES and kind_of(kind).files]

    @property
    def written(self) -> list[str]:
        """The names in the order of the text: values first, since a long text is cut at its end."""
        return sorted(self.kinds, key=lambda name: self.kinds[name] == _TEXT)

    @property
    def title(self) -> str:
        """How a form calls the one text."""
        return BETWEEN.join(f"{name}: …" for name in self.written)

    def require(self, frame: pd.DataFrame, where: str) -> None:
        """Raise `UserError` with the first value that is no number in a column of numbers."""
        for name in (name for name, kind in self.kinds.items() if kind == NUMBER):
            wrong = [row for row, value in enumerate(frame[name]) if not is_missing(value) and number(value) is None]
            if wrong:
                raise UserError(
                    f"{where}: the column {name!r} holds {frame[name].iloc[wrong[0]]!r} in row {wrong[0] + 1}, which is no "
                    f"number ({len(wrong)} such rows). Correct it, or read the column as names: "
                    f"data.input={{{name}: {CATEGORY}, …}}."
                )

    def texts(self, frame: pd.DataFrame, where: str) -> list[str]:
        """Return the text of each row of `frame`; what is missing in a row is left out of its text, and counted."""
        self.require(frame, where)
        absent = {name: int(frame[name].map(is_missing).sum()) for name in self.kinds}
        if any(absent.values()):
            counts = ", ".join(f"{name} {count}" for name, count in absent.items() if count)
            log.info("%s: missing inputs, of %d rows: %s.", where, len(frame), counts)
        return [self.text(row) for row in frame[list(self.kinds)].to_dict("records")]

    def text(self, row: Mapping[str, Any]) -> str:
        """Return one row as one text: `price: 12 | brand: acme | caption: the text`. Raises `UserError`."""
        given = [name for name in self.written if not is_missing(row.get(name))]
        return BETWEEN.join(f"{name}: {self._value(name, row[name])}" for name in given)

    def _value(self, name: str, value: Any) -> str:
        if self.kinds[name] != NUMBER:
            return str(value).strip()
        if number(value) is None:
            raise UserError(f"Expected a number as {name}, found {value!r}.")
        return np.format_float_positional(number(value), DIGITS, unique=False, fractional=False, trim="-")


def described(kinds: Mapping[str, str]) -> str:
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def require_known(names: Iterable[str], row: Mapping[str, Any]) -> None:
    """Raise `UserError` for a row given from Python that names something else than the inputs of the model."""
    if unknown := sorted(set(row) - set(names)):
        raise UserError(f"The model reads {', '.join(names)}; {', '.join(map(repr, unknown))} is none of these.")
