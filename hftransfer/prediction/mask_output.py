"""Predicted masks as files: a PNG with a palette for each image, which programs read as numbers and viewers show in colour."""

from collections.abc import Sequence
from pathlib import Path, PurePath

import pandas as pd

from hftransfer.core.files import replacing
from hftransfer.core.mask_files import as_palette_png, decode_prediction, palette
from hftransfer.runs.reader import file_name
from hftransfer.tasks import Task


def write_masks(table: pd.DataFrame, task: Task, folder: Path) -> pd.DataFrame:
    """Write the masks of a table of predictions into `folder`; return the table with their paths in place of them.

    Rows without a mask, whose image could not be read, have none. A mask is called as its image, where names differ.
    """
    colours = palette(len(task.names))
    folder.mkdir(parents=True, exist_ok=True)
    paths: list[str | None] = []
    for name, mask in zip(_names(table["id"].tolist()), table["mask"], strict=True):
        found = isinstance(mask, bytes)
        paths.append(str(folder / f"{name}.png") if found else None)
        if found:
            with replacing(folder / f"{name}.png") as file:
                file.write_bytes(as_palette_png(decode_prediction(mask)[0], colours))
    return table.assign(mask=paths)


def _names(ids: Sequence[str]) -> list[str]:
    """Return the names of images without folder and suffix, or their whole ids where two have one name."""
    stems = [PurePath(id_).stem for id_ in ids]
    return stems if len(set(stems)) == len(stems) else [file_name(id_) for id_ in ids]
