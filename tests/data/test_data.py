"""Sources, columns, tasks and the errors of bad data; all files are made on the spot."""

import json
import logging
import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hftransfer.config import checked
from hftransfer.core import image_files as images
from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, inputs_modality, load_data, load_inputs
from hftransfer.data.labels import natural_order

WORDS = "red blue green yellow black white orange purple brown pink".split()


def picture(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def picture_folder(root: Path, classes=("cat", "dog"), count: int = 10) -> Path:
    for index, name in enumerate(classes):
        for number in range(count):
            picture(root / name / f"{number}.png", 1000 * index + number)
    return root


def texts(count: int = 20) -> list[str]:
    return [f"the {WORDS[i % 10]} fox jumped over {i} lazy dogs" for i in range(count)]


def write(path: Path, content: str) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(content, encoding="utf-8")
    return str(path)


def table(path: Path, /, **columns) -> str:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path)
    else:
        pd.DataFrame(rows).to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def load(**config):
    return load_data(DataConfig(**config))


def fails(match: str, **config) -> str:
    with pytest.raises(UserError) as caught:
        load(**config)
    assert match in str(caught.value), str(caught.value)
    return str(caught.value)


# Image folders


def test_image_folder_takes_classes_from_folders_and_ids_from_paths(tmp_path):
    data = load(train=str(picture_folder(tmp_path)))
    assert (data.modality, data.task.type, data.task.names) == ("image", "single_label", ("cat", "dog"))
    assert set(data.frame["id"]) == {f"{name}/{number}.png" for name in ("cat", "dog") for number in range(10)}
    assert all(row.label == row.id.split("/")[0] and Path(row.input).is_file() for row in data.frame.itertuples())
    assert data.targets("train").dtype == np.int64 and len(data.targets("train")) == len(data.part("train"))


def test_split_folders_are_honoured_under_their_usual_names(tmp_path):
    for split in ("train", "valid", "Test"):
        picture_folder(tmp_path / split, count=4)
    counts = load(train=str(tmp_path)).frame.groupby("split").size()
    assert counts.to_dict() == {"train": 8, "validation": 8, "test": 8}


def test_nothing_is_guessed_from_a_file_name(tmp_path):
    picture_folder(tmp_path)
    for number, name in enumerate(["test_1.png", "validation.png", "dog_train.png"]):
        picture(tmp_path / "cat" / name, 50 + number)
    data = load(train=str(tmp_path))
    assert (data.frame["label"] == "cat").sum() == 13
    assert data.frame["split"].nunique() == 3


def test_a_class_may_be_called_like_a_split(tmp_path):
    data = load(train=str(picture_folder(tmp_path, ("train", "bus"))))
    assert data.task.names == ("bus", "train")


def test_splits_without_class_folders_are_no_classes(tmp_path):
    for split, count in (("train", 6), ("test", 3)):
        for number in range(count):
            picture(tmp_path / split / f"cat.{number}.png", number)
    message = fails("are splits (test, train) without class folders inside", train=str(tmp_path))
    assert "nothing is read out of file names" in message and "If a table" not in message
    write(tmp_path / "train" / "metadata.csv", "file_name,label\n")
    assert f"name it: {tmp_path}/train/metadata.csv" in fails("are splits", train=str(tmp_path))


def test_hidden_entries_and_other_files_are_passed_over(tmp_path):
    picture_folder(tmp_path)
    for name in (".DS_Store", "._1.png", "notes.txt", "Thumbs.db"):
        write(tmp_path / "cat" / name, "x")
    picture(tmp_path / "__MACOSX" / "cat" / "1.png")
    assert len(load(train=str(tmp_path)).frame) == 20


def test_class_folders_that_are_numbers_are_classes_in_the_order_of_numbers(tmp_path):
    names = [str(number) for number in (1, 2, 10, 33)]
    assert load(train=str(picture_folder(tmp_path, names, 4))).task.names == ("1", "2", "10", "33")


def test_unclear_class_level_names_both_readings(tmp_path):
    picture_folder(tmp_path / "cut")
    picture_folder(tmp_path / "raw")
    write(tmp_path / "labels.csv", "path,label\n")
    message = fails("It is unclear which folders", train=str(tmp_path))
    assert "are the classes: cut, raw, or one level below cat, dog." in message
    assert f"data.train={tmp_path}/cut or data.train={tmp_path}/raw" in message
    assert f"name it: {tmp_path}/labels.csv" in message


def test_images_beside_class_folders_are_an_error(tmp_path):
    picture_folder(tmp_path)
    picture(tmp_path / "stray.png")
    fails(f"1 of 21 images stand in {tmp_path} itself, such as 'stray.png'", train=str(tmp_path))


def test_unlabelled_test_folder_is_an_error_that_points_to_predict(tmp_path):
    picture_folder(tmp_path / "train")
    picture(tmp_path / "test" / "1.png")
    fails("holds the splits train and beside them images in test.", train=str(tmp_path))


