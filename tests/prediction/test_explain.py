"""Explanations: they find what was planted, add up, name the input's own words, and leave the model as it was."""

import json
import random
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from hftransfer.config import parse_overrides, with_overrides
from hftransfer.evaluation import EvaluationConfig
from hftransfer.modalities import kind_of
from hftransfer.models.loading import ModelConfig, load_checkpoint, save_model
from hftransfer.prediction import explain as explaining
from hftransfer.prediction.explain import Explanation, NoExplanation, explain, explain_run
from hftransfer.prediction.predictor import load
from hftransfer.report.gallery import shown_outputs
from hftransfer.runs.reader import RecordedRun
from hftransfer.tasks import Regression, SingleLabel
from hftransfer.train import run
from tests.support import tiny
from tests.support.runs import configuration

TEXT = "The goalkeeper's match, today: no profit"
WITH = "evaluation.explanations=true"  # the matrix leaves them out; a user's configuration does not
PAIRED = {"input": [TEXT], "input_pair": ["a vote in the senate"]}


@pytest.fixture(scope="module")
def predictors(tmp_path_factory):
    """One predictor a family, with random weights."""
    folder, task = tmp_path_factory.mktemp("families"), SingleLabel(tuple("abcdefg"))
    found = {}
    for modality, families in (("image", tiny.VISION_FAMILIES), ("text", tiny.TEXT_FAMILIES)):
        for name, make in families.items():
            made = load_checkpoint(ModelConfig(name=str(make(folder / name))), kind_of(modality), task)
            save_model(made.model, made.processor, folder / f"{name}-new")
            found[name] = load(folder / f"{name}-new", use_cpu=True)
    return found


def picture_file(folder, size=64):
    tiny.image("red", size).save(file := folder / "red.png")
    return pd.DataFrame({"input": [str(file)]})


@pytest.mark.parametrize("family", tiny.VISION_FAMILIES)
def test_every_image_family_has_a_heat_map(predictors, family, tmp_path):
    predictor, frame = predictors[family], picture_file(tmp_path)
    (found,) = explain(predictor, frame)
    assert found.answer == predictor.task.names[predictor.logits(frame)[0].argmax()]
    assert found.heat.ndim == 2 and found.heat.size > 1
    assert found.heat.min() >= 0 and found.heat.max() in (0.0, 1.0)
    assert found.overlay().size == found.picture.size == (tiny.SIZE, tiny.SIZE)


def test_the_picture_is_the_one_that_the_model_saw(predictors, tmp_path):
    Image.new("RGB", (50, 50), (200, 30, 90)).save(file := tmp_path / "plain.png")
    (found,) = explain(predictors["vit"], pd.DataFrame({"input": [str(file)]}))
    assert np.abs(np.asarray(found.picture).astype(int) - [200, 30, 90]).max() <= 1


def large(folder):
    """A ResNet for pictures of 96 pixels: three places are left on a side."""
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 12, 16, 24], "stem_width": 8}
    return tiny.timm_checkpoint("resnet10t", arguments, size=96)(folder)


def test_it_is_grad_cam_where_the_places_are_averaged_before_a_linear_head(tmp_path):
    """Then Grad-CAM is the class activation map: the head's weights on the last activation (Selvaraju et al., app. A)."""
    made = load_checkpoint(
        ModelConfig(name=str(large(tmp_path / "model"))), kind_of("image"), SingleLabel(tuple("abcdefg"))
    )
    save_model(made.model, made.processor, tmp_path / "new")
    predictor, frame = load(tmp_path / "new", use_cpu=True), picture_file(tmp_path, 96)
    network = predictor.model.timm_model
    pixels = predictor.modality.collate(predictor.modality.encode(frame))["pixel_values"]
    with torch.no_grad():
        weight = network.fc.weight[3] - network.fc.weight.mean(0)
        reference = torch.einsum("chw,c->hw", network.forward_features(pixels)[0], weight).clamp(min=0)
    (found,) = explain(predictor, frame, [3])
    assert found.heat.shape == (3, 3) and reference.max() > 0
    np.testing.assert_allclose(found.heat, (reference / reference.max()).numpy(), atol=1e-5)


