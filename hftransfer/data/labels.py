"""From what stands in the label column to the task and the label of every row."""

import logging
import math
import re
from collections.abc import Callable, Iterable
from typing import Any

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.entities import are_entities
from hftransfer.data.masks import are_masks
from hftransfer.data.values import is_missing, number, without_point
from hftransfer.tasks import Masks, MultiLabel, Regression, SingleLabel, Task, Tokens

log = logging.getLogger(__name__)

SEPARATORS = ("|", ";", ",")
MOST_NUMBERED_CLASSES = 20


def natural_order(names: Iterable[str]) -> list[str]:
    """Class names in the order a person expects: numbers by value ("2" before "10"), also inside of words."""

    def key(name: str) -> tuple:
        parts = re.split(r"(\d+)", name.casefold())
        return [(int(part), "") if part.isdecimal() else (math.inf, part) for part in parts if part], name

    names = set(names)
    return (
        sorted(names, key=lambda name: (float(name), name))
        if all(number(name) is not None for name in names)
        else sorted(names, key=key)
    )


def read_labels(
    values: pd.DataFrame,
    wanted: type[Task] | None,
    separator: str | None,
    declared: list[str] | None,
    parts: pd.Series | None = None,
) -> tuple[Task, pd.Series]:
    """Return the task and one label per row (None where it is missing) from the label column or columns `values`.

    Labels are a name, a list of names, a number or a list of numbers. `wanted` overrides the task that the content
    suggests, `declared` are the class names in the order of a `ClassLabel` feature. `parts` (N,) names the part of each
    row: in a part where some rows carry labels, an empty cell of several labels means that none applies. Raises
    `UserError` where the values do not fit the task.
    """
    if values.shape[1] > 1:
        return _several_columns(values.apply(_without_nan), wanted)
    column = values.iloc[:, 0].astype(object)
    if are_entities(column) or (wanted is not None and wanted.by_word):
        return _entities(column, wanted)
    if are_masks(column) or (wanted is not None and wanted.by_pixel):
        return _masks(column, wanted, declared)
    if declared is not None and (wanted is None or wanted.has_classes):
        return _declared(column, declared, wanted)
    column = _without_thousands(_without_nan(column), wanted, separator)
    kind, separator = _task_type(column, wanted, separator)
    if not kind.has_classes:
        labels = _each(_numbers_or_none, column)
        _check_numbers(column, labels)
        return kind(_target_names(labels, str(column.name))), labels
    if not kind.exclusive:
        labels = _each(lambda value: _names(value, separator), _with_empty_sets(column, parts))
    else:
        labels = _each(_name_or_none, _one_spelling(column) if wanted is None else column)
    present = [name for label in labels.dropna() for name in ([label] if kind.exclusive else label)]
    return kind(tuple(natural_order(present))), labels


def _entities(column: pd.Series, wanted: type[Task] | None) -> tuple[Task, pd.Series]:
    """Return the task of a column of entities, and the column. Raises `UserError` where the task takes others."""
    kind = wanted or Tokens
    if not kind.by_word:
        raise UserError(
            f"The column {column.name!r} holds entities in texts, which data.task={kind.type} does not take."
        )
    if not are_entities(column):
        raise UserError(
            f"data.task={kind.type} needs a tag for each word (O, B-person, I-person), or spans of texts; the column "
            f"{column.name!r} holds neither, such as {next(iter(column), None)!r}."
        )
    types = natural_order(entity["label"] for entities in column if isinstance(entities, list) for entity in entities)
    if wanted is None:
        log.info("Column %r holds entities in texts: token classification.", column.name)
    return kind(tuple(types)), column


def _masks(column: pd.Series, wanted: type[Task] | None, declared: list[str] | None) -> tuple[Task, pd.Series]:
    """Return the task of a column of masks, and the column. Raises `UserError` where there are no masks, or for another task."""
    kind = wanted or Masks
    if not kind.by_pixel:
        raise UserError(f"The column {column.name!r} holds masks, which data.task={kind.type} does not take.")
    if declared is None or not are_masks(column):
        raise UserError(
            f"data.task={kind.type} needs a mask for each image; the column {column.name!r} holds none, such as "
            f"{next(iter(column), None)!r}. Expected images/ beside masks/ with the same names, a table with paths of both, "
            "or COCO JSON."
        )
    if wanted is None:
        log.info("Column %r holds masks: semantic segmentation.", column.name)
    return kind(tuple(declared)), column


