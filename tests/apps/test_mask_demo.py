"""The demo of a run that finds masks, asked by its own client: the picture, the file, and what a person sees of both."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from gradio_client import Client, handle_file
from PIL import Image

from hftransfer.apps.demo import launch
from hftransfer.apps.masks import legend, overlay
from hftransfer.core.mask_files import encode_prediction, palette
from hftransfer.prediction.predictor import load
from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks import Masks


@pytest.fixture(scope="module")
def served(tiny_run):
    folder = tiny_run("full", "masks")
    app, address = launch(str(folder), wait=False)
    yield folder, Client(address, verbose=False)
    app.close()


def test_the_demo_gives_the_mask_that_the_run_predicts(served):
    folder, client = served
    picture = RecordedRun(folder).splits["input"].iloc[0]
    shown, areas, remarks, file, *_ = client.predict(handle_file(picture), 100, api_name="/predict")
    table = load(folder, use_cpu=True).predict([picture])
    with Image.open(file) as mask:
        assert mask.mode == "P" and mask.size == Image.open(picture).size
        numbers = np.asarray(mask)
    assert {
        name: (numbers == place).mean() for place, name in enumerate(RecordedRun(folder).task.names)
    } == pytest.approx({name: table[f"area:{name}"][0] for name in RecordedRun(folder).task.names})
    assert all(name in areas for name in table["prediction"][0]) and not remarks
    covered = np.asarray(Image.open(shown).convert("RGB"))[numbers == 1]
    assert not len(covered) or (covered == palette(3)[1]).all()


def test_a_batch_has_a_share_of_the_area_for_each_class(served, tmp_path):
    folder, client = served
    pictures = RecordedRun(folder).splits["input"].head(2)
    import zipfile

    with zipfile.ZipFile(tmp_path / "some.zip", "w") as pack:
        for picture in pictures:
            pack.write(picture, Path(picture).name)
    file, *_ = client.predict(handle_file(str(tmp_path / "some.zip")), api_name="/batch")
    table = pd.read_csv(file)
    assert len(table) == 2 and table.filter(like="area:").sum(axis=1).tolist() == pytest.approx([1, 1])


def test_the_overlay_covers_all_but_the_background():
    stream = io.BytesIO()
    Image.new("RGB", (4, 2), (100, 100, 100)).save(stream, "PNG")
    classes = np.array([[0, 0, 1, 1], [0, 0, 1, 1]], np.uint8)
    prediction = encode_prediction(classes, np.full((2, 4), 255, np.uint8))
    task = Masks(("background", "<b>crack</b>"))
    found = np.asarray(overlay(task, stream.getvalue(), prediction, 50))
    assert (found[:, :2] == 100).all() and not (found[:, 2:] == 100).all()
    assert (np.asarray(overlay(task, stream.getvalue(), prediction, 0)) == 100).all()
    assert "&lt;b&gt;crack" in legend(task, prediction) and "50.0%" in legend(task, prediction)
