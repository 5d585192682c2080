"""What the values or colours of masks mean: read all masks, find their classes, and number the pixels by class."""

import logging
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from hftransfer.core.errors import UnreadableInput, UserError
from hftransfer.core.image_files import opened
from hftransfer.core.mask_files import IGNORED, MOST_CLASSES, UnreadableMask, encode_mask
from hftransfer.data.mask_classes import BACKGROUND, Classes, named, packed, written
from hftransfer.data.mask_folders import is_for_masks
from hftransfer.data.sources import MaskFacts
from hftransfer.data.values import Fault
from hftransfer.modalities.inspection import each_in_threads

log = logging.getLogger(__name__)

MOST_COLOURS = 64  # without a table: more are the edges of a picture that was resized, or JPEG
NEAR, LEAST_NEAR, LEAST_INNER = 32, 0.8, 3  # of masks of 0 and 255 with values between


@dataclass(frozen=True)
class _Seen:
    """What a first look at a mask shows: how many pixels of each value, or of each colour (24 bits)."""

    counts: dict[int, int] = field(default_factory=dict)
    coloured: bool = False
    palette: dict[int, int] = field(default_factory=dict)  # value -> colour
    fault: str | None = None


@dataclass(frozen=True)
class _Scheme:
    """The names of classes, and the class of each value or colour; what is not in the table has none."""

    names: list[str]
    table: dict[int, int]
    by_colour: bool = False
    threshold: bool = False  # masks of 0 and 255 with values between: 128 and above is the class
    binary: bool = False

    def written(self) -> dict[str, str]:
        """Return the name of each value or colour, in the order of classes: what `data.classes` takes."""
        ordered = sorted(self.table.items(), key=lambda item: item[::-1])
        return {written(value) if self.by_colour else str(value): self.names[place] for value, place in ordered}


def read_masks(
    values: list[Any], classes: Classes | None, column: str, where: str
) -> tuple[list[str], list[Any], MaskFacts]:
    """Return the names of classes, the masks in the form of this package, and what reading them showed.

    `values` are paths, encoded bytes, `Fault` or None. Raises `UserError` where none can be read or no classes fit.
    """
    seen = each_in_threads(_look, values, "reading masks")
    whole = [each for each in seen if each is not None and each.fault is None]
    if not whole:
        fault = next((each.fault for each in seen if each is not None), "none is given")
        raise UserError(f"{where}: no mask of the column {column!r} can be read: {fault}.")
    by_colour = _by_colour(whole, classes)
    counts = _total(_as_colours(each) if by_colour else each.counts for each in whole)
    foreground = _foreground([value for value in values if isinstance(value, str)])
    palettes = any(each.palette for each in whole)
    scheme = (_of_colours if by_colour else _of_values)(counts, classes, foreground, where, palettes)
    _log_scheme(scheme, counts, column, where, classes)
    pairs = list(zip(values, seen, strict=True))
    masks = each_in_threads(lambda pair: _converted(*pair, scheme), pairs, "reading masks")
    between = sum(not set(each.counts) <= {0, 255} for each in whole) if scheme.threshold else 0
    facts = MaskFacts(scheme.binary, between, _unnamed(scheme, counts, where), classes=scheme.written())
    return scheme.names, masks, facts


def _unnamed(scheme: _Scheme, counts: Counter, where: str) -> dict[str, int]:
    """Return how many pixels each value or colour without a class has; warn of them."""
    ignored = set() if scheme.by_colour else {IGNORED}
    left = {} if scheme.threshold else {v: n for v, n in counts.items() if v not in scheme.table and v not in ignored}
    unnamed = {written(value) if scheme.by_colour else str(value): count for value, count in left.items()}
    if unnamed:
        log.warning("%s: masks hold values that no class has, read as not labelled: %s.", where,
                    _few(f"{value} ({count} pixels)" for value, count in unnamed.items()))  # fmt: skip
    return unnamed


def _look(value: Any) -> _Seen | None:
    if value is None or isinstance(value, Fault):
        return None if value is None else _Seen(fault=value.reason)
    try:
        with opened(value) as image:
            return _counted(image)
    except UnreadableInput as error:
        return _Seen(fault=f"its mask cannot be read: {error.reason}")


def _counted(image: Image.Image) -> _Seen:
    pixels = _pixels(image)
    coloured = pixels.ndim == 3
    counts = _counts(_packed(pixels) if coloured else pixels)
    return _Seen(counts, coloured, {} if coloured else _palette(image, counts))


def _counts(values: np.ndarray) -> dict[int, int]:
    if values.dtype == np.uint8:  # many times as fast as to sort them
        found = np.bincount(values.ravel(), minlength=256)
        return {int(value): int(found[value]) for value in np.flatnonzero(found)}
    return {int(value): int(count) for value, count in zip(*np.unique(values, return_counts=True), strict=True)}


