"""What the head reads: which block's output, and how tokens are pooled. All of it expressible as a plain model.

A feature source is a pair (block, pooling). Its features are, exactly, the input of the last linear layer of the plain model that
expresses it: the blocks above `block` taken off, and for `mean` one encoder layer put on whose attention is uniform.
"""

import copy
import logging
import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from hftransfer.models.heads import final_linear, head_of
from hftransfer.models.layers import LayerGroups
from hftransfer.models.partial import MASK, Batch, SplitPoint, skeleton_of

log = logging.getLogger(__name__)

LOUD = 1000.0  # the mean must drown the residual of its own token; float16 still holds it
LIFT = 20.0  # far above zero, where ReLU and GELU hand their input on
QUIET = 0.01  # keeps tanh in its linear part


@dataclass(frozen=True)
class FeatureSource:
    """`block` counts from 1; `pooling` "head" is what the checkpoint's own head reads."""

    block: int
    pooling: Literal["head", "mean"] = "head"

    @property
    def name(self) -> str:
        return f"{self.pooling}@{self.block}"


@torch.no_grad()
def open_head(model: nn.Module, fresh: frozenset[str], batch: Batch) -> None:
    """Make the hidden layers of a fresh head hand their input on, so that a linear probe above them is one on the features.

    Heads of several layers (RoBERTa, DistilBERT, ModernBERT, …) begin at random, and so does BERT's pooler where the
    checkpoint has none: a random projection with an activation is a poor feature. ReLU and GELU pass what is lifted far
    above zero, tanh (and GELU, halved) what is made small; which it is shows in what comes out.
    """
    layers = _fresh_square_layers(model, fresh)
    if not layers:
        return
    _lift(layers)
    features = read_features(model, batch).float()
    if features.std(1).max() < 1e-4:  # tanh saturates where ReLU and GELU are open
        for layer in layers:
            _pass_on(layer, QUIET)
    elif not _are_linear(model, layers, features, batch):
        _lift(layers)


def _lift(layers: list[nn.Linear]) -> None:
    for layer in layers:
        _pass_on(layer, QUIET if layer.bias is None else 1.0, LIFT)


def _are_linear(model: nn.Module, layers: list[nn.Linear], lifted: Tensor, batch: Batch) -> bool:
    """Take the lift away, and return whether the features stay the same but for it: then no activation follows."""
    if any(layer.bias is None for layer in layers):
        return False
    for layer in layers:
        _pass_on(layer)
    moved = lifted - read_features(model, batch).float()
    return torch.allclose(moved, moved.mean().expand_as(moved), atol=1e-4) and bool(moved.mean() > 1)


def _pass_on(layer: nn.Linear, scale: float = 1.0, lift: float = 0.0) -> None:
    layer.weight.copy_(scale * torch.eye(layer.in_features))
    if layer.bias is not None:
        layer.bias.fill_(lift)


def _fresh_square_layers(model: nn.Module, fresh: frozenset[str]) -> list[nn.Linear]:
    last = final_linear(model)
    return [
        module
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear) and module is not last and f"{path}.weight" in fresh
        and module.in_features == module.out_features
    ]  # fmt: skip


def read_features(model: nn.Module, batch: Batch, everywhere: bool = False) -> Tensor:
    """Return the input (B, D) of the last linear layer at the place whose logits count: the last token of GPT-2.

    With `everywhere` that of all places (B, T, D).
    """
    return read_answers(model, batch, everywhere)[1]


@torch.no_grad()
def read_answers(model: nn.Module, batch: Batch, everywhere: bool = False) -> tuple[Tensor, Tensor]:
    """Logits (B, C) and `read_features` from one forward pass."""
    caught: list[Tensor] = []
    hook = final_linear(model).register_forward_pre_hook(lambda module, args: caught.append(args[0]))
    try:
        logits = model(**batch).logits
    finally:
        hook.remove()
    return logits, caught[0] if everywhere else _at_logits(model, caught[0], batch)


def _at_logits(model: nn.Module, features: Tensor, batch: Batch) -> Tensor:
    """Heads that score every token (GPT-2) read the last one that is no padding."""
    if features.ndim == 2:
        return features
    last = (batch["input_ids"] != model.config.pad_token_id).int() * torch.arange(
        features.shape[1], device=features.device
    )
    return features[torch.arange(len(features), device=features.device), last.argmax(-1)]


