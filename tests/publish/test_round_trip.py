"""The round trip of real, tiny runs: raw inputs through plain `pipeline()` in a fresh process; and what stops a push."""

import json
import shutil

import numpy as np
import onnx
import pytest
import safetensors.torch

from hftransfer.apps.serving import Served
from hftransfer.core.errors import UserError
from hftransfer.core.files import write_json
from hftransfer.publish import round_trip
from hftransfer.publish import targets as forms
from hftransfer.publish.export import export
from hftransfer.publish.round_trip import (
    Form,
    _in_process,
    _job,
    ask_form,
    certified,
    certify,
    check,
    compare,
    forms_digest,
    forms_of,
    readable_rows,
)
from hftransfer.runs.reader import Part, RecordedRun
from hftransfer.tasks import make_task
from tests.support.run_folders import make_run

NEAR = {"pipeline": 1e-4, "demo": 1e-3}  # the demo shows values with four digits
NEAR_VALUES = 1e-3  # of a score that is no probability and as large as the labels are
RUNS = {
    "images": ("probe", "image"),
    "pairs": ("probe", "pair"),
    "multi-label": ("probe", "text-multi"),
    "regression": ("probe", "text-regression"),
    "lora": ("lora", "text"),
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_run):
    """Copies of real runs, made when asked for; that of LoRA is exported too."""
    root = tmp_path_factory.mktemp("runs")

    def make(kind: str):
        folder = root / kind
        if not folder.exists():
            shutil.copytree(tiny_run(*RUNS[kind]), folder)
            for format in ("onnx", "onnx-int8", "safetensors-merged") if kind == "lora" else ():
                export(folder, format)
        return folder

    return make


@pytest.fixture
def here(monkeypatch):
    """Forms are asked in this process: seconds less each."""

    def answers(run, job, form):
        ask = forms.FORMS[job["form"]](job)
        return {"answers": [ask(row) for row in job["rows"]], "seconds": 1.0}

    monkeypatch.setattr("hftransfer.publish.round_trip._in_process", answers)


@pytest.mark.parametrize("kind", ["images", "pairs", "regression", "multi-label"])
def test_saved_model_answers_as_it_was_measured(kind, runs, here):
    round_trip = certify(runs(kind))
    stages = {stage["name"]: stage for stage in round_trip["stages"]}
    assert list(stages) == ["pipeline", "demo"] and round_trip["rows"] >= 5
    for stage in stages.values():
        near = NEAR_VALUES if kind == "regression" else NEAR[stage["name"]]
        assert stage["max_difference"] < near and stage["label_agreement"] == 1.0
        assert stage["seconds_per_input"] > 0 and stage["bytes"] > 10_000
    assert json.loads((runs(kind) / "certificate.json").read_text())["rows"] == round_trip["rows"]
    check(round_trip)


def test_other_weights_are_found_out(runs, here, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(runs("images"), folder)
    weights = folder / "model" / "model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["fc.weight"] = -tensors["fc.weight"]
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    round_trip = certified(folder)
    assert round_trip["stages"][0]["label_agreement"] < 1
    with pytest.raises(
        UserError, match=r"The model answers otherwise through pipeline than when it was measured: \d+ of"
    ):
        check(round_trip)


STAGES = ["pipeline", "adapter on its base", "onnx", "onnx-int8", "safetensors-merged", "demo"]


def test_every_form_of_a_run_is_asked(runs, here):
    round_trip = certify(runs("lora"))
    stages = {stage["name"]: stage for stage in round_trip["stages"]}
    assert list(stages) == STAGES
    exact = [stage["max_difference"] for name, stage in stages.items() if name != "onnx-int8"]
    assert max(exact) < 1e-5 < stages["onnx-int8"]["max_difference"] and stages["onnx-int8"]["least_agreement"] == 0.9
    assert stages["adapter on its base"]["bytes"] < stages["pipeline"]["bytes"]
    check(round_trip)


SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in STAGES if name not in ("pipeline", "onnx")]


