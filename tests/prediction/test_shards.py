"""Shards: any number of workers in any order write the same files, and what was interrupted is done again."""

import os
import random

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from hftransfer.cli.commands import main
from hftransfer.core.errors import UserError
from hftransfer.models.references import ModelConfig
from hftransfer.prediction import shards as shards_module
from hftransfer.prediction.predictor import load
from hftransfer.prediction.sharded import embed, predict
from hftransfer.prediction.shards import Shards
from hftransfer.runtime.shares import Worker, launched_worker
from tests.support import tiny

COUNT = 7
SLURM = {"ID": 5, "COUNT": 3, "MIN": 3, "STEP": 1, "MAX": 5}


@pytest.fixture(autouse=True)
def outside_of_a_launch(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM") or name in ("RANK", "WORLD_SIZE")]:
        monkeypatch.delenv(name)


@pytest.fixture(scope="module")
def texts(tmp_path_factory):
    return tiny.text_table(tmp_path_factory.mktemp("texts") / "new.csv", rows=60, seed=5)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return tiny.image_folder(tmp_path_factory.mktemp("images") / "new", per_class=6)


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return ModelConfig(name=str(tiny.TEXT_FAMILIES["bert"](tmp_path_factory.mktemp("bert"))))


def launched(monkeypatch, rank, size):
    monkeypatch.setenv("RANK", str(rank))
    monkeypatch.setenv("WORLD_SIZE", str(size))


def contents(folder):
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_three_workers_in_any_order_make_the_files_of_one(texts, bert, tmp_path, monkeypatch):
    embed(str(texts), tmp_path / "one", bert, count=COUNT)
    order = [2, 0, 1]
    for rank in order:
        launched(monkeypatch, rank, 3)
        embed(str(texts), tmp_path / "three", bert, count=COUNT)
    assert contents(tmp_path / "one") == contents(tmp_path / "three")
    assert len(list((tmp_path / "one").glob("*.parquet"))) == COUNT


def test_merging_is_reading_the_folder(texts, bert, tmp_path):
    embed(str(texts), tmp_path / "shards", bert, count=COUNT)
    embed(str(texts), tmp_path / "whole", bert, count=1)
    merged, whole = (pd.read_parquet(tmp_path / name).set_index("id").sort_index() for name in ("shards", "whole"))
    assert merged.index.equals(whole.index) and len(whole) == 60 and whole["error"].isna().all()
    assert np.allclose(np.stack(merged["features"]), np.stack(whole["features"]), atol=1e-5)


def test_predictions_of_shards_are_those_of_predict(tiny_run, texts, tmp_path):
    run = tiny_run("probe", "text")
    for shard in random.Random(0).sample(range(COUNT), COUNT):
        predict(str(run), [str(texts)], tmp_path / "out", COUNT, shard)
    merged = pd.read_parquet(tmp_path / "out").set_index("id").drop(columns="error")
    expected = load(run).predict(str(texts)).set_index("id")
    pd.testing.assert_frame_equal(merged.loc[expected.index], expected, check_dtype=False, atol=1e-4)


@pytest.mark.parametrize("kind", ["text-multi", "text-regression", "tokens"])
def test_every_task_has_the_columns_of_predict(kind, tiny_run, tmp_path):
    run = tiny_run("probe", kind)
    table = tiny.text_table(tmp_path / "new.csv", rows=6)
    predict(str(run), [str(table)], tmp_path / "out", 2)
    merged, expected = pd.read_parquet(tmp_path / "out"), load(run).predict(str(table))
    assert list(merged.columns) == [*expected.columns, "error"] and set(merged["id"]) == set(expected["id"])


def test_what_cannot_be_read_is_told_in_every_form_of_shard(tiny_run, images, tmp_path):
    """A shard without any readable input has the columns of the others, so that the folder reads as one table."""
    broken = tmp_path / "pictures"
    broken.mkdir()
    for number in range(4):
        (broken / f"{number}.png").write_bytes(b"no picture")
    (broken / "good.png").write_bytes((images / "red" / "000.png").read_bytes())
    run = tiny_run("probe", "image")
    predict(str(run), [str(broken)], tmp_path / "predicted", 3)
    embed(str(broken), tmp_path / "embedded", run=str(run), count=3)
    for name, column in (("predicted", "prediction"), ("embedded", "features")):
        table = pd.read_parquet(tmp_path / name)
        good = table["id"].str.endswith("good.png")
        assert table["error"].notna().tolist() == (~good).tolist() and table[column].notna().tolist() == good.tolist()


def test_a_shard_that_was_interrupted_leaves_no_file_and_is_done_again(texts, bert, tmp_path, monkeypatch):
    embed(str(texts), tmp_path / "whole", bert, count=COUNT)
    monkeypatch.setattr(shards_module, "BLOCK", 4)
    written, write = [], pq.ParquetWriter.write_table

    def stop_at_the_fifth_block(self, table):
        written.append(table)
        if len(written) == 5:
            raise KeyboardInterrupt
        write(self, table)

    monkeypatch.setattr(pq.ParquetWriter, "write_table", stop_at_the_fifth_block)
    with pytest.raises(KeyboardInterrupt):
        embed(str(texts), tmp_path / "killed", bert, count=COUNT)
    left = contents(tmp_path / "killed")
    assert 1 < len(left) < COUNT + 1 and all(name.endswith((".parquet", ".json")) for name in left)
    embed(str(texts), tmp_path / "killed", bert, count=COUNT)
    again, whole = (pd.read_parquet(tmp_path / name) for name in ("killed", "whole"))
    assert again["id"].tolist() == whole["id"].tolist() and left.items() <= contents(tmp_path / "killed").items()
    assert np.allclose(np.stack(again["features"]), np.stack(whole["features"]), atol=1e-5)


def test_complete_shards_are_not_computed_again(texts, bert, tmp_path, monkeypatch):
    embed(str(texts), tmp_path / "out", bert, count=3)
    monkeypatch.setattr("hftransfer.prediction.embedder.Embedder.features", None)
    embed(str(texts), tmp_path / "out", bert, count=3)


def test_shards_do_not_depend_on_the_order_of_the_rows(texts, tmp_path):
    frame = pd.DataFrame({"id": list("abcdef"), "input": ["one", "two", "three", "one", "five", "six"]}, dtype=object)
    first = Shards.of(frame, tmp_path, 3, {})
    other = Shards.of(frame.sample(frac=1, random_state=1).reset_index(drop=True), tmp_path, 3, {})
    for number in range(3):
        pd.testing.assert_frame_equal(first.rows(number), other.rows(number))
    assert sum(len(first.rows(number)) for number in range(3)) == 6
    assert first.hashes[0] == first.hashes[3]


def test_a_folder_holds_one_work(texts, bert, tmp_path):
    embed(str(texts), tmp_path / "out", bert, count=2)
    for change, name in (
        ({"count": 3}, "shards is 2"),
        ({"numbers": "float16"}, "numbers is 'float32'"),
        ({"layer": 1}, "features is"),
    ):
        with pytest.raises(UserError, match=f"holds shards of other work: {name}"):
            embed(str(texts), tmp_path / "out", bert, **{"count": 2} | change)
    more = tiny.text_table(tmp_path / "more.csv", rows=61)
    with pytest.raises(UserError, match="inputs is 60 there and 61 here"):
        embed(str(more), tmp_path / "out", bert, count=2)


def test_half_precision_halves_what_is_stored(texts, bert, tmp_path):
    for numbers in ("float32", "float16"):
        embed(str(texts), tmp_path / numbers, bert, count=1, numbers=numbers)
    tables = [pq.read_table(tmp_path / numbers)["features"] for numbers in ("float32", "float16")]
    assert [str(table.type) for table in tables] == [
        "fixed_size_list<element: float>[32]",
        "fixed_size_list<element: halffloat>[32]",
    ]
    wide, narrow = (np.stack(table.to_pandas()).astype(np.float32) for table in tables)
    assert np.allclose(wide, narrow, rtol=1e-3, atol=1e-3) and not np.array_equal(wide, narrow)


def test_the_mean_of_the_tokens_and_a_layer(texts, bert, tmp_path):
    """Against transformers alone: the mean of the hidden states of a text by itself."""
    import torch
    from transformers import AutoModel, AutoTokenizer

    embed(str(texts), tmp_path / "out", bert, count=1, layer=2, pooling="mean")
    model, tokenizer = AutoModel.from_pretrained(bert.name), AutoTokenizer.from_pretrained(bert.name)
    text = pd.read_csv(texts)["text"][0]
    with torch.no_grad():
        hidden = model(**tokenizer(text, return_tensors="pt"), output_hidden_states=True).hidden_states[2]
    found = pd.read_parquet(tmp_path / "out").set_index("id")["features"]["new.csv#1"]
    assert np.allclose(found, hidden[0].mean(0).numpy(), atol=1e-5)


def test_options_that_do_not_fit_are_refused(texts, bert, tmp_path):
    cases = [
        ({}, "--model REF"),
        ({"model": bert, "layer": 9}, "has the blocks 1 to 3"),
        ({"model": bert, "count": 3, "shard": 3}, "from 0 to 2"),
        ({"run": "runs/x", "layer": 2}, "of a checkpoint"),
    ]
    for options, message in cases:
        with pytest.raises(UserError, match=message):
            embed(str(texts), tmp_path / "out", **options)


def test_the_share_of_a_worker_is_told_by_its_launcher(monkeypatch):
    assert launched_worker() == Worker()
    launched(monkeypatch, 1, 2)
    assert (launched_worker().number, launched_worker().count) == (1, 2)
    for name, value in SLURM.items():
        monkeypatch.setenv(f"SLURM_ARRAY_TASK_{name}", str(value))
    assert (launched_worker().number, launched_worker().count) == (2 * 2 + 1, 6)
    monkeypatch.delenv("RANK")
    monkeypatch.delenv("WORLD_SIZE")
    assert (launched_worker().number, launched_worker().count) == (2, 3)
    monkeypatch.setenv("SLURM_ARRAY_TASK_MAX", "20")
    with pytest.raises(UserError, match="not evenly spaced"):
        launched_worker()


def test_the_shares_of_all_workers_are_all_shards():
    for count in (1, 3, 8):
        shares = [list(Worker(number, count).share(5)) for number in range(count)]
        assert sorted(sum(shares, [])) == list(range(5))


def test_the_commands(texts, bert, tiny_run, tmp_path, monkeypatch, capfd):
    run = tiny_run("probe", "text")
    for arguments in (
        [
            "embed",
            texts,
            "--model",
            bert.name,
            "model.max_length=16",
            "--shards",
            3,
            "--shard",
            1,
            "--output",
            tmp_path / "e",
        ],
        ["predict", run, texts, "--shards", 3, "--output", tmp_path / "p"],
    ):
        monkeypatch.setattr("sys.argv", ["hftransfer", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code
    said = capfd.readouterr().err
    assert "1 of 3 shards, 1 of them to do" in said and "2 of 3 shards missing" in said
    assert "3 of 3 shards, 3 of them to do" in said and "all 3 shards are there" in said
    assert [file.name for file in (tmp_path / "e").glob("*.parquet")] == ["shard-00001-of-00003.parquet"]
