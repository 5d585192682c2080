"""Rows of a run that a page shows, and their labels in words."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from hftransfer.runs.reader import Part
from hftransfer.tasks import Task

SHOWN = 12


@dataclass(frozen=True)
class Picked:
    """Rows chosen for the gallery, with a note each; `marked` are their texts in weighted pieces, where there are any.

    `suggested` are labels in the place of the given ones, where they can be said.
    """

    part: Part
    rows: Sequence[int]
    answers: Sequence[str]
    notes: Sequence[str]
    marked: Sequence[list[tuple[str, float]]] = ()
    suggested: Sequence[Any] = ()


def in_words(task: Task, label: Any, text: str = "") -> str:
    """Return a label as a page shows it: of a mask the areas, of entities the words of their `text`."""
    return task.describe(label) if task.by_pixel else words(label, text)


def words(label: Any, text: str = "") -> str:
    """Return a label as a page shows it; entities by their words in `text`, or by their places without it."""
    if isinstance(label, list) and label and isinstance(label[0], dict):
        return ", ".join(f"{_said(entity, text)} ({entity['label']})" for entity in label)
    if isinstance(label, list | tuple):
        return ", ".join(map(words, label)) or "(none)"
    return f"{label:.4g}" if isinstance(label, float) else str(label)


def _said(entity: dict[str, Any], text: str) -> str:
    return text[entity["start"] : entity["end"]] or f"{entity['start']}-{entity['end']}"
