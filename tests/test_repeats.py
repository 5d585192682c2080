"""Folds and seeds: every row is tested once, the spread is that of the runs, and what cannot be repeated is said."""

import json

import pandas as pd
import pytest

from hftransfer import repeats
from hftransfer.config import parse_overrides, with_overrides
from hftransfer.errors import UserError
from hftransfer.evaluation.resampling import corrected_t_interval, spread
from hftransfer.train import run
from tests.test_matrix import configuration


def changed(config, *overrides):
    return with_overrides(config.model_dump(mode="json"), parse_overrides(overrides))


def test_folds_test_every_row_once_and_carry_the_corrected_interval(tmp_path, monkeypatch):
    config = changed(configuration("probe", "text", tmp_path), "evaluation.folds=3")
    tested, scores = [], []
    again = repeats._again

    def spied(config, once, seed=None, rows=None):
        tested.extend(rows["id"][rows["split"] == "test"])
        assert {"train", "validation", "test"} == set(rows["split"])
        scores.append(again(config, once, seed, rows))
        return scores[-1]

    monkeypatch.setattr(repeats, "_again", spied)
    finished = run(config)
    splits = pd.read_parquet(finished.folder / "splits.parquet")
    assert sorted(tested) == sorted(splits["id"])
    values = [found["accuracy"]["value"] for found in scores]
    expected = corrected_t_interval(values, 40, 20)
    stored = json.loads((finished.folder / "metrics.json").read_text())["cross_validation"]["accuracy"]
    assert (stored["value"], stored["low"], stored["high"], stored["n"]) == pytest.approx(
        (expected.value, expected.low, expected.high, 3)
    )


def test_seeds_show_their_spread(tmp_path):
    config = changed(configuration("scratch", "text", tmp_path), "evaluation.seeds=3")
    metrics = run(config).metrics
    assert metrics["seeds"]["log_loss"]["n"] == 3
    assert metrics["seeds"]["log_loss"]["low"] < metrics["seeds"]["log_loss"]["high"]
    assert spread([0.5, 0.6]).value == 0.55


@pytest.mark.parametrize("option", ["data.train_examples=20", "data.test=other.csv"])
def test_folds_need_all_rows(tmp_path, option):
    config = changed(configuration("probe", "text", tmp_path), "evaluation.folds=3", option)
    with pytest.raises(UserError, match="evaluation.folds divides all rows anew: leave data..* out, or evaluation.folds."):
        run(config)


def test_a_launch_of_several_processes_is_not_repeated(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match="repeat a run in one process"):
        run(changed(configuration("probe", "text", tmp_path), "evaluation.seeds=2"))
