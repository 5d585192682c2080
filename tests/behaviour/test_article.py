"""`scripts/article.py`: its figures from given cells, the networks that it makes, and one tiny cell."""

import json
import sys
from pathlib import Path

import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import ModelConfig, load_checkpoint
from tests.support import tiny

SCRIPTS = Path(__file__).parents[2] / "scripts"
pytestmark = pytest.mark.usefixtures("unchecked")


@pytest.fixture
def article(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPTS))
    import article as script

    yield script
    for name in ("article", "article_figures", "advice"):
        sys.modules.pop(name, None)


def test_every_cell_of_every_figure_has_a_key_of_its_own_and_can_be_drawn(article, tmp_path):
    """The figures are of the cells that the script measures, with made-up scores."""
    import article_figures

    bench = article.Bench(tmp_path, tmp_path)
    wanted = article.cells(list(article.FIGURES), 2, bench)
    assert len({cell.key for cell in wanted}) == len(wanted)
    names = ("figure", "data", "strategy", "labels", "seed", "steps")
    lines = []
    for number, cell in enumerate(wanted):
        score = 0.5 + 0.3 * (number % 7) / 7
        found = dict(zip(names, cell.key, strict=True)) | {"n": 5 * cell.labels, "score": score}
        found |= {"low": score - 0.05, "high": score + 0.05, "curve": [[10, 0.2], [20, 0.57], [30, 0.6]]}
        found |= {"train_score": 0.9}
        lines.append(found)
    written = article_figures.draw_all(lines, tmp_path)
    assert len(written) == len({line["figure"] for line in lines}) + 3  # the curves serve two, and two maps
    assert all(path.read_text().startswith("<?xml") for path in written)
    assert article_figures.reached(lines[0]) == 20  # 0.57 is 95 % of 0.6


def test_what_needs_data_is_left_out_without_it(article, tmp_path):
    without = article.cells(list(article.FIGURES), 1, article.Bench(None, tmp_path))
    assert without and {cell.data.partition(":")[0] for cell in without} <= set(article.PACKAGED)


def test_the_two_readings_of_the_rule_of_thumb(article):
    import article_figures

    kinds = [
        {"set": name, "labels": labels, "reached": {"probe": 0.5, "full": full}}
        for name, labels, full in (
            ("tiles", 20, 0.6), ("tiles", 5, 0.6), ("flowers5", 20, 0.6), ("flowers5", 5, 0.4), ("flowers5", 100, 0.505),
        )
    ]  # fmt: skip
    assert article_figures.rule_is_right(kinds, bold=True) == (4, 4)
    assert article_figures.rule_is_right(kinds, bold=False) == (2, 4)


def test_kept_blocks_are_those_of_the_checkpoint_and_the_rest_is_new(article, tmp_path):
    checkpoint = tiny.VISION_FAMILIES["resnet"](tmp_path / "resnet")
    bench = article.Bench(None, tmp_path)
    old = load_file(checkpoint / "model.safetensors")
    for kept in (0, 1):
        new = load_file(Path(article.reinitialised(bench, kept, str(checkpoint))) / "model.safetensors")
        model = load_checkpoint(
            ModelConfig(name=str(checkpoint)), article_kind(), article_task()
        ).model  # the names of its layers
        depth = LayerGroups.of(model).depth
        same = {name: torch.equal(new[name], old[name]) for name in new if new[name].ndim == 4}
        assert same == {name: kept > 0 and depth[name] <= kept for name in same} and len(same) > 3


def article_kind():
    from hftransfer.modalities import kind_of

    return kind_of("image")


def article_task():
    from hftransfer.tasks import SingleLabel

    return SingleLabel(("a", "b"))


@pytest.mark.slow  # trains
def test_a_cell_is_measured_once(article, tmp_path, monkeypatch, capsys):
    """Scores, the curve and the commit stand in its line, and a second call adds none."""
    folder = tiny.image_folder(tmp_path / "shapes", per_class=12)
    files = sorted(folder.glob("*/*.png"))
    parts = ["train", "train", "test", "validation"]
    table = pd.DataFrame(
        {"path": [str(f) for f in files], "label": [f.parent.name for f in files],
         "split": [parts[place % 4] for place in range(len(files))]}
    )  # fmt: skip
    monkeypatch.setattr(article, "rows", lambda *_: table)
    checkpoint = tiny.VISION_FAMILIES["timm-resnet"](tmp_path / "resnet")
    cell = article.Cell(
        1, "digits", "full", 6, 0, {"strategy.type": "full"}, 6, lambda _: str(checkpoint), article.learned, True
    )
    lines = tmp_path / "cells.jsonl"
    for _ in range(2):
        article.measure_all([cell], article.Bench(None, tmp_path), lines)
    (line,) = map(json.loads, lines.read_text().splitlines())
    assert line["low"] <= line["score"] <= line["high"] and 0 <= line["train_score"] <= 1
    assert [step for step, _ in line["curve"]] == list(range(1, 7)) and line["commit"]
    assert "failed" not in capsys.readouterr().out
