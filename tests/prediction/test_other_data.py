"""What a run answers on other people's data: its own columns first, broken inputs beside good ones, no training examples."""

import dataclasses
import json
import pickle
import shutil

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from hftransfer.cli.commands import app
from hftransfer.config import checked
from hftransfer.core import image_files
from hftransfer.core.errors import UserError
from hftransfer.core.image_files import UnreadableImage
from hftransfer.evaluation import EvaluationConfig
from hftransfer.modalities import image
from hftransfer.prediction import predictor as predicting
from hftransfer.prediction.evaluate import evaluate
from hftransfer.prediction.predictor import load
from hftransfer.train import run
from tests.support import tiny


def trained(model, data, folder, **options):
    evaluation = {"explanations": False, "folds": 0, "resamples": 100}
    return run(checked({"data": {"train": str(data)} | options, "model": str(model), "evaluation": evaluation,
                        "output": str(folder), "use_cpu": True})).folder  # fmt: skip


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    """A folder with a run on the column `tweet_content`, a run of pairs, and their tables."""
    folder = tmp_path_factory.mktemp("texts")
    model = tiny.TEXT_FAMILIES["bert"](folder / "bert")
    frame = pd.read_csv(tiny.text_table(folder / "t.csv", rows=48)).rename(columns={"text": "tweet_content"})
    frame.to_csv(folder / "t.csv", index=False)
    trained(model, folder / "t.csv", folder / "run")
    tiny.text_table(folder / "p.csv", pairs=True, rows=40)
    trained(model, folder / "p.csv", folder / "pairs", input=["first", "second"])
    return folder


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    data = tiny.image_folder(folder / "pics", per_class=6)
    trained(tiny.VISION_FAMILIES["timm-resnet"](folder / "m"), data, folder / "run")
    return folder


def command(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments], catch_exceptions=False)


def measured(folder, data, **columns):
    return evaluate(folder, str(data), columns, EvaluationConfig(resamples=100))


# predict


@pytest.mark.parametrize("name", ["tweet_content", "Tweet_Content"])
def test_a_table_is_read_by_the_columns_of_the_run(texts, name):
    rows = pd.read_csv(texts / "t.csv").head(6)
    frame = pd.DataFrame({"text": ["something else altogether here"] * 6, name: rows["tweet_content"]})
    frame.to_csv(texts / "two.csv", index=False)
    predictor = load(texts / "run")
    assert predictor.columns == ("tweet_content",)
    assert predictor.frame(str(texts / "two.csv"))["input"].tolist() == rows["tweet_content"].tolist()
    assert predictor.frame(str(texts / "two.csv"), ["text"])["input"].tolist() == frame["text"].tolist()
    short = pd.DataFrame({"tweet_content": ["anna", "bob"]})  # too short to be found as texts
    short.to_csv(texts / "short.csv", index=False)
    assert predictor.frame(str(texts / "short.csv"))["input"].tolist() == ["anna", "bob"]


def test_a_wrong_number_of_inputs_is_refused(texts):
    with pytest.raises(UserError) as error:
        load(texts / "pairs").predict(["only one text"])
    assert str(error.value) == (
        "This model reads 2 inputs per example (first, second), and 1 per example were given. Give a table and name its "
        "columns: --column first --column second."
    )
    with pytest.raises(UserError, match="This model reads 1 input per example"):
        load(texts / "run").predict(str(texts / "p.csv"), columns=["first", "second"])
    assert len(load(texts / "pairs").predict(str(texts / "p.csv"))) == 40


def test_ids_of_a_table_are_kept_for_submissions(texts):
    rows = pd.read_csv(texts / "t.csv").head(4).assign(PassengerId=[892, 893, 894, 895])
    rows.drop(columns="label").to_csv(texts / "ids.csv", index=False)
    assert load(texts / "run").predict(str(texts / "ids.csv"))["id"].tolist() == ["892", "893", "894", "895"]
    rows.assign(PassengerId=1).to_csv(texts / "twice.csv", index=False)
    assert load(texts / "run").predict(str(texts / "twice.csv"))["id"].tolist() == [
        f"twice.csv#{i}" for i in range(1, 5)
    ]