def test_two_folders_for_one_split(tmp_path):
    for split in ("train", "val", "dev"):
        picture_folder(tmp_path / split, count=3)
    fails("holds several folders for one split: dev, train, val.", train=str(tmp_path))


def test_empty_folder(tmp_path):
    assert fails("holds no image", train=str(tmp_path)) == (
        f"The folder {tmp_path} holds no image and no recording: expected one sub-folder per class."
    )


def test_links_out_of_the_data_folder_are_refused_unless_meant(tmp_path):
    picture_folder(tmp_path / "data")
    picture(tmp_path / "elsewhere" / "secret.png", 99)
    os.symlink(tmp_path / "elsewhere" / "secret.png", tmp_path / "data" / "cat" / "link.png")
    fails("is a link that leads out of the data folder", train=str(tmp_path / "data"))
    assert len(load(train=str(tmp_path / "data"), allow_outside=True).frame) == 21


def test_a_link_that_leads_back_up_ends(tmp_path):
    picture_folder(tmp_path)
    os.symlink(tmp_path, tmp_path / "cat" / "loop")
    assert len(load(train=str(tmp_path)).frame) == 20


# Tables


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".json", ".parquet"])
def test_every_kind_of_table_gives_the_same_data(tmp_path, suffix):
    path = table(tmp_path / f"data{suffix}", text=texts(), label=["a", "b"] * 10)
    data = load(train=path)
    reference = load(train=table(tmp_path / "reference.csv", text=texts(), label=["a", "b"] * 10))
    assert data.fingerprint == reference.fingerprint
    assert list(data.frame["input"]) == texts()


def test_words_that_pandas_takes_for_missing_stay_words(tmp_path):
    rows = "".join(f"null {i},None\nNA {i},NA\n" for i in range(10))
    data = load(train=write(tmp_path / "t.csv", "text,label\n" + rows), input="text")
    assert data.task.names == ("NA", "None")


def test_semicolons_and_a_byte_order_mark(tmp_path):
    rows = "\n".join(f"{text};{'ab'[i % 2]}" for i, text in enumerate(texts()))
    path = write(tmp_path / "t.csv", "\ufefftext;label\n" + rows)
    assert list(load(train=path).frame["input"]) == texts()


def test_folder_of_split_tables(tmp_path):
    for name in ("train", "dev", "test"):
        table(tmp_path / f"{name}.csv", text=[f"{name} {t}" for t in texts()], label=["a", "b"] * 10)
    counts = load(train=str(tmp_path)).frame["split"].value_counts()
    assert counts.to_dict() == {"train": 20, "validation": 20, "test": 20}


def test_image_table_with_relative_paths(tmp_path):
    picture_folder(tmp_path / "pictures")
    paths = [f"pictures/{name}/{number}.png" for name in ("cat", "dog") for number in range(10)]
    data = load(train=table(tmp_path / "t.csv", file_name=paths, species=[p.split("/")[1] for p in paths]))
    assert (data.modality, data.task.names, set(data.frame["id"])) == ("image", ("cat", "dog"), set(paths))


def test_image_paths_may_not_leave_the_folder_of_the_table(tmp_path):
    picture_folder(tmp_path / "outside")
    (tmp_path / "data").mkdir()
    paths = [f"../outside/{name}/{n}.png" for name in ("cat", "dog") for n in range(10)]
    path = table(tmp_path / "data" / "t.csv", path=paths, label=["cat"] * 10 + ["dog"] * 10)
    fails("lies outside of the data folder", train=path)
    assert len(load(train=path, allow_outside=True).frame) == 20
    absolute = table(
        tmp_path / "data" / "u.csv", path=[str(tmp_path / "data" / p) for p in paths], label=["a", "b"] * 10
    )
    fails("data.allow_outside=true", train=absolute)


