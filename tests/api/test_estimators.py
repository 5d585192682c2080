"""The estimators in scikit-learn's own tools, and features that are computed once."""

import pickle
import subprocess
import sys
import warnings

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score
from sklearn.utils.estimator_checks import check_estimator

from hftransfer import TransferClassifier, TransferRegressor
from hftransfer.core.errors import UserError
from hftransfer.features import extract
from tests.support import tiny


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(tiny.TEXT_FAMILIES["bert"](tmp_path_factory.mktemp("bert") / "bert"))


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    table = pd.read_csv(tiny.text_table(tmp_path_factory.mktemp("texts") / "t.csv", rows=60))
    return table["text"].to_numpy(dtype=object), table["label"].to_numpy(dtype=object)


@pytest.fixture
def store(monkeypatch, tmp_path):
    """An empty feature store, and the number of examples of each pass of the frozen network."""
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "cache"))
    counted, passes = [], extract.passes

    def counting(modality, items, positions, *others, **named):
        counted.append(len(positions))
        return passes(modality, items, positions, *others, **named)

    monkeypatch.setattr(extract, "passes", counting)
    return counted


def test_cross_validation_computes_the_features_of_each_text_once(bert, texts, store):
    X, y = texts
    folds = StratifiedKFold(5, shuffle=True, random_state=0)
    scores = cross_val_score(TransferClassifier(bert), X, y, cv=folds)
    assert scores.mean() > 0.6
    assert sum(store) == len(set(X))


def test_grid_search_computes_the_features_of_each_text_once(bert, texts, store):
    X, y = texts
    grid = {"options": [{"head.folds": 3}, {"head.folds": 4}]}
    search = GridSearchCV(TransferClassifier(bert), grid, cv=2).fit(X, y)
    assert search.best_score_ > 0.6 and search.predict(X[:3]).shape == (3,)
    assert sum(store) == len(set(X))


def test_a_classifier_answers_as_its_network_does(bert, texts):
    """The head on stored features gives what the deployed network gives of the same texts."""
    X, y = texts
    fitted = TransferClassifier(bert).fit(X[:50], y[:50])
    through_store = fitted.predict_proba(X[50:])
    found = fitted.fitted_
    fitted.fitted_ = type(found)(found.context, found.model, None, None, 1.0)
    assert np.abs(through_store - fitted.predict_proba(X[50:])).max() < 1e-4
    assert np.allclose(through_store.sum(1), 1) and fitted.classes_.tolist() == ["topic0", "topic1", "topic2"]


