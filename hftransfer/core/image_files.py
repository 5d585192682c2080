"""Opening images: every file a user may have, as an upright RGB picture, or an error that names the file."""

import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from importlib.util import find_spec
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageCms, ImageOps

from hftransfer.core import remote
from hftransfer.core.errors import UnreadableInput
from hftransfer.core.input_files import fault_of, require_file, shown_name

HEIF = find_spec("pillow_heif") is not None  # reads the photos of iPhones, where it is installed
HEIC, READS_HEIC = frozenset({".heic", ".heif"}), "pip install pillow-heif reads HEIC"
SUFFIXES = (HEIC if HEIF else frozenset()) | frozenset(
    ".avif .bmp .gif .jfif .jp2 .jpeg .jpg .pbm .pgm .png .pnm .ppm .qoi .tga .tif .tiff .webp".split()
)

BESIDE_IMAGES = frozenset(
    ".txt .csv .tsv .json .jsonl .parquet .md .xml .yaml .yml .html .ini .db .pdf .py .ipynb .log".split()
)

# Pillow knows more, some of which starts other programs (PostScript): the content, not the suffix, decides what is tried.
PNG_MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")  # of Pillow images that a PNG keeps as they are
FORMATS = ("AVIF", "BMP", "GIF", "JPEG", "JPEG2000", "MPO", "PNG", "PPM", "QOI", "TGA", "TIFF", "WEBP")

# Pillow's plugins raise whatever the broken bytes lead them to.
_DECODING_ERRORS = (
    OSError, SyntaxError, ValueError, ArithmeticError, LookupError, TypeError, AttributeError, EOFError, MemoryError,
    struct.error, zlib.error, Image.DecompressionBombError,
)  # fmt: skip


ORIENTATION = 0x0112  # the entry of EXIF


class UnreadableImage(UnreadableInput):
    """An image that cannot be decoded whole."""

    noun = "image"


@contextmanager
def opened(source: str | Path | bytes) -> Iterator[Image.Image]:
    """Yield a Pillow image that is not decoded yet; whatever fails while it is used is raised as `UnreadableImage`."""
    try:
        if remote.is_remote(source):
            source = remote.read(source)
        if not isinstance(source, bytes):
            require_file(source)
        with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_formats()) as image:
            yield image
    except _DECODING_ERRORS as error:
        raise UnreadableImage(shown_name(source), _reason(error, source)) from error


def read_file(path: str | Path) -> bytes:
    """Return the content of an image's file. Raises `UnreadableImage`."""
    try:
        if remote.is_remote(path):
            return remote.read(path)
        require_file(path)
        return Path(path).read_bytes()
    except _DECODING_ERRORS as error:
        raise UnreadableImage(shown_name(path), _reason(error, path)) from error


@cache
def _formats() -> list[str]:
    Image.init()
    if HEIF:
        import pillow_heif

        pillow_heif.register_heif_opener()
    return [name for name in (*FORMATS, "HEIF") if name in Image.OPEN]


def describe_passed_over(names: list[str]) -> str | None:
    """Return how many files of each suffix are no images to this installation; None where there are none.

    Notes and lists that stand beside images (`.txt`, `.csv`, …) do not count.
    """
    counts = Counter(Path(name).suffix.lower() or "no suffix" for name in names)
    counts = {suffix: count for suffix, count in counts.items() if suffix not in BESIDE_IMAGES}
    if not counts:
        return None
    listed = ", ".join(f"{suffix} {count}" for suffix, count in sorted(counts.items(), key=lambda item: -item[1]))
    heic = f" {READS_HEIC}." if HEIC & counts.keys() else ""
    return f"{sum(counts.values())} files are passed over, as they are no images that can be read ({listed}).{heic}"


def is_pixels(value: Any) -> bool:
    """Return whether a value is an image in memory: a Pillow image, or an array (H, W) or (H, W, channels)."""
    return isinstance(value, Image.Image) or (isinstance(value, np.ndarray) and value.ndim in (2, 3))


def encoded(pixels: Image.Image | np.ndarray) -> bytes:
    """Return the PNG file of an image in memory. Arrays hold 0 to 255, or as floats 0 to 1. Raises `UnreadableImage`."""
    image = pixels if isinstance(pixels, Image.Image) else _of_array(pixels)
    file = BytesIO()
    (image if image.mode in PNG_MODES else image.convert("RGB")).save(file, "PNG", compress_level=1)
    return file.getvalue()


def _of_array(pixels: np.ndarray) -> Image.Image:
    """Return an array of pixels as a Pillow image."""
    shown = f"an array of {pixels.dtype} with the shape {pixels.shape}"
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3, 4):
        raise UnreadableImage(shown, "expected (height, width) or (height, width, 1, 3 or 4 channels)")
    if pixels.size == 0 or not np.isfinite(pixels).all() or pixels.min() < 0:
        raise UnreadableImage(shown, "expected finite numbers from 0 on")
    whole = pixels if np.issubdtype(pixels.dtype, np.integer) else 255 * pixels
    if whole.max() > 255:
        raise UnreadableImage(shown, f"the largest value is {pixels.max():g}: expected 0 to 255, or as floats 0 to 1")
    return Image.fromarray(
        np.rint(whole).astype(np.uint8).reshape(pixels.shape[: 2 if pixels.shape[2:] == (1,) else 3])
    )


