"""The one place that decides what a reference to data is: class folder, table, `datasets` folder or Hub id."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

import pandas as pd

from hftransfer.core import starter
from hftransfer.core.errors import UserError
from hftransfer.data import coco, folders, hub, listings, mask_folders, tables
from hftransfer.data.sources import Source, missing

if TYPE_CHECKING:
    import datasets


def read_source(reference: str, allow_outside: bool = False, masks: bool = True, mask: str | None = None) -> Source:
    """Return the rows behind `reference`; raises `UserError` where there is nothing there or nothing that can be read.

    `masks` says whether folders of images with masks are read as such; `mask` is the template of their paths.
    """
    if reference.startswith(hub.PREFIX):
        return hub.read_hub(reference.removeprefix(hub.PREFIX))
    path = starter.load(reference) if reference.startswith("starter/") else Path(reference).expanduser()
    try:
        if path.is_dir():
            if hub.is_saved_dataset(path):
                return hub.read_saved(path)
            return tables.read_split_tables(path) or _read_folder(path, allow_outside, masks, mask)
        if path.exists() or tables.is_table(path):
            return (masks and coco.read_coco_file(path)) or tables.read_table_source(path)
    except PermissionError as error:
        raise UserError(f"No permission to read {error.filename or path}.") from error
    named = f" A data set on the Hub is named {hub.PREFIX}{reference}." if hub.looks_like_hub_id(reference) else ""
    raise UserError(missing(path) + named)


def _read_folder(path: Path, allow_outside: bool, masks: bool, mask: str | None) -> Source:
    if masks and mask is None and (drawn := coco.read_coco_folder(path)):
        return drawn
    tree = folders.walked(path, allow_outside)
    return (masks and mask_folders.read_mask_folder(tree, mask)) or _labelled(tree)


def _labelled(tree: folders.Tree) -> Source:
    """Return the files by their class folders; by a table beside them, where the folders are no classes."""
    try:
        found = folders.read_class_folder(tree)
    except UserError:
        if table := listings.read_labelling_table(tree):
            return table
        raise
    one_class = len({label for frame in found.parts.values() for label in frame["label"]}) == 1
    return (one_class and listings.read_labelling_table(tree)) or found


def from_python(dataset: Union["datasets.Dataset", "datasets.DatasetDict"]) -> Source:
    """Return the rows of a `Dataset` or `DatasetDict` that is given from Python."""
    if isinstance(dataset, pd.DataFrame):
        frame = dataset.set_axis([str(name) for name in dataset.columns], axis=1).reset_index(drop=True)
        return Source("the DataFrame given from Python", "table", {"all": frame.astype(object)})
    return hub.from_dataset(dataset, "the dataset given from Python", root=None)
