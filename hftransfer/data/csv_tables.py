"""CSV and TSV into rows: the delimiter, quotes, header and decimal commas that a file has."""

import csv
import logging
import re
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.columns import usual_names
from hftransfer.data.encoding import decode_utf8
from hftransfer.data.values import number

log = logging.getLogger(__name__)


def read_csv(path: Path, delimiter: str | None = None) -> tuple[pd.DataFrame, dict, dict]:
    """Return the rows of delimited text as they stand there, all of them strings. Raises `UserError`."""
    text = _with_line_feeds(decode_utf8(path))
    if not text.strip():
        raise UserError(f"{path} is empty.")
    if "\0" in text:  # pandas would end the value there
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path} holds a NUL byte (line {line}): it is no table of text, or a damaged one.")
    declared = re.match(r"sep=(.)\n", text)  # as Excel writes it
    text = text[declared.end() :] if declared else text
    delimiter = declared[1] if declared else delimiter or _delimiter(text, path)
    frame = _parse_csv(text, delimiter, path)
    swallowed = _swallowed(frame, delimiter)
    if swallowed is not None:
        frame = _with_plain_quotes(text, delimiter, path, swallowed)
    return _with_decimal_points(_with_header(frame, path), delimiter, path), {}, {}


def read_tsv(path: Path) -> tuple[pd.DataFrame, dict, dict]:
    """Return the rows of a table that tabs delimit."""
    return read_csv(path, delimiter="\t")


def _with_line_feeds(text: str) -> str:
    """Return the text with "\\n" at the end of its lines; a carriage return inside of a line stays what it is."""
    text = text.replace("\r\n", "\n")
    return text if "\n" in text.strip() else text.replace("\r", "\n")  # old Macs ended lines with it alone


_NO_TABLE = (pd.errors.ParserWarning, pd.errors.ParserError, pd.errors.EmptyDataError)
_ESCAPED = {"escapechar": "\\", "doublequote": False}
_OTHER_QUOTES = (
    ("quotes are escaped by backslashes", '\\"', _ESCAPED),  # as MySQL writes them
    ("values stand in single quotes, escaped by backslashes", "\\'", {"quotechar": "'", **_ESCAPED}),
    ("values stand in single quotes", "'", {"quotechar": "'"}),
)


def _parse_csv(text: str, delimiter: str, path: Path) -> pd.DataFrame:
    """Return the table with its double quotes, or others where only they fit. Raises `UserError`."""
    try:
        frame = _parsed(text, delimiter)
    except _NO_TABLE as error:
        found = _with_other_quotes(text, delimiter, path)
        if found is None:
            raise _no_table(error, delimiter, path) from error
        return found
    found = _with_other_quotes(text, delimiter, path) if _in_single_quotes(frame) else None
    return frame if found is None else found


def _parsed(text: str, delimiter: str, **how: Any) -> pd.DataFrame:
    with warnings.catch_warnings():
        # pandas only warns where the first row has more values than the header, and drops them.
        warnings.simplefilter("error", pd.errors.ParserWarning)
        # All stays text: pandas would turn the words "NA", "null" and "None" into missing values, and "007" into 7.
        return pd.read_csv(
            StringIO(text), sep=delimiter, dtype=str, keep_default_na=False, na_filter=False, index_col=False,
            lineterminator="\n", skipinitialspace=delimiter == ",", **how,
        )  # fmt: skip


def _with_other_quotes(text: str, delimiter: str, path: Path) -> pd.DataFrame | None:
    """Return the table by the first other quotes that fit; None where none do."""
    lines = sum(1 for line in text.split("\n") if line.strip())
    for words, mark, how in _OTHER_QUOTES:
        try:
            frame = _parsed(text, delimiter, **how) if mark in text else None
        except _NO_TABLE:
            continue
        # One row per line: a word such as 'tis opened no value that swallows the rows below.
        if frame is not None and not _in_single_quotes(frame) and ("'" not in mark or len(frame) == lines - 1):
            log.info("%s: %s.", path, words)
            return frame
    return None


def _in_single_quotes(frame: pd.DataFrame) -> bool:
    """Return whether all values of a column stand in single quotes, which are no part of them then."""
    quoted = (frame[name].str.fullmatch(r"(?s)\s*'.*'\s*|") for name in frame.columns if frame[name].str.strip().any())
    return any(column.all() for column in quoted)


