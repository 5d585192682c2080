"""Tables: CSV, TSV, JSON, JSONL and Parquet into rows, with errors that name the place in the file."""

import json
import logging
import re
from pathlib import Path
from typing import Any

import pandas as pd

from hftransfer.core.errors import UserError, refuse_lfs_pointer
from hftransfer.data.conll import SUFFIXES, looks_like_conll, read_conll
from hftransfer.data.csv_tables import read_csv, read_tsv
from hftransfer.data.encoding import decode_utf8
from hftransfer.data.json_tables import frame_of, read_json, read_jsonl
from hftransfer.data.sources import SPLIT_WORDS, Source, declared_inputs, describe_counts, in_order, missing

log = logging.getLogger(__name__)

_SNIFFED = 2**16  # bytes of a text file that are looked at


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
        frame_of(table.to_pylist()),
        class_names,
        declared_inputs({name: kind.get("_type") for name, kind in features.items()}),
    )


def _stored_features(table: Any) -> dict[str, dict]:
    """Return the column types that `datasets` writes into a Parquet file, by column ({} for any other writer)."""
    stored = (table.schema.metadata or {}).get(b"huggingface")
    features = json.loads(stored).get("info", {}).get("features", {}) if stored else {}
    return {name: kind for name, kind in features.items() if isinstance(kind, dict)}


READERS = {
    ".csv": read_csv, ".tsv": read_tsv, ".jsonl": read_jsonl, ".ndjson": read_jsonl, ".json": read_json,
    ".parquet": _read_parquet, **dict.fromkeys(SUFFIXES, _read_conll),
}  # fmt: skip
