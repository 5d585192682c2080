"""The depth of every parameter: 0 = stem, 1..n = blocks, n+1 = head.

Found from the module tree alone, with no table of architectures. Freezing, gradual unfreezing, layer-wise learning rates,
the freeze check and the cache split point are all functions of it. The depth to train can be given as a number of blocks or as a
fraction, so that one recipe serves ResNet and BERT alike.
"""

import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from itertools import groupby

from torch import nn

from hftransfer.core.errors import UserError
from hftransfer.models.heads import base_model_of, head_of


@dataclass(frozen=True)
class LayerGroups:
    """Where each tensor of a model stands.

    `blocks` are module paths in order of depth, `head` and `after` those of the head and of what runs between the two;
    `depth` maps each parameter and buffer name to its layer group; modules at the paths `constant` never train.
    """

    blocks: tuple[str, ...]
    head: tuple[str, ...]
    after: tuple[str, ...]
    depth: dict[str, int]
    constant: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: nn.Module, constant: tuple[str, ...] = ()) -> "LayerGroups":
        """Return the layer groups of a classification model of transformers (timm models through their wrapper).

        Modules at the paths `constant` (see `sources.put_mean_layer`) are no blocks: they stand above the last one.
        Raises `UserError` when the model has no repeated blocks.
        """
        fixed = {id(model.get_submodule(path)) for path in constant}
        blocks = [block for block in _find_blocks(base_model_of(model)) if id(block) not in fixed]
        if not blocks:
            raise UserError(f"{type(model).__name__} has no list of blocks, so there is no depth to freeze by.")
        paths = {id(module): path for path, module in model.named_modules()}
        block_paths = tuple(paths[id(block)] for block in blocks)
        depths = cls(block_paths, head_of(model), _modules_after_blocks(model, block_paths), {}, constant)
        tensors = [*model.named_parameters(), *model.named_buffers()]
        return replace(depths, depth={name: depths.depth_of(name) for name, _ in tensors})

    def depth_of(self, path: str) -> int:
        """Return the layer group of a module, parameter or buffer by its path."""
        if _inside(path, self.head):
            return self.head_depth
        if inside := [depth for depth, block in enumerate(self.blocks, start=1) if _inside(path, (block,))]:
            return inside[0]
        return len(self.blocks) if _inside(path, self.after) else 0

    def is_constant(self, path: str) -> bool:
        return _inside(path, self.constant)

    @property
    def head_depth(self) -> int:
        return len(self.blocks) + 1

    def name_of(self, depth: int) -> str:
        if depth == 0:
            return "stem"
        return "head" if depth == self.head_depth else self.blocks[depth - 1]

    def first_trainable_depth(self, top: int | float) -> int:
        """Return the lowest layer group to train for the `top` blocks: a count, or (a float) a fraction of the depth, rounded up.

        0 trains the head alone. Raises `UserError` for a negative count or more blocks than there are.
        """
        count = math.ceil(top * len(self.blocks)) if isinstance(top, float) and top <= 1 else int(top)
        if not 0 <= count <= len(self.blocks) or 1 < top != count:
            raise UserError(
                f"Expected a number of blocks from 0 to {len(self.blocks)} or a fraction of the depth, found {top}."
            )
        return self.head_depth - count

    def learning_rate(self, depth: int, base: float, decay: float) -> float:
        """Layer-wise decay (ELECTRA, arXiv 2003.10555, appendix A): base * decay^(distance from the last block)."""
        return base * decay ** max(len(self.blocks) - depth, 0)


def _has_tensors(module: nn.Module) -> bool:
    return any(True for _ in module.parameters())


def _find_blocks(backbone: nn.Module) -> list[nn.Module]:
    """Return the list of sibling modules that holds most parameters (of equals, the longer list)."""
    candidates = [group for module in backbone.modules() for group in _sibling_groups(module)]
    return max(candidates, key=lambda group: (_size(group), len(group)), default=[])


def _sibling_groups(module: nn.Module) -> Iterable[list[nn.Module]]:
    children = [(name, child) for name, child in module.named_children() if _has_tensors(child)]
    if isinstance(module, nn.ModuleList | nn.Sequential):
        yield [child for _, child in children]
    # timm's ResNet keeps its stages as attributes: layer1, layer2, … Leaves (fc1, fc2 of VGG) are no stages.
    numbered = [(name, child) for name, child in children if re.search(r"\D\d+$", name) and len(list(child.children()))]
    for _, group in groupby(numbered, key=lambda item: re.sub(r"\d+$", "", item[0])):
        yield [child for _, child in group]


def _size(modules: Iterable[nn.Module]) -> int:
    return sum(p.numel() for module in modules for p in module.parameters())


def _inside(path: str, prefixes: tuple[str, ...]) -> bool:
    return f"{path}.".startswith(tuple(f"{prefix}." for prefix in prefixes))


def _modules_after_blocks(model: nn.Module, blocks: tuple[str, ...]) -> tuple[str, ...]:
    """Paths of what runs after the blocks (final norm, pooler): it belongs to the last block's layer group.

    Registration order tells it, but for one trap: DeBERTa and MPNet register the position embeddings that all blocks
    share after the blocks. Siblings of such an embedding are stem: calling them stem is harmless, the reverse is not.
    """
    after = []
    path = blocks[-1]
    while path:
        parent, _, child = path.rpartition(".")
        later = _later_siblings(model.get_submodule(parent), child)
        if not any(isinstance(m, nn.Embedding) for _, sibling in later for m in sibling.modules()):
            after += [f"{parent}.{name}".lstrip(".") for name, _ in later]
        path = parent
    return tuple(after)


def _later_siblings(parent: nn.Module, child: str) -> list[tuple[str, nn.Module]]:
    children = list(parent.named_children())
    position = [name for name, _ in children].index(child)
    return children[position + 1 :]
