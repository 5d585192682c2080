"""Masks in all usual forms as one: the bytes of a PNG with a class number for each pixel, 255 where a pixel has none.

Read are grey masks of class numbers or of 0 and 255, palette files (their numbers), and colours by a table of classes or as
they are found. Where a column holds masks, `Source.declared` says so, and `Source.class_names` has their names.
"""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.core.mask_files import IGNORED, decode_mask, encode_mask, mask_size, resized_mask
from hftransfer.data.columns import as_written, is_called_label, require_column
from hftransfer.data.config import DataConfig
from hftransfer.data.mask_classes import Classes, find_classes, given_classes, listed_classes
from hftransfer.data.mask_folders import MASKS, masked
from hftransfer.data.mask_values import read_masks
from hftransfer.data.rows import file_input
from hftransfer.data.sources import MASK, MaskFacts, Source
from hftransfer.data.values import Fault, filled, is_missing
from hftransfer.modalities import ModalityKind, by_preference
from hftransfer.modalities.inspection import Inspection, each_in_threads
from hftransfer.tasks import task_kind

log = logging.getLogger(__name__)

NAMES = {
    *MASKS,
    "mask_path",
    "mask_file",
    "label_path",
    "annotation_path",
    "semantic_mask",
    "segmentation_mask",
    "mask_image",
}
SAME_SHAPE = 0.01  # the ratio of width to height may differ by this share
_PNG = b"\x89PNG\r\n\x1a\n"
_GREY = 0  # PNG's type of colour


def are_masks(values: Iterable[Any]) -> bool:
    """Return whether a column holds masks in the form of this package: at least one, and nothing else but faults."""
    kept = [value for value in values if not isinstance(value, Fault) and not is_missing(value)]
    return bool(kept) and all(_is_mask(value) for value in kept)


def _is_mask(value: Any) -> bool:
    return isinstance(value, bytes) and value[:8] == _PNG and value[24:26] == bytes([8, _GREY])


def with_masks(sources: list[Source], config: DataConfig) -> list[Source]:
    """Return sources whose column of masks is in the form of this package; sources without masks as they are.

    All are read together, so that a value or colour means the same class in each. A mask that cannot be read becomes a
    `Fault`. Raises `UserError` for masks that no set of classes fits.
    """
    wanted = None if config.task is None else task_kind(config.task)
    if wanted is not None and not wanted.by_pixel:
        return sources
    columns = [mask_column(_with_template(source, config), config, wanted is not None) for source in sources]
    if columns[0] is None:
        return sources
    sources = [_with_template(source, config) for source in sources]
    found = [_raw(source, column, config) for source, column in zip(sources, columns, strict=True)]
    classes = _classes(sources, columns, found, config)
    found = [_renumbered(*each, classes) for each in zip(sources, columns, found, strict=True)]
    values = [value for parts in found for part in parts.values() for value in part]
    names, masks, facts = read_masks(values, classes, columns[0], sources[0].name)
    masks = iter(masks)
    return [
        _canonical(
            source, column, {part: [next(masks) for _ in values] for part, values in parts.items()}, names, facts
        )
        for source, column, parts in zip(sources, columns, found, strict=True)
    ]


def _classes(
    sources: list[Source], columns: list[str | None], found: list[dict[str, list]], config: DataConfig
) -> Classes | None:
    """Return the classes that are given, those of outlines, or those of a file; None without any."""
    if config.classes is not None:
        return given_classes(config.classes)
    drawn = [
        name for source, column in zip(sources, columns, strict=True) for name in source.class_names.get(column, ())
    ]
    if drawn:
        return listed_classes(list(dict.fromkeys(drawn)), "the annotations")
    return find_classes(_places(sources, [value for parts in found for part in parts.values() for value in part]))


def _renumbered(source: Source, column: str | None, parts: dict[str, list], classes: Classes | None) -> dict[str, list]:
    """Return masks drawn from outlines with the numbers that all sources have, by the names of their classes."""
    own = source.class_names.get(column)
    if own is None or classes is None or list(classes.names[: len(own)]) == own and classes.listed:
        return parts
    unknown = [name for name in own if name not in classes.names]
    if unknown:
        log.warning("%s: %s are no classes of %s; their pixels are read as not labelled.", source.name, ", ".join(unknown),
                    classes.origin)  # fmt: skip
    value_of = {place: value for value, place in reversed(classes.values.items())}
    table = np.full(256, IGNORED, dtype=np.uint8)
    for place, name in enumerate(own):
        if name in classes.names:
            table[place] = value_of[classes.names.index(name)]

    def renumbered(mask: Any) -> Any:
        return encode_mask(table[decode_mask(mask)]) if isinstance(mask, bytes) else mask

    return {part: each_in_threads(renumbered, masks, "numbering classes") for part, masks in parts.items()}


def _canonical(
    source: Source, column: str | None, parts: dict[str, list], names: list[str], facts: MaskFacts
) -> Source:
    if column is None:
        return source
    frames = {
        part: frame.assign(**{column: pd.Series(parts[part], index=frame.index, dtype=object)})
        if part in parts
        else frame
        for part, frame in source.parts.items()
    }
    facts = replace(facts, overlap=source.masks.overlap if source.masks else 0)
    return replace(source, parts=frames, class_names={**source.class_names, column: names},
                   declared={**source.declared, column: MASK}, masks=facts)  # fmt: skip


# --- columns ----------------------------------------------------------------------------------------------------------


