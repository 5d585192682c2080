"""Numbers that say what they are: thresholds of unequal classes, temperatures, unknown inputs, degenerate parts."""

import numpy as np
import pytest
from scipy import stats

from hftransfer.evaluation.calibration import calibrated_log_loss, cross_fitted_scores, fit_temperature
from hftransfer.evaluation.comparison import mid_p
from hftransfer.evaluation.conformal import (
    achievable_coverage,
    describe_sets,
    fit_thresholds,
    prediction_sets,
    threshold_examples,
)
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.evaluation.unknown import enough_for, knn_distance, unknown_threshold
from hftransfer.tasks import MultiLabel, Regression, SingleLabel


def classes(count):
    return SingleLabel(tuple(f"c{number}" for number in range(count)))


def draw(random, sizes, skill):
    """Logits (N, C) and targets of classes of these sizes; `skill` is how far each class stands out."""
    targets = np.repeat(np.arange(len(sizes)), sizes)
    logits = random.normal(size=(len(targets), len(sizes)))
    logits[np.arange(len(targets)), targets] += np.array(skill)[targets]
    return logits, targets


@pytest.mark.parametrize("multi", [False, True])
def test_prediction_sets_of_unequal_classes_cover_as_promised(multi):
    """Two frequent, easy classes and ten rare, hard ones: a threshold shared by all covered 72 % of the rare ones."""
    sizes, skill, random = [100] * 2 + [10] * 10, [5] * 2 + [2] * 10, np.random.default_rng(0)
    task = MultiLabel(classes(12).names) if multi else classes(12)
    rare, overall = [], []
    for _ in range(60):
        fitted, tested = draw(random, sizes, skill), draw(random, sizes, skill)
        as_targets = (lambda t: np.eye(12)[t]) if multi else (lambda t: t)
        thresholds = fit_thresholds(task, task.probabilities(fitted[0]), as_targets(fitted[1]), 0.9)
        held = prediction_sets(task, task.probabilities(tested[0]), thresholds)[np.arange(len(tested[1])), tested[1]]
        rare.append(held[tested[1] > 1].mean())
        overall.append(held.mean())
    assert np.mean(rare) > 0.885 and np.mean(overall) > 0.885


def test_a_class_that_a_head_never_saw_does_not_heat_the_others():
    logits, targets = draw(np.random.default_rng(0), [20] * 5, [4] * 5)
    with_absent = np.column_stack([logits, np.full(len(logits), -1e3)])
    assert fit_temperature(classes(6), with_absent, targets) == pytest.approx(
        fit_temperature(classes(5), logits, targets), rel=0.02
    )


def test_balanced_training_is_evaluated_with_its_weights():
    """A checkpoint that gives the rare class up wins the plain log-loss and loses the balanced one."""
    targets = np.repeat([0, 1], [95, 5])
    gives_up = np.column_stack([np.full(100, 3.0), np.zeros(100)])
    tries = np.column_stack([np.where(targets == 0, 1.2, -1.2), np.zeros(100)])
    noise = np.random.default_rng(0).normal(scale=2.0, size=100)
    tries[:, 0] += noise
    plain, balanced = classes(2), classes(2).with_balance(targets)
    assert calibrated_log_loss(plain, gives_up, targets) < calibrated_log_loss(plain, tries, targets)
    assert calibrated_log_loss(balanced, gives_up, targets) > calibrated_log_loss(balanced, tries, targets)


def test_the_temperature_of_equal_weights_is_that_of_none():
    logits, targets = draw(np.random.default_rng(1), [30] * 3, [2] * 3)
    assert fit_temperature(classes(3), logits, targets) == fit_temperature(
        classes(3).with_balance(targets), logits, targets
    )


def test_few_groups_leave_the_limit_of_unknown_inputs_in_the_data():
    """Three groups of 90, 90 and 6 rows: a row with fewer than k others was as far as can be, and so was the limit."""
    random = np.random.default_rng(0)
    rows = random.normal(size=(186, 16)) + 3
    distances = knn_distance(rows, rows, 10, np.repeat([0, 1, 2], [90, 90, 6]))
    assert unknown_threshold(distances) < 1.5 * unknown_threshold(knn_distance(rows, rows, 10, np.arange(186)))
    two = knn_distance(rows, rows, 10, np.repeat([0, 1], [180, 6]))
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    farthest = np.linalg.norm(unit[:180, None] - unit[None, 180:], axis=2).max(1)
    assert two[:180] == pytest.approx(farthest)  # six others: the farthest of them counts
    assert np.isnan(knn_distance(rows, rows, 10, np.zeros(186))).all()


