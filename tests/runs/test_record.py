"""The record of a run: one schema, written and read in one place; runs of earlier versions are read too."""

import json
import math
import re
import shutil
import sys
from pathlib import Path

import pytest

from hftransfer.core.errors import UserError
from hftransfer.core.files import read_json
from hftransfer.prediction.predictor import load
from hftransfer.publish.card import write_card
from hftransfer.report import write_report
from hftransfer.runs.reader import RecordedRun
from hftransfer.runs.record import SCHEMA_VERSION, HistoryRecord, RunRecord
from tests.support.fork_server import run_python
from tests.support.run_folders import make_run

EARLIER = Path(__file__).parents[1] / "support" / "run_of_version_0"


def test_what_is_written_is_read_again(tmp_path):
    record = RunRecord.read(EARLIER).model_copy(update={"schema_version": SCHEMA_VERSION})
    record.write(tmp_path)
    assert RunRecord.read(tmp_path) == record
    assert read_json(tmp_path / "run.json")["schema_version"] == SCHEMA_VERSION


def test_the_history_is_a_list_of_entries(tmp_path):
    HistoryRecord(entries=[{"step": 1, "loss": float("nan")}]).write(tmp_path)
    assert read_json(tmp_path / "history.json") == [{"step": 1, "loss": None}]
    assert math.isnan(HistoryRecord.read(tmp_path).entries[0]["loss"])


def test_a_run_of_an_earlier_version_is_used_by_everything(tmp_path):
    folder = Path(shutil.copytree(EARLIER, tmp_path / "run"))
    run = RecordedRun.open(folder)
    assert run.record.schema_version == 0 and run.record.strategy == "full" and run.task.names[0] == "topic0"
    assert "topic0" in write_report(folder).read_text() and "topic0" in write_card(folder).read_text()
    found = load(folder).predict(run.splits.loc[run.splits["split"] == "test", "input"].tolist())
    recorded = run.part("test")
    assert found["prediction"].tolist() == recorded.frame["prediction"].tolist()
    assert (abs(found[[c for c in found if c.startswith("score:")]].to_numpy() - recorded.scores) < 1e-4).all()


def test_a_damaged_record_and_one_of_a_later_version_are_said_to_be(tmp_path):
    folder = make_run(tmp_path / "run", rows=40)
    stored = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps(stored | {"seed": "many"}))
    with pytest.raises(
        UserError, match=r"run.json cannot be read as the record of a run: seed: Input should be a valid int"
    ):
        _ = RecordedRun.open(folder).record
    (folder / "run.json").write_text("{")
    with pytest.raises(UserError, match="cannot be read as the record of a run"):
        _ = RecordedRun.open(folder).record
    (folder / "run.json").write_text(json.dumps(stored | {"schema_version": SCHEMA_VERSION + 1}))
    with pytest.raises(UserError, match="written by a later version of hftransfer .*pip install --upgrade hftransfer"):
        _ = RecordedRun.open(folder).record


def test_no_other_file_reads_or_writes_the_records():
    package = Path(__file__).parents[2] / "hftransfer"
    readers = [
        path.relative_to(package).as_posix()
        for path in package.rglob("*.py")
        if re.search(
            r'(?:json|loads|open|_text)\(.*(?:"(?:run|metrics|receipt|history)\.json"|COMPLETE)',
            path.read_text(encoding="utf-8"),
        )
    ]
    assert readers == []


def test_loading_a_run_imports_no_code_of_the_training():
    code = (
        "import sys, hftransfer; hftransfer.load; hftransfer.predict\n"
        "print(sorted({name.split('.')[1] for name in sys.modules if name.startswith('hftransfer.')}))"
    )
    done = run_python([sys.executable, "-c", code], check=True, ready=True)
    imported = set(re.findall(r"\w+", done.stdout))
    assert "prediction" in imported and not imported & {"pipeline", "training", "planning", "doctor", "train", "cli"}