def test_split_column_is_honoured_when_its_values_are_split_words(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    splits = ["train"] * 12 + ["dev"] * 4 + ["test"] * 4
    path = table(tmp_path / "t.csv", text=texts(), label=["a", "b"] * 10, split=splits)
    assert list(load(train=path).frame["split"]) == ["train"] * 12 + ["validation"] * 4 + ["test"] * 4
    assert "is divided by its column 'split'" in caplog.text
    assert load(train=path).given == ("train", "validation", "test")
    other = table(tmp_path / "u.csv", text=texts(), label=["a", "b"] * 10, split=["left", "right"] * 10)
    assert load(train=other).frame["split"].value_counts()["train"] == 12 and load(train=other).given == ()
    assert "Column 'split' is no division" in caplog.text


# Columns


def test_columns_found_are_said_and_those_named_win(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    path = table(
        tmp_path / "t.csv", review=texts(), label=["a", "b"] * 10, remark=texts()[::-1], stars=[1, 2, 3, 4] * 5
    )
    data = load(train=path)
    assert "input 'review' (text), label 'label'." in caplog.text
    assert "Column 'label' is taken as the label (not 'stars')" in caplog.text
    named = load(train=path, input="remark", label="stars")
    assert list(named.frame["input"]) == texts()[::-1] and named.task.names == ("1", "2", "3", "4")
    assert list(data.frame["input"]) == texts()


def test_unclear_columns_are_listed_with_two_values_each(tmp_path):
    path = table(tmp_path / "t.csv", one=texts(), other=texts()[::-1], label=["a", "b"] * 10)
    assert fails("it is unclear", train=path) == (
        f"{path}: it is unclear which column holds the texts. Name it with data.input=one or another of these:\n"
        f"  one: {texts()[0]!r}, {texts()[1]!r}\n  other: {texts()[19]!r}, {texts()[18]!r}"
    )
    path = table(tmp_path / "u.csv", text=texts(), kind=["a", "b"] * 10, size=["s", "l"] * 10)
    assert fails("it is unclear", train=path) == (
        f"{path}: it is unclear which column holds the label. Name it with data.label=kind or another of these:\n"
        "  kind: 'a', 'b'\n  size: 's', 'l'"
    )


def test_absent_column_names_the_nearest(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), label=["a", "b"] * 10)
    assert fails("no column", train=path, label="lable") == f"{path} has no column 'lable'. Did you mean 'label'?"
    fails("has no column 'words'. Choose from: text, label.", train=path, input="words")
    fails("split.group: ", train=path, split={"group": "author"})


@pytest.mark.parametrize("names", [("text_a", "text_b"), ("sentence1", "sentence2"), ("premise", "hypothesis")])
def test_text_pairs_are_found_by_their_names(tmp_path, names):
    columns = {names[0]: texts(), names[1]: texts()[::-1], "label": ["a", "b"] * 10}
    data = load(train=table(tmp_path / "t.csv", **columns))
    assert list(data.frame["input"]) == texts() and list(data.frame["input_pair"]) == texts()[::-1]


def test_text_pairs_by_name_and_three_inputs(tmp_path):
    path = table(tmp_path / "t.csv", x=texts(), y=texts()[::-1], z=texts(), label=["a", "b"] * 10)
    assert list(load(train=path, input=["z", "y"]).frame["input_pair"]) == texts()[::-1]
    first = load(train=path, input=["x", "y", "z"]).frame["input"].iloc[0]
    assert first == f"x: {texts()[0]} | y: {texts()[-1]} | z: {texts()[0]}"
    fails("cannot be input and label at once", train=path, input="label", label="label")


def test_modality_overrides_what_the_content_suggests(tmp_path):
    path = table(tmp_path / "t.csv", path=[f"{i}.png" for i in range(20)], label=["a", "b"] * 10)
    assert load(train=path, input="path", modality="text").modality == "text"


# Tasks


@pytest.mark.parametrize(
    ("values", "type_", "names"),
    [
        (["b", "a"] * 10, "single_label", ("a", "b")),
        ([0, 1, 2, 3] * 5, "single_label", ("0", "1", "2", "3")),
        ([1, 2, 10, 3, 20] * 4, "single_label", ("1", "2", "3", "10", "20")),
        ([2.0, 1.0] * 10, "single_label", ("1", "2")),
        ([True, False] * 10, "single_label", ("False", "True")),
        ([i + 0.5 for i in range(20)], "regression", ("label",)),
        (list(range(0, 100, 5)), "regression", ("label",)),
        ([i * 7 for i in range(30)] * 4, "regression", ("label",)),
        (list(range(30)) * 4, "single_label", tuple(map(str, range(30)))),
        (["a", "b", "a|b", "c", "b|c"] * 4, "multi_label", ("a", "b", "c")),
        (["a", "b", "a; b", "c", "c;b"] * 4, "multi_label", ("a", "b", "c")),
        (["x, y", "z"] * 10, "single_label", ("x, y", "z")),
        ([["a"], ["a", "b"], []] * 7, "multi_label", ("a", "b")),
        ([[0.1, 2.0], [0.3, 4.5]] * 10, "regression", ("label_0", "label_1")),
    ],
)
def test_task_is_found_from_the_values(tmp_path, values, type_, names):
    path = table(tmp_path / "t.jsonl", text=texts(len(values)), label=values)
    task = load(train=path).task
    assert (task.type, task.names) == (type_, names)


def test_the_rule_for_numbers_is_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    load(train=table(tmp_path / "t.csv", text=texts(), label=[1, 2] * 10))
    assert "2 different whole numbers that repeat: they are read as classes (data.task=regression if" in caplog.text


def test_task_named_by_the_user_wins(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), label=[1, 2, 3, 4] * 5)
    assert load(train=path, task="regression").task.type == "regression"
    path = table(tmp_path / "u.csv", text=texts(), label=["a", "b", "a|b", "b"] * 5)
    assert load(train=path, task="single_label").task.names == ("a", "a|b", "b")
    path = table(tmp_path / "v.csv", text=texts(), label=["a", "b"] * 10)
    assert load(train=path, task="multi_label").task == load(train=path, task="multi_label", separator="+").task
    fails("Regression needs numbers in the column 'label'; found 'a'.", train=path, task="regression")