def test_labels_come_back_as_they_were_given(bert, texts):
    X, y = texts
    numbers = np.array([int(label[-1]) * 5 for label in y])
    fitted = TransferClassifier(bert).fit(X.tolist(), numbers)
    assert fitted.classes_.tolist() == [0, 5, 10] and set(fitted.predict(X)) <= {0, 5, 10}
    assert fitted.score(X, numbers) > 0.8
    odd = np.array(["a", "a ", "nan"])[numbers // 5]  # names that are no names, or alike
    assert set(TransferClassifier(bert).fit(X, odd).predict(X)) <= {"a", "a ", "nan"}


def test_images_of_pillow_and_arrays_are_the_same(tmp_path):
    model = str(tiny.VISION_FAMILIES["timm-resnet"](tmp_path / "resnet"))
    labels = [label for label in ("red", "green", "blue") for _ in range(12)]
    images = [tiny.image(label, seed=number) for number, label in enumerate(labels)]
    pixels = np.stack([np.asarray(image) for image in images])
    by_image = TransferClassifier(model).fit(images, labels)
    by_array = TransferClassifier(model).fit(pixels, labels)
    assert np.array_equal(by_image.predict_proba(images), by_array.predict_proba(pixels / 255.0))
    files = [tmp_path / f"{number}.png" for number in range(len(images))]
    for image, file in zip(images, files, strict=True):
        image.save(file)
    assert np.allclose(by_image.predict_proba(images), by_array.predict_proba(files), atol=1e-5)
    assert by_image.score(images, labels) > 0.8


def test_a_regressor(bert, tmp_path):
    table = pd.read_csv(tiny.text_table(tmp_path / "t.csv", "regression", rows=80))
    fitted = TransferRegressor(bert).fit(table[["text"]], table["label"])
    assert fitted.predict(table["text"]).shape == (80,) and fitted.score(table["text"], table["label"]) > 0.2


def test_a_strategy_that_trains(bert, texts):
    X, y = texts
    options = {"training.max_steps": 3, "training.bf16": False}
    fitted = TransferClassifier(bert, {"type": "lora", "r": 2}, options).fit(X, y)
    assert fitted.predict_proba(X[:4]).shape == (4, 3)


def test_parameters_clone_and_pickle(bert, texts):
    X, y = texts
    estimator = TransferClassifier(bert, options={"head.folds": 3}, random_state=3)
    assert clone(estimator).get_params() == estimator.get_params()
    assert estimator.set_params(strategy="frozen").strategy == "frozen"
    estimator.set_params(strategy="probe").fit(X, y)
    again = pickle.loads(pickle.dumps(estimator))
    assert np.allclose(again.predict_proba(X), estimator.predict_proba(X))
    assert str(X[0]).encode() not in pickle.dumps(estimator)  # training examples stay where they are


def test_mistakes(bert, texts):
    X, y = texts
    with pytest.raises(NotFittedError):
        TransferClassifier(bert).predict(X)
    with pytest.raises(ValueError, match=r"found numbers \(4, 2\)"):
        TransferClassifier(bert).fit(np.ones((4, 2)), [0, 1, 0, 1])
    with pytest.raises(ValueError, match="inconsistent numbers of samples: 60 and 59"):
        TransferClassifier(bert).fit(X, y[:-1])
    with pytest.raises(ValueError, match="An estimator has one strategy"):
        TransferClassifier(bert, "auto").fit(X, y)
    with pytest.raises(UserError, match="Unknown field training.steps"):
        TransferClassifier(bert, options={"training.steps": 3}).fit(X, y)


# scikit-learn's checks give tables of numbers (n, features), which are no input here. What they can check without one
# is listed; every other check is expected to fail for that reason.
PASS = {
    "check_complex_data", "check_do_not_raise_errors_in_init_or_set_params", "check_estimator_cloneable",
    "check_estimator_repr", "check_estimator_sparse_array", "check_estimator_sparse_matrix", "check_estimator_sparse_tag",
    "check_estimator_tags_renamed", "check_estimators_partial_fit_n_features", "check_estimators_unfitted", "check_fit1d",
    "check_get_params_invariance", "check_mixin_order", "check_no_attributes_set_in_init",
    "check_non_transformer_estimators_n_iter", "check_parameters_default_constructible", "check_requires_y_none",
    "check_set_params", "check_supervised_y_no_nan", "check_valid_tag_types",
}  # fmt: skip
BY_KIND = {
    TransferClassifier: {
        "check_classifiers_one_label_sample_weights", "check_classifiers_regression_target", "check_decision_proba_consistency",
    },
    TransferRegressor: set(),
}  # fmt: skip


@pytest.mark.parametrize("kind", [TransferClassifier, pytest.param(TransferRegressor, marks=pytest.mark.slow)])
def test_scikit_learns_checks(kind, monkeypatch):
    tags = kind.__sklearn_tags__

    def of_numbers(self):
        found = tags(self)
        found.input_tags.two_d_array, found.input_tags.one_d_array = True, False
        return found

    monkeypatch.setattr(kind, "__sklearn_tags__", of_numbers)  # else every check is skipped
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        results = check_estimator(kind(), on_skip=None, on_fail=None)
    failed = {result["check_name"] for result in results if result["status"] == "failed"}
    assert {result["check_name"] for result in results if result["status"] == "passed"} - failed == PASS | BY_KIND[kind]


def test_the_estimators_are_imported_when_they_are_asked_for():
    code = "import sys, hftransfer; print({'sklearn', 'torch'} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
