"""The linear probe against scikit-learn, and the folds it is chosen by."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hftransfer.core.errors import UserError
from hftransfer.probe.solver import (
    PENALTIES,
    make_folds,
    mean_loss,
    out_of_fold_of_best,
    refit,
    solve_head,
    standardiser,
)
from hftransfer.tasks import Regression, make_task

pytestmark = pytest.mark.usefixtures("all_penalties")


def problem(rows=120, width=20, classes=3, seed=0):
    """Features of unlike scales and offsets, classes that overlap."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    centres = rng.normal(size=(classes, width))
    features = (centres[targets] + rng.normal(size=(rows, width)) * 1.5) * rng.uniform(0.1, 10, width) + 3
    return features, targets


def task_of(kind, classes=3):
    return make_task(kind, tuple(f"c{i}" for i in range(classes)))


def standardised(features):
    spread = features.std(0)
    return (features - features.mean(0)) / np.maximum(spread, np.median(spread))


@pytest.mark.parametrize("shape", [(120, 20), (60, 200)])  # more rows than features, and fewer
def test_single_label_is_scikit_learns_solution(shape):
    features, targets = problem(*shape)
    task = task_of("single_label")
    head = solve_head(features, targets, task, make_folds(task, targets, None, 5, 0))
    strength = 1 / (head.penalty * len(features))
    reference = LogisticRegression(C=strength, tol=1e-10, max_iter=10000).fit(standardised(features), targets)
    expected = reference.predict_proba(standardised(features))
    assert np.abs(task.probabilities(head.logits(features)) - expected).max() < 1e-5


def test_multi_label_is_one_logistic_per_label():
    features, targets = problem()
    labels = np.stack([targets == 0, targets != 1, features[:, 0] > np.median(features[:, 0])], 1).astype(np.float32)
    task = task_of("multi_label")
    head = solve_head(features, labels, task, make_folds(task, labels, None, 5, 0))
    single = LogisticRegression(C=1 / (head.penalty * len(features)), tol=1e-10, max_iter=10000)
    expected = OneVsRestClassifier(single).fit(standardised(features), labels).predict_proba(standardised(features))
    assert np.abs(task.probabilities(head.logits(features)) - expected).max() < 1e-5


def test_rare_labels_are_solved_as_exactly_and_absent_ones_never_given():
    features, targets = problem(rows=240)
    rare, absent = np.arange(240) % 60 == 7, np.zeros(240)
    labels = np.stack([targets == 0, rare, absent], 1).astype(np.float32)
    task = task_of("multi_label")
    head = solve_head(features, labels, task, make_folds(task, labels, None, 4, 0))
    found = task.probabilities(head.logits(features))
    single = LogisticRegression(C=1 / (head.penalty * len(features)), tol=1e-10, max_iter=10000)
    expected = single.fit(standardised(features), rare).predict_proba(standardised(features))[:, 1]
    assert np.abs(found[:, 1] - expected).max() < 1e-5
    assert found[:, 2].max() < 1e-5


def with_a_rare_class():
    features, targets = problem(rows=180)
    kept = (targets != 2) | (np.arange(len(targets)) % 4 == 0)
    return features[kept], targets[kept]


@pytest.mark.parametrize("kind", ["single_label", "multi_label"])
def test_balanced_classes_are_scikit_learns(kind):
    features, targets = with_a_rare_class()
    if kind == "multi_label":
        targets = np.stack([targets == 2, targets != 1], 1).astype(np.float32)
    task = task_of(kind, 3 if kind == "single_label" else 2).with_balance(targets)
    assert len({*task.weights}) > 1
    head = solve_head(features, targets, task, make_folds(task, targets, None, 4, 0))
    settings = {"C": 1 / (head.penalty * len(features)), "tol": 1e-10, "max_iter": 10000}
    if kind == "single_label":
        reference = LogisticRegression(class_weight="balanced", **settings).fit(standardised(features), targets)
        expected = reference.predict_proba(standardised(features))
    else:
        fits = [LogisticRegression(class_weight={0: 1, 1: weight}, **settings) for weight in task.weights]
        expected = np.stack([fit.fit(standardised(features), on).predict_proba(standardised(features))[:, 1]
                             for fit, on in zip(fits, targets.T, strict=True)], 1)  # fmt: skip
    assert np.abs(task.probabilities(head.logits(features)) - expected).max() < 1e-5
    plain = solve_head(features, targets, replace(task, weights=()), make_folds(task, targets, None, 4, 0))
    assert np.abs(task.probabilities(plain.logits(features)) - expected).max() > 0.01


def test_regression_is_ridge():
    features, _ = problem()
    values = (features[:, :2] @ np.array([[1.0, 0.5], [0.2, -1.0]])).astype(np.float32)
    values = (values - values.mean(0)) / values.std(0)
    task = task_of("regression", 2)
    head = solve_head(features, values, task, make_folds(task, values, None, 5, 0))
    reference = Ridge(alpha=head.penalty * len(features)).fit(standardised(features), values)
    assert np.allclose(head.logits(features), reference.predict(standardised(features)), atol=1e-4)