def test_separator_named_by_the_user(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), label=["a+b", "b+c"] * 10)
    data = load(train=path, separator="+")
    assert data.task.names == ("a", "b", "c") and data.frame["label"][0] == ["a", "b"]


def test_several_columns_of_zero_and_one_are_labels(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), funny=[0, 1, 1, 0] * 5, long=[1, 1, 0, 0] * 5)
    data = load(train=path, label=["funny", "long"])
    assert (data.task.type, data.task.names) == ("multi_label", ("funny", "long"))
    assert list(data.frame["label"][:4]) == [["long"], ["funny", "long"], ["funny"], []]
    assert load(train=path, label=["funny", "long"], task="regression").task.names == ("funny", "long")


def test_several_columns_of_numbers_are_targets(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), x=np.arange(20) / 3, y=np.arange(20) * 2)
    data = load(train=path, label=["x", "y"])
    assert (data.task.type, data.task.names) == ("regression", ("x", "y"))
    assert data.targets("train").shape == (len(data.part("train")), 2)
    assert np.allclose(data.task.mean, data.targets("train").mean(0))
    fails("must hold numbers, or 0 and 1; found", train=path, label=["x", "text"], input="y")


def test_regression_knows_the_scale_of_the_training_part(tmp_path):
    data = load(train=table(tmp_path / "t.csv", text=texts(40), score=np.linspace(0, 7, 40)))
    train = data.targets("train")
    assert data.task.mean == pytest.approx([train.mean()], rel=1e-5)
    assert data.task.std == pytest.approx([train.std()], rel=1e-5)


def test_labels_of_a_numeric_column_with_words_are_an_error(tmp_path):
    values = [*map(str, np.arange(39) / 7), "n/a"]
    path = table(tmp_path / "t.csv", text=texts(40), score=values)
    fails("The label column 'score' holds numbers except for 1 of 40 values, such as 'n/a'.", train=path)


def test_lists_written_as_text_and_vectors_without_names(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), label=["['a', 'b']", "['a']"] * 10)
    fails("holds lists written as text, such as \"['a', 'b']\". Save the table as JSONL", train=path)
    path = table(tmp_path / "t.jsonl", text=texts(), label=[[0, 0, 1], [1, 1, 0]] * 10)
    fails("holds lists of 0 and 1 without names. Give one column per label", train=path)


def test_natural_order():
    assert natural_order(["10", "9", "2.5", "-1"]) == ["-1", "2.5", "9", "10"]
    assert natural_order(["b10", "b9", "A1", "a"]) == ["a", "A1", "b9", "b10"]


# Bad input


def test_missing_file_names_the_nearest_sibling(tmp_path):
    table(tmp_path / "reviews.csv", text=texts(), label=["a", "b"] * 10)
    assert fails("no file", train=str(tmp_path / "review.csv")) == (
        f"There is no file or folder {tmp_path}/review.csv ({tmp_path} holds 1 entries). Did you mean 'reviews.csv'?"
    )
    fails(f"There is no file or folder {tmp_path}/nowhere", train=str(tmp_path / "nowhere" / "x.csv"))


def test_a_name_that_is_neither_file_nor_data_set_of_the_hub(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pets").mkdir()

    asked = []

    def unreachable(*names):
        asked.append(names)
        raise ConnectionError("no network")

    monkeypatch.setattr("datasets.load_dataset", unreachable)
    assert fails("There is no", train="pest") == (
        f"There is no file or folder pest ({tmp_path} holds 1 entries). Did you mean 'pets'? "
        "A data set on the Hub is named hub:pest."
    )
    fails("named hub:data/cats", train="data/cats")
    assert asked == []
    message = "The Hub data set 'owner/pest:en' cannot be loaded: ConnectionError: no network"
    assert fails("cannot be loaded", train="hub:owner/pest:en") == message
    assert asked == [("owner/pest", "en")]


def test_say_where_the_data_is():
    fails("Say where the data is with data.train, or give a dataset from Python; neither was given.")


def test_text_that_is_not_utf8_names_the_byte(tmp_path):
    path = tmp_path / "latin.csv"
    path.write_bytes("text,label\nhello,a\ncafé,b\n".encode("latin-1"))
    assert fails("UTF-8", train=str(path)) == (
        f"{path} is not UTF-8: byte 0xe9 at offset 22 (line 3). Convert it, for instance if it is WINDOWS-1252: "
        f"iconv -f WINDOWS-1252 -t UTF-8 '{path}' > 'latin.utf8.csv'"
    )
    path.write_bytes("text,label\nhello,a\n".encode("utf-16"))
    fails("if it is UTF-16: iconv -f UTF-16", train=str(path))


@pytest.mark.parametrize("value", ["", "NaN", "nan"])
def test_missing_label(tmp_path, value):
    path = table(tmp_path / "t.csv", text=texts(21), label=["a", "b"] * 10 + [value])
    assert fails("label is missing", train=path) == (
        f"1 of 21 examples cannot be used:\n  {path}, row 21: the label is missing\n"
        "Correct or remove them, or leave them out with data.on_error=skip."
    )
    data = load(train=path, on_error="skip")
    assert len(data.frame) == 20 and data.skipped == [f"{path}, row 21: the label is missing"]


def test_missing_number(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), score=[*np.linspace(0, 1, 19), float("nan")])
    fails("row 20: the label is missing", train=path)
    assert len(load(train=path, on_error="skip").frame) == 19


