"""Masks as files: one class number for each pixel, as a PNG of one channel; predictions have a second one, certainty."""

import struct
from io import BytesIO

import numpy as np
from PIL import Image

from hftransfer.core.errors import UnreadableInput
from hftransfer.core.image_files import UnreadableImage, opened

IGNORED = 255  # the value of a pixel that has no label
MOST_CLASSES = 255  # 0 to 254
_PNG = b"\x89PNG\r\n\x1a\n"
# Okabe & Ito (2008), "Color universal design": told apart by people who do not see all colours. 0 is the background.
_FIRST = ((0, 0, 0), (230, 159, 0), (86, 180, 233), (0, 158, 115), (240, 228, 66), (0, 114, 178), (213, 94, 0),
          (204, 121, 167))  # fmt: skip
_IGNORED_COLOUR = (224, 224, 224)
_GOLDEN = 0.618034  # of a turn: hues in these steps stay far apart, however many they are


class UnreadableMask(UnreadableInput):
    """A mask that cannot be decoded whole."""

    noun = "mask"


def encode_mask(array: np.ndarray) -> bytes:
    """Return the PNG (mode L) of a mask (H, W) of class numbers, 255 where a pixel has no label."""
    return _png(Image.fromarray(_eight_bits(array)))


def decode_mask(content: bytes) -> np.ndarray:
    """Return the mask (H, W) uint8 of a PNG that `encode_mask` made. Raises `UnreadableMask`."""
    return _decoded(content, "L")


def mask_size(content: bytes) -> tuple[int, int]:
    """Return height and width in pixels of a mask or prediction, from the header alone. Raises `UnreadableMask`."""
    if content[:8] != _PNG or content[12:16] != b"IHDR" or len(content) < 24:
        raise UnreadableMask(f"given as {len(content)} bytes", "it is no PNG")
    width, height = struct.unpack(">II", content[16:24])
    return height, width


def encode_prediction(classes: np.ndarray, certainty: np.ndarray) -> bytes:
    """Return the PNG (mode LA) of predicted classes (H, W) and how certain they are, (H, W), 0 to 255."""
    return _png(Image.merge("LA", [Image.fromarray(_eight_bits(each)) for each in (classes, certainty)]))


def decode_prediction(content: bytes) -> tuple[np.ndarray, np.ndarray]:
    """Return classes and certainty, both (H, W) uint8, of a PNG that `encode_prediction` made."""
    both = _decoded(content, "LA")
    return both[..., 0], both[..., 1]


def resized_mask(array: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Return a mask (H, W) at another `size` (height, width): each pixel has the value at its centre.

    As `NEAREST_EXACT` of torchvision. "Nearest" of torch and OpenCV takes the upper left corner and moves the mask.
    """
    rows, columns = (_centres(old, new) for old, new in zip(array.shape, size, strict=True))
    return array[rows[:, None], columns]


def _centres(old: int, new: int) -> np.ndarray:
    # In whole numbers: (i + 1/2) old / new without a rounding error at the border of a pixel.
    return (2 * np.arange(new) + 1) * old // (2 * new)


# --- display ----------------------------------------------------------------------------------------------------------


def palette(count: int) -> np.ndarray:
    """Return distinct colours (count, 3) uint8 of classes, the background black."""
    return np.array([*_FIRST, *map(_colour, range(len(_FIRST), count))][:count], dtype=np.uint8)


def _colour(place: int) -> tuple[int, ...]:
    """Return a colour by the golden ratio: hues far apart, three levels of lightness in turn."""
    light = (0.95, 0.65, 0.8)[place % 3]
    hue = (place * _GOLDEN + np.array([0, 2 / 3, 1 / 3])) % 1
    return tuple(int(255 * light * (0.15 + 0.85 * share)) for share in np.clip(np.abs(6 * hue - 3) - 1, 0, 1))


def coloured(array: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """Return the picture (H, W, 3) uint8 of a mask (H, W); colours (C, 3). Pixels without a class are light grey."""
    return _table(colours)[array]


def as_palette_png(array: np.ndarray, colours: np.ndarray) -> bytes:
    """Return a mask as a PNG of mode P: class numbers for programs, colours (C, 3) for people."""
    image = Image.fromarray(_eight_bits(array))
    image.putpalette(_table(colours).tobytes())  # the mode becomes P; the pixels stay
    return _png(image)


def _table(colours: np.ndarray) -> np.ndarray:
    table = np.full((256, 3), _IGNORED_COLOUR, dtype=np.uint8)
    table[: len(colours)] = colours
    return table


# --- bytes ------------------------------------------------------------------------------------------------------------


def _eight_bits(array: np.ndarray) -> np.ndarray:
    """Return an array of whole numbers from 0 to 255 as uint8. Raises `ValueError` for others."""
    array = np.asarray(array)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(f"a mask has the shape (height, width) and at least one pixel, not {array.shape}")
    if array.dtype != np.uint8 and not ((array >= 0) & (array <= 255) & (array == np.floor(array))).all():
        raise ValueError(f"a mask holds whole numbers from 0 to 255, not {array.min()} to {array.max()}")
    return np.ascontiguousarray(array.astype(np.uint8))


def _png(image: Image.Image) -> bytes:
    file = BytesIO()
    image.save(file, "PNG", compress_level=1)
    return file.getvalue()


def _decoded(content: bytes, mode: str) -> np.ndarray:
    mask_size(content)
    try:
        with opened(content) as image:
            found, pixels = image.mode, np.asarray(image)
    except UnreadableImage as error:
        raise UnreadableMask(error.name, error.reason) from error
    if found != mode:
        raise UnreadableMask(f"given as {len(content)} bytes", f"it is a PNG of mode {found}, not {mode}")
    return pixels
