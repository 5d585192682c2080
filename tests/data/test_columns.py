"""Columns, labels and values on the command line, as other people's data have them."""

import json
import logging

import pandas as pd
import pytest
from typer.testing import CliRunner

from hftransfer.cli.commands import app
from hftransfer.config import parse_overrides
from hftransfer.core.errors import UserError
from hftransfer.data import load_data
from hftransfer.data.config import DataConfig
from hftransfer.data.labels import read_labels
from hftransfer.data.values import number
from tests.support import tiny


def texts(count=20):
    return [f"a sentence about subject number {index}" for index in range(count)]


def table(path, **columns):
    frame = pd.DataFrame(columns)
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.suffix == ".jsonl":
        rows = frame.astype(object).where(frame.notna(), None).to_dict("records")
        path.write_text("\n".join(json.dumps(row) for row in rows), encoding="utf-8")
    elif path.suffix == ".parquet":
        frame.to_parquet(path, index=False)
    else:
        frame.to_csv(path, index=False, sep="\t" if path.suffix == ".tsv" else ",")
    return str(path)


def load(**config):
    return load_data(DataConfig(**config))


def fails(**config):
    with pytest.raises(UserError) as error:
        load(**config)
    return str(error.value)


def labels_of(*values, **how):
    task, labels = read_labels(pd.DataFrame({"label": pd.Series(values, dtype=object)}), None, None, None, **how)
    return task, list(labels)


# Names of columns


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
def test_names_match_across_splits_whatever_their_case(tmp_path, caplog, suffix):
    caplog.set_level(logging.INFO)
    table(tmp_path / f"kc/train{suffix}", Text=texts(), Label=["a", "b"] * 10)
    table(tmp_path / f"kc/test{suffix}", text=texts()[:4], LABEL=["a", "b"] * 2)
    data = load(train=str(tmp_path / "kc"))
    assert list(data.part("test")["input"]) == texts()[:4] and list(data.part("test")["label"]) == ["a", "b"] * 2
    assert "column 'text' is read as 'Text', column 'LABEL' is read as 'Label'." in caplog.text


def test_a_part_without_the_column_is_named(tmp_path):
    table(tmp_path / "kc/train.csv", Text=texts(), Label=["a", "b"] * 10)
    table(tmp_path / "kc/test.csv", Texts=texts()[:4], Label=["a", "b"] * 2)
    assert fails(train=str(tmp_path / "kc")) == (
        f"The test part of {tmp_path / 'kc'} has no column 'Text', which the other parts have. Did you mean 'Texts'? "
        "Rename it, or name the parts with data.train and data.test."
    )


def test_named_columns_match_whatever_their_case(tmp_path):
    path = table(tmp_path / "t.csv", Text=texts(), Tag=["a", "b"] * 10, Kind=["x", "y"] * 10)
    assert load(train=path, input="text", label="kind").task.names == ("x", "y")
    path = table(tmp_path / "u.csv", text=texts(), tag=["a", "b"] * 10, TAG=["x", "y"] * 10)
    assert load(train=path, label="TAG").task.names == ("x", "y")
    assert "has no column 'Tag'" in fails(train=path, label="Tag")


def test_a_second_table_is_read_by_the_columns_of_the_first(tmp_path):
    first = table(tmp_path / "a.csv", tweet_content=texts(), label=["a", "b"] * 10)
    second = table(tmp_path / "b.csv", text=texts()[::-1], tweet_content=texts(), label=["a", "b"] * 10)
    assert list(load(train=first, test=second).part("test")["input"]) == texts()


@pytest.mark.parametrize(("name", "values"), [
    ("Unnamed: 0", range(20)), ("__index_level_0__", range(20)), ("index", range(20)), ("ID", range(100, 120)),
    ("number", range(1, 21)), ("guid", ["x", "y"] * 10),
])  # fmt: skip
def test_what_numbers_the_examples_is_no_label(tmp_path, name, values):
    path = table(tmp_path / "t.csv", **{name: values}, text=texts(), airline_sentiment=["good", "bad"] * 10)
    assert load(train=path).task.names == ("bad", "good")


def test_the_hint_for_a_column_can_be_typed(tmp_path):
    path = table(tmp_path / "t.csv", **{"Is it: good": ["a", "b"] * 10, "so so": ["x", "y"] * 10}, text=texts())
    message = fails(train=path)
    assert "Name it with data.label='Is it: good' or another of these:" in message
    assert load(train=path, label="Is it: good").task.names == ("a", "b")


