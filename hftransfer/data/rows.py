"""From sources and the roles of their columns to one frame of examples: where each comes from, its id and its input."""

import logging
import os
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.core.remote import is_remote
from hftransfer.data.bookkeeping import split_column
from hftransfer.data.columns import Columns, files_below, require_column
from hftransfer.data.config import AUTOMATIC, DataConfig
from hftransfer.data.named_inputs import NUMBER, NamedInputs
from hftransfer.data.named_rows import category, column_of
from hftransfer.data.sources import CLASS_FOLDER, SPLIT_WORDS, SPLITS, Source, describe_counts
from hftransfer.data.values import is_missing, number
from hftransfer.modalities import MODALITIES, ModalityKind, kind_of
from hftransfer.modalities.inspection import digest

log = logging.getLogger(__name__)


def by_split_column(source: Source, labels: str | list[str] | None = None) -> Source:
    """Return an undivided source divided by its column of splits, if it has one that `labels` does not name."""
    if set(source.parts) != {"all"} or source.kind == CLASS_FOLDER:
        return source
    frame = source.parts["all"]
    column = split_column(frame, [labels] if isinstance(labels, str) else labels or ())
    if column is None:
        return source
    words = frame[column].map(lambda value: SPLIT_WORDS[str(value).strip().lower()])
    parts = {split: frame[words == split] for split in SPLITS if (words == split).any()}
    log.info("%s is divided by its column %r (%s).", source.name, column, describe_counts(parts))
    return replace(source, parts=parts)


def gather(sources: list[Source], columns: list[Columns], config: DataConfig) -> pd.DataFrame:
    """All examples below one another: `where` (for messages), `id`, `split`, `group`, `input`, and `input_pair`."""
    frames = []
    for place, (source, found) in enumerate(zip(sources, columns, strict=True)):
        for part, frame in source.parts.items():
            rows = _inputs(source, found, frame, config.allow_outside)
            rows["where"] = _where(source, part, frame, rows, kind_of(found.modality))
            rows["split"] = None if part == "all" else part
            rows["group"] = _groups(source, frame, config.split.group, place > 0) or _documents(source, part, frame)
            if source.kind == CLASS_FOLDER and place > 0:  # its own root: the same path may stand in two of them
                rows["written"] = f"{part}/" + rows["written"]
            frames.append(rows)
    rows = pd.concat(frames, ignore_index=True).astype(object)
    rows["split"] = rows["split"].where(rows["split"].notna(), None)
    rows["id"] = _id_column(sources) or _numbered(rows["written"])
    return rows.drop(columns="written")


def as_files(values: pd.Series, source: Source, kind: ModalityKind) -> list[Any]:
    """Return paths of files with those that lead nowhere replaced by the one file below the root that they can mean.

    A table may name files without suffix or folder, or with backslashes.
    """
    if source.root is None or source.kind == CLASS_FOLDER:
        return list(values)
    lost = [isinstance(v, str) and bool(v.strip()) and not (source.root / v.strip()).exists() for v in values]
    if not any(lost):
        return list(values)
    files = files_below(kind, source.root)
    found = [_meant(value, files, kind) if is_lost else None for value, is_lost in zip(values, lost, strict=True)]
    count = sum(path is not None for path in found)
    if count:
        log.info("%s: %d %s are found by name below %s.", source.name, count, kind.plural, source.root)
    return [value if path is None else path for value, path in zip(values, found, strict=True)]


def _meant(value: str, files: dict[str, list[str]], kind: ModalityKind) -> str | None:
    """Return the one file that a path without suffix or folder, or with backslashes, can mean."""
    path = value.strip().replace("\\", "/")
    wanted = path.rsplit(".", 1)[0] if kind.is_file_name(path) else path
    found = files.get(PurePosixPath(path).name, []) or files.get(PurePosixPath(wanted).name, [])
    fitting = [file for file in found if f"/{file}".rsplit(".", 1)[0].endswith(f"/{wanted}")]
    return fitting[0] if len(fitting) == 1 else None


def file_input(value: Any, root: Path | None, allow_outside: bool) -> str | bytes:
    """Return a file as path or encoded bytes, from a path or from what `datasets` stores; paths may not leave `root`."""
    if isinstance(value, dict):
        value = value["bytes"] if value.get("bytes") else value.get("path")
    if isinstance(value, bytes):
        return value
    if is_missing(value):
        return ""
    if is_remote(str(value).strip()) and allow_outside:
        return str(value).strip()
    path = os.path.join(root or "", str(value).strip())
    if root is not None and not allow_outside:
        _refuse_outside(path, root)
    return path


def _refuse_outside(path: str, root: Path) -> None:
    if "\0" in path:
        raise UserError(f"The path {path!r} holds a NUL: it cannot be read.")
    if not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(root)):
        raise UserError(
            f"The file {path} lies outside of the data folder {root}. If that is meant: data.allow_outside=true."
        )


