"""Words with tags, and texts with spans, in all usual forms, as one: texts and lists of entities in characters.

Read are lists of words beside lists of tags (CoNLL files, `datasets`), doccano (`label: [[start, end, name]]`), Prodigy and
spaCy (`spans` or `entities` with start, end, label), and Label Studio (`labels` of each span; `label_studio` for its tasks).
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.conll import tag_columns
from hftransfer.data.sources import Source
from hftransfer.data.tags import entities_of, scheme_of
from hftransfer.data.values import filled, is_missing

log = logging.getLogger(__name__)

TEXT = "text"  # the column that words become
LABELS = ("ner_tags", "ner", "tags", "labels", "label", "entities", "spans", "annotations")
WORDS = ("tokens", "words", "sentence", TEXT)
TEXTS = (TEXT, "sentence", "content", "data", "document")
DOCUMENTS, FEWEST_DOCUMENTS = ("doc", "document", "doc_id", "document_id"), 10
NAME = ("label", "labels", "type", "entity", "entity_group", "tag", "name")  # keys of an entity that hold its type
START, END = ("start", "start_offset", "begin", "start_char"), ("end", "end_offset", "stop", "end_char")


def are_entities(values: Sequence[Any]) -> bool:
    """Return whether a column holds lists of entities in the form of this package, one of them at least."""
    lists = [value for value in values if not is_missing(value)]
    entries = [entry for value in lists if isinstance(value, list) for entry in value]
    return (
        bool(entries)
        and all(isinstance(value, list) for value in lists)
        and all(isinstance(entry, dict) and entry.keys() == {"start", "end", "label"} for entry in entries)
    )


def with_entities(source: Source, label: str | None = None, text: str | None = None) -> Source:
    """Return a source whose words become texts, and whose tags or spans become entities; any other source as it is.

    `label` and `text` are the columns that the user named, if any. Raises `UserError` for spans outside of their text.
    """
    frame = next(iter(source.parts.values()))
    words = _words(frame, text)
    if words:
        return _with_documents(_from_words(source, frame, words, label))
    spans = _spans(frame, label)
    return _with_documents(_from_spans(source, frame, spans, text)) if spans else source


def _with_documents(source: Source) -> Source:
    """Return a source that names the column of its documents, where sentences of one document may be told by it."""
    frame = next(iter(source.parts.values()))
    for name in DOCUMENTS:
        count = frame[name].nunique() if name in frame and not frame[name].map(_is_list).any() else 0
        if FEWEST_DOCUMENTS <= count < len(frame):
            log.info("%s: sentences of one document (%r, %d documents) stay on one side.", source.name, name, count)
            return replace(source, documents=name)
        if 0 < count < min(FEWEST_DOCUMENTS, len(frame)):
            log.info("%s: %d documents are too few to divide: data.split.group=%s does it nevertheless.",
                     source.name, count, name)  # fmt: skip
    return source


def _is_list(value: Any) -> bool:
    return isinstance(value, list | dict)


def joined(frame: pd.DataFrame) -> pd.DataFrame:
    """Return a table for prediction with its lists of words as texts."""
    name = _words(frame, None)
    return frame if name is None else _as_texts(frame, name)


# --- words and tags ---------------------------------------------------------------------------------------------------


def _words(frame: pd.DataFrame, wanted: str | None) -> str | None:
    """Return the column of lists of words: the one that is named, else the first with a usual name."""
    lists = [name for name in frame.columns if _holds_words(frame[name])]
    names = (wanted,) if wanted in lists else WORDS
    return next((name for name in names if name in lists), None)


def _holds_words(values: pd.Series) -> bool:
    sample = list(filled(values).head(100))
    return bool(sample) and all(isinstance(v, list) and all(isinstance(word, str) for word in v) for v in sample)


def _from_words(source: Source, frame: pd.DataFrame, words: str, label: str | None) -> Source:
    beside = [name for name in frame.columns if name != words and _beside(frame[words], frame[name])]
    if not beside:
        return source  # a list of words as input of another task is none that is known here
    parts = {part: _named(part_frame, beside, source) for part, part_frame in source.parts.items()}
    chosen = _tag_column(next(iter(parts.values())), beside, label, source.name)
    sequences = [tags for part in parts.values() if chosen in part for tags in part[chosen] if not is_missing(tags)]
    scheme, broken = _scheme(sequences, chosen, source.name)
    dropped = [name for name in beside if name != chosen]
    parts = {part: _tagged(rows, words, chosen, scheme != "IO").drop(columns=dropped, errors="ignore")
             for part, rows in parts.items()}  # fmt: skip
    log.info("%s: tags of words in %r (%s), read as entities.", source.name, chosen, scheme)
    if broken:
        log.warning("%s: %d I tags continue no entity of their type: each begins one.", source.name, broken)
    repairs = (f"{broken} I tags continue no entity of their type: each begins one",) if broken else ()
    names = {k: v for k, v in source.class_names.items() if k not in beside}
    return replace(source, parts=parts, class_names=names, repairs=repairs)


def _beside(words: pd.Series, tags: pd.Series) -> bool:
    """Return whether a column holds one value for each word of each row, where it holds any."""
    pairs = [(w, t) for w, t in zip(words, tags, strict=True) if not is_missing(t)]
    return bool(pairs) and all(
        isinstance(w, list) and isinstance(t, list) and len(w) == len(t) and all(isinstance(e, str | int) for e in t)
        for w, t in pairs
    )


def _named(frame: pd.DataFrame, columns: list[str], source: Source) -> pd.DataFrame:
    """Return a frame whose numbered tags have the names that the data declare."""
    for name in columns:
        names = source.class_names.get(name)
        if names and name in frame:
            values = [tags if is_missing(tags) else [names[tag] for tag in tags] for tags in frame[name]]
            frame = frame.assign(**{name: pd.Series(values, index=frame.index, dtype=object)})
    return frame


def _tag_column(frame: pd.DataFrame, beside: list[str], label: str | None, where: str) -> str:
    if label is not None:
        if label not in beside:
            raise UserError(
                f"{where}: data.label={label} holds no tag for each word. Columns that do: {', '.join(beside)}."
            )
        return label
    usable = tag_columns(frame, beside)
    for name in LABELS:
        if name in usable:
            return name
    if len(usable) == 1:
        return usable[0]
    if usable:
        raise UserError(f"{where}: it is unclear which column holds the tags. Name it with data.label={usable[0]}.")
    numbers = any(isinstance(tag, int) for tags in filled(frame[beside[0]]) for tag in tags)
    why = "are numbers without names: write the names of the tags" if numbers else "have no O for words of no entity"
    raise UserError(f"{where}: the tags in {beside[0]!r} {why}. Expected tags such as O, B-person and I-person.")


def _scheme(sequences: list[list[str]], column: str, where: str) -> tuple[str, int]:
    if not any(tag.strip().upper() == "O" for tags in sequences for tag in tags):
        raise UserError(
            f"{where}: the tags in {column!r} have no O for words of no entity. Expected O, B-person and so on."
        )
    return scheme_of(sequences)


def _tagged(frame: pd.DataFrame, words: str, tags: str, prefixed: bool) -> pd.DataFrame:
    """Return a frame with texts in place of words, and entities in place of tags, where it has tags."""
    if tags in frame:
        rows = zip(frame[words], frame[tags], strict=True)
        found = [None if is_missing(own) else _in_characters(row, entities_of(own, prefixed)) for row, own in rows]
        frame = frame.assign(**{tags: pd.Series(found, index=frame.index, dtype=object)})
    return _as_texts(frame, words)


def _as_texts(frame: pd.DataFrame, words: str) -> pd.DataFrame:
    texts = ["" if is_missing(row) else " ".join(map(_plain, row)) for row in frame[words]]
    frame = frame.drop(columns={words, TEXT} & set(frame.columns))
    return frame.assign(**{TEXT: pd.Series(texts, index=frame.index, dtype=object)})


def _plain(word: str) -> str:
    """Return a word without blanks around it, and a mark in place of one that is blank: texts keep all of them."""
    return "_".join(word.split()) or "_"


def _in_characters(words: list[str], entities: list[tuple[int, int, str]]) -> list[dict[str, Any]]:
    begins, position = [], 0
    for word in map(_plain, words):
        begins.append(position)
        position += len(word) + 1
    ends = [begin + len(_plain(word)) for begin, word in zip(begins, words, strict=True)]
    return [_entity(begins[first], ends[end - 1], kind) for first, end, kind in entities]


def _entity(start: int, end: int, label: str) -> dict[str, Any]:
    return {"start": start, "end": end, "label": label}


# --- texts and spans --------------------------------------------------------------------------------------------------


def _spans(frame: pd.DataFrame, label: str | None) -> str | None:
    """Return the column of spans: the one that is named, else the first with a usual name."""
    named = [label] if label else [name for name in LABELS if name in frame.columns]
    return next((name for name in named if name in frame.columns and _holds_spans(frame[name])), None)


def _holds_spans(values: pd.Series) -> bool:
    lists = [_unwrapped(value) for value in filled(values)]
    if not lists or not all(isinstance(value, list) for value in lists):
        return False
    entries = [entry for value in lists for entry in value]
    return bool(entries) and all(_read(entry) is not None for entry in entries)


def _unwrapped(value: Any) -> Any:
    """Return the list of spans in `{"entities": […]}`, as spaCy has it."""
    return value["entities"] if isinstance(value, dict) and set(value) == {"entities"} else value


def _read(entry: Any) -> tuple[int, int, str, str | None] | None:
    """Return start, end, type and, where it is given, the text of one span; None for anything else."""
    if isinstance(entry, dict):
        start, end, name = (next((entry[key] for key in keys if entry.get(key) is not None), None)
                            for keys in (START, END, NAME))  # fmt: skip
        text = entry.get("text")
        name = name[0] if isinstance(name, list) and len(name) == 1 else name
    elif isinstance(entry, list | tuple) and len(entry) == 3:
        (start, end, name), text = entry, None
    else:
        return None
    whole = all(isinstance(v, int | float) and not isinstance(v, bool) and float(v).is_integer() for v in (start, end))
    return (int(start), int(end), name, text) if whole and isinstance(name, str) and name.strip() else None


def _from_spans(source: Source, frame: pd.DataFrame, spans: str, text: str | None) -> Source:
    text = text or _text_column(frame, spans, source.name)
    rows = [(str(row), [_read(entry) for entry in _unwrapped(value)])
            for part in source.parts.values() if spans in part
            for row, value in zip(part[text], part[spans], strict=True) if not is_missing(value)]  # fmt: skip
    position = _positions(rows, source.name)
    changed: dict[str, int] = {}
    parts = {}
    for name, part in source.parts.items():
        if spans in part:
            values = [None if is_missing(value) else _clean(str(row), _unwrapped(value), position, changed)
                      for row, value in zip(part[text], part[spans], strict=True)]  # fmt: skip
            part = part.assign(**{spans: pd.Series(values, index=part.index, dtype=object)})
        parts[name] = part
    log.info("%s: spans of texts in %r, read as entities.", source.name, spans)
    for what, count in changed.items():
        log.warning("%s: %d spans %s.", source.name, count, what)
    return replace(source, parts=parts, repairs=tuple(f"{count} spans {what}" for what, count in changed.items()))


def _text_column(frame: pd.DataFrame, spans: str, where: str) -> str:
    texts = [n for n in frame.columns if n != spans and all(isinstance(v, str) for v in filled(frame[n]).head(100))]
    usual = [name for name in TEXTS if name in texts]
    if not texts:
        raise UserError(f"{where}: the column {spans!r} holds spans, and no column holds their texts.")
    return usual[0] if usual else max(texts, key=lambda name: frame[name].map(lambda v: len(str(v))).mean())


def _positions(rows: list[tuple[str, list]], where: str) -> Callable[[str, int], int]:
    """Return what makes a position in characters of one in the data: itself, or that of UTF-16 as browsers count.

    Raises `UserError` with the first span that neither way of counting places in its text.
    """
    misplaced = next((row for row in rows if not _fits(*row, _same)), None)
    if misplaced is None:
        return _same
    if all(_fits(*row, _from_utf16) for row in rows):
        log.warning("%s: spans are counted in UTF-16 units, as browsers do: they are read as characters.", where)
        return _from_utf16
    text, spans = misplaced
    start, end, name, own = next(span for span in spans if not _fits(text, [span], _same))
    wanted = f", where {own!r} is written beside it" if own else f", and the text has {len(text)} characters"
    raise UserError(
        f"{where}: the span {start} to {end} ({name}) of {text[:60]!r} is {text[start:end]!r}{wanted}. Correct its place."
    )


def _same(text: str, position: int) -> int:
    return position


def _from_utf16(text: str, position: int) -> int:
    return len(text.encode("utf-16-le")[: 2 * position].decode("utf-16-le", "ignore"))


def _fits(text: str, spans: list[tuple[int, int, str, str | None]], position: Callable[[str, int], int]) -> bool:
    size = len(text) if position is _same else len(text.encode("utf-16-le")) // 2
    return all(
        0 <= start < end <= size and (own is None or text[position(text, start) : position(text, end)] == own)
        for start, end, _, own in spans
    )


def _clean(
    text: str, value: list[Any], position: Callable[[str, int], int], changed: dict[str, int]
) -> list[dict[str, Any]]:
    """Return the entities of one text, without blanks at their ends, none inside of another; count what was changed."""
    kept: list[dict[str, Any]] = []
    read = [(position(text, start), position(text, end), name) for start, end, name, _ in map(_read, value)]
    for start, end, name in sorted(read, key=lambda span: (span[0] - span[1], span[0])):  # longest first
        inner = text[start:end]
        trimmed = start + len(inner) - len(inner.lstrip()), end - (len(inner) - len(inner.rstrip()))
        if trimmed != (start, end):
            _count(changed, "lose the blanks at their ends")
        if trimmed[0] >= trimmed[1]:
            continue
        if any(trimmed[0] < other["end"] and trimmed[1] > other["start"] for other in kept):
            _count(changed, "overlap a longer one and are left out: a word has one tag")
        else:
            kept.append(_entity(*trimmed, name.strip()))
    return sorted(kept, key=lambda entity: entity["start"])


def _count(changed: dict[str, int], what: str) -> None:
    changed[what] = changed.get(what, 0) + 1
