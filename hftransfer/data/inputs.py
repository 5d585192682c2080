"""Inputs without labels, for prediction: files, folders, globs, a table, texts on the line or on standard input."""

import glob
import logging
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.core.remote import is_remote, listed, local_copy, read
from hftransfer.data.columns import as_written, find_input, refuse_foreign, require_column, with_names_of
from hftransfer.data.config import DataConfig
from hftransfer.data.encoding import decode_utf8
from hftransfer.data.entities import joined
from hftransfer.data.folders import tables_hint
from hftransfer.data.mask_folders import without_masks
from hftransfer.data.masks import mask_column
from hftransfer.data.named_inputs import NamedInputs, require_known
from hftransfer.data.rows import as_files, file_input, named_columns, plain_texts
from hftransfer.data.sources import Source, missing
from hftransfer.data.tables import is_table, read_table_source
from hftransfer.data.values import is_missing
from hftransfer.modalities import ModalityKind, first_kind, kind_of
from hftransfer.runs.folder import holds_run

log = logging.getLogger(__name__)

Own = tuple[str, ...] | NamedInputs  # the columns of a run: one, a pair, or those that are one text together
OPTION = "--column"  # names the input of a table for predict and next
IDS = re.compile(r"[iI][dD]|.*_[iI][dD]|.*[a-z]I[dD]")  # id, image_id, PassengerId


def load_inputs(
    sources: Sequence[Any],
    modality: str,
    columns: list[str] | None = None,
    own: Own = (),
    masks: bool = False,
) -> pd.DataFrame:
    """Columns `id`, `input` and, for pairs, `input_pair` of everything in `sources`, in order.

    A source is a table (its input named by `columns`, else in the columns `own` of a run, else found), a folder or glob
    (every file of the modality in it), such a file, or "-" (one text or path per line of standard input). An input in
    memory is one too (a Pillow image, an array of pixels, encoded bytes); for texts any other string is the text itself.
    With `masks` those that stand beside images are no inputs. Where `own` are columns that make one text, a table has them all,
    and a mapping in memory (`{"price": 12, "caption": "…"}`) is one input; a text stands for itself.
    Only tables and texts are opened. Raises `UserError` where a file is missing.
    """
    kind = kind_of(modality)
    frames = [
        _read(os.fspath(source), kind, columns, own, masks)
        if isinstance(source, str | os.PathLike)
        else _frame([f"input {number}"], [_in_memory(source, kind, own)])
        for number, source in enumerate(sources, 1)
    ]
    frame = pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
    if frame.empty:
        raise UserError("There is nothing to predict: give files, folders, globs, a table, or texts.")
    if frame.isna().any(axis=None):
        raise UserError("Some inputs are pairs of texts and some are single texts: predict them apart.")
    return frame


def load_examples(inputs: Any, kinds: Mapping[str, str]) -> pd.DataFrame:
    """Return `id` and a column for each of several inputs (`named_rows`) of tables, a DataFrame, or mappings by name.

    Raises `UserError` where a column is missing; a value may be.
    """
    several = inputs if isinstance(inputs, list | tuple) else [inputs]
    mappings = [each for each in several if isinstance(each, Mapping)]
    tables = [_of_mappings(mappings, kinds)] if mappings else []
    tables += [each for each in several if not isinstance(each, Mapping)]
    frames = [_examples(table, NamedInputs(dict(kinds))) for table in tables]
    if not frames:
        raise UserError(f"There is nothing to predict: give a table with the columns {', '.join(kinds)}.")
    return pd.concat(frames, ignore_index=True)


def _of_mappings(rows: list[Mapping[str, Any]], kinds: Mapping[str, str]) -> pd.DataFrame:
    for row in rows:
        require_known(kinds, row)
    return pd.DataFrame([[row.get(name) for name in kinds] for row in rows], columns=list(kinds), dtype=object)


def _examples(table: Any, named: NamedInputs) -> pd.DataFrame:
    if isinstance(table, pd.DataFrame):
        source, where = Source("the examples", "table", {"all": table.reset_index(drop=True).astype(object)}), "input"
    elif not _is_table(Path(table).expanduser()):
        raise UserError(
            f"The model reads several inputs ({', '.join(named.kinds)}), and {str(table)!r} is no table. Give a table with "
            "these columns."
        )
    else:
        source, where = read_table_source(Path(table).expanduser()), Path(table).name
    source = with_names_of(named.kinds, source)
    frame = source.parts["all"]
    for name in named.kinds:
        require_column(name, frame, source.name)
    rows = named_columns(source, named, frame, allow_outside=True)
    rows.insert(0, "id", _own_ids(frame) or [f"{where}#{number}" for number in range(1, len(frame) + 1)])
    return rows


