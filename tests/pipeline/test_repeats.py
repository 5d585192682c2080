"""Folds and seeds: every row is tested once, the spread is that of the runs, and what cannot be repeated is said."""

import json

import numpy as np
import pandas as pd
import pytest

from hftransfer.config import parse_overrides, with_overrides
from hftransfer.core.errors import UserError
from hftransfer.evaluation import EvaluationConfig, resampling
from hftransfer.evaluation.comparison import compare
from hftransfer.evaluation.intervals import Measured, wilson
from hftransfer.evaluation.metrics import compute_metrics
from hftransfer.evaluation.resampling import over_repeats, spread
from hftransfer.modalities import kind_of
from hftransfer.pipeline import repeats
from hftransfer.runs.predictions import outputs_of
from hftransfer.runs.reader import RecordedRun
from hftransfer.strategies.head import HeadConfig
from hftransfer.tasks import Regression, SingleLabel
from hftransfer.train import run
from tests.support.runs import configuration

pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture(autouse=True)
def headline_below_300(monkeypatch):
    """As users have it; the other tests do without (conftest)."""
    monkeypatch.setattr(repeats, "HEADLINE_BELOW", 300)


def changed(config, *overrides):
    return with_overrides(config.model_dump(mode="json"), parse_overrides(overrides))


def test_folds_of_a_run_test_every_row_once_and_pool_their_answers(tmp_path, monkeypatch):
    """The value is that of all rows together, and the inner validation part is not counted as trained on."""
    config = changed(configuration("scratch", "text", tmp_path, max_steps=1), "evaluation.folds=3")
    tested, pooled, sizes = [], [], []
    answered, combined = repeats._held_out_table, resampling.over_repeats

    def spied(config, once, rows):
        tested.extend(rows.index[rows["split"] == "test"])
        sizes.append((rows["split"] == "train").sum())
        assert {"train", "validation", "test"} == set(rows["split"])
        table = answered(config, once, rows)
        pooled.append(outputs_of(table, RecordedRun.open(config.output_folder).task))
        return table

    def ratio(found, tested_per_trained):
        assert tested_per_trained == pytest.approx(60 / sum(sizes)) and sum(sizes) < 120
        return combined(found, tested_per_trained)

    monkeypatch.setattr(repeats, "_held_out_table", spied)
    monkeypatch.setattr(resampling, "over_repeats", ratio)
    finished = run(config)
    splits = pd.read_parquet(finished.folder / "splits.parquet")
    assert sorted(tested) == list(range(len(splits)))
    task = SingleLabel(RecordedRun.open(finished.folder).task.names)
    targets = task.encode_all(list(splits["label"]))[tested]
    metrics = json.loads((finished.folder / "metrics.json").read_text())
    stored = metrics["cross_validation"]["log_loss"]
    assert stored["value"] == pytest.approx(compute_metrics(task, targets, np.concatenate(pooled))["log_loss"])
    assert stored["n"] == 60 and stored["low"] < stored["value"] < stored["high"]
    assert metrics["cross_validation_folds"] == {"folds": 3, "repeats": 1, "examples": 60}
    assert metrics["headline"] == "cross_validation"


@pytest.mark.parametrize(
    ("kind", "imbalance"),
    [
        ("text", "none"),
        pytest.param("text", "balanced", marks=pytest.mark.slow),
        ("image-regression", "none"),
    ],
)
def test_folds_of_a_head_are_those_of_whole_runs_without_running_them(kind, imbalance, tmp_path, monkeypatch):
    """The quick way and a run for each fold agree; the quick way never runs the network."""
    settings = ["evaluation.folds=3", "evaluation.repeats=1", f"training.imbalance={imbalance}", "training.bf16=false"]
    config = changed(configuration("probe", kind, tmp_path), *settings)
    with monkeypatch.context() as patched:
        patched.setattr(repeats, "_held_out_table", None)
        quick = run(config).metrics["cross_validation"]
    monkeypatch.setattr("hftransfer.pipeline.outputs.cross_validate_head", lambda *rest: {})
    slow = run(changed(config, f"output={tmp_path / 'slow'}")).metrics["cross_validation"]
    assert quick.keys() == slow.keys()
    for name in quick:
        assert [quick[name][key] for key in ("value", "low", "high", "n")] == pytest.approx(
            [slow[name][key] for key in ("value", "low", "high", "n")], abs=1e-4
        )


@pytest.mark.parametrize(("options", "times"), [({}, 4), ({"repeats": 2}, 2), ({"folds": 10}, 2), ({"folds": 40}, 1)])
def test_a_head_is_divided_until_there_are_twenty_scores(options, times):
    rng, task = np.random.default_rng(0), SingleLabel(("a", "b"))
    targets = np.tile([0, 1], 40)
    features = rng.normal(size=(80, 3)) + targets[:, None]
    config = EvaluationConfig(**({"folds": 5} | options))
    found = repeats.cross_validate_head(
        task, [(features, features)], targets, None, HeadConfig(folds=2), True, config, 0
    )
    assert found["cross_validation_folds"] == {"folds": config.folds, "repeats": times, "examples": 80}
    assert found["cross_validation"]["accuracy"]["n"] == 80 and 0.6 < found["cross_validation"]["accuracy"]["value"] < 1


