"""Decisions about single rows: applied to the rows they were made about and to no others, and said aloud."""

import json
import logging

import pandas as pd
import pytest

from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.core.wording import describe
from hftransfer.data import DataConfig, load_data
from hftransfer.data.patch import Decision, append, read_patch, standing
from hftransfer.evaluation.comparison import compare
from hftransfer.train import run
from tests.support import tiny
from tests.support.runs import configuration


@pytest.fixture
def table(tmp_path):
    return tiny.text_table(tmp_path / "texts.csv", rows=60)


def load(table, **settings):
    return load_data(DataConfig(train=str(table), input="text", label="label", **settings))


def lines(frame, rows, action, **values):
    return [Decision(action=action, id=frame.at[row, "id"], digest=frame.at[row, "digest"], **values) for row in rows]


def rows_of(frame, split, count, label="topic0"):
    return frame.index[(frame["split"] == split) & (frame["label"] == label)][:count]


def test_rows_are_changed_as_decided_and_no_other_row_moves(table, tmp_path, caplog):
    before = load(table).frame
    relabelled, dropped = rows_of(before, "train", 3), rows_of(before, "train", 2, "topic1")
    patch = tmp_path / "a.patch.jsonl"
    append(patch, lines(before, relabelled, "relabel", label="topic2") + lines(before, dropped, "drop"))
    with caplog.at_level(logging.INFO):
        data = load(table, patch=str(patch))
    after = data.frame.set_index("id")
    assert set(before["id"]) - set(after.index) == set(before["id"][dropped])
    assert list(after.loc[before["id"][relabelled], "label"]) == ["topic2"] * 3
    untouched = before.drop(index=[*relabelled, *dropped]).set_index("id")
    assert (after.loc[untouched.index, ["split", "label"]] == untouched[["split", "label"]]).all(axis=None)
    assert data.patch["relabelled"] == {"train": 3} and data.patch["dropped"] == {"train": 2}
    assert any("patch: 3 relabelled, 2 dropped" in record.message for record in caplog.records)
    assert load(table).fingerprint != data.fingerprint


def test_the_last_decision_counts_and_undo_takes_one_back(table, tmp_path):
    before = load(table).frame
    (row,) = rows_of(before, "train", 1)
    one = lambda action, **values: lines(before, [row], action, **values)  # noqa: E731
    steps = [
        (one("drop"), "1 dropped"),
        (one("relabel", label="topic1"), "1 relabelled"),
        (one("undo"), "1 dropped"),
        (one("keep"), ""),
        (one("undo") + one("undo"), ""),
        (one("undo"), ""),
    ]
    patch = tmp_path / "a.patch.jsonl"
    for decisions, expected in steps:
        append(patch, decisions)
        assert describe(load(table, patch=str(patch)).patch) == expected
    assert len(read_patch(patch)) == 7  # nothing is ever taken out of the file


def test_a_decision_about_the_label_and_one_about_the_group_stand_side_by_side():
    made = [
        Decision(action="group", id="a", digest="1", group="g"),
        Decision(action="relabel", id="a", digest="1", label="x"),
    ]
    assert [decision.action for decision in standing(made)] == ["group", "relabel"]


def test_test_rows_are_left_alone_unless_asked_for(table, tmp_path, caplog):
    before = load(table).frame
    row = rows_of(before, "test", 1)
    append(tmp_path / "p.jsonl", lines(before, row, "relabel", label="topic1"))
    data = load(table, patch=str(tmp_path / "p.jsonl"))
    assert data.frame.at[row[0], "label"] == "topic0" and data.patch["test_rows_left_alone"] == 1
    assert "1 decisions about test rows are not applied; data.patch_test=true applies them" in caplog.text
    data = load(table, patch=str(tmp_path / "p.jsonl"), patch_test=True)
    assert data.frame.at[row[0], "label"] == "topic1" and data.patch["relabelled"] == {"test": 1}
    assert "the test part was changed (1 relabelled)" in caplog.text


