"""What can be said about the data in a configuration."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, field_validator, model_validator
from pydantic_core import PydanticCustomError

from hftransfer.core.errors import UserError
from hftransfer.core.settings import Count, Seed, Settings
from hftransfer.data.named_inputs import input_kinds
from hftransfer.modalities import MODALITIES, kind_of
from hftransfer.tasks import TASKS


def _known_task(name: str) -> str:
    if name not in TASKS:
        raise ValueError(f"expected one of {', '.join(TASKS)}")
    return name


TaskName = Annotated[str, AfterValidator(_known_task)]
# Values of split.group that are no column.
AUTOMATIC = ("stem", "auto")


class SplitConfig(Settings):
    """How rows are divided where the data does not divide them itself.

    `test` and `validation` are shares of the rows that are cut; `file` is the `splits.parquet` of an earlier run, or
    its run folder; `new_rows` says what happens to rows that file does not know; `group` is a column whose equal values
    stay on one side, "stem" for series of image file names, or "auto" for these, duplicates and bursts of photos.
    `copies` says whether equal and nearly equal inputs stay on one side of a cut.
    """

    test: float = Field(0.2, ge=0, lt=1)
    validation: float = Field(0.15, ge=0, lt=1)
    seed: Seed = 0
    file: str | None = None
    new_rows: Literal["stop", "train"] = "stop"
    group: str | None = None
    copies: Literal["together", "apart"] = "together"

    @model_validator(mode="after")
    def _leave_something_to_train_on(self) -> "SplitConfig":
        if self.test + self.validation >= 1:
            raise ValueError(
                f"data.split.test ({self.test}) and data.split.validation ({self.validation}) must leave a share for "
                "training: their sum has to be below 1"
            )
        return self


class DataConfig(Settings):
    """Where the examples are and what their columns mean.

    `train`, `validation` and `test` each name an image folder, a table (CSV, TSV, JSON, JSONL, Parquet), a saved
    `datasets` folder or a data set on the Hub (`hub:name` or `hub:name:configuration`). What is left out here is found
    from the content and logged. `train_examples` keeps a stratified subsample of the training part, drawn by
    `split.seed`. `patch` names a file of decisions about single rows (see `hftransfer review`).
    """

    train: str | None = None
    validation: str | None = None
    test: str | None = None
    input: str | list[str] | dict[str, str] | None = Field(
        None,
        description="column of the inputs; two texts; or several inputs by name, such as {caption: text, price: number}",
    )
    label: str | list[str] | None = None
    task: TaskName | None = None
    modality: str | None = None
    separator: str | None = Field(None, min_length=1)
    mask: str | None = Field(
        None, description="path of the mask of an image, such as {parent}/../masks/{stem}_mask.png"
    )
    classes: str | list[str] | dict[str | int, Any] | None = Field(
        None, description="of masks: a file of classes, their names, or the value or colour of each name"
    )
    on_error: Literal["stop", "skip"] = "stop"
    train_examples: Count | None = None
    split: SplitConfig = SplitConfig()
    allow_outside: bool = False
    patch: str | None = None
    patch_test: bool = Field(False, description="let the patch relabel and drop test rows too")

    @model_validator(mode="before")
    @classmethod
    def _one_input_needs_no_mapping(cls, values: Any) -> Any:
        wanted = values.get("input") if isinstance(values, dict) else None
        if not isinstance(wanted, dict) or len(wanted) != 1:
            return values
        ((name, kind),) = wanted.items()
        if kind not in MODALITIES:  # an only number is written as a text, another word refused
            return values
        return values | {"input": name, "modality": values.get("modality") or kind}

    @field_validator("input")
    @classmethod
    def _are_kinds(cls, wanted: Any) -> Any:
        for name, kind in wanted.items() if isinstance(wanted, dict) else ():
            if kind not in input_kinds():
                known = ", ".join(input_kinds())
                raise PydanticCustomError("kind", f"expected one of {known} as the kind of {name}, found {kind!r}")
        return wanted

    @field_validator("modality")
    @classmethod
    def _is_registered(cls, name: str | None) -> str | None:
        try:
            return name and kind_of(name).name
        except UserError as error:
            raise PydanticCustomError("modality", str(error)) from None
