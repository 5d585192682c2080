"""Image processors: what they do to an image, how they are resized, and how processors are saved."""

import json
import logging
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.core.files import write_text

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class ImageSettings:
    """What a model wants to see: `size` (height, width) in pixels, and (x - mean) / std per channel for x in 0..1.

    `resized` is the side in pixels that a square image is resized to before it is cropped to `size`.
    """

    size: tuple[int, int]
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    resized: int = field(default=0, compare=False)


def image_settings(processor: Any) -> ImageSettings:
    """Size, normalisation and interpolation, found by asking the processor what it makes of a black and a white image.

    So it holds whatever the processor's fields are called and in whatever order they act. Raises `UserError` for a
    processor whose output depends on the shape of the image, as such images make no batch.
    """
    black, white = _answer(processor, 0, (900, 1200)), _answer(processor, 255, (1200, 900))
    if black.shape != white.shape:
        raise UserError(
            f"The image processor gives images of different shapes ({_shape(black)} and {_shape(white)} pixels). "
            "Set model.image_size."
        )
    low, high = black.mean((1, 2)), white.mean((1, 2))
    std = 1 / (high - low)
    mean = -low * std
    return ImageSettings(
        (black.shape[1], black.shape[2]),
        tuple(round(float(value), 6) for value in mean),
        tuple(round(float(value), 6) for value in std),
        _interpolation(processor),
        _resized_side(processor, low, high),
    )


