"""What every check reads: the rows, what one look at each input showed, and how they are or would be divided."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import numpy as np
import pandas as pd

from hftransfer.data.config import DataConfig
from hftransfer.data.groups import join_copies, links
from hftransfer.data.named_rows import is_column
from hftransfer.data.read import Read
from hftransfer.data.splits import assign_splits, single_examples
from hftransfer.modalities import ModalityKind, kind_of
from hftransfer.modalities.inspection import Inspection
from hftransfer.runs.several import require_one_input
from hftransfer.tasks import Task

SHOWN = 60


@dataclass(frozen=True)
class Facts:
    """A data set under examination.

    `frame` has the columns id, where (how messages call the row), split (None where nothing is given), group, input,
    input_pair, label (None where missing); `inspections` has one entry per row; `read` is what came from the data itself, None
    for data that is already loaded; `known_links` are the `groups.links` of the rows, where they were searched before;
    `mask_faults` say by row why a mask cannot be used: such a row has no label.
    """

    frame: pd.DataFrame
    modality: str
    task: Task
    inspections: Sequence[Inspection]
    config: DataConfig
    read: Read | None = None
    known_links: dict[str, np.ndarray] | None = None
    mask_faults: dict[int, str] = field(default_factory=dict)

    @property
    def kind(self) -> ModalityKind:
        return kind_of(self.modality)

    @property
    def several(self) -> bool:
        """Whether an example has several inputs, each in a column of its own (`data.named_rows`)."""
        return any(map(is_column, self.frame.columns))

    def require(self, command: str) -> None:
        """Raise `UserError` where a command does not take these data."""
        self.task.require(command)
        require_one_input(command, list(self.read.columns[0].named.kinds) if self.several and self.read else [])

    @cached_property
    def links(self) -> dict[str, np.ndarray]:
        """Pairs (P, 2) of row numbers that belong together, by the reason why."""
        return self.known_links or links(self.frame, list(self.inspections), self.modality)

    @cached_property
    def raw(self) -> pd.DataFrame:
        """The rows with all columns of the data."""
        return self.read.raw() if self.read else pd.DataFrame(index=self.frame.index)

    @cached_property
    def divided(self) -> pd.DataFrame | None:
        """The rows as a run without groups would divide them; None where the division is given or by groups."""
        config = self.config.split
        if config.group or config.file or (self.frame["split"] == "test").any() or not config.test:
            return None
        usable = self.labelled & single_examples(self.frame, self.task, config).isna()
        divided = self.frame.assign(split="train")
        if config.copies == "together":
            divided["group"] = join_copies(self.frame, self.links)
        undivided = divided[usable].assign(split=self.frame["split"][usable])
        divided.loc[usable, "split"] = assign_splits(undivided, self.task, config)
        return divided

    @property
    def labelled(self) -> pd.Series:
        """Which rows have a label."""
        return self.frame["label"].notna()

    def where(self, rows: Sequence[int] | np.ndarray) -> tuple[str, ...]:
        return tuple(self.frame["where"].iloc[list(rows)])

    def describe_pairs(self, pairs: np.ndarray) -> tuple[str, ...]:
        """Both members of every pair, with their label and split where they differ."""
        return tuple(f"{self._row(i, j)}  =  {self._row(j, i)}" for i, j in pairs)

    def _row(self, index: int, other: int) -> str:
        row, partner = self.frame.iloc[index], self.frame.iloc[other]
        shown = ("split",) if self.task.by_pixel else ("label", "split")
        notes = [row[name] for name in shown if row[name] is not None and row[name] != partner[name]]
        words = ", ".join(" ".join(map(str, note)) if isinstance(note, list) else str(note) for note in notes)
        text = f" {row['input'][:SHOWN]!r}" if not self.kind.files else ""
        return row["where"] + text + (f" [{words}]" if notes else "")
