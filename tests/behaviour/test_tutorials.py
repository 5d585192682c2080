"""Every command of the tutorials, in order and as printed, with tiny data and checkpoints behind the names of the starter."""

import re
import shlex
import sys
from pathlib import Path

import pandas as pd
import pytest

from hftransfer.cli.commands import main
from hftransfer.core import starter
from tests.support import tiny

DEFAULTS = {"starter/digits": "starter/efficientnet-lite0", "starter/bbc": "starter/minilm"}
DOCS = Path(__file__).parents[2] / "docs"


def blocks(page, language):
    return re.findall(rf"```{language}\n(.*?)```", (DOCS / page).read_text(encoding="utf-8"), flags=re.DOTALL)


def commands(page):
    lines = [line for block in blocks(page, "bash") for line in block.splitlines()]
    assert all(line.startswith(("hftransfer ", "pip install ")) for line in lines)
    return [line for line in lines if line.startswith("hftransfer ")]


def images(folder):
    data = tiny.image_folder(folder / "digits", per_class=20)
    tiny.image_folder(folder / "unsorted", ("red",), per_class=2)
    (folder / "unsorted" / "red").rename(folder / "new-images")
    (folder / "new-images" / "000.png").rename(folder / "new-images" / "a.png")
    return data, tiny.VISION_FAMILIES["timm-resnet"](folder / "model")


def texts(folder):
    data = tiny.text_table(folder / "bbc.csv", rows=60)
    pd.read_csv(tiny.text_table(folder / "new.csv", rows=12, seed=5))[["text"]].to_csv(folder / "new.csv", index=False)
    return data, tiny.TEXT_FAMILIES["bert"](folder / "model")


@pytest.mark.parametrize(
    ("page", "name", "make"),
    [("tutorial-images.md", "starter/digits", images), ("tutorial-texts.md", "starter/bbc", texts)],
)
def test_every_command_of_a_tutorial_succeeds(page, name, make, monkeypatch, tmp_path, capsys):
    data, model = make(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(starter, "load", {name: data}.__getitem__)
    monkeypatch.setattr(starter, "checkpoint", {DEFAULTS[name]: starter.StarterCheckpoint(model)}.__getitem__)
    small = {"data.train_examples=200": "data.train_examples=30", "model.max_length=128": "model.max_length=32"}
    assert len(commands(page)) >= 7
    for command in commands(page):
        words = [small.get(word, word) for word in shlex.split(command)]
        monkeypatch.setattr(sys, "argv", words)
        with pytest.raises(SystemExit) as ended:
            main()
        assert not ended.value.code, (command, capsys.readouterr().err)
    for block in blocks(page, "python"):
        for long, short in {"200": "30", "128": "32"}.items():
            block = block.replace(long, short)
        exec(block, {})
    assert (tmp_path / "answers.csv").is_file()
