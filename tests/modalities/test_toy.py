"""A modality that is defined here and registered from outside runs through every station of the package."""

import logging

import gradio as gr
import numpy as np
import pandas as pd
import pytest
import torch
import transformers
from torch import nn
from transformers.feature_extraction_sequence_utils import SequenceFeatureExtractor
from transformers.modeling_outputs import SequenceClassifierOutput

from hftransfer.apps.demo import build_demo
from hftransfer.apps.review.page import Review, item_html
from hftransfer.apps.serving import answered, serve
from hftransfer.config import checked
from hftransfer.core.errors import UserError
from hftransfer.data import DataConfig, inputs_modality, load_data
from hftransfer.data.values import number
from hftransfer.doctor.examination import examine
from hftransfer.evaluation import EvaluationConfig
from hftransfer.modalities import MODALITIES, ModalityKind, kind_of, register
from hftransfer.models.loading import load_checkpoint
from hftransfer.models.references import ModelConfig
from hftransfer.prediction.evaluate import evaluate
from hftransfer.prediction.explain import NoExplanation, explain
from hftransfer.prediction.predictor import load
from hftransfer.publish.card import render_card
from hftransfer.report import write_report
from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks import SingleLabel
from hftransfer.train import run

POINTS = 16  # of each series


def values_of(text: str) -> list[float]:
    return [float(word) for word in text.split()]


# --- the modality: what one file of `modalities/` would hold -----------------------------------------------------------


class SeriesKind(ModalityKind):
    """Series of 16 numbers in a cell, written "0.1 0.5 …"."""

    name, noun, plural = "series", "time series", "time series"
    auto_class_name = "AutoModelForAudioClassification"
    processor_class = "AutoFeatureExtractor"
    pipeline_task = "audio-classification"
    example_checkpoints = "the one in this test"
    api_names = ("series",)

    def recognises(self, sample):
        return all(
            isinstance(value, str) and len(value.split()) > 2 and None not in map(number, value.split())
            for value in sample
        )

    def fault(self, value):
        count = len(value.split())
        return super().fault(value) or (None if count == POINTS else f"it has {count} numbers, expected {POINTS}")

    def bind(self, processor, augmentation=None):
        return Series(processor, self)


class Series:
    """The processor at work."""

    truncated_share, augmentation, mixes_lengths = 0.0, None, True

    def __init__(self, processor, kind):
        self.processor, self.kind = processor, kind

    def encode(self, frame):
        return [values_of(text) for text in frame["input"]]

    def lengths(self, items):
        return [1] * len(items)

    def collate(self, items, training=False):
        return dict(self.processor(list(items)))

    def plain_batch(self, processor, frame):
        return dict(processor(self.encode(frame)))

    def recorded(self, value):
        return value

    def settings(self):
        return self.processor.to_dict()

    def skeleton(self, items):
        return {}


# --- a checkpoint of it ------------------------------------------------------------------------------------------------


class SeriesConfig(transformers.PreTrainedConfig):
    model_type = "series_of_a_test"


class SeriesBackbone(transformers.PreTrainedModel):
    config_class = SeriesConfig
    base_model_prefix, main_input_name = "series", "values"

    def __init__(self, config):
        super().__init__(config)
        self.stem = nn.Linear(POINTS, 32)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(32, 32), nn.GELU()) for _ in range(3))
        self.post_init()

    def forward(self, values):
        hidden = self.stem(values)
        for block in self.blocks:
            hidden = block(hidden)
        return hidden

    def _init_weights(self, module):
        if isinstance(module, nn.Linear):
            nn.init.normal_(module.weight, std=0.3)
            nn.init.zeros_(module.bias)


class SeriesForClassification(SeriesBackbone):
    def __init__(self, config):
        transformers.PreTrainedModel.__init__(self, config)
        self.series = SeriesBackbone(config)
        self.classifier = nn.Linear(32, config.num_labels)
        self.post_init()

    def forward(self, values, labels=None):
        return SequenceClassifierOutput(logits=self.classifier(self.series(values)))


class SeriesExtractor(SequenceFeatureExtractor):
    model_input_names = ["values"]

    def __init__(self, **settings):
        super().__init__(**{"feature_size": 1, "sampling_rate": 1, "padding_value": 0.0} | settings)

    def __call__(self, series, **options):
        return {"values": torch.tensor(series, dtype=torch.float32)}


