"""Which column is the input, the label, the id and the split: what the user names, else what the content shows."""

import logging
import re
from dataclasses import dataclass
from typing import Any

import pandas as pd

from hftransfer.data.cells import filled, number
from hftransfer.data.config import AUTOMATIC, DataConfig, Modality
from hftransfer.data.sources import SPLIT_WORDS, Source
from hftransfer.errors import UserError, did_you_mean
from hftransfer.images import is_image_name

log = logging.getLogger(__name__)

IMAGE_NAMES = {"image", "img", "path", "file", "filename", "file_name", "filepath", "file_path", "image_path", "photo"}
TEXT_NAMES = {
    "text", "sentence", "content", "document", "review", "comment", "tweet", "message", "question", "title", "body",
    "abstract", "sequence", "utterance", "query",
}  # fmt: skip
# In order: a column of an earlier group is preferred to one of a later group.
LABEL_NAMES = (
    {"label", "labels"},
    {"class", "classes", "category", "categories", "target", "targets"},
    {"y", "score", "rating", "intent", "sentiment", "emotion", "emotions", "tag", "tags", "topic", "genre", "stars"},
)
PAIRS = ({"premise", "hypothesis"}, {"query", "passage"}, {"question", "answer"}, {"question", "sentence"})
_SAMPLE = 500


@dataclass(frozen=True)
class Columns:
    """The roles of columns; `input` has two names for text pairs, `label` several where outputs stand in columns."""

    input: tuple[str, ...]
    label: tuple[str, ...]
    modality: Modality


def find_columns(source: Source, config: DataConfig) -> Columns:
    """The roles of the columns of `source`; raises `UserError` with sample values where it cannot be told."""
    frame = next(iter(source.parts.values()))
    named_input, named_label = _as_tuple(config.input), _as_tuple(config.label)
    taken = set(named_label) | ({config.split.group} - set(AUTOMATIC))
    for name in (*named_input, *named_label):
        require_column(name, frame, source.name)
    if named_input:
        is_image = named_input[0] in source.image_columns or looks_like_image(frame[named_input[0]])
        inputs, modality = named_input, config.modality or ("image" if is_image else "text")
    else:
        inputs, modality = find_input(source, frame, taken, config.modality)
    label = named_label or (_find_label(source, frame, {*inputs, *taken}),)
    if set(inputs) & set(label):
        raise UserError(f"The column {sorted(set(inputs) & set(label))} cannot be input and label at once.")
    if len(inputs) > 2 or (len(inputs) == 2 and modality == "image"):
        raise UserError(f"data.input takes one column, or two columns of texts (a pair); found {list(inputs)}.")
    if source.kind != "image folder":
        log.info("%s: input %s (%s), label %s.", source.name, _words(inputs), modality, _words(label))
    return Columns(inputs, label, modality)


def require_column(name: str, frame: pd.DataFrame, where: str) -> None:
    """Raise `UserError` with the nearest name when `frame` has no column `name`."""
    if name not in frame.columns:
        raise UserError(f"{where} has no column {name!r}.{did_you_mean(name, frame.columns)}")


def looks_like_image(values: pd.Series) -> bool:
    """Whether a column holds images: encoded ones as `datasets` keeps them, or file names with an image suffix."""
    sample = filled(values).head(_SAMPLE)
    return len(sample) > 0 and all(
        isinstance(value, bytes)
        or (isinstance(value, dict) and {"bytes", "path"} <= set(value))
        or (isinstance(value, str) and is_image_name(value.strip()))
        for value in sample
    )


def find_input(
    source: Source, frame: pd.DataFrame, taken: set[str], modality: Modality | None
) -> tuple[tuple[str, ...], Modality]:
    """The column of images or texts, or the two columns of a text pair, outside of `taken`."""
    free = [name for name in frame.columns if name not in taken]
    images = [name for name in free if name in source.image_columns or looks_like_image(frame[name])]
    if images and modality != "text":
        return (_the_one(images, IMAGE_NAMES, "images", "data.input", source.name, frame),), "image"
    if modality == "image":
        raise UserError(f"{source.name}: no column looks like images. Name it with data.input.{_samples(frame, free)}")
    texts = [name for name in free if name.lower() in TEXT_NAMES or _looks_like_text(frame[name])]
    pair = _pair(texts)
    if pair:
        return pair, "text"
    return (_the_one(texts, TEXT_NAMES, "texts", "data.input", source.name, frame),), "text"


