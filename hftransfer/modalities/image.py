"""Images: evaluation uses exactly the processor that is saved; training may augment."""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pandas as pd
import psutil
from PIL import Image

from hftransfer.core.image_files import (
    ORIENTATION,
    SUFFIXES,
    KeptImages,
    UnreadableImage,
    decode,
    describe_passed_over,
    encoded,
    is_pixels,
    names_image,
    open_image,
    opened,
    read_file,
)
from hftransfer.core.settings import Settings
from hftransfer.modalities.base import ModalityKind
from hftransfer.modalities.duplicates import similar_images
from hftransfer.modalities.inspection import Inspection, digest, each_in_threads

if TYPE_CHECKING:
    import torch

    from hftransfer.models.processors import ImageSettings

_CAMERA, _EXIF, _TAKEN = 0x0110, 0x8769, 0x9003
THUMBNAIL = 32
RAW = 16  # pixels a side of the pictures that a linear model reads


class AugmentationConfig(Settings):
    """Random changes to training images.

    `auto` is `light` where the whole network trains and `none` where activations are stored. Crops keep at least half of
    the area: the 8 % of ImageNet recipes cuts small objects away. Switch `flip` off where left and right differ in
    meaning (arrows, digits, text).
    """

    level: Literal["auto", "none", "light", "strong"] = "auto"
    flip: bool = True


class ImageKind(ModalityKind):
    name = noun = "image"
    plural = "images"
    files = True
    suffixes = SUFFIXES
    column_names = frozenset("image img path file filename file_name filepath file_path image_path photo".split())
    feature = "Image"
    auto_class_name = "AutoModelForImageClassification"
    processor_class = "AutoImageProcessor"
    pipeline_task = "image-classification"
    example_checkpoints = "google/vit-base-patch16-224 or timm/resnet50.a1_in1k"
    default_checkpoints = ("starter/efficientnet-lite0", "timm/tf_efficientnet_lite0.in1k")  # the same weights
    model_settings = ("image_size",)
    tower = "vision_config"
    # gradual: 1e-3 did not learn the tiles (docs/results.md)
    learning_rates = {
        "frozen": 1e-3, "full": 5e-4, "gradual": 5e-4, "lora": 2e-3, "scratch": 3e-3,
    }  # fmt: skip
    prior_gains = {"frozen": (0.013, 0.044), "lora": (0.020, 0.040), "full": (0.005, 0.060)}
    random_first = ("full", "gradual")
    rates_need_batchnorm = True
    augments = True
    content = shows = "picture"
    raw_model = f"model on {RAW} x {RAW} pixels"
    api_names = ("image",)
    fault_finding = "image-broken"

    def takes(self, task: Any) -> bool:
        return not task.by_word

    def for_task(self, task: Any) -> ModalityKind:
        from hftransfer.modalities.pixels import PixelsKind

        return PixelsKind() if task.by_pixel else super().for_task(task)

    def recognises(self, sample: Sequence[Any]) -> bool:
        """Return encoded images as `datasets` keeps them, pixels in memory, or file names with an image suffix."""
        return all(
            isinstance(value, bytes)
            or (isinstance(value, dict) and {"bytes", "path"} <= set(value))
            or (isinstance(value, str) and names_image(value.strip()))
            or is_pixels(value)
            for value in sample
        )

    def encoded(self, value: Any) -> Any:
        """Pillow images and arrays of pixels become the bytes of a PNG file."""
        return encoded(value) if is_pixels(value) else value

    def describe_passed_over(self, names: list[str]) -> str | None:
        return describe_passed_over(names)

    def bytes_of(self, source: str | bytes) -> bytes:
        return source if isinstance(source, bytes) else read_file(source)

    def inspect(self, frame: pd.DataFrame) -> list[Inspection]:
        """Decode every image once, in a thread pool: Pillow decodes without the interpreter lock."""
        return each_in_threads(self.inspection, list(frame["input"]), "checking images")

    def inspection(self, *values: str | bytes) -> Inspection:
        """Decode an image from its path or bytes; a broken one comes back with its fault.

        JPEGs are decoded at a fraction of their size: that reads the whole file and finds truncation just as well.
        """
        (source,) = values
        try:
            content = self.bytes_of(source)
            with opened(content) as image:
                # Taken now: draft mode, used to decode faster, changes size and mode.
                stored = {"format": image.format or "", "mode": image.mode, "size": image.size}
                exif = image.getexif()
                upright = decode(image, at_least=2 * THUMBNAIL)
                return Inspection(
                    digest(content),
                    **stored,
                    frames=getattr(image, "n_frames", 1),
                    orientation=exif.get(ORIENTATION, 1),
                    taken=_taken(exif),
                    thumbnail=thumbnail(upright),
                )
        except UnreadableImage as error:
            return Inspection("", error.reason)

    def near_duplicates(self, frame: pd.DataFrame, inspections: Sequence[Inspection]) -> np.ndarray:
        return similar_images(
            [inspection.thumbnail for inspection in inspections], [min(inspection.size) for inspection in inspections]
        )

    def check_processor(self, processor: Any, model: Any, name: str) -> None:
        from hftransfer.models.limits import check_pixels

        check_pixels(processor, name)

    def adjust(self, model: Any, processor: Any, config: Any, name: str) -> tuple[Any, Any]:
        from hftransfer.models.processors import resize

        return resize(model, processor, config.image_size) if config.image_size else (model, processor)

    def bind(self, processor: Any, augmentation: AugmentationConfig | None = None) -> "Vision":
        return Vision(processor, augmentation or AugmentationConfig(), self)

    def usage(self, pair: bool) -> str:
        return '"photo.jpg"'

    def suffix_of(self, content: bytes) -> str:
        with opened(content) as image:
            return image.format.lower()

    def picture(self, source: str | bytes, side: int) -> Image.Image:
        return open_image(source, at_least=side)

    def raw_features(self, inputs: Sequence[Any]) -> np.ndarray:
        """Return every image as 16 x 16 pixels in a row, (N, 768), from 0 to 1."""
        small = (open_image(item, at_least=RAW).convert("RGB").resize((RAW, RAW)) for item in inputs)
        return np.stack([np.asarray(image, dtype=np.float32).ravel() / 255 for image in small])

    def traits(self, inspection: Inspection) -> dict[str, Any]:
        width, height = inspection.size
        return {
            "width": width, "height": height, "shape (width by height)": round(width / max(height, 1), 2),
            "format and mode": f"{inspection.format} {inspection.mode}",
            "camera": inspection.taken[0] if inspection.taken else "",
        }  # fmt: skip


