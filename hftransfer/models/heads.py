"""Where a model's head is, and a new one in its place; read from the module tree, with no table of architectures."""

import copy
from typing import TYPE_CHECKING

import torch
from torch import nn

from hftransfer.core.errors import UserError

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def base_model_of(model: "PreTrainedModel") -> nn.Module:
    """Return the backbone: the module that transformers or timm names as such, without the head where they keep it apart.

    In a timm model the head lies inside this module (see `head_of`).
    """
    apart = getattr(model, "backbone", None)  # UperNet names no base model
    return apart if model.base_model is model and isinstance(apart, nn.Module) else model.base_model


def head_of(model: "PreTrainedModel") -> tuple[str, ...]:
    """Dotted paths of the modules that make up the head.

    For timm it is the classifier; for transformers all that stands beside the backbone (in RoBERTa a hidden layer too);
    for a model whose backbone is not kept apart, the part that holds the last linear layer, and the linear layers
    directly before it (Whisper projects before it takes the mean).
    """
    backbone = base_model_of(model)
    if callable(getattr(backbone, "get_classifier", None)):
        classifier = backbone.get_classifier()
        parts = classifier if isinstance(classifier, tuple | list) else (classifier,)
        return tuple(name for name, module in model.named_modules() if any(module is part for part in parts))
    if backbone is model:
        return _trailing_linears(model) or (_last_linear(model)[0].split(".")[0],)
    return tuple(
        name
        for name, module in model.named_children()
        if module is not backbone and any(True for _ in module.parameters())
    )


def _trailing_linears(model: "PreTrainedModel") -> tuple[str, ...]:
    """Names of the linear layers that a model ends in, without what they follow."""
    names: list[str] = []
    for name, module in reversed(list(model.named_children())):
        if not isinstance(module, nn.Linear):
            break
        names.insert(0, name)
    return tuple(names)


def head_parameters(model: "PreTrainedModel") -> tuple[str, ...]:
    """Names of the head's tensors in the state dict, in order."""
    paths = head_of(model)
    return tuple(name for name in model.state_dict() if any(name.startswith(f"{path}.") for path in paths))


def final_linear(model: "PreTrainedModel") -> nn.Linear:
    """Return the linear layer whose outputs are the logits. Raises `UserError` when the model ends in something else."""
    return _last_linear(model)[1]


def output_layers(model: "PreTrainedModel") -> tuple[nn.Linear, ...]:
    """Return all linear layers whose outputs make up the logits, in order of the module tree.

    Distilled DeiT and LeViT have two and answer with their mean; most networks have one. Raises `UserError` when there
    is none.
    """
    return tuple(_output_layers(model).values())


def _last_linear(model: "PreTrainedModel") -> tuple[str, nn.Linear]:
    return list(_output_layers(model).items())[-1]


def plain_name(name: str) -> str:
    """Return a parameter's path in the plain model, from its path under peft's wrapper."""
    name = name.removeprefix("base_model.model.").replace(".base_layer", "").replace(".modules_to_save.default", "")
    return name.replace(".original_module", "")


def _output_layers(model: "PreTrainedModel") -> dict[str, nn.Linear]:
    size, pixels = model.config.num_labels, _reads_pixels(model)
    # Of a head that peft wraps, the copy that trains comes last and stands for both.
    found = {
        plain_name(name): (name, module) for name, module in model.named_modules() if _width(module, pixels) == size
    }
    if len(found) > 1:
        growing = _grow_with_labels(model) & found.keys() or {list(found)[-1]}
        found = {name: layer for name, layer in found.items() if name in growing}
    if not found:
        raise UserError(
            f"{type(model).__name__} does not end in a linear layer with {size} outputs, so it cannot be given a new "
            "head. Choose another checkpoint of the same kind."
        )
    return dict(found.values())


def _grow_with_labels(model: "PreTrainedModel") -> set[str]:
    """Return the paths of the linear layers that are one output wider in the same network for one label more.

    A hidden layer may have as many outputs as there are labels by chance. Empty where the network cannot be made again.
    """
    config = copy.deepcopy(model.config)
    config.num_labels = model.config.num_labels + 1
    kind = type(model.get_base_model() if hasattr(model, "get_base_model") else model)
    try:
        with torch.device("meta"):
            wider = kind(config)
    except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError):
        return set()
    pixels = _reads_pixels(model)
    return {name for name, module in wider.named_modules() if _width(module, pixels) == config.num_labels}


def _reads_pixels(model: "PreTrainedModel") -> bool:
    """Return whether a network answers for each pixel: it ends in a convolution of one pixel."""
    plain = model.get_base_model() if hasattr(model, "get_base_model") else model
    return type(plain).__name__.endswith("ForSemanticSegmentation")


def _width(module: nn.Module, pixels: bool) -> int | None:
    """Return the number of outputs of a linear layer, or of a convolution of one pixel; None of anything else."""
    if pixels:
        return module.out_channels if isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1) else None
    return module.out_features if isinstance(module, nn.Linear) else None


@torch.no_grad()
def reset_head(model: "PreTrainedModel", keep: frozenset[str] = frozenset()) -> None:
    """Fresh weights for the whole head but the tensors named in `keep`.

    Linear layers get a truncated normal of the model's `initializer_range` and a zero bias (ViT, arXiv:2010.11929, and
    BERT, arXiv:1810.04805, start theirs so); small weights start the loss at the entropy of a uniform guess.
    """
    std = getattr(model.config, "initializer_range", None) or 0.02
    for path in head_of(model):
        for name, module in model.get_submodule(path).named_modules(prefix=path):
            if f"{name}.weight" not in keep:
                _reset(module, std)


def _reset(module: nn.Module, std: float) -> None:
    if isinstance(module, nn.Linear):
        nn.init.trunc_normal_(module.weight, std=std)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    elif hasattr(module, "reset_parameters"):
        module.reset_parameters()


@torch.no_grad()
def reorder_head(model: "PreTrainedModel", rows: list[int]) -> None:
    """Put the outputs of the last linear layers in the order `rows` (old indices)."""
    for linear in output_layers(model):
        for tensor in (linear.weight, linear.bias):
            if tensor is not None:
                tensor.copy_(tensor[rows].clone())


def describe_head(model: "PreTrainedModel") -> str:
    """Return the head in one line, such as `768 -> 5 (classifier)`."""
    last = final_linear(model)
    inputs = last.in_channels if isinstance(last, nn.Conv2d) else last.in_features
    return f"{inputs} -> {model.config.num_labels} ({', '.join(head_of(model))})"