def test_one_class_only(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), label=["a"] * 20)
    assert fails("nothing to learn", train=path) == (
        "There is nothing to learn: all 13 training examples are 'a'. Expected at least two classes."
    )
    path = table(tmp_path / "u.csv", text=texts(), score=[0.5] * 20)
    fails("There is nothing to learn: all 12 training targets are 0.5.", train=path)


def test_a_class_with_one_example(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(21), label=["a", "b"] * 10 + ["c"])
    assert fails("one example only", train=path) == (
        f"1 of 21 examples cannot be used:\n  {path}, row 21: its class 'c' has one example only, which cannot be "
        "divided into training and test (add examples, merge the class with another, or give the splits yourself)\n"
        "Correct or remove them, or leave them out with data.on_error=skip."
    )
    skipping = load(train=path, on_error="skip")
    assert skipping.task.names == ("a", "b") and len(skipping.skipped) == 1
    test = table(tmp_path / "test.csv", text=[f"x {t}" for t in texts()], label=["a", "b"] * 10)
    given = load(train=path, test=test)
    assert list(given.frame["split"][given.frame["label"] == "c"]) == ["train"]


def test_labels_that_train_does_not_know(tmp_path):
    train = table(tmp_path / "train.csv", text=texts(), label=["a", "b"] * 10)
    test = table(tmp_path / "test.csv", text=[f"new {t}" for t in texts(3)], label=["a", "b", "x"])
    fails(f"{test}, row 3: the label 'x' does not occur in the training part", train=train, test=test)
    data = load(train=train, test=test, on_error="skip")
    assert len(data.part("test")) == 2 and "the label 'x'" in data.skipped[0]


@pytest.mark.parametrize("modality", ["table", "folder"])
def test_corrupt_image_stops_or_is_left_out(tmp_path, modality):
    picture_folder(tmp_path)
    broken = tmp_path / "cat" / "3.png"
    broken.write_bytes(broken.read_bytes()[:200])
    source, where = str(tmp_path), str(broken)
    if modality == "table":
        paths = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(10)]
        source = table(tmp_path / "t.csv", path=paths, label=["cat"] * 10 + ["dog"] * 10)
        where = f"{source}, row 4 (cat/3.png)"
    message = fails("1 of 20 examples cannot be used", train=source)
    assert f"\n  {where}: image file is truncated" in message
    data = load(train=source, on_error="skip")
    assert len(data.frame) == 19 and "cat/3.png" not in set(data.frame["id"]) and where in data.skipped[0]


def test_missing_image(tmp_path):
    picture_folder(tmp_path)
    paths = [f"{name}/{n}.png" for name in ("cat", "dog") for n in range(10)] + ["cat/99.png"]
    path = table(tmp_path / "t.csv", path=paths, label=["cat"] * 10 + ["dog"] * 10 + ["cat"])
    fails("row 21 (cat/99.png): there is no such file", train=path)


@pytest.mark.parametrize("empty", ["", "  \n"])
def test_empty_text(tmp_path, empty):
    path = table(tmp_path / "t.jsonl", text=[*texts(20), empty], label=["a", "b"] * 10 + ["a"])
    fails("row 21: the text is empty", train=path)
    assert len(load(train=path, on_error="skip").frame) == 20
    pair = table(tmp_path / "p.jsonl", text_a=texts(21), text_b=[*texts(20), empty], label=["a", "b"] * 10 + ["a"])
    fails("row 21: the text is empty", train=pair)


def test_nothing_left_after_leaving_out(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), label=[f"c{n}" for n in range(20)])
    assert fails("training", train=path, label="label", on_error="skip") == "There are no training examples."
    path = table(tmp_path / "u.csv", text=texts(), label=[""] * 20)
    fails("The label column 'label' is empty.", train=path, on_error="skip")


