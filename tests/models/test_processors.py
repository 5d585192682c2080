"""What a processor does to an image is read off right, a changed size is really used, and texts end where the model does."""

import numpy as np
import pytest
import timm
import torch
import transformers
from PIL import Image

from hftransfer.core.errors import UserError
from hftransfer.modalities import kind_of
from hftransfer.models.loading import ModelConfig, load_checkpoint, save_model
from hftransfer.models.processors import ImageSettings, image_settings, resize, save_processor
from hftransfer.tasks import SingleLabel
from tests.support import tiny

TASK = SingleLabel(("a", "b", "c"))


def load(family: str, folder, **settings):
    families = tiny.VISION_FAMILIES if family in tiny.VISION_FAMILIES else tiny.TEXT_FAMILIES
    kind = "image" if family in tiny.VISION_FAMILIES else "text"
    return load_checkpoint(ModelConfig(name=str(families[family](folder)), **settings), kind_of(kind), TASK)


def pixels(processor, image: Image.Image) -> torch.Tensor:
    return processor(images=image, return_tensors="pt")["pixel_values"]


# --- settings --------------------------------------------------------------------------------------------------------


def test_settings_of_a_cropping_processor():
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 96},
        crop_size={"height": 80, "width": 64},
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
        resample=3,
    )
    assert image_settings(processor) == ImageSettings((80, 64), (0.1, 0.2, 0.3), (0.4, 0.5, 0.6), "bicubic")


def test_settings_without_normalisation_and_with_offset():
    plain = transformers.ViTImageProcessor(size={"height": 32, "width": 32}, do_normalize=False, resample=2)
    assert image_settings(plain) == ImageSettings((32, 32), (0.0,) * 3, (1.0,) * 3, "bilinear")
    # EfficientNet divides by its std twice, of which no field speaks
    twice = transformers.EfficientNetImageProcessor(size={"height": 32, "width": 32}, include_top=True)
    found = image_settings(twice)
    grey = Image.new("RGB", (40, 40), (64, 128, 192))
    expected = pixels(twice, grey)[0, :, 5, 5].numpy()
    assert (np.array([64, 128, 192]) / 255 - found.mean) / found.std == pytest.approx(expected, abs=1e-4)


def test_settings_of_a_timm_processor(tmp_path):
    config = timm.get_pretrained_cfg("tf_efficientnet_lite0")
    found = image_settings(load("timm-vit", tmp_path).processor)
    assert found == ImageSettings((32, 32), (0.5,) * 3, (0.5,) * 3, "bicubic")
    assert config.mean == (0.5, 0.5, 0.5)


def test_processor_that_keeps_the_shape_of_the_image_is_refused():
    processor = transformers.ViTImageProcessor(size={"shortest_edge": 64})
    with pytest.raises(UserError, match=r"different shapes \(64 x 85 and 85 x 64 pixels\). Set model.image_size"):
        image_settings(processor)


# --- another size ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.VISION_FAMILIES)
def test_changed_size_is_what_a_fresh_load_sees(family, tmp_path):
    checkpoint = load(family, tmp_path / "old", image_size=64)
    assert image_settings(checkpoint.processor).size == (64, 64)
    save_model(checkpoint.model, checkpoint.processor, tmp_path / "new")
    pipe = transformers.pipeline("image-classification", str(tmp_path / "new"))
    picture = tiny.image("red")
    inputs = pixels(pipe.image_processor, picture)
    assert inputs.shape == (1, 3, 64, 64)
    with torch.no_grad():
        here = checkpoint.model.eval()(pixels(checkpoint.processor, picture)).logits
        there = pipe.model(inputs).logits
    assert torch.allclose(here, there, atol=1e-5) and here.std() > 1e-4


def test_position_embeddings_are_interpolated_as_the_library_does(tmp_path):
    torch.manual_seed(0)
    small = load("vit", tmp_path)
    image = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        expected = small.model.eval()(image, interpolate_pos_encoding=True).logits
        model, _ = resize(small.model, small.processor, 64)
        assert torch.allclose(model.eval()(image).logits, expected, atol=1e-5)
    assert model.config.image_size == 64 and small.model.vit.embeddings.position_embeddings.shape[1] == 17
    assert model.vit.embeddings.position_embeddings.shape[1] == 65