def _pixels(image: Image.Image) -> np.ndarray:
    """Return the values (H, W) of a mask, or its colours (H, W, 3); grey written as colours is values.

    Raises `UnreadableMask` for fractions.
    """
    if image.mode in ("P", "L", "1", "F") or image.mode.startswith("I"):
        pixels = np.asarray(image)
        if image.mode == "F" and not (pixels == np.floor(pixels)).all():
            raise UnreadableMask("of floats", "it holds fractions: expected the number of a class for each pixel")
        return pixels.astype(np.uint8) if pixels.dtype == bool else pixels
    if image.mode in ("LA", "PA"):
        return np.asarray(image)[..., 0]
    pixels = np.asarray(image.convert("RGB"))
    grey = (pixels[..., 0] == pixels[..., 1]).all() and (pixels[..., 0] == pixels[..., 2]).all()
    return pixels[..., 0] if grey else pixels


def _packed(pixels: np.ndarray) -> np.ndarray:
    wide = pixels.astype(np.int32)
    return (wide[..., 0] << 16) | (wide[..., 1] << 8) | wide[..., 2]


def _palette(image: Image.Image, used: Iterable[int]) -> dict[int, int]:
    """Return the colour of each value of a palette file that is used; {} for another file."""
    if image.mode != "P":
        return {}
    table = image.getpalette("RGB") or []
    return {value: packed(table[3 * value : 3 * value + 3]) for value in used if 3 * value + 3 <= len(table)}


def _foreground(paths: list[str]) -> str:
    """Return the name of the only class: of the folder of masks, where that is a name of its own."""
    folders = {Path(path).parent.name for path in paths}
    name = next(iter(folders)) if len(folders) == 1 else ""
    usual = not name or is_for_masks(name) or name.lower().rstrip("0123456789") in ("train", "val", "test", "valid")
    return "foreground" if usual else name


def _by_colour(seen: list[_Seen], classes: Classes | None) -> bool:
    """Return whether colours tell the classes: of a table, of RGB files, or of palettes that number them differently."""
    if any(each.coloured for each in seen):
        return True
    palettes = [each for each in seen if each.palette]
    if classes is not None and classes.colours:
        known = [_as_colours(each) for each in seen]
        return all(set(colours) <= set(classes.colours) for colours in known) or not classes.values
    of_value: dict[int, int] = {}
    return any(
        of_value.setdefault(value, colour) != colour for each in palettes for value, colour in each.palette.items()
    )


def _as_colours(seen: _Seen) -> dict[int, int]:
    """Return the pixels of each colour."""
    if seen.coloured:
        return seen.counts
    return {seen.palette.get(value, packed([value % 256] * 3)): count for value, count in seen.counts.items()}


def _total(counts: Iterable[dict[int, int]]) -> Counter:
    total: Counter = Counter()
    for each in counts:
        total.update(each)
    return total


# --- schemes ----------------------------------------------------------------------------------------------------------


def _of_colours(counts: Counter, classes: Classes | None, foreground: str, where: str, palettes: bool) -> _Scheme:
    if classes is not None and classes.colours:
        if not set(counts) & set(classes.colours):
            raise UserError(
                f"{where}: the masks hold none of the colours of {classes.origin}, but {_few(map(written, counts))}."
            )
        return _Scheme(list(classes.names), classes.colours, by_colour=True)
    if len(counts) > MOST_COLOURS:
        raise UserError(
            f"{where}: the masks hold {len(counts)} colours, so their edges are blurred (resized, or saved as JPEG). Save them "
            "as PNG without smoothing, or give the colours of classes: data.classes={background: '#000000', NAME: '#ff0000'}."
        )
    first = 0 if 0 in counts else counts.most_common(1)[0][0]
    colours = [first, *sorted(set(counts) - {first})]
    names = ["background", *([foreground] if len(colours) == 2 else map(written, colours[1:]))]
    if classes is not None and len(classes.names) == len(names):
        log.info("%s: %s names no colours.", where, classes.origin)
    return _Scheme(names, {colour: place for place, colour in enumerate(colours)}, by_colour=True)


def _of_values(counts: Counter, classes: Classes | None, foreground: str, where: str, palettes: bool) -> _Scheme:
    two = classes is None or len(classes.names) <= 2
    name = next((each for each in (classes.names if classes else ()) if each.lower() not in BACKGROUND), foreground)
    between = two and not palettes and _between(counts)
    if two and classes is not None and 1 not in classes.values and set(counts) - {IGNORED} == {0, 1}:
        return _Scheme(["background", name], {0: 0, 1: 1})  # masks of 0 and 1 for a model of 0 and 255
    if two and (set(counts) in ({0, 255}, {255}) or between):
        return _Scheme(["background", name], {0: 0, 255: 1}, threshold=between, binary=True)
    if classes is not None:
        return _of_classes(counts, classes, where)
    greys = not palettes and _even(sorted(counts))
    values = [value for value in sorted(counts) if value != IGNORED or greys]
    _refuse_many(values, where)
    names = ["background" if value == 0 else f"class {value}" for value in values]
    if len(values) == 2 and values[0] == 0:
        names[1] = foreground
    return _Scheme(names, {value: place for place, value in enumerate(values)})


