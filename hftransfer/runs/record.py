"""What `run.json` holds: one definition, one writer, one reader. Runs of earlier versions are read with today's defaults."""

from pathlib import Path
from typing import Any

from pydantic import AliasChoices, BaseModel, ConfigDict, Field, ValidationError

from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json, write_json
from hftransfer.tasks import Task, make_task

SCHEMA_VERSION = 2  # 2: `feature_source` instead of `readout`


class _Record(BaseModel):
    """A piece of a record: frozen; what a later version adds is passed over."""

    model_config = ConfigDict(frozen=True, extra="ignore")


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


class RunRecord(_Record):
    """A finished run: what it was made from, what was decided, what it cost. `seconds` are by phase."""

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

    @classmethod
    def read(cls, folder: Path) -> "RunRecord":
        """Read the record of a run folder. Raises `UserError` for one that is damaged or of a later version."""
        path = folder / "run.json"
        try:
            record = cls.model_validate(read_json(path))
        except (ValidationError, ValueError) as error:
            raise UserError(f"{path} cannot be read as the record of a run: {_first_problem(error)}") from error
        if record.schema_version > SCHEMA_VERSION:
            raise UserError(
                f"{path} was written by a later version of hftransfer (schema {record.schema_version}, this one reads up to "
                f"{SCHEMA_VERSION}): pip install --upgrade hftransfer"
            )
        return record

    def write(self, folder: Path) -> None:
        """Write the record; a run folder is complete once it is there."""
        write_json(folder / "run.json", self.model_dump(mode="json"))


def _first_problem(error: ValueError) -> str:
    if not isinstance(error, ValidationError):
        return str(error)
    problem = error.errors(include_input=False)[0]
    return f"{'.'.join(map(str, problem['loc']))}: {problem['msg']}."