def test_the_distance_is_that_to_the_kth_row_of_another_group():
    random = np.random.default_rng(0)
    rows, groups = random.normal(size=(12, 3)), np.repeat(np.arange(4), 3)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    every = np.linalg.norm(unit[:, None] - unit[None], axis=2)
    expected = [np.sort(every[i][groups != groups[i]])[1] for i in range(12)]
    assert knn_distance(rows, rows, 2, groups) == pytest.approx(expected)


def test_too_few_rows_for_the_promise_are_said(caplog):
    assert enough_for(0.95) == 19 and enough_for(0.9) == 9
    assert unknown_threshold(np.arange(10.0)) == 9.0
    assert "10 held-out examples cannot promise that 95 % of the known ones are answered (19 can)" in caplog.text
    assert unknown_threshold(np.array([np.nan])) == float("inf")


def test_undefined_metrics_are_undefined():
    regression = Regression(("y",))
    constant = compute_metrics(regression, np.ones((5, 1)), np.arange(5.0)[:, None])
    assert np.isnan(constant["r2"]) and np.isfinite(constant["rmse"])
    scores = np.tile([0.8, 0.2], (5, 1))
    assert np.isnan(compute_metrics(classes(2), np.zeros(5, dtype=int), scores)["mcc"])


@pytest.mark.parametrize(("gained", "lost"), [(0, 0), (3, 3), (1, 6), (10, 2), (40, 20)])
def test_mid_p_counts_half_of_the_observed_table(gained, lost):
    count = gained + lost
    exact = stats.binomtest(gained, count).pvalue if count else 1.0
    observed = stats.binom.pmf(gained, count, 0.5) if gained != lost else 0.0
    assert mid_p(gained, lost) == pytest.approx(exact - observed) == mid_p(lost, gained)


def test_mid_p_comes_nearer_to_its_level_than_the_exact_test():
    """The chance to reject at 5 % where there is no difference, summed over all tables of 15 to 60 disagreements."""
    for count in (15, 20, 30, 60):
        chance = stats.binom.pmf(np.arange(count + 1), count, 0.5)
        mid = chance @ [mid_p(gained, count - gained) < 0.05 for gained in range(count + 1)]
        exact = chance @ [stats.binomtest(gained, count).pvalue < 0.05 for gained in range(count + 1)]
        assert exact <= mid < 0.06


@pytest.mark.parametrize("count", [1, 4])
def test_step_and_temperature_of_a_score_do_not_see_its_own_label(count):
    """The labels of one group change: the scores of that group stay as they were, those of others do not."""
    logits, targets = draw(np.random.default_rng(0), [20] * 3, [2] * 3)
    groups = np.array([f"g{number % 12}" for number in range(60)])
    other = np.where(groups == "g0", (targets + 1) % 3, targets)
    steps = [logits + np.random.default_rng(step).normal(size=logits.shape) for step in range(count)]
    before, after = (cross_fitted_scores(classes(3), steps[0], labels, groups, steps) for labels in (targets, other))
    same = np.isclose(before, after, rtol=0, atol=1e-12).all(1)
    assert same[groups == "g0"].all() and not same.all()


@pytest.mark.parametrize("examples", [20, 100])
def test_the_coverage_that_is_achievable_is_what_simulated_thresholds_have(examples):
    random = np.random.default_rng(0)
    ranks = int(np.ceil((examples + 1) * 0.9)) - 1
    coverage = np.sort(random.uniform(size=(20_000, examples)), axis=1)[:, ranks]
    found = achievable_coverage(np.array([examples]), 0.9)[0]
    assert found == pytest.approx(np.quantile(coverage, [0.025, 0.975]), abs=0.01)
    assert achievable_coverage(np.array([8]), 0.9).tolist() == [[1, 1]]


def test_classes_that_share_a_threshold_share_its_examples():
    targets = np.repeat([0, 1, 2], [30, 12, 7])
    assert threshold_examples(classes(3), targets, 0.9).tolist() == [30, 19, 19]
    assert threshold_examples(MultiLabel(("a", "b", "c")), np.eye(3)[targets], 0.9).tolist() == [30, 19, 19]
    assert threshold_examples(Regression(("a", "b")), np.zeros((9, 2)), 0.9).tolist() == [9, 9]


@pytest.mark.parametrize("low, said", [(0.81, "95 % interval 0.810 to 0.960"), (None, "interval not known")])
def test_the_achievable_coverage_stands_beside_the_level(low, said):
    coverage = {"value": 0.9, "low": low, "high": 0.96, "n": 50}
    ends = {"a": {"examples": 99, "low": 0.83, "high": 0.95}, "b": {"examples": 20, "low": 0.74, "high": 0.99}}
    found = {"level": 0.9, "coverage": coverage, "mean_size": 1.5, "achievable": ends}
    sentence = describe_sets(classes(2), found)
    assert "Prediction sets at 90 %" in sentence and said in sentence
    assert "fewest calibration examples (20)" in sentence and "0.74 to 0.99" in sentence
