"""Folders as public data sets lay them out: what is an image, a mask, a label and a part is found without options."""

import numpy as np
import pytest
import soundfile
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.data import load_data
from hftransfer.data.config import DataConfig

RNG = np.random.default_rng(0)


def read(folder):
    return load_data(DataConfig(train=str(folder)))


def photo(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(RNG.integers(0, 255, (24, 32, 3), dtype=np.uint8)).save(path)


def mask(path, values=(0, 1), colours=None):
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn = np.full((24, 32), values[0], np.uint8)
    top, left = RNG.integers(2, 12, 2)
    drawn[top : top + 10, left : left + 12] = values[1]
    Image.fromarray(drawn if colours is None else np.array(colours, np.uint8)[drawn]).save(path)


def sound(path, pitch=300):
    path.parent.mkdir(parents=True, exist_ok=True)
    times = np.arange(1600) / 8000
    soundfile.write(path, 0.3 * np.sin(2 * np.pi * pitch * times) + 0.05 * RNG.normal(size=1600), 8000)


# --- masks -----------------------------------------------------------------------------------------------------------


def camvid(root):
    for part in ("train", "val", "test"):
        for number in range(8):
            photo(root / part / f"{part}_{number}.png")
            mask(root / f"{part}_labels" / f"{part}_{number}_L.png", colours=[(0, 0, 0), (128, 0, 0)])
    (root / "class_dict.csv").write_text("name,r,g,b\nSky,0,0,0\nBuilding,128,0,0\n")
    return ("Sky", "Building"), ("train", "validation", "test")


def isic(root):
    for number in range(12):
        photo(root / "Task1-2_Training_Input" / f"ISIC_{number}.jpg")
        mask(root / "Task1_Training_GroundTruth" / f"ISIC_{number}_segmentation.png", (0, 255))
    return ("background", "foreground"), ()


def carvana(root):
    for number in range(12):
        photo(root / "train" / f"car_{number:02d}.jpg")
        mask(root / "train_masks" / f"car_{number:02d}_mask.gif")
    return ("background", "foreground"), ("train",)


def cityscapes(root):
    for part in ("train", "val"):
        for number in range(8):
            name = f"aachen_{part}{number}"
            photo(root / "leftImg8bit" / part / "aachen" / f"{name}_leftImg8bit.png")
            for kind, colours in (("labelIds", None), ("instanceIds", None), ("color", [(0, 0, 0), (9, 9, 9)])):
                drawn = root / "gtFine" / part / "aachen" / f"{name}_gtFine_{kind}.png"
                mask(drawn, (7, 26), None) if colours is None else mask(drawn, colours=colours)
    return ("class 7", "class 26"), ("train", "validation")


def drive(root):
    for number in range(21, 33):
        photo(root / "training/images" / f"{number}_training.tif")
        mask(root / "training/1st_manual" / f"{number}_manual1.gif", (0, 255))
        mask(root / "training/mask" / f"{number}_training_mask.gif", (255, 255))
    return ("background", "foreground"), ("train",)


@pytest.mark.parametrize("layout", [camvid, isic, carvana, cityscapes, drive])
def test_masks_are_found_where_folders_are_named_after_the_data_set(tmp_path, layout):
    names, given = layout(tmp_path)
    data = read(tmp_path)
    assert (data.task.type, data.task.names, data.given) == ("masks", names, given)


def test_folders_with_such_names_that_hold_photos_stay_classes(tmp_path):
    for number in range(6):
        photo(tmp_path / "wine" / f"{number}.png")
        photo(tmp_path / "wine_labels" / f"{number}.png")
    data = read(tmp_path)
    assert (data.task.type, data.task.names) == ("single_label", ("wine", "wine_labels"))


# --- tables and lists ------------------------------------------------------------------------------------------------


def esc50(root, count=40):
    rows = ["filename,fold,target,category"]
    for number in range(count):
        sound(root / "audio" / f"clip{number}.wav", 200 + 300 * (number % 4))
        rows.append(f"clip{number}.wav,{number % 5 + 1},{number % 4},{'dog rain crow door'.split()[number % 4]}")
    (root / "meta").mkdir()
    (root / "meta" / "esc50.csv").write_text("\n".join(rows))


def test_a_table_below_a_folder_labels_its_files(tmp_path, caplog):
    caplog.set_level("INFO")
    esc50(tmp_path)
    data = read(tmp_path)
    assert (data.modality, data.task.names) == ("audio", ("crow", "dog", "door", "rain"))
    assert "the table meta/esc50.csv names the recordings of the folder and their labels" in caplog.text
    assert "Column 'category' is taken as the label (not 'target')" in caplog.text


def test_a_table_labels_files_in_numbered_folders(tmp_path):
    rows = ["slice_file_name,fold,classID,class"]
    for number in range(40):
        sound(tmp_path / "audio" / f"fold{number % 10 + 1}" / f"clip{number}.wav", 200 + 300 * (number % 2))
        rows.append(f"clip{number}.wav,{number % 10 + 1},{number % 2},{('siren', 'drill')[number % 2]}")
    (tmp_path / "metadata").mkdir()
    (tmp_path / "metadata" / "UrbanSound8K.csv").write_text("\n".join(rows))
    assert read(tmp_path).task.names == ("drill", "siren")


def test_two_tables_that_label_the_files_are_not_chosen_from(tmp_path):
    esc50(tmp_path)
    (tmp_path / "meta" / "again.csv").write_text((tmp_path / "meta" / "esc50.csv").read_text())
    with pytest.raises(UserError, match="There is nothing to learn"):
        read(tmp_path)


def test_labels_that_divide_the_rows_otherwise_are_still_unclear(tmp_path):
    path = tmp_path / "t.csv"
    rows = [f"a sentence about subject {n},{n % 2},{'xyz'[n % 3]}" for n in range(12)]
    path.write_text("text,target,category\n" + "\n".join(rows))
    with pytest.raises(UserError, match="it is unclear which column holds the label"):
        read(path)


def speech_commands(root):
    for name in ("yes", "no"):
        for number in range(12):
            sound(root / name / f"{number:02d}.wav", 300 + 400 * len(name))
    sound(root / "_background_noise_" / "pink.wav")


def test_lists_divide_class_folders_and_noise_is_no_class(tmp_path, caplog):
    speech_commands(tmp_path)
    (tmp_path / "testing_list.txt").write_text("yes/00.wav\nno/00.wav\n")
    (tmp_path / "validation_list.txt").write_text("yes/01.wav\nno/01.wav\n")
    data = read(tmp_path)
    assert data.task.names == ("no", "yes") and data.given == ("train", "validation", "test")
    assert sorted(path.split("/")[-1] for path in data.part("test")["input"]) == ["00.wav", "00.wav"]
    assert len(data.part("train")) == 20
    assert "the folder _background_noise_ is no class by its name and is passed over" in caplog.text


def test_lists_may_leave_files_out_and_omit_suffixes(tmp_path, caplog):
    speech_commands(tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta" / "train.txt").write_text(
        "\n".join(f"{name}/{n:02d}" for name in ("yes", "no") for n in range(8))
    )
    (tmp_path / "meta" / "test.txt").write_text("yes/08\nno/08\nyes/09\nno/09\n")
    data = read(tmp_path)
    assert [len(data.part(part)) for part in ("train", "test")] != [0, 4] and len(data.part("test")) == 4
    assert "4 files stand in no list and are left out" in caplog.text


def test_a_text_with_other_lines_divides_nothing(tmp_path):
    speech_commands(tmp_path)
    (tmp_path / "test.txt").write_text("these were recorded\nin a quiet room\n")
    assert read(tmp_path).given == ()
