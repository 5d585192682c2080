"""Single examples worth a look: what the model gets wrong with confidence, and labels that are likely wrong themselves."""

import base64
import io
import logging
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json
from hftransfer.evaluation.entities import errors_of
from hftransfer.modalities import ModalityKind, first_kind, kind_of
from hftransfer.report.masks import panels, worst_masks
from hftransfer.report.picked import SHOWN, Picked, in_words, words
from hftransfer.report.suspects import label_errors
from hftransfer.runs.predictions import places_of
from hftransfer.runs.reader import PAIR_MARK, Part, RecordedRun
from hftransfer.tasks import Task

logger = logging.getLogger(__name__)

PICTURES = first_kind(lambda kind: kind.shows == "picture")  # explanations are pictures, whatever they explain

EXPLAINED = 6  # of each list, the first: a text costs half a second on two cores
_SIDE = 240  # pixels of a thumbnail's longer side
_CHARACTERS = 420


@dataclass(frozen=True)
class Card:
    """One example: its picture (a data URI) or its words, what was expected, what was answered and how sure.

    `words` are pieces of text with a weight from -1 (speaks against the answer) over 0 (not explained) to 1.
    """

    id: str
    note: str
    label: str
    prediction: str
    image: str | None
    explained_image: str | None
    words: list[tuple[str, float]]
    sound: str | None = None
    others: list[tuple[str, str]] = field(default_factory=list)  # name and value of further inputs

    @property
    def explained(self) -> bool:
        return self.explained_image is not None or any(weight for _, weight in self.words)


def confident_errors(run: RecordedRun, count: int = SHOWN) -> Picked:
    """Return the evaluated rows where the model was surest of a wrong answer; for regression those with the largest error."""
    task, part = run.task, run.part(run.evaluated)
    if task.by_word:
        return _texts_with_errors(task, part, count)
    if task.by_pixel:
        return worst_masks(task, part, count)
    decided = task.decide(part.scores)
    if not task.has_classes:
        error = np.abs(part.scores - part.targets).max(1)
        rows, sure = np.argsort(-error)[:count], [f"off by {value:.3g}" for value in error]
    else:
        wrong = (decided != part.targets).reshape(len(part), -1).any(1)
        confidence = _confidence_of_error(task, part, decided)
        rows = np.array([row for row in np.argsort(-confidence) if wrong[row]][:count], dtype=int)
        sure = [f"{value:.0%} sure" for value in confidence]
    return Picked(part, rows, [words(task.decode(decided[row])) for row in rows], [sure[row] for row in rows])


def _texts_with_errors(task: Task, part: Part, count: int) -> Picked:
    """Return the texts with the most wrong entities, words of right ones marked for and of wrong ones against."""
    places, decided, texts = places_of(part.frame), task.decide(part.scores), part.frame["input"].tolist()
    wrong = [errors_of(task.spans(t), task.spans(d)) for t, d in zip(part.targets, decided, strict=True)]
    sizes = np.array([sum(map(len, found.values())) for found in wrong])
    rows = [int(row) for row in np.argsort(-sizes, kind="stable")[:count] if sizes[row]]
    notes = [", ".join(f"{len(found)} {name}" for name, found in wrong[row].items() if found) for row in rows]
    answers = [task.describe(task.entities(texts[row], places[row], part.scores[row])) for row in rows]
    spans = [(task.spans(part.targets[row]), task.spans(decided[row])) for row in rows]
    marked = [_marked(texts[row], places[row], *both) for row, both in zip(rows, spans, strict=True)]
    return Picked(part, rows, answers, notes, marked)


def _marked(text: str, places: np.ndarray, true: list, found: list) -> list[tuple[str, float]]:
    pieces, end = [], 0
    for first, last, _ in sorted({*true, *found}):
        start, stop = int(places[first, 0]), int(places[last - 1, 1])
        if stop <= end:
            continue
        weight = 1.0 if any(span in true and span in found for span in true if span[:2] == (first, last)) else -1.0
        pieces += [(text[end : max(start, end)], 0.0), (text[max(start, end) : stop], weight)]
        end = stop
    return [*pieces, (text[end:], 0.0)]


