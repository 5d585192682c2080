"""Masks in every usual form become class numbers with names; what cannot be read is a fault of its row."""

import json
import logging

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.core.mask_files import IGNORED, decode_mask
from hftransfer.data import DataConfig, load_data, load_inputs
from hftransfer.data.coco import from_runs, polygon_inside
from hftransfer.data.mask_classes import read_classes
from hftransfer.data.masks import are_masks
from hftransfer.data.read import read_rows
from tests.support.mask_data import SIZE, drawn, save, scenes, write_folder

RED, BLUE = (255, 0, 0), (0, 0, 255)


def rows_of(path, **named):
    return read_rows(DataConfig(train=str(path), **named))


def loaded(path, **named):
    return load_data(DataConfig(train=str(path), **named))


def masks_of(read) -> list[np.ndarray]:
    return [decode_mask(label) for label in read.frame["label"]]


def assert_masks(read, masks, names=("background", "class 1", "class 2")):
    assert read.task.type == "masks" and read.task.names == names
    assert are_masks(read.frame["label"])
    assert all(np.array_equal(*pair) for pair in zip(masks_of(read), masks, strict=True))


def in_colours(mask: np.ndarray, first=(0, 0, 0), red=RED) -> np.ndarray:
    return np.array([first, red, BLUE], np.uint8)[mask]


def binary(mask: np.ndarray) -> np.ndarray:
    return (mask > 0).astype(np.uint8)


# --- folders ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("images", "masks", "ending"),
    [("images", "masks", ""), ("images", "labels", "_mask"), ("img", "annotations", "-mask"), ("JPEGImages", "SegmentationClass", ""),
     ("data/images", "data/gt", "_seg"), ("images/lab_1", "masks/lab_1", ""), ("images/a", "masks", ""), (".", ".", "_mask")],
)  # fmt: skip
def test_folders_of_masks_are_found(tmp_path, images, masks, ending):
    expected = write_folder(tmp_path, images=images, masks=masks, ending=ending)
    assert_masks(rows_of(tmp_path), expected)


@pytest.mark.parametrize("layout", ["{split}/{kind}", "{kind}/{split}"])
def test_splits_stand_above_or_below(tmp_path, layout):
    for split in ("train", "val", "test2017"):
        write_folder(
            tmp_path, images=layout.format(split=split, kind="images"), masks=layout.format(split=split, kind="masks")
        )
    read = rows_of(tmp_path)
    assert read.frame["split"].value_counts().to_dict() == {"train": 12, "validation": 12, "test": 12}
    assert_masks(read, 3 * [mask for _, mask in scenes()])


def test_files_beside_each_other_with_classes_of_roboflow(tmp_path):
    for split in ("train", "valid"):
        write_folder(tmp_path / split, images=".", masks=".", ending="_mask")
        (tmp_path / split / "_classes.csv").write_text("Pixel Value, Class\n0, background\n1, crack\n2, dent\n")
    read = rows_of(tmp_path)
    assert read.task.names == ("background", "crack", "dent")
    assert set(read.frame["split"]) == {"train", "validation"}


def test_lists_of_voc_divide(tmp_path):
    write_folder(tmp_path, images="JPEGImages", masks="SegmentationClass")
    lists = tmp_path / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "train.txt").write_text("x00\nx01\nx02\n")
    (lists / "val.txt").write_text("x03\n")
    (lists / "trainval.txt").write_text("x00\nx01\nx02\nx03\n")
    assert rows_of(tmp_path).frame["split"].tolist() == ["train"] * 3 + ["validation"]


def test_a_template_names_masks(tmp_path):
    expected = write_folder(tmp_path, images="shots", masks="truth", ending=".m")
    assert_masks(rows_of(tmp_path, mask="{parent}/../truth/{stem}.m.png"), expected)
    with pytest.raises(UserError, match="names no file: the mask of .*x00.png would be"):
        rows_of(tmp_path, mask="{parent}/{stem}_no.png")
    with pytest.raises(UserError, match="'folder' is no field"):
        rows_of(tmp_path, mask="{folder}/{stem}.png")