def test_odd_columns_do_not_disturb_the_search(tmp_path):
    """A column without name, a split column of lists, half a pair of names."""
    rows = [{"": t, "text": t, "split": ["train"], "label": "ab"[n % 2]} for n, t in enumerate(texts())]
    (tmp_path / "t.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    assert load(train=str(tmp_path / "t.jsonl")).task.names == ("a", "b")


def test_broken_unicode(tmp_path):
    path = table(tmp_path / "t.jsonl", text=[*texts(20), "half \ud83d of it"], label=["a", "b"] * 10 + ["a"])
    fails("row 21: the text is no valid Unicode", train=path)


def test_broken_tables(tmp_path):
    fails("holds no rows", train=write(tmp_path / "none.csv", "text,label\n"))
    fails("is empty", train=write(tmp_path / "empty.csv", " \n"))
    fails("Expected 2 fields in line 3, saw 3", train=write(tmp_path / "wide.csv", "text,label\na,b\na,b,c\n"))
    fails("has more values in its first row than columns", train=write(tmp_path / "w.csv", "text,label\na,b,c\n"))
    fails("EOF inside string", train=write(tmp_path / "quote.csv", 'text,label\n"a,b\nc,d\n'))
    fails(", line 2 is not valid JSON", train=write(tmp_path / "bad.jsonl", '{"text": "a"}\n{"text": \n'))
    fails(", line 1: expected an object", train=write(tmp_path / "list.jsonl", "[1, 2]\n"))
    fails("expected a list of objects", train=write(tmp_path / "bad.json", '{"a": {"b": 1}, "c": 2}'))
    fails("cannot be read as Parquet", train=write(tmp_path / "bad.parquet", "PAR1"))
    fails("several columns named 'text'", train=write(tmp_path / "twice.csv", "text,text ,label\na,b,c\n"))
    fails("is no table that can be read: expected a file ending in .csv", train=write(tmp_path / "x.xlsx", "x"))


def test_no_permission(tmp_path, monkeypatch):
    path = table(tmp_path / "t.csv", text=texts(), label=["a", "b"] * 10)

    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_bytes", refuse)
    assert fails("No permission", train=path) == f"No permission to read {path}."


# The datasets library and Python


def test_saved_dataset_with_class_names_and_splits(tmp_path):
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "maybe", "yes"])}
    )
    part = datasets.Dataset.from_dict({"text": texts(), "label": [2, 0] * 10}, features=features)
    other = datasets.Dataset.from_dict({"text": [f"x{t}" for t in texts()], "label": [2, 0] * 10}, features=features)
    datasets.DatasetDict({"train": part, "test": other, "unsupervised": part}).save_to_disk(str(tmp_path / "saved"))
    data = load(train=str(tmp_path / "saved"))
    assert data.task.names == ("no", "yes") and data.frame["label"][0] == "yes"
    assert data.frame["split"].value_counts().to_dict() == {"train": 16, "validation": 4, "test": 20}


def test_python_dataset_with_images_stays_encoded(tmp_path):
    import datasets

    images = [Image.fromarray(np.full((5, 5, 3), i, np.uint8)) for i in range(20)]
    dataset = datasets.Dataset.from_dict({"image": images, "label": ["a", "b"] * 10}).cast_column(
        "image", datasets.Image()
    )
    data = load_data(DataConfig(), dataset)
    assert data.modality == "image" and all(isinstance(value, bytes) for value in data.frame["input"])
    assert data.frame["id"].is_unique


def test_python_dataset_of_several_class_labels():
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=["y", "x"]))}
    )
    dataset = datasets.Dataset.from_dict({"text": texts(), "labels": [[0], [1, 0], [], [1]] * 5}, features=features)
    data = load_data(DataConfig(), dataset)
    assert (data.task.type, data.task.names) == ("multi_label", ("y", "x"))
    assert list(data.frame["label"][:3]) == [["y"], ["x", "y"], []]


def test_parquet_of_datasets_keeps_class_names_and_images(tmp_path):
    import datasets

    images = [Image.fromarray(np.full((5, 5, 3), i, np.uint8)) for i in range(20)]
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["b", "a"])})
    datasets.Dataset.from_dict({"image": images, "label": [0, 1] * 10}, features=features).to_parquet(
        tmp_path / "x.parquet"
    )
    data = load(train=str(tmp_path / "x.parquet"))
    assert data.modality == "image" and data.task.names == ("b", "a") and data.frame["label"][0] == "b"


def test_wrong_python_object_and_both_given(tmp_path):
    import datasets

    dataset = datasets.Dataset.from_dict({"text": texts(), "label": ["a", "b"] * 10})
    with pytest.raises(
        UserError, match="expected a datasets.Dataset or DatasetDict, or a pandas.DataFrame, found IterableDataset"
    ):
        load_data(DataConfig(), dataset.to_iterable_dataset())
    with pytest.raises(UserError, match="both were given"):
        load_data(DataConfig(train=str(tmp_path)), dataset)


# Identity


