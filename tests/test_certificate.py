"""The round trip of real, tiny runs: raw inputs through plain `pipeline()` in a fresh process; and what stops a push."""

import json
import shutil

import numpy as np
import pytest
import safetensors.torch

from hftransfer.certificate import certified, certify, check, compare, weights_digest
from hftransfer.config import with_overrides
from hftransfer.errors import UserError
from hftransfer.evaluation.recorded import Part, RecordedRun
from hftransfer.run_folder import write_json
from hftransfer.tasks import Task
from hftransfer.train import run
from tests import tiny
from tests.run_folders import make_run

TABLES = {
    "pairs": ("single_label", True),
    "multi-label": ("multi_label", False),
    "regression": ("regression", False),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Real runs of the probe on tiny models, made when asked for."""
    root, made = tmp_path_factory.mktemp("runs"), {}

    def make(kind: str):
        if kind not in made:
            made[kind] = _train(root / kind, kind)
        return made[kind]

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HFTRANSFER_CACHE", str(root / "cache"))
        yield make


def _train(root, kind):
    root.mkdir()
    options = {"output": str(root / "run")}
    if kind == "images":
        data = tiny.image_folder(root / "data")
        model = tiny.VISION_FAMILIES["timm-resnet"](root / "model")
    else:
        task, pairs = TABLES[kind]
        data = tiny.text_table(root / "table.csv", task, pairs, rows=80)
        model = tiny.TEXT_FAMILIES["bert"](root / "model")
        options |= {"data.label": "label", "data.task": task}
        options |= {"data.input": ["first", "second"] if pairs else "text"}
        options |= {"data.separator": "|"} if task == "multi_label" else {}
    run(with_overrides({"data": str(data), "model": str(model), "strategy": "probe"}, options))
    return root / "run"


@pytest.mark.parametrize("kind", ["images", "pairs", "regression", pytest.param("multi-label", marks=pytest.mark.slow)])
def test_saved_model_answers_as_it_was_measured(kind, runs):
    certificate = certify(runs(kind))
    (stage,) = certificate["stages"]
    assert stage["name"] == "pipeline" and stage["max_difference"] < 1e-4 and stage["label_agreement"] == 1.0
    assert certificate["rows"] >= 5 and stage["seconds_per_input"] > 0 and stage["bytes"] > 10_000
    assert json.loads((runs(kind) / "certificate.json").read_text())["rows"] == certificate["rows"]
    check(certificate)


def test_other_weights_are_found_out(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs("images"), folder)
    weights = folder / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["fc.weight"] = -tensors["fc.weight"]
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    certificate = certified(folder)
    assert certificate["stages"][0]["label_agreement"] < 1
    with pytest.raises(
        UserError, match=r"The model answers otherwise through pipeline than when it was measured: \d+ of"
    ):
        check(certificate)


def test_stored_certificate_holds_while_the_weights_are_the_same(tmp_path):
    folder = make_run(tmp_path / "run", rows=10)
    stored = {"rows": 3, "weights": weights_digest(folder), "stages": []}
    write_json(folder / "certificate.json", stored)
    assert certified(folder) == stored


def test_model_that_does_not_load(runs, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs("images"), folder)
    (folder / "model" / "model.safetensors").unlink()
    (folder / "certificate.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match="does not load in a plain pipeline: "):
        certify(folder)
    assert not (folder / "certificate.json").exists()


def test_inputs_that_are_gone(tmp_path):
    folder = make_run(tmp_path / "run", modality="image", rows=10)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match="None of the inputs of .* can be read again: keep its data where they were"):
        certify(folder)


def test_rows_are_held_out_and_spread(tmp_path):
    from hftransfer.certificate import readable_rows

    recorded = RecordedRun.open(make_run(tmp_path / "run", rows=100))
    part = readable_rows(recorded, 16)
    test = recorded.part("test").ids
    places = [test.index(name) for name in part.ids]
    assert len(places) == 16 and places[0] == 0 and places[-1] == 99 and np.diff(places).max() <= 8


@pytest.mark.parametrize(
    ("kind", "recorded", "found", "differs"),
    [
        ("single_label", [0.6, 0.4], [0.4, 0.6], True),
        ("single_label", [0.505, 0.495], [0.495, 0.505], False),  # a tie
        ("single_label", [0.6, 0.4], [0.9, 0.1], False),
        ("multi_label", [0.6, 0.1], [0.4, 0.1], True),
        ("multi_label", [0.505, 0.1], [0.495, 0.1], False),
        ("regression", [1.0, 2.0], [1.0, 2.5], True),
        ("regression", [1.0, 2.0], [1.0, 2.001], False),
    ],
)
def test_what_counts_as_another_label(kind, recorded, found, differs):
    import pandas as pd

    rows = np.array([recorded, [0.0, 0.0 if kind == "regression" else 1.0]])
    part = Part(pd.DataFrame({"id": ["x", "y"]}), np.zeros(2), rows)
    answers = np.array([found, rows[1].tolist()])
    stage = compare("form", Task(kind, ("a", "b")), part, answers, 0.0, 0)
    assert stage.disagreements == (("x",) if differs else ())
    assert stage.max_difference == pytest.approx(np.abs(np.array(found) - recorded).max())
