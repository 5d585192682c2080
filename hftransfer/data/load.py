"""From a configuration to checked, labelled, divided examples: `load_data` reads top to bottom as it happens."""

import hashlib
import json
import logging
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Union

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError, did_you_mean
from hftransfer.core.wording import describe
from hftransfer.data.config import AUTOMATIC, DataConfig, SplitConfig
from hftransfer.data.groups import join_copies, leak_groups, links
from hftransfer.data.masks import fitted
from hftransfer.data.named_inputs import NamedInputs
from hftransfer.data.named_rows import (
    Kinds,
    column_of,
    faults,
    inspections_of,
    is_column,
    look_of,
    networks_of,
    together,
)
from hftransfer.data.patch import Patch, without_known
from hftransfer.data.read import read_rows
from hftransfer.data.sources import CLASS_FOLDER, SPLITS
from hftransfer.data.splits import assign_splits, read_split_file, single_examples, take_examples
from hftransfer.data.values import Fault, is_missing
from hftransfer.modalities import ModalityKind, kind_of
from hftransfer.modalities.inspection import Inspection, digest
from hftransfer.runs.several import require_one_input
from hftransfer.tasks import Task

if TYPE_CHECKING:
    import datasets

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class LabelledData:
    """Examples ready for training.

    `frame` has one row per example: `id` (unique; stays when rows are added), `split`, `group` (or None), `input`
    (text, or path or encoded bytes of an image), `input_pair` (only for text pairs), `label` (a name, a list of names,
    a float, a list of floats, entities, or the bytes of a mask) and `digest` (content hash of the input). `skipped` names the
    rows that were left out and why; `inspections` holds, row by row, what the one look at each input showed; `patch` is what
    `config.patch` did; `given` names the parts that the data came divided into: the others were cut here. `columns` are those
    that `input` and `label` were read from, where there are any. `links` are pairs of examples that belong together, by the
    reason why (`groups.links`), None where they were not searched. `classes` is the name of each value or colour of masks;
    `kinds` the kind of each column that is part of one text, or of several inputs. Of these, the frame has a column for each
    (`named_rows`), `input` is the first file, and `looks` holds the inspections of each with a network.
    """

    frame: pd.DataFrame
    modality: str
    task: Task
    fingerprint: str
    skipped: list[str] = field(default_factory=list)
    inspections: list[Inspection] = field(default_factory=list, repr=False)
    patch: dict[str, Any] | None = None
    given: tuple[str, ...] = ()
    columns: dict[str, list[str]] = field(default_factory=dict)
    links: dict[str, np.ndarray] | None = field(default=None, repr=False)
    classes: dict[str, str] | None = None
    kinds: dict[str, str] | None = None
    looks: dict[str, list[Inspection]] = field(default_factory=dict, repr=False)

    @property
    def several(self) -> bool:
        """Whether examples have several inputs, each in a column of its own (`named_rows`)."""
        return bool(self.looks)

    def require(self, command: str) -> None:
        """Raise `UserError` where a command or setting does not take these data."""
        self.task.require(command)
        require_one_input(command, list(self.kinds) if self.several else [])

    def of_input(self, name: str) -> "LabelledData":
        """Return the examples that have one of several inputs, with it alone."""
        looks = self.looks[name]
        present = self.frame[column_of(name)].notna().to_numpy()
        digests = [inspection.digest for inspection in looks]
        frame = self.frame.assign(input=self.frame[column_of(name)], digest=digests)[present]
        frame = frame[[each for each in frame if not is_column(each)]].reset_index(drop=True)
        return replace(
            self, frame=frame, modality=self.kinds[name], fingerprint=_fingerprint(frame), links=None, kinds=None, looks={},
            inspections=[look for look, there in zip(looks, present, strict=True) if there],
            columns=self.columns | {"input": [name]},
        )  # fmt: skip

    @property
    def kind(self) -> ModalityKind:
        return kind_of(self.modality).for_task(self.task)

    def fitted(self, model: Any) -> Any:
        """Return the `ModelConfig` with what it leaves to the training inputs made definite."""
        train = self.frame["split"].to_numpy() == "train"
        return self.kind.fitted(model, [each for each, used in zip(self.inspections, train, strict=False) if used])

    def part(self, split: str) -> pd.DataFrame:
        """Return the rows of one split (maybe none), numbered from 0."""
        if split not in SPLITS:
            raise UserError(f"There is no split {split!r}.{did_you_mean(split, SPLITS)}")
        return self.frame[self.frame["split"] == split].reset_index(drop=True)

    def targets(self, split: str) -> np.ndarray:
        """Return the targets of one split as the task has them: (N,) int64, (N, C) or (N, K) float32."""
        return self.task.encode_all(list(self.part(split)["label"]))


