"""A mask keeps its numbers through files, and its place when it is resized."""

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from hftransfer.core.mask_files import (
    IGNORED,
    UnreadableMask,
    as_palette_png,
    coloured,
    decode_mask,
    decode_prediction,
    encode_mask,
    encode_prediction,
    mask_size,
    palette,
    resized_mask,
)


@pytest.fixture
def mask() -> np.ndarray:
    return np.random.default_rng(0).choice([0, 1, 2, 254, IGNORED], size=(13, 21)).astype(np.uint8)


def test_a_mask_keeps_its_values(mask):
    content = encode_mask(mask)
    assert Image.open(BytesIO(content)).mode == "L"
    assert mask_size(content) == (13, 21)
    assert np.array_equal(decode_mask(content), mask)


def test_a_prediction_keeps_classes_and_certainty(mask):
    certainty = np.arange(mask.size).reshape(mask.shape) % 256
    content = encode_prediction(mask, certainty)
    classes, found = decode_prediction(content)
    assert mask_size(content) == (13, 21)
    assert np.array_equal(classes, mask)
    assert np.array_equal(found, certainty)


@pytest.mark.parametrize(
    "array", [np.full((2, 2), 256), np.full((2, 2), -1), np.full((2, 2), 0.5), np.zeros((2, 2, 3))]
)
def test_no_value_is_wrapped_or_cut(array):
    with pytest.raises(ValueError, match="a mask"):
        encode_mask(array)


def test_what_is_no_mask_is_named(mask):
    with pytest.raises(UnreadableMask, match="no PNG"):
        mask_size(b"GIF89a")
    with pytest.raises(UnreadableMask, match="mode L, not LA"):
        decode_prediction(encode_mask(mask))
    with pytest.raises(UnreadableMask, match="Cannot read the mask"):
        decode_mask(encode_mask(mask)[:60])


@pytest.mark.parametrize("size", [(7, 50), (13, 21), (26, 42), (100, 5), (1, 1)])
def test_resizing_is_nearest_exact(mask, size):
    expected = torch.nn.functional.interpolate(torch.from_numpy(mask)[None, None], size, mode="nearest-exact")[0, 0]
    assert np.array_equal(resized_mask(mask, size), expected.numpy())


@pytest.mark.parametrize("new", [7, 9, 15, 32, 50, 100])
def test_a_centred_square_stays_centred(new):
    square = np.zeros((31, 31), np.uint8)
    square[10:21, 10:21] = 1
    resized = resized_mask(square, (new, new))
    assert resized.any()
    assert np.array_equal(resized, resized[::-1, ::-1])


def test_colours_are_distinct_and_the_first_ones_stay():
    colours = palette(255)
    assert colours.shape == (255, 3)
    assert len(np.unique(colours, axis=0)) == 255
    assert np.array_equal(palette(5), colours[:5])
    assert not palette(3)[0].any()


def test_a_palette_file_holds_numbers_and_colours(mask):
    mask = np.minimum(mask, 2) + (mask == IGNORED) * (IGNORED - 2)
    colours = palette(3)
    image = Image.open(BytesIO(as_palette_png(mask, colours)))
    assert image.mode == "P"
    assert np.array_equal(np.asarray(image), mask)
    assert np.array_equal(np.asarray(image.convert("RGB")), coloured(mask, colours))
