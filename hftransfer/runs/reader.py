"""A finished run as it lies on disk, for everything that looks back at it: no model, no torch."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd
import yaml

from hftransfer.core.errors import UserError
from hftransfer.runs.folder import MODELS, open_run
from hftransfer.runs.predictions import outputs_of, places_of
from hftransfer.runs.record import FreezeCheckRecord, HistoryRecord, MetricsRecord, RunRecord
from hftransfer.runs.several import LACKS, require_one_input
from hftransfer.tasks import Task

PAIR_MARK = " ‖ "  # between two texts that are read as one; a sign that common fonts have
KEPT_INPUTS = "inputs"  # folder of images that have no file elsewhere (see `kept_inputs`)
LONGEST_NAME = 200  # bytes; file systems take 255, and suffixes follow


@dataclass(frozen=True)
class Part:
    """Rows of one split in the order of the file: targets and scores as `Task` has them, one id and group per row."""

    frame: pd.DataFrame
    targets: np.ndarray
    scores: np.ndarray

    @property
    def ids(self) -> list[str]:
        return self.frame["id"].tolist()

    @property
    def groups(self) -> list[str | None] | None:
        found = [None if pd.isna(group) else str(group) for group in self.frame["group"]]
        return found if any(group is not None for group in found) else None

    def rows(self, chosen: np.ndarray) -> "Part":
        """Return some of the rows, by number or by truth value."""
        frame = self.frame.iloc[np.arange(len(self))[chosen]].reset_index(drop=True)
        return Part(frame, self.targets[chosen], self.scores[chosen])

    def __len__(self) -> int:
        return len(self.frame)


@dataclass(frozen=True)
class RecordedRun:
    """The files of a run folder, read when they are asked for."""

    folder: Path

    @classmethod
    def open(cls, folder: str | Path) -> "RecordedRun":
        """Open a run folder. Raises `UserError` for one that is missing, interrupted, or no run."""
        return cls(open_run(folder))

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @cached_property
    def record(self) -> RunRecord:
        return RunRecord.read(self.folder)

    @cached_property
    def config(self) -> dict[str, Any]:
        """The resolved configuration as plain values."""
        return yaml.safe_load((self.folder / "config.yaml").read_text(encoding="utf-8"))

    @property
    def runs_own_code(self) -> bool:
        """Whether the user allowed the model's own Python code when the run was trained.

        What lies in the cache of the Hub is somebody else's configuration and allows nothing.
        """
        from huggingface_hub.constants import HF_HUB_CACHE

        downloaded = self.folder.resolve().is_relative_to(Path(HF_HUB_CACHE).resolve())
        there = (self.folder / "config.yaml").is_file() and not downloaded
        return there and bool(self.config.get("model", {}).get("trust_remote_code", False))

    @property
    def columns(self) -> dict[str, list[str]]:
        """The columns `input` and `label` that the run was trained on; empty for a model folder and for earlier runs."""
        if not (self.folder / "run.json").is_file():
            return {}
        return self.record.data.columns

    @property
    def named_inputs(self) -> dict[str, str]:
        """The kind of each column that is part of one text; empty where the input is one column or a pair."""
        found = self.input_setting
        return found if isinstance(found, dict) else {}

    @property
    def input_setting(self) -> Any:
        """What the configuration calls the input; it lies under another name in a folder as it is pushed."""
        for name in ("config.yaml", "training_config.json"):
            if (self.folder / name).is_file():
                return yaml.safe_load((self.folder / name).read_text(encoding="utf-8")).get("data", {}).get("input")
        return None

    @property
    def trained_on(self) -> set[str]:
        """Content digests of the training examples; empty for a model folder and for earlier runs."""
        if not (self.folder / "splits.parquet").is_file() or "digest" not in self.splits:
            return set()
        return set(self.splits.loc[self.splits["split"] == "train", "digest"])

    @cached_property
    def metrics(self) -> MetricsRecord:
        return MetricsRecord.read(self.folder)

    @cached_property
    def history(self) -> tuple[dict[str, Any], ...]:
        """The log of the training; a value that was no number is NaN."""
        return HistoryRecord.read(self.folder).entries

    @cached_property
    def freeze_check(self) -> FreezeCheckRecord:
        return FreezeCheckRecord.read(self.folder)

    @cached_property
    def task(self) -> Task:
        return self.record.task.make()

    def explanation(self, row: str, suffix: str) -> Path:
        """Where the explanation of one row lies, if there is one: `.png` over an image, `.json` with weights of tokens."""
        return self.folder / "explanations" / f"{file_name(row)}{suffix}"

    @property
    def evaluated(self) -> str:
        """The split that the results speak of: test, or validation where there are no test rows.

        Raises `UserError` for a run that measured neither.
        """
        found = [split for split in ("test", "validation") if split in self.metrics.parts]
        if not found:
            raise UserError(
                f"The run {self.folder} has neither test nor validation rows: there is nothing to judge it by."
            )
        return found[0]

    @property
    def headline(self) -> str:
        """The part of `metrics` that a run is told by: cross-validation of few examples, else `evaluated`.

        Runs of earlier versions name none. Raises `UserError` as `evaluated` does.
        """
        return self.metrics.headline or self.evaluated

    @property
    def trainable_share(self) -> float:
        groups = self.freeze_check.layer_groups
        return sum(group.trainable for group in groups) / max(1, sum(group.parameters for group in groups))

    @property
    def seconds(self) -> float:
        return sum(self.record.seconds.values())

    @property
    def model_bytes(self) -> int:
        models = [self.folder / "model", *(self.folder / MODELS).glob("*/model")]
        return sum(file.stat().st_size for folder in models for file in folder.rglob("*") if file.is_file())

    @property
    def inputs(self) -> tuple[str, ...]:
        """The names of the inputs of a run on several; empty for any other."""
        return tuple(each.name for each in self.record.inputs)

    def lacks(self, command: str) -> bool:
        """Return whether a command does not take this run."""
        return command in self.task.lacks or bool(self.inputs) and command in LACKS

    def require(self, command: str) -> None:
        """Raise `UserError` where a command does not take this run."""
        self.task.require(command)
        require_one_input(command, self.inputs, self.folder)

    @cached_property
    def splits(self) -> pd.DataFrame:
        """Every row of the data: id, split, group, label, digest, and input: a text, a path, or "" where there is none."""
        table = pd.read_parquet(self.folder / "splits.parquet")
        kept = {file.stem: str(file) for file in (self.folder / KEPT_INPUTS).absolute().glob("*")}
        filled = [value or kept.get(file_name(row), "") for row, value in zip(table["id"], table["input"], strict=True)]
        return table.assign(input=filled) if kept else table

    @property
    def train_rows(self) -> dict[str, int]:
        """Training rows of each class, or of each label; empty for regression."""
        if not self.task.has_classes:
            return {}
        labels = self.splits.loc[self.splits["split"] == "train", "label"]
        found = Counter(name for label in labels for name in self.task.label_names(plain_label(label)))
        return {name: found[name] for name in self.task.names}

    @cached_property
    def _predictions(self) -> pd.DataFrame:
        return self._with_inputs(pd.read_parquet(self.folder / "predictions.parquet"))

    def _with_inputs(self, table: pd.DataFrame) -> pd.DataFrame:
        """Beside each row its group and its input."""
        named = [f"input:{name}" for name in self.inputs]
        columns = [name for name in ("id", "group", "input", "input_pair", *named) if name in self.splits]
        return table.merge(self.splits[columns], on="id", how="left")

    def part(self, split: str) -> Part:
        """Return the predicted rows of a split. Raises `UserError` when the run has none."""
        table = self._predictions
        rows = table[table["split"] == split].reset_index(drop=True)
        if rows.empty:
            raise UserError(f"The run {self.folder} has no predictions for the {split} part.")
        return self._as_part(rows)

    @cached_property
    def out_of_fold(self) -> Part | None:
        """Training rows with predictions from folds that did not see them; None where the run wrote none."""
        path = self.folder / "oof.parquet"
        if not path.is_file():
            return None
        return self._as_part(self._with_inputs(pd.read_parquet(path)))

    def _as_part(self, rows: pd.DataFrame) -> Part:
        labels = [plain_label(label) for label in rows["label"]]
        targets = self.task.targets(labels, places_of(rows))
        return Part(rows.assign(label=labels), targets, outputs_of(rows, self.task))


def file_name(row: str) -> str:
    """Return a name for a file about one row: its id where that makes a name, shortened and with a hash where it is too long."""
    name = quote(row, safe="")
    return name if len(name) <= LONGEST_NAME else f"{name[:100]}-{hashlib.sha256(row.encode()).hexdigest()[:16]}"


def plain_label(label: Any) -> Any:
    """Return a label as the task takes it: parquet gives lists back as arrays."""
    return label.tolist() if isinstance(label, np.ndarray) else label


def open_all(folders: Sequence[str | Path]) -> list[RecordedRun]:
    """Return runs with the same task. Raises `UserError` for fewer than two, and for tasks that differ."""
    if len(folders) < 2:
        raise UserError(f"A comparison needs at least 2 runs; found {len(folders)}.")
    runs = [RecordedRun.open(folder) for folder in folders]
    for run in runs[1:]:
        if run.task != runs[0].task:
            raise UserError(
                f"Only runs with the same task can be compared: {runs[0].folder} has {_task_words(runs[0].task)}, "
                f"{run.folder} has {_task_words(run.task)}."
            )
    return runs


def _task_words(task: Task) -> str:
    shown = ", ".join(task.names[:5]) + (", …" if len(task.names) > 5 else "")
    return f"{task.type} with {len(task.names)} outputs ({shown})"
