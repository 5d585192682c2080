"""Progress bars that tell a file how far a command is."""

import json

import pytest

from hftransfer.core.bars import VARIABLE, Bar


@pytest.fixture
def lines(tmp_path, monkeypatch):
    """What the bars of a test wrote so far."""
    file = tmp_path / "progress.jsonl"
    monkeypatch.setenv(VARIABLE, str(file))
    monkeypatch.setattr("hftransfer.core.bars.SECONDS", 0.0)
    return lambda: [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []


@pytest.mark.parametrize("disable", [None, False])
def test_updates_are_counted_whether_drawn_or_not(lines, disable):
    with Bar(total=5, desc="train", unit="step", disable=disable) as bar:
        bar.update(2)
        assert bar.n == 2
        bar.update(3)
        bar.tell({"loss": 0.5})
    assert [line["done"] for line in lines()[:3]] == [0, 2, 5]
    assert lines()[-1] == {"phase": "train", "done": 5, "total": 5, "unit": "step", "values": {"loss": 0.5}}


def test_items_are_counted(lines):
    assert list(Bar(range(3), desc="fold")) == [0, 1, 2]
    assert [line["done"] for line in lines()] == [0, 1, 2, 3] and lines()[-1]["total"] == 3


def test_a_hidden_bar_tells_nothing_and_without_a_file_nothing_is_written(lines, monkeypatch):
    assert list(Bar(range(3), desc="few", disable=True)) == [0, 1, 2]
    assert lines() == []
    monkeypatch.delenv(VARIABLE)
    with Bar(total=1, desc="alone") as bar:
        bar.update(1)
        bar.tell({"loss": 1.0})
    assert lines() == []
