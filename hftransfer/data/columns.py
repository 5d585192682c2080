"""Which column is the input, the label, the id and the split: what the user names, else what the content shows."""

import logging
import shlex
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path, PurePath
from typing import Any

import pandas as pd

from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.data.bookkeeping import divides, numbers_examples
from hftransfer.data.config import AUTOMATIC, DataConfig
from hftransfer.data.named_inputs import CATEGORY, NUMBER, NamedInputs, described, kind_of_column
from hftransfer.data.sources import CLASS_FOLDER, Source
from hftransfer.data.values import filled, number
from hftransfer.modalities import MODALITIES, ModalityKind, by_preference, first_kind, kind_of

log = logging.getLogger(__name__)

# In order: a column of an earlier group is preferred to one of a later group.
LABEL_NAMES = (
    {"label", "labels"},
    {"class", "classes", "category", "categories", "target", "targets"},
    {"y", "score", "rating", "intent", "sentiment", "emotion", "emotions", "tag", "tags", "topic", "genre", "stars"},
    {"ner_tags", "ner", "entities", "spans", "annotations"},
)
PAIRS = ({"premise", "hypothesis"}, {"query", "passage"}, {"question", "answer"}, {"question", "sentence"})
_SAMPLE = 500
MOST_FILES = 200_000  # that are looked at for those a table may mean


def usual_names() -> set[str]:
    """Return names of columns that stand in headers, in lower case."""
    inputs = (kind.column_names for kind in MODALITIES.values())
    return {"id", "split", "index"}.union(*inputs, *LABEL_NAMES, *PAIRS)


@dataclass(frozen=True)
class Columns:
    """The roles of columns; `input` has two names for text pairs, `label` several where outputs stand in columns.

    `all` are the columns of the source, whatever their role; `named` says how those of `input` are one text together, or
    inputs of their own where one is a file: `modality` is then that of the first file.
    """

    input: tuple[str, ...]
    label: tuple[str, ...]
    modality: str
    all: frozenset[str] = frozenset()
    named: NamedInputs | None = None


def with_names_of(reference: Iterable[str], source: Source) -> Source:
    """Return `source` with its columns called as in `reference` where only case and outer spaces differ."""
    known = [str(name) for name in reference]
    parts = {part: _renamed(frame, known, f"{source.name} ({part})") for part, frame in source.parts.items()}
    return replace(source, parts=parts)


def _renamed(frame: pd.DataFrame, known: list[str], where: str) -> pd.DataFrame:
    found = {name: _same_name(name, known) for name in frame.columns if name not in known}
    changes = {name: same for name, same in found.items() if same is not None and same not in frame.columns}
    if changes:
        log.info("%s: %s.", where, ", ".join(f"column {old!r} is read as {new!r}" for old, new in changes.items()))
    return frame.rename(columns=changes)


def _same_name(name: str, known: Iterable[str]) -> str | None:
    """Return the one name of `known` that differs from `name` in case or outer spaces only."""
    same = [other for other in known if other.strip().casefold() == name.strip().casefold()]
    return same[0] if len(same) == 1 else None


def as_written(name: str, frame: pd.DataFrame) -> str:
    """Return the column of `frame` that `name` means: itself, or the one column that differs in case only."""
    return name if name in frame.columns else _same_name(name, frame.columns) or name


def find_columns(source: Source, config: DataConfig, first: Columns | None = None) -> Columns:
    """Find the roles of the columns of `source`: those named, those of the `first` source, else by content.

    Raises `UserError` with sample values where a role cannot be told, and for a further source without labels.
    """
    frame = next(iter(source.parts.values()))
    named_input = tuple(as_written(name, frame) for name in _as_tuple(config.input)) or _present(first, "input", frame)
    named_label = (
        tuple(as_written(name, frame) for name in _as_tuple(config.label))
        or _present(first, "label", frame)
        or source.mask_columns
    )
    if first is not None and not (named_label and set(named_label) <= set(frame.columns)):
        named_label = () if config.label else _new_label(source, frame, first)
        if not named_label:
            raise _unlabelled(source, frame, first)
    return _find_roles(source, frame, config, named_input, named_label)


def _new_label(source: Source, frame: pd.DataFrame, first: Columns) -> tuple[str, ...]:
    """Return the label of a further source under a name of its own: never a column that the first source has too."""
    try:
        return (_find_label(source, frame, set(first.all)),)
    except UserError:
        return ()


