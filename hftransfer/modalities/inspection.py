"""What one pass over an input shows, before anything is trained on it."""

import hashlib
import os
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field

import numpy as np

from hftransfer.core.bars import Bar

MANY = 500  # inputs: so many are worth a progress bar


@dataclass(frozen=True)
class Inspection:
    """What one pass over an input shows: its content hash, and what is wrong with it (None where nothing is).

    Of images: `format` and `mode` as stored, `size` (width, height) in pixels before turning,
    `frames`, EXIF `orientation`, `taken` (camera and time), and a grey `thumbnail` of 32 x 32 uint8 of the upright image.
    Of recordings: `rate` (Hz), `channels`, `seconds`, the loudest value `peak` (full scale is 1), the share of `clipped`
    samples, and the `thumbnail` of the spectrogram.
    """

    digest: str
    fault: str | None = None
    format: str = ""
    mode: str = ""
    size: tuple[int, int] = (0, 0)
    frames: int = 1
    orientation: int = 1
    taken: tuple[str, str] | None = None
    rate: int = 0
    channels: int = 0
    seconds: float = 0.0
    peak: float = 0.0
    clipped: float = 0.0
    thumbnail: np.ndarray | None = field(default=None, repr=False, compare=False)


def digest(*parts: str | bytes) -> str:
    """Return a content hash (16 hex digits) of texts or bytes, each set off from the next."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()


def each_in_threads(function: Callable, items: list, what: str) -> list:
    """Return `function` of every item, in order, by one thread per core; a progress bar is shown when there are many."""
    workers = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    hidden = len(items) < MANY or None  # None: hidden where nobody watches, as in a log file
    with ThreadPoolExecutor(workers) as pool:
        return list(Bar(pool.map(function, items), total=len(items), desc=what, disable=hidden))