def test_ids_do_not_depend_on_order_or_on_appended_rows(tmp_path):
    labels = ["a", "b"] * 10
    first = load(train=table(tmp_path / "a.csv", text=texts(), label=labels)).frame
    shuffled = load(train=table(tmp_path / "b.csv", text=texts()[::-1], label=labels[::-1])).frame
    longer = load(train=table(tmp_path / "c.csv", text=texts(30), label=["a", "b"] * 15)).frame
    by_text = first.set_index("input")["id"]
    assert (shuffled.set_index("input")["id"].loc[by_text.index] == by_text).all()
    assert (longer.set_index("input")["id"].loc[by_text.index] == by_text).all()


def test_identical_inputs_have_different_ids(tmp_path):
    frame = load(train=table(tmp_path / "a.csv", text=texts(10) * 2, label=["a", "b"] * 10)).frame
    assert frame["id"].is_unique and frame["digest"].nunique() == 10
    assert sum(id_.endswith("#2") for id_ in frame["id"]) == 10


def test_id_column_is_used_when_unique(tmp_path):
    path = table(tmp_path / "a.csv", id=range(100, 120), text=texts(), label=["a", "b"] * 10)
    assert list(load(train=path).frame["id"]) == [str(i) for i in range(100, 120)]
    path = table(tmp_path / "b.csv", id=[1] * 20, text=texts(), label=["a", "b"] * 10)
    assert load(train=path).frame["id"].str.len().min() == 16


def test_fingerprint_follows_content_labels_and_pixels_not_order(tmp_path):
    labels = ["a", "b"] * 10
    prints = [
        load(train=table(tmp_path / "a.csv", text=texts(), label=labels)).fingerprint,
        load(train=table(tmp_path / "b.csv", text=texts()[::-1], label=labels[::-1])).fingerprint,
        load(train=table(tmp_path / "c.csv", text=[*texts(19), "other words"], label=labels)).fingerprint,
        load(train=table(tmp_path / "d.csv", text=texts(), label=["b", "b", *labels[2:]])).fingerprint,
    ]
    assert prints[0] == prints[1] and len(set(prints)) == 3
    before = load(train=str(picture_folder(tmp_path / "p"))).fingerprint
    picture(tmp_path / "p" / "cat" / "0.png", 777)
    assert load(train=str(tmp_path / "p")).fingerprint != before


def test_part_names_the_splits(tmp_path):
    data = load(train=table(tmp_path / "a.csv", text=texts(), label=["a", "b"] * 10))
    with pytest.raises(UserError, match="There is no split 'tset'. Did you mean 'test'"):
        data.part("tset")


@pytest.mark.parametrize("form", ["dataset", "csv"])
def test_a_test_part_without_labels_is_left_out_and_another_is_cut(tmp_path, form, caplog):
    """Benchmarks hide the labels of their test part: -1, or an empty column."""
    words = [f"{word} {other}" for word in ("tree", "river", "stone", "cloud", "moon") for other in "abcdefgh"]
    frame = pd.DataFrame({"text": words, "label": ["no", "yes"] * 20})
    hidden = pd.DataFrame({"text": ["a hidden one", "another that is hidden"]})
    if form == "csv":
        frame.to_csv(tmp_path / "train.csv", index=False)
        hidden.assign(label="").to_csv(tmp_path / "test.csv", index=False)
    else:
        import datasets

        names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
        coded = frame.assign(label=[0, 1] * 20)
        parts = {"train": coded, "test": hidden.assign(label=-1)}
        datasets.DatasetDict(
            {name: datasets.Dataset.from_dict(part.to_dict("list"), features=names) for name, part in parts.items()}
        ).save_to_disk(tmp_path)
    data = load(train=str(tmp_path))
    assert caplog.text.count("The test part has no labels: its 2 examples are left out") == 1
    assert len(data.frame) == 40 and len(data.part("test")) == 8 and data.task.names == ("no", "yes")


def test_a_competition_folder_trains_on_its_labelled_part(tmp_path, caplog):
    words = [f"{word} {other}" for word in ("tree", "river", "stone", "cloud", "moon") for other in "abcdefgh"]
    table(tmp_path / "train.csv", id=range(40), text=words, target=[0, 1] * 20)
    table(tmp_path / "test.csv", id=range(40, 42), text=["a hidden one", "another that is hidden"])
    table(tmp_path / "sample_submission.csv", id=range(40, 42), target=[0, 0])
    data = load(train=str(tmp_path))
    assert caplog.text.count("has no column 'target': its 2 examples are left out") == 1
    assert len(data.frame) == 40 and len(data.part("test")) == 8 and data.task.names == ("0", "1")
    table(tmp_path / "test.csv", id=range(40, 42), text=["a hidden one", "another"], answer=[0, 1])
    fails("has no column 'target', which the other parts have", train=str(tmp_path))


