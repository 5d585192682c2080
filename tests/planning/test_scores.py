"""LogME and H-score against independent references."""

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.stats import multivariate_normal

from hftransfer.planning.checkpoints.scores import h_score, logme
from hftransfer.tasks import MultiLabel, Regression, SingleLabel

TASK = SingleLabel(("a", "b", "c"))


def blobs(rows=40, width=6, seed=0, apart=2.0):
    rng = np.random.default_rng(seed)
    targets = rng.permutation(np.arange(rows) % 3)
    features = rng.normal(size=(rows, width)) + 1
    features[:, 0] += apart * targets
    return features, targets


def greatest_evidence(features, target):
    """The density of the target under the prior, maximised numerically over both precisions."""
    rows = len(target)

    def loss(logs):
        prior, noise = np.exp(logs)
        covariance = np.eye(rows) / noise + features @ features.T / prior
        return -multivariate_normal.logpdf(target, np.zeros(rows), covariance)

    options = {"maxiter": 4000, "xatol": 1e-9, "fatol": 1e-12}
    starts = [(0, 0), (2, 2), (5, 1)]
    return max(-minimize(loss, start, method="Nelder-Mead", options=options).fun for start in starts) / rows


@pytest.mark.parametrize("shape", [(40, 6), (12, 30)])
def test_logme_is_the_greatest_evidence(shape):
    features, targets = blobs(*shape)
    expected = np.mean([greatest_evidence(features, (targets == c).astype(float)) for c in range(3)])
    assert logme(TASK, features, targets) == pytest.approx(expected, abs=1e-6)


def test_logme_of_values_and_of_several_labels():
    features, _ = blobs()
    rng = np.random.default_rng(1)
    values = features @ rng.normal(size=(6, 1)) + rng.normal(size=(40, 1))
    assert logme(Regression(("y",)), features, values) == pytest.approx(
        greatest_evidence(features, values[:, 0]), abs=1e-6
    )
    labels = (rng.random((40, 2)) < 0.4).astype(np.float32)
    both = np.mean([greatest_evidence(features, column) for column in labels.T.astype(float)])
    assert logme(MultiLabel(("p", "q")), features, labels) == pytest.approx(both, abs=1e-6)


def test_h_score_by_hand():
    """Two classes at -1 and +1 on one axis with noise of variance v: between / all = 1 / (1 + v), shrunk towards it."""
    features = np.array([[-1.5], [-0.5], [0.5], [1.5]])
    targets = np.array([0, 0, 1, 1])
    # One dimension: shrinking towards the mean of the diagonal changes nothing, so the shrinkage is zero.
    assert h_score(SingleLabel(("a", "b")), features, targets) == pytest.approx(1 / 1.25)


def test_h_score_is_the_explicit_inverse():
    from sklearn.covariance import LedoitWolf

    features, targets = blobs(60, 5)
    shrunk = LedoitWolf().fit(features)
    means = np.array([features[targets == target].mean(0) for target in targets]) - features.mean(0)
    between = sum(np.outer(mean, mean) for mean in means) / len(means)
    expected = np.trace(np.linalg.inv(shrunk.covariance_) @ ((1 - shrunk.shrinkage_) * between))
    assert 0 < shrunk.shrinkage_ < 1
    assert h_score(TASK, features, targets) == pytest.approx(expected)
    assert h_score(MultiLabel(("a", "b")), features, np.zeros((60, 2))) is None


@pytest.mark.parametrize("score", [logme, h_score])
def test_features_that_tell_the_classes_score_higher(score):
    useful, targets = blobs(apart=4.0)
    useless = np.random.default_rng(5).permutation(useful)
    assert score(TASK, useful, targets) > score(TASK, useless, targets)


def test_logme_of_more_features_than_rows_that_fit_exactly():
    """Real features of 200 rows in 1,280 dimensions: the fixed point of the paper divides by zero there."""
    rng = np.random.default_rng(0)
    targets = np.arange(30) % 3
    features = np.eye(3, 200)[targets] * 50 + rng.normal(size=(30, 200))
    assert np.isfinite(logme(TASK, features, targets))
    assert logme(TASK, features, targets) > logme(TASK, rng.permutation(features), targets)
