"""JSON that every reader takes, whatever numbers it holds, in all places that write or print it."""

import json

import numpy as np
import pandas as pd
import pytest

from hftransfer.apps.corrections import _right_label
from hftransfer.cli.tables import show_metrics
from hftransfer.core.errors import UserError
from hftransfer.core.files import strict_json
from hftransfer.core.terminal import show
from hftransfer.doctor.repair import _write_table
from hftransfer.prediction.explain import Explanation
from hftransfer.runs.record import MetricsRecord
from hftransfer.tasks import Regression


def strict(text):
    """Values of a JSON text; NaN and Infinity are no JSON."""
    return json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


@pytest.mark.parametrize("number", [float("nan"), np.inf, -np.inf, np.float32("nan"), np.float64("inf")])
def test_what_is_no_number_is_null(number):
    assert strict(strict_json({"a": [number, (number, 1)]})) == {"a": [None, [None, 1]]}


@pytest.mark.parametrize("number", [np.float32(0.5), np.float64(0.5), np.int64(3), np.bool_(True), 0.5])
def test_numbers_of_numpy_are_numbers(number):
    assert strict(strict_json([number])) == [number]


def test_what_is_printed_is_strict(capsys, tmp_path):
    show([{"score": np.float32("nan"), "rank": np.int64(1)}], None, as_json=True)
    assert strict(capsys.readouterr().out) == [{"score": None, "rank": 1}]
    show_metrics(MetricsRecord(test={"auroc": {"value": float("nan")}}), tmp_path, as_json=True)
    assert strict(capsys.readouterr().out)["test"]["auroc"] == {"value": None}


@pytest.mark.parametrize("name", ["t.json", "t.jsonl"])
def test_an_empty_cell_of_a_repaired_table_is_null(tmp_path, name):
    frame = pd.DataFrame({"text": ["a", "b"], "price": [1.5, None]})
    text = _write_table(frame, tmp_path / name).read_text()
    rows = [strict(line) for line in text.splitlines()] if name.endswith("l") else strict(text)
    assert rows == [{"text": "a", "price": 1.5}, {"text": "b", "price": None}]


def test_an_explanation_is_strict(tmp_path):
    written = Explanation("a", float("nan"), tokens=[("word", float("nan"))], gap=np.float32(0.5)).write(tmp_path / "0")
    found = strict(written.read_text())
    assert (found["evidence"], found["tokens"], found["gap"]) == (None, [{"text": "word", "weight": None}], 0.5)


@pytest.mark.parametrize("label", ["nan", "inf", "x", "1e999"])
def test_a_correction_is_a_number(label):
    with pytest.raises(UserError, match="Expected numbers, found"):
        _right_label(Regression(("price",)), label)