def load_data(
    config: DataConfig, dataset: Union["datasets.Dataset", "datasets.DatasetDict", None] = None
) -> LabelledData:
    """Read, label, divide and check the examples that `config` names, or a `dataset` given from Python.

    Raises `UserError` for every fault of the data; with `on_error="skip"` single bad rows are left out instead and
    listed in `skipped`.
    """
    read = read_rows(config, dataset)
    task, skipped = read.task, []
    if config.patch:
        task.require("data.patch")
    patch = Patch.read(config.patch) if config.patch else None
    rows = _without_unlabelled_parts(read.frame)
    rows = _leave_out(rows, rows["label"].map(_label_fault), config, skipped)
    rows = _leave_out(rows, single_examples(rows, task, config.split), config, skipped)
    kinds = read.columns[0].named.kinds if read.columns[0].named else None
    several = kinds if kinds and read.columns[0].named.files else None
    if config.patch and several:
        require_one_input("data.patch", list(several))
    rows = (
        _each_looked_at(rows, several, config, skipped) if several else _looked_at(rows, read.modality, config, skipped)
    )
    if task.by_pixel:
        rows = fitted(rows)
        rows = _leave_out(rows, rows["label"].map(_label_fault), config, skipped)
    rows["group"], found = _groups(rows, read.modality, config.split)
    rows["place"] = places = list(range(len(rows)))
    if patch and config.split.file:
        rows, patch = patch.beyond(rows, read_split_file(config.split.file).index)
    given = tuple(split for split in SPLITS if (rows["split"] == split).any())
    rows = rows.assign(split=assign_splits(rows, task, config.split))
    rows = _subsample(rows, task, config)
    rows, about = _patched(rows, patch, task, read.modality, config, skipped) if patch else (rows, None)
    rows = _leave_out(rows, _labels_unknown_to_train(rows, task), config, skipped)
    roles = {"input": list(read.columns[0].input), "label": list(read.columns[0].label)}
    columns = {} if read.sources[0].kind == CLASS_FOLDER else roles
    found = found if list(rows["place"]) == places else None  # examples went or came since
    classes = read.sources[0].masks.classes if read.sources[0].masks else None
    loaded = _labelled(rows, read.modality, task, skipped, about)
    if several:
        loaded = replace(loaded, looks={name: list(rows[look_of(name)]) for name in networks_of(several)})
    return replace(loaded, given=given, columns=columns, links=found, classes=classes, kinds=kinds)


def _groups(rows: pd.DataFrame, modality: str, config: SplitConfig) -> tuple[pd.Series, dict[str, np.ndarray] | None]:
    """Return what stays together: of `config.file` where it says so, else given, found, and joined with copies.

    The second value are the `links` of the rows, None where they are not needed for that.
    """
    if config.file and "group" in (stored := read_split_file(config.file)):
        return rows["group"].where(rows["group"].notna(), rows["id"].map(stored["group"])).astype(object), None
    found = links(rows, list(rows["inspection"]), modality)
    if config.group in AUTOMATIC:
        rows = rows.assign(group=leak_groups(rows, found, modality, config.group))
    if config.copies == "apart" or config.group == "auto":
        return rows["group"], found
    return join_copies(rows, found), found


def _looked_at(rows: pd.DataFrame, modality: str, config: DataConfig, skipped: list[str]) -> pd.DataFrame:
    """`rows` with the columns `inspection` and `digest`, without those whose input is at fault."""
    inspections = kind_of(modality).inspect(rows)
    rows = rows.assign(
        inspection=pd.Series(inspections, index=rows.index, dtype=object),
        digest=[inspection.digest for inspection in inspections],
    )
    return _leave_out(rows, rows["inspection"].map(lambda inspection: inspection.fault), config, skipped)


def _each_looked_at(rows: pd.DataFrame, kinds: Kinds, config: DataConfig, skipped: list[str]) -> pd.DataFrame:
    """Do what `_looked_at` does for rows of several inputs, of which some may be missing.

    The inspection of a row is that of the input that pages show, with the content hash of all inputs; each input with a
    network has a column of its own.
    """
    looks = inspections_of(rows, kinds)
    rows = rows.assign(digest=together(looks), **{look_of(name): looks[name] for name in networks_of(kinds)})
    shown = zip(looks[NamedInputs(dict(kinds)).files[0]], rows["digest"], strict=True)
    rows["inspection"] = [replace(inspection, digest=hashed) for inspection, hashed in shown]
    return _leave_out(rows, pd.Series(faults(looks), index=rows.index, dtype=object), config, skipped)


