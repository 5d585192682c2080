"""Commands and settings on images with masks."""

import json
import logging
import shutil

import numpy as np
from PIL import Image

from hftransfer.evaluation import EvaluationConfig
from hftransfer.prediction.evaluate import evaluate
from hftransfer.runs.reader import RecordedRun
from hftransfer.train import run
from tests.support.runs import configuration


def test_folds_hold_out_each_image_once(tmp_path):
    """The cross-validated metrics stand on all images, also on those of the training part."""
    config = configuration("probe", "masks", tmp_path, max_steps=8)
    config = config.model_copy(update={"evaluation": config.evaluation.model_copy(update={"folds": 2})})
    recorded = RecordedRun.open(run(config).folder)
    metrics = json.loads((recorded.folder / "metrics.json").read_text())
    assert metrics["cross_validation"]["pixel_accuracy"]["n"] == len(recorded.splits)
    assert metrics["cross_validation"]["pixel_accuracy"]["value"] > 0.5  # masks beside the wrong images would have less
    assert metrics["cross_validation_folds"] == {"folds": 2, "repeats": 1, "examples": len(recorded.splits)}


def test_evaluate_names_a_mask_of_the_wrong_shape_once(tiny_run, tmp_path, caplog):
    run_folder = tiny_run("probe", "masks")
    scenes = shutil.copytree(RecordedRun.open(run_folder).config["data"]["train"], tmp_path / "scenes")
    picture = Image.open(scenes / "images" / "000.png").rotate(180)
    shutil.rmtree(scenes / "images"), shutil.rmtree(scenes / "masks")
    for name, mask in (("a", np.ones((48, 56), np.uint8)), ("b", np.ones((20, 20), np.uint8))):
        for part in ("images", "masks"):
            (scenes / part).mkdir(exist_ok=True)
        picture.rotate(180 * (name == "b")).save(scenes / "images" / f"{name}.png")
        mask[:5] = 0
        mask[5:9] = 2
        Image.fromarray(mask).save(scenes / "masks" / f"{name}.png")
    with caplog.at_level(logging.WARNING):
        found = evaluate(run_folder, str(scenes), {}, EvaluationConfig(resamples=100))
    assert found["metrics"]["pixel_accuracy"]["n"] == 1
    said = [record.getMessage() for record in caplog.records if "b.png" in record.getMessage()]
    assert len(said) == 1 and "(its mask has 20 x 20 pixels, the picture 56 x 48)" in said[0]
