"""Checks of masks: what cannot be used, how values were read, rare and missing classes, blurred and shifted outlines."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from hftransfer.core.errors import UnreadableInput
from hftransfer.core.image_files import open_image
from hftransfer.core.mask_files import IGNORED, decode_mask
from hftransfer.data.mask_classes import BACKGROUND
from hftransfer.data.sources import SPLITS
from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding
from hftransfer.modalities.inspection import each_in_threads

FEW_IMAGES, LEAST_SHARE = 10, 0.01
SAMPLE = 200  # masks whose outlines are looked at
REACH, THIN = 3, 0.3  # pixels on either side, and the share of a class that lies between others
FARTHEST, CLEARER, AGREEING = (
    4,
    1.15,
    2 / 3,
)  # pixels of a shift, how much clearer edges are there, in which share of images


def check_masks(facts: Facts) -> Iterator[Finding]:
    """Yield findings that masks show, alone and beside their pictures."""
    yield from _unusable(facts)
    yield from _as_read(facts)
    rows = np.flatnonzero(facts.labelled)
    if not len(rows):
        return
    pixels = facts.task.pixels(facts.frame["label"].iloc[rows].to_numpy())
    yield from _empty(facts, rows, pixels)
    yield from _rare(facts, pixels)
    yield from _missing_in_parts(facts, rows, pixels)
    sample = rows[:: -(-len(rows) // SAMPLE)]
    masks = each_in_threads(decode_mask, list(facts.frame["label"].iloc[sample]), "checking masks")
    yield from _thin(facts, masks)
    yield from _shifted(facts, sample, masks)


def _unusable(facts: Facts) -> Iterator[Finding]:
    if facts.mask_faults:
        named = tuple(f"{facts.frame['where'].iloc[row]}: {reason}" for row, reason in facts.mask_faults.items())
        yield Finding("mask-broken", f"Masks that cannot be used: {len(named)} of {len(facts.frame)}.", named)
    given = [] if facts.read is None else zip(facts.read.frame["label"], facts.frame["label"], strict=True)
    resized = [row for row, (old, new) in enumerate(given) if isinstance(new, bytes) and old != new]
    if resized:
        message = f"Masks of another size than their picture: {len(resized)} of {len(facts.frame)}."
        yield Finding("mask-resized", message, facts.where(resized))


def _as_read(facts: Facts) -> Iterator[Finding]:
    """Yield what reading the values of all masks showed."""
    sources = [source.masks for source in facts.read.sources if source.masks] if facts.read else []
    if not sources:
        return
    first, overlap = sources[0], sum(each.overlap for each in sources)
    if first.binary:
        yield Finding("mask-binary", f"Masks of 0 and 255: background and {facts.task.names[1]!r}.")
    if first.between:
        yield Finding("mask-blurred", f"Masks with values between 0 and 255: {first.between}.")
    if first.unnamed:
        shown = tuple(f"{value}: {count} pixels" for value, count in first.unnamed.items())
        yield Finding("mask-unnamed", f"Values or colours without a class: {len(shown)}.", shown)
    if overlap:
        yield Finding("mask-overlap", f"Pixels of annotations of several classes: {overlap}.")


def _empty(facts: Facts, rows: np.ndarray, pixels: np.ndarray) -> Iterator[Finding]:
    first = int(facts.task.names[0].lower() in BACKGROUND)
    empty = rows[pixels[:, first:].sum(1) == 0]
    if len(empty):
        share = len(empty) / len(rows)
        yield Finding("mask-empty", f"Empty masks: {len(empty)} of {len(rows)} ({share:.0%}).", facts.where(empty))


def _rare(facts: Facts, pixels: np.ndarray) -> Iterator[Finding]:
    shares, images = pixels.sum(0) / max(pixels.sum(), 1), (pixels > 0).sum(0)
    names = facts.task.names
    rare = [place for place in np.argsort(shares, kind="stable") if shares[place] < LEAST_SHARE]
    if rare:
        shown = tuple(f"{names[place]}: {shares[place]:.2%} of the pixels" for place in rare)
        yield Finding(
            "mask-rare", f"Below {LEAST_SHARE:.0%} of the pixels: {len(rare)} of {len(names)} classes.", shown
        )
    few = [place for place in np.argsort(images, kind="stable") if images[place] < FEW_IMAGES]
    if few:
        shown = tuple(f"{names[place]}: {images[place]}" for place in few)
        yield Finding("label-rare", f"In fewer than {FEW_IMAGES} images: {len(few)} of {len(names)} classes.", shown)


def _missing_in_parts(facts: Facts, rows: np.ndarray, pixels: np.ndarray) -> Iterator[Finding]:
    """Yield classes that a part lacks, by the given division or the one that a run would make."""
    given = facts.frame["split"].notna().any()
    divided = facts.frame if given else facts.divided
    if divided is None:
        return
    splits, present = divided["split"].to_numpy()[rows], pixels > 0
    lacking = tuple(
        f"{split}: {facts.task.names[place]}"
        for split in SPLITS if (splits == split).any()
        for place in np.flatnonzero(present.any(0) & ~present[splits == split].any(0))
    )  # fmt: skip
    if lacking:
        lack = "lack" if given else "would lack"
        yield Finding("mask-class-missing", f"Parts {lack} a class: {', '.join(lacking[:8])}.", lacking)


# --- outlines ---------------------------------------------------------------------------------------------------------


def _thin(facts: Facts, masks: list[np.ndarray]) -> Iterator[Finding]:
    shares = thin_shares(masks, len(facts.task.names))
    thin = tuple(f"{name}: {share:.0%}" for name, share in zip(facts.task.names, shares, strict=True) if share > THIN)
    if thin:
        message = f"Classes that mostly stand between a lower and a higher one: {', '.join(thin)} of their pixels."
        yield Finding("mask-blurred", message, thin)


def thin_shares(masks: Iterable[np.ndarray], classes: int) -> np.ndarray:
    """Return which share (C,) of the pixels of a class stands between a lower and a higher class, few pixels apart.

    Resizing that averages class numbers leaves such bands along the outlines of areas.
    """
    between, total = np.zeros(classes), np.zeros(classes)
    for mask in masks:
        total += np.bincount(mask[mask != IGNORED], minlength=classes)[:classes]
        between += np.bincount(mask[_between(mask)], minlength=classes)[:classes]
    return between / np.maximum(total, 1)


def _between(mask: np.ndarray) -> np.ndarray:
    """Return the pixels (H, W) with a lower class on one side and a higher one on the other, in a row or column."""
    result = np.zeros(mask.shape, dtype=bool)
    values = mask.astype(np.int16)
    for sides, marks in ((values, result), (values.T, result.T)):
        for step in range(1, min(REACH, (len(sides) - 1) // 2) + 1):
            before, middle, after = sides[: -2 * step], sides[step:-step], sides[2 * step :]
            known = (before != IGNORED) & (middle != IGNORED) & (after != IGNORED)
            rising = (before < middle) & (middle < after) | (before > middle) & (middle > after)
            marks[step:-step] |= known & rising
    return result


def _shifted(facts: Facts, rows: np.ndarray, masks: list[np.ndarray]) -> Iterator[Finding]:
    pairs = list(zip(facts.frame["input"].iloc[rows], masks, strict=True))
    found = [each for each in each_in_threads(_edges_of, pairs, "comparing outlines") if each is not None]
    right, down = shift_of(found)
    if right or down:
        sides = [f"{abs(right)} px to the {'left' if right > 0 else 'right'}"] if right else []
        sides += [f"{abs(down)} px {'up' if down > 0 else 'down'}"] if down else []
        message = (
            f"The edges of pictures fit masks better that lie elsewhere: masks stand {' and '.join(sides)} of them."
        )
        yield Finding("mask-shifted", message)


def _edges_of(pair: tuple[Any, np.ndarray]) -> np.ndarray | None:
    source, mask = pair
    try:
        picture = np.asarray(open_image(source).convert("L"), dtype=np.float32)
    except UnreadableInput:
        return None
    return edge_strengths(picture, mask) if picture.shape == mask.shape else None


def edge_strengths(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Return how strong the edges of a picture (H, W) are along outlines moved by -4 to 4 pixels: (2, 9), right and down.

    NaN where a mask has no outline far enough from the border.
    """
    return np.array([_strengths(picture, mask), _strengths(picture.T, mask.T)])