def test_texts_that_are_left_out_are_said(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    load(train=table(tmp_path / "t.csv", label=["a", "b"] * 10, Title=texts(), Description=texts()[::-1]))
    assert "Column 'Title' is taken as the input (not 'Description'); data.input says otherwise." in caplog.text


def test_texts_without_spaces_under_names_of_any_language(tmp_path):
    contents = ["今天天气很好", "我不喜欢这个", "价格太贵了吧", "服务非常周到"]
    contents = [f"{text}第{'一二三四五'[i % 5]}次" for i, text in enumerate(contents * 5)]
    data = load(train=table(tmp_path / "t.csv", 内容=contents, 标签=["正面评价", "负面评价"] * 10))
    assert list(data.frame["input"]) == contents and data.task.names == ("正面评价", "负面评价")


# Labels


def test_a_number_is_one_label_however_it_is_written(tmp_path):
    first = table(tmp_path / "n/train.csv", text=texts(), label=["0", "1"] * 10)
    table(tmp_path / "n/test.csv", text=texts()[:4], label=["0.0", "1.0"] * 2)
    assert load(train=str(tmp_path / "n")).task.names == ("0", "1")
    assert load(train=first, test=str(tmp_path / "n/test.csv")).task.names == ("0", "1")
    mixed = table(tmp_path / "m.csv", text=texts(), label=["1", "1.0", "2", "2."] * 5)
    assert load(train=mixed).task.names == ("1", "2")
    assert load(train=mixed, task="single_label").task.names == ("1", "1.0", "2", "2.")  # said to be names


@pytest.mark.parametrize("codes", [["0_0", "0_1", "1_0", "3_2"], ["1e5", "2e3", "3e1", "4e4"], ["007", "07", "7", "x"]])
def test_codes_are_not_quantities(codes):
    task, labels = labels_of(*codes * 3)
    assert task.type == "single_label" and labels == codes * 3


@pytest.mark.parametrize("text", ["3", " -3.5 ", "1e-3", "2.5E+4", ".5", "4.", "1e+05", "3.5e2"])
def test_numbers_are_read_as_they_are_written(text):
    assert number(text) == float(text)


@pytest.mark.parametrize("text", ["1_2", "3e2", "nan", "inf", "0x10", "1,5", "", "-", "e5", "True"])
def test_what_is_no_number(text):
    assert number(text) is None


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".jsonl", ".parquet"])
@pytest.mark.parametrize("how", [{}, {"task": "multi_label"}, {"separator": "|"}])
def test_an_empty_cell_among_joined_labels_is_the_empty_set(tmp_path, caplog, suffix, how):
    caplog.set_level(logging.INFO)
    path = table(tmp_path / f"ml{suffix}", text=texts(), tags=["a", "b", "a|b", ""] * 5)
    data = load(train=path, **how)
    assert data.task.type == "multi_label" and list(data.frame["label"]) == [["a"], ["b"], ["a", "b"], []] * 5
    assert "Column 'tags': 5 of 20 cells are empty, and are read as: no label applies." in caplog.text


def test_a_part_without_any_label_is_unlabelled():
    parts = pd.Series(["train"] * 4 + ["test"] * 2)
    values = pd.DataFrame({"tags": pd.Series(["a", "b", "a|b", "", "", None], dtype=object)})
    _, labels = read_labels(values, None, None, None, parts)
    assert list(labels) == [["a"], ["b"], ["a", "b"], [], None, None]


def test_a_missing_list_is_not_an_empty_one():
    _, labels = labels_of(["a"], ["a", "b"], [], None)
    assert labels == [["a"], ["a", "b"], [], None]