# The path begins at the padding, a vector of zeros here, where RMSNorm jumps: 16 points do not follow it, and `gap` says so.
ZERO_PADDING = {"qwen2", "qwen3", "gemma"}


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_the_words_joined_are_the_text_and_the_weights_add_up(predictors, family):
    frame = pd.DataFrame({"input": ["LAVIDEKR"], "input_pair": ["STNQ"]} if family == "esm" else PAIRED)
    (found,) = explain(predictors[family], frame)
    assert "".join(text for text, _ in found.tokens) == explaining.PAIR_MARK.join(frame.iloc[0])
    weights = [abs(weight) for _, weight in found.tokens]
    assert max(weights) == pytest.approx(1) and sum(weight > 0 for weight in weights) > 3
    assert all(weight == 0 for text, weight in found.tokens if not text.strip())
    if family in ZERO_PADDING:
        assert abs(found.gap) > 1e-2  # where this fails, the exception above is needed no more
    else:
        assert abs(found.gap) < 1e-3 * max(1, abs(found.evidence))


def test_sub_words_are_one_word(predictors):
    """`goalkeeper` is several tokens for every tokenizer that has never seen it whole."""
    (found,) = explain(predictors["modernbert"], pd.DataFrame({"input": [TEXT]}))
    assert {"goalkeeper", "match", "profit"} <= {text for text, _ in found.tokens}


def test_integrated_gradients_of_a_linear_readout_are_its_terms(predictors):
    """Where the network is linear in the embeddings the attribution of a token is its term: nothing is left to the rule."""
    predictor = predictors["bert"]
    batch = predictor.modality.collate(predictor.modality.encode(pd.DataFrame({"input": ["goal bank film"]})))
    embed, direction = predictor.model.get_input_embeddings(), torch.randn(32, 7, generator=torch.manual_seed(1))

    class Linear(torch.nn.Module):
        def get_input_embeddings(self):
            return embed

        def forward(self, input_ids, **rest):
            return type("Output", (), {"logits": torch.einsum("btd,dc->bc", embed(input_ids), direction)})

    linear = type(predictor)(Linear(), predictor.modality, Regression(tuple("abcdefg")), predictor.compute_config)
    replaced = [False, True, True, True, False]
    weights, (low, high) = explaining._integrated_gradients(linear, batch, 2, replaced)
    ids = batch["input_ids"][0]
    nothing = embed(torch.tensor(predictor.modality.tokenizer.mask_token_id))
    terms = [
        (embed(token) - nothing) @ direction[:, 2] if one else 0.0 for token, one in zip(ids, replaced, strict=True)
    ]
    np.testing.assert_allclose(
        weights, torch.stack([torch.as_tensor(term) for term in terms]).detach().numpy(), atol=1e-4
    )
    assert weights.sum() == pytest.approx(high - low, abs=1e-4)


def test_attributions_are_computed_as_the_machine_does(predictors):
    """In bfloat16 where that was found to pay: nearly those of float32, and not they."""
    predictor, frame = predictors["bert"], pd.DataFrame({"input": [TEXT]})
    quick = replace(predictor, compute_config=replace(predictor.compute_config, autocast=torch.bfloat16))
    exact = replace(predictor, compute_config=replace(predictor.compute_config, autocast=None))
    (bf16,), (fp32,) = (explain(one, frame, [1]) for one in (quick, exact))
    ours, theirs = (np.array([weight for _, weight in found.tokens]) for found in (bf16, fp32))
    assert np.corrcoef(ours, theirs)[0, 1] > 0.99 and not np.array_equal(ours, theirs)
    assert bf16.evidence == pytest.approx(fp32.evidence, abs=0.05) and bf16.evidence != fp32.evidence