def test_single_examples_marked_as_unlabelled_are_left_out_of_a_dataset(tmp_path, caplog):
    """SNLI marks examples without a majority of annotators with -1."""
    import datasets

    names = datasets.Features({"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["no", "yes"])})
    part = {"text": texts(), "label": [0, 1] * 9 + [-1, -1]}
    data = load_data(DataConfig(), datasets.DatasetDict({"train": datasets.Dataset.from_dict(part, features=names)}))
    assert len(data.frame) == 18 and not data.skipped
    assert caplog.text.count("2 of 20 examples of the train part are marked as unlabelled (-1) and left out") == 1


def test_usual_names_of_splits_and_two_names_for_one(caplog):
    import datasets

    caplog.set_level(logging.INFO)
    parts = {
        name: datasets.Dataset.from_dict({"text": [f"{name} {text}" for text in texts()], "label": ["a", "b"] * 10})
        for name in ("train", "validation_mismatched", "validation_matched", "dev", "holdout")
    }
    frame = load_data(DataConfig(), datasets.DatasetDict(parts)).frame
    assert frame["split"].value_counts().to_dict() == {"train": 20, "validation": 20, "test": 20}
    assert frame["input"][frame["split"] == "validation"].str.startswith("validation_matched").all()
    assert "the splits validation_mismatched, dev are left out" in caplog.text


def test_a_split_column_that_is_not_understood_is_a_warning(tmp_path, caplog):
    columns = {"text": texts(), "label": ["a", "b"] * 10}
    known = ["Training"] * 12 + ["PublicTest"] * 4 + ["PrivateTest"] * 4
    given = load(train=table(tmp_path / "a.csv", **columns, split=known))
    assert given.frame["split"].value_counts().to_dict() == {"train": 12, "validation": 4, "test": 4}
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
    load(train=table(tmp_path / "b.csv", **columns, split=["train"] * 16 + ["later"] * 4))
    (warning,) = [record for record in caplog.records if record.levelno == logging.WARNING]
    assert "The division in column 'split' is ignored: later" in warning.getMessage()
    assert "Call its values train, validation and test" in warning.getMessage()


@pytest.mark.parametrize("written", ["run.json", "origin.json"])
def test_runs_inside_the_data_are_no_class(tmp_path, written, caplog):
    caplog.set_level(logging.INFO)
    root = picture_folder(tmp_path)
    for number in range(4):
        picture(root / "runs" / "pictures-probe" / "plots" / f"{number}.png", 90 + number)
    assert "runs" in load(train=str(root), on_error="skip").task.names  # a class may be called so
    write(root / "runs" / "pictures-probe" / written, "{}")
    caplog.clear()
    assert load(train=str(root)).task.names == ("cat", "dog")
    assert caplog.text.count(f"{root / 'runs' / 'pictures-probe'} is a run: its files are passed over") == 1


def test_folders_without_an_image_are_named_in_one_line(tmp_path, caplog):
    picture_folder(tmp_path / "train")
    picture_folder(tmp_path / "test", ("cat",))
    for folder in ("train/green", "test/dog", "validation"):
        (tmp_path / folder).mkdir()
    write(tmp_path / "train" / "weights" / "best.pt", "?")
    write(tmp_path / "train" / "about" / "README.md", "?")
    assert load(train=str(tmp_path)).task.names == ("cat", "dog")
    words = "folders without an image are no classes: test/dog, train/green, train/weights, validation."
    assert caplog.text.count(f"{tmp_path}: {words}") == 1


def test_the_working_directory_is_a_data_folder(tmp_path, monkeypatch, caplog):
    caplog.set_level(logging.INFO)
    picture_folder(tmp_path / "pets")
    monkeypatch.chdir(tmp_path / "pets")
    config = checked({"data": ".", "model": "any"})
    assert config.output_folder == Path("runs/pets-probe")
    picture(Path("runs/pets-probe/plots/curve.png"), 90)
    write(Path("runs/pets-probe/run.json"), "{}")
    data = load_data(config.data)
    assert data.task.names == ("cat", "dog") and len(data.frame) == 20
    assert len(load_inputs(["."], "image")) == 20 and inputs_modality(".") == "image"
    assert "the files of runs are passed over (runs/pets-probe)" in caplog.text
    assert len(load_inputs(["runs/pets-probe"], "image")) == 1  # named by the user


def test_a_folder_without_texts_names_its_tables(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "new.csv", "text,label")
    with pytest.raises(UserError, match=r"^\. holds no \.txt file\. If a table there holds .* name it: new\.csv\.$"):
        load_inputs(["."], "text")


@pytest.mark.skipif(images.HEIF, reason="this installation reads HEIC")
def test_a_table_of_heic_files_says_what_reads_them(tmp_path):
    for number in range(12):
        (tmp_path / f"{number}.HEIC").write_bytes(b"\0\0\0\x18ftypheic" + bytes(100))
    path = table(tmp_path / "t.csv", image=[f"{n}.HEIC" for n in range(12)], label=["a", "b"] * 6)
    fails("no image that Pillow knows (pip install pillow-heif reads HEIC)", train=path)