def _without_nan(column: pd.Series) -> pd.Series:
    """Return a column without the word "nan": numbers and names without a value are written so."""
    return _each(lambda value: None if isinstance(value, str) and value.strip().lower() == "nan" else value, column)


_THOUSANDS = re.compile(r"\s*[-+]?\d{1,3}(,\d{3})+(\.\d+)?\s*")


def _without_thousands(column: pd.Series, wanted: type[Task] | None, separator: str | None) -> pd.Series:
    """Return a column of numbers without the commas of "1,234,567"; any other column as it is.

    Where labels may be joined by commas, or a number of thousands stands there without one, it is a column of names.
    """
    values = [value for value in column if not is_missing(value)]
    commas = [value for value in values if isinstance(value, str) and _THOUSANDS.fullmatch(value)]
    numbers = [number(value) for value in values if value not in commas]
    if not commas or separator or (wanted is not None and wanted.has_classes) or None in numbers:
        return column
    if wanted is None and (_separator(values) or any(abs(found) >= 1000 for found in numbers)):
        return column
    log.info("Column %r: the commas separate thousands, such as in %s.", column.name, commas[0].strip())
    return _each(lambda value: value.replace(",", "") if isinstance(value, str) else value, column)


def _one_spelling(column: pd.Series) -> pd.Series:
    """Return a column of numbered classes with "1.0" spelled "1"."""
    if any(number(value) is None for value in column if not is_missing(value)):
        return column
    return _each(lambda value: without_point(value) if isinstance(value, str) else value, column)


def _with_empty_sets(column: pd.Series, parts: pd.Series | None) -> pd.Series:
    """Return a column of joined labels with an empty list for an empty cell; log how many there are.

    A part without any label is unlabelled: its cells stay missing. In a column of lists a missing one stays missing too.
    """
    missing = column.map(is_missing).to_numpy(dtype=bool)
    if not missing.any() or any(isinstance(value, list | tuple) for value in column):
        return column
    names = pd.Series("all" if parts is None else parts.fillna("all").to_numpy(), index=column.index)
    labelled = set(names[~missing])
    empty = missing & names.isin(labelled).to_numpy()
    if empty.any():
        log.info("Column %r: %d of %d cells are empty, and are read as: no label applies.",
                 column.name, empty.sum(), len(column))  # fmt: skip
    values = [[] if is_empty else value for value, is_empty in zip(column, empty, strict=True)]
    return pd.Series(values, index=column.index, name=column.name, dtype=object)


def _each(function: Callable[[Any], Any], column: pd.Series) -> pd.Series:
    """`column.map` that keeps None: pandas makes NaN of it where all others are strings or numbers."""
    return pd.Series([function(value) for value in column], index=column.index, name=column.name, dtype=object)


def _several_columns(values: pd.DataFrame, wanted: type[Task] | None) -> tuple[Task, pd.Series]:
    """Several columns: one 0/1 answer per label, or one number per target."""
    names = [str(name) for name in values.columns]
    rows = [None if any(map(is_missing, row)) else list(row) for row in values.itertuples(index=False)]
    answers = [None if row is None else [_yes_or_no(value) for value in row] for row in rows]
    labels: list[Any]
    if (wanted is None or wanted.has_classes) and not any(row is not None and None in row for row in answers):
        log.info("The columns %s hold 0 and 1: multi-label.", ", ".join(names))
        labels = [None if row is None else [n for n, on in zip(names, row, strict=True) if on] for row in answers]
        return MultiLabel(tuple(names)), pd.Series(labels, index=values.index, dtype=object)
    if wanted is not None and wanted.has_classes:
        raise UserError(
            f"data.task={wanted.type} with the label columns {', '.join(names)}: expected one column, or columns of 0 and 1."
        )
    labels = [None if row is None else [number(value) for value in row] for row in rows]
    series = pd.Series(labels, index=values.index, dtype=object)
    wrong = [row for row, label in zip(rows, labels, strict=True) if label is not None and None in label]
    if wrong:
        raise UserError(f"The label columns {', '.join(names)} must hold numbers, or 0 and 1; found {wrong[0]}.")
    log.info("The columns %s hold numbers: regression with %d targets.", ", ".join(names), len(names))
    return Regression(tuple(names)), series