def _with_template(source: Source, config: DataConfig) -> Source:
    """Return a table with the column of masks that `data.mask` gives; other sources as they are."""
    if config.mask is None or source.mask_columns or source.root is None:
        return source
    kind, column = picture_kind(), "mask"
    parts = {}
    for part, frame in source.parts.items():
        inputs = [config.input] if isinstance(config.input, str) else _pictures(frame, kind)
        if not inputs or column in frame:
            return source
        paths = [
            None if is_missing(path) else masked(config.mask, str(path).strip(), source.root)
            for path in frame[inputs[0]]
        ]
        there = [path if path and (source.root / path).is_file() else None for path in paths]
        if paths and not any(there):
            raise UserError(
                f"data.mask={config.mask!r} names no file: the first mask would be {source.root / paths[0]}."
            )
        parts[part] = frame.assign(**{column: pd.Series(there, index=frame.index, dtype=object)})
    return replace(source, parts=parts, declared={**source.declared, column: MASK})


def mask_column(source: Source, config: DataConfig, wanted: bool = False) -> str | None:
    """Return the column of masks: declared, named by `data.label`, or beside images under a usual name; None without any.

    A table that names classes too is one of masks only where the task is `wanted` or the column is named.
    """
    frame, kind = next(iter(source.parts.values())), picture_kind()
    if isinstance(config.label, list) and len(config.label) != 1:
        return None
    label = config.label[0] if isinstance(config.label, list) else config.label
    if label is not None:
        label = as_written(label, frame)
        if wanted:
            require_column(label, frame, source.name)
        return (
            label if label in source.mask_columns or (label in frame and _holds_pictures(frame, label, kind)) else None
        )
    if source.mask_columns:
        return source.mask_columns[0]
    pictures = _pictures(frame, kind)
    usual = [name for name in pictures if name.strip().lower() in NAMES]
    if not usual or len(pictures) < 2:
        return None
    others = [name for name in frame.columns if name not in pictures]
    if not wanted and is_called_label(others):
        log.info("%s: the column %r holds masks; data.label=%s learns these.", source.name, usual[0], usual[0])
        return None
    return usual[0]


def picture_kind() -> ModalityKind:
    """Return the kind of inputs that masks belong to."""
    return next(kind for kind in by_preference() if kind.content == "picture")


def _pictures(frame: pd.DataFrame, kind: ModalityKind) -> list[str]:
    return [name for name in frame.columns if _holds_pictures(frame, name, kind)]


def _holds_pictures(frame: pd.DataFrame, name: str, kind: ModalityKind) -> bool:
    sample = list(filled(frame[name]).head(100))
    return bool(sample) and kind.recognises(sample)


def _raw(source: Source, column: str | None, config: DataConfig) -> dict[str, list[Any]]:
    """Return the masks of each part that has the column: None, `Fault`, path or encoded bytes."""
    if column is None:
        return {}
    kind = picture_kind()

    def raw(value: Any) -> Any:
        if isinstance(value, Fault) or is_missing(value):
            return value if isinstance(value, Fault) else None
        return file_input(kind.encoded(value), source.root, config.allow_outside) or None

    return {part: list(map(raw, frame[column])) for part, frame in source.parts.items() if column in frame}


def _places(sources: list[Source], values: list[Any]) -> list[Path]:
    """Return the folders in which a file of classes may stand: those of the data, and those above masks inside of these."""
    roots = [source.root for source in sources if source.root is not None]
    parents = dict.fromkeys(Path(value).parent for value in values if isinstance(value, str))
    above = [folder for parent in parents for folder in (parent, *parent.parents)
             if any(folder.is_relative_to(root) for root in roots)]  # fmt: skip
    return list(dict.fromkeys([*roots, *above]))


# --- masks and their pictures -----------------------------------------------------------------------------------------


def fitted(rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows (columns `label`, `inspection`) whose masks have the size of their picture; others become a `Fault`.

    A mask of the same shape and another size is resized.
    """
    pairs = list(zip(rows["label"], rows["inspection"], strict=True))
    labels = each_in_threads(lambda pair: _fitted(*pair), pairs, "comparing sizes")
    changed = sum(new is not old and not isinstance(new, Fault) for new, old in zip(labels, rows["label"], strict=True))
    if changed:
        log.info(
            "%d masks have another size than their picture and its shape: they are resized (nearest pixel).", changed
        )
    return rows.assign(label=pd.Series(labels, index=rows.index, dtype=object))


def usable_masks(frame: pd.DataFrame, inspections: Sequence[Inspection]) -> tuple[pd.DataFrame, dict[int, str]]:
    """Return the rows with masks of the size of their picture, and by row why others have none."""
    rows = fitted(frame.assign(inspection=pd.Series(list(inspections), index=frame.index, dtype=object)))
    faults = {place: label.reason for place, label in enumerate(rows["label"]) if isinstance(label, Fault)}
    kept = [None if isinstance(label, Fault) else label for label in rows["label"]]
    return frame.assign(label=pd.Series(kept, index=frame.index, dtype=object)), faults


def _fitted(label: Any, inspection: Inspection) -> Any:
    if not isinstance(label, bytes) or inspection.fault:
        return label
    (height, width), own = picture_size(inspection), mask_size(label)
    if own == (height, width):
        return label
    if abs(own[0] * width - own[1] * height) > SAME_SHAPE * own[0] * width:
        return Fault(f"its mask has {own[1]} x {own[0]} pixels, the picture {width} x {height}")
    return encode_mask(resized_mask(decode_mask(label), (height, width)))


def picture_size(inspection: Inspection) -> tuple[int, int]:
    """Return height and width of a picture as it is seen: EXIF may turn it by a quarter."""
    width, height = inspection.size
    return (width, height) if inspection.orientation >= 5 else (height, width)
