"""Semantic segmentation: each pixel of an image has a class. The example is an image, the unit of prediction a pixel.

A label is a mask (`core.mask_files`): the bytes of a PNG whose values are numbers of classes, 255 where a pixel has none.
Logits of all pixels of a data set do not fit into memory. What stands in their place everywhere behind the network is one
PNG for each image with class and certainty of every pixel: targets, logits and scores of N images are object arrays (N,)
of bytes. All of them have the size of the image itself.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import numpy as np

from hftransfer.core.mask_files import IGNORED as NO_CLASS
from hftransfer.core.mask_files import decode_mask, decode_prediction, encode_prediction, mask_size
from hftransfer.tasks.base import Task
from hftransfer.tasks.single_label import SingleLabel
from hftransfer.tasks.tokens import IGNORED, ragged

MOST_DIFFERENT = 1e-3  # of the pixels that are no tie: rounding moves fewer


@dataclass(frozen=True)
class Masks(Task):
    """`names` are the classes in the order of the values of a mask; the first is the background, where there is one."""

    type = "masks"
    problem_type = None  # transformers has none: the class of the model tells it
    architecture = "ForSemanticSegmentation"
    output, outputs, unit = "class", "classes", "pixel"
    by_pixel = True
    least_outputs = 2  # UperNet refuses fewer
    lacks = frozenset({"rank", "curve", "next", "--explain",
                       "evaluation.metrics", "doctor --fix", "doctor --measure", "export"})  # fmt: skip
    headline = learning_metric = selection_metric = "mean_iou"
    macro_metric, class_metric = "mean_iou", "iou"
    class_columns = ("dice", "iou")

    @property
    def of_unit(self) -> SingleLabel:
        return SingleLabel(self.names, weights=self.weights)

    def answers(self, scores: np.ndarray, texts: Sequence[str], places: Sequence[np.ndarray | None]) -> list[Any]:
        """Return the share of the area of each class that an image has, largest first."""
        return [self.areas(decode_prediction(each)[0]) for each in scores]

    def areas(self, classes: np.ndarray) -> dict[str, float]:
        """Return the share of the pixels (H, W) that each class has, largest first; classes without any are left out."""
        counts = np.bincount(classes.ravel(), minlength=len(self.names))[: len(self.names)]
        order = np.argsort(-counts, kind="stable")
        total = max(int(counts.sum()), 1)
        return {self.names[number]: int(counts[number]) / total for number in order if counts[number]}

    # --- targets ------------------------------------------------------------------------------------------------------

    def encode(self, label: bytes) -> bytes:
        return label

    def encode_all(self, labels: list[Any]) -> np.ndarray:
        return ragged(labels)

    def decode(self, prediction: Any) -> list[str]:
        """Return the names of the classes in a mask or a prediction."""
        return list(self.areas(decode_prediction(prediction)[0]))

    def label_names(self, label: bytes) -> list[str]:
        return [name for name, count in zip(self.names, pixels_of(label, len(self.names)), strict=True) if count]

    def describe(self, label: bytes) -> str:
        return shares(self.areas(decode_mask(label)))

    def one_hot(self, targets: np.ndarray) -> np.ndarray:
        """Return which classes each image has, (N, C)."""
        return (self.pixels(targets) > 0).astype(np.float64)

    def pixels(self, targets: np.ndarray) -> np.ndarray:
        """Return how many pixels of each class each image has, (N, C)."""
        found = [pixels_of(label, len(self.names)) for label in targets]
        return np.array(found, dtype=np.float64).reshape(len(targets), len(self.names))

    def strata(self, targets: np.ndarray) -> np.ndarray:
        """Return the rarest class of each image, and one further stratum for images without any."""
        present = self.one_hot(targets)
        rarest = np.where(present > 0, -present.sum(0), -np.inf).argmax(1)
        return np.where(present.any(1), rarest, len(self.names))

    def with_balance(self, targets: np.ndarray) -> Task:
        """Return the task with weights by the root of how rare the pixels of a class are; their mean over pixels is 1.

        The full inverse lets a class of a thousandth of the pixels outweigh all others a thousandfold.
        """
        share = self.pixels(targets).sum(0)
        share = np.maximum(share, 1) / max(share.sum(), 1)
        weights = share**-0.5
        return replace(self, weights=tuple((weights / (weights * share).sum()).tolist()))

    @property
    def uninformed_loss(self) -> float:
        """Cross-entropy and Dice loss of equal probabilities."""
        return math.log(self.head_size) + 1 - 1 / self.head_size

    # --- loss ---------------------------------------------------------------------------------------------------------

    def loss(self, logits: Any, labels: Any, smoothing: float) -> Any:
        """Return cross-entropy plus soft Dice loss (B, H, W) of logits (B, C, h, w); pixels labelled -100 have none.

        The Dice loss (Milletari et al. 2016, arXiv 1606.04797, section 3) is of the whole batch, one minus the mean over
        the classes that it has. Each labelled pixel carries it, so that the mean over pixels is the sum of both.
        """
        from torch import tensor
        from torch.nn.functional import cross_entropy

        labels, logits = labels.long(), sized(logits, labels.shape[-2:])
        weights = tensor(self.weights, device=logits.device) if self.weights else None
        entropy = cross_entropy(logits, labels, weight=weights, label_smoothing=smoothing, reduction="none")
        known = labels != IGNORED
        return entropy + known * _dice_loss(logits, labels, known)

    # --- scores and decisions -----------------------------------------------------------------------------------------

    def probabilities(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def decide(self, scores: np.ndarray) -> np.ndarray:
        return scores

    def decides_otherwise(self, recorded: np.ndarray, found: np.ndarray, tie: float, share: float = 0.05) -> np.ndarray:
        """Return for each image (N,) whether more pixels differ than rounding moves; unsure pixels are left out."""
        return np.array([_differs(*pair, tie) for pair in zip(recorded, found, strict=True)], dtype=bool)

    def faultless(self, targets: np.ndarray) -> np.ndarray:
        masks = (decode_mask(mask) for mask in targets)
        return ragged([_certain(np.where(mask == NO_CLASS, 0, mask)) for mask in masks])

    def commonest(self, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
        """Return predictions that have the class of most pixels everywhere."""
        number = int(self.pixels(known).sum(0).argmax())
        return ragged([_certain(np.full(mask_size(mask), number, np.uint8)) for mask in asked])


def _certain(classes: np.ndarray) -> bytes:
    """Return the prediction of classes (H, W) without doubt."""
    return encode_prediction(classes, np.full(classes.shape, 255, np.uint8))


def _differs(one: bytes, other: bytes, tie: float) -> bool:
    (own, certainty), (found, _) = decode_prediction(one), decode_prediction(other)
    if own.shape != found.shape:
        return True
    unsure = certainty < 255 * (0.5 + tie) + 1  # of two classes that share the rest, neither is more than this
    return bool(((own != found) & ~unsure).mean() > MOST_DIFFERENT)


def shares(areas: dict[str, float]) -> str:
    """Return shares of the area as one line."""
    return ", ".join(f"{name} {share:.1%}" for name, share in areas.items())


@lru_cache(maxsize=1 << 16)
def pixels_of(label: bytes, classes: int) -> tuple[int, ...]:
    """Return how many pixels of each class a mask has."""
    mask = decode_mask(label)
    return tuple(np.bincount(mask[mask != NO_CLASS], minlength=classes)[:classes].tolist())


def sized(logits: Any, size: Sequence[int]) -> Any:
    """Return logits (B, C, h, w) at another size, as `post_process_semantic_segmentation` of transformers resizes them."""
    from torch.nn.functional import interpolate

    same = tuple(logits.shape[-2:]) == tuple(size)
    return logits if same else interpolate(logits, size=tuple(size), mode="bilinear", align_corners=False)


def _dice_loss(logits: Any, labels: Any, known: Any) -> Any:
    from torch import zeros_like

    chances = logits.softmax(1) * known[:, None]
    truth = zeros_like(chances).scatter_(1, labels.clamp(min=0)[:, None], 1.0) * known[:, None]
    both, either = (chances * truth).sum((0, 2, 3)), (chances + truth).sum((0, 2, 3))
    present = truth.sum((0, 2, 3)) > 0
    return 1 - (2 * both[present] / either[present]).mean() if present.any() else logits.sum() * 0
