"""Tables: CSV, TSV, JSON, JSONL and Parquet into rows, with errors that name the place in the file."""

import csv
import json
import logging
import re
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError, refuse_lfs_pointer
from hftransfer.data.columns import usual_names
from hftransfer.data.conll import SUFFIXES, looks_like_conll, read_conll
from hftransfer.data.sources import SPLIT_WORDS, Source, declared_inputs, describe_counts, in_order, missing
from hftransfer.data.values import number

log = logging.getLogger(__name__)

_SNIFFED = 2**16  # bytes of a text file that are looked at
_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_table_source(path: Path) -> Source:
    """Return the rows of one table; relative image paths in it stand against its folder."""
    frame, class_names, kinds = _read(path)
    log.info("Read %s: %d rows, columns %s.", path, len(frame), ", ".join(map(repr, frame.columns)))
    return Source(str(path), "table", {"all": frame}, path.parent, class_names, kinds)


def read_split_tables(folder: Path) -> Source | None:
    """Return a folder with tables per split (`train.csv`, `dev.csv`, `train-00000-of-00002.parquet`), or None without `train`.

    They may stand in `data/`, as in a clone of a data set on the Hub.
    """
    tables = [path for path in sorted(folder.iterdir()) if path.is_file() and is_table(path)]
    shards: dict[str, list[Path]] = {}
    for path in tables:
        named = _SHARD.fullmatch(path.name.split(".")[0].lower())
        if named and named[1] in SPLIT_WORDS:
            shards.setdefault(SPLIT_WORDS[named[1]], []).append(path)
    if "train" not in shards:
        inner = folder / "data"
        return read_split_tables(inner) if not tables and inner.is_dir() else None
    for paths in shards.values():
        if len(paths) > 1 and any(_SHARD.fullmatch(path.name.split(".")[0].lower())[2] is None for path in paths):
            raise UserError(
                f"{folder} holds several tables for one split: {', '.join(path.name for path in paths)}. "
                "Say which are meant with data.train, data.validation and data.test."
            )
    sources = {split: [read_table_source(path) for path in paths] for split, paths in shards.items()}
    joined = {split: pd.concat([s.parts["all"] for s in found], ignore_index=True) for split, found in sources.items()}
    parts = in_order(joined)
    log.info("%s holds tables per split (%s).", folder, describe_counts(parts))
    first = sources["train"][0]
    return Source(str(folder), "table", parts, folder, first.class_names, first.declared)


# `train`, or a numbered shard of it as the Hub writes them.
_SHARD = re.compile(r"([a-z_]+?)((?:[-_]\d+)+(?:-of-\d+)?)?")


def _read(path: Path) -> tuple[pd.DataFrame, dict[str, list[str]], dict[str, str]]:
    if not path.exists():
        raise UserError(missing(path))
    reader = _read_conll if _is_conll_text(path) else READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} is no table that can be read: expected a file ending in {', '.join(READERS)}, "
            f"found {path.suffix!r}."
        )
    refuse_lfs_pointer(path)
    frame, class_names, kinds = reader(path)
    frame.columns = [str(column).strip() for column in frame.columns]
    twice = sorted(set(frame.columns[frame.columns.duplicated()]))
    if twice:
        raise UserError(f"{path} has several columns named {', '.join(map(repr, twice))}: rename them.")
    if frame.empty:
        raise UserError(f"{path} holds no rows.")
    return frame.reset_index(drop=True), class_names, kinds


def decode_utf8(path: Path) -> str:
    """Return the text of a file, which has to be UTF-8 (a byte order mark is dropped)."""
    data = path.read_bytes()
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        encoding = _BOMS.get(data[:2], "WINDOWS-1252")
        line = data.count(b"\n", 0, error.start) + 1
        raise UserError(
            f"{path} is not UTF-8: byte 0x{data[error.start]:02x} at offset {error.start} (line {line}). "
            f"Convert it, for instance if it is {encoding}: "
            f"iconv -f {encoding} -t UTF-8 '{path}' > '{path.stem}.utf8{path.suffix}'"
        ) from None


def is_table(path: Path) -> bool:
    """Return whether a file is read as a table: by its suffix, or a text file in the format of CoNLL."""
    return path.suffix.lower() in READERS or _is_conll_text(path)


def _is_conll_text(path: Path) -> bool:
    if path.suffix.lower() not in (".txt", ".tsv") or not path.is_file():
        return False
    with path.open("rb") as file:
        return looks_like_conll(file.read(_SNIFFED).decode("utf-8-sig", "replace"))


def _read_conll(path: Path) -> tuple[pd.DataFrame, dict, dict]:
    return read_conll(decode_utf8(path), path), {}, {}


def _read_csv(path: Path, delimiter: str | None = None) -> tuple[pd.DataFrame, dict, dict]:
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


