"""Attribution over time: the moment that decided, the same as by silencing a file, and what is shown of it."""

import json

import numpy as np
import pandas as pd
import pytest
import soundfile
from PIL import Image

from hftransfer.config import parse_overrides, with_overrides
from hftransfer.modalities import kind_of
from hftransfer.models.loading import ModelConfig, load_checkpoint, save_model
from hftransfer.prediction.explain import explain, write_explanations
from hftransfer.prediction.occlusion import AGAINST, FOR, SEGMENTS, with_bars
from hftransfer.prediction.predictor import load
from hftransfer.report.gallery import shown_outputs
from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks import SingleLabel
from hftransfer.train import run
from tests.behaviour.test_cli import call
from tests.support import tiny
from tests.support.runs import configuration

RATE = 16000


def wave_file(path, samples):
    soundfile.write(path, samples, RATE, subtype="FLOAT")
    return pd.DataFrame({"id": [str(path)], "input": [str(path)]})


def sound(seconds=0.8, seed=0):
    return np.random.default_rng(seed).normal(0, 0.1, int(seconds * RATE)).astype(np.float32)


@pytest.mark.parametrize("family", tiny.AUDIO_FAMILIES)
def test_weights_are_what_a_silenced_file_costs(tmp_path, family):
    """The reference writes a file with each segment silent and asks the model about it."""
    task = SingleLabel(("a", "b", "c"))
    name = str(tiny.AUDIO_FAMILIES[family](tmp_path / family))
    made = load_checkpoint(ModelConfig(name=name, max_seconds=1), kind_of("audio"), task)
    save_model(made.model, made.processor, tmp_path / "new")
    predictor, samples = load(tmp_path / "new", use_cpu=True), sound()
    frame = wave_file(tmp_path / "s.wav", samples)
    (found,) = explain(predictor, frame)
    assert len(found.segments) == SEGMENTS and found.segments[0][0] == 0 and found.segments[-1][1] == pytest.approx(0.8)
    answer, lost = task.names.index(found.answer), []
    for start, end, _ in found.segments:
        gain = np.interp(np.arange(len(samples)) / RATE, [start - 0.005, start, end, end + 0.005], [1, 0, 0, 1])
        logits = predictor.logits(wave_file(tmp_path / "silenced.wav", samples * gain))
        lost.append(found.evidence - (logits[0, answer] - logits[0].mean()))
    assert answer == predictor.logits(frame)[0].argmax()
    expected = np.array(lost) / np.abs(lost).max()
    assert np.allclose([weight for *_, weight in found.segments], expected, atol=0.01)


def test_the_moment_that_decided_is_found(tiny_run, tmp_path):
    """A high tone in the third quarter of a second of noise is what the answer "high" rests on."""
    samples = sound(1.0) / 5
    samples[8000:12000] += 0.6 * np.sin(2 * np.pi * tiny.PITCHES["high"] * np.arange(4000) / RATE)
    predictor = load(tiny_run("probe", "audio"), use_cpu=True)
    (found,) = explain(predictor, wave_file(tmp_path / "s.wav", samples), [predictor.task.names.index("high")])
    weights = np.array([weight for *_, weight in found.segments])
    inside = np.array([0.45 < (start + end) / 2 < 0.8 for start, end, _ in found.segments])
    assert (
        found.answer == "high"
        and inside[weights.argmax()]
        and weights[inside].mean() > 2 * abs(weights[~inside].mean())
    )


def test_bars_stand_below_the_spectrogram():
    pixels = np.asarray(with_bars(Image.new("RGB", (100, 60), "gray"), np.array([1.0, -0.5])))
    assert pixels.shape == (90, 100, 3)
    assert (pixels[65, 25] == FOR).all() and (pixels[85, 25] == 255).all()
    assert (pixels[79, 75] == AGAINST).all() and (pixels[65, 75] == 255).all()


def test_a_short_recording_has_fewer_segments(tiny_run, tmp_path):
    (found,) = explain(load(tiny_run("probe", "audio"), use_cpu=True), wave_file(tmp_path / "s.wav", sound(0.12)))
    assert len(found.segments) == 2
    write_explanations([found], ["x"], tmp_path / "maps")
    assert {path.suffix for path in (tmp_path / "maps").iterdir()} == {".json", ".png"}


def test_a_run_and_predict_explain_recordings(tmp_path, pages, monkeypatch, capsys):
    values = configuration("probe", "audio-multi", tmp_path).model_dump(mode="json")
    folder = run(with_overrides(values, parse_overrides(["evaluation.explanations=true"]))).folder
    finished = RecordedRun.open(folder)
    shown = shown_outputs(finished)
    assert shown and all(finished.explanation(row, ".png").is_file() for row in shown)
    page = (folder / "report.html").read_text(encoding="utf-8")
    assert "which moments mattered" in page and "one bar for each segment of time" in page and "Grad-CAM" not in page
    file = finished.splits["input"].iloc[0]
    code, _, err = call(monkeypatch, capsys, "predict", folder, file, "--explain", tmp_path / "maps")
    assert code == 0, err
    (written,) = (tmp_path / "maps").glob("*.json")
    assert set(json.loads(written.read_text())["segments"][0]) == {"start", "end", "weight"}
