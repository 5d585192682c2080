"""What `predict` takes: files, folders, globs, tables, texts on the line and standard input."""

import io

import pandas as pd
import pytest
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.data import load_inputs


@pytest.fixture
def pictures(tmp_path):
    for name in ("a.png", "b.JPG", "sub/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("a note", encoding="utf-8")
    return tmp_path


def test_image_file_folder_and_glob(pictures):
    def names(source):
        return [path.removeprefix(f"{pictures}/") for path in load_inputs([str(source)], "image")["input"]]

    assert names(pictures / "a.png") == ["a.png"]
    assert names(pictures) == ["a.png", "b.JPG", "sub/c.png"]
    assert names(pictures / "*.png") == ["a.png"]
    assert names(pictures / "**/*.png") == ["a.png", "sub/c.png"]


def test_several_sources_keep_their_order(pictures):
    frame = load_inputs([str(pictures / "b.JPG"), str(pictures / "a.png")], "image")
    assert list(frame["id"]) == [str(pictures / "b.JPG"), str(pictures / "a.png")]


def test_texts_on_the_line_and_in_files(pictures):
    frame = load_inputs(["How late is it?", "a/b or c.", str(pictures / "notes.txt")], "text")
    assert list(frame["input"]) == ["How late is it?", "a/b or c.", "a note"]
    assert list(load_inputs([str(pictures)], "text")["input"]) == ["a note"]
    assert list(load_inputs(["x" * 5000], "text")["input"]) == ["x" * 5000]


def test_table_with_found_and_named_column(tmp_path):
    texts = [f"some words to read {n}" for n in range(5)]
    pd.DataFrame({"text": texts, "other": texts[::-1], "n": range(5)}).to_csv(tmp_path / "t.csv", index=False)
    frame = load_inputs([str(tmp_path / "t.csv")], "text")
    assert list(frame["input"]) == texts and frame["id"][0] == "t.csv#1"
    assert list(load_inputs([str(tmp_path / "t.csv")], "text", ["other"])["input"]) == texts[::-1]
    pair = load_inputs([str(tmp_path / "t.csv")], "text", ["text", "other"])
    assert list(pair["input_pair"]) == texts[::-1]
    with pytest.raises(UserError, match="has no column 'txt'. Did you mean 'text'"):
        load_inputs([str(tmp_path / "t.csv")], "text", ["txt"])


def test_table_of_images(pictures):
    pd.DataFrame({"path": ["a.png", "sub/c.png"]}).to_csv(pictures / "t.csv", index=False)
    frame = load_inputs([str(pictures / "t.csv")], "image")
    assert list(frame["input"]) == [str(pictures / "a.png"), str(pictures / "sub/c.png")]


def test_standard_input(monkeypatch, pictures):
    monkeypatch.setattr("sys.stdin", io.StringIO("first\nsecond\n"))
    frame = load_inputs(["-"], "text")
    assert frame.to_dict("list") == {"id": ["line 1", "line 2"], "input": ["first", "second"]}
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{pictures}/a.png\n"))
    assert list(load_inputs(["-"], "image")["input"]) == [f"{pictures}/a.png"]


@pytest.mark.parametrize(
    ("source", "modality", "match"),
    [
        ("b.png", "image", "There is no file or folder .*b.png .*Did you mean 'a.png'"),
        ("*.webp", "image", "holds no image"),
        ("note.txt", "text", "Did you mean 'notes.txt'"),
        ("none.csv", "text", "There is no file or folder .*none.csv"),
        ("sub", "text", "holds no .txt file"),
    ],
)
def test_missing_inputs(pictures, source, modality, match):
    with pytest.raises(UserError, match=match):
        load_inputs([str(pictures / source)], modality)


def test_nothing_and_mixed_inputs(tmp_path):
    with pytest.raises(UserError, match="There is nothing to predict"):
        load_inputs([], "text")
    pd.DataFrame({"text_a": ["one two three"], "text_b": ["four five six"]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserError, match="Some inputs are pairs of texts and some are single texts"):
        load_inputs(["a text", str(tmp_path / "t.csv")], "text")


@pytest.mark.parametrize("modality", ["text", "image"])
def test_the_hint_for_a_column_is_an_option_of_predict(tmp_path, modality):
    pd.DataFrame({"name": ["anna", "bob"], "x": [1, 2]}).to_csv(tmp_path / "t.csv", index=False)
    with pytest.raises(UserError, match="Name it with --column") as error:
        load_inputs([str(tmp_path / "t.csv")], modality)
    assert "data.input" not in str(error.value)
