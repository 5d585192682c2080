"""A decoder on an image checkpoint: the encoder's weights stay, a plain pipeline answers, and a replay is the network."""

import io

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import SegformerConfig, SegformerForSemanticSegmentation, SegformerImageProcessor, pipeline

from hftransfer.core.errors import UserError
from hftransfer.core.mask_files import decode_prediction
from hftransfer.modalities import kind_of
from hftransfer.models.encoder_output import EncoderOutput
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import ModelConfig, load_checkpoint, save_model
from hftransfer.tasks import Masks, SingleLabel
from tests.support import tiny

TASK = Masks(("background", "square", "bar"))
KIND = kind_of("image").for_task(TASK)
FAMILIES = ("resnet", "convnext", "swin", "dinov2", "timm-efficientnet", "timm-mobilenetv3")


def segmenter(family, folder):
    return load_checkpoint(ModelConfig(name=str(tiny.VISION_FAMILIES[family](folder)), image_size=64), KIND, TASK)


def pictures(count=3):
    rng, found = np.random.default_rng(0), []
    for number in range(count):
        stream = io.BytesIO()
        Image.fromarray(rng.integers(0, 255, (40 + number, 70, 3), dtype=np.uint8)).save(stream, "PNG")
        found.append(stream.getvalue())
    return pd.DataFrame({"input": found})


@pytest.mark.parametrize("family", FAMILIES)
def test_the_encoder_is_the_checkpoint_and_the_pipeline_answers_alike(family, tmp_path):
    checkpoint = segmenter(family, tmp_path / "model")
    plain = load_checkpoint(ModelConfig(name=str(tmp_path / "model")), kind_of("image"), SingleLabel(("a", "b")))
    source = getattr(plain.model, "timm_model", plain.model.base_model).state_dict()
    own, new = checkpoint.model.state_dict(), checkpoint.new_parameters
    stored = [tensor for name, tensor in own.items() if name not in new]
    known = {tuple(tensor.flatten().tolist()) for tensor in source.values()}
    assert len(stored) > 10 and all(tuple(tensor.flatten().tolist()) in known for tensor in stored)
    assert all(name.startswith("decode_head.") or "norm" in name for name in new)
    modality, model = KIND.bind(checkpoint.processor), checkpoint.model.eval()
    items = modality.encode(pictures())
    with torch.no_grad():
        found = modality.kind.read(items, model(**modality.collate(items)).logits)
    save_model(model, checkpoint.processor, tmp_path / "saved")
    ask = pipeline("image-segmentation", str(tmp_path / "saved"))
    for item, mask in zip(items, found, strict=True):
        classes, _ = decode_prediction(mask)
        for segment in ask(Image.open(io.BytesIO(item.source)), subtask="semantic"):
            assert np.array_equal(np.asarray(segment["mask"]) > 0, classes == TASK.names.index(segment["label"]))


def test_the_default_size_is_in_whole_patches(tmp_path):
    from transformers import Dinov2Config, Dinov2ForImageClassification, ViTImageProcessor

    settings = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "image_size": 28, "patch_size": 14}
    Dinov2ForImageClassification(Dinov2Config(**settings)).save_pretrained(tmp_path)
    ViTImageProcessor(size={"height": 28, "width": 28}).save_pretrained(tmp_path)
    found = load_checkpoint(ModelConfig(name=str(tmp_path)), KIND, TASK)
    assert dict(found.processor.size) == {"height": 252, "width": 252}
    sides = {each.shape[-1] for each in found.model.backbone(torch.zeros(1, 3, 252, 252)).feature_maps}
    assert sides == {18} and found.model.config.backbone_config.out_features == ["stage1", "stage2", "stage3", "stage4"]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_replay_of_the_decoder_is_the_whole_network(family, tmp_path):
    checkpoint = segmenter(family, tmp_path / "model")
    model, modality = checkpoint.model.eval(), KIND.bind(checkpoint.processor)
    batch = modality.collate(modality.encode(pictures()))
    stored = EncoderOutput(model, LayerGroups.of(model))
    assert stored.is_exact(batch)
    rows = stored.activations(batch)
    with torch.no_grad(), stored.replaying():
        replayed = model(split_point=rows).logits
        other = model(split_point=rows.roll(1, 0)).logits
    with torch.no_grad():
        live = model(**batch).logits
    assert torch.allclose(live, replayed, atol=1e-5) and torch.allclose(other, live.roll(1, 0), atol=1e-5)


@pytest.mark.parametrize(
    ("family", "reason"),
    [("vit", "transformers has no backbone of the type vit"), ("timm-resnet", "which a backbone does not keep")],
)
def test_a_checkpoint_without_feature_maps_is_refused_in_one_sentence(family, reason, tmp_path):
    with pytest.raises(UserError, match=reason) as refused:
        segmenter(family, tmp_path / "model")
    assert "Take a checkpoint that does, such as starter/efficientnet-lite0" in str(refused.value)


def test_a_segmentation_checkpoint_keeps_its_class_and_decoder_and_gets_new_outputs(tmp_path):
    """Also where it has as many classes as the data: they are others."""
    config = SegformerConfig(
        num_encoder_blocks=2, depths=[1, 1], sr_ratios=[2, 1], hidden_sizes=[8, 16], patch_sizes=[7, 3], strides=[4, 2],
        num_attention_heads=[1, 2], mlp_ratios=[2, 2], decoder_hidden_size=16, num_labels=3,
    )  # fmt: skip
    before = SegformerForSemanticSegmentation(config)
    before.save_pretrained(tmp_path / "model")
    SegformerImageProcessor(size={"height": 64, "width": 64}, do_reduce_labels=True).save_pretrained(tmp_path / "model")
    found = load_checkpoint(ModelConfig(name=str(tmp_path / "model")), KIND, TASK)
    assert type(found.model) is SegformerForSemanticSegmentation and not found.processor.do_reduce_labels
    old, own = before.state_dict(), found.model.state_dict()
    changed = {name for name in own if not torch.equal(own[name], old[name])}
    assert (
        {"decode_head.classifier.weight"} <= changed <= {"decode_head.classifier.weight", "decode_head.classifier.bias"}
    )
    assert changed <= found.new_parameters
    assert found.model.config.id2label == {0: "background", 1: "square", 2: "bar"}
