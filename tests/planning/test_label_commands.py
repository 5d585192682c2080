"""The commands `curve` and `next`: from inputs to answers, and what they say to mistakes."""

import json
import logging

import pandas as pd
import pytest
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.planning.labels.pool import next_to_label
from tests.behaviour.test_cli import call
from tests.support import tiny


@pytest.fixture(scope="module")
def runs(tiny_run):
    return {kind: tiny_run("probe", kind) for kind in ("image", "text-multi", "text-regression", "pair")}


def test_next_images_on_the_command_line(monkeypatch, capsys, caplog, tmp_path, runs):
    pool = tiny.image_folder(tmp_path / "pool", per_class=5, size=40)
    known = pd.read_parquet(runs["image"] / "splits.parquet")["input"].iloc[0]
    (pool / "known.png").write_bytes(open(known, "rb").read())
    (pool / "copy.png").write_bytes((pool / "red" / "000.png").read_bytes())
    (pool / "broken.png").write_bytes(b"\x89PNG broken")
    output = tmp_path / "next.csv"
    code, out, err = call(monkeypatch, capsys, "next", pool, "--run", runs["image"], "-n", 4, "--output", output)
    assert code == 0, err
    assert out == f"4 rows to label in {output}\n"
    assert "1 of 18 rows of the pool cannot be read: left out." in err
    assert "1 of 18 rows of the pool have labels already: left out." in err
    assert "1 of 18 rows of the pool are copies of others: left out." in err
    found = pd.read_csv(output)
    assert list(found.columns) == ["rank", "id", "reason", "prediction", "doubt", "stands_for"]
    assert list(found["rank"]) == [1, 2, 3, 4] and found["reason"].str.startswith("between ").all()
    assert not found["id"].str.contains("known|broken").any()


def test_a_pool_that_is_not_there_is_not_taken_for_a_text(monkeypatch, capsys, tmp_path, runs):
    code, _, err = call(monkeypatch, capsys, "next", "starter/bbc", "--run", runs["text-multi"])
    assert code == 2 and err.endswith(
        "There is no 'starter/bbc': a pool is a folder, a glob, a table, or - for the lines of standard input.\n"
    )


def test_one_picture_is_a_pool(monkeypatch, capsys, tmp_path, runs):
    Image.new("RGB", (40, 40), "purple").save(tmp_path / "one.png")
    code, out, err = call(monkeypatch, capsys, "next", tmp_path / "one.png", "--run", runs["image"], "--json")
    assert code == 0 and len(json.loads(out)) == 1, err


def test_more_than_the_pool_has(monkeypatch, capsys, tmp_path, runs):
    table = tiny.text_table(tmp_path / "new.csv", "multi_label", rows=6, seed=5)
    code, out, err = call(monkeypatch, capsys, "next", table, "--run", runs["text-multi"], "--column", "text", "--json")
    found = json.loads(out)
    assert code == 0 and "50 rows were asked for, the pool has 6: all are taken." in err
    assert len(found) == 6 and all(row["reason"].startswith("unsure of ") for row in found)
    assert {row["id"] for row in found} == {f"new.csv#{number}" for number in range(1, 7)}
    doubts = [row["doubt"] for row in found]
    assert doubts == sorted(doubts, reverse=True) and all(isinstance(row["input"], str) for row in found)


def test_a_regression_is_told_that_it_has_no_doubt(caplog, tmp_path, runs):
    table = tiny.text_table(tmp_path / "new.csv", "regression", rows=20, seed=6)
    with caplog.at_level(logging.INFO):
        found = next_to_label(str(table), 3, str(runs["text-regression"]), None, ["text"])
    assert (
        "A regression gives no doubt of its own: the rows are chosen to be unlike each other, nothing more."
        in caplog.text
    )
    assert "doubt" not in found and len(found) == 3


def test_pairs(tmp_path, runs):
    table = tiny.text_table(tmp_path / "new.csv", pairs=True, rows=12, seed=7)
    found = next_to_label(str(table), 3, str(runs["pair"]), None, ["first", "second"])
    assert {"input", "input_pair"} <= set(found.columns) and len(found) == 3


@pytest.mark.parametrize("kind", ["image", "text"])
def test_before_the_first_label_a_checkpoint_alone_spreads_the_rows(kind, caplog, tmp_path):
    if kind == "image":
        pool, model = (
            tiny.image_folder(tmp_path / "pool", per_class=6),
            tiny.VISION_FAMILIES["timm-vit"](tmp_path / "m"),
        )
    else:
        pool, model = tiny.text_table(tmp_path / "pool.csv", rows=18), tiny.TEXT_FAMILIES["bert"](tmp_path / "m")
    with caplog.at_level(logging.INFO):
        found = next_to_label(str(pool), 5, None, str(model), ["text"] if kind == "text" else None)
    assert "Without a run there is no doubt" in caplog.text
    assert len(found) == 5 and list(found.columns)[:4] == ["rank", "id", "reason", "stands_for"]


def test_mistakes(monkeypatch, capsys, tmp_path, runs):
    words = "Name what looks at the pool: --run RUN (a finished run), or --model REF to begin without labels."
    for arguments in ([], ["--run", runs["image"], "--model", "m"]):
        code, _, err = call(monkeypatch, capsys, "next", tmp_path, *arguments)
        assert code == 2 and words in err
    rows = pd.read_parquet(runs["pair"] / "splits.parquet")
    rows.rename(columns={"input": "first", "input_pair": "second"})[["first", "second"]].to_csv(tmp_path / "old.csv")
    with pytest.raises(UserError, match="holds nothing new to label: 60 rows, all left out."):
        next_to_label(str(tmp_path / "old.csv"), 3, str(runs["pair"]), None, ["first", "second"])


def test_curve_on_the_command_line(monkeypatch, capsys, tmp_path):
    model, table = tiny.TEXT_FAMILIES["bert"](tmp_path / "bert"), tiny.text_table(tmp_path / "texts.csv", rows=120)
    arguments = [
        "curve",
        table,
        "--model",
        model,
        "--more",
        20,
        "--classes",
        2,
        "--output",
        tmp_path / "c",
        "head.folds=3",
    ]
    code, out, err = call(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert "+20 rows of the same mix: " in out and "forecast" in out
    assert err.count("Linear probe:") <= 3  # of the probe, none of the many fits
    found = json.loads((tmp_path / "c" / "curve.json").read_text())
    assert found["rows"] == 96 and found["held"] == 24 and "<svg" in (tmp_path / "c" / "curve.svg").read_text()
    code, out, err = call(
        monkeypatch, capsys, "curve", table, "--model", model, "--json", "--classes", 0, "head.folds=3"
    )
    assert json.loads(out)["classes"] == []
    code, _, err = call(monkeypatch, capsys, "curve", table, "--model", model, "data.split.test=0")
    assert (
        code == 2
        and "A curve is measured on test rows, and there are none: set data.test, or data.split.test above 0." in err
    )
