"""Images read pixel by pixel: each is one input of the network, and its mask is what the loss and the metrics see."""

import math
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pandas as pd
from PIL import Image

from hftransfer.core.image_files import size_of
from hftransfer.core.mask_files import IGNORED as NO_CLASS
from hftransfer.core.mask_files import decode_mask, encode_prediction, resized_mask
from hftransfer.modalities.base import ASSUMED_GAINS
from hftransfer.modalities.image import AugmentationConfig, ImageKind, Vision
from hftransfer.tasks.masks import sized
from hftransfer.tasks.tokens import IGNORED

if TYPE_CHECKING:
    import torch

STEP = 17  # of certainty in 0..255: finer than 16 levels is noise, which PNG cannot compress
SHARE, SHAPE = (0.5, 1.0), (3 / 4, 4 / 3)  # of the area that a crop keeps, and its ratio of width to height


class Scene(NamedTuple):
    """An image (path or bytes) with its mask, where it has one."""

    source: str | bytes
    mask: bytes | None


class PixelsKind(ImageKind):
    auto_class_name = "AutoModelForSemanticSegmentation"
    pipeline_task = "image-segmentation"
    encoder = ImageKind()
    solves_head = False
    # docs/masks.md; a decoder that begins at random has ten times the rate (`Strategy.head_factor`)
    learning_rates = {
        "probe": 1e-3, "frozen": 5e-4, "full": 5e-4, "gradual": 5e-4, "lora": 5e-4, "scratch": 1e-3,
    }  # fmt: skip
    batch_size = 8  # an image has as many answers as pixels
    prior_gains, prior_measured = ASSUMED_GAINS, False
    raw_model = None  # the pixels of a small picture say nothing of single pixels
    rates_need_batchnorm = False

    def __init__(self, size: tuple[int, int] | None = None):
        self.size = size  # (height, width) of the inputs of the network, once a processor is bound

    def for_task(self, task: Any) -> "PixelsKind":
        return self

    def bind(self, processor: Any, augmentation: AugmentationConfig | None = None) -> "Pixels":
        from hftransfer.models.processors import image_settings

        kind = PixelsKind(image_settings(processor).size)
        return Pixels(processor, augmentation or AugmentationConfig(), kind)

    def read(self, pieces: Sequence[Scene], values: "torch.Tensor") -> list[bytes]:
        """Return the predicted mask of each image at its own size, from logits (B, C, h, w).

        One image at a time is enlarged, as `post_process_semantic_segmentation` does: all of a batch may not fit.
        """
        return [_prediction(logits, size_of(piece.source)) for piece, logits in zip(pieces, values, strict=True)]

    def labels(self, pieces: Sequence[Scene], targets: Any, batch: dict[str, Any]) -> np.ndarray:
        """Return the masks (B, h, w) int16 at the size of the network's inputs: those of augmented images came with them."""
        if "labels" in batch:
            return batch.pop("labels")
        return np.stack([as_labels(resized_mask(decode_mask(mask), self.size)) for mask in targets])

    def pipeline_options(self, outputs: int) -> dict[str, Any]:
        return {"subtask": "semantic"}


def as_labels(mask: np.ndarray) -> np.ndarray:
    """Return a mask as the loss reads it: int16, -100 where a pixel has no class."""
    return np.where(mask == NO_CLASS, IGNORED, mask.astype(np.int16))  # -100 does not fit into uint8


def _prediction(logits: "torch.Tensor", size: tuple[int, int]) -> bytes:
    """Return classes and certainty of an image of `size` (height, width) from its logits (C, h, w)."""
    import torch

    certainty, classes = sized(logits[None].float(), size)[0].softmax(0).max(0)
    levels = (certainty * (255 // STEP)).round() * STEP
    return encode_prediction(*(each.to(torch.uint8).cpu().numpy() for each in (classes, levels)))


class Pixels(Vision):
    """An image processor at work on images with masks."""

    def encode(self, frame: pd.DataFrame) -> list[Scene]:
        masks = frame["label"] if "label" in frame else [None] * len(frame)
        return [Scene(*each) for each in zip(frame["input"], masks, strict=True)]

    def collate(self, items: Sequence[Scene], training: bool = False) -> dict[str, Any]:
        if not training or self.augmentation.level not in ("light", "strong"):
            return super().collate([item.source for item in items])
        import torch

        changed = [self._changed(item) for item in items]
        return {
            "pixel_values": torch.stack([pixels for pixels, _ in changed]),
            "labels": np.stack([labels for _, labels in changed]),
        }

    def _changed(self, item: Scene) -> tuple["torch.Tensor", np.ndarray]:
        """Return one image, cropped, mirrored and (strong) recoloured at random, and its mask changed alike."""
        import torch

        image, mask = self._kept.open(item.source), decode_mask(item.mask)
        top, left, height, width = _crop()
        rows, columns = self.image_settings.size
        box = (left * image.width, top * image.height, (left + width) * image.width, (top + height) * image.height)
        image = image.resize((columns, rows), Image.Resampling.BILINEAR, box)
        inside = mask[_places(top, height, rows, mask.shape[0])[:, None], _places(left, width, columns, mask.shape[1])]
        if self.augmentation.flip and torch.rand(()) < 0.5:
            image, inside = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT), inside[:, ::-1]
        return self._as_tensor(image), as_labels(inside)

    @cached_property
    def _as_tensor(self) -> Any:
        import torch
        from torchvision.transforms import v2

        settings = self.image_settings
        steps = [v2.ColorJitter(0.4, 0.4, 0.4, 0.1)] if self.augmentation.level == "strong" else []
        steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(settings.mean, settings.std)]
        return v2.Compose(steps)


def _crop() -> tuple[float, float, float, float]:
    """Return top, left, height and width of a random part of an image, as shares of its sides."""
    import torch

    area, shape, down, right = torch.rand(4).tolist()
    area = SHARE[0] + area * (SHARE[1] - SHARE[0])
    shape = math.exp(math.log(SHAPE[0]) + shape * math.log(SHAPE[1] / SHAPE[0]))
    height, width = min(1.0, math.sqrt(area / shape)), min(1.0, math.sqrt(area * shape))
    return down * (1 - height), right * (1 - width), height, width


def _places(begin: float, share: float, count: int, length: int) -> np.ndarray:
    """Return which rows of a mask lie at the centres of `count` pixels over a share of its side."""
    return np.minimum(((begin + (np.arange(count) + 0.5) / count * share) * length).astype(int), length - 1)
