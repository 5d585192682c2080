"""What every kind of data is read into: rows as the user has them, and how they are divided already."""

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.modalities import MODALITIES

log = logging.getLogger(__name__)

CLASS_FOLDER = "class folder"  # the kind of a source: one sub-folder of files per class
MASK = "Mask"  # the declared type of a column of masks
SPLITS = ("train", "validation", "test")
SPLIT_WORDS = {
    "train": "train", "training": "train",
    "validation": "validation", "val": "validation", "valid": "validation", "validation_matched": "validation",
    "dev": "validation", "development": "validation", "eval": "validation", "evaluation": "validation",
    "publictest": "validation",
    "test": "test", "testing": "test", "test_matched": "test", "holdout": "test", "heldout": "test",
    "privatetest": "test",
}  # fmt: skip


@dataclass(frozen=True)
class MaskFacts:
    """What reading masks showed: 0 and 255 read as one class (`binary`), with values between (`between`, in the masks).

    `unnamed` are pixels of values or colours without a class, `overlap` those that two annotations claim. `classes` is the name
    of each value or colour.
    """

    binary: bool = False
    between: int = 0
    unnamed: dict[str, int] = field(default_factory=dict)
    overlap: int = 0
    classes: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Source:
    """Rows as they stand in the user's data, before it is decided what the columns mean.

    `parts` maps a split, or "all" where the data is not divided, to its rows. `root` is the folder that relative
    paths of files stand against, None where there is none. `class_names` holds the names a `datasets` feature declares
    for the integers of a column; `declared` the feature type ("Image") of columns that declare their kind of input, "Mask" of
    those of masks, and `masks` what reading these showed. Of a class folder, `passed_over` are the files that are no inputs
    and `empty` the folders without any.
    """

    name: str
    kind: str
    parts: dict[str, pd.DataFrame]
    root: Path | None = None
    class_names: dict[str, list[str]] = field(default_factory=dict)
    declared: dict[str, str] = field(default_factory=dict)
    passed_over: tuple[str, ...] = ()
    empty: tuple[str, ...] = ()
    masks: MaskFacts | None = None
    repairs: tuple[str, ...] = ()  # how tags and spans were read otherwise than they stand, in words
    documents: str | None = None  # the column whose equal values are one document: its sentences stay on one side

    @property
    def mask_columns(self) -> tuple[str, ...]:
        """The column of masks, if there is one."""
        return tuple(name for name, feature in self.declared.items() if feature == MASK)

    def only(self, split: str) -> "Source":
        """Return this source as the user names it for one split: that part of it, or all of it where it is not divided."""
        if set(self.parts) == {"all"}:
            return replace(self, parts={split: self.parts["all"]})
        if split in self.parts:
            log.info("Of %s its %s part is used (%s).", self.name, split, describe_counts(self.parts))
            return replace(self, parts={split: self.parts[split]})
        if len(self.parts) == 1:
            (found,) = self.parts
            log.info("All of %s is used for %s (it calls itself %s).", self.name, split, found)
            return replace(self, parts={split: self.parts[found]})
        raise UserError(
            f"data.{split} names {self.name}, which is divided into {', '.join(self.parts)} and has no {split} part."
        )


def declared_inputs(features: dict[str, str | None]) -> dict[str, str]:
    """Of the feature types of columns, those that declare a kind of input."""
    kinds = {kind.feature for kind in MODALITIES.values()} - {None}
    return {column: feature for column, feature in features.items() if feature in kinds}


def in_order(parts: dict[str, pd.DataFrame]) -> dict[str, pd.DataFrame]:
    """Return the same parts, train first: ids of identical inputs and columns are decided there."""
    return {split: parts[split] for split in SPLITS if split in parts}


def describe_counts(parts: dict[str, pd.DataFrame]) -> str:
    return ", ".join(f"{name}: {len(rows)} rows" for name, rows in parts.items())


def missing(path: Path) -> str:
    """Return the message for a path that is not there, with what stands nearest to it."""
    parent = path.absolute().parent
    while not parent.exists():
        path, parent = parent, parent.parent
    siblings = sorted(entry.name for entry in parent.iterdir() if not entry.name.startswith("."))
    hint = did_you_mean(path.name, siblings)
    return f"There is no file or folder {path} ({parent} holds {len(siblings)} entries).{hint}"
