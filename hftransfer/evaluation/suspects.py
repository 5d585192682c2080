"""Labels of words and of pixels that may be wrong: where a model that did not see an example contradicts them with certainty.

As in confident learning the threshold of a class is the mean probability that the model gives it where it is the label
(Northcutt, Jiang & Chuang 2021, "Confident learning", section 3.1). A contradiction below the threshold is doubt.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from hftransfer.core.mask_files import IGNORED, decode_mask, decode_prediction
from hftransfer.evaluation.entities import errors_of
from hftransfer.tasks import Task
from hftransfer.tasks.tokens import Span

LEAST_SHARE = 0.01  # of the labelled pixels of an image: less is the breadth of an outline


@dataclass(frozen=True)
class SuspectText:
    """The text of number `row`: pairs of a labelled and a found entity, one of them None, that contradict with certainty.

    `given` is the mean probability of the labelled tags on the words of the surest contradiction.
    """

    row: int
    given: float
    pairs: tuple[tuple[Span | None, Span | None], ...]


def suspect_texts(task: Task, targets: np.ndarray, scores: np.ndarray) -> list[SuspectText]:
    """Return the texts whose labels may be wrong, likeliest first, from tags (N,) and scores (N,) of their words.

    A contradiction of several words has to reach the thresholds of their tags on average.
    """
    decided, least = task.decide(scores), _thresholds(task, targets, scores)
    found = []
    for row, (tags, own, chances) in enumerate(zip(targets, decided, scores, strict=True)):
        pairs = [pair for wrong in errors_of(task.spans(tags), task.spans(own)).values() for pair in wrong]
        words = [_contradicted(pair, tags, own) for pair in pairs]
        sure = [
            number for number, at in enumerate(words) if len(at) and (chances[at, own[at]] - least[own[at]]).mean() >= 0
        ]
        if sure:
            given = min(float(chances[words[number], tags[words[number]]].mean()) for number in sure)
            found.append(SuspectText(row, given, tuple(pairs[number] for number in sure)))
    return sorted(found, key=lambda text: text.given)


def _thresholds(task: Task, targets: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Return for each tag (C,) the mean probability that words with it have of it; infinite where there are none."""
    tags, chances = task.units(targets).astype(np.int64), task.units(scores)
    sums = np.bincount(tags, chances[np.arange(len(tags)), tags], minlength=task.head_size)
    counts = np.bincount(tags, minlength=task.head_size)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def _contradicted(pair: tuple[Span | None, Span | None], tags: np.ndarray, own: np.ndarray) -> np.ndarray:
    """Return the words of two entities whose tags differ."""
    spans = [span for span in pair if span]
    words = np.arange(min(span[0] for span in spans), max(span[1] for span in spans))
    return words[tags[words] != own[words]]


def corrected(task: Task, label: Sequence[dict], text: str, places: np.ndarray, suspect: SuspectText) -> list[dict]:
    """Return the label of a text with the found entities in the place of those that they contradict.

    `places` (W, 2) are first character and end of each word.
    """
    dropped = [_characters(places, given) for given, _ in suspect.pairs if given]
    kept = [each for each in label if not any(each["start"] < end and each["end"] > start for start, end in dropped)]
    for _, found in suspect.pairs:
        if found:
            start, end = _characters(places, found)
            start += len(text[start:end]) - len(text[start:end].lstrip())
            kept.append({"start": start, "end": end, "label": task.names[found[2]]})
    return sorted(({key: each[key] for key in ("start", "end", "label")} for each in kept), key=lambda e: e["start"])


def _characters(places: np.ndarray, span: Span) -> tuple[int, int]:
    return int(places[span[0], 0]), int(places[span[1] - 1, 1])


def suspect_masks(targets: Sequence[bytes], predictions: Sequence[bytes], classes: int) -> list[tuple[int, float]]:
    """Return the images whose masks may be wrong, with the share of their labelled pixels that is contradicted.

    Of a pixel the certainty of the found class alone is kept. So the threshold of a class is the mean certainty of the pixels
    where label and prediction agree on it.
    """
    pairs = [(decode_mask(mask), *decode_prediction(found)) for mask, found in zip(targets, predictions, strict=True)]
    least = _certainties(pairs, classes)
    shares = [_contradicted_share(*pair, least) for pair in pairs]
    order = np.argsort([-share for share in shares], kind="stable")
    return [(int(row), shares[row]) for row in order if shares[row] >= LEAST_SHARE]


def _certainties(pairs: Sequence[tuple[np.ndarray, ...]], classes: int) -> np.ndarray:
    """Return for each class (C,) the mean certainty, 0 to 255, of its pixels that are found; infinite where none is."""
    sums, counts = np.zeros(classes), np.zeros(classes)
    for true, found, certainty in pairs:
        right = true == found
        sums += np.bincount(found[right], certainty[right], minlength=classes)[:classes]
        counts += np.bincount(found[right], minlength=classes)[:classes]
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.inf)


def _contradicted_share(true: np.ndarray, found: np.ndarray, certainty: np.ndarray, least: np.ndarray) -> float:
    known = true != IGNORED
    sure = known & (true != found) & (certainty >= least[found])
    return float(sure.sum() / max(known.sum(), 1))
