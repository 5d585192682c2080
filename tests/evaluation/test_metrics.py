"""Metrics: values worked out by hand, directions that agree with the numbers, and nothing that needs a network."""

import subprocess
import sys

import numpy as np
import pytest
from sklearn import metrics as sk

from hftransfer.core.errors import UserError
from hftransfer.evaluation import EvaluationConfig, evaluate_predictions
from hftransfer.evaluation.kinds import METRICS, higher_is_better
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.tasks import MultiLabel, Regression, SingleLabel, Tokens
from hftransfer.tasks.tokens import ragged

SINGLE = SingleLabel(("a", "b", "c"))
MULTI = MultiLabel(("x", "y"))
VALUES = Regression(("height", "weight"))


def one_hot(predicted, classes=3, sure=0.8):
    scores = np.full((len(predicted), classes), (1 - sure) / (classes - 1))
    scores[np.arange(len(predicted)), predicted] = sure
    return scores


def test_single_label_by_hand():
    targets, predicted = np.array([0, 0, 0, 1, 1, 2]), np.array([0, 0, 1, 1, 1, 0])
    found = compute_metrics(SINGLE, targets, one_hot(predicted))
    assert found["accuracy"] == pytest.approx(4 / 6)
    assert found["balanced_accuracy"] == pytest.approx((2 / 3 + 1 + 0) / 3)
    assert found["macro_f1"] == pytest.approx((4 / 6 + 4 / 5 + 0) / 3)
    assert found["log_loss"] == pytest.approx(-(4 * np.log(0.8) + 2 * np.log(0.1)) / 6)


@pytest.mark.parametrize("seed", range(20))
def test_single_label_is_what_scikit_learn_says(seed):
    """With ties among scores, classes that are absent, and classes that are never guessed."""
    rng = np.random.default_rng(seed)
    rows, seen = 100_000 if seed == 0 else int(rng.integers(2, 60)), int(rng.integers(1, 5))
    targets = rng.integers(seen, size=rows)
    scores = np.round(rng.dirichlet(np.ones(4) / 2, rows), 1) + 1e-3
    task, predicted = SingleLabel(("a", "b", "c", "d")), scores.argmax(1)
    found = compute_metrics(task, targets, scores)
    some = len(np.unique(targets)) > 1
    areas = [sk.roc_auc_score(targets == c, scores[:, c]) for c in np.unique(targets) if some]
    expected = {
        "accuracy": sk.accuracy_score(targets, predicted),
        "balanced_accuracy": np.mean([(predicted[targets == c] == c).mean() for c in np.unique(targets)]),
        "macro_f1": sk.f1_score(targets, predicted, labels=range(4), average="macro", zero_division=np.nan),
        "auroc": np.mean(areas) if some else np.nan,
        "mcc": sk.matthews_corrcoef(targets, predicted) if some else np.nan,
    }
    assert {name: found[name] for name in expected} == pytest.approx(expected, nan_ok=True, abs=1e-12)


def test_multi_label_by_hand():
    targets = np.array([[1, 0], [1, 1], [0, 0], [0, 1]], dtype=np.float32)
    scores = np.array([[0.9, 0.2], [0.8, 0.4], [0.7, 0.1], [0.1, 0.3]])
    found = compute_metrics(MULTI, targets, scores)
    assert found["subset_accuracy"] == pytest.approx(1 / 4)
    assert found["macro_f1"] == pytest.approx((4 / 5 + 0) / 2)
    assert found["micro_f1"] == pytest.approx(2 * 2 / (3 + 4))
    assert found["mean_average_precision"] == pytest.approx(1.0)  # every positive ranks above every negative


def test_regression_by_hand():
    targets, scores = np.array([[0.0, 1.0], [2.0, 3.0], [4.0, 8.0]]), np.array([[1.0, 1.0], [3.0, 3.0], [5.0, 8.0]])
    found = compute_metrics(VALUES, targets, scores)
    assert found["mae"] == pytest.approx(0.5)
    assert found["rmse"] == pytest.approx(0.5)  # 1 for the first target, 0 for the second
    assert found["r2"] == pytest.approx((1 - 3 / 8 + 1) / 2)
    assert [found["pearson"], found["spearman"]] == pytest.approx([1, 1])


def worlds():
    rng = np.random.default_rng(0)
    targets = rng.integers(3, size=60)
    yield SINGLE, targets, one_hot(targets, sure=0.99), one_hot((targets + 1) % 3, sure=0.99)
    labels = (rng.random((60, 2)) < 0.4).astype(np.float32)
    yield MULTI, labels, 0.98 * labels + 0.01, 0.99 - 0.98 * labels
    values = rng.normal(size=(60, 2))
    yield VALUES, values, values + 0.01, -values


@pytest.mark.parametrize("world", list(worlds()), ids=lambda world: world[0].type)
def test_the_direction_agrees_with_the_numbers(world):
    task, targets, right, wrong = world
    good, bad = compute_metrics(task, targets, right), compute_metrics(task, targets, wrong)
    for name in good:
        assert (good[name] > bad[name]) == higher_is_better(name), name
        assert higher_is_better(f"eval_{name}") == higher_is_better(name)