def _declared(column: pd.Series, names: list[str], wanted: type[Task] | None) -> tuple[Task, pd.Series]:
    """Names, or lists of names, of a `ClassLabel` feature: the order it declares is kept."""
    several = any(isinstance(value, list) for value in column)
    present = {name for value in column if value is not None for name in (value if several else [value])}
    kind = MultiLabel if several else SingleLabel
    kind = wanted if wanted is not None and wanted.exclusive == kind.exclusive else kind
    return kind(tuple(n for n in names if n in present)), column


def _task_type(column: pd.Series, wanted: type[Task] | None, separator: str | None) -> tuple[type[Task], str | None]:
    """Return the task of one column by what its values look like, said aloud; and the separator between labels."""
    values = [value for value in column if not is_missing(value)]
    if not values:
        raise UserError(f"The label column {column.name!r} is empty.")
    nested = next((value for value in values if isinstance(value, dict)), None)
    if nested is not None:
        raise UserError(
            f"The label column {column.name!r} holds objects, such as {nested!r}: flatten them first, to a column with the "
            f"value of {' or '.join(map(repr, list(nested)[:3]))}."
        )
    if wanted:
        several = wanted.has_classes and not wanted.exclusive
        found = _separator(values) if several and separator is None else separator
        return wanted, found
    if separator:
        return MultiLabel, separator
    if all(isinstance(value, list | tuple) for value in values):
        return _task_of_lists(column.name, values), None
    _refuse_written_lists(column.name, values)
    numbers = [number(value) for value in values]
    if None not in numbers:
        return _task_of_numbers(column.name, numbers), None
    _refuse_nearly_numbers(column.name, values, numbers)
    found = _separator(values)
    if found:
        log.info("Labels in %r are joined by %r: multi-label (data.task says otherwise).", column.name, found)
    else:
        _offer_spaces(column.name, values)
    return (MultiLabel, found) if found else (SingleLabel, None)


def _offer_spaces(name: Any, values: list[Any]) -> None:
    """Say how to read tags that spaces join, where few words make many combinations."""
    whole = {str(value).strip() for value in values}
    words = {word for value in whole for word in value.split()}
    if len(words) < len(whole) and sum(" " in value for value in whole) >= len(whole) / 2:
        log.info("Column %r: %d words make %d classes. If they are labels joined by spaces: data.separator=' '.",
                 name, len(words), len(whole))  # fmt: skip


def _task_of_lists(name: Any, values: list[list]) -> type[Task]:
    entries = [entry for value in values for entry in value]
    lengths = {len(value) for value in values}
    repeats = any(
        len(set(value)) < len(value) for value in values if not any(isinstance(e, list | dict) for e in value)
    )
    numeric = bool(entries) and all(isinstance(entry, int | float) for entry in entries)
    if numeric and len(lengths) == 1 and (repeats or any(float(entry) % 1 for entry in entries)):
        if set(map(float, entries)) <= {0.0, 1.0}:
            raise UserError(
                f"The label column {name!r} holds lists of 0 and 1 without names. Give one column per label and name "
                "them (data.label=[a,b]), or write the names of the labels that apply."
            )
        log.info("Column %r holds lists of %d numbers: regression.", name, lengths.pop())
        return Regression
    log.info("Column %r holds lists: multi-label.", name)
    return MultiLabel


