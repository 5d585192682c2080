"""Images: evaluation uses exactly the processor that is saved; training may augment."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import pandas as pd
import psutil
import torch
from pydantic import Field

from hftransfer.core.image_files import KeptImages, open_image
from hftransfer.core.settings import Settings
from hftransfer.models.processors import ImageSettings, image_settings


class AugmentationConfig(Settings):
    """Random changes to training images.

    `auto` is `light` where the whole network trains and `none` where activations are stored. Crops keep at least half of
    the area: the 8 % of ImageNet recipes cuts small objects away. Switch `flip` off where left and right differ in
    meaning (arrows, digits, text). `mixup` (arXiv 1710.09412) and `cutmix` (arXiv 1905.04899) are the alpha of the Beta
    distribution; 0 is off.
    """

    level: Literal["auto", "none", "light", "strong"] = "auto"
    flip: bool = True
    mixup: float = Field(0.0, ge=0)
    cutmix: float = Field(0.0, ge=0)


class Vision:
    name = "image"
    pipeline_task = "image-classification"
    inspects_cheaply = False
    processor_type = "AutoImageProcessor"
    truncated_share = 0.0

    def __init__(self, processor: Any, augmentation: AugmentationConfig):
        self.processor = processor
        self.augmentation = augmentation

    @cached_property
    def image_settings(self) -> ImageSettings:
        return image_settings(self.processor)

    def encode(self, frame: pd.DataFrame) -> list[Any]:
        return frame["input"].tolist()

    def lengths(self, items: Sequence[Any]) -> list[int]:
        return [1] * len(items)

    def collate(self, items: Sequence[Any], training: bool = False) -> dict[str, torch.Tensor]:
        if training and self.augmentation.level in ("light", "strong"):
            return {"pixel_values": torch.stack([self._augment(self._kept.open(item)) for item in items])}
        images = [open_image(item, at_least=2 * self.image_settings.resized) for item in items]
        return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}

    def plain_batch(self, processor: Any, frame: pd.DataFrame) -> dict[str, torch.Tensor]:
        """Return images, decoded at their full size, as a plain `processor` reads them."""
        return dict(processor(images=[open_image(value) for value in frame["input"]], return_tensors="pt"))

    def recorded(self, value: str | bytes) -> str:
        return str(Path(value).absolute()) if isinstance(value, str) and value else ""

    @cached_property
    def _kept(self) -> KeptImages:
        """A sixteenth of the free memory: each of up to eight loading workers keeps images of its own."""
        return KeptImages(max(self.image_settings.size), psutil.virtual_memory().available // 16)

    @cached_property
    def _augment(self) -> Any:
        """Light: crop of at least half the area, flip. Strong: the same with RandAugment (arXiv 1909.13719)."""
        from torchvision.transforms import v2

        settings = self.image_settings
        steps = [v2.RandomResizedCrop(settings.size, scale=(0.5, 1.0), antialias=True)]
        steps += [v2.RandomHorizontalFlip()] if self.augmentation.flip else []
        steps += [v2.RandAugment()] if self.augmentation.level == "strong" else []
        steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(settings.mean, settings.std)]
        return v2.Compose(steps)

    def mix(self, batch: dict[str, torch.Tensor], labels: torch.Tensor, classes: int) -> torch.Tensor:
        from torchvision.transforms import v2

        mixers = [
            make(alpha=alpha, num_classes=classes)
            for make, alpha in ((v2.MixUp, self.augmentation.mixup), (v2.CutMix, self.augmentation.cutmix))
            if alpha > 0
        ]
        if mixers and len(labels) > 1:
            batch["pixel_values"], labels = v2.RandomChoice(mixers)(batch["pixel_values"], labels)
        return labels

    def settings(self) -> dict[str, Any]:
        return {"processor": type(self.processor).__name__} | self.processor.to_dict()

    def skeleton(self, items: Sequence[Any]) -> dict[str, torch.Tensor]:
        return {}  # pixels are read by the stem alone, which does not run
