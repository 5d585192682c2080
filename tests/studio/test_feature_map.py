"""The map of the training examples: every point is an example, and its new label is a line of the patch."""

import shutil

import numpy as np
import pytest

from hftransfer.core.errors import UserError
from hftransfer.data.patch import read_patch
from hftransfer.runs.reader import RecordedRun
from hftransfer.studio.deliver import export_arguments, push_arguments
from hftransfer.studio.feature_map import FeatureMap, plane


@pytest.fixture
def drawn(tmp_path, tiny_run):
    return FeatureMap.of(RecordedRun.open(shutil.copytree(tiny_run("probe", "image"), tmp_path / "shapes")))


def test_the_plane_keeps_groups_apart():
    rng = np.random.default_rng(0)
    groups = [np.eye(8)[number] + 0.01 * rng.normal(size=(10, 8)) for number in range(3)]
    places = plane(np.concatenate(groups))
    assert places.shape == (30, 2) and places.min() == 0 and places.max() == 1
    middles = np.array([places[start : start + 10].mean(0) for start in (0, 10, 20)])
    spread = max(np.ptp(places[start : start + 10], axis=0).max() for start in (0, 10, 20))
    assert min(np.linalg.norm(middles[i] - middles[j]) for i, j in ((0, 1), (0, 2), (1, 2))) > 3 * spread
    assert plane(np.ones((3, 1))).tolist() == [[0, 0]] * 3


def test_points_are_the_examples_that_the_model_was_fitted_on(drawn):
    assert "test" not in set(drawn.rows["split"]) and drawn.svg().count("<circle") == len(drawn.rows) > 10
    assert "data:image/jpeg;base64," in drawn.example_html(0) and drawn.rows["label"][0] in drawn.example_html(0)


def test_a_new_label_is_a_line_of_the_patch(drawn):
    row = drawn.rows.iloc[3]
    other = next(name for name in drawn.run.task.names if name != row["label"])
    assert "kept in shapes.patch.jsonl" in drawn.relabel(3, other)
    drawn.relabel(3, row["label"])
    first, second = read_patch(drawn.run.folder.parent / "shapes.patch.jsonl")
    assert (first.action, first.id, first.digest, first.label) == ("relabel", row["id"], row["digest"], other)
    assert second.action == "keep"
    with pytest.raises(UserError, match="Choose the right label first"):
        drawn.relabel(3, "<b>")


def test_runs_without_classes_have_no_map(tiny_run):
    with pytest.raises(UserError, match="nothing to draw"):
        FeatureMap.of(RecordedRun.open(tiny_run("probe", "image-regression")))


def test_the_commands_of_delivery():
    assert export_arguments("pets", "onnx") == ["export", "runs/pets", "--format", "onnx"]
    assert push_arguments("pets", "me/pets ", True) == ["push", "runs/pets", "me/pets", "--private"]
    for name in ("pets", "a/b/c", "--update/x"):
        with pytest.raises(UserError, match="Expected OWNER/NAME"):
            push_arguments("pets", name, False)