def _inputs(source: Source, found: Columns, frame: pd.DataFrame, allow_outside: bool) -> pd.DataFrame:
    """Columns `input`, `input_pair` for pairs, and `written`: what the id is made from."""
    kind = kind_of(found.modality)
    if found.named and found.named.files:
        return _several(source, found.named, frame, allow_outside)
    if kind.files:
        values = as_files(frame[found.input[0]], source, kind)
        inputs = [file_input(kind.encoded(value), source.root, allow_outside) for value in values]
        written = [digest(value) if isinstance(value, bytes) else _relative(value, source.root) for value in inputs]
        return pd.DataFrame({"input": inputs, "written": written}, dtype=object)
    texts = (
        {"input": found.named.texts(frame, source.name)}
        if found.named
        else {role: plain_texts(frame[name]) for role, name in zip(("input", "input_pair"), found.input, strict=False)}
    )
    written = [digest(*row) for row in zip(*texts.values(), strict=True)]
    return pd.DataFrame({**texts, "written": written}, dtype=object)


def _several(source: Source, named: NamedInputs, frame: pd.DataFrame, allow_outside: bool) -> pd.DataFrame:
    """Columns `input` (that of the first file), `written`, and one for each input."""
    rows = named_columns(source, named, frame, allow_outside)
    shown = [value or "" for value in rows[column_of(named.files[0])]]
    written = [
        digest(value) if isinstance(value, bytes) else _relative(value, source.root) or digest(*map(str, row))
        for value, row in zip(shown, rows.to_numpy(), strict=True)
    ]
    return rows.assign(input=shown, written=written)


def named_columns(source: Source, named: NamedInputs, frame: pd.DataFrame, allow_outside: bool) -> pd.DataFrame:
    """Return a column for each input, as `named_rows` has them. Raises `UserError` for what is no number."""
    named.require(frame, source.name)
    found = {column_of(name): _values(source, kind, frame[name], allow_outside) for name, kind in named.kinds.items()}
    return pd.DataFrame(found, dtype=object)


def _values(source: Source, kind: str, values: pd.Series, allow_outside: bool) -> list[Any]:
    """Return the values of one input: paths or encoded bytes, texts, numbers or names; None where one is missing."""
    if kind not in MODALITIES:
        read = number if kind == NUMBER else category
        return [None if is_missing(value) else read(value) for value in values]
    modality = kind_of(kind)
    if not modality.files:
        return [None if is_missing(value) else str(value) for value in values]
    files = as_files(values, source, modality)
    return [file_input(modality.encoded(value), source.root, allow_outside) or None for value in files]


def plain_texts(values: pd.Series) -> list[str]:
    """Return the values of a column as texts, "" where one is missing."""
    return ["" if is_missing(value) else str(value) for value in values]


def _relative(path: str, root: Path | None) -> str:
    return Path(os.path.relpath(path, root)).as_posix() if root is not None and path else path


def _where(source: Source, part: str, frame: pd.DataFrame, rows: pd.DataFrame, kind: ModalityKind) -> list[str]:
    """How messages call each row: by its path in a class folder, else by table and row number, counted from 1."""
    if source.kind == CLASS_FOLDER:
        return list(rows["input"])
    of = source.name if len(source.parts) == 1 else f"{source.name} ({part})"
    places = [f"{of}, row {index + 1}" for index in frame.index]
    if not kind.files or isinstance(rows["input"].iloc[0], bytes):
        return places
    return [f"{place} ({path})" for place, path in zip(places, rows["written"], strict=True)]


def _documents(source: Source, part: str, frame: pd.DataFrame) -> list[str | None]:
    """Return the document of each row, where there are any; each part counts its own."""
    if source.documents not in frame:
        return [None] * len(frame)
    before = "" if part == "all" else f"{part}/"
    return [None if is_missing(value) else f"{before}{value}" for value in frame[source.documents]]


def _groups(source: Source, frame: pd.DataFrame, column: str | None, optional: bool) -> list[str | None]:
    """Return the groups that the user named; none where no column is."""
    if column is None:
        return []
    if column in AUTOMATIC or (optional and column not in frame):
        return [None] * len(frame)
    require_column(column, frame, f"data.split.group: {source.name}")
    return [None if is_missing(value) else str(value) for value in frame[column]]


def _id_column(sources: list[Source]) -> list[str] | None:
    """Return the column `id` where all rows have one and no two rows share it."""
    frames = [frame for source in sources for frame in source.parts.values()]
    names = [next((name for name in frame.columns if name.lower() == "id"), None) for frame in frames]
    if None in names:
        return None
    ids = [value for frame, name in zip(frames, names, strict=True) for value in frame[name]]
    if any(map(is_missing, ids)) or len(set(map(str, ids))) < len(ids):
        log.info("The column 'id' is not unique: rows are identified by their content.")
        return None
    return [str(value) for value in ids]


def _numbered(written: pd.Series) -> list[str]:
    """Identical inputs told apart by a counter; the first keeps its name, so that appended rows change none."""
    count = written.groupby(written).cumcount()
    return [name if number == 0 else f"{name}#{number + 1}" for name, number in zip(written, count, strict=True)]
