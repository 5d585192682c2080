"""Ridge and logistic regression for one penalty against scikit-learn, and the search that starts where they point."""

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression, Ridge

from hftransfer.probe import linear, solver
from hftransfer.probe.solver import make_folds, solve_head
from hftransfer.tasks import make_task

EXACT = 1e-11


def problem(classes, rows, width, seed=0):
    """Features on axes of falling variance, and classes that overlap."""
    rng = np.random.default_rng(seed)
    targets = np.arange(rows) % classes
    features = (rng.normal(size=(classes, width))[targets] + 2 * rng.normal(size=(rows, width))) / np.sqrt(
        np.arange(1, width + 1)
    )
    return features, targets, make_task("single_label", tuple(map(str, range(classes))))


def reference(features, targets, penalty, **settings):
    fit = LogisticRegression(
        C=1 / (penalty * len(features)), tol=1e-12, max_iter=10_000, solver="newton-cg", **settings
    )
    return fit.fit(features, targets)


@pytest.mark.parametrize("penalty", [1.0, 1e-2, 1e-4])
@pytest.mark.parametrize("shape", [(5, 300, 40), (40, 200, 60), (150, 450, 30)])
def test_the_solution_is_scikit_learns_to_six_digits(shape, penalty):
    features, targets, task = problem(*shape)
    fit = linear.Logistic.of(features, targets, task, intercept=True).fit(penalty, EXACT)
    expected = reference(features, targets, penalty)
    assert np.abs(task.probabilities(fit.logits(features)) - expected.predict_proba(features)).max() < 2e-6
    assert np.allclose(fit.weight, expected.coef_, atol=1e-5 * np.abs(expected.coef_).max())


def test_the_solution_without_bias_is_scikit_learns():
    features, targets, task = problem(6, 200, 20)
    fit = linear.Logistic.of(features, targets, task, intercept=False).fit(1e-2, EXACT)
    assert np.array_equal(fit.bias, np.zeros(6))
    expected = reference(features, targets, 1e-2, fit_intercept=False)
    assert np.allclose(fit.weight, expected.coef_, atol=1e-5 * np.abs(expected.coef_).max())


def test_the_gradient_vanishes_at_the_solution():
    """Of the objective as the class defines it, by finite differences: weighted classes and several labels."""
    features, targets, _ = problem(4, 120, 8)
    labels = np.stack([targets == 0, targets != 1, targets > 1], 1).astype(np.float32)
    task = make_task("multi_label", ("a", "b", "c")).with_balance(labels)
    fit = linear.Logistic.of(features, labels, task, intercept=True).fit(1e-2, EXACT)

    def objective(weight):
        logits = features @ weight.T + fit.bias
        return solver.mean_loss(task, logits, labels) * 3 + 0.005 * (weight**2).sum()

    for index in np.ndindex(fit.weight.shape):
        moved = np.zeros_like(fit.weight)
        moved[index] = 1e-4
        assert abs(objective(fit.weight + moved) - objective(fit.weight - moved)) / 2e-4 < 1e-6


def test_a_far_start_ends_at_the_same_solution():
    features, targets, task = problem(5, 300, 40)
    logistic = linear.Logistic.of(features, targets, task, intercept=True)
    far = linear.Fit(np.random.default_rng(1).normal(size=(5, 40)) * 30, np.arange(5.0))
    expected = logistic.fit(1e-3, EXACT).weight
    assert np.abs(logistic.fit(1e-3, EXACT, far).weight - expected).max() < 1e-5 * np.abs(expected).max()


def test_rows_of_one_class_have_a_finite_head_for_every_penalty():
    """Biases have no penalty, so that the loss falls to 0 without a minimum."""
    features = np.random.default_rng(0).normal(size=(20, 8)).astype(np.float32)
    task = make_task("single_label", ("a", "b"))
    path = solver._Path(linear.Logistic.of(features, np.zeros(20, int), task, intercept=True))
    for penalty in solver.PENALTIES:
        probabilities = task.probabilities(path.fit(penalty).logits(features))
        assert 0.99 < probabilities[:, 0].min() <= 1


