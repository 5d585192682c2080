"""Define the JSON files of a run folder: one frozen model, one writer and one reader for each.

`run.json` names the version of the schema of all of them. Files of earlier versions are read with today's defaults.
"""

import math
from pathlib import Path
from typing import Any, ClassVar, Self

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from hftransfer.core.errors import UserError
from hftransfer.core.files import finite, read_json, write_json
from hftransfer.tasks import Task, make_task

SCHEMA_VERSION = 2  # 2: feature_source, layer_groups and depth instead of readout, rungs and rung


class _Record(BaseModel):
    """A piece of a record: frozen; what a later version adds is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class _File(_Record):
    """A record with a file of its own in the run folder."""

    NAME: ClassVar[str]

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the file of a run folder. Raises `UserError` for one that is damaged."""
        path = folder / cls.NAME
        try:
            return cls.model_validate(read_json(path))
        except (ValidationError, ValueError) as error:
            raise UserError(f"{path} cannot be read as the record of a run: {_first_problem(error)}") from error

    def write(self, folder: Path) -> None:
        """Write the file; values that are no numbers become null."""
        write_json(folder / self.NAME, finite(self.model_dump(mode="python")))


class TaskRecord(_Record):
    type: str
    names: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    weights: tuple[float, ...] = ()

    @classmethod
    def of(cls, task: Task) -> "TaskRecord":
        return cls(type=task.type, names=task.names, mean=task.mean, std=task.std, weights=task.weights)

    def make(self) -> Task:
        """Return the task, without the scale that is folded into the saved head."""
        return make_task(self.type, self.names)


class CheckpointRecord(_Record):
    source: str
    weights_hash: str


class FeatureSourceRecord(_Record):
    """The feature source that was chosen, and the cross-validated loss of each that was tried."""

    chosen: str
    losses: dict[str, float | None]


class PrecisionRecord(_Record):
    inference: str = ""
    training: str = ""


class DataRecord(_Record):
    """`counts` are examples per split, `given` splits that the data named, `fitted` those that weights were fitted on."""

    fingerprint: str
    counts: dict[str, int]
    columns: dict[str, list[str]] = Field(default_factory=dict)
    skipped: list[str] = Field(default_factory=list)
    patch: dict[str, Any] | None = None
    given: tuple[str, ...] | None = None
    fitted: tuple[str, ...] = ()
    copies: int | None = None
    leaked: int = 0


class InputRecord(_Record):
    """One of several inputs: its kind, the checkpoint of one with a network, and how many examples lack it, by split."""

    name: str
    kind: str
    checkpoint: CheckpointRecord | None = None
    missing: dict[str, int] = Field(default_factory=dict)


