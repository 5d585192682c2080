"""Uncertain examples: chosen by a run, labelled on the page, and added to the training by the patch."""

import shutil

import pytest

from hftransfer.core.errors import UserError
from hftransfer.data.patch import read_patch
from hftransfer.studio.place import Place
from hftransfer.studio.uncertain import Uncertain, question_html
from tests.support import tiny


@pytest.fixture
def uncertain(tmp_path, tiny_run):
    place = Place(tmp_path.resolve())
    shutil.copytree(tiny_run("probe", "image"), place.runs / "shapes")
    tiny.image_folder(place.root / "new", per_class=3, size=40)
    return Uncertain(place)


def test_labels_become_lines_of_the_patch_and_a_reload_goes_on(uncertain):
    assert uncertain.waiting() == []
    uncertain.choose("shapes", "new", 4)
    questions = uncertain.waiting()
    assert len(questions) == 4
    assert "data:image/jpeg;base64," in question_html(uncertain.run, questions[0])
    uncertain.label(questions[0], "red")
    uncertain.skip(questions[1])
    left = [row["input"] for row in Uncertain(uncertain.place).waiting()]
    assert left == [row["input"] for row in (*questions[2:], questions[1])]
    (line,) = read_patch(uncertain.place.runs / "shapes.patch.jsonl")
    assert (line.action, line.label, line.digest) == ("add", "red", questions[0]["digest"])
    copy = uncertain.place.runs / line.input
    assert copy.read_bytes() == open(questions[0]["input"], "rb").read()
    with pytest.raises(UserError, match="Choose a label first"):
        uncertain.label(questions[1], None)


def test_pools_and_runs_outside_are_refused(uncertain):
    with pytest.raises(UserError, match="lies outside of"):
        uncertain.choose("shapes", "..", 4)
    with pytest.raises(UserError, match="There is no run"):
        uncertain.choose("nothing", "new", 4)


def test_texts_are_escaped(uncertain, tiny_run):
    shutil.copytree(tiny_run("probe", "text"), uncertain.place.runs / "texts")
    (uncertain.place.root / "pool.csv").write_text("text\n<img src=x onerror=alert(1)>\nplain words\n")
    uncertain.choose("texts", "pool.csv", 5)
    questions = uncertain.waiting()
    assert len(questions) == 2
    page = "".join(question_html(uncertain.run, question) for question in questions)
    assert "<img" not in page and "&lt;img" in page
    uncertain.label(questions[0], "topic1")
    (line,) = read_patch(uncertain.place.runs / "texts.patch.jsonl")
    assert line.input == questions[0]["input"]
