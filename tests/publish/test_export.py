"""An exported model answers as the run's own does, whatever the number of rows and tokens, or it is not written."""

import json
import time
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from rich.console import Console

from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.modalities import kind_of
from hftransfer.prediction.predictor import load
from hftransfer.publish import export as module
from hftransfer.publish.export import as_table, check, compare, export
from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks import MultiLabel, Regression, SingleLabel
from hftransfer.train import run
from tests.support import tiny
from tests.support.runs import configuration


class Made(dict):
    """What was made for a name, when it is first asked for."""

    def __init__(self, make):
        self.make = make

    def __missing__(self, name):
        self[name] = self.make(name)
        return self[name]


KINDS = {"conv": "image", "vit": "image", "text": "text", "pair": "pair"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """A convolutional net, a ViT, BERT that reads the mean over tokens, and BERT on pairs."""

    def make(name):
        folder, kind = tmp_path_factory.mktemp(name), KINDS[name]
        values = configuration("lora" if name == "pair" else "probe", kind, folder).model_dump(mode="json")
        if name == "conv":
            values["data"]["train"] = str(tiny.image_folder(folder / "many", per_class=40))
        if name == "vit":
            values["model"]["name"] = str(tiny.VISION_FAMILIES["vit"](folder / "vit"))
        if name == "text":
            values["head"]["pooling"] = "mean"
            values["data"]["train"] = str(tiny.text_table(folder / "many.csv", rows=200))
        return run(checked(values)).folder

    return Made(make)


@pytest.fixture(scope="module")
def graphs(runs, tmp_path_factory):
    place = tmp_path_factory.mktemp("onnx")
    return Made(lambda name: export(runs[name], "onnx", place / name))


def session_of(folder):
    return onnxruntime.InferenceSession(str(folder / "model.onnx"), providers=["CPUExecutionProvider"])


@pytest.mark.parametrize(
    "name", ["conv", pytest.param("vit", marks=pytest.mark.slow), "text", pytest.param("pair", marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("rows", [1, 7])
def test_the_graph_answers_as_the_model_for_any_number_of_rows(runs, graphs, name, rows):
    predictor, session = load(runs[name], use_cpu=True), session_of(graphs[name])
    frame = pd.read_parquet(runs[name] / "splits.parquet").head(rows)
    batch = predictor.modality.collate(predictor.modality.encode(frame))
    (found,) = session.run(None, {given.name: batch[given.name].numpy() for given in session.get_inputs()})
    expected = predictor.logits(frame)
    assert np.allclose(found, expected, atol=1e-4 * max(1, np.abs(expected).max()))


def test_texts_longer_than_those_of_the_export(runs, graphs):
    predictor, session = load(runs["text"], use_cpu=True), session_of(graphs["text"])
    frame = pd.DataFrame({"id": ["a", "b"], "input": ["goal match team " * 12, "bank"]})
    batch = predictor.modality.collate(predictor.modality.encode(frame))
    (found,) = session.run(None, {given.name: batch[given.name].numpy() for given in session.get_inputs()})
    assert batch["input_ids"].shape[1] > 30
    assert np.allclose(found, predictor.logits(frame), atol=1e-4 * max(1, np.abs(found).max()))


def test_labels_and_temperature_stand_in_the_graph(runs, graphs):
    about = json.loads((runs["conv"] / "run.json").read_text())
    found = session_of(graphs["conv"]).get_modelmeta().custom_metadata_map
    assert json.loads(found["labels"]) == about["task"]["names"]
    assert float(found["temperature"]) == about["temperature"] and found["temperature_is_folded_in"] == "true"
    assert json.loads(found["trust"])["level"] == 0.9


def test_eight_bits_keep_the_decisions_and_the_averaging_layer(runs, tmp_path):
    folder = export(runs["text"], "onnx-int8", tmp_path / "small")
    kinds = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert kinds.count("MatMulInteger") >= 6 and "MatMul" in kinds
    comparison = json.loads((folder / "export.json").read_text())
    assert comparison["agreement"]["low"] >= 0.9 and comparison["max_difference"] > 0
    assert {path.name for path in folder.iterdir()} >= {"model.onnx", "config.json", "tokenizer.json", "export.json"}
    assert not list(folder.glob("float*"))
    console = Console(record=True, width=120)
    console.print(as_table(folder))
    shown = console.export_text()
    assert "original" in shown and "onnx-int8" in shown and "accuracy" in shown and "decisions agree" in shown


def test_eight_bits_of_a_convolutional_net_are_calibrated_on_training_rows(runs, tmp_path):
    folder = export(runs["conv"], "onnx-int8", tmp_path / "small")
    kinds = [node.op_type for node in onnx.load(folder / "model.onnx").graph.node]
    assert kinds.count("QuantizeLinear") > kinds.count("Conv") > 0 and not kinds.count("ConvInteger")
    about = json.loads((runs["conv"] / "run.json").read_text())
    assert json.loads(session_of(folder).get_modelmeta().custom_metadata_map["labels"]) == about["task"]["names"]
    comparison = json.loads((folder / "export.json").read_text())
    assert comparison["agreement"]["low"] >= 0.9 and 0 < comparison["max_difference"]
    assert set(comparison["sides"]["onnx-int8"]["seconds_per_input"]) == {"1", "16"}
    given = module._calibration(RecordedRun.open(runs["conv"]), load(runs["conv"], use_cpu=True))
    train = pd.read_parquet(runs["conv"] / "splits.parquet")["split"] == "train"
    calibrated = sum(len(batch["pixel_values"]) for batch in given)
    assert calibrated == min(module.CALIBRATION_ROWS, (train.sum() + 1) // 2)  # half compares the two models
    assert comparison["rows"] == len(train) - calibrated


def test_as_many_inputs_are_compared_as_the_seconds_allow(runs, tmp_path):
    rows = {}
    for seconds in (0, 30):
        folder = export(runs["text"], "safetensors-merged", tmp_path / str(seconds), seconds=seconds)
        comparison = json.loads((folder / "export.json").read_text())
        rows[seconds] = comparison["rows"]
        assert comparison["sides"]["original"]["quality"]["n"] == comparison["rows"]
    held_out = (RecordedRun.open(runs["text"]).splits["split"] == "test").sum()
    assert rows == {0: 16, 30: held_out} and held_out > 16  # one batch at least; all of the test part


def test_a_slow_form_does_not_take_longer_than_its_share():
    """Ten batches of 10 ms in 50 ms: the batch that would end later is not begun."""

    class Modality:
        kind = kind_of("text")

        def collate(self, items):
            return {"x": torch.zeros(len(items), 1)}

    def answer(batch):
        time.sleep(0.01)
        return batch["x"].numpy()

    batches = module.Batches(SimpleNamespace(modality=Modality()), [0] * 160)
    answered = len(module._timed(answer, batches, 5, "slow")[0])
    begin = time.perf_counter()
    logits, seconds = module._timed(answer, batches, 0.25, "slow")
    assert 16 <= len(logits) < answered == 160 and time.perf_counter() - begin < 1
    assert seconds["16"] >= 0.01 / 16


def test_the_merged_model_loads_in_a_plain_pipeline(runs, tmp_path):
    from transformers import pipeline

    folder = export(runs["pair"], "safetensors-merged", tmp_path / "plain")
    frame = pd.read_parquet(runs["pair"] / "splits.parquet").head(1)
    answer = pipeline("text-classification", str(folder), device="cpu")(
        {"text": frame["input"][0], "text_pair": frame["input_pair"][0]}
    )
    predictor = load(runs["pair"], use_cpu=True)
    assert answer["score"] == pytest.approx(predictor.task.probabilities(predictor.logits(frame)).max(), abs=1e-4)
    assert not list(folder.glob("adapter*"))


def test_a_graph_that_answers_otherwise_is_not_written(runs, tmp_path, monkeypatch):
    right = module._of_graph
    monkeypatch.setattr(module, "_of_graph", lambda file: lambda batch: right(file)(batch) + 0.01)
    with pytest.raises(UserError, match=r"answers otherwise than the original: logits differ by 0\.01 .* not written"):
        export(runs["conv"], "onnx", tmp_path / "wrong")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("task", [SingleLabel(("a", "b")), MultiLabel(("a", "b"))])
def test_eight_bits_are_refused_where_decisions_surely_differ(task):
    logits = np.random.default_rng(0).normal(size=(200, 2)) * 3
    flipped = logits.copy()
    flipped[:30] *= -1
    comparison = compare(task, logits, flipped) | {"format": "onnx-int8"}
    assert comparison["agreement"]["value"] == pytest.approx(0.85)
    with pytest.raises(UserError, match=r"85\.0% of 200 inputs agree .* No number .* use --format onnx"):
        check(comparison)
    check(compare(task, logits, logits * 1.3) | {"format": "onnx-int8"})


@pytest.mark.parametrize(("rows", "differ", "needed"), [(16, 0, 35), (34, 0, 35), (100, 5, 139), (16, 2, None)])
def test_eight_bits_need_enough_inputs_to_show_that_they_agree(rows, differ, needed):
    """14 of 16 passed once, where the true share may be 64 %: the lower end decides, and the message says how many it takes."""
    task, logits = SingleLabel(("a", "b")), np.tile([[1.0, -1.0]], (rows, 1))
    flipped = np.concatenate([-logits[:differ], logits[differ:]])
    told = f"it takes {needed} inputs" if needed else "No number of inputs shows it"
    with pytest.raises(UserError, match=f"not shown to decide as the original: .* {told}"):
        check(compare(task, logits, flipped) | {"format": "onnx-int8"})


def test_as_many_inputs_as_it_says_are_enough():
    for share in (0.92, 0.95, 1.0):
        rows = module.inputs_needed(share)
        assert module.wilson(share * rows, rows)[0] > 0.9 - 0.02 / rows or share < 1
    assert module.wilson(35, 35)[0] > 0.9 > module.wilson(34, 34)[0]


def test_values_agree_within_a_share_of_their_spread():
    task, values = Regression(("size",)), np.linspace(0, 10, 50)[:, None]
    assert compare(task, values, values + 0.01)["agreement"]["value"] == 1
    assert compare(task, values, values + 1.0)["agreement"]["value"] == 0


def test_mistakes_are_named(runs, tmp_path):
    with pytest.raises(UserError, match="Unknown format 'onx'. Did you mean 'onnx'"):
        export(runs["conv"], "onx", tmp_path / "new")
    with pytest.raises(UserError, match="exists already"):
        export(runs["conv"], "onnx", tmp_path)
    with pytest.raises(UserError, match="no run"):
        export(tmp_path / "nowhere", "onnx")
