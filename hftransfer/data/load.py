"""From a configuration to checked, labelled, divided examples: `load_data` reads top to bottom as it happens."""

import hashlib
import json
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import pandas as pd

from hftransfer.data.cells import is_missing
from hftransfer.data.columns import Columns, find_columns
from hftransfer.data.config import DataConfig, Modality
from hftransfer.data.labels import read_labels
from hftransfer.data.readers import from_python, read_source
from hftransfer.data.rows import by_split_column, gather
from hftransfer.data.sources import SPLITS, Source
from hftransfer.data.splits import assign_splits, single_examples, take_examples
from hftransfer.data.verify import verify
from hftransfer.errors import UserError, did_you_mean
from hftransfer.tasks import Task

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledData:
    """Examples ready for training.

    `frame` has one row per example: `id` (unique; stays when rows are added), `split`, `group` (or None), `input`
    (text, or path or encoded bytes of an image), `input_pair` (only for text pairs), `label` (a name, a list of names,
    a float or a list of floats) and `digest` (content hash of the input). `skipped` names the rows that were left out
    and why.
    """

    frame: pd.DataFrame
    modality: Modality
    task: Task
    fingerprint: str
    skipped: list[str] = field(default_factory=list)

    def part(self, split: str) -> pd.DataFrame:
        """The rows of one split (maybe none), numbered from 0."""
        if split not in SPLITS:
            raise UserError(f"There is no split {split!r}.{did_you_mean(split, SPLITS)}")
        return self.frame[self.frame["split"] == split].reset_index(drop=True)

    def targets(self, split: str) -> np.ndarray:
        """The targets of one split as the task has them: (N,) int64, (N, C) or (N, K) float32."""
        return self.task.encode_all(list(self.part(split)["label"]))


def load_data(
    config: DataConfig, dataset: Union["datasets.Dataset", "datasets.DatasetDict", None] = None
) -> LabelledData:
    """Read, label, divide and check the examples that `config` names, or a `dataset` given from Python.

    Raises `UserError` for every fault of the data; with `on_error="skip"` single bad rows are left out instead and
    listed in `skipped`.
    """
    sources = _sources(config, dataset)
    columns = [find_columns(source, config) for source in sources]
    modality = _one_modality(sources, columns)
    rows = gather(sources, columns, config)
    declared = sources[0].class_names.get(columns[0].label[0])
    # Folders are classes whatever they are called; only columns have to be understood from their values.
    wanted = config.task or ("single_label" if sources[0].kind == "image folder" else None)
    task, rows["label"] = read_labels(_label_values(sources, columns), wanted, config.separator, declared)
    skipped: list[str] = []
    rows = _leave_out(rows, rows["label"].map(_missing_label), config, skipped)
    rows = _leave_out(rows, single_examples(rows, task, config.split), config, skipped)
    rows = rows.assign(split=assign_splits(rows, task, config.split))
    rows = _subsample(rows, task, config)
    rows["digest"], faults = verify(rows, modality)
    rows = _leave_out(rows, faults, config, skipped)
    rows = _leave_out(rows, _labels_unknown_to_train(rows, task), config, skipped)
    return _labelled(rows, modality, task, skipped)


def _sources(config: DataConfig, dataset: Any) -> list[Source]:
    """The training source first, then those named for validation and test."""
    if (config.train is None) == (dataset is None):
        both = "both were given" if dataset is not None else "neither was given"
        raise UserError(f"Say where the data is with data.train, or give a dataset from Python; {both}.")
    train = read_source(config.train, config.allow_outside) if dataset is None else from_python(dataset)
    train = by_split_column(train)
    others = {split: reference for split in SPLITS[1:] if (reference := getattr(config, split)) is not None}
    replaced = [split for split in others if split in train.parts]
    if replaced:
        log.info("The %s part of %s gives way to the one that is named.", " and ".join(replaced), train.name)
        train = replace(train, parts={split: part for split, part in train.parts.items() if split not in replaced})
    if "train" not in train.parts and "all" not in train.parts:
        raise UserError(f"{train.name} has no training part, only {', '.join(train.parts)}.")
    if others and "all" in train.parts:
        train = train.only("train")
    named = [by_split_column(read_source(ref, config.allow_outside)).only(split) for split, ref in others.items()]
    return [train, *named]


def _one_modality(sources: list[Source], columns: list[Columns]) -> Modality:
    for source, found in zip(sources, columns, strict=True):
        if found.modality != columns[0].modality or len(found.input) != len(columns[0].input):
            raise UserError(
                f"{sources[0].name} holds {columns[0].modality}s ({', '.join(columns[0].input)}), {source.name} holds "
                f"{found.modality}s ({', '.join(found.input)}). Name the columns with data.input."
            )
    return columns[0].modality


