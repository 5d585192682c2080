"""What a run says about its own limits holds on rows that it has not seen."""

import json
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.evaluation.conformal import measure_sets, prediction_sets
from hftransfer.evaluation.unknown import knn_distance, unknown_threshold
from hftransfer.pipeline import outputs
from hftransfer.pipeline.reliability_fit import fit_reliability, neighbours_of
from hftransfer.prediction.predictor import load
from hftransfer.prediction.reliability import REFERENCE, THRESHOLDS, Reliability, distance, unit
from hftransfer.tasks import MultiLabel, Regression, SingleLabel
from hftransfer.train import run
from tests.support import tiny
from tests.support.runs import configuration

TASK = SingleLabel(("a", "b", "c"))
CENTRES = np.eye(3, 8) * 4


def blobs(rng, rows, noise=1.5):
    """Three noisy directions in 8 dimensions, their class, and the logits of a classifier."""
    targets = rng.integers(3, size=rows)
    features = CENTRES[targets] + rng.normal(size=(rows, 8)) * noise
    return features, targets, features @ CENTRES.T / 8


def fitted(rng, level=0.8, noise=1.5):
    reference = unit(blobs(rng, 500, noise)[0])
    features, targets, logits = blobs(rng, 600, noise)
    return Reliability.fit(TASK, level, logits, targets, distance(features, reference), reference)


@pytest.mark.parametrize("level", [0.8, 0.95])
def test_sets_hold_the_truth_in_the_promised_share_of_new_rows(level):
    rng = np.random.default_rng(0)
    reliability = fitted(rng, level, noise=3.5)  # the decision alone is right in two thirds
    _, targets, logits = blobs(rng, 4000, noise=3.5)
    sets = prediction_sets(TASK, TASK.probabilities(logits), reliability.thresholds)
    low, high = stats.binom.ppf([0.001, 0.999], 600, level) / 600  # the thresholds come from 600 rows
    assert low < measure_sets(TASK, sets, targets, None)["coverage"].value < high


@pytest.mark.parametrize("by_energy", [False, True])
def test_unknown_rows_are_flagged_more_often_than_known_ones(by_energy, tmp_path):
    rng = np.random.default_rng(0)
    fitted(rng, noise=1.0).write(tmp_path, TASK)
    if by_energy:
        (tmp_path / REFERENCE).unlink()
    reliability = Reliability.read(tmp_path, TASK)
    known, _, logits = blobs(rng, 500, 1.0)
    strange = np.roll(np.eye(3, 8) * 4, 4, axis=1)[rng.integers(3, size=500)] + rng.normal(size=(500, 8))
    flags = {
        "known": np.mean(reliability.columns(TASK, logits, known)["unknown"]),
        "unknown": np.mean(reliability.columns(TASK, strange @ CENTRES.T / 8, strange)["unknown"]),
    }
    assert flags["known"] < 0.1
    assert flags["unknown"] > (0.2 if by_energy else 0.7)
    assert ("energy" in reliability.columns(TASK, logits, known)) == by_energy


def test_what_is_written_is_read(tmp_path):
    rng = np.random.default_rng(0)
    reliability = replace(fitted(rng), ids=[f"row {number}" for number in range(500)])
    reliability.write(tmp_path, TASK)
    again = Reliability.read(tmp_path, TASK)
    assert again.ids == reliability.ids and again.nearest(reliability.reference[7] * 3, 3)[0] == "row 7"
    features, _, logits = blobs(rng, 50)
    before, after = reliability.columns(TASK, logits, features), again.columns(TASK, logits, features)
    assert before["set"] == after["set"]
    assert np.allclose(before["distance"], after["distance"], atol=2e-3)  # float16
    assert list(json.loads((tmp_path / THRESHOLDS).read_text())["thresholds"]) == ["a", "b", "c"]
    assert not list(tmp_path.glob(".*"))


def test_the_distance_is_that_to_the_tenth_neighbour_seen_from_the_middle():
    rng = np.random.default_rng(0)
    reference, rows = unit(blobs(rng, 60)[0]), blobs(rng, 5)[0] * 100
    middle = reference.mean(0)
    gaps = [
        [np.linalg.norm(unit(row[None] - middle) - unit(r[None] - middle)) for r in reference] for row in unit(rows)
    ]
    assert np.allclose(distance(rows, reference), np.sort(gaps, axis=1)[:, 9])


def test_a_training_row_is_measured_by_all_rows_of_other_groups():
    rng = np.random.default_rng(0)
    rows = unit(blobs(rng, 40)[0])
    groups = np.arange(40) // 2
    found = distance(rows, rows, 3, groups)
    middle = rows.mean(0)
    for row in (0, 17, 39):
        others = rows[groups != groups[row]]
        gaps = np.linalg.norm(unit(rows[row : row + 1] - middle) - unit(others - middle), axis=1)
        assert found[row] == pytest.approx(np.sort(gaps)[2])


