"""Predicted masks as pictures: the image, the true mask, the predicted one, and where they differ."""

import base64
import io

import numpy as np
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.core.image_files import open_image
from hftransfer.core.mask_files import IGNORED, coloured, decode_mask, decode_prediction, palette, resized_mask
from hftransfer.evaluation.masks import confusion
from hftransfer.report.picked import Picked
from hftransfer.runs.reader import Part, RecordedRun
from hftransfer.tasks import Task
from hftransfer.tasks.masks import shares

SIDE = 200  # pixels of the longer side of each of the four pictures
GAP = 4
RIGHT, WRONG, UNKNOWN = (214, 219, 224), (203, 36, 49), (255, 255, 255)


def worst_masks(task: Task, part: Part, count: int) -> Picked:
    """Return the images whose masks overlap least with the true ones."""
    overlap = np.array([_mean_iou(task, *pair) for pair in zip(part.targets, part.scores, strict=True)])
    rows = [int(row) for row in np.argsort(overlap, kind="stable")[:count] if overlap[row] < 1]
    return Picked(part, rows, _areas(task, part, rows), [f"mean IoU {overlap[row]:.2f}" for row in rows])


def unsure_masks(run: RecordedRun, count: int) -> Picked:
    """Return the images of whose pixels the model is least certain: what a further label teaches most."""
    part = run.part(run.evaluated)
    certainty = np.array([decode_prediction(each)[1].mean() / 255 for each in part.scores])
    rows = [int(row) for row in np.argsort(certainty, kind="stable")[:count]]
    notes = [f"{certainty[row]:.0%} mean certainty of a pixel" for row in rows]
    return Picked(part, rows, _areas(run.task, part, rows), notes)


def legend(task: Task) -> list[tuple[str, str]]:
    """Return each class with its colour as CSS."""
    return [
        (name, "rgb({}, {}, {})".format(*colour))
        for name, colour in zip(task.names, palette(len(task.names)), strict=True)
    ]


def panels(task: Task, source: str, truth: bytes, prediction: bytes | None, side: int = SIDE) -> str:
    """Return image, true mask, predicted mask and their difference side by side, as a data URI.

    `side` are the pixels of the longer side of each. Without a prediction there are the first two.
    """
    true, colours = decode_mask(truth), palette(len(task.names))
    scale = min(1.0, side / max(true.shape))
    size = tuple(max(1, round(scale * length)) for length in true.shape)
    true = resized_mask(true, size)
    pictures = [_picture(source, size), coloured(true, colours)]
    if prediction is not None:
        found = resized_mask(decode_prediction(prediction)[0], size)
        difference = np.where((true == found)[..., None], RIGHT, WRONG)
        difference[true == IGNORED] = UNKNOWN
        pictures += [coloured(found, colours), difference.astype(np.uint8)]
    gap = np.full((size[0], GAP, 3), 255, np.uint8)
    wide = np.concatenate([piece for picture in pictures for piece in (picture, gap)][:-1], 1)
    buffer = io.BytesIO()
    Image.fromarray(wide).save(buffer, "WEBP", quality=85)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _picture(source: str, size: tuple[int, int]) -> np.ndarray:
    """Return an image at a size (height, width); white where its file is not at hand any more."""
    try:
        return np.asarray(open_image(source, at_least=SIDE).resize(size[::-1]))
    except UserError:
        return np.full((*size, 3), 255, np.uint8)


def _mean_iou(task: Task, truth: bytes, prediction: bytes) -> float:
    """Return the mean over the classes that one image has, or was said to have."""
    counts = confusion(decode_mask(truth), decode_prediction(prediction)[0], len(task.names))
    either = counts.sum(0) + counts.sum(1) - counts.diagonal()
    present = either > 0
    return float((counts.diagonal()[present] / either[present]).mean()) if present.any() else 1.0


def _areas(task: Task, part: Part, rows: list[int]) -> list[str]:
    return [shares(answer) for answer in task.answers(part.scores[rows], (), ())]