def test_a_decision_never_reaches_another_input(tmp_path):
    folder = tiny.image_folder(tmp_path / "shapes")
    before = load_data(DataConfig(train=str(folder))).frame
    (row,) = before.index[before["split"] == "train"][:1]
    append(tmp_path / "p.jsonl", lines(before, [row], "drop"))
    tiny.image("blue", 48, seed=99).save(before.at[row, "input"])
    config = DataConfig(train=str(folder), patch=str(tmp_path / "p.jsonl"))
    with pytest.raises(
        UserError, match="1 decisions of the patch .*p.jsonl were made about another input than the row"
    ):
        load_data(config)
    data = load_data(config.model_copy(update={"on_error": "skip"}))
    assert len(data.frame) == len(before) and describe(data.patch) == ""


def test_copies_of_a_judged_row_leave_the_training_part(table, tmp_path):
    before = load(table).frame
    trained, evaluated = rows_of(before, "train", 2), rows_of(before, "test", 1)
    append(tmp_path / "p.jsonl", lines(before, [trained[0], *evaluated], "group", group="copies")
           + lines(before, [trained[1]], "group", group="alone"))  # fmt: skip
    data = load(table, patch=str(tmp_path / "p.jsonl"))
    after = data.frame.set_index("id")
    assert before.at[trained[0], "id"] not in after.index
    assert after.loc[before.at[evaluated[0], "id"], "group"] == "copies"
    assert after.loc[before.at[trained[1], "id"], "group"] == "alone"
    assert data.patch["dropped"] == {"train": 1} and sum(data.patch["grouped"].values()) == 3


def test_new_rows_join_the_training_part_once_and_never_as_a_copy(table, tmp_path, caplog):
    before = load(table).frame
    known = before.at[rows_of(before, "test", 1)[0], "input"]
    corrections = [
        {"time": "now", "input": "goal goal match", "prediction": "topic1", "label": "topic1"},
        {"time": "later", "input": "goal goal match", "prediction": "topic1", "label": "topic0"},
        {"time": "now", "input": known, "prediction": "topic1", "label": "topic0"},
    ]
    (tmp_path / "run.corrections.jsonl").write_text("\n".join(map(json.dumps, corrections)))
    data = load(table, patch=str(tmp_path / "run.corrections.jsonl"))
    new = data.frame[~data.frame["id"].isin(before["id"])]
    assert list(new["label"]) == ["topic0"] and list(new["split"]) == ["train"]
    assert data.patch["added"] == {"train": 1}
    assert "of 3 added rows 1 are left out, as their input is in the data already, and 1 as a later" in caplog.text
    again = load(table, patch=str(tmp_path / "run.corrections.jsonl")).frame
    assert list(again["id"]) == list(data.frame["id"])


def test_a_text_with_other_line_ends_stays_one_line(table, tmp_path):
    text = "goal\u2028match\x85team\x0cend\r\nlast"
    patch = tmp_path / "a.patch.jsonl"
    append(patch, [Decision(input=text, label="topic0"), Decision(input="goal goal", label="topic1")])
    assert [each.input for each in read_patch(patch)] == [text, "goal goal"]
    assert load(table, patch=str(patch)).patch["added"] == {"train": 2}