def test_small_classes_are_measured_by_nearer_neighbours():
    assert neighbours_of(TASK, np.repeat([0, 1, 2], [10, 10, 300])) == 1
    assert neighbours_of(TASK, np.repeat([0, 1, 2], [60, 70, 80])) == 7
    assert neighbours_of(TASK, np.repeat([0, 1, 2], 900)) == 10
    assert neighbours_of(MultiLabel(TASK.names), np.ones((40, 3), np.float32)) == 4


@pytest.mark.parametrize("per_class", [40, 200])
def test_about_as_many_known_rows_are_flagged_as_asked_for(per_class):
    """The threshold is fitted on the reference itself, row by row: it holds for new rows at any size."""
    rng = np.random.default_rng(0)
    shares = []
    for _ in range(20):
        reference = unit(blobs(rng, 3 * per_class)[0])
        limit = unknown_threshold(distance(reference, reference, 2, np.arange(len(reference))))
        shares.append((distance(blobs(rng, 1000)[0], reference, 2) > limit).mean())
    assert 0.03 < np.mean(shares) < 0.07


def test_an_empty_folder_has_no_trust(tmp_path):
    assert Reliability.read(tmp_path, TASK) is None


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_a_run_of_texts_measures_and_predicts_with_its_limits(tmp_path):
    values = configuration("probe", "text", tmp_path).model_dump(mode="json")
    values["data"]["train"] = str(tiny.text_table(tmp_path / "many.csv", rows=400, seed=1))
    folder = run(checked(values)).folder
    metrics = json.loads((folder / "metrics.json").read_text())
    conformal, calibration = metrics["conformal"]["test"], metrics["calibration"]["test"]
    assert conformal["level"] == 0.9 and conformal["coverage"]["high"] >= 0.9
    assert set(calibration["before"]) == set(calibration["after"]) == {"log_loss", "brier", "ece"}
    assert calibration["after"]["log_loss"]["value"] == pytest.approx(metrics["test"]["log_loss"]["value"], rel=1e-4)

    inputs = pd.read_parquet(folder / "splits.parquet").query("split == 'test'")["input"].tolist()
    table = load(folder, use_cpu=True).predict(inputs)
    assert list(table.columns[:6]) == ["id", "prediction", "answer", "set", "unknown", "distance"]
    assert all(row.prediction in row.set.split("|") for row in table.itertuples())
    assert table["unknown"].mean() < 0.3
    strange = load(folder, use_cpu=True).predict(["xq zz vv " * 8, "ww yy kk jj " * 8, "qqq " * 20])
    assert (strange["answer"] == np.where(strange["unknown"], "none of these", strange["prediction"])).all()
    assert (table["answer"] == "none of these").sum() == table["unknown"].sum()
    assert strange["unknown"].any() and strange["distance"].median() > table["distance"].median()


def test_training_rows_of_a_probe_are_measured_by_others(tiny_run):
    """Each fitted row against folds without it: against itself the distance would be too small, and all would be unknown."""
    folder = tiny_run("probe", "image")
    splits = pd.read_parquet(folder / "splits.parquet")
    table = load(folder, use_cpu=True).predict(splits[splits["split"] == "test"]["input"].tolist())
    assert table["unknown"].mean() <= 0.4


def test_the_features_of_a_trained_network_are_those_of_the_saved_model(tiny_run):
    folder = tiny_run("full", "text")
    splits = pd.read_parquet(folder / "splits.parquet").query("split == 'train'")
    predictor = load(folder, use_cpu=True)
    features = predictor.read(splits)[1]
    nearest = knn_distance(features, predictor.reliability.reference, k=1)
    assert nearest.max() < 2e-2  # every training row finds itself
    found = [predictor.reliability.nearest(row, 1) for row in features]
    assert np.mean([ids == [id_] for ids, id_ in zip(found, splits["id"], strict=True)]) > 0.9  # float16 may tie
    assert predictor.predict(splits["input"].tolist()[:2])["set"].str.len().min() > 0


@pytest.mark.parametrize("kind", ["text", "text-regression"])
def test_thresholds_are_fitted_on_the_logits_of_every_evaluated_step(kind, tmp_path, monkeypatch):
    """The step that is kept is one of them, in the order of the validation part."""
    caught = []
    monkeypatch.setattr(outputs, "fit_reliability", lambda *args: caught.append(args) or fit_reliability(*args))
    run(configuration("frozen", kind, tmp_path))
    (context, _, predictions, _, steps), task = caught[0], caught[0][0].data.task
    kept = predictions.logits[np.isin(predictions.positions, context.positions("validation"))] * predictions.temperature
    assert len(steps) > 1 and min(np.abs(task.in_units(step) - kept).max() for step in steps) < 0.05


