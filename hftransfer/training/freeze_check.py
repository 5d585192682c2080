"""The freeze check of what moved: a hash of every layer group before and after, and an error when a frozen tensor did."""

import hashlib
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.models.layers import LayerGroups
from hftransfer.runs.record import FreezeCheckRecord, LayerGroupRecord
from hftransfer.runtime.launch import full_tensor
from hftransfer.strategies import Plan
from hftransfer.strategies.base import plain_name


class FrozenMoved(UserError):
    """A tensor that was to stay as it was has changed: the run is not what it claims to be."""


def tensor_hashes(model: nn.Module, layer_groups: LayerGroups) -> dict[str, str]:
    """Return a hash of every parameter and buffer of the network, by its plain name, also from under peft's wrapper."""
    return {name: _hash(tensor) for name, tensor in _tensors(model) if name in layer_groups.depth}


def _tensors(model: nn.Module) -> Iterator[tuple[str, torch.Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if ".original_module." not in name:  # peft's untouched copy of the head
            yield plain_name(name), tensor


def _hash(tensor: torch.Tensor) -> str:
    data = full_tensor(tensor.detach()).cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    return hashlib.blake2b(data, digest_size=16).hexdigest()


def check_frozen(plan: Plan, before: dict[str, str]) -> None:
    """Compare the plan's model with the hashes taken `before`. Raises `FrozenMoved` naming what should not have moved."""
    after = tensor_hashes(plan.model, plan.layer_groups)
    trained = {plain_name(name) for name in plan.rate_factors}
    buffers = {plain_name(name) for name, _ in plan.model.named_buffers()}
    lowest = plan.lowest_depth if plan.batchnorm == "adapt" else plan.layer_groups.head_depth
    adapting = {n for n in buffers if plan.batchnorm != "frozen" and plan.layer_groups.depth.get(n, -1) >= lowest}
    moved = [name for name in before if before[name] != after[name] and name not in trained | adapting]
    if moved:
        raise FrozenMoved(
            f"Expected every frozen tensor to stay as it was, found that {len(moved)} changed: {', '.join(moved[:5])}. "
            "This is an error of the strategy, not of your data: please report it with the configuration."
        )


@dataclass(frozen=True)
class Sizes:
    """Parameters of each layer group: all, and those that train (adapters count as trainable additions)."""

    all: dict[int, int]
    trainable: dict[int, int]

    @classmethod
    def of(cls, plan: Plan) -> "Sizes":
        sizes: tuple[dict[int, int], dict[int, int]] = defaultdict(int), defaultdict(int)
        for name, parameter in plan.model.named_parameters():
            if ".original_module." not in name:
                sizes[0][plan.depth_of(name)] += parameter.numel()
                sizes[1][plan.depth_of(name)] += parameter.numel() * (name in plan.rate_factors)
        return cls(*sizes)

    @property
    def trainable_share(self) -> float:
        return sum(self.trainable.values()) / sum(self.all.values())


def freeze_check(
    layer_groups: LayerGroups, sizes: Sizes, rates: dict[int, float], before: dict[str, str], after: dict[str, str]
) -> FreezeCheckRecord:
    """Return per layer group its size, what of it trains, its highest rate, and its hashes."""
    groups = tuple(
        LayerGroupRecord(
            depth=depth,
            name=layer_groups.name_of(depth),
            parameters=sizes.all.get(depth, 0),
            trainable=sizes.trainable.get(depth, 0),
            learning_rate=rates.get(depth, 0.0),
            hash_before=_joined(before, layer_groups, depth),
            hash_after=_joined(after, layer_groups, depth),
        )
        for depth in range(layer_groups.head_depth + 1)
    )
    return FreezeCheckRecord(trainable_share=sizes.trainable_share, layer_groups=groups)


def _joined(hashes: dict[str, str], layer_groups: LayerGroups, depth: int) -> str:
    names = sorted(name for name, own in layer_groups.depth.items() if own == depth)
    return hashlib.blake2b("".join(hashes.get(name, "") for name in names).encode(), digest_size=16).hexdigest()