def _confidence_of_error(task: Task, part: Part, decided: np.ndarray) -> np.ndarray:
    """Return the probability of the wrong answer: of the class, or of that label's side that was most surely wrong."""
    if task.exclusive:
        return part.scores.max(1)
    side = np.where(decided > 0.5, part.scores, 1 - part.scores)
    return np.where(decided != part.targets, side, 0).max(1)


def shown_outputs(run: RecordedRun) -> dict[str, int]:
    """Return the first rows of each list by their id, each with the output that is shown as the answer: what is explained."""
    run.require("--explain")
    picked = [choice for choice in (confident_errors(run), label_errors(run)) if choice]
    return {
        choice.part.ids[row]: int(choice.part.scores[row].argmax())
        for choice in picked
        for row in choice.rows[:EXPLAINED]
    }


def cards(run: RecordedRun, picked: Picked) -> list[Card]:
    """Return the chosen rows with their pictures or words."""
    found = [
        _card(run, picked.part.frame.iloc[row].to_dict(), answer, note)
        for row, answer, note in zip(picked.rows, picked.answers, picked.notes, strict=True)
    ]
    return (
        [replace(card, words=own) for card, own in zip(found, picked.marked, strict=True)] if picked.marked else found
    )


def _card(run: RecordedRun, row: dict[str, Any], answer: str, note: str) -> Card:
    kind = kind_of(run.record.modality)
    pictured = kind.shows != "words"
    label = in_words(run.task, row["label"], row["input"])
    image = thumbnail(row["input"], kind=kind) if pictured else None
    if run.task.by_pixel:
        image = panels(run.task, row["input"], row["label"], row["mask"])
    explained = run.explanation(row["id"], ".png")
    return Card(
        row["id"], note, label, answer, image,
        thumbnail(str(explained)) if explained.is_file() else None,
        [] if pictured else _highlighted(run, row), player(row["input"], kind) if pictured else None,
        _others(run, row),
    )  # fmt: skip


def _others(run: RecordedRun, row: dict[str, Any]) -> list[tuple[str, str]]:
    """Return the inputs of a row beside the one that is shown; "missing" for what it lacks."""
    values = {name: row.get(f"input:{name}") for name in run.inputs}
    values = {name: "missing" if value is None or value != value else str(value) for name, value in values.items()}
    return [(name, _short(value)) for name, value in values.items() if value != row["input"] or not value]


def _short(text: str) -> str:
    return text if len(text) <= _CHARACTERS else f"{text[:_CHARACTERS]}…"


def player(path: str, kind: ModalityKind) -> str | None:
    """Return what a page plays as a data URI; None where the input cannot be heard, or not be read any more."""
    try:
        sound = kind.sound(path) if path else None
    except UserError as error:
        logger.info("No sound: %s", error)
        return None
    return sound and "data:audio/mpeg;base64," + base64.b64encode(sound).decode()


def thumbnail(path: str, side: int = _SIDE, kind: ModalityKind = PICTURES) -> str | None:
    """Return a small JPEG as a data URI; None when the file is not there any more or cannot be read."""
    if not path:
        return None
    try:
        image = kind.picture(path, side)
    except UserError as error:
        logger.info("No thumbnail: %s", error)
        return None
    image.thumbnail((side, side))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=80)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def _highlighted(run: RecordedRun, row: dict[str, Any]) -> list[tuple[str, float]]:
    """Return the explained tokens where there are some, else the beginning of the text."""
    path = run.explanation(row["id"], ".json")
    if path.is_file():
        return [(token["text"], float(np.clip(token["weight"], -1, 1))) for token in read_json(path)["tokens"]]
    text = PAIR_MARK.join(str(row[name]) for name in ("input", "input_pair") if row.get(name))
    return [(_short(text), 0.0)]