def _read_tsv(path: Path) -> tuple[pd.DataFrame, dict, dict]:
    return _read_csv(path, delimiter="\t")


def _read_jsonl(path: Path) -> tuple[pd.DataFrame, dict, dict]:
    rows = []
    for place, line in enumerate(decode_utf8(path).split("\n"), start=1):
        if line.strip():
            rows.append(_object(_parse_json(line, f"{path}, line {place}"), f"{path}, line {place}"))
    return _frame(rows), {}, {}


def _read_json(path: Path) -> tuple[pd.DataFrame, dict, dict]:
    text = decode_utf8(path)
    try:
        content = _parse_json(text, str(path))
    except UserError:
        if not text.lstrip().startswith("{") or "\n" not in text.strip():
            raise
        found = _read_jsonl(path)  # lines of objects under the wrong suffix, as most data sets on the Hub
        log.info("%s is JSON Lines.", path)
        return found
    content = _records(content)
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else []
    if len(lists) == 1:  # {"data": [...], "version": …}
        content = lists[0]
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of objects, one per row, found {type(content).__name__}.")
    rows = [_object(row, f"{path}, entry {place}") for place, row in enumerate(content, start=1)]
    return _frame(rows), {}, {}


def _records(content: Any) -> Any:
    """Return the rows of the layouts that `DataFrame.to_json` and others write; other content as it is."""
    if not isinstance(content, dict) or not content:
        return content
    if {"columns", "data"} <= content.keys():  # orient="split"
        return [dict(zip(content["columns"], row, strict=False)) for row in content["data"]]
    inner = list(content.values())
    if all(isinstance(value, dict) for value in inner):
        if all(value.keys() == inner[0].keys() for value in inner) and _are_columns(content, inner[0]):
            return [{name: content[name][row] for name in content} for row in inner[0]]  # orient="columns"
        return inner  # orient="index"
    lists = all(isinstance(value, list) for value in inner) and len({len(value) for value in inner}) == 1
    if lists and len(inner) > 1 and not any(isinstance(entry, dict) for value in inner for entry in value):
        return [dict(zip(content, row, strict=True)) for row in zip(*inner, strict=True)]
    if not any(isinstance(value, (dict, list)) for value in inner):
        return [content]  # a single row, or a single line of JSON Lines
    return content


def _are_columns(outer: dict, inner: dict) -> bool:
    """Return whether the outer keys name columns and the inner ones number rows: by their digits, else by their number."""
    numbered_outer, numbered_inner = (all(key.isdigit() for key in keys) for keys in (outer, inner))
    return numbered_inner if numbered_outer != numbered_inner else 1 < len(outer) <= len(inner)


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise UserError(f"{place} is not valid JSON: {error}.") from error


def _object(row: Any, place: str) -> dict:
    if isinstance(row, list) and len(row) == 2 and isinstance(row[0], str) and isinstance(row[1], dict):
        return dict(text=row[0]) | row[1]  # as spaCy 2 has a text and its entities
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected an object with one value per column, found {type(row).__name__}.")
    return row


def _frame(rows: list[dict]) -> pd.DataFrame:
    """Rows as a frame whose columns keep the values as they are (integers stay integers beside missing ones)."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    nested = [name for name in columns if all(_is_nested(row.get(name)) for row in rows)]
    if rows and nested and set(columns) - set(nested) <= {"id"}:
        inner = nested[0] + ("." + next(iter(rows[0][nested[0]])) if isinstance(rows[0][nested[0]], dict) else "[0]")
        raise UserError(
            f"The values are nested ({', '.join(nested)}), such as {inner}: flatten them first, one column per value, for "
            "instance with pandas.json_normalize."
        )
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns})


def _is_nested(value: Any) -> bool:
    if isinstance(value, dict):
        return not {"bytes", "path"} <= value.keys()  # an image as `datasets` keeps it
    return isinstance(value, list) and bool(value) and isinstance(value[0], dict)


def _read_parquet(path: Path) -> tuple[pd.DataFrame, dict[str, list[str]], dict[str, str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # From a buffer: a path would make pyarrow look for partitions in folder names such as `label=1`.
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        features = _stored_features(table)
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error
    inner = {name: kind.get("feature", kind) for name, kind in features.items()}  # of lists, that of their entries
    class_names = {name: kind["names"] for name, kind in inner.items() if kind.get("_type") == "ClassLabel"}
    return (
        _frame(table.to_pylist()),
        class_names,
        declared_inputs({name: kind.get("_type") for name, kind in features.items()}),
    )


def _stored_features(table: Any) -> dict[str, dict]:
    """Return the column types that `datasets` writes into a Parquet file, by column ({} for any other writer)."""
    stored = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(stored).get("info", {}).get("features", {}) if stored else {}
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


READERS = {
    ".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json,
    ".parquet": _read_parquet, **dict.fromkeys(SUFFIXES, _read_conll),
}  # fmt: skip
