"""Every mode and orientation comes out as upright RGB; what cannot be decoded is named."""

from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from hftransfer.core.image_files import KeptImages, UnreadableImage, is_image_name, open_image


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    buffer = BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def gradient(width: int = 64, height: int = 48) -> Image.Image:
    """A picture without symmetry: red grows to the right, green downwards."""
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([x * 255 // width, y * 255 // height, 0 * x], -1).astype(np.uint8))


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGBA", "CMYK", "YCbCr", "LAB", "HSV", "I", "F", "I;16"])
def test_every_mode_becomes_rgb_of_the_same_size(mode):
    image = open_image(Image.new(mode, (7, 5)))
    assert (image.mode, image.size) == ("RGB", (7, 5))


@pytest.mark.parametrize("mode", ["CMYK", "YCbCr", "LAB"])
def test_colour_spaces_keep_the_colour(mode):
    orange = Image.new("RGB", (4, 4), (230, 120, 40))
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        source = ImageCms.profileToProfile(orange, *profiles, outputMode="LAB")
    else:
        source = orange.convert(mode)
    assert np.allclose(open_image(source).getpixel((1, 1)), (230, 120, 40), atol=4)


def test_transparent_pixels_become_white():
    image = Image.new("RGBA", (2, 1), (0, 0, 0, 0))
    image.putpixel((1, 0), (200, 10, 10, 255))
    opened = open_image(encoded(image))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((1, 0)) == (200, 10, 10)


def test_a_transparent_colour_of_a_palette_or_rgb_png_becomes_white():
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([10, 20, 30, 200, 100, 50])
    palette.putpixel((1, 0), 1)
    opened = open_image(encoded(palette, transparency=0))
    assert [opened.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (200, 100, 50)]
    rgb = encoded(Image.new("RGB", (1, 1), (9, 8, 7)), transparency=(9, 8, 7))
    assert open_image(rgb).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0, 65535, 32768]], np.uint16), [0, 255, 128]),
        (np.array([[0, 255, 128]], np.int32), [0, 255, 128]),
        (np.array([[0, 65535, 32768]], np.int32), [0, 255, 128]),
        (np.array([[0.0, 1.0, 0.5]], np.float32), [0, 255, 128]),
        (np.array([[-3.0, 5.0, 1.0]], np.float32), [0, 255, 128]),
    ],
)
def test_deep_greys_are_scaled_not_cut(values, expected):
    opened = np.asarray(open_image(Image.fromarray(values)))
    assert np.abs(opened[0, :, 0].astype(int) - expected).max() <= 1
    assert (opened[..., 0] == opened[..., 1]).all() and (opened[..., 0] == opened[..., 2]).all()


def test_sixteen_bit_png_from_disk(tmp_path):
    values = (np.arange(256, dtype=np.uint16) * 257).reshape(16, 16)
    Image.fromarray(values).save(tmp_path / "deep.png")
    assert (np.asarray(open_image(tmp_path / "deep.png"))[..., 0] == np.arange(256).reshape(16, 16)).all()


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_undone(orientation, tmp_path):
    upright = gradient()
    undo = {
        2: [Image.Transpose.FLIP_LEFT_RIGHT],
        3: [Image.Transpose.ROTATE_180],
        4: [Image.Transpose.FLIP_TOP_BOTTOM],
        5: [Image.Transpose.TRANSPOSE],
        6: [Image.Transpose.ROTATE_90],
        7: [Image.Transpose.TRANSVERSE],
        8: [Image.Transpose.ROTATE_270],
    }
    stored = upright
    for step in undo.get(orientation, []):
        stored = stored.transpose(step)
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored.save(tmp_path / "photo.png", exif=exif)
    assert np.array_equal(np.asarray(open_image(tmp_path / "photo.png")), np.asarray(upright))


@pytest.mark.parametrize("size", [(1000, 600), (601, 999), (400, 400)])
def test_at_least_decodes_large_photos_smaller_but_never_too_small(size):
    photo = encoded(gradient(*size), "JPEG", quality=95)
    small = open_image(photo, at_least=64)
    assert 64 <= min(small.size) < min(size)
    whole = open_image(photo).resize(small.size, Image.Resampling.BOX)
    assert np.abs(np.asarray(whole, float) - np.asarray(small, float)).mean() < 4


def test_at_least_leaves_small_photos_and_other_formats_alone():
    assert open_image(encoded(gradient(120, 100), "JPEG"), at_least=50).size == (120, 100)
    assert open_image(encoded(gradient(400, 300), "PNG"), at_least=50).size == (400, 300)


def test_first_frame_of_an_animation():
    frames = [Image.new("RGB", (3, 3), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])
    assert open_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("empty.png", b"", "its content is no image that Pillow knows"),
        ("text.jpg", b"hello, I am a text", "its content is no image that Pillow knows"),
        ("cut.jpg", encoded(gradient(200, 200), "JPEG")[:1500], "image file is truncated"),
        ("cut.png", encoded(Image.effect_noise((200, 200), 60))[:3000], "image file is truncated"),
    ],
)
def test_what_cannot_be_decoded_is_named_with_the_reason(name, content, reason, tmp_path):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(UnreadableImage) as caught:
        open_image(tmp_path / name)
    assert str(caught.value).startswith(f"Cannot read the image '{tmp_path / name}': {reason}")
    assert str(caught.value).endswith("Replace or remove it, or leave such files out with data.on_error=skip.")
    with pytest.raises(UnreadableImage, match=reason):
        open_image(content, at_least=8)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(UnreadableImage, match="there is no such file"):
        open_image(tmp_path / "none.png")
    with pytest.raises(UnreadableImage, match="it is a folder"):
        open_image(tmp_path)


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(UnreadableImage, match="decompression bomb"):
        open_image(encoded(Image.new("L", (100, 100))))


def test_kept_images_are_read_once_and_equal(tmp_path):
    gradient(64, 48).save(tmp_path / "a.png")
    kept = KeptImages(at_least=40, limit_bytes=64 * 48 * 3)
    first = kept.open(str(tmp_path / "a.png"))
    (tmp_path / "a.png").unlink()
    assert np.array_equal(kept.open(str(tmp_path / "a.png")), first)
    assert np.array_equal(first, gradient(64, 48))


def test_images_beyond_the_limit_are_read_again(tmp_path):
    gradient(64, 48).save(tmp_path / "a.png")
    kept = KeptImages(at_least=40, limit_bytes=64 * 48 * 3 - 1)
    kept.open(str(tmp_path / "a.png"))
    (tmp_path / "a.png").unlink()
    with pytest.raises(UnreadableImage, match="there is no such file"):
        kept.open(str(tmp_path / "a.png"))


def test_large_images_are_kept_at_twice_the_size_that_is_needed(tmp_path):
    gradient(640, 480).save(tmp_path / "a.png")
    kept = KeptImages(at_least=40, limit_bytes=10**6)
    assert kept.open(str(tmp_path / "a.png")).size == kept.open(str(tmp_path / "a.png")).size == (107, 80)


@pytest.mark.parametrize(("name", "expected"), [("a.JPG", True), ("b.tiff", True), ("c.txt", False), ("d", False)])
def test_image_names(name, expected):
    assert is_image_name(name) is expected
