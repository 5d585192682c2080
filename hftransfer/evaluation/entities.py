"""How many entities are found: strictly (type and both ends) as `seqeval` counts with IOB2 in strict mode, and by overlap.

All metrics are ratios of counts that are summed over texts, so that resamples of texts are weighted sums of the counts.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hftransfer.tasks import Task

Span = tuple[int, int, int]  # first word, the word after the last, type


@dataclass(frozen=True)
class Counts:
    """Entities of each text and type, (N, T): true ones, found ones, those in both, and found ones that overlap a true one."""

    present: np.ndarray
    found: np.ndarray
    hit: np.ndarray
    overlapping: np.ndarray

    @classmethod
    def of(cls, task: Task, targets: np.ndarray, scores: np.ndarray) -> "Counts":
        """Count from tags (N,) and scores (N,) of the words of each text."""
        shape = (4, len(targets), len(task.names))
        counts = np.zeros(shape, dtype=np.int64)
        for text, (tags, decided) in enumerate(zip(targets, task.decide(scores), strict=True)):
            true, found = task.spans(tags), task.spans(decided)
            both = set(true) & set(found)
            for row, spans in zip(counts, (true, found, both, overlapping(true, found)), strict=True):
                for *_, kind in spans:
                    row[text, kind] += 1
        return cls(*counts)


def overlapping(true: Sequence[Span], found: Sequence[Span]) -> list[Span]:
    """Return the found entities that share a word with a true one of their type, each true one taken once, in order."""
    left, result = list(true), []
    for start, end, kind in found:
        other = next((span for span in left if span[2] == kind and span[0] < end and span[1] > start), None)
        if other is not None:
            left.remove(other)
            result.append((start, end, kind))
    return result


def entity_metrics(counts: Counts) -> dict[str, float]:
    """Return the metrics of all texts together."""
    return {name: float(value[0]) for name, value in _ratios(counts)(np.ones((1, len(counts.hit)))).items()}


def entity_statistics(counts: Counts) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return the metrics as a function of weights (R, N) of the texts."""
    return _ratios(counts)


def _ratios(counts: Counts) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        present, found, hit, near = (
            weights @ each for each in (counts.present, counts.found, counts.hit, counts.overlapping)
        )
        either = present + found
        return {
            "entity_f1": _share(2 * hit.sum(1), either.sum(1)),
            "entity_precision": _share(hit.sum(1), found.sum(1)),
            "entity_recall": _share(hit.sum(1), present.sum(1)),
            "macro_f1": _mean_defined(_share(2 * hit, either)),
            "overlap_f1": _share(2 * near.sum(1), either.sum(1)),
        }

    return compute


def _share(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _mean_defined(values: np.ndarray) -> np.ndarray:
    """Return the mean (R,) over the types that have a value."""
    known = ~np.isnan(values)
    return _share(np.where(known, values, 0).sum(1), known.sum(1).astype(float))


ERRORS = ("missing", "spurious", "wrong type", "wrong boundary")


def errors_of(true: Sequence[Span], found: Sequence[Span]) -> dict[str, list[tuple[Span | None, Span | None]]]:
    """Return pairs of a true and a found entity by what is wrong: one of the two is None where it has no partner.

    Entities with the same words and another type are of the wrong type; those that overlap have a wrong boundary.
    """
    wrong: dict[str, list[tuple[Span | None, Span | None]]] = {name: [] for name in ERRORS}
    lost, extra = ([span for span in one if span not in other] for one, other in ((true, found), (found, true)))
    for span in list(lost):
        same = next((other for other in extra if other[:2] == span[:2]), None)
        if same:
            wrong["wrong type"].append((span, same))
            lost.remove(span)
            extra.remove(same)
    for span in list(lost):
        near = next((other for other in extra if other[0] < span[1] and other[1] > span[0]), None)
        if near:
            wrong["wrong boundary"].append((span, near))
            lost.remove(span)
            extra.remove(near)
    wrong["missing"] = [(span, None) for span in lost]
    wrong["spurious"] = [(None, span) for span in extra]
    return wrong


# --- entities as programs give them ------------------------------------------------------------------------------------

Placed = tuple[int, int, str]  # first character, end, type


def spans_of(text: str, entities: Sequence[dict]) -> set[Placed]:
    """Return the entities of this package, or of the pipeline, as places; some tokens begin with the blank before them."""
    return {_placed(text, e["start"], e["end"], e.get("entity_group", e.get("label"))) for e in entities}


def _placed(text: str, start: int, end: int, name: str) -> Placed:
    inner = text[start:end]
    return start + len(inner) - len(inner.lstrip()), end, name


def differ(own: set[Placed], found: set[Placed], words: np.ndarray, scores: np.ndarray, tie: float) -> bool:
    """Return whether two sets of entities of one text differ, ties apart.

    `words` (W, 2) are the places of its words, `scores` (W, C) those of their tags: two nearer than `tie` may swap.
    """
    if not len(words):
        return own != found
    ranked = np.sort(scores, axis=1)
    sure = words[ranked[:, -1] - ranked[:, -2] > tie]
    return any(((sure[:, 0] < end) & (sure[:, 1] > start)).any() for start, end, _ in own ^ found)