def test_what_the_limit_cuts_off_has_no_weight(predictors):
    text = " ".join(["goal bank"] * 100)
    (found,) = explain(predictors["bert"], pd.DataFrame({"input": [text]}))
    assert "".join(piece for piece, _ in found.tokens) == text
    assert found.tokens[-1][1] == 0 and len(found.tokens[-1][0]) > len(text) / 2


@pytest.mark.parametrize("family", ["vit", "timm-efficientnet", "bert"])
def test_the_model_is_as_it_was_and_the_answer_the_same_each_time(predictors, family, tmp_path):
    predictor = predictors[family]
    frame = picture_file(tmp_path) if family in tiny.VISION_FAMILIES else pd.DataFrame(PAIRED)
    model = predictor.model.train()
    next(model.children()).eval()  # as frozen blocks stand in a model that trains
    flags = [module.training for module in model.modules()]
    tensors = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    first, second = (explain(predictor, frame)[0] for _ in range(2))
    assert [module.training for module in model.modules()] == flags
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in tensors.items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    model.eval()
    assert first.evidence == second.evidence and first.tokens == second.tokens
    if first.heat is not None:
        assert np.array_equal(first.heat, second.heat)


# --- planted signals -------------------------------------------------------------------------------------------------


def trained(config, *overrides):
    return run(with_overrides(config.model_dump(mode="json"), parse_overrides(overrides)))


def corner(label, seed, size=64):
    """Noise all over; a red or a blue patch in the upper left corner decides."""
    pixels = np.random.default_rng(seed).integers(90, 150, (size, size, 3), dtype=np.uint8)
    pixels[4:22, 4:22] = tiny.COLOURS[label]
    return Image.fromarray(pixels)


FURTHER = [pytest.param(family, marks=pytest.mark.slow) for family in ("dinov2", "timm-vit")]


SLOW = [pytest.param(family, marks=pytest.mark.slow) for family in ("resnet", "swin")]  # half a minute together


@pytest.mark.parametrize("family", ["vit", *SLOW, *FURTHER])
def test_the_heat_lies_on_the_corner_that_decides(family, tmp_path):
    for number, label in enumerate(["red", "blue"] * 24):
        (tmp_path / "data" / label).mkdir(parents=True, exist_ok=True)
        corner(label, number).save(tmp_path / "data" / label / f"{number}.png")
    model = (tiny.VISION_FAMILIES | {"resnet": large})[family](tmp_path / "model")
    values = {
        "data": {"train": str(tmp_path / "data")}, "model": str(model), "output": str(tmp_path / "run"),
        "strategy": "full", "augmentation": {"level": "none"}, "evaluation": {"resamples": 100, "explanations": False},
        "training": {
            "max_steps": 80, "learning_rate": 3e-3, "bf16": False, "evaluations": 1, "per_device_train_batch_size": 8
        },
    }  # fmt: skip
    predictor = load(run(with_overrides(values, {})).folder, use_cpu=True)
    peaks, shares = [], []
    for label, seed in [(label, seed) for label in ("red", "blue") for seed in (97, 98, 99)]:
        corner(label, seed).save(file := tmp_path / f"{label}.png")
        (found,) = explain(predictor, pd.DataFrame({"input": [str(file)]}))
        assert found.answer == label
        heat = np.asarray(Image.fromarray(found.heat).resize((64, 64), Image.Resampling.NEAREST))
        shares.append(heat[:32, :32].sum() / heat.sum())
        peaks.append(max(np.unravel_index(found.heat.argmax(), found.heat.shape)) < len(found.heat) / 2)
    assert np.mean(peaks) >= 0.8 and np.mean(shares) > 0.4  # by chance a quarter


