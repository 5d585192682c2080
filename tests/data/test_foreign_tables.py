"""Tables and folders as other programs and people write them: quotes, headers, delimiters, layouts, pointers, shards."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hftransfer.core import image_files
from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, load_data
from hftransfer.data.inputs import load_inputs
from hftransfer.data.readers import from_python, read_source
from hftransfer.modalities import kind_of
from hftransfer.models.loading import load_checkpoint
from hftransfer.models.references import ModelConfig
from hftransfer.tasks import SingleLabel
from tests.support import tiny

LFS = "version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 12345\n"


def read(path):
    (frame,) = read_source(str(path)).parts.values()
    return frame


def fails(path):
    with pytest.raises(UserError) as error:
        read(path)
    return str(error.value)


def write(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def lines(delimiter, count=20):
    return [f"a plain sentence number {i}{delimiter}{i % 2}" for i in range(count)]


# Quotes and line ends


@pytest.mark.parametrize(("suffix", "delimiter"), [("tsv", "\t"), ("csv", ","), ("csv", ";")])
def test_a_stray_quote_swallows_no_rows(tmp_path, caplog, suffix, delimiter):
    rows = lines(delimiter)
    rows[3] = f'"Quoted start of a sentence{delimiter}1'
    rows[9] = f'and its end"{delimiter}0'
    frame = read(write(tmp_path / f"q.{suffix}", "\n".join([f"sentence{delimiter}label", *rows])))
    assert len(frame) == 20 and frame["sentence"][3] == '"Quoted start of a sentence' and frame["label"][3] == "1"
    assert "a quote in row 4 swallowed the rows below; quotes are read as plain characters." in caplog.text


def test_a_stray_quote_among_values_with_the_delimiter_is_named(tmp_path):
    rows = lines(",")
    rows[1] = '"one, two, three",1'
    rows[3], rows[9] = '"Quoted start,1', 'its end",0'
    message = fails(write(tmp_path / "q.csv", "\n".join(["sentence,label", *rows])))
    assert "row 4: a value holds line ends and the delimiter ',', so it swallows the rows below." in message


@pytest.mark.parametrize("text", ["Dear all,\nthank you, bye", "two\nlines", "a\n\nb, c\nd"])
def test_texts_of_several_lines_stay_one_value(tmp_path, text):
    frame = pd.DataFrame({"text": [text, "other text", text, "more"] * 3, "label": ["yes", "no", "yes", "no"] * 3})
    frame.to_csv(tmp_path / "t.csv", index=False)
    pd.testing.assert_frame_equal(read(tmp_path / "t.csv"), frame, check_dtype=False)


@pytest.mark.parametrize("ends", ["\n", "\r\n", "\r"])
def test_line_ends_of_all_systems(tmp_path, ends):
    assert len(read(write(tmp_path / "t.csv", ends.join(["text,label", *lines(",")])))) == 20


def test_a_carriage_return_inside_of_a_text_splits_no_row(tmp_path):
    rows = lines(",")
    rows[2] = "one\rtwo,1"
    frame = read(write(tmp_path / "t.csv", "\n".join(["text,label", *rows])))
    assert len(frame) == 20 and frame["text"][2] == "one\rtwo"


def test_quotes_escaped_by_backslashes(tmp_path):
    rows = [f'"he said \\"hi, {i}\\" to us",{i % 2}' for i in range(8)]
    frame = read(write(tmp_path / "t.csv", "\n".join(["text,label", *rows])))
    assert frame["text"][1] == 'he said "hi, 1" to us' and frame["label"][1] == "1"


@pytest.mark.parametrize(("delimiter", "suffix"), [(",", "csv"), (";", "csv"), ("\t", "tsv")])
@pytest.mark.parametrize("inner", ["hi, {}; so", "well\\'s {}, no", "it''s {}", 'he said "{}"', "plain {}"])
def test_values_in_single_quotes(tmp_path, caplog, delimiter, suffix, inner):
    caplog.set_level(logging.INFO)
    rows = [f"'{inner.format(i)}'{delimiter}'{'ab'[i % 2]}'" for i in range(8)]
    frame = read(write(tmp_path / f"t.{suffix}", "\n".join([f"'text'{delimiter}'label'", *rows])))
    assert list(frame.columns) == ["text", "label"] and set(frame["label"]) == {"a", "b"} and len(frame) == 8
    assert frame["text"][3] == inner.format(3).replace("\\'", "'").replace("''", "'")
    assert "values stand in single quotes" in caplog.text


def test_apostrophes_are_no_quotes(tmp_path):
    rows = [f"'tis the season number {i},{i % 2}" if i in (2, 5) else f"don't {i},{i % 2}" for i in range(8)]
    frame = read(write(tmp_path / "t.csv", "\n".join(["text,label", *rows])))
    assert len(frame) == 8 and frame["text"][2] == "'tis the season number 2"
    rows[3] = "one, two,1"
    message = fails(write(tmp_path / "t.csv", "\n".join(["text,label", *rows])))
    assert "A value that holds the delimiter ',' has to stand in double quotes." in message


# Headers and delimiters


def test_a_table_without_a_header_keeps_its_first_example(tmp_path, caplog):
    sms = "\n".join(f"{'ham' if i % 3 else 'spam'}\tGo until jurong point number {i}" for i in range(24))
    frame = read(write(tmp_path / "sms.tsv", sms))
    assert len(frame) == 24 and list(frame.columns) == ["column_1", "column_2"] and frame["column_1"][0] == "spam"
    assert "the first row looks like an example ('spam' also stands below)" in caplog.text
    news = "\n".join(f'"{1 + i % 4}","Wall St. {i} falls","Short sellers, number {i}, are back"' for i in range(20))
    assert len(read(write(tmp_path / "news.csv", news))) == 20
    assert load_data(DataConfig(train=str(tmp_path / "sms.tsv"))).task.names == ("ham", "spam")


def test_headers_stay_headers(tmp_path):
    frame = pd.DataFrame({"0": ["a b c"] * 6, "1": [0, 1] * 3, "2": [1, 2] * 3, "label": ["x", "label2"] * 3})
    frame.to_csv(tmp_path / "t.csv", index=False)
    assert list(read(tmp_path / "t.csv").columns) == ["0", "1", "2", "label"]


@pytest.mark.parametrize("delimiter", [";", "\t", "|"])
def test_delimiters(tmp_path, delimiter):
    frame = read(write(tmp_path / "t.csv", "\n".join([f"text{delimiter}label", *lines(delimiter)])))
    assert list(frame.columns) == ["text", "label"] and len(frame) == 20


def test_the_first_line_of_excel_names_the_delimiter(tmp_path):
    frame = read(write(tmp_path / "t.csv", "\r\n".join(["sep=;", "text;label", *lines(";")])))
    assert list(frame.columns) == ["text", "label"] and len(frame) == 20


def test_decimal_commas_are_numbers(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    rows = [f"a sentence of words {i};0,{i + 10};{i},5 m" for i in range(20)]
    frame = read(write(tmp_path / "t.csv", "\n".join(["text;score;size", *rows])))
    assert frame["score"][4] == "0.14" and frame["size"][4] == "4,5 m"
    assert "decimal commas in 'score' are read as points." in caplog.text
    assert load_data(DataConfig(train=str(tmp_path / "t.csv"), label="score")).task.type == "regression"


def test_points_and_commas_of_numbers_in_columns_that_commas_do_not_delimit(tmp_path, caplog):
    rows = [f"a sentence of words {i};1.{i + 100},5;1,{i + 100}" for i in range(20)]
    frame = read(write(tmp_path / "t.csv", "\n".join(["text;price;sold", *rows])))
    assert frame["price"][4] == "1104.5" and frame["sold"][4] == "1.104"
    assert caplog.text.count("if commas in 'sold' separate thousands, such as in 1,100, take them out.") == 1
    assert "if commas in 'price'" not in caplog.text


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("written", ["{:,}", "{:,.2f}"])
def test_commas_between_thousands(tmp_path, caplog, suffix, written):
    caplog.set_level(logging.INFO)
    numbers = [37 + 4111 * i * i for i in range(30)]
    frame = pd.DataFrame({"text": [f"a house of size {i}" for i in range(30)], "price": map(written.format, numbers)})
    path = tmp_path / f"t.{suffix}"
    {"csv": lambda: frame.to_csv(path, index=False), "tsv": lambda: frame.to_csv(path, index=False, sep="\t"),
     "jsonl": lambda: frame.to_json(path, orient="records", lines=True), "parquet": lambda: frame.to_parquet(path)}[suffix]()  # fmt: skip
    for options in ({}, {"task": "regression"}):
        data = load_data(DataConfig(train=str(path), label="price", **options))
        assert data.task.type == "regression" and sorted(data.frame["label"]) == numbers
    assert "the commas separate thousands, such as in " in caplog.text


@pytest.mark.parametrize("labels", [["101", "205", "101,205", "205,310", "310"], ["1,200", "2500", "7,100"]])
def test_commas_that_may_join_codes_separate_no_thousands(tmp_path, labels):
    rows = pd.DataFrame({"text": [f"a house of size {i}" for i in range(40)], "label": (labels * 20)[:40]})
    rows.to_csv(tmp_path / "t.csv", index=False)
    data = load_data(DataConfig(train=str(tmp_path / "t.csv")))
    assert data.task.type == ("multi_label" if "205" in labels else "single_label")


def test_spaces_after_the_delimiter(tmp_path):
    rows = [f'a sentence {i}, "yes, sir"' if i % 2 else f"a sentence {i}, no" for i in range(8)]
    frame = read(write(tmp_path / "t.csv", "\n".join(["text, label", *rows])))
    assert set(frame["label"]) == {"yes, sir", "no"} and list(frame.columns) == ["text", "label"]


# JSON


def records():
    return [{"text": f"a sentence number {i}", "label": "ab"[i % 2]} for i in range(20)]


@pytest.mark.parametrize("orient", ["records", "columns", "index", "split", "table", "list", "lines", "data"])
def test_layouts_of_json(tmp_path, orient):
    frame, path = pd.DataFrame(records()), tmp_path / "t.json"
    if orient == "lines":
        frame.to_json(path, orient="records", lines=True)
    elif orient == "list":
        path.write_text(json.dumps(frame.to_dict("list")))
    elif orient == "data":
        path.write_text(json.dumps({"version": 2, "data": records()}))
    else:
        frame.to_json(path, orient=orient)
    found = read(path)
    assert found["text"].tolist() == frame["text"].tolist() and found["label"].tolist() == frame["label"].tolist()


def test_broken_json_lines_name_the_line(tmp_path):
    rows = [json.dumps(row) for row in records()]
    rows[4] = rows[4][:-1]
    assert "line 5 is not valid JSON" in fails(write(tmp_path / "t.json", "\n".join(rows)))


def test_nested_values_are_named(tmp_path):
    studio = [{"id": i, "data": {"text": f"words {i}"}, "annotations": [{"result": [1]}]} for i in range(4)]
    message = fails(write(tmp_path / "t.json", json.dumps(studio)))
    assert "The values are nested (data, annotations), such as data.text: flatten them first" in message
    rows = [row | {"label": {"name": row["label"], "score": 0.9}} for row in records()]
    path = write(tmp_path / "l.json", json.dumps(rows))
    with pytest.raises(
        UserError,
        match="The label column 'label' holds objects, .* flatten them first, to a column with the value of 'name'",
    ):
        load_data(DataConfig(train=str(path)))


# Clones of the Hub


@pytest.mark.parametrize("inside", ["", "data"])
@pytest.mark.parametrize("suffix", ["parquet", "csv", "jsonl"])
def test_a_clone_of_a_data_set_of_the_hub(tmp_path, inside, suffix):
    folder = tmp_path / "repo" / inside
    folder.mkdir(parents=True)
    write(tmp_path / "repo" / "README.md", "# data")
    frame = pd.DataFrame(records())
    for name, rows in {
        "train-00000-of-00002": frame[:8],
        "train-00001-of-00002": frame[8:14],
        "validation-00000-of-00001": frame[14:],
    }.items():
        file = folder / f"{name}.{suffix}"
        {"parquet": rows.to_parquet, "csv": lambda f, r=rows: r.to_csv(f, index=False),
         "jsonl": lambda f, r=rows: r.to_json(f, orient="records", lines=True)}[suffix](file)  # fmt: skip
    parts = read_source(str(tmp_path / "repo")).parts
    assert {split: len(rows) for split, rows in parts.items()} == {"train": 14, "validation": 6}


@pytest.mark.parametrize("suffix", ["csv", "parquet", "json", "jsonl", "tsv"])
def test_pointers_of_git_lfs_are_named(tmp_path, suffix):
    path = write(tmp_path / f"t.{suffix}", LFS)
    assert fails(path) == f"{path} is a Git LFS pointer, not the file itself: run `git lfs pull` in its repository."


def test_pointers_in_place_of_pictures_and_weights(tmp_path):
    tiny.image_folder(tmp_path / "pics", per_class=3)
    write(tmp_path / "pics" / "red" / "000.png", LFS)
    with pytest.raises(UserError, match="it is a Git LFS pointer, not the file itself: run `git lfs pull`"):
        load_data(DataConfig(train=str(tmp_path / "pics")))
    model = tiny.TEXT_FAMILIES["bert"](tmp_path / "m")
    write(model / "model.safetensors", LFS)
    with pytest.raises(UserError, match="model.safetensors is a Git LFS pointer"):
        load_checkpoint(ModelConfig(name=str(model)), kind_of("text"), SingleLabel(("a", "b")))


# Objects of Python


def test_a_data_frame_is_data():
    data = load_data(DataConfig(), pd.DataFrame(records()).set_index(np.arange(20) * 3))
    assert len(data.frame) == 20 and data.task.names == ("a", "b")


def test_streaming_data_sets_are_refused_alike():
    import datasets

    rows = datasets.Dataset.from_list(records())
    for given in (rows.to_iterable_dataset(), datasets.IterableDatasetDict({"train": rows.to_iterable_dataset()})):
        with pytest.raises(UserError, match="A streaming data set has to be downloaded first"):
            from_python(given)


def test_minus_one_in_a_list_of_class_labels_is_a_missing_label():
    import datasets

    features = datasets.Features(
        {"text": datasets.Value("string"), "labels": datasets.List(datasets.ClassLabel(names=["a", "b"]))}
    )
    rows = [{"text": f"a sentence of words {i}", "labels": [i % 2]} for i in range(20)] + [
        {"text": "a last sentence here", "labels": [-1]}
    ]
    with pytest.raises(UserError, match="row 21: the label is missing"):
        load_data(DataConfig(), datasets.Dataset.from_list(rows, features=features))


# Pictures that a table names in its own way


@pytest.mark.parametrize(("column", "name"), [
    ("id", "{:05d}"), ("image_id", "{:05d}.jpg"), ("path", "train\\{:05d}.jpg"), ("file", "elsewhere/{:05d}"),
])  # fmt: skip
def test_pictures_are_found_below_the_table(tmp_path, caplog, column, name):
    caplog.set_level(logging.INFO)
    for number in range(12):
        write(tmp_path / "train" / f"{number:05d}.jpg", b"")
        Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(tmp_path / "train" / f"{number:05d}.jpg")
    rows = pd.DataFrame({column: [name.format(number) for number in range(12)], "breed": ["cat", "dog"] * 6})
    rows.to_csv(tmp_path / "labels.csv", index=False)
    if "elsewhere" in name:
        with pytest.raises(UserError):
            load_data(DataConfig(train=str(tmp_path / "labels.csv"), input=column, modality="image"))
        return
    data = load_data(DataConfig(train=str(tmp_path / "labels.csv")))
    assert sorted(data.frame["input"]) == [str(tmp_path / "train" / f"{number:05d}.jpg") for number in range(12)]
    assert "12 images are found by name below" in caplog.text
    asked = load_inputs([str(tmp_path / "labels.csv")], "image")
    assert sorted(asked["input"]) == sorted(data.frame["input"])


def test_a_name_that_two_pictures_have_is_not_guessed(tmp_path):
    for folder in ("a", "b"):
        for number in range(4):
            (tmp_path / folder).mkdir(exist_ok=True)
            Image.new("RGB", (40, 40), (20 * number, 0, 0)).save(tmp_path / folder / f"{number}.jpg")
    pd.DataFrame({"image": [f"{i}.jpg" for i in range(4)], "label": ["x", "y"] * 2}).to_csv(
        tmp_path / "t.csv", index=False
    )
    with pytest.raises(UserError, match="there is no such file"):
        load_data(DataConfig(train=str(tmp_path / "t.csv")))


# Files that are passed over


def test_photos_that_cannot_be_read_are_counted(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(image_files, "SUFFIXES", image_files.SUFFIXES - {".heic"})
    data = tiny.image_folder(tmp_path / "heic", ("red", "blue"), per_class=6)
    for label, count in (("red", 5), ("blue", 2)):
        for number in range(count):
            write(data / label / f"IMG_{number}.HEIC", b"ftypheic")
    write(data / "red" / "notes.txt", "x")
    load_data(DataConfig(train=str(data)))
    words = (
        "7 files are passed over, as they are no images that can be read (.heic 7). pip install pillow-heif reads HEIC."
    )
    assert f"{data}: {words} Most in: red 5, blue 2." in caplog.text
    caplog.clear()
    assert len(load_inputs([str(data)], "image")) == 12 and words in caplog.text
    for file in data.rglob("*.png"):
        file.unlink()
    with pytest.raises(UserError, match=r"holds no image.*7 files are passed over"):
        load_data(DataConfig(train=str(data)))


def test_files_that_stand_beside_pictures_are_no_matter(tmp_path, caplog):
    data = tiny.image_folder(tmp_path / "pics", ("red", "blue"), per_class=6)
    write(data / "red" / "labels.csv", "a,b")
    Image.new("RGB", (40, 40)).save(data / "red" / "UPPER.JPG")
    assert len(load_data(DataConfig(train=str(data))).frame) == 13 and "passed over" not in caplog.text
