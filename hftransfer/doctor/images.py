"""Checks of image files, from one look at each."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from hftransfer.doctor.facts import Facts
from hftransfer.doctor.findings import Finding

BLANK_CONTRAST = 3.0
LONG_SHAPE = 2.5
# JPEG files with several pictures (MPO) are what many phones write; the first is the photo.
SAME_FORMAT = {"MPO": "JPEG"}


def check_images(facts: Facts, input_size: int) -> Iterator[Finding]:
    """Yield findings about the files themselves; `input_size` is the side in pixels that the model reads."""
    inspections = facts.inspections
    good = [index for index, inspection in enumerate(inspections) if not inspection.fault]
    yield from _suffixes(facts, good)
    yield from _counted(
        facts, "image-animated", [i for i in good if _is_animation(facts, i)], "Several frames in one file"
    )
    turned = [index for index in good if inspections[index].orientation != 1]
    yield from _counted(facts, "image-rotated", turned, "Stored turned, set upright by an EXIF note")
    yield from _modes(facts, good)
    yield from _sizes(facts, good, input_size)
    blank = [index for index in good if inspections[index].thumbnail.std() < BLANK_CONTRAST]
    yield from _counted(facts, "image-blank", blank, "Nearly blank")


def _counted(facts: Facts, id_: str, rows: list[int], what: str) -> Iterator[Finding]:
    if rows:
        yield Finding(id_, f"{what}: {len(rows)} of {len(facts.inspections)} images.", facts.where(rows))


def _is_animation(facts: Facts, index: int) -> bool:
    return facts.inspections[index].frames > 1 and facts.inspections[index].format not in SAME_FORMAT


def _suffixes(facts: Facts, good: list[int]) -> Iterator[Finding]:
    wrong = []
    for index in good:
        path, found = facts.frame["input"].iloc[index], facts.inspections[index].format
        expected = format_of(path) if isinstance(path, str) else None
        if expected and expected != SAME_FORMAT.get(found, found):
            wrong.append(f"{facts.frame['where'].iloc[index]}: its content is {found}")
    if wrong:
        message = f"Another format than the suffix says: {len(wrong)} of {len(facts.inspections)} images."
        yield Finding("image-suffix", message, tuple(wrong))


def format_of(path: str) -> str | None:
    """Return the format that a file's suffix stands for, in Pillow's words."""
    Image.init()
    return Image.registered_extensions().get(Path(path).suffix.lower())


def _modes(facts: Facts, good: list[int]) -> Iterator[Finding]:
    odd = [index for index in good if facts.inspections[index].mode != "RGB"]
    counts = Counter(facts.inspections[index].mode for index in odd)
    modes = ", ".join(f"{mode} {count}" for mode, count in counts.most_common())
    yield from _counted(facts, "image-mode", odd, f"Not plain RGB ({modes})")


def _sizes(facts: Facts, good: list[int], input_size: int) -> Iterator[Finding]:
    if not good:
        return
    sizes = np.array([facts.inspections[index].size for index in good])
    short, long = sizes.min(1), sizes.max(1)
    median = int(np.median(short))
    for id_, which, what in (
        ("image-small", short < input_size / 2, f"Smaller than half of the model's {input_size} px"),
        ("image-large", short > 4 * input_size, f"Larger than four times the model's {input_size} px"),
    ):
        rows = [index for index, chosen in zip(good, which, strict=True) if chosen]
        yield from _counted(facts, id_, rows, f"{what} (short side, median of all: {median} px)")
    rows = [index for index, chosen in zip(good, long > LONG_SHAPE * short, strict=True) if chosen]
    yield from _counted(facts, "image-shape", rows, f"More than {LONG_SHAPE} times as long as wide")