def test_folds_choose_a_readout_by_what_whole_runs_compare_and_answer_by_what_its_head_reads():
    """Where two feature sources were next to each other, the quick way took another one than the runs it stands for."""
    rng, task = np.random.default_rng(0), SingleLabel(("a", "b"))
    targets = np.tile([0, 1], 40)
    nothing = rng.normal(size=(80, 3))
    clear, faint = nothing + 9 * targets[:, None], nothing + 2 * targets[:, None]

    def accuracy(*features):
        config = EvaluationConfig(folds=5, repeats=1)
        found = repeats.cross_validate_head(task, list(features), targets, None, HeadConfig(folds=2), True, config, 0)
        return found["cross_validation"]["accuracy"]["value"]

    assert accuracy((clear, nothing), (faint, faint)) == pytest.approx(accuracy((nothing, nothing)))
    assert accuracy((nothing, clear), (faint, faint)) == pytest.approx(accuracy((faint, faint)))
    assert 0.6 < accuracy((faint, faint)) < accuracy((clear, clear))


def test_divisions_differ_and_keep_groups_together(caplog):
    caplog.set_level("INFO", "hftransfer")
    task, targets = SingleLabel(("a", "b")), np.tile([0, 1], 30)
    groups = np.array([f"g{row // 4}" for row in range(60)])
    found = repeats.divisions(task, targets, groups, 5, 3, seed=0)
    assert len(found) == 15 and len({held_out.tobytes() for _, held_out in found}) == 15
    for start in (0, 5, 10):
        assert sorted(np.concatenate([held_out for _, held_out in found[start : start + 5]])) == list(range(60))
    assert all(not set(groups[train]) & set(groups[held_out]) for train, held_out in found)
    assert "divisions" not in caplog.text
    two = np.repeat(["left", "right"], 30)
    assert len(repeats.divisions(task, targets, two, 2, 3, seed=0)) == 2
    assert "the groups allow 1 different divisions of the 3 asked for" in caplog.text


def test_a_head_on_few_examples_is_told_by_cross_validation(tmp_path, pages, caplog):
    caplog.set_level("INFO", "hftransfer")
    config = changed(configuration("probe", "text", tmp_path), "evaluation.folds=null")
    metrics = run(config).metrics
    assert "Only 60 labelled examples: the headline is a repeated 5-fold cross-validation" in caplog.text
    assert "Cross-validated (5 folds, 4 times) accuracy" in caplog.text
    assert metrics["headline"] == "cross_validation" and metrics["cross_validation"]["accuracy"]["n"] == 60
    assert metrics["test"]["accuracy"]["n"] == 12  # the single test part remains
    folder = config.output_folder
    assert "The headline: cross-validated (5 folds, 4 times)" in (folder / "README.md").read_text()
    assert "cross-validated (5 folds, 4 times) accuracy" in (folder / "report.html").read_text().lower()
    without = run(changed(config, "evaluation.folds=0", f"output={tmp_path / 'other'}"))
    assert without.metrics["headline"] == "test" and "cross_validation" not in without.metrics
    assert f"The headline of {folder.name} is cross-validated" in " ".join(compare([folder, without.folder]).notes)


@pytest.mark.parametrize(
    ("option", "rows", "given", "expected"),
    [
        ("seed=0", 299, (), 5), ("seed=0", 300, (), 0), ("seed=0", 60, ("train", "test"), 0), ("strategy.type=full", 60, (), 0),
        ("data.split.file=runs/x", 60, (), 0), ("data.train_examples=30", 60, (), 0), ("evaluation.folds=0", 60, (), 0),
        ("evaluation.folds=3", 900, (), 3),
    ],
)  # fmt: skip
def test_cross_validation_is_the_headline_where_it_is_cheap_and_nobody_gave_a_test_part(
    option, rows, given, expected, tmp_path
):
    config = changed(configuration("probe", "text", tmp_path), "evaluation.folds=null", option)
    assert repeats.folds_of(config, rows, given, kind_of("text")) == expected


