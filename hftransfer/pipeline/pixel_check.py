"""Check that `transformers.pipeline` with the saved model gives the recorded masks, as `self_check` does for scores."""

import time
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from hftransfer.core.image_files import open_image
from hftransfer.core.mask_files import decode_prediction, encode_prediction
from hftransfer.features.passes import predict_logits
from hftransfer.models.loading import quiet_transformers
from hftransfer.pipeline.plain_pipeline import concluded, opened
from hftransfer.pipeline.run_context import RunContext
from hftransfer.pipeline.tolerance import EXAMPLES, Tolerance
from hftransfer.runs.predictions import Predictions
from hftransfer.tasks import Task
from hftransfer.tasks.tokens import ragged

SECONDS = 2.0  # after which no further image is asked


def check_pixels(folder: Path, context: RunContext, model: nn.Module, predictions: Predictions) -> dict[str, Any]:
    """Compare the masks of up to 16 images, from the smallest to the largest, as long as `SECONDS` last.

    Return what `run.json` says of it. Raises `UserError` where the pipeline finds other masks than were recorded.
    """
    begin, task = time.perf_counter(), context.data.task
    rows, recorded = _recorded(context, model, predictions)
    if not len(rows):
        return {"examples": 0}
    sources = [context.items[row].source for row in rows]
    found = through_pipeline(folder, sources, context)
    rows, recorded = rows[: len(found)], recorded[: len(found)]
    differ = task.decides_otherwise(recorded, found, Tolerance.of(context.compute_config).tie)
    ids = context.data.frame["id"].iloc[rows[differ]].tolist()
    return concluded(context, "masks", "images", len(rows), ids, begin)


def through_pipeline(folder: Path, sources: list[Any], context: RunContext) -> np.ndarray:
    """Return the masks (N,) that the plain pipeline finds in the first images, as many as `SECONDS` allow."""
    kind, task = context.modality.kind, context.data.task
    begin, found = time.perf_counter(), []
    with quiet_transformers():
        ask = opened(folder, context, {})
        for source in sources:
            if found and time.perf_counter() - begin > SECONDS:
                break
            image = open_image(source)
            segments = ask(image, **kind.pipeline_options(task.head_size))
            found.append(as_prediction(task, segments, (image.height, image.width)))
    return ragged(found)


def as_prediction(task: Task, segments: list[dict[str, Any]], size: tuple[int, int]) -> bytes:
    """Return the answer of a pipeline, one picture for each class, as one mask; its certainty is not known."""
    classes = np.zeros(size, np.uint8)
    for segment in segments:
        classes[np.asarray(segment["mask"]) > 0] = task.names.index(segment["label"])
    return encode_prediction(classes, np.full(size, 255, np.uint8))


def _recorded(context: RunContext, model: nn.Module, predictions: Predictions) -> tuple[np.ndarray, np.ndarray]:
    """Return rows of images by size, and their masks as they were evaluated; without any, of training rows."""
    if not len(predictions.positions):
        rows = np.arange(min(EXAMPLES, len(context.items)))
        items = [context.items[row] for row in rows]
        return rows, predict_logits(model, context.modality, items, context.compute_config)
    sizes = [decode_prediction(each)[0].size for each in predictions.logits]
    ordered = np.argsort(sizes, kind="stable")
    chosen = ordered[np.unique(np.linspace(len(ordered) - 1, 0, EXAMPLES).astype(int))]
    return predictions.positions[chosen], predictions.logits[chosen]
