"""Whatever part of the data is absent, every strategy ends with a complete run, and with nothing made up about that part."""

import json
from itertools import cycle

import pandas as pd
import pytest

from hftransfer.config import checked
from hftransfer.prediction.predictor import load
from hftransfer.strategies import STRATEGIES
from hftransfer.train import run
from tests.support import tiny

CLASSES = ("goal team match", "bank shares profit", "film music stage")


def rows(split, group):
    """36 texts of three classes; `split(class, number)` and `group(class, number)` of each."""
    made = [(kind, number) for number in range(12) for kind in range(3)]
    return pd.DataFrame({
        "text": [f"{CLASSES[kind]} {number} today" for kind, number in made],
        "label": ["abc"[kind] for kind, _ in made],
        "split": [split(*row) for row in made],
        "site": [group(*row) for row in made],
    })  # fmt: skip


def cut(kind, number):
    return "test" if number < 3 else "validation" if number < 6 else "train"


# name: (the table, settings of the data, parts of metrics.json)
ABSENT = {
    "nothing is held out": (rows(cut, lambda *_: "x").drop(columns="split"), {"split": {"test": 0, "validation": 0}}, set()),
    "no test part": (rows(cut, lambda *_: "x").query("split != 'test'"), {"split": {"test": 0}}, {"validation"}),
    "a label is in the training part alone": (
        rows(lambda kind, number: "train" if kind == 2 else cut(kind, number), lambda *_: "x"), {}, {"test", "validation"},
    ),
    "one group": (rows(cut, lambda *_: "x").drop(columns="split"), {"split": {"group": "site"}}, set()),
    "each class has a group of its own": (
        rows(cut, lambda kind, _: "xyz"[kind]).drop(columns="split"), {"split": {"group": "site"}}, None,
    ),
    "two groups in each part": (
        rows(cut, lambda kind, number: f"{number // 3}{number % 2}"), {"split": {"group": "site"}}, {"test", "validation"},
    ),
}  # fmt: skip


# A head alone and a training of everything meet all; each other strategy meets three, two of them in the slow tests.
FOR_ALL = ("nothing is held out", "a label is in the training part alone", "two groups in each part")
QUICK = dict(zip([name for name in STRATEGIES if name not in ("probe", "full")], cycle(FOR_ALL)))
CASES = [
    pytest.param(absent, strategy, marks=[] if QUICK.get(strategy, absent) == absent else pytest.mark.slow)
    for absent in ABSENT
    for strategy in STRATEGIES
    if absent in FOR_ALL or strategy in ("probe", "full")
]


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return tiny.TEXT_FAMILIES["distilbert"](tmp_path_factory.mktemp("model"))


@pytest.mark.parametrize(("absent", "strategy"), CASES)
def test_runs_with_an_absent_part_are_complete(tmp_path, model, pages, absent, strategy):
    table, settings, parts = ABSENT[absent]
    table.to_csv(tmp_path / "t.csv", index=False)
    made = run(checked({
        "data": {"train": str(tmp_path / "t.csv"), "input": "text", "label": "label"} | settings, "model": str(model),
        "strategy": {"type": strategy}, "training": {"max_steps": 2, "evaluations": 1, "bf16": False},
        "evaluation": {"explanations": False, "resamples": 100}, "output": str(tmp_path / "run"), "use_cpu": True,
    }))  # fmt: skip
    metrics = json.loads((made.folder / "metrics.json").read_text())
    found = {part for part in ("test", "validation") if part in metrics}
    assert parts is None or found - {"validation"} == parts - {"validation"}  # a probe has it from its folds
    assert made.metrics.get("headline") in {None, *found, "cross_validation"}
    assert len(load(made.folder, use_cpu=True).predict(["goal team"])) == 1
    assert (made.folder / "report.html").is_file() == bool(found)