def test_folds_of_one_class_end_in_finite_heads():
    """Two groups of one class each: every fold is solved on the other class, and starts the fit of all rows."""
    features, targets, task = problem(2, 40, 8)
    head = solve_head(features, targets, task, make_folds(task, targets, targets.astype(str), 5, 0))
    assert np.isfinite(head.out_of_fold).all() and np.abs(head.bias).max() < 50


def test_classes_that_no_row_has_are_never_given():
    features, targets, _ = problem(3, 90, 10)
    task = make_task("single_label", tuple("abcde"))
    fit = linear.Logistic.of(features, targets, task, intercept=True).fit(1e-2, EXACT)
    probabilities = task.probabilities(fit.logits(features))
    assert probabilities[:, 3:].max() < 1e-5
    expected = reference(features, targets, 1e-2).predict_proba(features)
    assert np.abs(probabilities[:, :3] - expected).max() < 1e-4


@pytest.mark.parametrize("penalty", [10.0, 1e-3])
@pytest.mark.parametrize("intercept", [True, False])
def test_one_factorisation_gives_the_ridge_of_every_penalty(intercept, penalty):
    rng = np.random.default_rng(0)
    features, targets = rng.normal(size=(80, 12)) + 1, rng.normal(size=(80, 2)) + 3
    fit = linear.Ridge.of(features, targets, intercept).fit(penalty)
    expected = Ridge(alpha=penalty * 80, fit_intercept=intercept).fit(features, targets)
    assert np.allclose(fit.logits(features), expected.predict(features))


def test_out_of_fold_logits_are_those_of_exact_fits():
    """The search is less exact and starts on the line through earlier fits; its loss is right to half a percent."""
    features, targets, task = problem(20, 400, 30)
    folds = make_folds(task, targets, None, 5, 0)
    head = solve_head(features, targets, task, folds)
    mean, scale = solver.standardiser(features, intercept=True)
    rows, logits = (features - mean) / scale, np.zeros((400, 20))
    for train, held_out in folds:
        fit = linear.Logistic.of(rows[train], targets[train], task, intercept=True).fit(head.penalty, EXACT)
        logits[held_out] = fit.logits(rows[held_out])
    assert head.loss == pytest.approx(solver.mean_loss(task, logits, targets), rel=5e-3)


@pytest.fixture
def two_threads(monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    monkeypatch.setattr(solver, "WORTH_THREADS", 0)


@pytest.mark.parametrize("kind", ["single_label", "regression"])
def test_threads_change_nothing_but_the_time(kind, request):
    features, targets, task = problem(5, 200, 30)
    if kind == "regression":
        task, targets = make_task(kind, ("y",)), features[:, :1] - features[:, :1].mean()
    folds = make_folds(task, targets, None, 5, 0)
    alone = solve_head(features, targets, task, folds)
    request.getfixturevalue("two_threads")
    together = solve_head(features, targets, task, folds)
    assert np.array_equal(together.weight, alone.weight) and np.array_equal(together.out_of_fold, alone.out_of_fold)


def test_weaker_penalties_are_not_tried_once_the_loss_has_turned(monkeypatch):
    tried, fit = [], linear.Logistic.fit
    monkeypatch.setattr(
        linear.Logistic, "fit", lambda self, penalty, *rest: tried.append(penalty) or fit(self, penalty, *rest)
    )
    features, targets, task = problem(3, 60, 200)
    monkeypatch.setattr(solver, "SEARCHED", {"logistic": solver.PENALTIES})
    targets = np.random.default_rng(0).permutation(targets)  # nothing to learn: a strong penalty is best
    head = solve_head(features, targets, task, make_folds(task, targets, None, 5, 0))
    assert 1 <= len({penalty for penalty in tried if penalty < head.penalty}) <= 2
    assert min(tried) > 100 * min(solver.PENALTIES)
