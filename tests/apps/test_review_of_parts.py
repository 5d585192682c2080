"""The label loop on entities and masks: what is shown, what can be answered, and what the patch then does."""

import shutil

import numpy as np
import pandas as pd
import pytest

from hftransfer.apps.review.page import Review, build_review, item_html
from hftransfer.config import RunConfig
from hftransfer.core.errors import UserError
from hftransfer.core.mask_files import decode_mask, encode_mask
from hftransfer.data import load_data
from hftransfer.data.patch import read_patch
from hftransfer.report.suspects import label_errors
from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks.tokens import ragged

pytestmark = pytest.mark.usefixtures("unchecked")


def copied(folder, tmp_path):
    return shutil.copytree(folder, tmp_path / folder.name)


def rewrite(run, file, row, **values):
    table = pd.read_parquet(run / file)
    for name, value in values.items():
        column = table[name].tolist()
        column[table.index[table["id"] == row][0]] = value
        table[name] = pd.Series(column, dtype=object)
    table.to_parquet(run / file)


def data_with(run, patch):
    config = RunConfig.from_yaml(run / "config.yaml")
    return load_data(config.data.model_copy(update={"patch": str(patch)}))


def test_forgotten_entities_are_asked_about_and_put_back(tiny_run, tmp_path):
    run = copied(tiny_run("probe", "tokens"), tmp_path)
    rows = pd.read_parquet(run / "oof.parquet")
    splits = pd.read_parquet(run / "splits.parquet")
    assert set(rows["id"]) == set(splits.loc[splits["split"] == "train", "id"])  # each by folds without it
    row = next(row for row in rows.to_dict("records") if len(row["label"]) > 1)
    true = row["label"].tolist()
    for file in ("oof.parquet", "splits.parquet"):
        rewrite(run, file, row["id"], label=[])
    review = Review(run)
    (place,) = [number for number, item in enumerate(review.items) if item.rows[0].id == row["id"]]
    item, text = review.items[place], review.items[place].rows[0].input
    suggested = item.choices[0][0]
    ends = {(e["end"], e["label"]) for e in true}  # the tiny network finds some entities without their first word
    assert suggested and {(e["end"], e["label"]) for e in suggested} <= ends
    assert "labelled <b>(none)</b>" in item_html(review, place)
    assert review.decide(place, "relabel", suggested)
    said = f"{text[suggested[0]['start'] : suggested[0]['end']]} ({suggested[0]['label']})"
    assert "relabelled as" in item_html(review, place) and said in item_html(review, place)
    build_review(run)
    data = data_with(run, review.patch).frame.set_index("id")
    assert {(e["start"], e["end"]) for e in data.at[row["id"], "label"]} == {(e["start"], e["end"]) for e in suggested}


def test_masks_are_shown_beside_what_contradicts_them_and_dropped(tiny_run, tmp_path):
    run = copied(tiny_run("probe", "masks"), tmp_path)
    task, table = RecordedRun.open(run).task, pd.read_parquet(run / "predictions.parquet")
    table["mask"] = list(task.faultless(ragged(table["label"].tolist())))
    table.to_parquet(run / "predictions.parquet")
    row = table.loc[table["split"] == "test", "id"].iloc[0]
    empty = encode_mask(np.zeros_like(decode_mask(table.loc[table["id"] == row, "label"].iloc[0])))
    for file in ("predictions.parquet", "splits.parquet"):
        rewrite(run, file, row, label=empty)
    recorded = RecordedRun.open(run)
    picked = label_errors(recorded)
    assert [picked.part.ids[number] for number in picked.rows] == [row]
    review = Review(run)
    (item,) = review.items
    assert item.choices == () and "background 100.0%" in item_html(review, 0) and "image/webp" in item_html(review, 0)
    build_review(run)
    assert not review.decide(0, "relabel", None) and review.decide(0, "drop")
    config = RunConfig.from_yaml(run / "config.yaml")
    data = load_data(config.data.model_copy(update={"patch": str(review.patch), "patch_test": True}))
    assert row not in set(data.frame["id"])
    (decision,) = read_patch(review.patch)
    review.patch.write_text(decision.model_copy(update={"action": "relabel", "label": "x"}).model_dump_json() + "\n")
    with pytest.raises(UserError, match="a patch holds no masks"):
        load_data(config.data.model_copy(update={"patch": str(review.patch), "patch_test": True}))


def test_equal_images_with_different_masks_stand_side_by_side(tiny_run, tmp_path):
    run = copied(tiny_run("probe", "masks"), tmp_path)
    splits = pd.read_parquet(run / "splits.parquet")
    first, second = splits["input"].iloc[:2]
    rewrite(run, "splits.parquet", splits["id"].iloc[1], input=first)
    copies = [item for item in Review(run).items if item.kind == "copies"]
    assert [len(item.rows) for item in copies] == [2] and copies[0].choices == ()
    assert copies[0].why.startswith("The same input bears different labels: background")