def test_names_that_do_not_fit_are_refused(tmp_path):
    write_folder(tmp_path)
    for number, path in enumerate(sorted((tmp_path / "masks").iterdir())):
        path.rename(path.with_name(f"other{number}.png"))
    with pytest.raises(UserError, match="no name in masks/ fits one in images/.*data.mask="):
        rows_of(tmp_path)


def test_two_masks_of_one_image_are_refused(tmp_path):
    write_folder(tmp_path)
    save(drawn(0)[1], tmp_path / "masks" / "x00_mask.png")
    with pytest.raises(UserError, match="2 masks fit the image x00.png"):
        rows_of(tmp_path)


def test_class_folders_of_masks_stay_classes(tmp_path):
    """Photographs of people with a mask and without."""
    for name in ("mask", "no_mask"):
        for number in range(4):
            save(drawn(number)[0], tmp_path / name / f"{number}.png")
    assert rows_of(tmp_path).task.type == "single_label"


def test_another_task_reads_the_folders_as_classes(tmp_path):
    write_folder(tmp_path)
    assert rows_of(tmp_path, task="single_label").task.names == ("images", "masks")


def test_images_without_a_mask_are_unlabelled(tmp_path, caplog):
    write_folder(tmp_path)
    (tmp_path / "masks" / "x03.png").unlink()
    read = rows_of(tmp_path)
    assert read.frame["label"].isna().tolist() == [number == 3 for number in range(12)]
    assert "1 images have no mask and are unlabelled, such as images/x03.png" in caplog.text
    with pytest.raises(UserError, match="the label is missing"):
        loaded(tmp_path)
    assert len(loaded(tmp_path, on_error="skip").frame) == 11


# --- tables and datasets ----------------------------------------------------------------------------------------------


def write_table(root, **columns):
    write_folder(root)
    paths = [f"x{number:02}.png" for number in range(12)]
    frame = pd.DataFrame({"photo": [f"images/{p}" for p in paths], "mask": [f"masks/{p}" for p in paths], **columns})
    frame.to_csv(root / "table.csv", index=False)
    return root / "table.csv"


def test_a_table_of_two_paths(tmp_path):
    table = write_table(tmp_path)
    assert_masks(rows_of(table), [mask for _, mask in scenes()])


def test_a_table_with_classes_too_learns_classes_unless_masks_are_named(tmp_path):
    table = write_table(tmp_path, label=["a", "b"] * 6)
    assert rows_of(table).task.type == "single_label"
    assert rows_of(table, label="mask").task.type == "masks"
    assert rows_of(table, task="masks").task.type == "masks"


def test_a_table_of_images_with_a_template(tmp_path):
    write_folder(tmp_path)
    pd.DataFrame({"file": [f"images/x{n:02}.png" for n in range(12)]}).to_csv(tmp_path / "table.csv", index=False)
    read = rows_of(tmp_path / "table.csv", mask="{root}/masks/{stem}.png")
    assert_masks(read, [mask for _, mask in scenes()])


def test_datasets_with_an_image_as_label(tmp_path):
    import datasets

    pairs = scenes()
    features = datasets.Features({"image": datasets.Image(), "label": datasets.Image()})
    columns = {"image": [Image.fromarray(p) for p, _ in pairs], "label": [Image.fromarray(m) for _, m in pairs]}
    read = read_rows(DataConfig(), datasets.Dataset.from_dict(columns, features=features))
    assert_masks(read, [mask for _, mask in pairs])


def test_a_test_part_named_apart_has_the_same_classes(tmp_path):
    write_folder(tmp_path / "a", in_colours)
    write_folder(tmp_path / "b", lambda mask: in_colours(np.where(mask == 1, 0, mask)))  # the red class is not there
    read = rows_of(tmp_path / "a", test=str(tmp_path / "b"))
    test = [mask for mask, split in zip(masks_of(read), read.frame["split"], strict=True) if split == "test"]
    assert read.task.names == ("background", "#0000ff", "#ff0000")
    assert set(np.unique(test)) == {0, 1}


# --- values -----------------------------------------------------------------------------------------------------------


