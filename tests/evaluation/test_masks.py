"""Metrics of masks against counting by hand, scikit-learn, and drawing images again one by one."""

import numpy as np
import pytest
from scipy.ndimage import binary_erosion
from sklearn.metrics import f1_score, jaccard_score

from hftransfer.core.mask_files import IGNORED, encode_mask, encode_prediction
from hftransfer.evaluation import EvaluationConfig, bootstrap, evaluate_predictions
from hftransfer.evaluation.intervals import Draws, measure, per_class
from hftransfer.evaluation.masks import boundary_counts, confusion, mask_metrics, mask_statistics, statistics_of
from hftransfer.evaluation.metrics import compute_metrics, metric_names
from hftransfer.tasks import Masks
from hftransfer.tasks.tokens import ragged

NAMES = ("background", "a", "b", "never")
TASK = Masks(NAMES)


def blobs(seed: int, size=(40, 30), classes: int = 3) -> np.ndarray:
    """Return a mask (H, W) of a few rectangles."""
    rng = np.random.default_rng(seed)
    mask = np.zeros(size, np.uint8)
    for _ in range(4):
        top, left = rng.integers(0, size[0] - 5), rng.integers(0, size[1] - 5)
        mask[top : top + rng.integers(3, 20), left : left + rng.integers(3, 20)] = rng.integers(classes)
    return mask


def disturbed(mask: np.ndarray, seed: int) -> np.ndarray:
    rng = np.random.default_rng(1000 + seed)
    return np.where(rng.random(mask.shape) < 0.1, np.roll(mask, 2, 0), np.roll(mask, rng.integers(0, 3), 1))


@pytest.fixture(scope="module")
def pairs() -> list[tuple[np.ndarray, np.ndarray]]:
    truths = [blobs(seed, (30 + seed, 40)) for seed in range(14)]
    truths[0][:4] = IGNORED
    truths[1][:] = 0
    return [
        (truth, disturbed(np.where(truth == IGNORED, 2, truth), seed).astype(np.uint8))
        for seed, truth in enumerate(truths)
    ]


@pytest.fixture(scope="module")
def encoded(pairs) -> tuple[np.ndarray, np.ndarray]:
    """Return targets and scores as runs keep them."""
    targets = ragged([encode_mask(truth) for truth, _ in pairs])
    return targets, ragged([encode_prediction(found, np.full(found.shape, 200)) for _, found in pairs])


def flat(pairs) -> tuple[np.ndarray, np.ndarray]:
    truth, found = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))
    return truth[truth != IGNORED], found[truth != IGNORED]


def test_confusion_counts_pixels(pairs):
    for truth, found in pairs:
        counted = np.zeros((4, 4), int)
        for one, other in zip(truth.ravel(), found.ravel(), strict=True):
            if one != IGNORED:
                counted[one, other] += 1
        assert np.array_equal(confusion(truth, found, 4), counted)
    with pytest.raises(ValueError, match="cannot be compared"):
        confusion(np.zeros((2, 3), np.uint8), np.zeros((3, 2), np.uint8), 4)


def boundary_by_hand(truth: np.ndarray, found: np.ndarray, classes: int) -> np.ndarray:
    """As in the code of the paper: erode so many times by a square of three, the border of the image counting as outside."""
    steps = max(1, round(0.02 * np.sqrt(truth.shape[0] ** 2 + truth.shape[1] ** 2)))
    counts = []
    for number in range(classes):
        areas = [(mask == number) & (truth != IGNORED) for mask in (truth, found)]
        near = [area & ~binary_erosion(area, np.ones((3, 3)), iterations=steps, border_value=0) for area in areas]
        counts.append([(near[0] & near[1]).sum(), (near[0] | near[1]).sum()])
    return np.array(counts)