def _task_of_numbers(name: Any, numbers: list[float]) -> type[Task]:
    """Whole numbers that repeat are classes when there are few, or when they count up from 0 or 1 without a gap."""
    distinct = set(numbers)
    whole = all(value.is_integer() for value in distinct)
    counting = min(distinct) in (0, 1) and max(distinct) - min(distinct) == len(distinct) - 1
    if whole and len(numbers) >= 2 * len(distinct) and (len(distinct) <= MOST_NUMBERED_CLASSES or counting):
        log.info(
            "Column %r holds %d different whole numbers that repeat: they are read as classes (data.task=regression if "
            "they are quantities).",
            name,
            len(distinct),
        )
        return SingleLabel
    log.info(
        "Column %r holds numbers: regression. Numbers are read as classes when they are whole, repeat, and are at "
        "most %d or count up from 0 or 1 (data.task=single_label if these are classes too).",
        name,
        MOST_NUMBERED_CLASSES,
    )
    return Regression


def _refuse_nearly_numbers(name: Any, values: list, numbers: list[float | None]) -> None:
    words = [value for value, found in zip(values, numbers, strict=True) if found is None]
    if len(set(map(str, values))) > MOST_NUMBERED_CLASSES and len(words) < 0.1 * len(values):
        raise UserError(
            f"The label column {name!r} holds numbers except for {len(words)} of {len(values)} values, such as "
            f"{words[0]!r}. Correct or empty them, or say data.task=single_label if all are names of classes."
        )


def _refuse_written_lists(name: Any, values: list) -> None:
    if all(str(value).strip().startswith("[") and str(value).strip().endswith("]") for value in values):
        raise UserError(
            f"The label column {name!r} holds lists written as text, such as {values[0]!r}. Save the table as JSONL or "
            "Parquet, or join the labels by a separator such as '|'."
        )


def _separator(values: list[Any]) -> str | None:
    """Return the mark that joins labels: splitting by it leaves fewer different labels, half of which also stand alone."""
    whole = {str(value).strip() for value in values if isinstance(value, str)}
    for mark in SEPARATORS:
        pieces = {piece.strip() for value in whole for piece in value.split(mark)}
        if any(mark in value for value in whole) and "" not in pieces:
            alone = pieces & whole
            if len(pieces) < len(whole) and len(alone) >= len(pieces) / 2:
                return mark
    return None


def _target_names(labels: pd.Series, column: str) -> tuple[str, ...]:
    lengths = {len(label) if isinstance(label, list) else 1 for label in labels.dropna()}
    if len(lengths) > 1:
        raise UserError(f"The label column {column!r} holds lists of different lengths: {sorted(lengths)}.")
    width = lengths.pop()
    return (column,) if width == 1 else tuple(f"{column}_{index}" for index in range(width))


def _check_numbers(column: pd.Series, labels: pd.Series) -> None:
    for value, label in zip(column, labels, strict=True):
        if label is None and not is_missing(value):
            raise UserError(f"Regression needs numbers in the column {column.name!r}; found {value!r}.")


def _name_or_none(value: Any) -> str | None:
    if is_missing(value):
        return None
    if isinstance(value, list | tuple):
        raise UserError(f"One label per row was expected (data.task=single_label); found the list {value!r}.")
    whole = isinstance(value, float) and value.is_integer()  # 3.0 is class "3": pandas makes floats of integers
    return str(int(value)) if whole else str(value).strip()


def _names(value: Any, separator: str | None) -> list[str] | None:
    """Return the labels of one row, each once; an empty list (no label applies) is not a missing one."""
    if isinstance(value, list | tuple):
        names = [_name_or_none(entry) for entry in value]
        return None if None in names else list(dict.fromkeys(names))
    if is_missing(value):
        return None
    pieces = str(value).split(separator) if separator else [_name_or_none(value)]
    return list(dict.fromkeys(piece.strip() for piece in pieces if piece.strip()))


def _numbers_or_none(value: Any) -> float | list[float] | None:
    if isinstance(value, list | tuple):
        numbers = [number(entry) for entry in value]
        return None if None in numbers or not numbers else numbers[0] if len(numbers) == 1 else numbers
    return None if is_missing(value) else number(value)


def _yes_or_no(value: Any) -> bool | None:
    words = {"1": True, "1.0": True, "true": True, "yes": True, "0": False, "0.0": False, "false": False, "no": False}
    return words.get(str(value).strip().lower())