def _looks_like_text(values: pd.Series) -> bool:
    """Strings of three words or twenty characters on average that are neither numbers, addresses nor file names."""
    sample = filled(values).head(_SAMPLE)
    if not len(sample) or not all(isinstance(value, str) for value in sample):
        return False
    if all(re.fullmatch(r"https?://\S+|\S+\.[A-Za-z]\w{1,4}", value.strip()) for value in sample):
        return False
    words = sum(len(value.split()) for value in sample) / len(sample)
    return words >= 3 or sum(map(len, sample)) / len(sample) >= 20


def _pair(texts: list[str]) -> tuple[str, str] | None:
    """Two columns named as the halves of a pair: `premise`/`hypothesis`, or one name ended by a/b, 1/2 or 0/1."""
    if len(texts) != 2:
        return None
    first, second = (name.lower() for name in texts)
    if {first, second} in PAIRS:
        return tuple(texts)
    return tuple(texts) if first[:-1] == second[:-1] and first[-1:] + second[-1:] in ("ab", "12", "01") else None


def _find_label(source: Source, frame: pd.DataFrame, taken: set[str]) -> str:
    free = [name for name in frame.columns if name not in taken and name not in source.image_columns]
    for group in LABEL_NAMES:
        named = [name for name in free if name.lower() in group]
        if len(named) == 1:
            return _said(named[0], [name for name in free if any(name.lower() in others for others in LABEL_NAMES)])
        if named:
            raise _unclear("the label", "data.label", named, source.name, frame)
    likely = [name for name in free if _could_be_label(frame[name]) and name.lower() not in ("id", "split", "index")]
    if len(likely) == 1:
        return likely[0]
    raise _unclear("the label", "data.label", likely or free, source.name, frame)


def _said(chosen: str, candidates: list[str]) -> str:
    others = [name for name in candidates if name != chosen]
    if others:
        log.info("Column %r is taken as the label (not %s); data.label says otherwise.", chosen, _words(others))
    return chosen


def _could_be_label(values: pd.Series) -> bool:
    """Values that repeat, numbers, or lists: not texts, not identifiers."""
    sample = filled(values)
    if not len(sample) or _looks_like_text(values) or looks_like_image(values):
        return False
    if isinstance(sample.iloc[0], list) or all(number(value) is not None for value in sample):
        return True
    return sample.astype(str).nunique() <= len(sample) / 2


def _the_one(
    candidates: list[str], conventional: set[str], what: str, key: str, where: str, frame: pd.DataFrame
) -> str:
    usual = [name for name in candidates if name.lower() in conventional]
    if len(candidates) == 1 or len(usual) == 1:
        return candidates[0] if len(candidates) == 1 else usual[0]
    raise _unclear(f"the {what}", key, candidates or list(frame.columns), where, frame)


def _unclear(what: str, key: str, candidates: list[str], where: str, frame: pd.DataFrame) -> UserError:
    return UserError(
        f"{where}: it is unclear which column holds {what}. "
        f"Name it with {key}={candidates[0] if candidates else '…'} or another of these:{_samples(frame, candidates)}"
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


def _as_tuple(value: str | list[str] | None) -> tuple[str, ...]:
    return () if value is None else (value,) if isinstance(value, str) else tuple(value)


def _words(names: tuple[str, ...] | list[str]) -> str:
    return ", ".join(map(repr, names))


def split_column(frame: pd.DataFrame) -> str | None:
    """The column named `split` when all its values are words for train, validation and test."""
    for name in frame.columns:
        if name.lower() == "split":
            words = {str(value).strip().lower() for value in frame[name]}
            if words <= set(SPLIT_WORDS):
                return name
            log.info("Column %r is no division into train, validation and test (values: %s).", name, sorted(words)[:5])
    return None
