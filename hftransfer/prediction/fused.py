"""Several inputs -> predictions: the plain model of each input reads its own, and one linear head reads all of them."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from hftransfer.core.errors import UserError
from hftransfer.data.inputs import load_examples
from hftransfer.data.named_inputs import CATEGORY
from hftransfer.data.named_rows import column_of, digests_of, faults_of
from hftransfer.modalities import MODALITIES
from hftransfer.prediction.predictor import Predictor, load_one, with_limits
from hftransfer.prediction.readable import beside_errors
from hftransfer.prediction.reliability import Reliability
from hftransfer.probe.fused import Block, FusedHead, Values, of_categories, of_numbers
from hftransfer.runs.folder import MODELS
from hftransfer.runs.reader import RecordedRun
from hftransfer.runs.several import require_one_input
from hftransfer.runtime.launch import World
from hftransfer.tasks import Task

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class FusedPredictor:
    """A run on several inputs, ready to answer. Made by `load`.

    `predictors` are those of the inputs with a network; `kinds` names all inputs, as `data.input` does.
    """

    folder: Path
    predictors: dict[str, Predictor]
    head: FusedHead
    task: Task
    kinds: dict[str, str]
    reliability: Reliability | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        return tuple(self.kinds)

    decodes = False  # faults are looked for in each input

    @property
    def reads(self) -> dict[str, Any]:
        """What tells which inputs other data have, as `DataConfig` takes it."""
        return {"input": self.kinds}

    def digests(self, frame: pd.DataFrame) -> list[str]:
        """Return the content hash of each row, by which a run knows its training examples."""
        return digests_of(frame, self.kinds)

    def _repr_html_(self) -> str:
        """Return the predictor as a notebook shows it: what it reads, and what it answers."""
        from hftransfer.core.notebook import as_card

        rows = {
            "reads": ", ".join(f"{name} ({kind})" for name, kind in self.kinds.items()),
            "answers": f"{self.task.type.replace('_', ' ')}: {', '.join(self.task.names[:20])}",
        }
        return as_card("Predictor", rows, "predict([{" + ", ".join(f'"{name}": …' for name in self.kinds) + "}])")

    @property
    def files(self) -> list[str]:
        """The kinds of the inputs that are files."""
        return [kind for kind in self.kinds.values() if kind in MODALITIES and MODALITIES[kind].files]

    def without_workers(self) -> "FusedPredictor":
        """Return a predictor that reads inputs in its own process, as a server does."""
        alone = {name: predictor.without_workers() for name, predictor in self.predictors.items()}
        return replace(self, predictors=alone)

    def require(self, command: str) -> None:
        """Raise `UserError` where a command does not take this model."""
        self.task.require(command)
        require_one_input(command, self.columns, self.folder)

    def frame(self, inputs: Any, columns: list[str] | None = None) -> pd.DataFrame:
        """Return the rows (`id`, and a column for each input) of tables, of a DataFrame, or of mappings by name.

        Raises `UserError` where a column is missing.
        """
        if columns:
            self.require("--column")
        return load_examples(inputs, self.kinds)

    def values(self, frame: pd.DataFrame) -> dict[str, Values]:
        """Return what the head reads of each input. Raises `UnreadableInput`."""
        return {block.name: self._values(block, frame[column_of(block.name)]) for block in self.head.layout.blocks}

    def _values(self, block: Block, column: pd.Series) -> Values:
        if block.kind not in MODALITIES:
            return of_categories(column, block.categories, block.name) if block.kind == CATEGORY else of_numbers(column)
        present = column.notna().to_numpy()
        rows = pd.DataFrame({"id": np.flatnonzero(present), "input": column[present].tolist()}, dtype=object)
        found = self.predictors[block.name].read(rows)[1] if present.any() else np.zeros((0, block.width))
        return Values(present, found)

    def read(self, frame: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Logits (N, C), and the features (N, D) of all inputs on the scale of the head."""
        features = self.head.layout.matrix(self.values(frame))
        return self.head.logits(features), self.head.scaled(features)

    def logits(self, frame: pd.DataFrame, views: int = 0) -> np.ndarray:
        if views:
            self.require("--views")
        return self.read(frame)[0]

    def predict(
        self, inputs: str | PathLike[str] | Sequence[Any], columns: list[str] | None = None, views: int = 0
    ) -> pd.DataFrame:
        """Return one row for each example, as `Predictor.predict` does; `inputs` are those of `frame`."""
        return self.table(self.frame(inputs, columns), views)

    def errors(self, frame: pd.DataFrame) -> pd.Series:
        """Why each row of `frame` cannot be read; None for those that can. A missing input is no error, if not all are."""
        return faults_of(frame, self.kinds)

    def table(self, frame: pd.DataFrame, views: int = 0) -> pd.DataFrame:
        """Return the answers to the rows of `frame`; a row that cannot be read has a reason in the column `error`."""
        errors = self.errors(frame)
        if errors.notna().all():
            raise UserError(
                f"None of the {len(frame)} examples can be read. The first: {frame['id'].iloc[0]}: {errors.iloc[0]}."
            )
        return beside_errors(frame, errors, lambda rows: self.answers(rows, views))

    def answers(self, frame: pd.DataFrame, views: int = 0) -> pd.DataFrame:
        """Return what `table` does, of rows that can all be read. Raises `UnreadableInput`."""
        if views:
            self.require("--views")
        return with_limits(self.task, self.reliability, frame["id"].tolist(), *self.read(frame))


def load_fused(folder: Path, use_cpu: bool, batch_size: int, remote: bool | None, world: World) -> FusedPredictor:
    """Load the models of all inputs of a run folder, and the head on them. Raises `UserError`."""
    return assembled(folder, RecordedRun.open(folder).task, use_cpu, batch_size, remote, world)


def assembled(
    folder: Path, task: Task, use_cpu: bool = False, batch_size: int = 16, remote: bool | None = None,
    world: World = World(),
) -> FusedPredictor:  # fmt: skip
    """Do what `load_fused` does, also in a folder that is not complete yet."""
    head = FusedHead.read(folder)
    predictors = {
        block.name: load_one(folder / MODELS / block.name, use_cpu, batch_size, remote, world)
        for block in head.layout.blocks
        if block.kind in MODALITIES
    }
    kinds = {block.name: block.kind for block in head.layout.blocks}
    return FusedPredictor(folder, predictors, head, task, kinds, Reliability.read(folder, task))