def _resized_side(processor: Any, low: np.ndarray, high: np.ndarray) -> int:
    """Return the side that a square image has after resizing, from the slope of a ramp of grey in what comes out."""
    side = 1000
    ramp = np.tile(np.linspace(0, 255, side).round().astype(np.uint8)[None, :, None], (side, 1, 3))
    pixels = processor(images=Image.fromarray(ramp), return_tensors="pt")["pixel_values"][0].double().numpy()
    share = ((pixels.mean(1) - low[:, None]) / (high - low)[:, None]).mean(0)  # of the way across the image, by column
    inner = slice(len(share) // 10, -(len(share) // 10) or None)
    slope = np.polyfit(np.arange(len(share))[inner], share[inner], 1)[0]
    return int(np.ceil(1 / slope - 1e-6)) if slope > 0 else max(pixels.shape[1:])


def _answer(processor: Any, value: int, shape: tuple[int, int]) -> np.ndarray:
    image = Image.fromarray(np.full((*shape, 3), value, dtype=np.uint8))
    return processor(images=image, return_tensors="pt")["pixel_values"][0].double().numpy()


def _shape(pixels: np.ndarray) -> str:
    return f"{pixels.shape[1]} x {pixels.shape[2]}"


def _interpolation(processor: Any) -> str:
    if _is_timm(processor):
        return processor.data_config["interpolation"]
    return Image.Resampling(int(getattr(processor, "resample", None) or Image.Resampling.BILINEAR)).name.lower()


def is_timm_config(config: "PreTrainedConfig") -> bool:
    """Whether the model is one of timm's in transformers' wrapper, asked without importing timm (two seconds)."""
    return config.model_type == "timm_wrapper"


def _is_timm(processor: Any) -> bool:
    return hasattr(processor, "data_config")


# --- another image size ----------------------------------------------------------------------------------------------


def resize(model: "PreTrainedModel", processor: Any, size: int) -> tuple["PreTrainedModel", Any]:
    """Model and processor for images of `size` x `size` pixels.

    Position embeddings are interpolated where the architecture has them (ViT, arXiv:2010.11929, section 3.2). Raises
    `UserError` when the architecture takes one size alone.
    """
    old = image_settings(processor).size
    processor = _resized_processor(processor, size, old[0])
    problem = _refusal(model, size)
    if problem:
        model = _interpolated(model, size)
        problem = _refusal(model, size)
    if problem:
        raise UserError(
            f"model.image_size={size}: this {model.config.model_type} model takes {old[0]} x {old[1]} pixels "
            f"({problem})."
        )
    return model, processor


def _resized_processor(processor: Any, size: int, old: int) -> Any:
    """Return the same steps for another size; the margin that is cut off stays the same share of the image."""
    if _is_timm(processor):
        settings = processor.data_config | {"input_size": (3, size, size)}
        return type(processor)(settings, architecture=processor.architecture)
    settings = processor.to_dict()
    square = {"height": size, "width": size}
    settings["size"] = (
        _scaled(settings["size"], size / old)
        if settings.get("do_center_crop")
        else ({"shortest_edge": size} if _has(settings["size"], "shortest_edge") else square)
    )
    if settings.get("do_center_crop"):
        settings["crop_size"] = square
    return type(processor).from_dict(settings)


def _has(size: Any, key: str) -> bool:
    return dict(size).get(key) is not None


def _scaled(size: Any, factor: float) -> dict[str, int]:
    return {key: round(value * factor) for key, value in dict(size).items() if value is not None}


@torch.no_grad()
def _refusal(model: "PreTrainedModel", size: int) -> str:
    """Return what the model says to an image of that size, or nothing when it takes it."""
    training = model.training
    try:
        model.eval()(torch.zeros(1, 3, size, size, device=model.device))
        return ""
    except (ValueError, RuntimeError, AssertionError) as error:
        return str(error).strip().split("\n")[0].rstrip(".")
    finally:
        model.train(training)


def _interpolated(model: "PreTrainedModel", size: int) -> "PreTrainedModel":
    """Return a model for that size where one can be made, else the model as it is."""
    try:
        return _interpolated_timm(model, size) if is_timm_config(model.config) else _rebuilt(model, size)
    except (ValueError, RuntimeError, AssertionError):
        return model


def _interpolated_timm(model: "PreTrainedModel", size: int) -> "PreTrainedModel":
    if hasattr(model.timm_model, "set_input_size"):
        model.timm_model.set_input_size(img_size=(size, size))
        model.config.model_args = (model.config.model_args or {}) | {"img_size": [size, size]}
    return model


def _rebuilt(model: "PreTrainedModel", size: int) -> "PreTrainedModel":
    state, config = model.state_dict(), deepcopy(model.config)
    for name, module in model.named_modules():
        positions = getattr(module, "position_embeddings", None)
        if hasattr(module, "interpolate_pos_encoding") and isinstance(positions, nn.Parameter):
            state[f"{name}.position_embeddings"] = _positions(module, size)
    config.image_size = size
    fresh = type(model)(config)
    fresh.load_state_dict(state)
    return fresh


@torch.no_grad()
def _positions(module: nn.Module, size: int) -> torch.Tensor:
    """Return the position embeddings (1, tokens, width) for images of that size, by the module's own interpolation."""
    patch = module.patch_size if isinstance(module.patch_size, int) else module.patch_size[0]
    positions, width = module.position_embeddings.shape[1:]
    extra = positions - module.patch_embeddings.num_patches  # the class token, in DeiT another
    tokens = torch.zeros(1, (size // patch) ** 2 + extra, width)
    return module.interpolate_pos_encoding(tokens, size, size)


# --- saving ----------------------------------------------------------------------------------------------------------


def save_processor(processor: Any, model: "PreTrainedModel", folder: Path) -> None:
    """Write the processor beside the saved `model`, where `transformers.pipeline` looks for it.

    A timm model has no file for it: its settings are the entry `pretrained_cfg` of config.json, which transformers'
    own `save_pretrained` leaves as it was when the model was loaded.
    """
    if not _is_timm(processor):
        processor.save_pretrained(folder)
        return
    file = Path(folder) / "config.json"
    stored = json.loads(file.read_text(encoding="utf-8"))
    stored["pretrained_cfg"] = stored.get("pretrained_cfg", {}) | processor.data_config
    write_text(file, json.dumps(stored, indent=2))