@pytest.mark.parametrize("name", ["pipeline", "onnx", *SLOW])
def test_fresh_process(name, runs, request):
    """The plain forms import nothing of ours. That of the pipeline is asked in a process that nothing has prepared."""
    if name != "pipeline":
        request.getfixturevalue("forked_programs")
    recorded = RecordedRun.open(runs("lora"))
    part = readable_rows(recorded, 4)
    (form,) = [each for each in forms_of(recorded) if each.name == name]
    found = _in_process(recorded, _job(recorded, part, form), form)
    assert found["alone"] == (name not in ("adapter on its base", "demo")) and found["seconds"] > 0
    scores = [[row[label] for label in recorded.task.names] for row in found["answers"]]
    assert np.allclose(scores, part.scores, atol=5e-3 if name == "onnx-int8" else 1e-5)


def turned_round(tensors):
    """The last layer of a classifier answers the opposite."""
    return {name: -value if "classifier" in name else value for name, value in tensors.items()}


def spoil(folder, form):
    """Make one form of the run answer otherwise."""
    if form == "adapter on its base":
        files = [folder / "adapter" / "adapter_model.safetensors"]
    else:
        files = [folder / ("model" if form == "pipeline" else f"exports/{form}") / "model.safetensors"]
    if form.startswith("onnx"):
        graph = onnx.load(folder / "exports" / form / "model.onnx")
        labels = next(entry for entry in graph.metadata_props if entry.key == "labels")
        labels.value = json.dumps(json.loads(labels.value)[1:] + json.loads(labels.value)[:1])
        return onnx.save(graph, folder / "exports" / form / "model.onnx")
    for file in files:
        safetensors.torch.save_file(turned_round(safetensors.torch.load_file(file)), file, {"format": "pt"})


@pytest.mark.parametrize("form", [name for name in STAGES if name != "demo"])
def test_each_form_that_answers_otherwise_stops_the_push_and_is_named(form, runs, here, tmp_path, monkeypatch):
    monkeypatch.setattr("hftransfer.publish.round_trip.NEAR", 1e-6)  # after four steps all classes are nearly alike
    folder = tmp_path / "run"
    shutil.copytree(runs("lora"), folder)
    spoil(folder, form)
    recorded = RecordedRun.open(folder)
    part = readable_rows(recorded, 16)
    (asked,) = [each for each in forms_of(recorded) if each.name == form]
    stage = vars(ask_form(recorded, part, asked))
    with pytest.raises(UserError, match=rf"answers otherwise through {form} than when it was measured: \d+ of"):
        check({"rows": len(part), "stages": [stage]})
    assert forms_digest(folder) != forms_digest(runs("lora"))


def test_a_demo_that_answers_otherwise_stops_the_push(runs, here, monkeypatch):
    ask = Served.ask
    monkeypatch.setattr(Served, "ask", lambda self, frame: (ask(self, frame)[0][:, ::-1], {}))
    recorded = RecordedRun.open(runs("images"))
    part = readable_rows(recorded, 8)
    stage = vars(ask_form(recorded, part, Form("demo", "demo", recorded.folder, 1)))
    with pytest.raises(UserError, match="answers otherwise through demo than"):
        check({"rows": len(part), "stages": [stage]})


def test_eight_bits_may_differ_as_far_as_their_export_promised():
    stage = {"name": "onnx-int8", "max_difference": 0.2, "disagreements": ["a"], "least_agreement": 0.95}
    check({"rows": 16, "stages": [stage]})
    with pytest.raises(UserError, match="through onnx-int8 than when it was measured: 5 of 16"):
        check({"rows": 16, "stages": [stage | {"disagreements": list("abcde")}]})
    with pytest.raises(UserError, match="through onnx than when it was measured: 1 of 16"):
        check({"rows": 16, "stages": [stage | {"name": "onnx", "least_agreement": 1.0}]})