def test_margin_of_the_crop_keeps_its_share(tmp_path):
    checkpoint = load("dinov2", tmp_path)
    processor = transformers.BitImageProcessor(
        size={"shortest_edge": 40}, crop_size={"height": 32, "width": 32}, resample=3
    )
    _, resized = resize(checkpoint.model, processor, 64)
    assert dict(resized.size)["shortest_edge"] == 80 and dict(resized.crop_size)["height"] == 64


@pytest.mark.parametrize("family", ["vit", "timm-vit"])
def test_size_the_architecture_cannot_take_names_the_one_it_takes(family, tmp_path):
    with pytest.raises(UserError, match=r"model.image_size=4: this \w+ model takes 32 x 32 pixels \(.+\)"):
        load(family, tmp_path, image_size=4)


def test_weights_hash_knows_the_image_size(tmp_path):
    small, large = load("vit", tmp_path / "a"), load("vit", tmp_path / "b", image_size=64)
    assert small.weights_hash != large.weights_hash


# --- saving ----------------------------------------------------------------------------------------------------------


def test_changed_normalisation_of_a_timm_model_is_saved(tmp_path):
    checkpoint = load("timm-resnet", tmp_path / "old")
    changed = checkpoint.processor.data_config | {"mean": (0.1, 0.2, 0.3), "crop_pct": 0.5, "interpolation": "bilinear"}
    processor = type(checkpoint.processor)(changed, architecture="resnet10t")
    save_model(checkpoint.model, processor, tmp_path / "new")
    fresh = transformers.pipeline("image-classification", str(tmp_path / "new")).image_processor
    assert image_settings(fresh) == ImageSettings((32, 32), (0.1, 0.2, 0.3), (0.229, 0.224, 0.225), "bilinear")
    picture = tiny.image("blue")
    assert torch.equal(pixels(fresh, picture), pixels(processor, picture))
    assert not torch.equal(pixels(fresh, picture), pixels(checkpoint.processor, picture))
    assert not list((tmp_path / "new").glob("*.tmp"))


def test_changed_normalisation_of_a_transformers_model_is_saved(tmp_path):
    checkpoint = load("vit", tmp_path)
    checkpoint.processor.image_mean = [0.1, 0.2, 0.3]
    save_processor(checkpoint.processor, checkpoint.model, tmp_path)
    assert image_settings(transformers.AutoImageProcessor.from_pretrained(tmp_path)).mean == (0.1, 0.2, 0.3)


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", tiny.TEXT_FAMILIES)
def test_longest_text_is_the_most_the_model_takes(family, tmp_path):
    """One more token than the limit must not fit where positions are learnt; the limit itself must."""
    folder = tiny.TEXT_FAMILIES[family](tmp_path)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    tokenizer.model_max_length = int(1e30)
    tokenizer.save_pretrained(folder)
    checkpoint = load_checkpoint(ModelConfig(name=str(folder)), kind_of("text"), TASK)
    assert checkpoint.processor.model_max_length == 64
    text = "L " * 200 if family == "esm" else "goal " * 200
    inputs = checkpoint.processor(text, truncation=True, return_tensors="pt")
    assert inputs["input_ids"].shape == (1, 64)
    with torch.no_grad():
        assert torch.isfinite(checkpoint.model(**inputs).logits).all()


def test_shorter_limit_is_used_and_saved(tmp_path):
    checkpoint = load("bert", tmp_path / "old", max_length=16)
    save_model(checkpoint.model, checkpoint.processor, tmp_path / "new")
    fresh = transformers.AutoTokenizer.from_pretrained(tmp_path / "new")
    assert len(fresh("goal " * 100, truncation=True)["input_ids"]) == 16


def test_longer_limit_than_the_model_has_is_refused(tmp_path):
    with pytest.raises(UserError, match="model.max_length=100: this model takes at most 64 tokens"):
        load("roberta", tmp_path, max_length=100)