class Reader:
    """Reads the features of several feature sources from one forward pass."""

    def __init__(
        self,
        model: nn.Module,
        layer_groups: LayerGroups,
        feature_sources: list[FeatureSource],
        everywhere: bool = False,
    ):
        """`everywhere`: features come for each token, (B, T, D)."""
        self.model, self.feature_sources, self.everywhere = model, feature_sources, everywhere
        self.split_point: SplitPoint | None = None
        self.layer_groups = layer_groups
        self.blocks = [model.get_submodule(path) for path in layer_groups.blocks]

    def __call__(self, batch: Batch) -> dict[str, Tensor]:
        """Name -> (B, D). `mean` feature sources come as two vectors, `first@` and `mean@`, from which the layer is computed."""
        hidden: dict[int, Tensor] = {}
        with torch.no_grad():
            hooks = [
                self.blocks[block - 1].register_forward_hook(
                    lambda module, args, output, block=block: hidden.update({block: _first_tensor(output).clone()})
                )
                for block in {feature_source.block for feature_source in self.feature_sources}
            ]
            try:
                result = {f"head@{len(self.blocks)}": read_features(self.model, batch, self.everywhere)}
            finally:
                for hook in hooks:
                    hook.remove()
            for feature_source in self.feature_sources:
                result |= self._read(feature_source, hidden[feature_source.block], batch)
        return result

    def _read(self, feature_source: FeatureSource, hidden: Tensor, batch: Batch) -> dict[str, Tensor]:
        if feature_source.pooling == "mean":
            mask = batch[MASK].unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1)
            return {feature_source.name: mean, f"first@{feature_source.block}": hidden[:, 0]}
        if feature_source.block == len(self.blocks):
            return {}
        with self._tail(batch).replaying():
            replayed = skeleton_of(batch) | {"split_point": hidden}
            return {feature_source.name: read_features(self.model, replayed, self.everywhere)}

    def _tail(self, batch: Batch) -> SplitPoint:
        """Return what stands above the blocks, tried on the first batch."""
        if self.split_point is None:
            self.split_point = SplitPoint(self.model, self.layer_groups, self.layer_groups.head_depth)
            self.split_point.activations({name: value[:2] for name, value in batch.items()})
        return self.split_point


def _first_tensor(output: object) -> Tensor:
    return output if isinstance(output, Tensor) else output[0]


# --- the same feature sources as plain models --------------------------------------------------------------------------------


def can_be_cut(model: nn.Module, layer_groups: LayerGroups, batch: Batch) -> bool:
    """Whether blocks can be taken off the end: their number stands in the config, and the rest reads any block's output."""
    if _depth_field(model, len(layer_groups.blocks)) is None or not _alike(model, layer_groups, batch):
        return False
    return SplitPoint(model, layer_groups, layer_groups.head_depth).is_exact(batch)


@torch.no_grad()
def _alike(model: nn.Module, layer_groups: LayerGroups, batch: Batch) -> bool:
    """Whether all blocks give the same shape: the stages of ConvNeXt do not."""
    shapes: set[torch.Size] = set()
    blocks = [model.get_submodule(path) for path in layer_groups.blocks]
    hooks = [
        block.register_forward_hook(lambda module, args, output: shapes.add(_first_tensor(output).shape))
        for block in blocks
    ]
    try:
        model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return len(shapes) == 1


def _depth_field(model: nn.Module, depth: int) -> str | None:
    for name in ("num_hidden_layers", "n_layers", "n_layer"):
        if getattr(model.config, name, None) == depth:
            return name
    return None


def cut_above(model: nn.Module, layer_groups: LayerGroups, block: int) -> None:
    """Take the blocks above `block` off, in the modules and in the config."""
    depth = len(layer_groups.blocks)
    parent, _, _ = layer_groups.blocks[0].rpartition(".")
    del model.get_submodule(parent)[block:]
    for name, value in list(vars(model.config).items()):  # lists with one entry a layer (ModernBERT's layer_types)
        if isinstance(value, list) and len(value) == depth:
            setattr(model.config, name, value[:block])
    setattr(model.config, _depth_field(model, depth), block)