def test_tags_joined_by_spaces_are_offered_and_read(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    tags = ["clear primary", "primary water", "clear water", "haze primary", "haze water", "clear haze"]
    path = table(tmp_path / "t.csv", text=texts(24), tags=tags * 4)
    assert load(train=path).task.type == "single_label"
    assert (
        "Column 'tags': 4 words make 6 classes. If they are labels joined by spaces: data.separator=' '." in caplog.text
    )
    assert load(train=path, separator=" ").task.names == ("clear", "haze", "primary", "water")


def test_names_of_folders_and_class_labels_are_names_whatever_they_are(tmp_path):
    assert labels_of("nan", "NA", "None", "null", "und")[1] == [None, "NA", "None", "null", "und"]  # in a table
    declared = pd.DataFrame({"label": ["nan", "NA", "None"]}, dtype=object)
    assert read_labels(declared, None, None, ["nan", "NA", "None"])[0].names == ("nan", "NA", "None")
    tiny.image_folder(tmp_path / "f")
    folders = sorted((tmp_path / "f").iterdir())
    for folder, name in zip(folders, ("1", "nan", "None"), strict=True):
        folder.rename(tmp_path / "f" / name)
    assert set(load(train=str(tmp_path / "f")).task.names) == {"1", "nan", "None"}


# Values on the command line


@pytest.mark.parametrize(("pair", "value"), [
    ("data.label=no", "no"), ("data.label=1", "1"), ("data.label=2024-01-01", "2024-01-01"), ("data.label=#", "#"),
    ("data.separator= ", " "), ("data.separator=,", ","), ("data.separator=|", "|"), ("data.separator=: ", ": "),
    ("data.label=Is it: good", "Is it: good"), ("data.input=[no,1]", ["no", "1"]), ("data.label='[a]'", "[a]"),
    ("output=1", "1"), ("data=7", "7"), ("model=1e3", "1e3"), ("data.split.group=yes", "yes"), ("data.test=null", None),
    ("training.imbalance=none", "none"), ("data.split.test=0.5", 0.5), ("training.bf16=no", False), ("head.layer=3", 3),
    ("data={train: 7}", {"train": 7}),
])  # fmt: skip
def test_a_text_option_keeps_what_was_typed(pair, value):
    assert list(parse_overrides([pair]).values()) == [value]


def test_the_first_argument_may_be_an_override(tmp_path):
    path = table(tmp_path / "t.csv", text=texts(), label=["a", "b"] * 10)
    by_position = CliRunner().invoke(app, ["doctor", path, "--json"])
    by_name = CliRunner().invoke(app, ["doctor", f"data.train={path}", "data.label=label", "--json"])
    assert by_name.stdout == by_position.stdout and json.loads(by_name.stdout)
    with pytest.raises(UserError, match="Name the training data: hftransfer COMMAND DATA, or data.train=DATA."):
        CliRunner().invoke(app, ["train", "--model", "x"], catch_exceptions=False)


def test_a_file_may_be_called_like_an_override(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(tmp_path / "a=b.csv", text=texts(), label=["a", "b"] * 10)
    result = CliRunner().invoke(app, ["doctor", "a=b.csv"])
    assert result.exit_code in (0, 1) and "a=b.csv" in result.output


def test_a_column_of_splits_by_another_name(tmp_path):
    words = (["Training"] * 4 + ["PublicTest", "PrivateTest"]) * 5
    frame = pd.DataFrame(
        {"text": [f"a face number {i} here" for i in range(30)], "kind": ["sad", "glad"] * 15, "Usage": words}
    )
    frame.to_csv(tmp_path / "t.csv", index=False)
    data = load_data(DataConfig(train=str(tmp_path / "t.csv")))
    assert data.frame["split"].value_counts().to_dict() == {"train": 20, "validation": 5, "test": 5}
    assert data.task.names == ("glad", "sad")
    named = load_data(DataConfig(train=str(tmp_path / "t.csv"), label="Usage"))
    assert named.task.names == ("PrivateTest", "PublicTest", "Training")
    frame.assign(Usage=["often", "never"] * 15).to_csv(tmp_path / "u.csv", index=False)
    with pytest.raises(UserError, match="unclear which column holds the label"):
        load_data(DataConfig(train=str(tmp_path / "u.csv")))


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize("part", ["test", "validation"])
def test_a_part_without_labels_is_one_sentence(tmp_path, suffix, part):
    rows = pd.DataFrame(
        {"id": range(20), "text": texts(), "age": [20 + i % 7 for i in range(20)], "label": ["x", "y"] * 10}
    )

    def written(frame, name):
        path = tmp_path / f"{name}.{suffix}"
        {"csv": lambda: frame.to_csv(path, index=False), "parquet": lambda: frame.to_parquet(path),
         "jsonl": lambda: frame.to_json(path, orient="records", lines=True)}[suffix]()  # fmt: skip
        return str(path)

    train = written(rows, "train")
    unlabelled = written(rows.drop(columns="label"), "new")
    words = f"{unlabelled} has no column 'label', so data.{part} cannot be evaluated on it. Leave data.{part} out"
    for options in ({}, {"label": "label"}):
        with pytest.raises(UserError) as error:
            load_data(DataConfig(train=train, **{part: unlabelled}, **options))
        assert str(error.value).startswith(words) and f"hftransfer predict RUN {unlabelled}. " in str(error.value)
        assert str(error.value).endswith("there are 'id', 'text', 'age'.")
    other = written(rows.rename(columns={"label": "category"}), "other")
    with pytest.raises(UserError, match="has no column 'label', so .* there are 'id', 'text', 'age', 'category'.$"):
        load_data(DataConfig(train=train, label="label", **{part: other}))
    data = load_data(DataConfig(train=train, **{part: other}))
    assert (data.frame["split"] == part).sum() == 20


@pytest.mark.parametrize("value", [1e211, -1e211, "1e300", float("inf"), "inf", float("nan")])
def test_what_cannot_be_squared_is_no_number(value):
    """Found by the property test of tables: the spread of such labels overflowed in the doctor."""
    assert number(value) is None and number(9e99) == 9e99
