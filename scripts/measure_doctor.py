"""How long the doctor takes for 2,000 photos of 256 pixels, and for 10,000 short texts.

    python scripts/measure_doctor.py [--photos 2000] [--side 256] [--texts 10000]

The photos are random smooth pictures with fine noise, stored as JPEG of quality 90 (about 25 kB each, as photos of this
size have); a twentieth are changed copies. Nothing is kept.
"""

import argparse
import logging
import tempfile
import time
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from hftransfer.data import DataConfig
from hftransfer.doctor import examine

COPY_EVERY = 20


def photo(seed: int, side: int) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(0, 256, (9, 9, 3), dtype=np.uint8)).resize(
        (side, side), Image.Resampling.BICUBIC
    )
    noise = rng.normal(0, 8, (side, side, 1))
    return Image.fromarray((np.asarray(coarse) + noise).clip(0, 255).astype(np.uint8))


def write_photos(folder: Path, count: int, side: int) -> int:
    """Ten class folders; returns the bytes written."""
    for number in range(count):
        is_copy = number % COPY_EVERY == 1
        image = photo(number - 1 if is_copy else number, side)
        target = folder / f"class{number % 10 - is_copy}" / f"{number:05d}x.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        image.resize((side - 16 * is_copy,) * 2).save(target, quality=70 if is_copy else 90)
    return sum(path.stat().st_size for path in folder.rglob("*.jpg"))


def write_texts(path: Path, count: int) -> None:
    rng = np.random.default_rng(0)
    words = [f"{a}{b}{c}" for a in "bdfgl" for b in "aeiou" for c in ("rin", "tol", "ves", "kam", "pud", "sil", "mar")]
    texts = [" ".join(rng.choice(words, rng.integers(5, 40))) for _ in range(count)]
    pd.DataFrame({"text": texts, "label": rng.integers(0, 10, count)}).to_csv(path, index=False)


def measure(what: str, reference: Path) -> None:
    begin = time.perf_counter()
    for finding in examine(DataConfig(train=str(reference))):
        print(f"  {time.perf_counter() - begin:6.2f} s  {finding.severity:8}{finding.id}: {finding.message}")
    print(f"{what}: {time.perf_counter() - begin:.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--photos", type=int, default=2000)
    parser.add_argument("--side", type=int, default=256)
    parser.add_argument("--texts", type=int, default=10_000)
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    with tempfile.TemporaryDirectory() as folder:
        size = write_photos(Path(folder) / "photos", options.photos, options.side)
        write_texts(Path(folder) / "texts.csv", options.texts)
        measure(f"{options.photos} photos of {options.side} px ({size / 2**20:.0f} MiB)", Path(folder) / "photos")
        measure(f"{options.texts} texts", Path(folder) / "texts.csv")


if __name__ == "__main__":
    main()
