"""Put a decoder for pixels on an image network: UperNet, whose skip connections read every stage of the encoder.

Xiao et al. 2018 (arXiv 1807.10221); the U-Net of Ronneberger et al. 2015 (arXiv 1505.04597) has the same shape, with the
pretrained network as its contracting path. The model is `UperNetForSemanticSegmentation` of transformers over a backbone
of transformers or timm, so that `pipeline("image-segmentation")` loads it.
"""

import logging
from typing import TYPE_CHECKING, Any

import torch

from hftransfer.core.errors import UserError
from hftransfer.models.processors import image_settings, is_timm_config
from hftransfer.tasks import Task

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)

WIDTH = 32  # channels of the decoder; the 512 of the paper cost two hundred times as much
STAGES = 4  # feature maps that the decoder reads, the finest first
NEUTRAL = {"in_chans": 3, "global_pool": None, "drop_rate": None, "drop_path_rate": None}  # of timm; None: any value
SIDE = 256  # pixels a side, where the encoder takes any size


@torch.no_grad()
def with_decoder(encoder: "PreTrainedModel", task: Task) -> tuple["PreTrainedModel", frozenset[str]]:
    """Return a segmentation network with the encoder's weights, and the names of the tensors that are new.

    Raises `UserError` for an encoder without feature maps.
    """
    from transformers import UperNetConfig, UperNetForSemanticSegmentation

    name = getattr(encoder.config, "architecture", None) or encoder.config.model_type
    timm = is_timm_config(encoder.config)
    labels = {"id2label": task.id2label, "label2id": {label: number for number, label in task.id2label.items()}}
    try:
        backbone = _timm_backbone(encoder.config) if timm else _own_backbone(encoder.config)
        config = UperNetConfig(backbone_config=backbone, hidden_size=WIDTH, use_auxiliary_head=False, **labels)
        model = UperNetForSemanticSegmentation(config).float()
        side = side_of(encoder)
        maps = model.eval().backbone(torch.zeros(1, 3, side, side)).feature_maps
    except (ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise _refusal(name, str(error)) from error
    if [each.shape[1] for each in maps] != list(model.backbone.channels):
        raise _refusal(name, "its feature maps have their channels last")
    new = _copied(encoder.timm_model if timm else encoder.base_model, model, name)
    widths = ", ".join(str(each.shape[1]) for each in maps)
    log.info(
        "UperNet over %s: skip connections from feature maps of %s channels, a new decoder of %d", name, widths, WIDTH
    )
    return model, new


def _refusal(name: str, reason: str) -> UserError:
    why = reason.strip().split("\n")[0].rstrip(".")[:200]
    return UserError(
        f"{name} gives no feature maps for a decoder ({why}). Take a checkpoint that does, such "
        "as starter/efficientnet-lite0, microsoft/resnet-50, facebook/convnextv2-tiny-1k-224, facebook/dinov2-small, or a "
        "SegFormer checkpoint."
    )


def _timm_backbone(config: "PreTrainedConfig") -> "PreTrainedConfig":
    import timm
    from transformers import TimmBackboneConfig

    further = {
        name: value for name, value in (config.model_args or {}).items() if NEUTRAL.get(name, ...) not in (value, None)
    }
    if further:
        raise ValueError(f"it is built with {further}, which a backbone does not keep")
    with torch.device("meta"):
        count = len(timm.create_model(config.architecture, features_only=True).feature_info.channels())
    stages = list(range(max(count - STAGES, 0), count))
    return TimmBackboneConfig(
        backbone=config.architecture, features_only=True, use_pretrained_backbone=False, out_indices=stages
    )


def _own_backbone(config: "PreTrainedConfig") -> "PreTrainedConfig":
    from transformers import AutoBackbone, AutoConfig

    if type(config) not in AutoBackbone._model_mapping:
        raise ValueError(f"transformers has no backbone of the type {config.model_type}")
    settings = {key: value for key, value in config.to_dict().items() if key not in ("out_features", "out_indices")}
    found = AutoConfig.for_model(settings.pop("model_type"), **settings)
    names = found.stage_names[1:]  # without the stem
    ends = [len(names) * (stage + 1) // STAGES for stage in range(STAGES)]
    found.out_features = names if len(names) <= STAGES else [names[end - 1] for end in ends]
    return found


def _copied(source: torch.nn.Module, model: "PreTrainedModel", name: str) -> frozenset[str]:
    """Give the encoder its pretrained tensors; return the names of all others.

    Wrappers of timm flatten names (`stages.0` becomes `stages_0`), and both libraries put prefixes before them
    (`_backbone.model.`, `swin.`).
    """
    stored = {key.replace(".", "_"): tensor for key, tensor in source.state_dict().items()}
    own = model.backbone.state_dict()
    pairs = {key: next((stored[name] for name in _names(key) if name in stored), None) for key in own}
    holes = [key for key, tensor in pairs.items() if tensor is None or tensor.shape != own[key].shape]
    lost = [key for key in holes if "norm" not in key]  # norms of feature maps are new in every backbone
    if lost:
        raise _refusal(name, f"{len(lost)} of its tensors are not in the checkpoint, such as {lost[0]}")
    model.backbone.load_state_dict({key: tensor for key, tensor in pairs.items() if key not in holes}, strict=False)
    decoder = {key for key in model.state_dict() if not key.startswith("backbone.")}
    return frozenset(decoder | {f"backbone.{key}" for key in holes})


def _names(key: str) -> list[str]:
    """Return what a tensor of a backbone may be called in its checkpoint, flat: with all prefixes, and without."""
    parts = key.split(".")
    return ["_".join(parts[first:]) for first in range(min(3, len(parts) - 1))]


def side_of(encoder: "PreTrainedModel") -> int:
    """Return the side in pixels of the images that the encoder takes: its own where its positions are fixed.

    Else `SIDE`, in whole patches: what a patch size of 14 leaves of 256 pixels would be cut off, and the mask be moved.
    """
    fixed = getattr(encoder, "timm_model", None)
    if fixed is not None and hasattr(fixed, "pos_embed"):
        return fixed.patch_embed.img_size[0]
    patch = getattr(encoder.config, "patch_size", None)
    return SIDE // patch * patch if isinstance(patch, int) else SIDE


def pixel_processor(processor: Any, side: int) -> Any:
    """Return a processor that `pipeline("image-segmentation")` accepts, with the normalisation of another one."""
    from PIL import Image
    from transformers import SegformerImageProcessor

    settings = image_settings(processor)
    return SegformerImageProcessor(
        size={"height": side, "width": side}, image_mean=list(settings.mean), image_std=list(settings.std),
        resample=int(Image.Resampling.BILINEAR), do_reduce_labels=False,
    )  # fmt: skip