def inputs_modality(source: str, columns: list[str] | None = None) -> str:
    """Return the modality of a table, folder or file without labels: by its columns, or by names of files."""
    path = Path(source).expanduser()
    if is_remote(source):
        return _remote_modality(source, columns)
    if path.is_dir() or not _is_table(path):
        names = [entry.name for entry in _files_below(path)] if path.is_dir() else [source]
        return first_kind(lambda kind: any(map(kind.is_file_name, names))).name
    table = read_table_source(path)
    frame = table.parts["all"]
    for name in columns or ():
        require_column(name, frame, str(path))
    return find_input(table, frame[columns] if columns else frame, set(), None, OPTION)[1]


def _in_memory(source: Any, kind: ModalityKind, own: Own) -> Any:
    if not isinstance(source, Mapping) or not isinstance(own, NamedInputs):
        return kind.encoded(source)
    require_known(own.kinds, source)
    return own.text(source)


def _read(source: str, kind: ModalityKind, columns: list[str] | None, own: Own, masks: bool) -> pd.DataFrame:
    if not source.strip():
        raise UserError("An empty text cannot be predicted: give a text, a file, a folder, or a table.")
    path = Path(source).expanduser()
    if _lies_elsewhere(source, kind):
        return _remote(source, kind, columns, own)
    if source == "-":
        lines = [line.rstrip("\n") for line in sys.stdin]
        return _files(lines) if kind.files else _texts({f"line {n}": t for n, t in enumerate(lines, 1)})
    if _is_table(path):
        return _table(path, kind, columns, own, masks)
    found = _expand(source, path, kind)
    if masks and found is not None and path.is_dir():
        found = without_masks(path, found)
    if found is None and not kind.files:
        return _texts({source: source})
    if found is None:
        raise UserError(missing(path))
    return _files(found) if kind.files else _texts({name: decode_utf8(Path(name)) for name in found})


def _lies_elsewhere(source: str, kind: ModalityKind) -> bool:
    """Whether a source is an address to read; a text may be one, or begin with one, and is then a text."""
    if kind.files or not is_remote(source):
        return is_remote(source)
    return _names_a_file(source, kind) or is_table(Path(source)) or source.endswith("/")


def _remote_modality(address: str, columns: list[str] | None) -> str:
    if is_table(Path(address)):
        with local_copy(address) as path:
            return inputs_modality(str(path), columns)
    names = listed(address)
    return first_kind(lambda kind: any(map(kind.is_file_name, names))).name


def _remote(address: str, kind: ModalityKind, columns: list[str] | None, own: Own) -> pd.DataFrame:
    """Return the rows of a table, folder, glob or file that lies elsewhere. Its pictures stay there until they are read."""
    if is_table(Path(address)):
        with local_copy(address) as path:
            frame = _table(path, kind, columns, own, masks=False)
        if kind.files:
            frame["input"] = [_beside(value, path.parent, address) for value in frame["input"]]
        return frame
    found = [name for name in listed(address) if kind.is_file_name(name)]
    if not found:
        raise UserError(f"{address} holds no {kind.file_noun}.")
    return _files(found) if kind.files else _texts({name: read(name).decode("utf-8") for name in found})


def _beside(value: str | bytes, folder: Path, address: str) -> str | bytes:
    """Return the address of a file that a table names by a path beside itself."""
    if isinstance(value, bytes) or is_remote(value) or not value:
        return value
    return f"{address.rpartition('/')[0]}/{Path(value).relative_to(folder).as_posix()}"


def _is_table(path: Path) -> bool:
    return len(str(path)) < 4096 and "\n" not in str(path) and len(path.name) < 256 and is_table(path)