def _unlabelled(source: Source, frame: pd.DataFrame, first: Columns) -> UserError:
    (part,), label = source.parts, _words(first.label)
    return UserError(
        f"{source.name} has no column {label}, so data.{part} cannot be evaluated on it. Leave data.{part} out (a {part} "
        f"part is cut from the training data) and ask the run: hftransfer predict RUN {source.name}. If another column "
        f"holds the labels, call it {label}; there are {_words(list(frame.columns))}."
    )


def _present(first: Columns | None, role: str, frame: pd.DataFrame) -> tuple[str, ...]:
    """Return the columns of a role in the first source, where this one has all of them."""
    names = getattr(first, role) if first else ()
    return names if set(names) <= set(frame.columns) else ()


def labelled_parts(source: Source, found: Columns) -> Source:
    """Return `source` without what its owner marks as unlabelled: parts without the label's column, and classes of -1.

    Raises `UserError` for a part that lacks a column otherwise.
    """
    first = next(iter(source.parts.values()))
    parts = {}
    for part, frame in source.parts.items():
        lacking = [name for name in found.label if name not in frame.columns]
        # A column that the first part lacks may be the label under another name.
        if lacking and part != "train" and set(frame.columns) < set(first.columns):
            log.warning("The %s part of %s has no column %r: its %d examples are left out (`hftransfer predict` takes "
                        "them).", part, source.name, lacking[0], len(frame))  # fmt: skip
        else:
            parts[part] = _without_marked(frame, part, source, found)
    source = replace(source, parts=parts)
    _require_in_all_parts(found, source)
    return source


def _without_marked(frame: pd.DataFrame, part: str, source: Source, found: Columns) -> pd.DataFrame:
    """Return `frame` without examples whose class index is -1, unless all are: the part is unlabelled then."""
    names = [name for name in found.label if name in source.class_names and name in frame.columns]
    names = [name for name in names if name not in source.mask_columns]
    marked = frame[names].isin([-1]).any(axis=1)
    if not marked.any() or marked.all():
        return frame
    log.warning("%s: %d of %d examples of the %s part are marked as unlabelled (-1) and left out.",
                source.name, marked.sum(), len(frame), part)  # fmt: skip
    return frame[~marked]


def _require_in_all_parts(found: Columns, source: Source) -> None:
    for part, frame in source.parts.items():
        for name in (*found.input, *found.label):
            if name not in frame.columns:
                raise UserError(
                    f"The {part} part of {source.name} has no column {name!r}, which the other parts have."
                    f"{did_you_mean(name, frame.columns)} Rename it, or name the parts with data.train and data.{part}."
                )


def _find_roles(
    source: Source, frame: pd.DataFrame, config: DataConfig, named_input: tuple[str, ...], named_label: tuple[str, ...]
) -> Columns:
    taken = set(named_label) | ({config.split.group, source.documents} - {None, *AUTOMATIC})
    for name in (*named_input, *named_label):
        require_column(name, frame, source.name)
    if named := NamedInputs.of(config.input, frame):
        return _combined(source, frame, named, named_label or (_find_label(source, frame, {*named.kinds, *taken}),))
    if named_input:
        inputs, modality = named_input, config.modality
        if modality is None:
            modality = first_kind(lambda kind: _recognised(kind, source, frame, named_input[0])).name
    else:
        inputs, modality = find_input(source, frame, taken, config.modality)
    label = named_label or (_find_label(source, frame, {*inputs, *taken}),)
    _require_apart(inputs, label)
    kind = kind_of(modality)
    if len(inputs) > 2 or (len(inputs) == 2 and not kind.pairs):
        raise UserError(f"data.input takes one column, or two columns of texts (a pair); found {list(inputs)}.")
    refuse_foreign(kind, frame, inputs, source.name)
    if source.kind != CLASS_FOLDER:
        log.info("%s: input %s (%s), label %s.", source.name, _words(inputs), modality, _words(label))
    if source.kind != CLASS_FOLDER and not config.input:
        _offer(kind, source, frame, inputs, {*label, *taken})
    return Columns(inputs, label, modality, frozenset(frame.columns))


def _combined(source: Source, frame: pd.DataFrame, named: NamedInputs, label: tuple[str, ...]) -> Columns:
    """Return the roles of the columns where several are one text together, or each an input of its own beside files."""
    _require_apart(named.kinds, label)
    if named.files:
        log.info("%s: input %s; label %s.", source.name, described(named.kinds), _words(label))
        several = named if len(named.kinds) > 1 else None
        return Columns(tuple(named.kinds), label, named.kinds[named.files[0]], frozenset(frame.columns), several)
    log.info("%s: input %s, written as one text (%s); label %s.",
             source.name, described(named.kinds), named.title, _words(label))  # fmt: skip
    return Columns(tuple(named.kinds), label, "text", frozenset(frame.columns), named)