@pytest.mark.parametrize("size", [(40, 30), (7, 9), (150, 211)])
def test_boundaries_equal_those_of_repeated_erosion(size):
    for seed in range(4):
        truth = blobs(seed, size)
        truth[size[0] // 2, : size[1] // 2] = IGNORED
        found = disturbed(np.where(truth == IGNORED, 1, truth), seed)
        assert np.array_equal(boundary_counts(truth, found, 4), boundary_by_hand(truth, found, 4))


def test_boundary_iou_sees_what_iou_does_not():
    """A large square that is one pixel too large: nearly all of its area agrees, and much less of its outline."""
    truth, found = np.zeros((200, 200), np.uint8), np.zeros((200, 200), np.uint8)
    truth[40:160, 40:160], found[37:163, 37:163] = 1, 1
    counts = statistics_of([encode_mask(truth)], [encode_prediction(found, truth)], 2)
    metrics = mask_metrics(counts)
    assert metrics["mean_iou"] > 0.9 > 0.7 > metrics["boundary_iou"]


def test_metrics_equal_those_of_scikit_learn(pairs, encoded):
    truth, found = flat(pairs)
    metrics = compute_metrics(TASK, *encoded)
    present = [0, 1, 2]  # the class that is neither true nor found is left out
    assert metrics["mean_iou"] == pytest.approx(jaccard_score(truth, found, labels=present, average="macro"))
    assert metrics["mean_dice"] == pytest.approx(f1_score(truth, found, labels=present, average="macro"))
    assert metrics["pixel_accuracy"] == pytest.approx((truth == found).mean())
    near = sum(boundary_by_hand(*pair, 4) for pair in pairs)[:3]
    assert metrics["boundary_iou"] == pytest.approx((near[:, 0] / near[:, 1]).mean())
    classes = per_class(TASK, *encoded, None)
    assert [entry["iou"] and entry["iou"].value for entry in classes] == pytest.approx(
        [*jaccard_score(truth, found, average=None), None]
    )
    assert [entry["dice"].value for entry in classes[:3]] == pytest.approx(f1_score(truth, found, average=None))
    assert [entry["n"] for entry in classes] == [sum((truth == c).any() for truth, _ in pairs) for c in range(4)]


def test_a_perfect_prediction_and_an_empty_one(pairs):
    targets = ragged([encode_mask(truth) for truth, _ in pairs])
    perfect = ragged([encode_prediction(np.where(truth == IGNORED, 0, truth), truth) for truth, _ in pairs])
    empty = ragged([encode_prediction(0 * truth, truth) for truth, _ in pairs])
    assert compute_metrics(TASK, targets, perfect) == dict.fromkeys(metric_names(TASK), 1.0)
    found = compute_metrics(TASK, targets, empty)
    background = (flat(pairs)[0] == 0).mean()
    assert found["mean_iou"] == pytest.approx(background / 3) and found["pixel_accuracy"] == pytest.approx(background)


def test_weights_are_images_drawn_so_often(encoded):
    counts = statistics_of(*encoded, 4)
    times = np.random.default_rng(0).integers(0, 3, len(counts.hit))
    again = [each.repeat(times) for each in encoded]
    weighted = mask_statistics(counts)(times[None].astype(np.float32))
    for name, value in compute_metrics(TASK, *again).items():
        assert weighted[name][0] == pytest.approx(value, rel=1e-5)
    assert {
        name: value[0] for name, value in bootstrap.statistics(TASK, *encoded)(np.ones((1, len(times)))).items()
    } == (pytest.approx(compute_metrics(TASK, *encoded)))


def test_intervals_hold_the_value_and_images_are_the_unit(encoded):
    found = measure(TASK, *encoded, None, resamples=500)
    assert set(found) == {"mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou"} == set(metric_names(TASK))
    for each in found.values():
        assert 0 <= each.low < each.value < each.high <= 1 and each.n == 14
    spread = Draws(14, seed=0, resamples=500).standard_errors(bootstrap.statistics(TASK, *encoded))
    wide = found["mean_iou"].high - found["mean_iou"].low
    assert 2 * spread["mean_iou"] < wide < 8 * spread["mean_iou"]
    twice = [np.concatenate([each, each]) for each in encoded]
    grouped = measure(TASK, *twice, [str(n) for n in [*range(14), *range(14)]], resamples=500)
    assert grouped["mean_iou"].high - grouped["mean_iou"].low == pytest.approx(wide, rel=0.1)  # copies say nothing new


def test_a_rare_class_leaves_the_mean_without_an_interval(pairs):
    truths = [np.where(truth == 2, 1, truth) for truth, _ in pairs]
    truths[3] = np.where(blobs(3) == 0, 2, truths[3][:1, :1])
    targets = ragged([encode_mask(truth) for truth in truths])
    scores = ragged([encode_prediction(np.minimum(truth, 1), truth) for truth in truths])
    assert np.isnan(measure(TASK, targets, scores, None)["mean_iou"].low)  # one image has class 2


def test_the_piece_of_metrics_json(encoded):
    found = evaluate_predictions(TASK, *encoded, None, EvaluationConfig(resamples=100))
    assert found["metrics"]["mean_iou"]["n"] == 14
    assert found["per_class"][3] == {
        "name": "never",
        "n": 0,
        "dice": None,
        "iou": None,
        "precision": None,
        "recall": None,
    }


def test_counts_do_not_depend_on_the_order_of_threads(pairs, encoded):
    counts = statistics_of(*encoded, 4)
    for place, (truth, found) in enumerate(pairs):
        assert np.array_equal(counts.confusion[place], confusion(truth, found, 4))
        assert np.array_equal(counts.boundary[place], boundary_counts(truth, found, 4))
