"""A replay from a split point is the live network: outputs, gradients, and twenty steps of training."""

import copy

import pytest
import torch
from torch import nn

from hftransfer.modalities import kind_of
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import ModelConfig, load_checkpoint
from hftransfer.models.partial import SplitPoint, skeleton_of
from hftransfer.tasks import SingleLabel
from tests.support import tiny

TASK = SingleLabel(("a", "b", "c"))
FAMILIES = [("image", name) for name in tiny.VISION_FAMILIES] + [("text", name) for name in tiny.TEXT_FAMILIES]
SHARED = ("albert",)  # all its blocks are one module, run again and again: there is no split point inside


def checkpoint_of(modality, family, folder):
    makers = tiny.VISION_FAMILIES | tiny.TEXT_FAMILIES
    return load_checkpoint(ModelConfig(name=str(makers[family](folder))), kind_of(modality), TASK)


def batch_of(modality, checkpoint, rows=4):
    torch.manual_seed(0)
    if modality == "image":
        return {"pixel_values": torch.randn(rows, 3, tiny.SIZE, tiny.SIZE)}
    texts = ["goal match team player the", "bank", "film actor music band of", "vote law"][:rows]
    return dict(checkpoint.processor(texts, padding=True, return_tensors="pt"))


@pytest.mark.parametrize(("modality", "family"), FAMILIES)
def test_replay_equals_live_at_every_boundary(tmp_path, modality, family):
    checkpoint = checkpoint_of(modality, family, tmp_path / "model")
    model = checkpoint.model.eval()
    layer_groups, batch = LayerGroups.of(model), batch_of(modality, checkpoint)
    for depth in range(1, layer_groups.head_depth + 1):
        split_point = SplitPoint(model, layer_groups, depth)
        assert split_point.is_exact(batch) == (family not in SHARED), layer_groups.name_of(depth)
        if family in SHARED:
            continue
        other = {name: value[1:3] for name, value in batch.items()}  # not the batch of the trial
        with torch.no_grad():
            live, hidden = model(**other).logits, split_point.activations(other).clone()
            with split_point.replaying():
                replayed = model(**skeleton_of(other), split_point=hidden).logits
        assert torch.allclose(live, replayed, atol=1e-5)


def test_the_replay_reads_the_activation_it_is_given(tmp_path):
    checkpoint = checkpoint_of("text", "bert", tmp_path / "model")
    model, batch = checkpoint.model.eval(), batch_of("text", checkpoint)
    split_point = SplitPoint(model, LayerGroups.of(model), 2)
    assert split_point.is_exact(batch)
    hidden = split_point.activations(batch).clone()
    with torch.no_grad(), split_point.replaying():
        own = model(**batch, split_point=hidden).logits
        others = model(**batch, split_point=hidden.roll(1, 0)).logits
    assert not torch.allclose(own, others)


def test_the_network_is_itself_again_after_a_replay(tmp_path):
    checkpoint = checkpoint_of("image", "timm-resnet", tmp_path / "model")
    model, batch = checkpoint.model.eval(), batch_of("image", checkpoint)
    with torch.no_grad():
        before = model(**batch).logits
        split_point = SplitPoint(model, LayerGroups.of(model), 3)
        assert split_point.is_exact(batch)
        with pytest.raises(KeyError), split_point.replaying():
            model(**batch)  # a replay without its activations
        assert torch.equal(model(**batch).logits, before)
    assert all("forward" not in vars(module) for module in model.modules())


@pytest.mark.parametrize(("modality", "family"), [("image", "timm-resnet"), ("image", "vit"), ("text", "bert")])
def test_twenty_steps_from_the_store_equal_twenty_live_steps(tmp_path, modality, family):
    checkpoint = checkpoint_of(modality, family, tmp_path / "model")
    live, stored = copy.deepcopy(checkpoint.model), checkpoint.model
    layer_groups, batch = LayerGroups.of(stored), batch_of(modality, checkpoint)
    labels = torch.tensor([0, 1, 2, 0])
    split_point = SplitPoint(stored, layer_groups, layer_groups.head_depth - 1)
    assert split_point.is_exact(batch)
    hidden = split_point.activations(batch).clone()
    for model in (live, stored):
        model.eval()
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(layer_groups.depth[name] >= layer_groups.head_depth - 1)
    for model, inputs in ((live, batch), (stored, skeleton_of(batch) | {"split_point": torch.tensor(hidden.numpy())})):
        optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.05)
        for _ in range(20):
            optimizer.zero_grad()
            if model is stored:
                with split_point.replaying():
                    loss = nn.functional.cross_entropy(model(**inputs).logits, labels)
            else:
                loss = nn.functional.cross_entropy(model(**inputs).logits, labels)
            loss.backward()
            optimizer.step()
    for (name, a), (_, b) in zip(live.named_parameters(), stored.named_parameters(), strict=True):
        assert torch.allclose(a, b, atol=1e-5), name
