"""Runs are read from any working directory, and when their images never had a file."""

import datasets
import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hftransfer.apps.review.items import Queue
from hftransfer.apps.serving import serve
from hftransfer.modalities import kind_of
from hftransfer.pipeline import kept_inputs
from hftransfer.pipeline.kept_inputs import keep_inputs
from hftransfer.planning.labels.pool import _labelled
from hftransfer.prediction.explain import explain_run
from hftransfer.publish.export import _calibrating, _with_further_inputs, export
from hftransfer.publish.hub import write_repository
from hftransfer.publish.round_trip import readable_rows
from hftransfer.report import write_report
from hftransfer.runs.folder import beside
from hftransfer.runs.reader import RecordedRun, file_name
from hftransfer.train import run
from tests.pipeline.test_self_check import configuration
from tests.support import tiny

CLASSES = ("red", "green", "blue")


def embedded(rows: int = 60) -> datasets.Dataset:
    images = [tiny.image(CLASSES[row % 3], seed=row) for row in range(rows)]
    table = {"image": images, "label": [CLASSES[row % 3] for row in range(rows)]}
    return datasets.Dataset.from_dict(table).cast_column("image", datasets.Image())


@pytest.fixture(scope="module", params=["relative paths", "parquet", "in memory"])
def made(request, tmp_path_factory):
    """The folder of a run trained in its own directory on relative names, read from another directory."""
    home, elsewhere = tmp_path_factory.mktemp("home"), tmp_path_factory.mktemp("elsewhere")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(home)
        tiny.VISION_FAMILIES["timm-resnet"](home / "model")
        tiny.image_folder(home / "pics", per_class=20)
        embedded().to_parquet("x.parquet")
        data = {"relative paths": "pics", "parquet": "x.parquet", "in memory": {}}[request.param]
        run(configuration("model", data, "run"), embedded() if request.param == "in memory" else None)
        patch.chdir(elsewhere)
        yield home / "run"


def test_inputs_are_read_again(made):
    held_out = readable_rows(RecordedRun.open(made), 16)
    assert len(held_out) >= 9
    assert all(Image.open(path).size == (48, 48) for path in held_out.frame["input"])


def test_export_explanations_report_review_and_demo(made):
    assert (export(made, "safetensors-merged") / "export.json").is_file()
    explain_run(made, use_cpu=True)
    assert list((made / "explanations").glob("*.png"))
    write_report(made)
    assert (made / "report.html").read_text().count("data:image/jpeg;base64,") >= 2
    assert Queue(RecordedRun.open(made), beside(made, "corrections"), beside(made, "patch"))._rows
    assert all(serve(made).examples.values())


def test_eight_bits_are_calibrated_and_compared(made):
    recorded = RecordedRun.open(made)
    assert 10 <= len(_calibrating(recorded)) <= 25
    assert len(_with_further_inputs(recorded, readable_rows(recorded, 500))) >= 30


def test_the_next_labels_leave_out_what_has_one(made, monkeypatch):
    """By content: the images of a table have no file whose content could be compared."""
    assert _labelled(str(made), "image") == set(pd.read_parquet(made / "splits.parquet")["digest"])


def test_kept_images_are_not_pushed(made, tmp_path):
    write_repository(RecordedRun.open(made), tmp_path / "repository", "owner/name")
    assert not {path.name for path in tmp_path.rglob("*")} & {path.name for path in made.glob("inputs/*")} - {"inputs"}
    assert not (tmp_path / "repository" / "inputs").exists()


def test_kept_images_have_an_end(tmp_path, monkeypatch):
    image = embedded(1).cast_column("image", datasets.Image(decode=False))[0]["image"]["bytes"]
    frame = pd.DataFrame({"id": [f"a/b.{row}" for row in range(300)], "split": np.repeat(["train", "test"], 150)})
    frame["input"] = [image] * 300
    keep_inputs(tmp_path, frame, kind_of("image"))
    kept = sorted(path.stem for path in (tmp_path / "inputs").iterdir())
    assert len(kept) == 2 * kept_inputs.EXAMPLES and file_name("a/b.0") in kept and file_name("a/b.299") in kept
    monkeypatch.setattr(kept_inputs, "BYTES", 10 * len(image))
    (tmp_path / "small").mkdir()
    keep_inputs(tmp_path / "small", frame, kind_of("image"))
    assert len(list((tmp_path / "small" / "inputs").iterdir())) == 20


def test_texts_and_paths_are_not_copied(tmp_path):
    keep_inputs(tmp_path, pd.DataFrame({"id": ["a"], "split": ["train"], "input": ["a text"]}), kind_of("text"))
    assert not list(tmp_path.iterdir())


def test_a_path_is_recorded_whatever_the_working_directory(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    vision = kind_of("image").bind(None)
    assert vision.recorded("pics/a.png") == str(tmp_path / "pics" / "a.png")
    assert vision.recorded("/pics/a.png") == "/pics/a.png" and vision.recorded(b"...") == vision.recorded("") == ""