def test_the_word_that_decides_stands_out(tmp_path):
    rows = [{"text": tiny.sentence([0], random.Random(n)), "label": "no"} for n in range(40)]
    rows += [{"text": row["text"].replace(row["text"].split()[2], "senate", 1), "label": "yes"} for row in rows]
    pd.DataFrame(rows).to_csv(tmp_path / "table.csv", index=False)
    config = configuration("full", "text", tmp_path)
    finished = trained(
        config, f"data.train={tmp_path / 'table.csv'}", "training.max_steps=80", "training.learning_rate=3e-3",
    )  # fmt: skip
    (found,) = explain(load(finished.folder), pd.DataFrame({"input": ["the goal of senate coach was team"]}))
    assert found.answer == "yes"
    assert max(found.tokens, key=lambda token: token[1])[0] == "senate"


# --- in a run --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("kind", "suffix"), [("image", ".png"), ("pair", ".json"), ("text-multi", ".json")])
def test_a_run_explains_the_rows_of_its_report(kind, suffix, tmp_path, pages, caplog):
    caplog.set_level("INFO", "hftransfer")
    finished = RecordedRun.open(trained(configuration("probe", kind, tmp_path), WITH).folder)
    shown = shown_outputs(finished)
    assert shown and all(finished.explanation(row, suffix).is_file() for row in shown)
    assert len(list((finished.folder / "explanations").iterdir())) == len(shown)
    assert f"Explanations: {len(shown)} rows of the report" in caplog.text
    explain_run(finished.folder)  # a second time changes nothing
    page = (finished.folder / "report.html").read_text(encoding="utf-8")
    assert ("where the model looked" if kind == "image" else "<mark") in page
    if suffix == ".json":
        for row, output in shown.items():
            assert json.loads(finished.explanation(row, suffix).read_text())["answer"] == finished.task.names[output]


def test_explanations_can_be_left_out(tiny_run):
    assert EvaluationConfig().explanations
    folder = tiny_run("probe", "text")
    assert not (folder / "explanations").exists()
    assert "<mark" not in (folder / "report.html").read_text(encoding="utf-8")


def test_a_model_without_a_map_says_so_and_the_run_goes_on(tmp_path, pages, caplog, monkeypatch):
    caplog.set_level("INFO", "hftransfer")

    def without(*rest):
        raise NoExplanation("This one has none.")

    monkeypatch.setattr(explaining, "_relevance", without)
    finished = trained(configuration("probe", "image", tmp_path), WITH)
    assert "Explanations: none. This one has none." in caplog.text
    assert not list(finished.folder.glob("explanations*")) and (finished.folder / "report.html").is_file()


def test_inputs_that_were_never_files_are_passed_over(tmp_path, caplog, tiny_run):
    caplog.set_level("INFO", "hftransfer")
    folder = Path(shutil.copytree(tiny_run("probe", "text"), tmp_path / "run"))
    splits = pd.read_parquet(folder / "splits.parquet").assign(input="")
    splits.to_parquet(folder / "splits.parquet", index=False)
    explain_run(folder)
    assert "Explanations: none, as no shown row has its input at hand" in caplog.text


def test_an_overlay_is_coloured_where_the_heat_is():
    heat = np.zeros((4, 4), dtype=np.float32)
    heat[0, 0] = 1
    pixels = np.asarray(Explanation("a", 1.0, heat, Image.new("RGB", (64, 64), "gray")).overlay()).astype(int)
    spread = np.ptp(pixels, axis=2)
    assert spread[4, 4] > 60 and spread[48:, 48:].max() <= 3


def test_only_the_cpu_is_asked_for_double_precision(predictors, monkeypatch):
    """Apple's GPUs have none: what is made double has been moved to the CPU before."""
    moved, cpu, double = [], torch.Tensor.cpu, torch.Tensor.double
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: moved.append(cpu(tensor)) or moved[-1])
    asked = []

    def recorded(tensor):
        asked.append(any(tensor is other for other in moved))
        return double(tensor)

    monkeypatch.setattr(torch.Tensor, "double", recorded)
    explain(predictors["bert"], pd.DataFrame({"input": [TEXT]}))
    assert asked and all(asked)