def _require_apart(inputs: Iterable[str], label: Iterable[str]) -> None:
    if both := sorted(set(inputs) & set(label)):
        raise UserError(f"The column {both} cannot be input and label at once.")


def _offer(kind: ModalityKind, source: Source, frame: pd.DataFrame, inputs: tuple[str, ...], taken: set[str]) -> None:
    """Log which columns a run leaves aside, and what reads them: values beside a text; texts too beside a picture."""
    free = [name for name in frame.columns if name not in taken and name not in inputs]
    free = [name for name in free if not (numbers_examples(name, frame[name]) or divides(name, frame[name]))]
    kinds = {name: kind_of_column(frame[name]) for name in free}
    varied = [name for name in free if filled(frame[name]).astype(str).nunique() > 1]
    read = {NUMBER} | {other.name for other in MODALITIES.values() if kind.files and not other.files}
    values = {name: kinds[name] for name in varied if kinds[name] in read or _is_category(kinds[name], frame[name])}
    if values:
        wanted = described(dict.fromkeys(inputs, kind.name) | values).replace(" (", ": ").replace(")", "")
        log.info("%s: not read are %s; data.input={%s} reads them too.", source.name, _words(list(values)), wanted)


def refuse_foreign(kind: ModalityKind, frame: pd.DataFrame, names: Iterable[str], where: str) -> None:
    """Raise `UserError` for a column that holds something else than inputs of a kind: pictures written as text."""
    for name in names:
        sample = list(filled(frame[name]).head(_SAMPLE))
        if found := kind.foreign(sample):
            raise UserError(
                f"{where}: the column {name!r} holds {found} (it starts with "
                f"{str(sample[0])[:20]!r}). Save each as an image file and name the files in the column."
            )


def require_column(name: str, frame: pd.DataFrame, where: str) -> None:
    """Raise `UserError` with the nearest name when `frame` has no column `name`."""
    if name not in frame.columns:
        raise UserError(f"{where} has no column {name!r}.{did_you_mean(name, frame.columns)}")


def _recognised(kind: ModalityKind, source: Source, frame: pd.DataFrame, name: str) -> bool:
    """Whether a column holds inputs of a kind: declared so, or by its values."""
    if kind.feature is not None and source.declared.get(name) == kind.feature:
        return True
    sample = list(filled(frame[name]).head(_SAMPLE))
    return bool(sample) and kind.recognises(sample)


def find_input(
    source: Source, frame: pd.DataFrame, taken: set[str], modality: str | None, option: str = "data.input"
) -> tuple[tuple[str, ...], str]:
    """Return the column of inputs, or the two columns of a text pair, outside of `taken`; and their modality.

    `option` is what names it on the command line.
    """
    free = [name for name in frame.columns if name not in taken]
    kinds = [kind_of(modality)] if modality else by_preference()
    for how in (_columns_of, _stems_of_files):
        for kind in kinds:
            if names := how(kind, source, frame, free):
                pair = _pair(names) if kind.pairs else None
                return pair or (_the_one(names, kind, option, source.name, frame),), kind.name
    for kind in MODALITIES.values():
        refuse_foreign(kind, frame, free, source.name)
    raise _unclear(f"the {kinds[-1].plural}", option, free, source.name, frame)


def _columns_of(kind: ModalityKind, source: Source, frame: pd.DataFrame, free: list[str]) -> list[str]:
    """Return the columns that hold inputs of a kind; a value in the table may also be known by the column's name alone."""
    named = set() if kind.files else kind.column_names
    return [name for name in free if name.lower() in named or _recognised(kind, source, frame, name)]


def files_below(kind: ModalityKind, root: Path) -> dict[str, list[str]]:
    """Return the files of a kind below a folder, relative to it, by file name and by file name without suffix."""
    found: dict[str, list[str]] = {}
    for path in sorted(islice(root.rglob("*"), MOST_FILES)):
        if kind.is_file_name(path.name) and not any(part.startswith(".") for part in path.relative_to(root).parts):
            for name in {path.name, path.stem}:
                found.setdefault(name, []).append(path.relative_to(root).as_posix())
    return found


