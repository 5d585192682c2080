"""Run only the upper part of a network, from stored activations at a split point between two blocks.

Boundary r (1 <= r <= n+1) is the input of block r; n+1 is the output of the last block. Everything below gives the same
output every epoch when it is frozen and in evaluation mode, so it need not run again. No family is named here: the blocks
below are replaced, while a replay lasts, by stand-ins that hand on the stored activation in the form their last one
returns, and a numeric trial against the live network decides whether that is exact for the model at hand.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from hftransfer.models.layers import LayerGroups

Batch = dict[str, Tensor]


MASK = "attention_mask"  # transformers' name of the mask (B, T) over tokens, whatever they stand for


def skeleton_of(batch: Batch) -> Batch:
    """Return the batch without its floating-point inputs (pixels, samples of sound): the stem alone reads them."""
    return {name: value for name, value in batch.items() if not value.is_floating_point()}


class Reached(Exception):
    """Ends a forward pass at the split point: nothing above it is wanted."""


class SplitPoint:
    """The input of block `layer group` of a model: record it (`activations`) and run from it (`replay`)."""

    def __init__(self, model: nn.Module, layer_groups: LayerGroups, depth: int):
        self.model, self.layer_groups, self.depth = model, layer_groups, depth
        self.blocks = [model.get_submodule(path) for path in layer_groups.blocks]
        self._template: tuple[list[Any], Any] = ([], None)
        self._stem_shapes: dict[str, torch.Size] = {}
        self._stem_inputs: dict[str, torch.Size] = {}

    def activations(self, batch: Batch) -> Tensor:
        """Return the hidden state at the split point, (B, tokens, width) or (B, channels, height, width); stops there."""
        self._stem_inputs = {name: value.shape[1:] for name, value in batch.items() if value.is_floating_point()}
        with self._recording(stop=True), torch.no_grad():
            try:
                self.model(**batch)
            except Reached as reached:
                return reached.args[0]
        raise RuntimeError(f"the forward pass never reached {self.layer_groups.name_of(self.depth)}")

    def is_exact(self, batch: Batch, tolerance: float = 1e-4) -> bool:
        """Whether a replay gives the live network's logits on `batch`, once whole and once its first row alone.

        The trial prepares the replay: it notes the form of what the blocks hand on. False for families in which something
        else than the hidden state flows past the split point.
        """
        first = {name: value[:1] for name, value in batch.items()}
        try:
            return all(self._agrees(rows, tolerance) for rows in (batch, first))
        except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
            return False  # the family cannot be replayed: the caller says so and trains without the store

    def _agrees(self, batch: Batch, tolerance: float) -> bool:
        was_training = self.model.training
        self.model.eval()
        with self._recording(stop=False), torch.no_grad():
            live = self.model(**batch).logits
            hidden = self.activations(batch)
            with self.replaying():
                replayed = self.model(**skeleton_of(batch), split_point=hidden).logits
        self.model.train(was_training)
        return torch.allclose(live, replayed, atol=tolerance * max(1.0, live.abs().max().item()))

    @contextmanager
    def replaying(self) -> Iterator[None]:
        """While it lasts, `model(**skeleton, split point=hidden)` runs the blocks from `layer group` on, and only those."""
        hidden: list[Tensor] = []

        with ExitStack() as stack:
            stack.enter_context(self.model.register_forward_pre_hook(self._taking(hidden), with_kwargs=True))
            for block in self.blocks[: self.depth - 1]:
                stack.enter_context(replaced(block, lambda *a, **k: self._in_form(hidden[0])))
            for path, shape in self._stem_shapes.items():
                stack.enter_context(
                    replaced(self.model.get_submodule(path), lambda *a, s=shape, **k: _blank(hidden[0], s))
                )
            if self.depth == 1:
                first = self.blocks[0]
                stack.enter_context(first.register_forward_pre_hook(lambda m, args: (hidden[0], *args[1:])))
            yield

    def _taking(self, hidden: list[Tensor]) -> Callable:
        """Return a hook that moves the argument `split_point` of the model into `hidden`, with blank inputs in its place."""

        def take(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
            hidden[:] = [kwargs.pop("split_point")]
            for name, shape in self._stem_inputs.items():  # some models check the shape
                kwargs[name] = hidden[0].new_zeros(()).expand(len(hidden[0]), *shape)
            return args, kwargs

        return take

    def _in_form(self, hidden: Tensor) -> Any:
        """`hidden` in the structure in which the last block below the split point returned it (tensor, tuple, …)."""
        leaves, structure = self._template
        return tree_unflatten([hidden if isinstance(leaf, Tensor) else leaf for leaf in leaves], structure)

    @contextmanager
    def _recording(self, stop: bool) -> Iterator[None]:
        def reached(hidden: Tensor) -> None:
            if stop:
                raise Reached(hidden.detach().clone())  # in-place activations may follow

        def block_output(module: nn.Module, args: tuple, output: Any) -> None:
            self._template = _form(output)
            reached(next(leaf for leaf in tree_flatten(output)[0] if isinstance(leaf, Tensor)))

        def block_input(module: nn.Module, args: tuple) -> None:
            reached(args[0])

        def stem_output(path: str) -> Callable:
            return lambda module, args, output: self._stem_shapes.update({path: output.shape})

        with ExitStack() as stack:
            below = self.blocks[self.depth - 2] if self.depth > 1 else None
            hook = below.register_forward_hook(block_output) if below else None
            stack.enter_context(hook or self.blocks[0].register_forward_pre_hook(block_input))
            for path in self._stem_leaves():
                stack.enter_context(self.model.get_submodule(path).register_forward_hook(stem_output(path)))
            yield

    def _stem_leaves(self) -> list[str]:
        """Return the convolutions at the bottom of a network: expensive, and read by nobody during a replay."""
        return [
            path
            for path, module in self.model.named_modules()
            if isinstance(module, nn.Conv1d | nn.Conv2d) and self.layer_groups.depth.get(f"{path}.weight") == 0
        ]


def _form(output: Any) -> tuple[list[Any], Any]:
    leaves, structure = tree_flatten(output)
    return [leaf if not isinstance(leaf, Tensor) else torch.empty(0) for leaf in leaves], structure


def _blank(like: Tensor, shape: torch.Size) -> Tensor:
    """Return what a skipped convolution returns: zeros of its shape for the batch at hand."""
    return like.new_zeros((len(like), *shape[1:]))


@contextmanager
def replaced(module: nn.Module, forward: Callable) -> Iterator[None]:
    module.forward = forward  # on this instance alone; deleting it uncovers the class's own method
    try:
        yield
    finally:
        del module.forward
