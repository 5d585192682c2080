"""How well masks agree: intersections and unions of the areas of classes, summed over images before any ratio is taken.

The mean over images of a ratio counts an empty image as perfect, and a class of few pixels as much as one of many. Sums over
the data set do neither, and resamples of images are weighted sums. A class that is neither true nor found has no value.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from joblib import cpu_count
from scipy.ndimage import find_objects, minimum_filter

from hftransfer.core.mask_files import IGNORED, decode_mask, decode_prediction

BAND = 0.02  # of the diagonal of an image: the width of its boundary


@dataclass(frozen=True)
class MaskCounts:
    """Counts of pixels of each image: true by predicted class `confusion` (N, C, C), and `boundary` (N, C, 2).

    The latter are intersection and union of the pixels near the true and the predicted outline of each class.
    """

    confusion: np.ndarray
    boundary: np.ndarray

    @property
    def hit(self) -> np.ndarray:
        """Pixels (N, C) of each class that are found."""
        return np.diagonal(self.confusion, axis1=1, axis2=2)

    @property
    def present(self) -> np.ndarray:
        return self.confusion.sum(2)

    @property
    def found(self) -> np.ndarray:
        return self.confusion.sum(1)

    @property
    def union(self) -> np.ndarray:
        return self.present + self.found - self.hit


def statistics_of(targets: Sequence[bytes], predictions: Sequence[bytes], classes: int) -> MaskCounts:
    """Return the counts of masks and predictions as `core.mask_files` encodes them; one thread for each core."""
    with ThreadPoolExecutor(cpu_count()) as pool:
        found = list(pool.map(lambda pair: _counts(*pair, classes), zip(targets, predictions, strict=True)))
    confusions, boundaries = (np.array([each[side] for each in found], dtype=np.int64) for side in (0, 1))
    return MaskCounts(confusions.reshape(-1, classes, classes), boundaries.reshape(-1, classes, 2))


@lru_cache(maxsize=1 << 12)  # metrics, intervals, folds and pairs ask for the same images
def _counts(target: bytes, prediction: bytes, classes: int) -> tuple[np.ndarray, np.ndarray]:
    truth, predicted = decode_mask(target), decode_prediction(prediction)[0]
    return confusion(truth, predicted, classes), boundary_counts(truth, predicted, classes)


def confusion(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return how many pixels of each true class (rows) have each predicted class (columns); both masks are (H, W).

    Pixels without a label are left out. Raises `ValueError` for masks of two sizes.
    """
    if truth.shape != predicted.shape:
        raise ValueError(f"a mask of {truth.shape} cannot be compared with one of {predicted.shape}")
    known = truth != IGNORED
    pairs = truth[known].astype(np.int64) * classes + predicted[known]
    return np.bincount(pairs, minlength=classes**2).reshape(classes, classes)


def boundary_counts(truth: np.ndarray, predicted: np.ndarray, classes: int) -> np.ndarray:
    """Return intersection and union (C, 2) of the pixels of each class within a band along its outline.

    The band is 2 % of the diagonal wide (Cheng et al. 2021, "Boundary IoU", arXiv 2103.16562, section 4). As there, the border
    of the image is an outline. Pixels without a label are left out.
    """
    known = truth != IGNORED
    width = max(1, round(BAND * float(np.hypot(*truth.shape))))
    counts = np.zeros((classes, 2), dtype=np.int64)
    for number in range(classes):
        bands = [_band((mask == number) & known, width) for mask in (truth, predicted)]
        counts[number] = np.count_nonzero(bands[0] & bands[1]), np.count_nonzero(bands[0] | bands[1])
    return counts


def _band(inside: np.ndarray, width: int) -> np.ndarray:
    """Return the pixels of an area (H, W) that are at most `width` steps, also diagonal ones, from its outside."""
    result = np.zeros(inside.shape, dtype=bool)
    box = find_objects(inside.astype(np.uint8))
    if not box:
        return result
    area = inside[box[0]]  # what lies outside of the box is outside of the area
    core = minimum_filter(area.astype(np.uint8), size=2 * width + 1, mode="constant", cval=0)
    result[box[0]] = area & (core == 0)
    return result


# --- metrics ----------------------------------------------------------------------------------------------------------


def mask_metrics(counts: MaskCounts) -> dict[str, float]:
    """Return the metrics of all images together."""
    return {name: float(value[0]) for name, value in mask_statistics(counts)(np.ones((1, len(counts.hit)))).items()}


def mask_statistics(counts: MaskCounts) -> Callable[[np.ndarray], dict[str, np.ndarray]]:
    """Return the metrics as a function of weights (R, N) of the images."""
    parts = [each.astype(np.float64) for each in (counts.hit, counts.present, counts.found)]
    near, around = (counts.boundary[..., place].astype(np.float64) for place in (0, 1))

    def compute(weights: np.ndarray) -> dict[str, np.ndarray]:
        hit, present, found = (weights @ each for each in parts)
        return {
            "mean_iou": _mean_defined(hit, present + found - hit),
            "mean_dice": _mean_defined(2 * hit, present + found),
            "pixel_accuracy": _share(hit.sum(1), present.sum(1)),
            "boundary_iou": _mean_defined(weights @ near, weights @ around),
        }

    return compute


def class_shares(counts: MaskCounts) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Return for IoU, precision and recall of the classes what is counted, and out of what, both (N, C)."""
    return {
        "iou": (counts.hit, counts.union),
        "precision": (counts.hit, counts.found),
        "recall": (counts.hit, counts.present),
    }


def _share(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    return np.divide(top, bottom, out=np.full(np.shape(top), np.nan), where=bottom > 0)


def _mean_defined(top: np.ndarray, bottom: np.ndarray) -> np.ndarray:
    """Return the mean (R,) over the classes of a share (R, C) that is known."""
    known = bottom > 0
    return _share(np.where(known, _share(top, bottom), 0).sum(1), known.sum(1).astype(float))
