"""Each fault of masks gives its finding, and masks without it give none."""

import numpy as np
import pytest
from PIL import Image

from hftransfer.core.mask_files import IGNORED, resized_mask
from hftransfer.data import DataConfig, load_data
from hftransfer.doctor import Finding, examine, examine_loaded
from hftransfer.doctor.masks import edge_strengths, shift_of, thin_shares
from tests.support.mask_data import drawn, save, write_folder


def found(path, **named) -> dict[str, Finding]:
    findings = list(examine(DataConfig(train=str(path), **named)))
    return {each.id: each for each in findings if each.id.startswith(("mask-", "label-"))}


def messages(path, **named) -> dict[str, str]:
    return {id_: each.message for id_, each in found(path, **named).items()}


def test_sound_masks_give_no_finding(tmp_path):
    write_folder(tmp_path, count=30)
    assert found(tmp_path) == {}


def test_masks_that_cannot_be_used(tmp_path):
    write_folder(tmp_path, count=30)
    (tmp_path / "masks" / "x04.png").write_bytes(b"no image")
    save(np.zeros((24, 24), np.uint8), tmp_path / "masks" / "x05.png")
    (tmp_path / "masks" / "x06.png").unlink()
    broken = found(tmp_path)["mask-broken"]
    assert broken.message == "Masks that cannot be used: 2 of 30." and broken.severity == "error"
    assert "its mask has 24 x 24 pixels, the picture 32 x 24" in broken.rows[1]
    assert messages(tmp_path)["label-missing"] == "No label: 1 of 30 rows."


def test_equal_images_with_different_masks_contradict_each_other(tmp_path):
    write_folder(tmp_path, count=30)
    for name in ("x03", "x04"):
        picture, mask = drawn(3)
        save(picture, tmp_path / "images" / f"{name}.png")
        save(mask if name == "x03" else np.zeros_like(mask), tmp_path / "masks" / f"{name}.png")
    assert messages(tmp_path)["label-conflict"] == "Pairs of equal or nearly equal inputs with different labels: 1."
    save(drawn(3)[1], tmp_path / "masks" / "x04.png")
    assert "label-conflict" not in messages(tmp_path)


def test_masks_of_another_size(tmp_path):
    write_folder(tmp_path, lambda mask: mask.repeat(2, 0).repeat(2, 1), count=30)
    assert messages(tmp_path) == {"mask-resized": "Masks of another size than their picture: 30 of 30."}


def test_values_that_are_read_as_classes(tmp_path):
    write_folder(tmp_path / "two", lambda mask: np.where(mask > 0, 255, 0).astype(np.uint8), count=30)
    assert messages(tmp_path / "two") == {"mask-binary": "Masks of 0 and 255: background and 'foreground'."}
    write_folder(tmp_path / "more", count=30)
    named = {"background": 0, "crack": 1}
    assert found(tmp_path / "more", classes=named)["mask-unnamed"].rows == ("2: 1440 pixels",)


def smoothed(mask: np.ndarray) -> np.ndarray:
    """Return a mask that was drawn larger and made smaller as pictures are: class numbers are averaged."""
    large = np.roll(mask.repeat(4, 0).repeat(4, 1), (2, 1), (0, 1))
    return np.asarray(Image.fromarray(large).resize(mask.shape[::-1], Image.Resampling.BILINEAR))


def test_masks_of_two_values_that_were_smoothed(tmp_path):
    write_folder(tmp_path, lambda mask: smoothed(np.where(mask > 0, 255, 0).astype(np.uint8)), count=30)
    assert messages(tmp_path)["mask-blurred"] == "Masks with values between 0 and 255: 30."