def _strengths(picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    steps = np.abs(np.diff(picture, axis=1))
    outline = (mask[:, 1:] != mask[:, :-1]) & (mask[:, 1:] != IGNORED) & (mask[:, :-1] != IGNORED)
    rows, columns = np.nonzero(outline)
    inside = (columns >= FARTHEST) & (columns < steps.shape[1] - FARTHEST)
    rows, columns = rows[inside], columns[inside]
    if not len(rows):
        return np.full(2 * FARTHEST + 1, np.nan)
    return np.array([steps[rows, columns + move].mean() for move in range(-FARTHEST, FARTHEST + 1)])


def shift_of(strengths: Sequence[np.ndarray]) -> tuple[int, int]:
    """Return by how many pixels (right, down) outlines would have to move to lie on edges; 0 where they do already.

    Edges must be clearer there on average, and most images must agree.
    """
    return tuple(_move([each[axis] for each in strengths if not np.isnan(each[axis]).any()]) for axis in (0, 1))


def _move(strengths: list[np.ndarray]) -> int:
    if len(strengths) < FEW_IMAGES:
        return 0
    table = np.array(strengths)
    best = int(table.mean(0).argmax())
    clearer = table[:, best].mean() > CLEARER * table[:, FARTHEST].mean()
    agree = (table[:, best] > table[:, FARTHEST]).mean() >= AGREEING
    return best - FARTHEST if clearer and agree else 0
