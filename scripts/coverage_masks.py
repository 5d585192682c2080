"""Measure how often the 95 % intervals of the metrics of masks cover the truth; prints the table of docs/masks.md.

    python scripts/coverage_masks.py [--populations 4] [--draws 100]

A population is 1,500 images of 24 x 24 pixels: ellipses of any size, and what a model of random quality makes of them (too large
or too small, moved, missed, made up). The truth is the metric of the whole population. Test sets are drawn from it with
replacement; shown is the share of intervals that hold the truth, of those that are known, and how many are known.
"""

import argparse
from collections import defaultdict

import numpy as np

from hftransfer.core.mask_files import encode_mask, encode_prediction
from hftransfer.evaluation.intervals import measure, per_class
from hftransfer.evaluation.masks import mask_metrics, statistics_of
from hftransfer.tasks import Masks
from hftransfer.tasks.tokens import ragged

SIDE, IMAGES, RESAMPLES = 24, 1500, 300
CELLS = {  # share of the images that have each class
    "one class in all images": (1.0,),
    "one class in half of the images": (0.5,),
    "three classes in 90, 50 and 20 %": (0.9, 0.5, 0.2),
}
SIZES = (10, 20, 50, 200)
GRID = np.mgrid[:SIDE, :SIDE] + 0.5


def ellipse(centre: np.ndarray, radii: np.ndarray) -> np.ndarray:
    return (((GRID - centre[:, None, None]) / np.maximum(radii, 0.1)[:, None, None]) ** 2).sum(0) <= 1


def scene(random: np.random.Generator, shares: tuple[float, ...], quality: np.ndarray) -> tuple[bytes, bytes]:
    """Return the true and the predicted mask of one image; `quality` is (moved, scaled, missed, made up)."""
    truth, found = np.zeros((2, SIDE, SIDE), np.uint8)
    moved, scaled, missed, invented = quality * random.gamma(1.0, size=4)  # some images are much harder than others
    for number, share in enumerate(shares, 1):
        centre, radii = random.uniform(4, SIDE - 4, 2), np.exp(random.normal(1.2, 0.6, 2))
        present = random.random() < share
        if present:
            truth[ellipse(centre, radii)] = number
        if (present and random.random() > missed) or (not present and random.random() < invented):
            found[ellipse(centre + random.normal(0, moved, 2), radii * np.exp(random.normal(0, scaled, 2)))] = number
    return encode_mask(truth), encode_prediction(found, found)


def covered(random: np.random.Generator, shares: tuple[float, ...], draws: int, table: dict) -> None:
    """Draw a population and test sets from it; add to `table` (size, metric) whether each interval holds the truth."""
    quality = random.uniform((0.3, 0.05, 0.02, 0.02), (2.0, 0.4, 0.3, 0.2))
    targets, scores = map(ragged, zip(*(scene(random, shares, quality) for _ in range(IMAGES)), strict=True))
    task = Masks(("background", *(f"class {number}" for number in range(1, len(shares) + 1))))
    counts = statistics_of(targets, scores, len(task.names))
    rarest = counts.hit[:, -1].sum() / counts.union[:, -1].sum()
    truth = mask_metrics(counts) | {"IoU of the last class": rarest}
    for size in SIZES:
        for _ in range(draws):
            rows = random.integers(IMAGES, size=size)
            found = dict(measure(task, targets[rows], scores[rows], None, resamples=RESAMPLES))
            found["IoU of the last class"] = per_class(task, targets[rows], scores[rows], None)[-1]["iou"]
            for name, value in truth.items():
                known = found[name] is not None and np.isfinite(found[name].low)
                table[size, name].append(found[name].low <= value <= found[name].high if known else None)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--populations", type=int, default=4)
    parser.add_argument("--draws", type=int, default=100)
    options = parser.parse_args()
    print("| classes | images | mean IoU | mean Dice | pixel accuracy | boundary IoU | IoU of the last class |")
    print("|---|---|---|---|---|---|---|")
    for cell, (name, shares) in enumerate(CELLS.items()):
        table = defaultdict(list)
        for population in range(options.populations):
            covered(np.random.default_rng([cell, population]), shares, options.draws, table)
        for size in SIZES:
            print(f"| {name} | {size} | {' | '.join(shown(table[size, metric]) for metric in METRICS)} |", flush=True)


METRICS = ("mean_iou", "mean_dice", "pixel_accuracy", "boundary_iou", "IoU of the last class")


def shown(held: list[bool | None]) -> str:
    known = [each for each in held if each is not None]
    if not known:
        return "–"
    share = f"{np.mean(known):.1%}".replace("%", " %")
    return share if len(known) == len(held) else f"{share} (known: {len(known) / len(held):.0%})"


if __name__ == "__main__":
    main()