@pytest.fixture(scope="module", autouse=True)
def registered():
    transformers.AutoConfig.register("series_of_a_test", SeriesConfig, exist_ok=True)
    transformers.AutoModelForAudioClassification.register(SeriesConfig, SeriesForClassification, exist_ok=True)
    transformers.AutoFeatureExtractor.register(SeriesConfig, SeriesExtractor, exist_ok=True)
    register(SeriesKind())
    yield
    del MODALITIES["series"]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with a table of rising and falling series, and a tiny checkpoint."""
    folder = tmp_path_factory.mktemp("series")
    random = np.random.default_rng(0)
    slopes = np.tile([1.0, -1.0], 40)
    rows = slopes[:, None] * np.linspace(-1, 1, POINTS) + random.normal(0, 0.2, (len(slopes), POINTS))
    written = [" ".join(f"{value:.3f}" for value in row) for row in rows]
    labels = np.where(slopes > 0, "rising", "falling")
    pd.DataFrame({"reading": written, "trend": labels}).to_csv(folder / "table.csv", index=False)
    torch.manual_seed(0)
    SeriesForClassification(SeriesConfig(num_labels=7)).save_pretrained(folder / "model")
    SeriesExtractor().save_pretrained(folder / "model")
    return folder


def trained(place, strategy):
    config = {
        "data": {"train": str(place / "table.csv"), "label": "trend"}, "model": str(place / "model"), "use_cpu": True,
        "strategy": {"type": strategy}, "output": str(place / strategy),
        "training": {"max_steps": 20, "per_device_train_batch_size": 16, "evaluations": 2, "bf16": False},
    }  # fmt: skip
    run(checked(config))
    return place / strategy


@pytest.fixture(scope="module")
def probe(place):
    return trained(place, "probe")


@pytest.fixture(scope="module")
def full(place):
    return trained(place, "full")


# --- the stations ------------------------------------------------------------------------------------------------------


def test_data(place, caplog):
    data = load_data(DataConfig(train=str(place / "table.csv"), label="trend"))
    assert data.modality == "series" and len(data.frame) == 80
    assert inputs_modality(str(place / "table.csv"), ["reading"]) == "series"
    broken = pd.read_csv(place / "table.csv")
    broken.loc[3, "reading"] = "0.1 0.2 0.3"
    broken.to_csv(place / "broken.csv", index=False)
    with pytest.raises(UserError, match="it has 3 numbers, expected 16"):
        load_data(DataConfig(train=str(place / "broken.csv"), label="trend"))


def test_doctor(place):
    assert not [each for each in examine(DataConfig(train=str(place / "table.csv"))) if each.severity == "error"]
    found = {each.id: each for each in examine(DataConfig(train=str(place / "broken.csv"), label="trend"))}
    assert "Cannot be read: 1 of 80" in found["data-unreadable"].message


def test_a_setting_of_another_modality_is_refused(place):
    for name, value in {"image_size": 32, "max_length": 8}.items():
        config = ModelConfig(name=str(place / "model"), **{name: value})
        with pytest.raises(UserError, match=rf"model.{name}={value} is for \w+s, and the data are time series"):
            load_checkpoint(config, kind_of("series"), SingleLabel(("a", "b")))


def test_train_evaluate_predict(place, probe, full):
    texts = pd.read_csv(place / "table.csv")["reading"].tolist()
    for folder in (probe, full):
        answers = load(folder, use_cpu=True).predict(texts)
        assert (answers["prediction"] == pd.read_csv(place / "table.csv")["trend"]).mean() > 0.9


def test_evaluate_on_other_data(place, probe):
    other = pd.read_csv(place / "table.csv")
    other["reading"] = [" ".join(f"{value + 0.01:.3f}" for value in values_of(text)) for text in other["reading"]]
    other.to_csv(place / "other.csv", index=False)
    assert evaluate(probe, str(place / "other.csv"), {}, EvaluationConfig())["metrics"]["accuracy"]["value"] > 0.9


def test_frozen_layers_are_stored_and_replayed(place, caplog):
    with caplog.at_level(logging.INFO):
        trained(place, "frozen")
    assert "are computed once" in caplog.text


def test_what_is_missing_is_said(probe):
    predictor = load(probe, use_cpu=True)
    with pytest.raises(NoExplanation, match="Answers for time series cannot be explained"):
        explain(predictor, predictor.frame(["1 " * POINTS]))
    with pytest.raises(UserError, match="time series are read once"):
        predictor.predict(["1 " * POINTS], views=2)


def test_report_card_and_review(full):
    page = write_report(full).read_text(encoding="utf-8")
    assert "2 classes of time series" in page and "image not at hand" not in page
    card = render_card(RecordedRun.open(full))
    assert "belongs to" in card and "a time series" in card and 'pipeline("audio-classification"' in card
    review = Review(full)
    assert all("<blockquote>" in item_html(review, place) for place in range(len(review.items)))


def test_demo(place, probe):
    app = build_demo(str(probe))
    boxes = [block for block in app.blocks.values() if isinstance(block, gr.Textbox)]
    assert [box.label for box in boxes] == ["Time series"]
    model = serve(probe)
    frame, _ = model.frame(" ".join(map(str, np.linspace(-1, 1, POINTS))))
    assert answered(model, frame)["prediction"].tolist() == ["rising"]


def test_an_unknown_modality_is_named(place):
    with pytest.raises(UserError, match="data.modality: there is no modality 'serie'. Did you mean 'series'?"):
        checked({"data": {"train": str(place / "table.csv"), "modality": "serie"}, "model": "x"})
