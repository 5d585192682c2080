"""`hftransfer.fit` on every kind of data, and what a run offers."""

import numpy as np
import pandas as pd
import pytest

import hftransfer
from hftransfer.core.errors import UserError
from hftransfer.core.image_files import UnreadableImage, encoded, open_image
from hftransfer.runs.reader import RecordedRun
from tests.support import tiny

QUICK = {"evaluation.folds": 0, "evaluation.explanations": False, "evaluation.resamples": 100}


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    return str(tiny.TEXT_FAMILIES["bert"](tmp_path_factory.mktemp("bert") / "bert"))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tiny.text_table(tmp_path_factory.mktemp("texts") / "t.csv", rows=60)


def as_dataset(frame):
    import datasets

    return datasets.Dataset.from_pandas(frame)


FORMS = {
    "path": lambda path: (path, {"label": "label"}),
    "frame": lambda path: (pd.read_csv(path), {"label": "label"}),
    "lists": lambda path: (tuple(pd.read_csv(path)[name].tolist() for name in ("text", "label")), {}),
    "dataset": lambda path: (as_dataset(pd.read_csv(path)), {"label": "label", "input": "text"}),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_the_data_gives_the_same_model(form, bert, path, tmp_path):
    data, named = FORMS[form](path)
    run = hftransfer.fit(data, model=bert, output=tmp_path / "run", options=QUICK, **named)
    assert run.folder == tmp_path / "run" and run.metrics["test"]["accuracy"]["n"] == 12
    digests = sorted(RecordedRun.open(run.folder).splits.query("split == 'test'")["digest"])
    expected = hftransfer.fit(str(path), "label", model=bert, output=tmp_path / "by-path", options=QUICK)
    assert digests == sorted(RecordedRun.open(expected.folder).splits.query("split == 'test'")["digest"])
    assert run.metrics["test"]["log_loss"] == expected.metrics["test"]["log_loss"]


def test_a_run_predicts_reports_and_shows_itself(bert, path, tmp_path, pages, monkeypatch):
    monkeypatch.setattr("hftransfer.publish.hub.certified", lambda folder: {"rows": 16, "stages": []})
    data = pd.read_csv(path).assign(label=lambda rows: "<b>" + rows["label"])
    run = hftransfer.fit(data, "label", model=bert, strategy={"type": "probe"}, output=tmp_path / "run", options=QUICK)
    predictor = run.predictor
    assert predictor is run.predictor and predictor.predict(["goal match team"])["prediction"][0] == "<b>topic0"
    assert run.report() == run.folder / "report.html" and run.report().is_file()
    value = run.metrics["test"]["accuracy"]["value"]
    assert f"{value:.4f}" in run._repr_html_() and str(run.folder) in run._repr_html_()
    shown = predictor._repr_html_()
    assert "a text" in shown and "&lt;b&gt;topic0" in shown and "<b>" not in shown
    pushed = run.push("me/colours", dry_run=tmp_path / "pushed")
    assert (tmp_path / "pushed" / "README.md").is_file() and "README.md" in pushed.files


def test_images_in_memory(tmp_path):
    model = str(tiny.VISION_FAMILIES["timm-resnet"](tmp_path / "resnet"))
    labels = [label for label in ("red", "green", "blue") for _ in range(12)]
    images = [tiny.image(label, seed=number) for number, label in enumerate(labels)]
    run = hftransfer.fit((images, labels), model=model, output=tmp_path / "run", options=QUICK)
    found = run.predictor.predict([images[0], np.asarray(images[1]) / 255.0])
    assert found["id"].tolist() == ["input 1", "input 2"] and found["prediction"].tolist() == ["red", "red"]


@pytest.mark.parametrize("shape", [(5, 4), (5, 4, 1), (5, 4, 3), (5, 4, 4)])
def test_pixels_stay_what_they_are(shape):
    pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    pixels[..., 3:] = 255
    shown = np.asarray(open_image(encoded(pixels)))
    grey = shape[2:] in ((), (1,))
    assert np.array_equal(
        shown, np.broadcast_to(pixels.reshape(5, 4, -1)[..., :1] if grey else pixels[..., :3], (5, 4, 3))
    )
    assert encoded(pixels / 255) == encoded(pixels)


@pytest.mark.parametrize(
    ("pixels", "words"),
    [
        (np.full((4, 4), 300), "the largest value is 300"),
        (np.full((4, 4), 16.0), "the largest value is 16"),
        (np.full((4, 4), -1.0), "finite numbers from 0 on"),
        (np.full((4, 4), np.nan), "finite numbers from 0 on"),
        (np.zeros((4, 4, 2)), r"1, 3 or 4 channels"),
    ],
)
def test_pixels_that_are_none(pixels, words):
    with pytest.raises(UnreadableImage, match=words):
        encoded(pixels)


def test_mistakes(bert, path, tmp_path):
    with pytest.raises(UserError, match="3 inputs and 2 labels"):
        hftransfer.fit((["a", "b", "c"], [0, 1]), model=bert)
    with pytest.raises(UserError, match="leave `label` and `input` out"):
        hftransfer.fit((["a", "b"], [0, 1]), "label", model=bert)
    with pytest.raises(UserError, match="has no column 'lable'. Did you mean 'label'"):
        hftransfer.fit(path, "lable", model=bert)
    with pytest.raises(UserError, match="Unknown strategy 'lorra'"):
        hftransfer.fit(path, "label", model=bert, strategy="lorra")