def _stems_of_files(kind: ModalityKind, source: Source, frame: pd.DataFrame, free: list[str]) -> list[str]:
    """Return the columns whose every value is the name, without suffix, of a file below the table's folder."""
    if not kind.files or source.root is None or source.kind != "table":
        return []
    ids = [name for name in free if frame[name].map(lambda value: isinstance(value, str) and bool(value.strip())).all()]
    ids = [name for name in ids if not _held_by(source, frame, name)]
    files = files_below(kind, source.root) if ids else {}
    return [name for name in ids if files and all(PurePath(value.strip()).name in files for value in frame[name])]


def _held_by(source: Source, frame: pd.DataFrame, name: str) -> bool:
    """Whether a column holds inputs of any kind."""
    return any(_recognised(kind, source, frame, name) for kind in MODALITIES.values())


def _pair(texts: list[str]) -> tuple[str, str] | None:
    """Two columns named as the halves of a pair: `premise`/`hypothesis`, or one name ended by a/b, 1/2 or 0/1."""
    if len(texts) != 2:
        return None
    first, second = (name.lower() for name in texts)
    if {first, second} in PAIRS:
        return tuple(texts)
    return tuple(texts) if first[:-1] == second[:-1] and first[-1:] + second[-1:] in ("ab", "12", "01") else None


def _find_label(source: Source, frame: pd.DataFrame, taken: set[str]) -> str:
    free = [name for name in frame.columns if name not in taken and name not in source.declared]
    for group in LABEL_NAMES:
        named = [name for name in free if name.lower() in group]
        if len(named) == 1:
            others = [name for name in free if is_called_label([name])]
            return _said(named[0], others, "label", "data.label")
        if named:
            if (words := _one_meaning(frame[named])) is not None:
                return _said(words, named, "label", "data.label")
            raise _unclear("the label", "data.label", named, source.name, frame)
    free = [name for name in free if not (numbers_examples(name, frame[name]) or divides(name, frame[name]))]
    likely = [name for name in free if not _held_by(source, frame, name) and _could_be_label(frame[name])]
    if len(likely) == 1:
        return likely[0]
    raise _unclear("the label", "data.label", likely or free, source.name, frame)


def _one_meaning(columns: pd.DataFrame) -> str | None:
    """Return the column of words where all columns divide the rows alike (numbers of classes, and their names)."""
    values = columns.astype(str)
    if any(len(values.drop_duplicates()) != values[name].nunique() for name in values):
        return None
    words = [name for name in columns if any(number(value) is None for value in filled(columns[name]))]
    return words[0] if len(words) == 1 else None


def is_called_label(names: Iterable[str]) -> bool:
    """Return whether one of the columns has a usual name for labels."""
    return any(name.lower() in group for name in names for group in LABEL_NAMES)


def _said(chosen: str, candidates: list[str], role: str, option: str) -> str:
    others = [name for name in candidates if name != chosen]
    if others:
        log.info("Column %r is taken as the %s (not %s); %s says otherwise.", chosen, role, _words(others), option)
    return chosen


def _could_be_label(values: pd.Series) -> bool:
    """Values that repeat, numbers, or lists: not texts, not identifiers."""
    sample = filled(values)
    if not len(sample):
        return False
    if isinstance(sample.iloc[0], list) or all(number(value) is not None for value in sample):
        return True
    return _repeats(sample)


def _is_category(kind: str, values: pd.Series) -> bool:
    return kind == CATEGORY and _repeats(values)


def _repeats(values: pd.Series) -> bool:
    sample = filled(values)
    return sample.astype(str).nunique() <= len(sample) / 2


def _the_one(candidates: list[str], kind: ModalityKind, option: str, where: str, frame: pd.DataFrame) -> str:
    usual = [name for name in candidates if name.lower() in kind.column_names]
    if len(candidates) == 1 or len(usual) == 1:
        return _said(candidates[0] if len(candidates) == 1 else usual[0], candidates, "input", option)
    raise _unclear(f"the {kind.plural}", option, candidates, where, frame)


def _unclear(what: str, key: str, candidates: list[str], where: str, frame: pd.DataFrame) -> UserError:
    if not candidates:
        return UserError(f"{where}: no column is left for {what}. It has: {', '.join(map(repr, frame.columns))}.")
    return UserError(
        f"{where}: it is unclear which column holds {what}. "
        f"Name it with {key}={shlex.quote(candidates[0])} or another of these:{_samples(frame, candidates)}"
    )


def _samples(frame: pd.DataFrame, names: list[str]) -> str:
    """Two sample values per column, one column a line."""
    lines = [
        f"\n  {name}: {', '.join(_short(value) for value in filled(frame[name]).head(2)) or 'no values'}"
        for name in names
    ]
    return "".join(lines)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "…"


def _as_tuple(value: str | list[str] | dict[str, str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _words(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(repr, names))
