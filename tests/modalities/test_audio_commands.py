"""Recordings through the commands that plan, continue, review and explain."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch
from torch.nn.functional import cross_entropy

from hftransfer.config import checked, parse_overrides, with_overrides
from hftransfer.data import DataConfig, load_data
from hftransfer.models.references import ModelConfig
from hftransfer.planning.checkpoints.ranking import rank, sample
from hftransfer.planning.labels.pool import next_to_label
from hftransfer.prediction.predictor import load
from hftransfer.report import write_report
from hftransfer.train import run
from tests.behaviour.test_several_processes import launched, log_of
from tests.behaviour.test_survival import at_step, stops
from tests.support import tiny
from tests.support.runs import configuration
from tests.training.test_trainer import same, weights


def test_auto_leaves_a_run_of_what_was_chosen(tmp_path, pages):
    few = ("strategy.budget=15s", "training.max_steps=2", "training.learning_rate=1e-3", "head.folds=2")
    values = configuration("probe", "audio", tmp_path).model_dump(mode="json")
    folder = run(with_overrides(values, {"strategy.type": "auto"} | parse_overrides(list(few)))).folder
    found = json.loads((folder / "advice.json").read_text())
    tried = {candidate["name"] for candidate in found["candidates"]} | set(found["skipped"])
    assert {"majority", "raw", "random", "probe", "frozen", "lora", "full", "scratch"} <= tried
    assert "a linear model on MFCC statistics" in " ".join(found["evidence"]) + found["advice"]
    assert (folder / "report.html").is_file() and found["changes"]["strategy.type"] != "auto"


def test_an_interrupted_run_resumes_to_the_same_weights(tmp_path, monkeypatch):
    """The whole wav2vec2 trains on augmented recordings of different length."""
    config = configuration("full", "audio-multi", tmp_path, max_steps=9, evaluations=3)
    whole = weights(run(config.model_copy(update={"output": str(tmp_path / "whole")})).folder)
    with monkeypatch.context() as broken, pytest.raises(RuntimeError, match="killed"):
        at_step(broken, 8, stops(RuntimeError("killed")))
        run(config)
    at_step(monkeypatch, 0, stops(AssertionError("trained from the beginning")))
    assert same(whole, weights(run(config, resume=True).folder))


def grouped(folder):
    """A run of the whole of a wav2vec2 with group norm, which reads padding as sound."""
    config = configuration("full", "audio", folder)
    model = str(tiny.AUDIO_FAMILIES["wav2vec2-group"](folder / "group"))
    return config.model_copy(update={"model": config.model.model_copy(update={"name": model})})


def test_validation_losses_of_a_training_do_not_depend_on_the_batch(tmp_path, monkeypatch):
    """The loss that is logged is the mean over each recording alone."""
    monkeypatch.setattr("hftransfer.training.trainer._undo_a_loss", lambda *_: None)
    config = grouped(tmp_path)
    best = config.training.model_copy(update={"weights": "best"})  # an average has no loss among those of the steps
    folder = run(config.model_copy(update={"training": best})).folder
    logged = [entry["eval_loss"] for entry in json.loads((folder / "history.json").read_text()) if "eval_loss" in entry]
    predictions = pd.read_parquet(folder / "predictions.parquet")
    predictions = predictions[predictions["split"] == "validation"]
    logits = torch.tensor(predictions.filter(like="logit:").to_numpy())
    names = [name.removeprefix("logit:") for name in predictions.filter(like="logit:")]
    targets = torch.tensor([names.index(label) for label in predictions["label"]])
    assert cross_entropy(logits, targets).item() == pytest.approx(min(logged), abs=1e-5)


@pytest.mark.slow
def test_two_processes_make_one_run(tmp_path):
    config = grouped(tmp_path)
    assert launched(config, tmp_path / "cache") == [0, 0], log_of(config, 0)[-2000:]
    recorded = pd.read_parquet(Path(config.output) / "predictions.parquet")
    inputs = pd.read_parquet(Path(config.output) / "splits.parquet").set_index("id").loc[recorded["id"], "input"]
    found = load(config.output, use_cpu=True).predict(inputs.tolist())
    assert abs(found.filter(like="score:").to_numpy() - recorded.filter(like="score:").to_numpy()).max() < 1e-4


@pytest.fixture(scope="module")
def sounds(tmp_path_factory):
    """Recordings of another rate than those that the tiny runs know."""
    return tiny.audio_folder(tmp_path_factory.mktemp("sounds"), per_class=8, rate=12000)


def test_checkpoints_are_ranked_with_the_window_of_the_recordings(tmp_path, sounds):
    data = load_data(DataConfig(train=str(sounds)))
    for rows in (12, 1000):
        taken = sample(data, rows, 0)
        assert len(taken.inspections) == len(taken.frame) and taken.fitted(ModelConfig(name="x")).max_seconds == 1
        assert [found.digest for found in taken.inspections] == taken.kind.digests(taken.frame)
    names = [str(tiny.AUDIO_FAMILIES[family](tmp_path / family)) for family in ("whisper", "wav2vec2-group")]
    config = checked({"data": str(sounds), "model": names[0], "use_cpu": True, "head": {"folds": 2}})
    assert {found.name for found in rank(config, names, rows=15).checkpoints} == set(names)


def test_next_chooses_recordings_with_a_run_and_without(tmp_path, tiny_run, sounds, monkeypatch):
    chosen = next_to_label(str(sounds), 3, str(tiny_run("probe", "audio")), None)
    assert len(chosen) == 3 and set(chosen["prediction"]) <= set(tiny.PITCHES)
    seen = []
    model = str(tiny.AUDIO_FAMILIES["whisper"](tmp_path / "whisper"))
    from hftransfer.planning.labels import pool

    original = pool.load_checkpoint
    monkeypatch.setattr(
        pool, "load_checkpoint", lambda config, *others: seen.append(config) or original(config, *others)
    )
    assert len(next_to_label(str(sounds), 4, None, model)) == 4
    assert seen[0].max_seconds == 1


def test_report_and_review_play_and_show_recordings(tmp_path, tiny_run):
    from hftransfer.apps.review.page import Review, item_html

    folder = Path(shutil.copytree(tiny_run("probe", "audio"), tmp_path / "run"))
    for name in ("splits.parquet", "oof.parquet", "predictions.parquet"):
        table = pd.read_parquet(folder / name)
        wrong = table["id"].isin(table.loc[table["label"] == "low", "id"].head(1)) & (table["label"] == "low")
        table.assign(label=table["label"].mask(wrong, "high")).to_parquet(folder / name)
    review = Review(folder)
    shown = item_html(review, 0)
    page = write_report(folder).read_text()
    for each in (shown, page):
        assert '<audio controls preload="none" src="data:audio/mpeg;base64,' in each
        assert 'src="data:image/jpeg;base64,' in each
    assert len(shown) < 100_000


@pytest.mark.parametrize("kind", ["audio", pytest.param("audio-multi", marks=pytest.mark.slow)])
def test_the_exported_graph_answers_as_the_model(tiny_run, tmp_path, kind):
    import onnxruntime

    from hftransfer.publish.export import export

    folder = tiny_run("probe", kind)
    graph = export(folder, "onnx", tmp_path / "graph")
    session = onnxruntime.InferenceSession(str(graph / "model.onnx"), providers=["CPUExecutionProvider"])
    predictor, frame = load(folder, use_cpu=True), pd.read_parquet(folder / "splits.parquet").head(5)
    for rows in (frame, frame.head(1)):
        batch = predictor.modality.collate(predictor.modality.encode(rows))
        (found,) = session.run(None, {given.name: batch[given.name].numpy() for given in session.get_inputs()})
        expected = predictor.logits(rows)
        assert abs(found - expected).max() < 1e-4 * max(1, abs(expected).max())
