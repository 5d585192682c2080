"""Labels of words and pixels that were changed are found among those that were not, and doubt is no contradiction."""

import numpy as np

from hftransfer.core.mask_files import IGNORED, encode_mask, encode_prediction
from hftransfer.evaluation.suspects import corrected, suspect_masks, suspect_texts
from hftransfer.tasks import Tokens
from hftransfer.tasks.tokens import ragged

TASK = Tokens(("LOC", "PER"))


def answers(targets: np.ndarray) -> np.ndarray:
    """Scores of 0.97 for the given tags, and of 0.7 in the last five texts."""
    share = [0.97 if row < len(targets) - 5 else 0.7 for row in range(len(targets))]
    return ragged([(1 - s) / 4 + (s - (1 - s) / 4) * np.eye(5)[tags] for s, tags in zip(share, targets, strict=True)])


def test_changed_labels_of_words_are_found_with_what_is_right():
    rng = np.random.default_rng(1)
    truth = ragged([np.array([0, 1, 2, 0, 3])[: rng.integers(2, 6)] for _ in range(60)])
    scores, labels = answers(truth), truth.copy()
    labels[7] = np.where(truth[7] == 1, 3, truth[7])  # another type, and a tag that continues nothing
    labels[7] = np.where(truth[7] == 2, 4, labels[7])
    labels[11] = np.zeros_like(truth[11])  # missing
    found = suspect_texts(TASK, labels, scores)
    assert {text.row for text in found} == {7, 11} and all(text.given < 0.1 for text in found)
    places = np.array([[0, 2], [3, 5], [6, 8], [9, 11], [12, 14]])
    (text,) = [text for text in found if text.row == 7]
    label = [{"start": 3, "end": 8, "label": "PER", "text": "…"}]
    mended = corrected(TASK, label, "ab cd ef gh ij", places[: len(truth[7])], text)
    assert {"start": 3, "end": 8 if len(truth[7]) > 2 else 5, "label": "LOC"} in mended
    assert not any(each["label"] == "PER" and each["start"] == 3 for each in mended)


def test_doubt_about_words_is_no_contradiction():
    truth = ragged([np.array([0, 1, 0, 3])] * 40)
    labels, scores = truth.copy(), answers(truth)
    labels[3] = np.array([0, 0, 0, 3])
    scores[3] = scores[3].copy()
    scores[3][1] = [0.4, 0.5, 0.05, 0.03, 0.02]  # rather an entity, far below the usual certainty of one
    assert suspect_texts(TASK, labels, scores) == []


def test_changed_masks_are_found_and_unsure_or_unlabelled_pixels_are_not():
    rng = np.random.default_rng(0)
    truths, predictions = [], []
    for number in range(20):
        mask = np.zeros((30, 40), np.uint8)
        mask[5:15, 5:20] = 1
        sure = np.full(mask.shape, 204, np.uint8) + 17 * rng.integers(0, 3, mask.shape).astype(np.uint8)
        predicted = mask.copy()
        if number == 4:
            mask[5:15, 5:20] = 0  # the area was forgotten
        if number == 5:
            predicted[20:28], sure[20:28] = 1, 119
        if number == 6:
            predicted[20:28], mask[20:28] = 1, IGNORED
        truths.append(encode_mask(mask))
        predictions.append(encode_prediction(predicted, sure))
    found = suspect_masks(truths, predictions, 2)
    assert [row for row, _ in found] == [4]
    assert 0.02 < found[0][1] <= 150 / 1200