def test_a_run_can_be_made_without_features_of_its_training_rows(tmp_path):
    values = configuration("probe", "text", tmp_path).model_dump(mode="json")
    values["evaluation"]["reference"] = False
    folder = run(checked(values)).folder
    assert not (folder / REFERENCE).exists()
    reliability = load(folder, use_cpu=True).reliability
    assert reliability.ids == () and reliability.nearest(np.ones(32), 3) == []
    assert "energy" in load(folder, use_cpu=True).predict(["goal match"])


def test_several_labels_have_a_set_each(tiny_run):
    folder = tiny_run("probe", "image-multi")
    rows = pd.read_parquet(folder / "splits.parquet").query("split == 'test'")
    table = load(folder, use_cpu=True).predict(rows["input"].tolist())
    held = [set(label) <= set(found.split("|")) for label, found in zip(rows["label"], table["set"], strict=True)]
    assert np.mean(held) > 0.7


def test_the_level_of_prediction_sets_is_the_one_asked_for(tiny_run, tmp_path):
    values = configuration("probe", "text", tmp_path).model_dump(mode="json")
    values["evaluation"]["conformal_level"] = 0.5
    folder = run(checked(values)).folder
    assert json.loads((folder / "metrics.json").read_text())["conformal"]["test"]["level"] == 0.5
    half, usual = (json.loads((place / THRESHOLDS).read_text()) for place in (folder, tiny_run("probe", "text")))
    assert (half["level"], usual["level"]) == (0.5, 0.9) and half["thresholds"] != usual["thresholds"]


def test_regression_has_prediction_intervals(tmp_path, caplog):
    with caplog.at_level("INFO"):
        folder = run(configuration("probe", "text-regression", tmp_path)).folder
    assert sum("Regression: prediction intervals at 90 %" in record.message for record in caplog.records) == 1
    assert not (folder / REFERENCE).exists()
    metrics = json.loads((folder / "metrics.json").read_text())
    found = metrics["conformal"]["test"]
    assert "calibration" not in metrics and found["level"] == 0.9
    assert 0 <= found["coverage"]["value"] <= 1 and found["achievable"]["label"]["low"] < 0.9
    table = load(folder, use_cpu=True).predict(["goal match"])
    assert list(table.columns) == ["id", "prediction", "lower:label", "upper:label", "score:label", "logit:label"]
    assert (table["lower:label"] < table["prediction"]).all() and (table["prediction"] < table["upper:label"]).all()


def test_an_interval_of_too_few_examples_is_unbounded_and_survives_the_file(tmp_path):
    task = Regression(("a", "b"))
    few = Reliability.of_scores(task, 0.9, np.zeros((8, 2)), np.ones((8, 2)))
    few.write(tmp_path, task)
    found = Reliability.read(tmp_path, task)
    assert np.isinf(found.thresholds).all() and found.examples.tolist() == [8, 8]
    assert "Infinity" not in (tmp_path / THRESHOLDS).read_text()
    assert list(found.columns(task, np.zeros((1, 2)), np.zeros((1, 4)))) == ["lower:a", "upper:a", "lower:b", "upper:b"]


def test_a_run_folder_has_its_pages_under_its_own_name(tiny_run):
    folder = tiny_run("frozen", "text")
    page, card = (folder / "report.html").read_text(), (folder / "README.md").read_text()
    assert f"{folder}/config.yaml" in page and "incomplete" not in page + card
    about = json.loads((folder / "run.json").read_text())
    assert about["truncated_share"] == 0 and about["learning_rate"] > 0


def test_the_share_of_cut_texts_is_kept(tmp_path):
    values = configuration("probe", "text", tmp_path).model_dump(mode="json")
    values["model"]["max_length"] = 6
    about = json.loads((run(checked(values)).folder / "run.json").read_text())
    assert about["truncated_share"] > 0.5


def test_a_metric_that_cannot_be_had_stops_the_run_before_it_begins(tmp_path):
    values = configuration("full", "text", tmp_path).model_dump(mode="json")
    values["evaluation"]["metrics"] = ["accuracy", str(tmp_path / "no_such_metric.py")]
    values["output"] = str(tmp_path / "never")
    with pytest.raises(UserError, match="no_such_metric.*could not be loaded"):
        run(checked(values))
    assert not list(tmp_path.glob("never*"))