def open_image(source: str | Path | bytes | Image.Image, at_least: int | None = None) -> Image.Image:
    """Return the image in RGB, turned upright by its EXIF orientation and decoded whole.

    Transparency is laid on white, 16-bit greys keep their upper 8 bits, of an animation the first frame is taken.
    `at_least` (pixels): a JPEG whose short side is more than twice that is decoded smaller (libjpeg's scaled decoding),
    with no side of the result below it. Raises `UnreadableImage` when the image is missing, broken or truncated.
    """
    if isinstance(source, Image.Image):
        return decode(source)
    with opened(source) as image:
        return decode(image, at_least)


def decode(image: Image.Image, at_least: int | None = None) -> Image.Image:
    """Return the upright RGB picture of an opened image; `at_least` as in `open_image`."""
    if at_least is not None:
        _decode_smaller(image, at_least)
    image.load()
    return _rgb(ImageOps.exif_transpose(image))


def size_of(source: str | Path | bytes) -> tuple[int, int]:
    """Return height and width of an image as it is seen, from its header."""
    with opened(source) as image:
        turned = image.getexif().get(ORIENTATION, 1) >= 5  # by a quarter
        return (image.width, image.height) if turned else (image.height, image.width)


class KeptImages:
    """Opens images for training and keeps them decoded, up to `limit_bytes`, for the epochs to come.

    A picture much larger than `at_least` (pixels of the short side) is kept at twice that, which crops of half its area
    still fill. For training alone: predictions go through the processor that is saved, from the file itself.
    """

    def __init__(self, at_least: int, limit_bytes: int):
        self.at_least, self.free = at_least, limit_bytes
        self._kept: dict[str | bytes, np.ndarray] = {}

    def open(self, source: str | bytes) -> Image.Image:
        """As `open_image`; the file is read once."""
        if source in self._kept:
            return Image.fromarray(self._kept[source])
        image = open_image(source, at_least=self.at_least)
        if min(image.size) > 2 * self.at_least:
            factor = 2 * self.at_least / min(image.size)
            image = image.resize([max(1, round(side * factor)) for side in image.size], Image.Resampling.LANCZOS)
        pixels = np.asarray(image)
        if pixels.nbytes <= self.free:
            self._kept[source] = pixels
            self.free -= pixels.nbytes
        return image


def is_image_name(name: str) -> bool:
    """Whether a file of this name is taken for an image (by its suffix)."""
    return Path(name).suffix.lower() in SUFFIXES


def names_image(name: str) -> bool:
    """Whether a table that holds this name means an image, also one that this installation cannot read (HEIC)."""
    return is_image_name(name) or Path(name).suffix.lower() in HEIC


def _decode_smaller(image: Image.Image, at_least: int) -> None:
    short = min(image.size)
    if short > 2 * at_least:
        # Rounded up: draft() must never undershoot. Formats without scaled decoding ignore the call.
        image.draft(image.mode, tuple(-(-side * at_least // short) for side in image.size))


def _rgb(image: Image.Image) -> Image.Image:
    """Any Pillow mode as RGB (8 bits a channel)."""
    if image.has_transparency_data:  # before the modes: an RGB PNG may name one colour as transparent
        image = image.convert("RGBA")
        white = Image.new("RGBA", image.size, "white")
        return Image.alpha_composite(white, image).convert("RGB")
    if image.mode.startswith(("I", "F")):
        return Image.fromarray(_eight_bits(np.asarray(image))).convert("RGB")
    if image.mode == "LAB":
        return ImageCms.profileToProfile(
            image, ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB"), outputMode="RGB"
        )
    return image.convert("RGB")


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Return grey values of any depth as uint8.

    The full scale is the smallest of the usual ones (1 for floats, 8, 16 bits) that holds the type or the largest value;
    beyond 16 bits the range of the image is stretched.
    """
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:
        return (values >> 8).astype(np.uint8)
    scales = [1.0, 255.0, 65535.0] if values.dtype.kind == "f" else [255.0, 65535.0]
    values = np.nan_to_num(values.astype(np.float64))
    low, high = values.min(), values.max()
    fitting = [scale for scale in scales if low >= 0 and high <= scale]
    if not fitting:
        values, fitting = values - low, [max(high - low, 1e-12)]
    return np.round(values * (255.0 / fitting[0])).astype(np.uint8)


def _reason(error: Exception, source: str | Path | bytes) -> str:
    if type(error).__name__ == "UnidentifiedImageError":
        is_heic = source[4:10] == b"ftyphe" if isinstance(source, bytes) else Path(source).suffix.lower() in HEIC
        return "its content is no image that Pillow knows" + (f" ({READS_HEIC})" if is_heic and not HEIF else "")
    return fault_of(error)
