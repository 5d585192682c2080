"""What no honest checkpoint has: sizes beyond all bounds, and files outside of its folder. Refused before it is loaded."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json

MOST_LAYERS = 1_000
MOST = 2**24  # channels, tokens, heads: four times the largest vocabulary there is
MOST_PIXELS = 2**14  # a side
SIZES = ("size", "sizes", "dim", "dims", "heads", "head", "channels", "width", "embd", "inner")
LAYERS = ("layers", "layer", "depth", "depths")


def check_sizes(config: Mapping[str, Any], name: str) -> None:
    """Raise `UserError` where a model's config would allocate, or build, beyond all bounds."""
    for key, value in config.items():
        kind = key.rpartition("_")[2]
        most = MOST_LAYERS if kind in LAYERS else MOST if kind in SIZES else None
        for number in _numbers(value) if most else ():
            if number > most:
                raise UserError(
                    f"The checkpoint {name} cannot be meant: its {key} is {number:,}, expected at most {most:,}."
                )


def check_pixels(processor: Any, name: str) -> None:
    """Raise `UserError` where an image processor would enlarge every image beyond all bounds."""
    for size in (getattr(processor, "size", None), getattr(processor, "crop_size", None)):
        for side in _numbers(list(dict(size or {}).values())):
            if side > MOST_PIXELS:
                raise UserError(
                    f"The image processor of {name} makes images of {side:,} pixels a side; expected at most {MOST_PIXELS:,}."
                )


def check_shards(folder: str | None, name: str) -> None:
    """Raise `UserError` where an index of weights names files outside of the checkpoint's folder."""
    for index in Path(folder).glob("*.index.json") if folder and Path(folder).is_dir() else ():
        for file in set(read_json(index)["weight_map"].values()):
            if Path(file).name != file:
                raise UserError(
                    f"The checkpoint {name} cannot be read: {index.name} names {file}, outside of its folder."
                )


def _numbers(value: Any) -> Iterator[int]:
    if isinstance(value, list | tuple):
        for entry in value:
            yield from _numbers(entry)
    elif isinstance(value, int):
        yield value