def thumbnail(image: Image.Image) -> np.ndarray:
    """Return the image in grey at 32 x 32 pixels, uint8, every pixel the mean of its area."""
    return np.asarray(image.convert("L").resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX))


def _taken(exif: Image.Exif) -> tuple[str, str] | None:
    time = exif.get_ifd(_EXIF).get(_TAKEN)
    return (str(exif.get(_CAMERA, "")), str(time)) if time else None


class Vision:
    """An image processor at work (see `Modality`)."""

    truncated_share = 0.0
    mixes_lengths = True

    def __init__(self, processor: Any, augmentation: AugmentationConfig, kind: ModalityKind):
        self.processor, self.augmentation, self.kind = processor, augmentation, kind

    @cached_property
    def image_settings(self) -> "ImageSettings":
        from hftransfer.models.processors import image_settings

        return image_settings(self.processor)

    def encode(self, frame: pd.DataFrame) -> list[Any]:
        return frame["input"].tolist()

    def lengths(self, items: Sequence[Any]) -> list[int]:
        return [1] * len(items)

    def collate(self, items: Sequence[Any], training: bool = False) -> dict[str, "torch.Tensor"]:
        import torch

        if training and self.augmentation.level in ("light", "strong"):
            return {"pixel_values": torch.stack([self._augment(self._kept.open(item)) for item in items])}
        images = [open_image(item, at_least=2 * self.image_settings.resized) for item in items]
        return {"pixel_values": self.processor(images=images, return_tensors="pt")["pixel_values"]}

    def plain_batch(self, processor: Any, frame: pd.DataFrame) -> dict[str, "torch.Tensor"]:
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
        import torch
        from torchvision.transforms import v2

        settings = self.image_settings
        steps = [v2.RandomResizedCrop(settings.size, scale=(0.5, 1.0), antialias=True)]
        steps += [v2.RandomHorizontalFlip()] if self.augmentation.flip else []
        steps += [v2.RandAugment()] if self.augmentation.level == "strong" else []
        steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(settings.mean, settings.std)]
        return v2.Compose(steps)

    def settings(self) -> dict[str, Any]:
        return {"processor": type(self.processor).__name__} | self.processor.to_dict()

    def skeleton(self, items: Sequence[Any]) -> dict[str, "torch.Tensor"]:
        return {}  # pixels are read by the stem alone, which does not run
