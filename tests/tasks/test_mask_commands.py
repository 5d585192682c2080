"""Commands and settings on images with masks."""

import json

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