def test_few_rows_are_offered_folds(tmp_path, caplog):
    caplog.set_level("INFO", "hftransfer")
    probe, full = (
        changed(configuration(strategy, "text", tmp_path), "evaluation.folds=null") for strategy in ("probe", "full")
    )
    repeats.offer_folds(full, 60, (), kind_of("text"))
    assert (
        "Only 60 labelled rows: evaluation.folds=5 tests the model on every one of them in turn. It costs five"
        in caplog.text
    )
    caplog.clear()
    repeats.offer_folds(probe, 600, (), kind_of("text"))
    assert "Only 600 labelled rows: evaluation.folds=5 tests" in caplog.text
    caplog.clear()
    for option in ("evaluation.folds=2", "data.train_examples=30", "data.split.file=runs/x"):
        repeats.offer_folds(changed(full, option), 60, (), kind_of("text"))
    repeats.offer_folds(probe, 1000, (), kind_of("text"))
    repeats.offer_folds(probe, 60, ("train", "test"), kind_of("text"))
    assert not caplog.text


def test_folds_of_one_group_are_refused():
    task, targets = SingleLabel(("a", "b")), np.tile([0, 1], 30)
    with pytest.raises(
        UserError, match=r"evaluation.folds holds out whole groups, and all 60 examples are of one \(site\)"
    ):
        repeats.divisions(task, targets, np.array(["site"] * 60), 5, 1, seed=0)


def test_targets_of_a_head_without_bias_are_scaled_and_not_centred_in_folds():
    """GPT-2's head cannot express their mean: the kept model has none, so its cross-validation must not have one."""
    rng = np.random.default_rng(0)
    targets = 100 + rng.normal(size=(60, 1))
    features = rng.normal(size=(60, 3))
    task, config = Regression(("y",)), EvaluationConfig(folds=5, repeats=1)
    found, with_bias = (
        repeats.cross_validate_head(task, [(features, features)], targets, None, HeadConfig(folds=2), bias, config, 0)
        for bias in (False, True)
    )
    assert found["cross_validation"]["rmse"]["value"] > 80 > 2 > with_bias["cross_validation"]["rmse"]["value"]


def test_large_targets_keep_their_digits():
    task = Regression(("time",))
    assert task.encode_all([1_700_000_001.0, 1_700_000_002.0]).ravel().tolist() == [1_700_000_001.0, 1_700_000_002.0]


def test_seeds_show_their_spread(tmp_path):
    config = changed(configuration("scratch", "text", tmp_path), "evaluation.seeds=3")
    metrics = run(config).metrics
    assert metrics["seeds"]["log_loss"]["n"] == 3
    assert metrics["seeds"]["log_loss"]["low"] < metrics["seeds"]["log_loss"]["high"]
    assert spread([0.5, 0.6]).value == 0.55


@pytest.mark.parametrize("option", ["data.train_examples=20", "data.test=other.csv"])
def test_folds_need_all_rows(tmp_path, option):
    config = changed(configuration("probe", "text", tmp_path), "evaluation.folds=3", option)
    with pytest.raises(
        UserError, match="evaluation.folds divides all rows anew: leave data..* out, or evaluation.folds."
    ):
        run(config)


def test_a_launch_of_several_processes_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="repeat a run in one process"):
        run(changed(configuration("probe", "text", tmp_path), "evaluation.seeds=2"))


def test_seeds_need_examples_to_compare_runs_on(tmp_path):
    """Without test rows the second training ended in a KeyError."""
    config = changed(configuration("probe", "text", tmp_path), "evaluation.seeds=2", "data.split.test=0")
    repeats.check_parts(config, pd.Series(["train", "validation"]))
    with pytest.raises(
        UserError, match="evaluation.seeds=2 compares runs on test or validation examples; there are none"
    ):
        repeats.check_parts(config, pd.Series(["train", "train"]))
    assert run(config).metrics["seeds"]["accuracy"]["n"] == 2


@pytest.mark.parametrize("name", ["accuracy", "mcc", "rmse", "r2", "of another library"])
def test_pooled_repeats_are_wider_than_one_of_them_and_stay_inside_their_range(name):
    found = [{name: Measured(value, value - 0.02, min(1.0, value + 0.01), 90)} for value in (0.98, 0.96, 0.99)]
    (one,), (wide,) = (over_repeats(part, 0.25).values() for part in ([found[0]], found))
    assert one.low < 0.96 and one.high > 0.99 and one.value == 0.98 and one.n == 90
    assert wide.low < wide.value < wide.high and wide.value == pytest.approx(0.97667, abs=1e-4)
    if name in ("accuracy", "mcc", "r2"):
        assert one.high <= 1 and wide.high <= 1


def test_perfect_repeats_leave_as_much_doubt_as_their_examples():
    """Twenty folds without an error gave 1.000 (1.000 to 1.000)."""
    perfect = {"accuracy": Measured(1.0, *wilson(40, 40), 40)}
    found = over_repeats([perfect] * 4, 0.25)["accuracy"]
    assert found.value == found.high == 1 and found.low == pytest.approx(wilson(32, 32)[0], abs=1e-6)
    never = over_repeats([{"accuracy": Measured(0.0, *wilson(0, 40), 40)}] * 2, 0.25)["accuracy"]
    assert never.low == 0 and never.high == pytest.approx(wilson(0, 32)[1], abs=1e-6)