def test_stored_certificate_holds_while_the_forms_are_the_same(tmp_path):
    folder = make_run(tmp_path / "run", rows=10)
    stored = {"rows": 3, "forms": forms_digest(folder), "stages": []}
    write_json(folder / "certificate.json", stored)
    assert certified(folder) == stored


@pytest.mark.parametrize("file", [
    "model/config.json", "model/tokenizer.json", "model/preprocessor_config.json", "model/own/code.py", "adapter/adapter_config.json",
    "exports/onnx/model.onnx.data", "exports/onnx/config.json",
])  # fmt: skip
def test_a_certificate_ends_with_any_file_of_a_form(tmp_path, file):
    folder = make_run(tmp_path / "run", rows=10)
    (folder / file).parent.mkdir(parents=True, exist_ok=True)
    (folder / file).write_text("{}")
    before = forms_digest(folder)
    (folder / file).write_text("[]")
    assert forms_digest(folder) != before
    (folder / file).write_text("{}")
    (folder / "README.md").write_text("a card is no form")
    assert forms_digest(folder) == before


@pytest.mark.parametrize("package", ["transformers", "tokenizers", "pillow", "onnxruntime"])
def test_a_certificate_ends_with_another_version_of_a_package(tmp_path, monkeypatch, package):
    folder = make_run(tmp_path / "run", rows=10)
    before, version = forms_digest(folder), round_trip._version
    monkeypatch.setattr(round_trip, "_version", lambda name: "99" if name == package else version(name))
    assert forms_digest(folder) != before


def test_model_that_does_not_load(runs, tmp_path, forked_programs):
    folder = tmp_path / "run"
    shutil.copytree(runs("images"), folder)
    (folder / "model" / "model.safetensors").unlink()
    (folder / "certificate.json").unlink(missing_ok=True)
    with pytest.raises(UserError, match=r"The model in .*/model does not answer through pipeline: "):
        certify(folder)
    assert not (folder / "certificate.json").exists()


def test_inputs_that_are_gone(tmp_path):
    folder = make_run(tmp_path / "run", modality="image", rows=10)
    shutil.rmtree(tmp_path / "images")
    with pytest.raises(UserError, match="None of the inputs of .* can be read again: keep its data where they were"):
        certify(folder)


def test_rows_are_held_out_and_spread(tmp_path):
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
def test_what_counts_as_another_label(kind, recorded, found, differs, tmp_path):
    import pandas as pd

    rows = np.array([recorded, [0.0, 0.0 if kind == "regression" else 1.0]])
    part = Part(pd.DataFrame({"id": ["x", "y"]}), np.zeros(2), rows)
    answers = np.array([found, rows[1].tolist()])
    form = Form("form", "pipeline", tmp_path, 0)
    stage = compare(form, make_task(kind, ("a", "b")), part, answers, 0.0)
    assert stage.disagreements == (("x",) if differs else ())
    assert stage.max_difference == pytest.approx(np.abs(np.array(found) - recorded).max())


@pytest.mark.parametrize(("found", "differs"), [(1000 + 6e-5, False), (1000.1, True), (999.0, True)])
def test_equal_predictions_differ_by_more_than_their_rounding(found, differs):
    recorded, task = np.full((4, 1), 1000.0), make_task("regression", ("a",))
    assert task.decides_otherwise(recorded, np.full((4, 1), found), 0.01).all() == differs


@pytest.mark.slow
def test_a_slow_form_is_asked_fewer_inputs(runs, monkeypatch):
    recorded = RecordedRun.open(runs("images"))
    form = Form("pipeline", "pipeline", recorded.folder / "model", 1)
    monkeypatch.setattr(round_trip, "SECONDS", 0.0)
    assert ask_form(recorded, readable_rows(recorded, 4), form).rows == 1
