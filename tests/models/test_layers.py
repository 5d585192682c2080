"""Where tensors stand: over all families, against what their architectures say."""

import pytest
import torch

from hftransfer.core.errors import UserError
from hftransfer.modalities import kind_of
from hftransfer.models.layers import LayerGroups
from hftransfer.models.loading import ModelConfig, load_checkpoint
from hftransfer.tasks import SingleLabel
from tests.support import tiny

TASK = SingleLabel(("a", "b", "c"))
FAMILIES = [("image", name) for name in tiny.VISION_FAMILIES] + [("text", name) for name in tiny.TEXT_FAMILIES]
BLOCKS = {"swin": 2, "convnext": 4, "resnet": 4, "timm-resnet": 4, "timm-convnext": 4, "timm-vgg": 8, "albert": 1,
          "timm-efficientnet": 5, "timm-mobilenetv3": 6}  # fmt: skip


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory):
    makers = tiny.VISION_FAMILIES | tiny.TEXT_FAMILIES
    folders = {name: makers[name](tmp_path_factory.mktemp(name)) for _, name in FAMILIES}
    return {n: load_checkpoint(ModelConfig(name=str(folders[n])), kind_of(modality), TASK) for modality, n in FAMILIES}


@pytest.mark.parametrize(("modality", "family"), FAMILIES)
def test_every_tensor_has_a_rung_and_all_rungs_are_used(checkpoints, modality, family):
    model = checkpoints[family].model
    layer_groups = LayerGroups.of(model)
    tensors = {name for name, _ in (*model.named_parameters(), *model.named_buffers())}
    assert set(layer_groups.depth) == tensors
    assert len(layer_groups.blocks) == BLOCKS.get(family, 3)
    # VGG begins with its first block: there is nothing below it
    assert set(layer_groups.depth.values()) == set(range(1 if family == "timm-vgg" else 0, layer_groups.head_depth + 1))


@pytest.mark.parametrize(("modality", "family"), FAMILIES)
def test_blocks_run_in_the_order_of_their_rungs(checkpoints, modality, family):
    checkpoint = checkpoints[family]
    layer_groups = LayerGroups.of(checkpoint.model)
    order = []
    for path in layer_groups.blocks:
        checkpoint.model.get_submodule(path).register_forward_pre_hook(lambda *_, path=path: order.append(path))
    with torch.no_grad():
        checkpoint.model.eval()(**_batch(modality, checkpoint))
    assert list(dict.fromkeys(order)) == list(layer_groups.blocks)


def _batch(modality, checkpoint):
    if modality == "image":
        return {"pixel_values": torch.randn(2, 3, tiny.SIZE, tiny.SIZE)}
    return dict(checkpoint.processor(["goal match team", "bank"], padding=True, return_tensors="pt"))


def test_position_embeddings_shared_by_all_blocks_are_stem(checkpoints):
    for family, name in (("deberta-v2", "rel_embeddings"), ("mpnet", "relative_attention_bias")):
        layer_groups = LayerGroups.of(checkpoints[family].model)
        assert {depth for tensor, depth in layer_groups.depth.items() if name in tensor} == {0}


def test_depth_as_count_and_as_fraction(checkpoints):
    layer_groups = LayerGroups.of(checkpoints["timm-vgg"].model)  # 8 blocks
    assert layer_groups.first_trainable_depth(0) == layer_groups.head_depth
    assert layer_groups.first_trainable_depth(3) == 6
    assert layer_groups.first_trainable_depth(0.25) == 7
    assert layer_groups.first_trainable_depth(1.0) == 1
    assert layer_groups.first_trainable_depth(1) == 8  # the last block, not the whole depth
    with pytest.raises(UserError, match="Expected a number of blocks from 0 to 8 or a fraction of the depth, found 9"):
        layer_groups.first_trainable_depth(9)


def test_rates_decay_from_the_last_block_down(checkpoints):
    layer_groups = LayerGroups.of(checkpoints["bert"].model)
    assert [layer_groups.learning_rate(depth, 1.0, 0.5) for depth in range(5)] == [0.125, 0.25, 0.5, 1.0, 1.0]


def test_a_network_without_blocks_is_refused():
    class Flat(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.base_model = torch.nn.Linear(2, 2)
            self.classifier = torch.nn.Linear(2, 3)

    with pytest.raises(UserError, match="Flat has no list of blocks, so there is no depth to freeze by."):
        LayerGroups.of(Flat())