def _label_values(sources: list[Source], columns: list[Columns]) -> pd.DataFrame:
    """The label columns of all sources below one another, under the names they have in the first."""
    frames = []
    for source, found in zip(sources, columns, strict=True):
        frame = pd.concat(source.parts.values())[list(found.label)].astype(object)
        for name in set(found.label) & set(source.class_names):
            frame[name] = _declared_names(frame[name], source.class_names[name])
        frames.append(frame.set_axis(columns[0].label, axis=1))
    return pd.concat(frames, ignore_index=True)


def _declared_names(values: pd.Series, names: list[str]) -> pd.Series:
    def name(index: Any) -> Any:
        if isinstance(index, list):
            return [name(entry) for entry in index]
        # -1 is how `datasets` marks a row without label.
        return None if is_missing(index) or int(index) < 0 else names[int(index)]

    return pd.Series([name(value) for value in values], index=values.index, dtype=object)


def _missing_label(label: Any) -> str | None:
    return "the label is missing" if is_missing(label) else None


def _leave_out(rows: pd.DataFrame, faults: pd.Series, config: DataConfig, skipped: list[str]) -> pd.DataFrame:
    """`rows` without those that have a fault: an error, or with `on_error="skip"` a line each in `skipped`."""
    bad = faults.notna()
    if not bad.any():
        return rows
    named = [f"{where}: {fault}" for where, fault in zip(rows["where"][bad], faults[bad], strict=True)]
    shown = "".join(f"\n  {line}" for line in named[:5]) + (
        f"\n  … and {len(named) - 5} more" if len(named) > 5 else ""
    )
    if config.on_error == "stop":
        raise UserError(
            f"{len(named)} of {len(rows)} examples cannot be used:{shown}\n"
            "Correct or remove them, or leave them out with data.on_error=skip."
        )
    log.warning("%d of %d examples are left out (data.on_error=skip):%s", len(named), len(rows), shown)
    skipped += named
    return rows[~bad].reset_index(drop=True)


def _subsample(rows: pd.DataFrame, task: Task, config: DataConfig) -> pd.DataFrame:
    if config.train_examples is None:
        return rows
    train = rows[rows["split"] == "train"]
    kept = take_examples(train, task, config.train_examples, config.split.seed)
    log.info("data.train_examples: %d of %d training rows are used.", len(kept), len(train))
    return rows.drop(train.index.difference(kept)).reset_index(drop=True)


def _labels_unknown_to_train(rows: pd.DataFrame, task: Task) -> pd.Series:
    known = set(_present(rows, task))

    def fault(label: Any) -> str | None:
        unknown = [name for name in _label_names(label, task) if name not in known]
        return f"the label {unknown[0]!r} does not occur in the training part" if unknown else None

    return rows["label"].map(fault).astype(object)


def _present(rows: pd.DataFrame, task: Task) -> tuple[str, ...]:
    """The names of the task that occur in the training part, in order."""
    labels = rows["label"][rows["split"] == "train"]
    present = {name for label in labels for name in _label_names(label, task)}
    return task.names if task.type == "regression" else tuple(name for name in task.names if name in present)


def _label_names(label: Any, task: Task) -> list[str]:
    return [] if task.type == "regression" else [label] if task.type == "single_label" else label


def _labelled(rows: pd.DataFrame, modality: Modality, task: Task, skipped: list[str]) -> LabelledData:
    task = replace(task, names=_present(rows, task))
    train = rows["label"][rows["split"] == "train"]
    if train.empty:
        raise UserError("There are no training examples.")
    if len(task.names) < (2 if task.type == "single_label" else 1):
        found = f"all {len(train)} training examples are {task.names[0]!r}" if task.names else "no label is ever given"
        raise UserError(f"There is nothing to learn: {found}. Expected at least two classes.")
    targets = task.encode_all(list(train))
    if task.type == "regression" and (targets == targets[0]).all():
        raise UserError(f"There is nothing to learn: all {len(train)} training targets are {train.iloc[0]}.")
    kept = ["id", "split", "group", "input", *(["input_pair"] if "input_pair" in rows else []), "label", "digest"]
    frame = rows[kept].astype(object)
    frame["group"] = [None if is_missing(group) else group for group in frame["group"]]
    log.info("Task %s with %d outputs; fixed order: %s.", task.type, len(task.names), ", ".join(task.names[:20]))
    return LabelledData(frame, modality, task.with_scale(targets), _fingerprint(frame), skipped)


def _fingerprint(frame: pd.DataFrame) -> str:
    """A hash of ids, input content and labels that does not depend on the order of the rows."""
    lines = sorted(
        json.dumps([id_, hashed, label])
        for id_, hashed, label in zip(frame["id"], frame["digest"], frame["label"], strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
