"""Run only the decoder of a network for pixels, from what its encoder gave: a frozen encoder is computed once.

A decoder reads the feature maps of several stages, so one hidden state (`partial.SplitPoint`) is not enough. All tensors
that the encoder hands on are kept, each once, as one row of numbers (D,) an image.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hftransfer.models.heads import base_model_of
from hftransfer.models.layers import LayerGroups
from hftransfer.models.partial import Batch, Reached, SplitPoint, replaced


class EncoderOutput(SplitPoint):
    """The input of the decoder: record it (`activations`) and run from it (`replaying`), as a split point does."""

    def __init__(self, model: nn.Module, layer_groups: LayerGroups):
        super().__init__(model, layer_groups, layer_groups.head_depth)
        self.encoder = base_model_of(model)
        self.shapes: list[torch.Size] = []  # of the tensors of one image, each once
        self.places: list[int | None] = []  # of the leaves of the output, the number of its tensor; None: no tensor

    def activations(self, batch: Batch) -> Tensor:
        """Return all that the encoder hands on, (B, D)."""
        tensors: dict[int, Tensor] = {}
        self._stem_inputs = {name: value.shape[1:] for name, value in batch.items() if value.is_floating_point()}
        with self._recording(stop=True), torch.no_grad(), suppress(Reached):  # the decoder is not wanted
            self.model(**batch)
        leaves, _ = self._template
        for leaf in leaves:
            if isinstance(leaf, Tensor):
                tensors.setdefault(id(leaf), leaf)
        order = list(tensors)
        self.places = [order.index(id(leaf)) if isinstance(leaf, Tensor) else None for leaf in leaves]
        self.shapes = [tensor.shape[1:] for tensor in tensors.values()]
        return torch.cat([tensor.flatten(1) for tensor in tensors.values()], 1)

    @contextmanager
    def _recording(self, stop: bool) -> Iterator[None]:
        def note(module: nn.Module, args: tuple, output: Any) -> None:
            self._template = tree_flatten(output)
            if stop:
                raise Reached

        with self.encoder.register_forward_hook(note):
            yield

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """While it lasts, `model(split_point=rows)` runs the decoder alone."""
        hidden: list[Tensor] = []

        with self.model.register_forward_pre_hook(self._taking(hidden), with_kwargs=True):
            with replaced(self.encoder, lambda *a, **k: self._output(hidden[0])):
                yield

    def _output(self, rows: Tensor) -> Any:
        """Return what the encoder returned, with the tensors in `rows` (B, D)."""
        parts = rows.split([shape.numel() for shape in self.shapes], dim=1)
        tensors = [part.reshape(len(rows), *shape) for part, shape in zip(parts, self.shapes, strict=True)]
        leaves, structure = self._template
        known = zip(leaves, self.places, strict=True)
        return tree_unflatten([leaf if place is None else tensors[place] for leaf, place in known], structure)