def behind_a_relu(seed, rows=2050, width=600, classes=10, dead=0):
    """Features that are 0 on most rows, `dead` ones on all; each class shows some of them."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    shown = rng.exponential(0.6, width) * (rng.normal(size=(classes, width)) > 1)[targets]
    features = np.maximum(shown + rng.normal(size=(rows, width)) * rng.exponential(1, width) - 1.5, 0)
    return np.pad(features, ((0, 0), (0, dead))), targets


def right_on_new_rows(head, features, targets):
    return (head.logits(features[50:]).argmax(1) == targets[50:]).mean()


@pytest.mark.parametrize("dead", [0, 900])  # more than half of all: their spread is no measure
def test_features_that_few_rows_hardly_show_are_not_blown_up(dead):
    """Each divided by its own spread, digits with five labels a class lost 11 points."""
    task, gains = task_of("single_label", 10), []
    for seed in range(12):
        features, targets = behind_a_relu(seed, dead=dead)
        head = solve_head(features[:50], targets[:50], task, make_folds(task, targets[:50], None, 5, 0))
        each_by_its_own = make_pipeline(StandardScaler(), LogisticRegression(C=1 / (head.penalty * 50), max_iter=1000))
        score = each_by_its_own.fit(features[:50], targets[:50]).score(features[50:], targets[50:])
        gains.append(right_on_new_rows(head, features, targets) - score)
    assert np.mean(gains) > 0.03


def test_features_that_are_all_alike_make_a_head():
    task = task_of("single_label")
    targets = np.arange(12) % 3
    head = solve_head(np.ones((12, 4)), targets, task, make_folds(task, targets, None, 4, 0))
    assert np.allclose(task.probabilities(head.logits(np.ones((1, 4)))), 1 / 3)


def test_out_of_fold_logits_come_from_heads_that_did_not_see_the_row():
    features, targets = problem(rows=60)
    task = task_of("single_label")
    folds = make_folds(task, targets, None, 5, 0)
    head = solve_head(features, targets, task, folds)
    train, held_out = folds[0]
    weight = 1 / (head.penalty * len(train))
    rows = standardised(features)  # one standardiser for all folds: it has seen no label
    reference = LogisticRegression(C=weight, tol=1e-10, max_iter=10000).fit(rows[train], targets[train])
    expected = reference.predict_proba(rows[held_out])
    assert np.abs(task.probabilities(head.out_of_fold[held_out]) - expected).max() < 2e-2  # the search is less exact


def test_strength_is_the_best_of_the_grid_by_cross_validated_loss():
    features, targets = problem()
    task = task_of("single_label")
    folds = make_folds(task, targets, None, 5, 0)
    head = solve_head(features, targets, task, folds)
    assert head.penalty in PENALTIES
    assert mean_loss(task, head.out_of_fold, targets) == pytest.approx(head.loss)
    assert head.loss < np.log(3)


def test_a_head_without_bias_has_none():
    features, targets = problem()
    task = task_of("single_label")
    head = solve_head(features, targets, task, make_folds(task, targets, None, 5, 0), intercept=False)
    assert np.array_equal(head.bias, np.zeros(3))


def test_folds_are_stratified_and_keep_groups_together():
    task = task_of("single_label")
    targets = np.array([0] * 50 + [1] * 25 + [2] * 25)
    for _, held_out in make_folds(task, targets, None, 5, 0):
        assert np.bincount(targets[held_out]).tolist() == [10, 5, 5]
    groups = np.repeat(np.arange(20), 5)
    for train, held_out in make_folds(task, targets, groups, 5, 0):
        assert not set(groups[train]) & set(groups[held_out])


def test_a_class_of_two_and_a_class_of_one_still_make_folds():
    task = task_of("single_label")
    targets = np.array([0] * 10 + [1] * 2 + [2])
    folds = make_folds(task, targets, None, 5, 0)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(13))


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
@pytest.mark.parametrize("sites", [2, 3, 4, 5, 6])
def test_few_groups_are_held_out_one_by_one_instead_of_being_divided(kind, sites):
    targets = np.arange(60) % 3
    targets = {"single_label": targets, "multi_label": np.eye(3)[targets], "regression": targets[:, None] * 1.0}[kind]
    groups = np.arange(60) * sites // 60
    folds = make_folds(task_of(kind), targets, groups, 5, 0)
    assert len(folds) == min(5, sites)
    assert all(not set(groups[train]) & set(groups[held_out]) for train, held_out in folds)
    assert sorted(np.concatenate([held_out for _, held_out in folds])) == list(range(60))


def test_folds_that_divide_the_only_group_are_warned_of(caplog):
    targets = np.arange(20) % 2
    assert len(make_folds(task_of("single_label", 2), targets, np.array(["site a"] * 20), 5, 0)) == 5
    assert "All 20 examples to fit on are of one group (site a)" in caplog.text


def test_a_single_example_makes_no_folds():
    with pytest.raises(UserError, match="Cross-validation needs at least 2 labelled examples, found 1"):
        make_folds(task_of("single_label"), np.array([0]), None, 5, 0)


@pytest.mark.parametrize("rare", [1, 2, 4])
def test_a_rare_class_does_not_lower_the_number_of_folds_for_all(rare):
    """It is spread over as many folds as it has examples, and every fold has its share of the others."""
    targets = np.array([0] * 100 + [1] * 100 + [2] * rare)
    folds = make_folds(task_of("single_label"), targets, None, 5, 0)
    assert len(folds) == 5
    counts = np.array([np.bincount(targets[held_out], minlength=3) for _, held_out in folds])
    assert (counts[:, :2] == 20).all() and counts[:, 2].max() == 1


def test_few_examples_of_every_class_are_never_held_out_together():
    targets = np.repeat(np.arange(6), 3)
    folds = make_folds(task_of("single_label", 6), targets, None, 5, 0)
    assert len(folds) == 5 and all(set(targets[train]) == set(range(6)) for train, _ in folds)


def test_two_examples_a_class_are_enough_for_a_head():
    features, targets = problem(rows=6)
    task = task_of("single_label")
    head = solve_head(features, targets, task, make_folds(task, targets, None, 5, 0))
    assert head.solver == "logistic" and np.isfinite(head.out_of_fold).all()


@pytest.mark.parametrize("kind", ["single_label", "multi_label", "regression"])
def test_a_refit_is_the_solution_without_the_search(kind):
    features, targets = problem(rows=150)
    if kind == "multi_label":
        targets = np.stack([targets == 0, targets != 1], 1).astype(np.float32)
    if kind == "regression":
        targets = features[:, :1] - features[:, :1].mean()
    task = task_of(kind, 3 if kind == "single_label" else targets.shape[1])
    head = solve_head(features, targets, task, make_folds(task, targets, None, 5, 0))
    again = refit(features, targets, task, head)
    assert np.abs(again.logits(features) - head.logits(features)).max() < 0.02 * np.abs(head.logits(features)).max()


def test_numbers_that_the_features_do_not_tell_are_answered_with_their_mean():
    """Sixty rows of noise: 1.0 is the loss of the mean; a grid that ends at a penalty of 10 came to 1.05."""
    losses = []
    for seed in range(8):
        random = np.random.default_rng(seed)
        features = random.normal(size=(60, 384)) / np.sqrt(np.arange(1, 385))
        targets = random.normal(size=(60, 1))
        targets = (targets - targets.mean()) / targets.std()
        task = Regression(("y",))
        losses.append(solve_head(features, targets, task, make_folds(task, targets, None, 5, seed)).loss)
    assert np.mean(losses) < 1.03


def test_the_choice_between_heads_is_cross_validated():
    """Of 24 feature sources of noise, the one that is best on the same rows flatters: chance is log 2."""
    rng, task, chosen, crossed = np.random.default_rng(0), task_of("single_label", 2), [], []
    for seed in range(5):
        targets = np.arange(40) % 2
        folds = make_folds(task, targets, None, 5, seed)
        heads = [solve_head(rng.normal(size=(40, 3)), targets, task, folds) for _ in range(12)]
        chosen.append(min(head.loss for head in heads))
        crossed.append(mean_loss(task, out_of_fold_of_best(task, heads, targets, folds), targets))
    assert np.mean(chosen) < 0.97 * np.log(2) < np.mean(crossed)


def test_inputs_of_any_width_have_the_same_total_variance():
    rng = np.random.default_rng(0)
    features = np.hstack([rng.normal(size=(50, 100)) * 30, rng.normal(size=(50, 1)), rng.normal(size=(50, 7)) / 9])
    blocks = np.repeat([4, 0, 2], [100, 1, 7])
    mean, scale = standardiser(features, True, blocks)
    variance = ((features - mean) / scale).var(0)
    assert [variance[blocks == block].sum() for block in (4, 0, 2)] == pytest.approx([36.0] * 3)
    one = standardiser(features, True, np.zeros(108, int))[1] / standardiser(features, True)[1]
    assert one == pytest.approx(np.full(108, one[0]))  # one input: the same up to a factor


def test_a_wide_input_of_noise_does_not_drown_a_number():
    """400 columns of noise beside one number that tells the class: scaled as inputs, the number is read."""
    rng = np.random.default_rng(0)
    targets = rng.integers(0, 2, 300)
    features = np.hstack([rng.normal(size=(300, 400)), (targets + rng.normal(0, 0.3, 300))[:, None]])
    blocks = np.repeat([0, 1], [400, 1])
    task = make_task("single_label", ("a", "b"))
    folds = make_folds(task, targets[:100], None, 5, 0)
    right = [
        np.mean(
            solve_head(features[:100], targets[:100], task, folds, blocks=each).logits(features[100:]).argmax(1)
            == targets[100:]
        )
        for each in (blocks, None)
    ]
    assert right[0] > 0.9 > right[1] + 0.1
