"""What the doctor says of several inputs."""

import pandas as pd
import pytest

from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig
from hftransfer.doctor import examine, fix
from tests.support import several


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("doctored")
    several.table(folder, rows=60, missing=False)
    return folder


def findings(folder, change):
    frame = change(pd.read_csv(folder / "listings.csv"))
    frame.to_csv(folder / "changed.csv", index=False)
    config = DataConfig(train=str(folder / "changed.csv"), input=several.KINDS, label="label")
    return {finding.id: finding for finding in examine(config)}


def test_whole_data_have_neither_gaps_nor_conflicts(folder):
    found = findings(folder, lambda frame: frame)
    assert not {"input-missing", "input-conflict", "image-broken", "text-empty", "data-unreadable"} & found.keys()


def test_missing_inputs_are_counted_and_are_no_broken_files(folder):
    found = findings(folder, lambda frame: frame.assign(photo=frame["photo"].where(frame.index > 3), caption=None))
    assert "photo 4, caption 60" in found["input-missing"].message
    assert "image-broken" not in found and "text-empty" not in found


def test_a_picture_with_several_labels_is_a_conflict(folder):
    def change(frame):
        frame.loc[[1, 2], "photo"] = frame["photo"].iloc[0]
        return frame

    found = findings(folder, change)["input-conflict"]
    assert found.message.startswith("Equal photo with labels that differ: 1, in 3 rows")
    assert "red-0" in found.rows[0] and "blue-0" in found.rows[0]


def test_each_input_is_checked_for_what_its_kind_can_have(folder):
    def change(frame):
        (folder / "photos" / "000.png").write_bytes(b"no picture")
        frame.loc[5, "caption"] = "<b>bold</b> &amp; more"
        return frame

    found = findings(folder, change)
    assert "(photo)" in found["image-broken"].rows[0]
    assert "(caption)" in found["text-html"].rows[0]


def test_a_value_that_is_the_label_is_found(folder):
    found = findings(folder, lambda frame: frame.assign(brand=frame["label"].str.upper()))
    assert "'brand'" in found["input-tells-label"].message


def test_fix_is_refused(folder):
    with pytest.raises(UserError, match="doctor --fix does not take several inputs"):
        fix(DataConfig(train=str(folder / "listings.csv"), input=several.KINDS, label="label"))