def _of_classes(counts: Counter, classes: Classes, where: str) -> _Scheme:
    values = {value for value in counts if value != IGNORED}
    if classes.listed and values and max(values) == len(classes.names) and classes.names[0].lower() not in BACKGROUND:
        log.info("%s: %s leaves out the background, which is 0.", where, classes.origin)
        classes = classes.with_background()
    if not classes.values:
        raise UserError(
            f"{where}: {classes.origin} gives colours, but the masks hold the values {_few(sorted(values))}. Give the value of "
            "each class, for example data.classes={background: 0, NAME: 1}."
        )
    if not values & set(classes.values):
        raise UserError(
            f"{where}: the masks hold {_few(sorted(values))}, and none of the values of {classes.origin} "
            f"({named(classes.values, classes.names)})."
        )
    _refuse_many(classes.names, where)
    return _Scheme(list(classes.names), classes.values)


def _between(counts: Counter) -> bool:
    """Return whether values are those of 0 and 255, blurred by resizing or JPEG.

    Class numbers are small, or count up without a gap; the greys of a blurred outline are neither.
    """
    inner = sorted(set(counts) - {0, 255})
    near = sum(count for value, count in counts.items() if not NEAR < value < 255 - NEAR)
    gaps = len(inner) > 200 or bool(inner) and inner != list(range(inner[0], inner[0] + len(inner)))
    upper = len(inner) >= LEAST_INNER and 128 <= inner[-1] <= 254
    return upper and gaps and near >= LEAST_NEAR * sum(counts.values()) and not _even(sorted(counts))


def _even(values: list[int]) -> bool:
    """Return whether greys are spread evenly from 0 to 255, as programs do to make classes visible."""
    steps = np.diff(values)
    return len(values) > 2 and values[0] == 0 and values[-1] == 255 and steps.min() > 2 and np.ptp(steps) <= 2


def _refuse_many(classes: Sequence[Any], where: str) -> None:
    if len(classes) > MOST_CLASSES - 1:
        raise UserError(
            f"{where}: the masks hold {len(classes)} values, too many for classes (at most {MOST_CLASSES - 1}). If they "
            "number objects, write the class of each; if edges are blurred, save masks as PNG without smoothing."
        )


def _log_scheme(scheme: _Scheme, counts: Counter, column: str, where: str, classes: Classes | None) -> None:
    origin = f" (names of {classes.origin})" if classes is not None else ""
    log.info("%s: masks in %r, read as %d classes%s: %s.", where, column, len(scheme.names), origin, _few(scheme.names))
    if scheme.threshold:
        log.warning("%s: masks of 0 and 255 hold values between (JPEG or resized): from 128 on it is %r.",
                    where, scheme.names[1])  # fmt: skip
    elif scheme.binary:
        log.info("%s: masks hold the values 0 and 255: background and %r.", where, scheme.names[1])
    elif not scheme.by_colour and IGNORED in counts and IGNORED not in scheme.table:
        log.info("%s: 255 in masks is read as not labelled (%.1f %% of the pixels).", where,
                 100 * counts[IGNORED] / sum(counts.values()))  # fmt: skip
    elif scheme.by_colour and classes is None:
        log.info("%s: no table of colours: one class for each colour found.", where)


def _few(names: Iterable[Any]) -> str:
    names = [str(name) for name in names]
    return ", ".join(names[:8]) + (f", … ({len(names)} in all)" if len(names) > 8 else "")


def _converted(value: Any, seen: _Seen | None, scheme: _Scheme) -> Any:
    """Return a mask in the form of this package, None where there is none, a `Fault` where it cannot be read."""
    if seen is None or seen.fault is not None:
        return None if seen is None else Fault(seen.fault)
    with opened(value) as image:
        pixels = _pixels(image)
        if scheme.by_colour:
            pixels = _packed(np.asarray(image.convert("RGB")))
    if scheme.threshold:
        return encode_mask((pixels >= 128).astype(np.uint8))
    return encode_mask(_numbered(pixels, scheme.table))


def _numbered(pixels: np.ndarray, table: dict[int, int]) -> np.ndarray:
    """Return the class (H, W) of each value or colour, 255 for one that is not in the table."""
    values = np.array(sorted(table))
    classes = np.array([*(table[value] for value in values.tolist()), IGNORED], dtype=np.uint8)
    places = np.searchsorted(values, pixels)
    missing = values[np.minimum(places, len(values) - 1)] != pixels
    return classes[np.where(missing, len(values), places)]
