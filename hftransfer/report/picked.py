"""Rows of a run that a page shows."""

from collections.abc import Sequence
from dataclasses import dataclass

from hftransfer.runs.reader import Part


@dataclass(frozen=True)
class Picked:
    """Rows chosen for the gallery, with a note each; `marked` are their texts in weighted pieces, where there are any."""

    part: Part
    rows: Sequence[int]
    answers: Sequence[str]
    notes: Sequence[str]
    marked: Sequence[list[tuple[str, float]]] = ()
