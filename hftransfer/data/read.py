"""From a configuration to rows with inputs and labels, nothing inspected or divided yet."""

import logging
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Union

import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.columns import Columns, find_columns, labelled_parts, with_names_of
from hftransfer.data.config import DataConfig
from hftransfer.data.entities import with_entities
from hftransfer.data.labels import natural_order, read_labels
from hftransfer.data.masks import with_masks
from hftransfer.data.readers import from_python, read_source
from hftransfer.data.rows import by_split_column, gather
from hftransfer.data.sources import CLASS_FOLDER, SPLITS, Source
from hftransfer.data.values import is_missing
from hftransfer.modalities import kind_of
from hftransfer.tasks import Task, task_kind

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Read:
    """Rows as they were read: columns `where` (for messages), `id`, `split`, `group`, `input`, `input_pair`, `label`.

    They follow `sources` and, in each, its parts; `columns` are the roles of the columns, source by source.
    """

    frame: pd.DataFrame
    modality: str
    task: Task
    sources: list[Source]
    columns: list[Columns]

    def raw(self) -> pd.DataFrame:
        """Return the rows as they stand in the data, with all their columns."""
        frames = [frame for source in self.sources for frame in source.parts.values()]
        return pd.concat(frames, ignore_index=True).astype(object)


def read_rows(config: DataConfig, dataset: Union["datasets.Dataset", "datasets.DatasetDict", None] = None) -> Read:
    """Read all that `config` names, find the roles of its columns and the task. Raises `UserError`."""
    sources = [with_entities(source, _one(config.label), _one(config.input)) for source in _sources(config, dataset)]
    sources = with_masks(sources, config)
    sources = _with_same_names(sources)
    first = find_columns(sources[0], config)
    columns = [first, *(find_columns(source, config, first) for source in sources[1:])]
    sources = [labelled_parts(source, found) for source, found in zip(sources, columns, strict=True)]
    modality = _one_modality(sources, columns)
    frame = gather(sources, columns, config)
    values = _label_values(sources, columns)
    wanted = None if config.task is None else task_kind(config.task)
    declared = sources[0].class_names.get(columns[0].label[0])
    if sources[0].kind == CLASS_FOLDER and (wanted is None or wanted.exclusive):
        values = values.map(str.strip)
        declared = natural_order(values.iloc[:, 0])  # folders are classes whatever they are called, "nan" too
    task, frame["label"] = read_labels(values, wanted, config.separator, declared, frame["split"])
    return Read(frame, modality, task, sources, columns)


def _one(columns: str | list[str] | None) -> str | None:
    """Return the column that is named, where it is one."""
    if isinstance(columns, list):
        return columns[0] if len(columns) == 1 else None
    return columns


def _with_same_names(sources: list[Source]) -> list[Source]:
    """Return the sources with columns called as in the first part of the first one, whatever their case."""
    reference = next(iter(sources[0].parts.values())).columns
    return [with_names_of(reference, source) for source in sources]


def _sources(config: DataConfig, dataset: Any) -> list[Source]:
    """Return the training source first, then those named for validation and test."""
    if (config.train is None) == (dataset is None):
        both = "both were given" if dataset is not None else "neither was given"
        raise UserError(f"Say where the data is with data.train, or give a dataset from Python; {both}.")
    masks = config.task is None or task_kind(config.task).by_pixel
    how = (config.allow_outside, masks, config.mask)
    train = read_source(config.train, *how) if dataset is None else from_python(dataset)
    train = by_split_column(train, config.label)
    others = {split: reference for split in SPLITS[1:] if (reference := getattr(config, split)) is not None}
    replaced = [split for split in others if split in train.parts]
    if replaced:
        log.info("The %s part of %s gives way to the one that is named.", " and ".join(replaced), train.name)
        train = replace(train, parts={split: part for split, part in train.parts.items() if split not in replaced})
    if "train" not in train.parts and "all" not in train.parts:
        raise UserError(f"{train.name} has no training part, only {', '.join(train.parts)}.")
    if others and "all" in train.parts:
        train = train.only("train")
    read = {split: read_source(reference, *how) for split, reference in others.items()}
    return [train, *(by_split_column(source, config.label).only(split) for split, source in read.items())]


def _one_modality(sources: list[Source], columns: list[Columns]) -> str:
    for source, found in zip(sources, columns, strict=True):
        if found.modality != columns[0].modality or len(found.input) != len(columns[0].input):
            first, other = kind_of(columns[0].modality), kind_of(found.modality)
            raise UserError(
                f"{sources[0].name} holds {first.plural} ({', '.join(columns[0].input)}), {source.name} holds "
                f"{other.plural} ({', '.join(found.input)}). Name the columns with data.input."
            )
    return columns[0].modality


def _label_values(sources: list[Source], columns: list[Columns]) -> pd.DataFrame:
    """Return the label columns of all sources below one another, under the names they have in the first."""
    frames = []
    for source, found in zip(sources, columns, strict=True):
        frame = pd.concat(source.parts.values())[list(found.label)].astype(object)
        for name in (set(found.label) & set(source.class_names)) - set(source.mask_columns):
            frame[name] = _declared_names(frame[name], source.class_names[name])
        frames.append(frame.set_axis(columns[0].label, axis=1))
    return pd.concat(frames, ignore_index=True)


def _declared_names(values: pd.Series, names: list[str]) -> pd.Series:
    def name(index: Any) -> Any:
        if isinstance(index, list):
            found = [name(entry) for entry in index]
            return None if None in found else found
        # -1 is how `datasets` marks a row without label.
        return None if is_missing(index) or int(index) < 0 else names[int(index)]

    return pd.Series([name(value) for value in values], index=values.index, dtype=object)
