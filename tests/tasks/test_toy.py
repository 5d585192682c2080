"""A task that is defined here and registered from outside goes through every command without changes to the package."""

import json
from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hftransfer.cli.commands import app
from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.prediction.predictor import load
from hftransfer.tasks import TASKS, SingleLabel, make_task
from hftransfer.train import run
from tests.support import tiny


@dataclass(frozen=True)
class Stars(SingleLabel):
    """Ordered classes: the decision is the median class, not the likeliest one."""

    type = "stars"
    output, outputs = "number of stars", "numbers of stars"

    def decide(self, scores):
        return (scores.cumsum(-1) >= 0.5).argmax(-1)


@pytest.fixture(scope="module")
def stars():
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(TASKS, "stars", Stars)
        yield Stars


@pytest.fixture(scope="module", params=["probe", "full"])
def folder(stars, request, tmp_path_factory, write_pages):
    place = tmp_path_factory.mktemp("stars")
    table = tiny.text_table(place / "texts.csv", "single_label", rows=80)
    frame = pd.read_csv(table)
    frame["label"] = pd.factorize(frame["label"], sort=True)[0] + 1
    frame.to_csv(table, index=False)
    values = {
        "data": {"train": str(table), "input": "text", "label": "label", "task": "stars"},
        "model": str(tiny.TEXT_FAMILIES["bert"](place / "bert")),
        "strategy": {"type": request.param},
        "training": {"max_steps": 4, "per_device_train_batch_size": 8, "evaluations": 1, "bf16": False},
        "output": str(place / "run"),
    }
    run(checked(values))
    write_pages(place / "run")
    return place / "run"


def test_train_records_the_task_and_decides_by_it(folder):
    assert json.loads((folder / "run.json").read_text())["task"]["type"] == "stars"
    table = pd.read_parquet(folder / "predictions.parquet")
    scores = table[[column for column in table if column.startswith("score:")]].to_numpy()
    task = make_task("stars", ("1", "2", "3"))
    assert table["prediction"].astype(str).tolist() == [task.decode(row) for row in task.decide(scores)]


def test_predict_and_evaluate_use_it(folder, tmp_path):
    predictor = load(folder)
    assert isinstance(predictor.task, Stars)
    found = predictor.predict(["goal match team", "market bank"])
    assert set(found["prediction"].astype(str)) <= {"1", "2", "3"}
    table = folder.parent / "texts.csv"
    said = CliRunner().invoke(app, ["evaluate", str(folder), "--data", str(table), "--json"])
    assert said.exit_code == 0 and "accuracy" in said.output


def test_report_card_and_demo_speak_of_it(folder):
    assert "numbers of stars" in (folder / "report.html").read_text()
    assert "number of stars" in (folder / "README.md").read_text()
    pytest.importorskip("gradio")
    from hftransfer.apps.demo import build_demo

    assert "1, 2, 3" in str(build_demo(str(folder), examples=False).get_config_file())


def test_a_task_that_is_not_there_is_named(stars, tmp_path):
    with pytest.raises(
        UserError, match="data.task: expected one of single_label, multi_label, regression, .*found 'single'"
    ):
        checked({"data": {"train": "x.csv", "task": "single"}, "model": "m", "output": str(tmp_path / "o")})
    with pytest.raises(UserError, match="There is no task 'multilabel'.*Did you mean 'multi_label'"):
        make_task("multilabel", ("a",))


def test_median_differs_from_the_likeliest():
    scores = np.array([[0.4, 0.3, 0.3]])
    assert Stars(("1", "2", "3")).decide(scores) == [1] and SingleLabel(("1", "2", "3")).decide(scores) == [0]