def test_zero_and_255_are_background_and_one_class(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    expected = write_folder(tmp_path, lambda mask: 255 * binary(mask))
    assert_masks(rows_of(tmp_path), [binary(mask) for mask in expected], ("background", "foreground"))
    assert "masks hold the values 0 and 255: background and 'foreground'" in caplog.text


def test_one_class_is_called_as_its_folder_or_file_says(tmp_path):
    write_folder(tmp_path, lambda mask: 255 * binary(mask), images="shots", masks="rust")
    assert rows_of(tmp_path, mask="{parent}/../rust/{stem}.png").task.names == ("background", "rust")
    (tmp_path / "classes.txt").write_text("crack\n")
    assert rows_of(tmp_path, mask="{parent}/../rust/{stem}.png").task.names == ("background", "crack")


def test_255_is_ignored_elsewhere(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    expected = write_folder(tmp_path, lambda mask: np.where(mask == 2, IGNORED, mask).astype(np.uint8))
    assert_masks(
        rows_of(tmp_path), [np.where(mask == 2, IGNORED, mask) for mask in expected], ("background", "foreground")
    )
    assert caplog.text.count("255 in masks is read as not labelled") == 1


def test_masks_of_jpeg_are_read_at_the_middle(tmp_path, caplog):
    expected = write_folder(tmp_path, lambda mask: np.stack([255 * binary(mask)] * 3, -1))
    for path in list((tmp_path / "masks").iterdir()):
        Image.open(path).save(path.with_suffix(".jpg"), quality=90)
        path.unlink()
    assert_masks(rows_of(tmp_path), [binary(mask) for mask in expected], ("background", "foreground"))
    assert "hold values between (JPEG or resized)" in caplog.text


@pytest.mark.parametrize("how", ["BILINEAR", "BICUBIC", "LANCZOS"])
@pytest.mark.parametrize("size", [(96, 72), (61, 47), (20, 15)])
def test_smoothed_masks_of_two_values_are_one_class(tmp_path, how, size):
    def smoothed(mask):
        return np.asarray(Image.fromarray(255 * binary(mask)).resize(size, Image.Resampling[how]))

    write_folder(tmp_path, smoothed)
    assert rows_of(tmp_path).task.names == ("background", "foreground")


@pytest.mark.parametrize("classes", [3, 20, 150])
def test_many_classes_with_ignored_pixels_are_no_smoothed_mask(tmp_path, classes):
    def as_file(mask):
        rare = np.arange(mask.size).reshape(mask.shape) % 768
        return np.where(mask > 0, np.where(mask == 2, IGNORED, 0), np.where(rare < classes, rare, 0)).astype(np.uint8)

    write_folder(tmp_path, as_file)
    assert len(rows_of(tmp_path).task.names) == classes


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [("I;16", "png"), ("I;16", "tif"), ("I", "tif"), ("F", "tif"), ("LA", "png"), ("RGB", "bmp"), ("RGBA", "png"), ("L", "gif"), ("1", "png")],
)  # fmt: skip
def test_masks_of_every_kind_of_file(tmp_path, mode, suffix):
    expected = write_folder(tmp_path)
    for path in list((tmp_path / "masks").iterdir()):
        mask = np.asarray(Image.open(path))
        path.unlink()
        if mode == "I;16":
            image = Image.fromarray(mask.astype(np.uint16))
        elif mode == "1":
            image = Image.fromarray(mask > 0)
        else:
            image = Image.fromarray(mask).convert(mode)
        image.save(path.with_suffix(f".{suffix}"))
    names = ("background", "class 1", "class 2")
    assert_masks(
        rows_of(tmp_path),
        *(([binary(mask) for mask in expected], ("background", "foreground")) if mode == "1" else (expected, names)),
    )


def test_fractions_are_no_classes(tmp_path):
    write_folder(tmp_path)
    for path in list((tmp_path / "masks").iterdir()):
        Image.fromarray(np.asarray(Image.open(path)).astype(np.float32) / 2).save(path.with_suffix(".tif"))
        path.unlink()
    with pytest.raises(UserError, match="it holds fractions: expected the number of a class"):
        rows_of(tmp_path)


def test_greys_spread_for_the_eye_are_classes(tmp_path):
    expected = write_folder(tmp_path, lambda mask: np.array([0, 128, 255], np.uint8)[mask])
    assert_masks(rows_of(tmp_path), expected, ("background", "class 128", "class 255"))


def test_palette_files_give_numbers(tmp_path):
    def as_file(mask):
        return np.where(mask == 2, 15, mask).astype(np.uint8)

    expected = write_folder(tmp_path, as_file)
    colours = np.random.default_rng(0).integers(0, 256, 768).astype(np.uint8).tobytes()
    for path in (tmp_path / "masks").iterdir():
        image = Image.open(path)
        image.putpalette(colours)
        image.save(path)
        assert Image.open(path).mode == "P"
    assert_masks(rows_of(tmp_path), expected, ("background", "class 1", "class 15"))


def test_palettes_that_number_colours_differently_are_read_by_colour(tmp_path):
    """As image editors write them: each file has a palette of its own."""
    expected = write_folder(tmp_path, in_colours)
    for number, path in enumerate(sorted((tmp_path / "masks").iterdir())):
        image = Image.fromarray(expected[number] if number % 2 else (2 - expected[number]).astype(np.uint8))
        colours = [(0, 0, 0), RED, BLUE] if number % 2 else [BLUE, RED, (0, 0, 0)]
        image.putpalette(np.array(colours, np.uint8).tobytes())
        image.save(path)
    swapped = [np.array([0, 2, 1])[mask] for mask in expected]
    assert_masks(rows_of(tmp_path), swapped, ("background", "#0000ff", "#ff0000"))


@pytest.mark.parametrize(
    ("name", "text"),
    [("labelmap.txt", "# label:color_rgb:parts:actions\nbackground:0,0,0::\ncrack:255,0,0::\ndent:0,0,255::\n"),
     ("class_dict.csv", "name,r,g,b\nbackground,0,0,0\ncrack,255,0,0\ndent,0,0,255\n"),
     ("classes.json", json.dumps({"crack": [255, 0, 0], "dent": "#0000FF", "background": "#000000"}))],
)  # fmt: skip
def test_colours_of_a_table(tmp_path, name, text):
    expected = write_folder(tmp_path, in_colours)
    (tmp_path / name).write_text(text)
    assert_masks(rows_of(tmp_path), expected, ("background", "crack", "dent"))


@pytest.mark.parametrize(
    ("name", "text"),
    [("classes.txt", "background\ncrack\ndent\n"), ("labels.txt", "crack\ndent\n"), ("labels.txt", "__ignore__\n_background_\ncrack\ndent"),
     ("classes.txt", "0 background\n1 crack\n2 dent\n"), ("id2label.json", '{"0": "background", "1": "crack", "2": "dent"}'),
     ("classes.json", '[{"id": 0, "name": "background"}, {"id": 1, "name": "crack"}, {"id": 2, "name": "dent"}]')],
)  # fmt: skip
def test_names_of_a_file(tmp_path, name, text):
    expected = write_folder(tmp_path)
    (tmp_path / name).write_text(text)
    read = rows_of(tmp_path)
    assert [each.strip("_") for each in read.task.names] == ["background", "crack", "dent"]
    assert_masks(read, expected, read.task.names)


def test_classes_of_the_configuration(tmp_path, caplog):
    expected = write_folder(tmp_path)
    assert_masks(rows_of(tmp_path, classes=["none", "a", "b"]), expected, ("none", "a", "b"))
    assert_masks(
        rows_of(tmp_path, classes={"none": 0, "a": 1}), [np.where(m == 2, IGNORED, m) for m in expected], ("none", "a")
    )
    assert "values that no class has, read as not labelled: 2 (576 pixels)" in caplog.text
    with pytest.raises(UserError, match="neither the value of a pixel"):
        rows_of(tmp_path, classes={"none": "nought"})
    with pytest.raises(UserError, match="none of the values of data.classes"):
        rows_of(tmp_path, classes={"none": 7, "a": 8, "b": 9})
    with pytest.raises(UserError, match="data.classes: There is no file"):
        rows_of(tmp_path, classes="names.txt")


def test_a_class_of_several_values(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "id2label.json").write_text('{"0": "background", "1": "damage", "2": "damage"}')
    assert_masks(rows_of(tmp_path), [binary(mask) for _, mask in scenes()], ("background", "damage"))


def test_a_broken_file_of_classes_is_named(tmp_path):
    (tmp_path / "classes.json").write_text("{")
    with pytest.raises(UserError, match="names no classes that can be read"):
        read_classes(tmp_path / "classes.json")


def test_too_many_values_are_refused(tmp_path):
    write_folder(
        tmp_path,
        lambda mask: (mask.astype(np.int32) * 1000 + np.arange(mask.size).reshape(mask.shape)).astype(np.uint16),
    )
    with pytest.raises(UserError, match="too many for classes"):
        rows_of(tmp_path)


def test_blurred_colours_are_refused(tmp_path):
    def blurred(mask):
        image = Image.fromarray(in_colours(mask, first=(9, 99, 9)))
        return np.asarray(image.resize((64, 48), Image.Resampling.BICUBIC))

    write_folder(tmp_path, blurred)
    with pytest.raises(UserError, match="edges are blurred"):
        rows_of(tmp_path)


# --- faults -----------------------------------------------------------------------------------------------------------


def test_what_cannot_be_read_is_a_fault_of_its_row(tmp_path):
    write_folder(tmp_path)
    (tmp_path / "masks" / "x04.png").write_bytes(b"no image")
    save(np.zeros((24, 24), np.uint8), tmp_path / "masks" / "x05.png")
    with pytest.raises(UserError, match="x04.png.*its mask cannot be read: its content is no image"):
        loaded(tmp_path)
    data = loaded(tmp_path, on_error="skip")
    assert len(data.frame) == 10
    assert any("its mask has 24 x 24 pixels, the picture 32 x 24" in line for line in data.skipped)


def test_masks_of_another_size_and_the_same_shape_are_resized(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    expected = write_folder(tmp_path, lambda mask: mask.repeat(2, 0).repeat(2, 1))
    data = loaded(tmp_path)
    found = {id_: decode_mask(label) for id_, label in zip(data.frame["id"], data.frame["label"], strict=True)}
    assert all(np.array_equal(found[f"images/x{n:02}.png"], mask) for n, mask in enumerate(expected))
    assert "12 masks have another size" in caplog.text


def test_pictures_that_exif_turns_have_masks_as_they_are_seen(tmp_path):
    write_folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    picture = np.rot90(drawn(0)[0])  # seen, it is turned back
    Image.fromarray(picture).save(tmp_path / "images" / "x00.png", exif=exif)
    assert len(loaded(tmp_path).frame) == 12


def test_rows_are_divided_and_hashed(tmp_path):
    write_folder(tmp_path)
    data = loaded(tmp_path)
    assert set(data.frame["split"]) == {"train", "validation", "test"}
    mask = decode_mask(data.frame["label"].iloc[0]).copy()
    mask[0, 0] = 1
    name = data.frame["id"].iloc[0].removeprefix("images/")
    save(mask, tmp_path / "masks" / name)
    assert loaded(tmp_path).fingerprint != data.fingerprint


# --- COCO -------------------------------------------------------------------------------------------------------------


def runs_of(inside: np.ndarray) -> list[int]:
    flat = inside.ravel(order="F").astype(int)
    edges = np.flatnonzero(np.diff(flat, prepend=0, append=1 - flat[-1]))
    return np.diff([0, *edges]).tolist() if len(edges) else [flat.size]


def pack(runs: list[int]) -> str:
    """Write run lengths as COCO's tools do (the reverse of `unpacked_runs`, from the description of the format)."""
    text = ""
    for place, run in enumerate(runs):
        value, more = run - (runs[place - 2] if place > 2 else 0), True
        while more:
            piece = value & 31
            value >>= 5
            more = value != (-1 if piece & 16 else 0)
            text += chr((piece | (32 if more else 0)) + 48)
    return text


def as_polygon(inside: np.ndarray) -> list[list[float]]:
    rows, columns = np.nonzero(inside)
    top, left, bottom, right = (float(e) for e in (rows.min(), columns.min(), rows.max() + 1, columns.max() + 1))
    return [[left, top, right, top, right, bottom, left, bottom]]


FORMS = {
    "polygon": as_polygon,
    "runs": lambda inside: {"counts": runs_of(inside), "size": list(inside.shape)},
    "packed": lambda inside: {"counts": pack(runs_of(inside)), "size": list(inside.shape)},
}


def write_coco(root, form="polygon", extra=(), images="images", name="annotations.json", count=12):
    made = scenes(count)
    for number, (picture, _) in enumerate(made):
        save(picture, root / images / f"x{number:02}.png")
    annotations = [
        {"id": 10 * n + c, "image_id": n, "category_id": 5 * c, "segmentation": FORMS[form](mask == c), "iscrowd": int(form == "runs")}
        for n, (_, mask) in enumerate(made) for c in (1, 2)
    ]  # fmt: skip
    content = {
        "images": [{"id": n, "file_name": f"x{n:02}.png", "height": SIZE[0], "width": SIZE[1]} for n in range(count)],
        "annotations": [*annotations, *extra],
        "categories": [{"id": 10, "name": "dent"}, {"id": 5, "name": "crack"}, {"id": 0, "name": "unused"}],
    }
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(json.dumps(content))
    return [mask for _, mask in made]


@pytest.mark.parametrize("form", FORMS)
def test_outlines_become_masks(tmp_path, form):
    expected = write_coco(tmp_path, form)
    for path in (tmp_path, tmp_path / "annotations.json"):
        assert_masks(rows_of(path), expected, ("background", "crack", "dent"))


def test_packed_runs_as_pycocotools_writes_them():
    """The texts are those of pycocotools 2.0.11 for these two images."""
    square, noise = np.zeros((9, 7), bool), np.random.default_rng(0).integers(0, 2, (9, 7)).astype(bool)
    square[2:5, 1:5], noise[:, 3:5] = True, True
    for inside, text in ((square, ";3600000`0"), (noise, "01130M000212OL2b0NA0O0N41")):
        assert pack(runs_of(inside)) == text
        assert np.array_equal(from_runs(text, inside.shape, inside.shape), inside)


def test_runs_that_do_not_fill_the_image_are_a_fault(tmp_path):
    with pytest.raises(ValueError, match="run lengths of 4 pixels"):
        from_runs([1, 3], (2, 3), (2, 3))
    extra = {"id": 999, "image_id": 3, "category_id": 5, "segmentation": {"counts": [4], "size": [2, 2]}}
    write_coco(tmp_path, extra=[extra])
    with pytest.raises(UserError, match="its outlines in annotations.json cannot be drawn: run lengths of 4 pixels"):
        loaded(tmp_path)


def test_polygons_hold_the_pixels_whose_centre_is_inside():
    rng = np.random.default_rng(0)
    from matplotlib.path import Path

    for _ in range(20):
        points = rng.uniform(-3, 25, (7, 2))
        centres = np.stack(np.meshgrid(np.arange(20) + 0.5, np.arange(16) + 0.5), -1).reshape(-1, 2)
        crossings = np.zeros(len(centres), int)
        for (x0, y0), (x1, y1) in zip(points, np.roll(points, -1, 0), strict=True):
            spans = (y0 <= centres[:, 1]) != (y1 <= centres[:, 1])
            crossings += spans & (x0 + (centres[:, 1] - y0) * (x1 - x0) / (y1 - y0) <= centres[:, 0])
        assert np.array_equal(polygon_inside(points, (16, 20)), (crossings % 2 == 1).reshape(16, 20))
    triangle = np.array([(2.2, 1.1), (17.3, 4.4), (6.6, 14.8)])
    assert np.array_equal(polygon_inside(triangle, (16, 20)), Path(triangle).contains_points(centres).reshape(16, 20))


def test_later_outlines_win_and_overlap_is_counted(tmp_path, caplog):
    extra = {"id": 999, "image_id": 0, "category_id": 10, "segmentation": [[0, 0, 32, 0, 32, 24, 0, 24]]}
    write_coco(tmp_path, extra=[extra])
    read = rows_of(tmp_path)
    assert (masks_of(read)[0] == 2).all()
    assert read.sources[0].masks.overlap == 48
    assert "48 pixels belong to annotations of several classes" in caplog.text


def test_images_without_outlines_are_background(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    write_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    content["annotations"] = [entry for entry in content["annotations"] if entry["image_id"] != 2]
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    assert not masks_of(rows_of(tmp_path))[2].any()
    assert "1 of 12 images have no outline: all background" in caplog.text


@pytest.mark.parametrize(
    ("images", "name"),
    [
        ("{}", "{}/_annotations.coco.json"),
        ("{}2017", "annotations/instances_{}2017.json"),
        ("images/{}", "annotations/{}.json"),
    ],
)
def test_coco_files_of_several_parts(tmp_path, images, name):
    for split in ("train", "val"):
        expected = write_coco(tmp_path, images=images.format(split), name=name.format(split))
    read = rows_of(tmp_path)
    assert read.frame["split"].tolist() == ["train"] * 12 + ["validation"] * 12
    assert all(
        f"{split}" in path for split, path in zip(["train"] * 12 + ["val"] * 12, read.frame["input"], strict=True)
    )
    assert_masks(read, 2 * expected, ("background", "crack", "dent"))


def test_boxes_alone_are_no_masks(tmp_path):
    write_coco(tmp_path)
    content = json.loads((tmp_path / "annotations.json").read_text())
    for entry in content["annotations"]:
        entry["segmentation"] = []
    (tmp_path / "annotations.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match="no outlines"):
        rows_of(tmp_path / "annotations.json")


# --- inputs without labels -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("images", "masks", "ending"), [("images", "masks", ""), (".", ".", "_mask"), ("a", "b", "")])
def test_masks_beside_images_are_no_inputs(tmp_path, images, masks, ending):
    write_folder(tmp_path, images=images, masks=masks, ending=ending)
    count = 24 if images == "a" else 12  # folders of other names: all are images
    assert len(load_inputs([str(tmp_path)], "image", masks=True)) == count
    assert len(load_inputs([str(tmp_path)], "image")) == 24  # a classifier takes any picture


def test_the_column_of_masks_is_no_input(tmp_path):
    frame = load_inputs([str(write_table(tmp_path))], "image", masks=True)
    assert all("/images/" in path for path in frame["input"])


# --- what a run knows of its masks --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("as_file", "named"),
    [(lambda mask: mask, {}), (in_colours, {}), (lambda mask: (7 * mask).astype(np.uint8), {}), (lambda mask: mask, {"classes": ["a", "background", "c"]}),
     (lambda mask: 255 * binary(mask), {}), (in_colours, {"classes": {"dent": [0, 0, 255], "background": "000000", "crack": "#ff0000"}})],
    ids=["numbers", "colours", "gaps", "background in the middle", "0 and 255", "table of colours"],
)  # fmt: skip
def test_masks_of_a_run_are_read_again_with_its_classes(tmp_path, as_file, named):
    """Also where some classes are missing; reading by what was recorded records the same."""
    write_folder(tmp_path / "a", as_file)
    write_folder(tmp_path / "b", lambda mask: as_file(np.where(mask == 1, 0, mask).astype(np.uint8)))
    first = loaded(tmp_path / "a", **named)
    again = loaded(tmp_path / "a", classes=first.classes)
    assert again.classes == first.classes and list(again.classes) == list(first.classes)
    assert again.task == first.task and again.fingerprint == first.fingerprint
    other = rows_of(tmp_path / "b", classes=first.classes)
    assert other.task.names == first.task.names
    values = [np.unique(mask).tolist() for mask in masks_of(other)]
    assert all(set(each) <= {0, 1, 2} for each in values)


def test_masks_of_0_and_1_for_a_run_of_0_and_255(tmp_path):
    write_folder(tmp_path, binary)
    read = rows_of(tmp_path, classes={"0": "background", "255": "crack"})
    assert_masks(read, [binary(mask) for _, mask in scenes()], ("background", "crack"))


def test_outlines_are_numbered_by_the_names_of_all_sources(tmp_path, caplog):
    expected = write_coco(tmp_path / "a")
    write_coco(tmp_path / "b")
    content = json.loads((tmp_path / "b" / "annotations.json").read_text())
    content["categories"] = [{"id": 10, "name": "crack"}, {"id": 5, "name": "dent"}, {"id": 0, "name": "unused"}]
    (tmp_path / "b" / "annotations.json").write_text(json.dumps(content))
    swapped = [np.array([0, 2, 1])[mask] for mask in expected]
    assert_masks(
        rows_of(tmp_path / "a", test=str(tmp_path / "b")), [*expected, *swapped], ("background", "crack", "dent")
    )
    known = {"0": "background", "3": "dent", "4": "hole"}
    read = rows_of(tmp_path / "a", classes=known)
    assert_masks(read, [np.array([0, IGNORED, 1])[mask] for mask in expected], ("background", "dent", "hole"))
    assert "crack are no classes of data.classes" in caplog.text