def test_pictures_are_added_from_beside_the_patch_and_from_nowhere_else(tmp_path):
    folder = tiny.image_folder(tmp_path / "shapes")
    place = tmp_path / "runs"
    (place / "kept").mkdir(parents=True)
    tiny.image("green", 48, seed=77).save(place / "kept" / "1.png")
    append(place / "p.jsonl", [Decision(action="add", input="kept/1.png", label="green")])
    data = load_data(DataConfig(train=str(folder), patch=str(place / "p.jsonl")))
    assert data.patch["added"] == {"train": 1}
    append(place / "p.jsonl", [Decision(action="add", input="../shapes/red/000.png", label="green")])
    with pytest.raises(UserError, match="lies outside of the data folder"):
        load_data(DataConfig(train=str(folder), patch=str(place / "p.jsonl")))


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{broken", "Line 1 of the patch .* is no decision"),
        ('{"action": "relable", "id": "a"}', "is no decision \\(action: Input should be 'relabel'"),
        ('{"action": "relabel", "id": "a", "digest": "b"}', "relabel needs label"),
        ('{"action": "drop"}', "drop needs id"),
        ('{"action": "drop", "id": "a", "digest": "b"}', "knows none of the 60 rows: it belongs to other data"),
        ('{"action": "add", "input": "a", "label": "topic9"}', "Unknown label 'topic9'. Did you mean"),
    ],
)
def test_patches_that_are_refused(table, tmp_path, line, message):
    (tmp_path / "p.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        load(table, patch=str(tmp_path / "p.jsonl"))


def test_a_missing_patch_is_named(table, tmp_path):
    append(tmp_path / "run.patch.jsonl", [])
    with pytest.raises(UserError, match="data.patch: There is no file or folder .*run.patsh.jsonl.*Did you mean"):
        load(table, patch=str(tmp_path / "run.patsh.jsonl"))


@pytest.mark.parametrize(
    ("task", "label", "expected"), [("multi_label", ["topic1"], ["topic1"]), ("regression", "0.6", 0.6)]
)
def test_labels_of_other_tasks(tmp_path, task, label, expected):
    table = tiny.text_table(tmp_path / "texts.csv", task)
    settings = {"task": task} | ({"separator": "|"} if task == "multi_label" else {})
    before = load(table, **settings).frame
    (row,) = before.index[before["split"] == "train"][:1]
    append(tmp_path / "p.jsonl", lines(before, [row], "relabel", label=label))
    after = load(table, patch=str(tmp_path / "p.jsonl"), **settings)
    assert after.frame.at[row, "label"] == expected and after.patch["relabelled"] == {"train": 1}


# --- whole runs ------------------------------------------------------------------------------------------------------


def test_training_with_a_patch_is_warm_recorded_and_compared(tmp_path, pages, monkeypatch):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path / "cache"))
    config = configuration("probe", "text", tmp_path)
    first = run(config).folder
    splits = pd.read_parquet(first / "splits.parquet")
    before = load(config.data.train).frame
    change = {"train": rows_of(before, "train", 2), "test": rows_of(before, "test", 1)}
    patch = tmp_path / "p.patch.jsonl"
    append(patch, lines(before, [*change["train"], *change["test"]], "relabel", label="topic1"))
    append(patch, lines(before, rows_of(before, "train", 1, "topic2"), "drop"))

    import hftransfer.features.extract as frozen_pass

    def passes(modality, items, positions, *others):
        assert len(positions) == 0, "an unchanged input went through the network again"
        return iter(())

    monkeypatch.setattr(frozen_pass, "passes", passes)
    values = config.model_dump(mode="json") | {"output": str(tmp_path / "second")}
    values["data"] |= {"patch": str(patch), "patch_test": True}
    second = run(checked(values)).folder
    about = json.loads((second / "run.json").read_text())["data"]["patch"]
    assert about["file"] == "p.patch.jsonl" and about["relabelled"] == {"train": 2, "test": 1}
    notes = json.loads((second / "metrics.json").read_text())["notes"]
    assert notes["train"] == "by the patch 2 relabelled, 1 dropped" and "by the patch 1 relabelled" in notes["test"]
    assert "p.patch.jsonl (train: 2 relabelled, 1 dropped; test: 1 relabelled)" in (second / "report.html").read_text()

    found = compare([first, second])
    assert found.rows == (splits["split"] == "test").sum() - 1
    assert found.notes[0] == "second was trained with the patch p.patch.jsonl: 3 relabelled, 1 dropped."
    assert found.notes[1].startswith("1 test rows have another label in second than in text-probe")


def test_folds_with_a_patch_that_drops_rows(tmp_path):
    values = configuration("probe", "text", tmp_path).model_dump(mode="json")
    before = load(values["data"]["train"]).frame
    append(tmp_path / "p.jsonl", lines(before, rows_of(before, "train", 2), "drop"))
    values["data"]["patch"] = str(tmp_path / "p.jsonl")
    values["evaluation"]["folds"] = 3
    assert "cross_validation" in run(checked(values)).metrics