def _no_table(error: Exception, delimiter: str, path: Path) -> UserError:
    if isinstance(error, pd.errors.ParserWarning):
        reason = "has more values in its first row than columns in its header"
    else:
        reason = f"cannot be read as a table: {str(error).strip().removeprefix('Error tokenizing data. C error: ')}"
    return UserError(f"{path} {reason}. A value that holds the delimiter {delimiter!r} has to stand in double quotes.")


def _swallowed(frame: pd.DataFrame, delimiter: str) -> int | None:
    """Return the first row (from 0) with a value that holds other rows, since a quote in a text was taken to open it."""
    width, last = len(frame.columns), set(frame.iloc[:, -1]) if len(frame.columns) else set()
    for column in frame.columns:
        for row in np.flatnonzero(frame[column].str.contains("\n", regex=False)):
            first, *inner, _ = frame[column].iloc[row].split("\n")
            fits = all(line.count(delimiter) == width - 1 for line in inner)
            ended = delimiter in first and first.rsplit(delimiter, 1)[1].strip() in last
            if width > 1 and fits and ended:
                return int(row)
    return None


def _with_plain_quotes(text: str, delimiter: str, path: Path, row: int) -> pd.DataFrame:
    """Return the table with its quotes as plain characters, one row per line. Raises `UserError` where lines differ."""
    lines = [line for line in text.split("\n") if line.strip()]
    if len({line.count(delimiter) for line in lines}) > 1:
        raise UserError(
            f"{path}, row {row + 1}: a value holds line ends and the delimiter {delimiter!r}, so it swallows the rows below. "
            'A double quote opens it and is not meant to: write it twice ("") and put the value in double quotes.'
        )
    log.warning("%s: a quote in row %d swallowed the rows below; quotes are read as plain characters.", path, row + 1)
    frame = _parsed(text, delimiter, quoting=csv.QUOTE_NONE)
    return frame.map(lambda value: value[1:-1].replace('""', '"') if re.fullmatch(r'"[^"]*"', value) else value)


def _with_header(frame: pd.DataFrame, path: Path) -> pd.DataFrame:
    """Return the frame, or one with names of its own where the first row is an example and no header."""
    first = [
        re.sub(r"\.\d+$", "", str(name)) if frame.columns.duplicated().any() else str(name) for name in frame.columns
    ]
    like_data = next(
        (name for name, column in zip(first, frame.columns, strict=True) if _is_value(name, frame[column])), None
    )
    numbered = all(number(name) is not None for name in first) and len(first) > 2  # columns of pixels, say
    if like_data is None or numbered or any(name.strip().lower() in usual_names() for name in first):
        return frame
    names = [f"column_{place}" for place in range(1, len(first) + 1)]
    log.warning(
        "%s: the first row looks like an example (%r also stands below): it is read without a header, as %s.",
        path, like_data, ", ".join(names),
    )  # fmt: skip
    return pd.concat([pd.DataFrame([first], columns=names), frame.set_axis(names, axis=1)], ignore_index=True)


def _is_value(name: str, values: pd.Series) -> bool:
    """Whether a header is rather one of the values below it: a class that repeats, or a number above numbers."""
    repeats = values.nunique() <= len(values) / 2
    return len(values) > 3 and repeats and name.strip() in set(values.str.strip()) - {""}


def _with_decimal_points(frame: pd.DataFrame, delimiter: str, path: Path) -> pd.DataFrame:
    """Return the frame with "0,14" as "0.14", and "1.234,5" as "1234.5", in columns of such numbers.

    A comma that delimits is none of a number.
    """
    commas = [
        name
        for name in frame.columns
        if delimiter != ","
        and frame[name].str.fullmatch(r"\s*[-+]?(\d+|\d{1,3}(\.\d{3})+)(,\d+)?\s*|").all()
        and frame[name].str.contains(",").any()
    ]
    if commas:
        log.info("%s: decimal commas in %s are read as points.", path, ", ".join(map(repr, commas)))
    for name in commas:
        if frame[name].str.fullmatch(r"\s*[-+]?([1-9]\d{0,2},\d{3}|\d{1,3})\s*|").all():
            log.warning("%s: if commas in %r separate thousands, such as in %s, take them out.", path, name,
                        next(value for value in frame[name] if "," in value))  # fmt: skip
    points = {name: frame[name].str.replace(".", "").str.replace(",", ".") for name in commas}
    return frame.assign(**points)


def _delimiter(text: str, path: Path) -> str:
    """Comma, unless the header holds none but a semicolon, a tab or a bar (as spreadsheets write in many countries)."""
    header = text[: text.find("\n")] if "\n" in text else text
    for other in (";", "\t", "|"):
        if "," not in header and other in header:
            log.info("%s is delimited by %r.", path, other)
            return other
    return ","
