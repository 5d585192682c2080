"""Inputs that lie elsewhere: tables and pictures through fsspec's file system in memory, and through an object store."""

import socket
import subprocess
import sys
import time

import fsspec
import numpy as np
import pandas as pd
import pytest

from hftransfer.core.errors import UserError
from hftransfer.data import inputs_modality, load_inputs
from hftransfer.data.rows import file_input
from hftransfer.prediction.predictor import load
from hftransfer.prediction.sharded import embed
from tests.support import tiny


@pytest.fixture
def elsewhere(tmp_path):
    """A folder of pictures, a table of them, and a table of texts, here and in memory."""
    tiny.image_folder(tmp_path / "pictures", per_class=3)
    tiny.text_table(tmp_path / "texts.csv", rows=9)
    names = sorted(file.relative_to(tmp_path).as_posix() for file in (tmp_path / "pictures").rglob("*.png"))
    pd.DataFrame({"path": names}).to_csv(tmp_path / "table.csv", index=False)
    memory = fsspec.filesystem("memory")
    memory.put(str(tmp_path), "/bucket", recursive=True)
    yield tmp_path, "memory://bucket"
    memory.rm("/bucket", recursive=True)


def test_predictions_are_those_of_the_files_here(elsewhere, tiny_run):
    here, there = elsewhere
    images, texts = load(tiny_run("probe", "image")), load(tiny_run("probe", "text"))
    for predictor, name in (
        (images, "pictures"),
        (images, "pictures/red/*.png"),
        (images, "table.csv"),
        (texts, "texts.csv"),
    ):
        expected, found = predictor.predict(str(here / name)), predictor.predict(f"{there}/{name}")
        assert len(expected) == len(found) > 2
        numbers = [column for column in expected if column.startswith("logit:")]
        assert np.array_equal(expected[numbers].to_numpy(), found[numbers].to_numpy())


def test_a_folder_elsewhere_is_embedded(elsewhere, tiny_run, tmp_path):
    here, there = elsewhere
    run = str(tiny_run("probe", "image"))
    for place, output in ((here, "a"), (there, "b")):
        embed(f"{place}/pictures", tmp_path / output, run=run, count=2)
    found = [pd.read_parquet(tmp_path / name) for name in "ab"]
    found = [table.assign(id=table["id"].str[-11:]).sort_values("id") for table in found]
    assert np.array_equal(*(np.stack(table["features"]) for table in found)) and len(found[0]) == 9


def test_the_modality_is_told_by_names_and_columns(elsewhere):
    _, there = elsewhere
    assert [inputs_modality(f"{there}/{name}") for name in ("pictures", "table.csv", "texts.csv")] == [
        "image",
        "image",
        "text",
    ]


def test_what_is_missing_or_broken_elsewhere_is_named(elsewhere, tiny_run):
    _, there = elsewhere
    with pytest.raises(UserError, match="holds no image"):
        load_inputs([f"{there}/none"], "image")
    with pytest.raises(UserError, match="Cannot read memory://bucket/none.csv"):
        load_inputs([f"{there}/none.csv"], "text")
    with pytest.raises(UserError, match="Cannot read odd://x/a.csv"):
        load_inputs(["odd://x/a.csv"], "text")
    fsspec.filesystem("memory").pipe_file("/bucket/pictures/red/broken.png", b"no picture")
    table = load(tiny_run("probe", "image")).predict(f"{there}/pictures")
    assert table["error"].notna().sum() == 1 and table["id"][table["error"].notna()].item().endswith("red/broken.png")


def test_a_text_that_names_an_address_stays_a_text():
    texts = ["see https://example.org for more", "https://example.org is down", "https://example.org"]
    assert load_inputs(texts, "text")["input"].tolist() == texts


def test_training_tables_name_no_addresses(tmp_path):
    """A table that somebody else made must not make a training read from the network."""
    assert file_input("https://example.org/a.png", tmp_path, allow_outside=False).startswith(str(tmp_path))


@pytest.fixture
def store(tmp_path):
    """moto's server of S3 on loopback."""
    pytest.importorskip("s3fs")
    pytest.importorskip("moto.server")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    server = subprocess.Popen([sys.executable, "-m", "moto.server", "-p", str(port)], stderr=subprocess.DEVNULL)
    try:
        for _ in range(100):
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.2)
        yield f"http://127.0.0.1:{port}"
    finally:
        server.kill()
        server.wait()


@pytest.mark.slow  # needs the extra `test-remote`
def test_a_bucket_of_an_object_store_is_read(store, elsewhere, tiny_run, monkeypatch):
    here, _ = elsewhere
    secrets = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    for name, value in (secrets | {"AWS_ENDPOINT_URL": store}).items():
        monkeypatch.setenv(name, value)
    bucket = fsspec.filesystem("s3")
    bucket.mkdir("bucket")
    bucket.put(str(here / "pictures"), "bucket/pictures", recursive=True)
    bucket.put_file(str(here / "table.csv"), "bucket/table.csv")
    predictor = load(tiny_run("probe", "image"))
    expected = predictor.predict(str(here / "pictures"))["logit:red"].to_numpy()
    for name in ("pictures", "table.csv"):
        found = predictor.predict(f"s3://bucket/{name}")["logit:red"].to_numpy()
        assert np.array_equal(np.sort(found), np.sort(expected)), name
