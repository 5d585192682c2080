"""What one pass over an input shows, before anything is trained on it."""

import hashlib
from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class Inspection:
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


def digest(*parts: str | bytes) -> str:
    """Return a content hash (16 hex digits) of texts or bytes, each set off from the next."""
    total = hashlib.blake2b(digest_size=8)
    for part in parts:
        part = part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
        total.update(len(part).to_bytes(8, "big") + part)
    return total.hexdigest()
