"""What goes in: images or texts. A new modality is one new file here and one row in the behaviour matrix of the tests."""

from typing import Any

from hftransfer.modalities.base import Modality
from hftransfer.modalities.image import AugmentationConfig, Vision
from hftransfer.modalities.text import Text

__all__ = ["AugmentationConfig", "Modality", "Text", "Vision", "make_modality"]


def make_modality(name: str, processor: Any, augmentation: AugmentationConfig | None = None) -> Modality:
    """The modality called `name` ("image" or "text") around a checkpoint's image processor or tokenizer."""
    return Vision(processor, augmentation or AugmentationConfig()) if name == "image" else Text(processor)