@pytest.mark.parametrize("views", [0, 1])
def test_a_broken_picture_stops_no_other(pictures, tmp_path, views):
    broken = shutil.copytree(pictures / "pics", tmp_path / "pics")
    before = command("predict", pictures / "run", broken, "--views", views, "--output", tmp_path / "good.csv")
    (broken / "red" / "001.png").write_bytes(b"\x89PNG" + bytes(200))
    result = command("predict", pictures / "run", broken, "--views", views, "--output", tmp_path / "out.csv")
    assert before.exit_code == 0 and result.exit_code == 1
    assert "1 of 18 inputs could not be read: see `error`." in result.output
    found, expected = pd.read_csv(tmp_path / "out.csv"), pd.read_csv(tmp_path / "good.csv")
    wrong = found["id"].str.endswith("red/001.png")
    assert wrong.sum() == 1 and found["error"].notna().tolist() == wrong.tolist() and "error" not in expected
    assert found["prediction"][~wrong].tolist() == expected["prediction"][~wrong].tolist()


def test_a_broken_picture_among_explained_ones_and_in_the_terminal(pictures, tmp_path):
    files = [pictures / "pics" / "red" / "000.png", tmp_path / "broken.png", pictures / "pics" / "blue" / "000.png"]
    files[1].write_bytes(b"no picture")
    result = command("predict", pictures / "run", *files, "--explain", tmp_path / "maps")
    assert result.exit_code == 1 and "error: " in result.output
    assert len(list((tmp_path / "maps").glob("*.png"))) == 2
    result = command("predict", pictures / "run", *files, "--json")
    assert [row["error"] is None for row in json.loads(result.stdout)] == [True, False, True]
    with pytest.raises(UserError, match="None of the 1 inputs can be read. The first: .*broken.png"):
        load(pictures / "run").predict(str(files[1]))


@pytest.mark.parametrize("broken", [0, 2])
def test_pictures_are_decoded_once_unless_one_is_broken(pictures, tmp_path, monkeypatch, broken):
    shutil.copytree(pictures / "pics", tmp_path / "new")
    files = sorted((tmp_path / "new").rglob("*.png"))
    for file in files[:broken]:
        file.write_bytes(b"none")
    decoded, plain = [], image_files.decode
    monkeypatch.setattr(image_files, "decode", lambda *given: decoded.append(1) or plain(*given))
    predictor = load(pictures / "run", use_cpu=True)
    table = dataclasses.replace(
        predictor, compute_config=dataclasses.replace(predictor.compute_config, workers=0)
    ).predict(str(tmp_path / "new"))
    assert table["prediction"].notna().sum() == len(files) - broken and ("error" in table) == (broken > 0)
    assert broken or len(decoded) == len(files)


def test_an_error_of_a_loading_process_keeps_its_words():
    error = UnreadableImage("a.png", "it is a folder")
    assert str(pickle.loads(pickle.dumps(UnreadableImage(str(error))))) == str(error)


def test_empty_texts_are_no_inputs(texts):
    with pytest.raises(UserError, match="An empty text cannot be predicted"):
        load(texts / "run").predict("")
    lines = CliRunner().invoke(app, ["predict", str(texts / "run"), "-", "--json"], input="goal team\n\nmarket bank\n")
    assert lines.exit_code == 1
    assert [row["error"] for row in json.loads(lines.stdout)] == [None, "the text is empty", None]


# evaluate --data


def test_training_examples_are_left_out(texts, caplog):
    caplog.set_level("INFO")
    splits = pd.read_parquet(texts / "run" / "splits.parquet")
    found = measured(texts / "run", texts / "t.csv")
    assert found["metrics"]["accuracy"]["n"] == (splits["split"] != "train").sum()
    assert "examples have been trained on by this run, and are left out: " in caplog.text
    train = set(splits.loc[splits["split"] == "train", "input"])
    frame = pd.read_csv(texts / "t.csv")
    frame[frame["tweet_content"].isin(train)].to_csv(texts / "train.csv", index=False)
    with pytest.raises(UserError, match="Nothing is left of .*train.csv to evaluate: the last .* have been trained on"):
        measured(texts / "run", texts / "train.csv")


def fresh(folder, name, rows=24, seed=1, **columns):
    """A table of texts that no run has seen."""
    frame = pd.read_csv(tiny.text_table(folder / name, rows=rows)).rename(columns={"text": "tweet_content"})
    frame["tweet_content"] = [f"{text} {number + 100 * seed}" for number, text in enumerate(frame["tweet_content"])]
    frame = frame.assign(**columns)
    frame.to_csv(folder / name, index=False)
    return frame


def test_of_divided_data_the_test_part_counts(texts, caplog):
    caplog.set_level("INFO")
    fresh(texts, "divided.csv", split=["train", "test", "train"] * 8)
    assert measured(texts / "run", texts / "divided.csv")["metrics"]["accuracy"]["n"] == 8
    assert "the test part is evaluated: 8 of 24 examples." in caplog.text