def _patched(
    rows: pd.DataFrame, patch: Patch, task: Task, modality: str, config: DataConfig, skipped: list[str]
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """`rows` as a person decided, with the training rows that were added; and what was done, said aloud."""
    rows, about = patch.apply(rows, task, config)
    added = patch.added(rows, task, modality)
    if len(added):
        added = without_known(_looked_at(added, modality, config, skipped), rows)
        rows = pd.concat([rows, added], ignore_index=True)
        about["added"] = {"train": len(added)} if len(added) else {}
    log.info("patch: %s (%s)", describe(about) or "nothing changed", patch.path)
    if about["test_rows_left_alone"]:
        log.warning("patch: %d decisions about test rows are not applied; data.patch_test=true applies them",
                    about["test_rows_left_alone"])  # fmt: skip
    if describe(about, "test") and config.patch_test:
        log.warning("patch: the test part was changed (%s): its figures are not those of the runs before",
                    describe(about, "test"))  # fmt: skip
    return rows, about


def _without_unlabelled_parts(rows: pd.DataFrame) -> pd.DataFrame:
    """Return `rows` without a test or validation part that has no label at all, as of benchmarks and competitions."""
    for part in ("validation", "test"):
        inside = rows["split"] == part
        if inside.any() and rows["label"][inside].map(is_missing).all():
            log.warning("The %s part has no labels: its %d examples are left out (`hftransfer predict` takes them).",
                        part, inside.sum())  # fmt: skip
            rows = rows[~inside].reset_index(drop=True)
    return rows


def _label_fault(label: Any) -> str | None:
    if isinstance(label, Fault):
        return label.reason
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
    if task.by_pixel:  # a mask teaches its other classes
        return pd.Series(None, index=rows.index, dtype=object)
    known = set(_present(rows, task))

    def fault(label: Any) -> str | None:
        unknown = [name for name in task.label_names(label) if name not in known]
        return f"the label {unknown[0]!r} does not occur in the training part" if unknown else None

    return rows["label"].map(fault).astype(object)


def _present(rows: pd.DataFrame, task: Task) -> tuple[str, ...]:
    """Return the names of the task that occur in the training part, in order; all where masks hold their numbers."""
    labels = rows["label"][rows["split"] == "train"]
    present = {name for label in labels for name in task.label_names(label)}
    return task.names if not task.has_classes or task.by_pixel else tuple(n for n in task.names if n in present)


def _labelled(
    rows: pd.DataFrame, modality: str, task: Task, skipped: list[str], patch: dict[str, Any] | None
) -> LabelledData:
    task = replace(task, names=_present(rows, task))
    train = rows["label"][rows["split"] == "train"]
    if train.empty:
        raise UserError("There are no training examples.")
    if len(task.names) < task.least_outputs:
        found = f"all {len(train)} training examples are {task.names[0]!r}" if task.names else "no label is ever given"
        raise UserError(f"There is nothing to learn: {found}. Expected at least two classes.")
    targets = task.encode_all(list(train))
    if not task.has_classes and (targets == targets[0]).all():
        raise UserError(f"There is nothing to learn: all {len(train)} training targets are {train.iloc[0]}.")
    inputs = [name for name in rows if name == "input_pair" or is_column(name)]
    kept = ["id", "split", "group", "input", *inputs, "label", "digest"]
    frame = rows[kept].astype(object)
    frame["group"] = [None if is_missing(group) else group for group in frame["group"]]
    log.info("Task %s with %d outputs; fixed order: %s.", task.type, len(task.names), ", ".join(task.names[:20]))
    return LabelledData(
        frame, modality, task.with_scale(targets), _fingerprint(frame), skipped, list(rows["inspection"]), patch
    )


def _fingerprint(frame: pd.DataFrame) -> str:
    """Return a hash of ids, input content and labels that does not depend on the order of the rows."""
    lines = sorted(
        json.dumps([id_, hashed, digest(label) if isinstance(label, bytes) else label])
        for id_, hashed, label in zip(frame["id"], frame["digest"], frame["label"], strict=True)
    )
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()
