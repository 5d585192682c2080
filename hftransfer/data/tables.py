"""Tables: CSV, TSV, JSON, JSONL and Parquet into rows, with errors that name the place in the file."""

import json
import logging
import warnings
from io import StringIO
from pathlib import Path
from typing import Any

import pandas as pd

from hftransfer.data.sources import SPLIT_WORDS, Source, counts_in_words, in_order, missing
from hftransfer.errors import UserError

log = logging.getLogger(__name__)

_BOMS = {b"\xff\xfe": "UTF-16", b"\xfe\xff": "UTF-16"}


def read_table_source(path: Path) -> Source:
    """The rows of one table; relative image paths in it stand against its folder."""
    frame, class_names, image_columns = _read(path)
    log.info("Read %s: %d rows, columns %s.", path, len(frame), ", ".join(map(repr, frame.columns)))
    return Source(str(path), "table", {"all": frame}, path.parent, class_names, image_columns)


def read_split_tables(folder: Path) -> Source | None:
    """A folder that holds one table per split (`train.csv`, `dev.csv`, …), or None where it holds no `train` table."""
    tables = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in READERS and path.is_file()]
    named = {path: SPLIT_WORDS[path.stem.lower()] for path in tables if path.stem.lower() in SPLIT_WORDS}
    if "train" not in named.values():
        return None
    if len(set(named.values())) < len(named):
        raise UserError(
            f"{folder} holds several tables for one split: {', '.join(path.name for path in named)}. "
            "Say which are meant with data.train, data.validation and data.test."
        )
    sources = {split: read_table_source(path) for path, split in named.items()}
    parts = in_order({split: source.parts["all"] for split, source in sources.items()})
    log.info("%s holds one table per split (%s).", folder, counts_in_words(parts))
    first = sources["train"]
    return Source(str(folder), "table", parts, folder, first.class_names, first.image_columns)


def _read(path: Path) -> tuple[pd.DataFrame, dict[str, list[str]], frozenset[str]]:
    if not path.exists():
        raise UserError(missing(path))
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise UserError(
            f"{path} is no table that can be read: expected a file ending in {', '.join(READERS)}, "
            f"found {path.suffix!r}."
        )
    frame, class_names, image_columns = reader(path)
    frame.columns = [str(column).strip() for column in frame.columns]
    twice = sorted(set(frame.columns[frame.columns.duplicated()]))
    if twice:
        raise UserError(f"{path} has several columns named {', '.join(map(repr, twice))}: rename them.")
    if frame.empty:
        raise UserError(f"{path} holds no rows.")
    return frame.reset_index(drop=True), class_names, image_columns


def decode_utf8(path: Path) -> str:
    """The text of a file, which has to be UTF-8 (a byte order mark is dropped)."""
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


def _read_csv(path: Path, delimiter: str | None = None) -> tuple[pd.DataFrame, dict, frozenset]:
    text = decode_utf8(path)
    if not text.strip():
        raise UserError(f"{path} is empty.")
    if "\0" in text:  # pandas would end the value there
        line = text.count("\n", 0, text.index("\0")) + 1
        raise UserError(f"{path} holds a NUL byte (line {line}): it is no table of text, or a damaged one.")
    delimiter = delimiter or _delimiter(text, path)
    try:
        with warnings.catch_warnings():
            # pandas only warns where the first row has more values than the header, and drops them.
            warnings.simplefilter("error", pd.errors.ParserWarning)
            # All stays text: pandas would turn the words "NA", "null" and "None" into missing values, and "007" into 7.
            frame = pd.read_csv(
                StringIO(text), sep=delimiter, dtype=str, keep_default_na=False, na_filter=False, index_col=False
            )
    except pd.errors.ParserWarning:
        raise UserError(
            f"{path} has more values in its first row than columns in its header. "
            f"A value that holds the delimiter {delimiter!r} has to stand in double quotes."
        ) from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError) as error:
        reason = str(error).strip().removeprefix("Error tokenizing data. C error: ")
        raise UserError(
            f"{path} cannot be read as a table: {reason}. "
            f"A value that holds the delimiter {delimiter!r} has to stand in double quotes."
        ) from error
    return frame, {}, frozenset()


def _delimiter(text: str, path: Path) -> str:
    """Comma, unless the header holds none but a semicolon or tab (as spreadsheets write in many countries)."""
    header = text[: text.find("\n")] if "\n" in text else text
    for other in (";", "\t"):
        if "," not in header and other in header:
            log.info("%s is delimited by %r.", path, other)
            return other
    return ","


def _read_tsv(path: Path) -> tuple[pd.DataFrame, dict, frozenset]:
    return _read_csv(path, delimiter="\t")


def _read_jsonl(path: Path) -> tuple[pd.DataFrame, dict, frozenset]:
    rows = []
    for number, line in enumerate(decode_utf8(path).split("\n"), start=1):
        if line.strip():
            rows.append(_object(_parse_json(line, f"{path}, line {number}"), f"{path}, line {number}"))
    return _frame(rows), {}, frozenset()


def _read_json(path: Path) -> tuple[pd.DataFrame, dict, frozenset]:
    content = _parse_json(decode_utf8(path), str(path))
    lists = [value for value in content.values() if isinstance(value, list)] if isinstance(content, dict) else []
    if len(lists) == 1:  # {"data": [...], "version": …}
        content = lists[0]
    if not isinstance(content, list):
        raise UserError(f"{path}: expected a list of objects, one per row, found {type(content).__name__}.")
    rows = [_object(row, f"{path}, entry {number}") for number, row in enumerate(content, start=1)]
    return _frame(rows), {}, frozenset()


def _parse_json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:  # a number of too many digits is a plain ValueError
        raise UserError(f"{place} is not valid JSON: {error}.") from error


def _object(row: Any, place: str) -> dict:
    if not isinstance(row, dict):
        raise UserError(f"{place}: expected an object with one value per column, found {type(row).__name__}.")
    return row


def _frame(rows: list[dict]) -> pd.DataFrame:
    """Rows as a frame whose columns keep the values as they are (integers stay integers beside missing ones)."""
    columns = list(dict.fromkeys(name for row in rows for name in row))
    return pd.DataFrame({name: pd.Series([row.get(name) for row in rows], dtype=object) for name in columns})


def _read_parquet(path: Path) -> tuple[pd.DataFrame, dict[str, list[str]], frozenset[str]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        # From a buffer: a path would make pyarrow look for partitions in folder names such as `label=1`.
        table = pq.read_table(pa.BufferReader(path.read_bytes()))
        features = _stored_features(table)
    except (pa.ArrowException, OSError, ValueError, AttributeError) as error:
        raise UserError(f"{path} cannot be read as Parquet: {error}") from error
    class_names = {name: kind["names"] for name, kind in features.items() if kind.get("_type") == "ClassLabel"}
    images = frozenset(name for name, kind in features.items() if kind.get("_type") == "Image")
    return _frame(table.to_pylist()), class_names, images


def _stored_features(table: Any) -> dict[str, dict]:
    """The column types that `datasets` writes into a Parquet file, by column ({} for any other writer)."""
    stored = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(stored).get("info", {}).get("features", {}) if stored else {}
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


READERS = {
    ".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".json": _read_json,
    ".parquet": _read_parquet,
}  # fmt: skip