def test_masks_of_classes_that_were_smoothed(tmp_path):
    """A square of class 2 gets an outline of class 1."""
    write_folder(tmp_path, lambda mask: smoothed(np.where(mask > 0, 2, 0).astype(np.uint8)), count=30)
    assert "class 1: " in messages(tmp_path)["mask-blurred"]
    squares = [np.where(drawn(number)[1] > 0, 2, 0).astype(np.uint8) for number in range(5)]
    assert thin_shares(map(smoothed, squares), 3)[1] > 0.5
    assert not thin_shares([resized_mask(square, (17, 50)) for square in squares], 3).any()


def test_a_class_around_another_is_not_thin():
    """A cell around its nucleus."""
    cell = np.zeros((60, 60), np.uint8)
    cell[10:50, 10:50] = 1
    cell[20:40, 20:40] = 2
    assert thin_shares([cell], 3).max() < 0.05
    cell[:, 30:] = IGNORED
    assert thin_shares([cell], 3).max() < 0.05


def test_empty_and_rare(tmp_path):
    def as_file(mask):
        return np.where(mask == 1, 0, mask).astype(np.uint8) if as_file.count() else np.zeros_like(mask)

    calls = iter(range(99))
    as_file.count = lambda: next(calls) >= 6
    write_folder(tmp_path, as_file, count=30)
    mask = np.asarray(Image.open(tmp_path / "masks" / "x20.png")).copy()
    mask[:2, :2] = 1
    save(mask, tmp_path / "masks" / "x20.png")
    findings = found(tmp_path)
    assert findings["mask-empty"].message == "Empty masks: 6 of 30 (20%)." and len(findings["mask-empty"].rows) == 6
    assert findings["mask-rare"].rows == ("class 1: 0.02% of the pixels",)
    assert findings["label-rare"].rows == ("class 1: 1",)
    assert "would lack a class" in findings["mask-class-missing"].message


def test_a_part_without_a_class(tmp_path):
    write_folder(tmp_path / "train", count=30)
    write_folder(tmp_path / "test", lambda mask: np.minimum(mask, 1), count=12)
    for number, path in enumerate(sorted((tmp_path / "test" / "images").iterdir())):
        save(drawn(100 + number)[0], path)
    assert messages(tmp_path)["mask-class-missing"] == "Parts lack a class: test: class 2."


def test_outlines_that_overlap(tmp_path):
    from tests.data.test_masks import write_coco

    extra = {"id": 999, "image_id": 0, "category_id": 10, "segmentation": [[0, 0, 32, 0, 32, 24, 0, 24]]}
    write_coco(tmp_path, extra=[extra], count=30)
    assert messages(tmp_path)["mask-overlap"] == "Pixels of annotations of several classes: 48."


@pytest.mark.parametrize(("right", "down"), [(0, 0), (2, 0), (0, -3), (-1, 2)])
def test_masks_beside_what_they_show(tmp_path, right, down):
    def as_file(mask):
        return np.roll(mask, (down, right), (0, 1))

    write_folder(tmp_path, as_file, count=30)
    pairs = [(picture.mean(2), as_file(mask)) for picture, mask in map(drawn, range(30))]
    assert shift_of([edge_strengths(*pair) for pair in pairs]) == (-right, -down)
    assert ("mask-shifted" in found(tmp_path)) == bool(right or down)


def test_a_shift_is_named_in_words(tmp_path):
    write_folder(tmp_path, lambda mask: np.roll(mask, (-1, 2), (0, 1)), count=30)
    assert messages(tmp_path)["mask-shifted"].endswith("masks stand 2 px to the right and 1 px up of them.")


def test_few_images_tell_no_shift():
    pairs = [(picture.mean(2), np.roll(mask, 2, 1)) for picture, mask in map(drawn, range(9))]
    assert shift_of([edge_strengths(*pair) for pair in pairs]) == (0, 0)


def test_loaded_masks_are_examined_too(tmp_path):
    write_folder(tmp_path, lambda mask: np.roll(mask, 3, 1), count=30)
    assert "mask-shifted" in {each.id for each in examine_loaded(load_data(DataConfig(train=str(tmp_path))))}
