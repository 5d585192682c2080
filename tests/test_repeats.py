"""Folds and seeds: every row is tested once, the spread is that of the runs, and what cannot be repeated is said."""

import json

import numpy as np
import pandas as pd
import pytest

from hftransfer import repeats, run_folder
from hftransfer.config import parse_overrides, with_overrides
from hftransfer.errors import UserError
from hftransfer.evaluation import EvaluationConfig
from hftransfer.evaluation.resampling import corrected_t_interval, spread
from hftransfer.strategies.head import HeadConfig
from hftransfer.tasks import Task
from hftransfer.train import run
from tests.test_matrix import configuration


def changed(config, *overrides):
    return with_overrides(config.model_dump(mode="json"), parse_overrides(overrides))


def test_folds_of_a_run_test_every_row_once_and_carry_the_corrected_interval(tmp_path, monkeypatch):
    config = changed(configuration("scratch", "text", tmp_path, max_steps=1), "evaluation.folds=3")
    tested, scores = [], []
    again = repeats._again

    def spied(config, once, split, seed=None, rows=None):
        tested.extend(rows["id"][rows["split"] == "test"])
        assert {"train", "validation", "test"} == set(rows["split"])
        scores.append(again(config, once, split, seed, rows))
        return scores[-1]

    monkeypatch.setattr(repeats, "_again", spied)
    finished = run(config)
    splits = pd.read_parquet(finished.folder / "splits.parquet")
    assert sorted(tested) == sorted(splits["id"])
    values = [found["log_loss"]["value"] for found in scores]
    expected = corrected_t_interval(values, 40, 20)
    stored = json.loads((finished.folder / "metrics.json").read_text())["cross_validation"]["log_loss"]
    assert (stored["value"], stored["low"], stored["high"], stored["n"]) == pytest.approx(
        (expected.value, expected.low, expected.high, 3)
    )


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
        patched.setattr(repeats, "_again", None)
        quick = run(config).metrics["cross_validation"]
    monkeypatch.setattr("hftransfer.outputs.cross_validate_head", lambda *rest: None)
    monkeypatch.setattr(repeats, "run_folder", _WithoutFolds)
    slow = run(changed(config, f"output={tmp_path / 'slow'}")).metrics["cross_validation"]
    assert quick.keys() == slow.keys()
    for name in quick:
        assert [quick[name][key] for key in ("value", "low", "high", "n")] == pytest.approx(
            [slow[name][key] for key in ("value", "low", "high", "n")], abs=1e-4
        )


class _WithoutFolds:
    """Reads run folders as if no cross-validation had been measured in them."""

    @staticmethod
    def read_json(path):
        found = run_folder.read_json(path)
        return (
            {name: value for name, value in found.items() if name != "cross_validation"} if "test" in found else found
        )


@pytest.mark.parametrize(
    ("options", "count"), [({}, 20), ({"repeats": 2}, 10), ({"folds": 10}, 20), ({"folds": 40}, 40)]
)
def test_a_head_is_divided_until_there_are_twenty_scores(options, count):
    rng, task = np.random.default_rng(0), Task("single_label", ("a", "b"))
    targets = np.tile([0, 1], 40)
    features = rng.normal(size=(80, 3)) + targets[:, None]
    config = EvaluationConfig(**({"folds": 5} | options))
    found = repeats.cross_validate_head(
        task, [(features, features)], targets, None, HeadConfig(folds=2), True, config, 0
    )
    assert found["accuracy"]["n"] == count and 0.6 < found["accuracy"]["value"] < 1


def test_folds_choose_a_readout_by_what_whole_runs_compare_and_answer_by_what_its_head_reads():
    """Where two readouts were next to each other, the quick way took another one than the runs it stands for."""
    rng, task = np.random.default_rng(0), Task("single_label", ("a", "b"))
    targets = np.tile([0, 1], 40)
    nothing = rng.normal(size=(80, 3))
    clear, faint = nothing + 9 * targets[:, None], nothing + 2 * targets[:, None]

    def accuracy(*features):
        config = EvaluationConfig(folds=5, repeats=1)
        found = repeats.cross_validate_head(task, list(features), targets, None, HeadConfig(folds=2), True, config, 0)
        return found["accuracy"]["value"]

    assert accuracy((clear, nothing), (faint, faint)) == pytest.approx(accuracy((nothing, nothing)))
    assert accuracy((nothing, clear), (faint, faint)) == pytest.approx(accuracy((faint, faint)))
    assert 0.6 < accuracy((faint, faint)) < accuracy((clear, clear))


def test_divisions_differ_and_keep_groups_together(caplog):
    caplog.set_level("INFO", "hftransfer")
    task, targets = Task("single_label", ("a", "b")), np.tile([0, 1], 30)
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


def test_few_rows_are_offered_folds(tmp_path, caplog):
    caplog.set_level("INFO", "hftransfer")
    config = configuration("probe", "text", tmp_path)
    run(config)
    assert "Only 60 labelled rows: evaluation.folds=5 tests the model on every one of them in turn." in caplog.text
    caplog.clear()
    for option in ("evaluation.folds=2", "data.train_examples=30", "data.split.file=runs/x"):
        repeats.offer_folds(changed(config, option), 60, given=())
    repeats.offer_folds(config, 1000, given=())
    repeats.offer_folds(config, 60, given=("train", "test"))
    assert not caplog.text


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
