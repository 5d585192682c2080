"""What is published of a run that finds masks: the card, and the comparison of every form with what was recorded."""

import base64
import io
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
from PIL import Image

from hftransfer.core.mask_files import encode_prediction
from hftransfer.publish.card import write_card
from hftransfer.publish.round_trip import Form, compare_masks
from hftransfer.publish.targets import _mask
from hftransfer.runs.reader import Part
from hftransfer.tasks import Masks
from hftransfer.tasks.tokens import ragged

TASK = Masks(("background", "crack"))


def test_the_card_says_what_the_model_does_and_has_a_row_for_each_class(tiny_run, tmp_path, pages):
    folder = Path(shutil.copytree(tiny_run("probe", "masks"), tmp_path / "run"))
    write_card(folder)
    card = (folder / "README.md").read_text()
    assert "Gives each pixel of an image one of 3 classes: background, class 1, class 2." in card
    assert "subtask='semantic'" in card and "one mask for each class that is found" in card
    table = card[card.index("| class | images |") :].splitlines()
    assert table[0] == "| class | images | Dice | IoU | 95 % interval of IoU |"
    assert table[1].count("|") == 6 and [row.split("|")[1].strip() for row in table[2:5]] == [
        "background",
        "class 1",
        "class 2",
    ]


def test_a_form_whose_masks_differ_is_named():
    numbers = np.zeros((20, 20), np.uint8)
    numbers[5:10] = 1
    recorded = encode_prediction(numbers, np.full(numbers.shape, 255, np.uint8))
    other = numbers.copy()
    other[:2] = 1
    part = Part(pd.DataFrame({"id": ["a", "b"]}), ragged([b"", b""]), ragged([recorded, recorded]))
    answers = [
        {"mask": _mask({"background": each == 0, "crack": each == 1}, list(TASK.names))} for each in (numbers, other)
    ]
    stage = compare_masks(Form("pipeline", "pipeline", Path(), 0), TASK, part, answers, 1.0)
    assert stage.disagreements == ("b",) and stage.label_agreement == 0.5 and stage.max_difference == 0.1
    with Image.open(io.BytesIO(base64.b64decode(answers[1]["mask"]))) as image:
        assert np.array_equal(np.asarray(image), other)
