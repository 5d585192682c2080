"""Pictures with masks, drawn and written in the forms that people have."""

from pathlib import Path

import numpy as np
from PIL import Image

SIZE = (24, 32)  # height, width


def drawn(number: int, size: tuple[int, int] = SIZE) -> tuple[np.ndarray, np.ndarray]:
    """Return a picture (H, W, 3) with a bright and a dark square on grey noise, and its mask: classes 1 and 2."""
    rng = np.random.default_rng(number)
    picture = rng.integers(100, 140, (*size, 3)).astype(np.uint8)
    mask = np.zeros(size, np.uint8)
    top, left = rng.integers(1, size[0] - 12), rng.integers(1, size[1] // 2 - 7)
    for value, place, shade in ((1, left, 230), (2, left + size[1] // 2, 30)):
        area = slice(top, top + 8), slice(place, place + 6)
        mask[area] = value
        picture[area] = shade
    return picture, mask


def save(pixels: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def scenes(count: int = 12) -> list[tuple[np.ndarray, np.ndarray]]:
    return [drawn(number) for number in range(count)]


def write_folder(root: Path, as_file=lambda mask: mask, images: str = "images", masks: str = "masks",
                 ending: str = "", count: int = 12) -> list[np.ndarray]:  # fmt: skip
    """Write pictures and masks, the latter as `as_file` makes them, and return the masks."""
    made = scenes(count)
    for number, (picture, mask) in enumerate(made):
        save(picture, root / images / f"x{number:02}.png")
        save(as_file(mask), root / masks / f"x{number:02}{ending}.png")
    return [mask for _, mask in made]