def mean_layer(model: nn.Module, layer_groups: LayerGroups) -> nn.Module | None:
    """Return an encoder layer that replaces the first token by the normalised mean of all, made from a copy of the last block.

    Query = key = 0 makes attention uniform over the unmasked tokens; value = identity and a loud output carry the mean past
    the residual; the feed-forward part is silent and both norms are plain. None where the block has other parts.
    """
    if _depth_field(model, len(layer_groups.blocks)) is None:
        return None
    layer = copy.deepcopy(model.get_submodule(layer_groups.blocks[-1]))
    layer.requires_grad_(False)
    for path, module in layer.named_modules():
        if isinstance(module, nn.LayerNorm):
            module.weight.fill_(1.0)
            if module.bias is not None:
                module.bias.zero_()
        elif isinstance(module, nn.Linear):
            _set_linear(path, module)
        elif next(module.parameters(recurse=False), None) is not None:
            return None
    return layer


def _set_linear(path: str, linear: nn.Linear) -> None:
    name = path.rpartition(".")[2]
    square = linear.in_features == linear.out_features
    in_attention = "attention" in path and square
    factor = 0.0
    if in_attention and not re.match(r"q|k", name):
        factor = 1.0 if name.startswith("v") else LOUD
    linear.weight.copy_(factor * torch.eye(linear.out_features, linear.in_features))
    if linear.bias is not None:
        linear.bias.zero_()


def normalised_mean(mean: Tensor, first: Tensor, epsilon: float) -> Tensor:
    """Return what the mean layer gives at the first token, computed directly, (B, D)."""
    width = mean.shape[-1:]
    once = nn.functional.layer_norm(LOUD * mean + first, width, eps=epsilon)
    return nn.functional.layer_norm(once, width, eps=epsilon)


@torch.no_grad()
def put_mean_layer(model: nn.Module, layer_groups: LayerGroups) -> tuple[str, ...]:
    """Append the mean layer and open what stands between it and the head; returns the paths that must stay constant."""
    layer = mean_layer(model, layer_groups)
    parent, _, _ = layer_groups.blocks[0].rpartition(".")
    depth = len(layer_groups.blocks)
    model.get_submodule(parent).append(layer)
    setattr(model.config, _depth_field(model, depth), depth + 1)
    constant = [f"{parent}.{depth}"]
    for path, module in model.named_modules():
        if (
            isinstance(module, nn.Linear)
            and layer_groups.depth_of(path) == depth
            and path in _poolers(model, layer_groups)
        ):
            module.weight.copy_(QUIET * torch.eye(module.in_features))
            module.bias.zero_()
            constant.append(path)
    return tuple(constant)


def _poolers(model: nn.Module, layer_groups: LayerGroups) -> list[str]:
    """Square layers between the blocks and the head: BERT's pooler."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and module.in_features == module.out_features
        and any(f"{path}.".startswith(f"{after}.") for after in layer_groups.after)
        and not any(f"{path}.".startswith(f"{head}.") for head in head_of(model))
    ]


def norm_epsilon(model: nn.Module, layer_groups: LayerGroups) -> float:
    norms = [m for m in model.get_submodule(layer_groups.blocks[-1]).modules() if isinstance(m, nn.LayerNorm)]
    return norms[-1].eps


@torch.no_grad()
def mean_is_exact(model: nn.Module, layer_groups: LayerGroups, batch: Batch) -> bool:
    """Whether the mean layer does for this family what it is meant to: tried on a copy of the last block.

    False for families without an attention mask of tokens, with pre-norm blocks, or with a bias on attention (MPNet).
    """
    if MASK not in batch or mean_layer(model, layer_groups) is None:
        return False
    trial = copy.deepcopy(model)
    put_mean_layer(trial, layer_groups)
    try:
        caught: list[Tensor] = []
        trial.get_submodule(
            f"{layer_groups.blocks[0].rpartition('.')[0]}.{len(layer_groups.blocks)}"
        ).register_forward_hook(lambda module, args, output: caught.append(_first_tensor(output)[:, 0]))
        found = Reader(trial, layer_groups, [FeatureSource(len(layer_groups.blocks), "mean")])(batch)
    except (RuntimeError, TypeError, ValueError, AttributeError, IndexError):
        return False
    expected = normalised_mean(
        found[f"mean@{len(layer_groups.blocks)}"],
        found[f"first@{len(layer_groups.blocks)}"],
        norm_epsilon(model, layer_groups),
    )
    return bool(caught) and torch.allclose(caught[0], expected, atol=1e-3)
