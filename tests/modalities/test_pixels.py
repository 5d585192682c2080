"""Images read pixel by pixel: augmentation changes image and mask alike, and ignored pixels stay so."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import SegformerImageProcessor

from hftransfer.core.image_files import size_of
from hftransfer.core.mask_files import encode_mask
from hftransfer.modalities import AugmentationConfig, kind_of
from hftransfer.tasks import Masks
from hftransfer.tasks.tokens import IGNORED

KIND = kind_of("image").for_task(Masks(("background", "square")))


def scene(size=(60, 80)):
    """A white square on black, and its mask."""
    mask = np.zeros(size, np.uint8)
    mask[20:40, 10:50] = 1
    stream = io.BytesIO()
    Image.fromarray(np.repeat(255 * mask[..., None], 3, 2)).save(stream, "PNG")
    return stream.getvalue(), mask


def bound(level):
    processor = SegformerImageProcessor(size={"height": 48, "width": 48}, image_mean=[0] * 3, image_std=[1] * 3)
    return KIND.bind(processor, AugmentationConfig(level=level))


@pytest.mark.parametrize("level", ["none", "light", "strong"])
def test_image_and_mask_change_alike(level):
    content, mask = scene()
    modality = bound(level)
    items = modality.encode(pd.DataFrame({"input": [content] * 12, "label": [encode_mask(mask)] * 12}))
    torch.manual_seed(0)
    batch = modality.collate(items, training=True)
    labels = modality.kind.labels(items, [item.mask for item in items], batch)
    white = batch["pixel_values"].mean(1).numpy()
    middle = (white.max((1, 2)) + white.min((1, 2))) / 2
    assert ((white > middle[:, None, None]) == (labels == 1)).mean() > 0.985  # all but the edges
    assert (len({each.tobytes() for each in labels}) > 1) == (level != "none")
    assert "labels" not in batch


def test_the_flip_can_be_switched_off():
    content, mask = scene()
    modality = KIND.bind(bound("light").processor, AugmentationConfig(level="light", flip=False))
    items = modality.encode(pd.DataFrame({"input": [content] * 20, "label": [encode_mask(mask)] * 20}))
    labels = modality.collate(items, training=True)["labels"]
    columns = np.array([np.nonzero(each)[1].mean() if each.any() else 0 for each in labels])
    assert (columns < 30).all()  # the square stays on the left


def test_ignored_pixels_have_no_label():
    content, mask = scene()
    mask[:10] = 255
    modality = bound("none")
    items = modality.encode(pd.DataFrame({"input": [content], "label": [encode_mask(mask)]}))
    labels = modality.kind.labels(items, [items[0].mask], modality.collate(items))
    assert set(np.unique(labels)) == {IGNORED, 0, 1} and labels.shape == (1, 48, 48)


def test_the_size_of_an_image_is_that_of_the_upright_one():
    stream, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    Image.new("RGB", (30, 20)).save(stream, "JPEG", exif=exif)
    assert size_of(stream.getvalue()) == (30, 20)
