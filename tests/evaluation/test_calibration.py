"""Calibration, prediction sets and "none of these": known truths come back, promises are kept on fresh rows."""

import numpy as np
import pytest
from scipy.special import logsumexp
from sklearn.neighbors import NearestNeighbors

from hftransfer.evaluation.calibration import (
    apply_temperature,
    brier,
    calibrated_log_loss,
    calibration_report,
    expected_calibration_error,
    fit_temperature,
    reliability,
)
from hftransfer.evaluation.conformal import fit_thresholds, measure_sets, prediction_sets
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.evaluation.unknown import energy, knn_distance, separation, unknown_threshold
from hftransfer.tasks import MultiLabel, Regression, SingleLabel

SINGLE = SingleLabel(("a", "b", "c", "d"))
MULTI = MultiLabel(("x", "y", "z"))
VALUES = Regression(("height",))


def calibrated(rows, seed=0, task=SINGLE, prior=None):
    """Logits whose probabilities are true: the target is drawn from them."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(rows, task.head_size)) + (0 if prior is None else np.log(prior))
    scores = task.probabilities(logits)
    if task.type == "multi_label":
        return logits, (rng.random(scores.shape) < scores).astype(np.float32)
    return logits, (rng.random((rows, 1)) > scores.cumsum(1)).sum(1)


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=lambda task: task.type)
@pytest.mark.parametrize("factor", [0.5, 1.0, 3.0])
def test_the_temperature_finds_the_factor_that_was_put_in(task, factor):
    logits, targets = calibrated(20_000, task=task)
    assert fit_temperature(task, factor * logits, targets) == pytest.approx(factor, rel=0.05)


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=lambda task: task.type)
def test_what_chooses_a_step_does_not_see_confidence(task):
    logits, targets = calibrated(1000, task=task)
    truth = compute_metrics(task, targets, task.probabilities(logits))["log_loss"]
    for factor in (0.3, 1.0, 5.0):
        assert calibrated_log_loss(task, factor * logits, targets) == pytest.approx(truth, rel=0.01)
    blurred = logits + np.random.default_rng(1).normal(size=logits.shape)  # less sure, and less often right
    plain = [compute_metrics(task, targets, task.probabilities(found))["log_loss"] for found in (blurred, 5 * logits)]
    assert plain[0] < plain[1]
    assert calibrated_log_loss(task, blurred, targets) > calibrated_log_loss(task, 5 * logits, targets)


def test_with_few_rows_the_log_loss_stays_as_it_is():
    logits, targets = calibrated(20)
    expected = compute_metrics(SINGLE, targets, SINGLE.probabilities(5 * logits))["log_loss"]
    assert calibrated_log_loss(SINGLE, 5 * logits, targets) == pytest.approx(expected)


def test_the_order_of_classes_stays_and_log_loss_falls():
    logits, targets = calibrated(2000, seed=1)
    temperature = fit_temperature(SINGLE, 4 * logits, targets)
    fresh, truth = calibrated(2000, seed=2)
    assert (apply_temperature(SINGLE, 4 * fresh, temperature).argsort(1) == fresh.argsort(1)).all()
    report = calibration_report(SINGLE, 4 * fresh, truth, temperature, None)
    for name in ("log_loss", "brier", "ece"):
        assert report["after"][name].high < report["before"][name].low, name


def test_a_temperature_at_the_limit_is_said(caplog):
    fit_temperature(SINGLE, np.eye(4), np.roll(np.arange(4), 1))  # worse than guessing
    assert "ends at its limit, 20: 4 rows do not determine it" in caplog.text


@pytest.mark.parametrize("rows", [20, 200])
def test_rows_that_are_all_right_do_not_make_certainty(rows):
    targets = np.arange(rows) % 4
    logits = 3 * np.eye(4)[targets]
    temperature = fit_temperature(SINGLE, logits, targets)
    confidence = apply_temperature(SINGLE, logits, temperature).max(1)
    assert confidence == pytest.approx(1 - 0.75 / (rows + 2), abs=1e-3)


def test_values_have_no_temperature():
    assert fit_temperature(VALUES, np.ones((3, 1)), np.zeros((3, 1))) == 1.0


def test_brier_by_hand():
    scores = np.array([[0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25]])
    assert brier(SINGLE, np.array([0, 1]), scores, None).value == pytest.approx((0.12 + 0.75) / 2)
    assert brier(MULTI, np.array([[1.0, 0, 0]]), np.array([[0.6, 0.1, 0]]), None).value == pytest.approx(
        (0.16 + 0.01) / 3
    )


def test_calibration_error_of_a_known_gap():
    rng = np.random.default_rng(0)
    scores = np.tile([0.9, 0.1, 0, 0], (5000, 1))
    targets = (rng.random(5000) > 0.6).astype(int)  # says 90 %, is right in 60 %
    found = expected_calibration_error(SINGLE, targets, scores, None)
    assert found.value == pytest.approx(0.3, abs=0.02) and found.low < 0.3 < found.high


@pytest.mark.parametrize("task", [SINGLE, MULTI], ids=lambda task: task.type)
def test_a_calibrated_model_is_not_accused_on_small_sets(task):
    accused = 0
    for seed in range(100):
        logits, targets = calibrated(150, seed, task)
        accused += expected_calibration_error(task, targets, task.probabilities(logits), None).low > 0
    assert accused <= 8


def test_reliability_points_hold_equally_many_rows():
    logits, targets = calibrated(300)
    points = reliability(SINGLE, targets, SINGLE.probabilities(logits), None)
    assert [point["n"] for point in points] == [20] * 15
    assert all(point["low"] <= point["frequency"] <= point["high"] for point in points)
    confidence = [point["confidence"] for point in points]
    assert confidence == sorted(confidence)


def test_sets_keep_their_promise_on_average_over_fresh_rows():
    shares = []
    for seed in range(200):
        logits, targets = calibrated(160, seed)
        scores = SINGLE.probabilities(3 * logits)  # overconfident: the promise does not lean on the model
        thresholds = fit_thresholds(SINGLE, scores[:60], targets[:60], level=0.9)
        held = prediction_sets(SINGLE, scores[60:], thresholds)[np.arange(100), targets[60:]]
        shares.append(held.mean())
    assert 0.89 <= np.mean(shares) <= 0.95  # the decision is always in the set, which adds a little


def test_rare_classes_are_covered_too():
    logits, targets = calibrated(4000, prior=[0.55, 0.3, 0.1, 0.05])
    scores = SINGLE.probabilities(logits)
    thresholds = fit_thresholds(SINGLE, scores[:2000], targets[:2000], level=0.9)
    sets, truth = prediction_sets(SINGLE, scores[2000:], thresholds), targets[2000:]
    by_class = [sets[truth == c, c].mean() for c in range(4)]
    assert min(by_class) > 0.84
    shared = 1 - np.quantile(1 - scores[np.arange(2000), targets[:2000]], 0.9)
    assert (scores[2000:] >= shared)[truth == 3, 3].mean() < min(by_class)  # what one threshold would do


def test_classes_with_few_rows_share_a_threshold():
    logits, targets = calibrated(150, prior=[0.5, 0.46, 0.02, 0.02])
    thresholds = fit_thresholds(SINGLE, SINGLE.probabilities(logits), targets, level=0.9)
    assert thresholds[2] == thresholds[3] and thresholds[0] != thresholds[1]


def test_too_few_rows_for_the_level_put_every_class_in():
    logits, targets = calibrated(8)
    scores = SINGLE.probabilities(logits)
    assert prediction_sets(SINGLE, scores, fit_thresholds(SINGLE, scores, targets, level=0.9)).all()
    assert not prediction_sets(SINGLE, scores, fit_thresholds(SINGLE, scores, targets, level=0.5)).all()


def test_a_higher_level_gives_larger_sets_and_the_decision_is_always_in():
    logits, targets = calibrated(1000)
    scores = SINGLE.probabilities(logits)
    sizes = []
    for level in (0.05, 0.6, 0.8, 0.95):
        sets = prediction_sets(SINGLE, scores, fit_thresholds(SINGLE, scores, targets, level))
        found = measure_sets(SINGLE, sets, targets, None)
        assert sets[np.arange(1000), scores.argmax(1)].all()
        assert found["coverage"].value >= level - 0.01
        sizes.append(found["mean_size"])
    assert sizes == sorted(sizes) and sizes[0] < sizes[-1]


def test_labels_and_values_have_sets_too():
    logits, targets = calibrated(8000, task=MULTI)
    scores = MULTI.probabilities(logits)
    sets = prediction_sets(MULTI, scores[4000:], fit_thresholds(MULTI, scores[:4000], targets[:4000], 0.9))
    assert measure_sets(MULTI, sets, targets[4000:], None)["coverage"].value == pytest.approx(0.9, abs=0.02)
    rng = np.random.default_rng(0)
    truth, said = rng.normal(size=(2000, 1)), np.zeros((2000, 1))
    ends = prediction_sets(VALUES, said[1000:], fit_thresholds(VALUES, said[:1000], truth[:1000], 0.9))
    found = measure_sets(VALUES, ends, truth[1000:], None)
    assert found["coverage"].value == pytest.approx(0.9, abs=0.03)
    assert found["mean_size"] == pytest.approx(2 * 1.645, rel=0.06)


def test_knn_distance_is_scikit_learns_on_the_unit_sphere():
    rng = np.random.default_rng(0)
    rows, training = rng.normal(size=(50, 8)), rng.normal(size=(200, 8))
    unit = lambda x: x / np.linalg.norm(x, axis=1, keepdims=True)  # noqa: E731
    reference = NearestNeighbors(n_neighbors=5).fit(unit(training)).kneighbors(unit(rows))[0][:, -1]
    assert knn_distance(rows, training, k=5) == pytest.approx(reference)
    assert knn_distance(rows, training[:3], k=5) == pytest.approx(knn_distance(rows, training[:3], k=3))


def test_energy_is_minus_logsumexp():
    logits = np.array([[1000.0, 999.0], [-3.0, 2.0]])
    assert energy(logits, 2.0) == pytest.approx(-2 * logsumexp(logits / 2, axis=1))


def test_the_threshold_answers_the_promised_share_of_known_rows():
    rng = np.random.default_rng(0)
    kept = [(rng.normal(size=200) <= unknown_threshold(rng.normal(size=99), keep=0.9)).mean() for _ in range(300)]
    assert np.mean(kept) == pytest.approx(0.9, abs=0.01)


def test_unknown_rows_are_told_from_known_ones():
    rng = np.random.default_rng(0)
    training, known = rng.normal(size=(300, 16)) + 4, rng.normal(size=(200, 16)) + 4
    near, far = rng.normal(size=(100, 16)) + 4, rng.normal(size=(100, 16)) - 4
    apart = separation(knn_distance(known, training), knn_distance(far, training))
    same = separation(knn_distance(known, training), knn_distance(near, training))
    assert apart["auroc"].value == 1 and apart["fpr_at_95"].value == 0
    assert same["auroc"].low < 0.5 < same["auroc"].high
    assert same["fpr_at_95"].low < 0.95 < same["fpr_at_95"].high
