"""Every input is looked at once before training: images are decoded whole, texts must not be empty."""

import hashlib
import os
import re
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np
import pandas as pd
from PIL import Image
from tqdm import tqdm

from hftransfer.core.image_files import UnreadableImage, decode, opened, read_file
from hftransfer.data.config import Modality

_MANY = 500
_SURROGATE = re.compile("[\ud800-\udfff]")
_ORIENTATION, _CAMERA, _EXIF, _TAKEN = 0x0112, 0x0110, 0x8769, 0x9003
THUMBNAIL = 32


@dataclass(frozen=True)
class Look:
    """What one pass over an input shows: its content hash, and what is wrong with it (None where nothing is).

    The rest is known for images: `format` and `mode` as stored, `size` (width, height) in pixels before turning,
    `frames`, EXIF `orientation`, `taken` (camera and time), and a grey `thumbnail` of 32 x 32 uint8 of the upright image.
    """

    digest: str
    fault: str | None = None
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    frames: int = 1
    orientation: int = 1
    taken: tuple[str, str] | None = None
    thumbnail: np.ndarray | None = field(default=None, repr=False, compare=False)


def look_at_all(frame: pd.DataFrame, modality: Modality) -> list[Look]:
    """A `Look` at every row of `frame` (columns `input`, for pairs `input_pair`).

    Images are decoded in a thread pool (Pillow decodes without the interpreter lock), JPEGs at a fraction of their size:
    that reads the whole file and finds truncation just as well.
    """
    if modality == "image":
        return _each(look_at_image, list(frame["input"]), "checking images")
    pair = frame["input_pair"] if "input_pair" in frame else [None] * len(frame)
    return [look_at_text(first, second) for first, second in zip(frame["input"], pair, strict=True)]


def look_at_text(text: str, pair: str | None = None) -> Look:
    """Content hash and faults of a text or a pair."""
    texts = [text] if pair is None else [text, pair]
    if not all(part.strip() for part in texts):
        return Look("", "the text is empty")
    if any(_SURROGATE.search(part) for part in texts):
        return Look("", "the text is no valid Unicode (it holds half of a surrogate pair)")
    return Look(digest(*texts))


def look_at_image(source: str | bytes) -> Look:
    """Decode an image from its path or bytes; a broken one comes back with its fault."""
    try:
        content = source if isinstance(source, bytes) else read_file(source)
        with opened(content) as image:
            # Taken now: draft mode, used to decode faster, changes size and mode.
            stored = {"format": image.format or "", "mode": image.mode, "size": image.size}
            exif = image.getexif()
            upright = decode(image, at_least=2 * THUMBNAIL)
            return Look(
                digest(content),
                **stored,
                frames=getattr(image, "n_frames", 1),
                orientation=exif.get(_ORIENTATION, 1),
                taken=_taken(exif),
                thumbnail=thumbnail(upright),
            )
    except UnreadableImage as error:
        return Look("", error.reason)


def digest(*parts: str | bytes) -> str:
    """A content hash (16 hex digits) of texts or bytes, each set off from the next."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def thumbnail(image: Image.Image) -> np.ndarray:
    """The image in grey at 32 x 32 pixels, uint8, every pixel the mean of its area."""
    return np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def _taken(exif: Image.Exif) -> tuple[str, str] | None:
    time = exif.get_ifd(_EXIF).get(_TAKEN)
    return (str(exif.get(_CAMERA, "")), str(time)) if time else None


def _each(function: Callable, items: list, what: str) -> list:
    """`function` of every item, in order, by one thread per core; a progress bar is shown when there are many."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    hidden = len(items) < _MANY or None  # None: hidden where nobody watches, as in a log file
    with ThreadPoolExecutor(workers) as pool:
        return list(tqdm(pool.map(function, items), total=len(items), desc=what, leave=False, disable=hidden))