def test_gaps_in_labels_and_inputs_are_left_out_and_named(texts, caplog):
    frame = fresh(texts, "gaps.csv", seed=2)
    frame.loc[3, "label"], frame.loc[5, "tweet_content"] = None, " "
    frame.to_csv(texts / "gaps.csv", index=False)
    assert measured(texts / "run", texts / "gaps.csv")["metrics"]["accuracy"]["n"] == 22
    assert "1 of 24 examples have no label, and are left out: " in caplog.text and "row 4" in caplog.text
    assert "1 of 23 examples have no usable input, and are left out: " in caplog.text and "row 6" in caplog.text


@pytest.mark.parametrize("task", ["regression", "multi_label"])
def test_gaps_in_labels_of_other_tasks(tmp_path, caplog, task):
    table = tiny.text_table(tmp_path / "t.csv", task, rows=40)
    options = {"task": task} | ({"separator": "|"} if task == "multi_label" else {})
    folder = trained(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"), table, tmp_path / "run", **options)
    frame = pd.read_csv(table).head(12)
    frame["text"] = [f"{text} again {number}" for number, text in enumerate(frame["text"])]
    labels = frame["label"].astype(object)
    labels[2] = None
    frame.assign(label=labels).to_json(tmp_path / "gaps.jsonl", orient="records", lines=True)
    found = measured(folder, tmp_path / "gaps.jsonl")["metrics"]
    assert next(iter(found.values()))["n"] == (11 if task == "regression" else 12)  # of several labels: none applies
    assert np.isfinite([entry["value"] for entry in found.values()]).any()


def test_unreadable_pictures_are_left_out(pictures, tmp_path, caplog):
    data = tiny.image_folder(tmp_path / "new", per_class=3, size=40)
    (data / "red" / "001.png").write_bytes(b"no picture")
    assert measured(pictures / "run", data)["metrics"]["accuracy"]["n"] == 8
    assert "1 of 9 examples have no usable input, and are left out: " in caplog.text


@pytest.mark.parametrize("broken", [0, 1])
def test_pictures_to_evaluate_are_decoded_once_unless_one_is_broken(pictures, tmp_path, monkeypatch, broken):
    data = tiny.image_folder(tmp_path / "new", per_class=3, size=40)
    for file in sorted(data.rglob("*.png"))[:broken]:
        file.write_bytes(b"no picture")
    decoded, plain, loaded = [], image_files.decode, load(pictures / "run", use_cpu=True)
    for module in (image_files, image):
        monkeypatch.setattr(module, "decode", lambda *given, **named: decoded.append(1) or plain(*given, **named))
    here = dataclasses.replace(loaded, compute_config=dataclasses.replace(loaded.compute_config, workers=0))
    monkeypatch.setattr(predicting, "load", lambda path: here)
    assert measured(pictures / "run", data)["metrics"]["accuracy"]["n"] == 9 - broken
    assert broken or len(decoded) == 9


def test_a_numbered_class_may_be_written_with_a_point(tmp_path):
    table = tiny.text_table(tmp_path / "t.csv", rows=40)
    frame = pd.read_csv(table)
    frame["label"] = frame["label"].astype("category").cat.codes
    frame.to_csv(table, index=False)
    folder = trained(tiny.TEXT_FAMILIES["bert"](tmp_path / "m"), table, tmp_path / "run")
    other = frame.head(12).assign(
        label=frame["label"].astype(float), text=[f"{text} new" for text in frame["text"].head(12)]
    )
    other.to_csv(tmp_path / "o.csv", index=False)
    assert measured(folder, tmp_path / "o.csv")["metrics"]["accuracy"]["n"] == 12


def test_data_without_the_labels_of_the_run_is_one_sentence(texts, tmp_path):
    rows = pd.read_csv(texts / "t.csv").head(12).assign(age=range(30, 42))
    data = tmp_path / "new.csv"
    rows.drop(columns="label").to_csv(data, index=False)
    with pytest.raises(UserError) as error:
        measured(texts / "run", data)
    words = f"{data} has no column 'label', which holds the labels of the run. Name another with --label (there are "
    assert str(error.value).startswith(words) and f"hftransfer predict {texts / 'run'} {data}." in str(error.value)
    rows.rename(columns={"label": "mood"}).to_csv(data, index=False)
    assert "accuracy" in measured(texts / "run", data, label="mood")["metrics"]