def test_the_metric_that_selects_has_a_direction():
    for task in (SINGLE, MULTI, VALUES):
        assert task.selection_metric in METRICS


def test_an_unknown_metric_is_named_with_the_nearest():
    with pytest.raises(UserError, match=r"Unknown metric 'eval_acuracy'. Did you mean 'accuracy'\?"):
        higher_is_better("eval_acuracy")


def test_an_absent_class_leaves_the_others_measured():
    targets, scores = np.array([0, 0, 1, 1]), one_hot(np.array([0, 0, 1, 1]))
    found = compute_metrics(SINGLE, targets, scores)
    assert found["auroc"] == found["macro_f1"] == found["balanced_accuracy"] == 1.0
    alone = compute_metrics(SINGLE, np.zeros(4, dtype=int), scores)
    assert np.isnan(alone["auroc"]) and alone["accuracy"] == 0.5


def test_a_sure_error_stays_finite():
    found = compute_metrics(SINGLE, np.array([0, 1]), np.array([[0.0, 1.0, 0.0], [0.0, 1.0, 0.0]]))
    assert np.isfinite(found["log_loss"]) and found["log_loss"] > 15


def test_undefined_metrics_are_left_out_of_the_results():
    found = evaluate_predictions(SINGLE, np.zeros(4, dtype=int), one_hot(np.zeros(4, int)), None, EvaluationConfig())
    assert "auroc" not in found["metrics"] and "accuracy" in found["metrics"]
    assert found["per_class"][1]["recall"] is None


def test_the_package_is_light_and_free_of_torch():
    code = (
        "import sys, hftransfer.evaluation; assert 'sklearn' not in sys.modules;"
        "import hftransfer.evaluation.intervals, hftransfer.evaluation.comparison;"
        "assert 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


SCRIPT = """
import datasets
import evaluate

class Lateness(evaluate.Metric):
    def _info(self):
        features = datasets.Features({"predictions": datasets.Value("int64"), "references": datasets.Value("int64")})
        return evaluate.MetricInfo(description="", citation="", inputs_description="", features=features)

    def _compute(self, predictions, references):
        return {"lateness": sum(p > r for p, r in zip(predictions, references)) / len(references)}
"""


def test_a_metric_script_on_this_machine_is_measured_with_an_interval(tmp_path):
    script = tmp_path / "lateness.py"
    script.write_text(SCRIPT)
    rng = np.random.default_rng(0)
    targets, predicted = rng.integers(3, size=80), rng.integers(3, size=80)
    config = EvaluationConfig(metrics=[str(script), "accuracy"])
    found = evaluate_predictions(SINGLE, targets, one_hot(predicted), None, config)["metrics"]
    late = found["lateness"]
    assert late["value"] == pytest.approx((predicted > targets).mean())
    assert late["low"] < late["value"] < late["high"] and late["n"] == 80
    assert found["accuracy"]["value"] == (predicted == targets).mean()  # ours, not a download


def test_a_metric_of_the_library_reads_the_tags_of_the_words_of_each_text(tmp_path):
    """As seqeval: lists of names, which a metric of numbers would refuse."""
    names = 'datasets.Sequence(datasets.Value("string"))'
    script = tmp_path / "alike.py"
    script.write_text(SCRIPT.replace("Lateness", "Alike").replace('datasets.Value("int64")', names)
                      .replace("p > r", "list(p) == list(r) and p[0] == 'B-LOC'"))  # fmt: skip
    task = Tokens(("LOC",))
    targets = ragged([np.array([1, 2]), np.array([1]), np.array([0, 0, 1])])
    scores = ragged([np.eye(3)[tags] for tags in ([1, 2], [0], [0, 0, 1])])
    found = evaluate_predictions(task, targets, scores, None, EvaluationConfig(metrics=[str(script)]))["metrics"]
    assert found["lateness"]["value"] == pytest.approx(1 / 3) and found["lateness"]["n"] == 3


def test_a_metric_that_cannot_be_had_is_said_in_words(tmp_path):
    from hftransfer.evaluation.evaluate_library import load_metric

    with pytest.raises(
        UserError, match=r"The metric '.*none.py' of the evaluate library could not be loaded: .*Without network, give"
    ):
        load_metric(str(tmp_path / "none.py"))


def test_a_metric_that_does_not_fit_is_said_in_words(tmp_path):
    script = tmp_path / "picky.py"
    script.write_text(
        SCRIPT.replace("Lateness", "Picky").replace("return {", 'raise ValueError("only two classes"); {')
    )
    with pytest.raises(UserError, match=r"The metric '.*picky.py' does not fit this task: only two classes"):
        evaluate_predictions(
            SINGLE, np.array([0, 1]), one_hot(np.array([0, 1])), None, EvaluationConfig(metrics=[str(script)])
        )