def _expand(source: str, path: Path, kind: ModalityKind) -> list[str] | None:
    """Return the files behind a path, folder or glob in order; None where `source` is none of these."""
    try:
        is_dir, is_file = path.is_dir(), path.is_file()
    except OSError:  # a long text is no file name
        return None
    if is_file:
        return [str(path)]
    if is_dir:
        files = _files_below(path)
        found = sorted(str(entry) for entry in files if kind.is_file_name(entry.name))
        others = [entry.name for entry in files if not kind.is_file_name(entry.name)]
        if passed_over := kind.describe_passed_over(others):
            log.warning("%s: %s", source, passed_over)
    elif not kind.files and not _names_a_file(source, kind):
        return None
    elif glob.has_magic(source):
        found = sorted(
            name for name in glob.glob(os.path.expanduser(source), recursive=True) if kind.is_file_name(name)
        )
    else:
        raise UserError(missing(path))
    if not found:
        raise UserError(f"{source} holds no {kind.file_noun}.{tables_hint(path) if is_dir else ''}")
    return found


def _files_below(folder: Path) -> list[Path]:
    """Return the files below a folder that are neither hidden nor part of a run inside of it."""
    files = [entry for entry in folder.rglob("*") if not _hidden(entry, folder) and entry.is_file()]
    runs = {parent for parent in {entry.parent for entry in files} - {folder} if holds_run(parent)}
    if runs:
        log.info("%s: the files of runs are passed over (%s).", folder, ", ".join(sorted(map(str, runs))))
    return [entry for entry in files if not runs.intersection(entry.parents)]


def _names_a_file(source: str, kind: ModalityKind) -> bool:
    """Whether a text on the line is rather the name of a file: one word that ends like a text file."""
    return len(source.split()) == 1 and kind.is_file_name(source)


def _hidden(entry: Path, root: Path) -> bool:
    return any(part.startswith(".") for part in entry.relative_to(root).parts)


def _table(path: Path, kind: ModalityKind, columns: list[str] | None, own: Own, masks: bool) -> pd.DataFrame:
    source = read_table_source(path)
    frame = joined(source.parts["all"])
    if masks and (column := mask_column(source, DataConfig(), wanted=True)) and column not in (columns or ()):
        frame = frame.drop(columns=column)
    ids = _own_ids(frame) or [f"{path.name}#{number}" for number in range(1, len(frame) + 1)]
    if isinstance(own, NamedInputs) and not columns:
        return _frame(ids, _combined(with_names_of(own.kinds, source), own, path))
    wanted = tuple(as_written(name, frame) for name in columns or own)
    if not columns and not set(wanted) <= set(frame.columns):
        wanted = ()  # a table that is no relative of the run's: its input is found
    names = wanted or _found(source, frame, kind.name)
    for name in names:
        require_column(name, frame, str(path))
    if kind.files:
        # What the user points at for prediction is opened wherever it lies: nothing of it leaves in a model.
        values = as_files(frame[names[0]], source, kind)
        return _frame(ids, [file_input(kind.encoded(value), source.root, allow_outside=True) for value in values])
    refuse_foreign(kind, frame, names, source.name)
    return _frame(ids, *(plain_texts(frame[name]) for name in names))


def _combined(source: Source, named: NamedInputs, path: Path) -> list[str]:
    """Return one text for each row of a table that has all columns of a run."""
    frame = source.parts["all"]
    for name in named.kinds:
        require_column(name, frame, str(path))
    return named.texts(frame, source.name)


def _own_ids(frame: pd.DataFrame) -> list[str] | None:
    """Return the values of the first column that is called an id and identifies every row, as submissions need them."""
    for name in frame.columns:
        values = frame[name]
        if IDS.fullmatch(name) and not values.map(is_missing).any() and values.astype(str).is_unique:
            log.info("The column %r of the table identifies its rows.", name)
            return values.astype(str).tolist()
    return None


def _found(source: Source, frame: pd.DataFrame, modality: str) -> tuple[str, ...]:
    names, _ = find_input(source, frame, set(), modality, OPTION)
    log.info("%s: input %s.", source.name, ", ".join(names))
    return names


def _files(names: list[str]) -> pd.DataFrame:
    return _frame(names, names)


def _texts(texts: dict[str, str]) -> pd.DataFrame:
    return _frame(list(texts), list(texts.values()))


def _frame(ids: list[str], inputs: list, pairs: list[str] | None = None) -> pd.DataFrame:
    frame = pd.DataFrame({"id": ids, "input": inputs}, dtype=object)
    return frame if pairs is None else frame.assign(input_pair=pd.Series(pairs, dtype=object))