class RunRecord(_File):
    """A finished run: what it was made from, what was decided, what it cost. `seconds` are by phase.

    A run folder is complete once this file is there.
    """

    NAME = "run.json"

    schema_version: int = 0  # of runs from before versions were written
    modality: str
    pipeline_task: str = ""
    task: TaskRecord
    checkpoint: CheckpointRecord
    strategy: str
    feature_source: FeatureSourceRecord | None = Field(None, validation_alias=AliasChoices("feature_source", "readout"))
    temperature: float = 1.0
    steps: int = 0
    interrupted: str | None = None
    batch_size: tuple[int, int] | None = None  # examples per device, and accumulated batches
    learning_rate: float | None = None
    truncated_share: float | None = None
    seconds: dict[str, float]
    versions: dict[str, str]
    seed: int
    world_size: int = 1
    precision: PrecisionRecord = PrecisionRecord()
    data: DataRecord
    hardware: dict[str, Any] = Field(default_factory=dict)
    peak_memory_bytes: int | None = None
    self_check: dict[str, Any] | None = None
    inputs: tuple[InputRecord, ...] = ()  # of a run on several; each with a network has a run of its own in `models/`

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read the record of a run folder. Raises `UserError` for one that is damaged or of a later version."""
        record = super().read(folder)
        if record.schema_version > SCHEMA_VERSION:
            raise UserError(
                f"{folder / cls.NAME} was written by a later version of hftransfer (schema {record.schema_version}, "
                f"this one reads up to {SCHEMA_VERSION}): pip install --upgrade hftransfer"
            )
        return record


class FoldsRecord(_Record):
    """The design of a cross-validation."""

    folds: int
    repeats: int
    examples: int

    def describe(self) -> str:
        times = f", {self.repeats} times" if self.repeats > 1 else ""
        return f"cross-validated ({self.folds} folds{times})"


class CombinationRecord(_Record):
    """The headline metric of a head on some of the inputs, with its 95 % interval."""

    inputs: tuple[str, ...]
    value: float
    low: float
    high: float


class GainRecord(_Record):
    """How much the metric changes where `input` comes to the inputs `to`, with the paired 95 % interval."""

    input: str
    to: tuple[str, ...]
    difference: float
    low: float
    high: float


class ContributionsRecord(_Record):
    """What each of several inputs adds, by one metric on the same `examples`; `how` says which these are."""

    metric: str
    examples: int
    how: str
    combinations: list[CombinationRecord]
    gains: list[GainRecord]


class MetricsRecord(_File):
    """What was measured. A metric is `value`, `low` and `high` of its 95 % interval, and `n` examples.

    `per_class`, `calibration`, `conformal` and `notes` are by part. `headline` names the part that a run is told by.
    """

    NAME = "metrics.json"

    per_class: dict[str, list[dict[str, Any]]] = Field(default_factory=dict)
    notes: dict[str, str] = Field(default_factory=dict)
    test: dict[str, dict[str, Any]] = Field(default_factory=dict)
    validation: dict[str, dict[str, Any]] = Field(default_factory=dict)
    cross_validation: dict[str, dict[str, Any]] = Field(default_factory=dict)
    cross_validation_folds: FoldsRecord | None = None
    seeds: dict[str, dict[str, Any]] = Field(default_factory=dict)
    calibration: dict[str, dict[str, Any]] = Field(default_factory=dict)
    conformal: dict[str, dict[str, Any]] = Field(default_factory=dict)
    headline: str | None = None
    contributions: ContributionsRecord | None = None  # of runs on several inputs

    @classmethod
    def of(cls, measured: dict[str, Any]) -> Self:
        """Return the record of plain values. Raises `ValueError` for a name that is no field: it would be lost."""
        if lost := measured.keys() - cls.model_fields.keys():
            raise ValueError(f"metrics.json has no field {', '.join(sorted(lost))}")
        return cls.model_validate(measured)

    @property
    def parts(self) -> dict[str, dict[str, dict[str, Any]]]:
        """The parts that were measured, and their metrics."""
        found = {name: getattr(self, name) for name in ("test", "validation", "cross_validation", "seeds")}
        return {name: metrics for name, metrics in found.items() if metrics}

    def describe_part(self, part: str) -> str:
        """Name a part as people read it: "test", or "cross-validated (5 folds, 4 times)"."""
        if part == "cross_validation" and self.cross_validation_folds:
            return self.cross_validation_folds.describe()
        return part.replace("_", " ")

    def as_dict(self) -> dict[str, Any]:
        """Return plain values, without the parts that were not measured."""
        return {"per_class": self.per_class, "notes": self.notes} | self.model_dump(exclude_defaults=True)

    def write(self, folder: Path) -> None:
        write_json(folder / self.NAME, finite(self.as_dict()))


class LayerGroupRecord(_Record):
    """One layer group: its size, what of it trained at which highest rate, and hashes before and after."""

    depth: int = Field(validation_alias=AliasChoices("depth", "rung"))
    name: str
    parameters: int
    trainable: int
    learning_rate: float
    hash_before: str
    hash_after: str

    @property
    def moved(self) -> bool:
        return self.hash_before != self.hash_after


class FreezeCheckRecord(_File):
    """What moved in training, by layer group."""

    NAME = "receipt.json"

    trainable_share: float
    layer_groups: tuple[LayerGroupRecord, ...] = Field(validation_alias=AliasChoices("layer_groups", "rungs"))


class HistoryRecord(_File):
    """The log of the Trainer: a list of entries, one per logged step; a value that was no number is NaN."""

    NAME = "history.json"

    entries: tuple[dict[str, Any], ...] = ()

    @model_validator(mode="before")
    @classmethod
    def _from_list(cls, value: Any) -> Any:
        return {"entries": value} if isinstance(value, list) else value

    @field_validator("entries")
    @classmethod
    def _restore(cls, entries: tuple[dict[str, Any], ...]) -> tuple[dict[str, Any], ...]:
        return tuple({key: math.nan if value is None else value for key, value in entry.items()} for entry in entries)

    def write(self, folder: Path) -> None:
        write_json(folder / self.NAME, finite(self.entries))


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}."
