"""What stands beside the files of a folder: a table that labels them, and lists that divide them."""

import logging
import re
from dataclasses import replace
from pathlib import PurePosixPath

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data import tables
from hftransfer.data.folders import Tree
from hftransfer.data.sources import Source

log = logging.getLogger(__name__)

NAMED = 0.9  # of the rows of a table name a file
DEPTH = 2  # folders down to a table, such as metadata/clips.csv


def read_labelling_table(tree: Tree) -> Source | None:
    """Return the one table below a folder that names its files, such as metadata/clips.csv beside audio/; else None."""
    paths = [path for path in tree.others if path.count("/") < DEPTH and tables.is_table(tree.root / path)]
    names = {name for path in tree.inputs for name in (PurePosixPath(path).name, PurePosixPath(path).stem)}
    found = {path: source for path in paths if (source := _labelling(tree, path, names)) is not None}
    if len(found) != 1:
        return None
    ((path, source),) = found.items()
    log.info("%s: the table %s names the %s of the folder and their labels.", tree.root, path, tree.kind.plural)
    return source


def _labelling(tree: Tree, path: str, names: set[str]) -> Source | None:
    """Return a table where one of its columns names files of the tree and another may label them."""
    try:
        source = tables.read_table_source(tree.root / path)
    except UserError:  # some other file: bounding boxes, settings
        return None
    if set(source.parts) != {"all"}:
        return None
    frame = source.parts["all"]
    if frame.shape[1] < 2 or not any(_names_files(frame[column], names) for column in frame):
        return None
    return replace(source, root=tree.root)


def _names_files(values: pd.Series, names: set[str]) -> bool:
    files = [re.split(r"[/\\]", value.strip())[-1] for value in values if isinstance(value, str)]
    return bool(files) and sum(file in names for file in files) >= NAMED * len(values)
