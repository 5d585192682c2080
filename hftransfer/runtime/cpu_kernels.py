"""Three operations that a CPU trains faster than torch does it: dropout, and attention and depthwise convolution in bfloat16.

torch draws the numbers of a dropout mask one after the other on a single thread, which takes a third of a training step of
a BERT on two cores; here a mask is drawn sixteen bits at a time. The backward pass of its fused attention in bfloat16 takes
longer than that of the same steps one by one, as long as the scores are few. The backward pass of a depthwise convolution of 5x5
in bfloat16 takes fifty times as long as the forward pass, of stride 2 up to two hundred times: three quarters of a step of an
EfficientNet; see `_Depthwise`. On a GPU nothing of this is used.
"""

import itertools
import math
import os
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

TILE = 3  # weights a side, for which there is a quick kernel
LEVELS = 2**16  # of a random number: a rate is kept to within 1 in 131,072
FEW_SCORES = 2**24  # rows x heads x tokens x tokens; with more, the fused attention's small memory is worth its time

REPLACED = ("dropout", "scaled_dot_product_attention", "conv2d")  # of torch.nn.functional

_torchs_dropout, _torchs_attention, _torchs_conv2d = (getattr(functional, name) for name in REPLACED)
_lock, _threads = threading.Lock(), Counter()  # how often each thread has asked for them


@contextmanager
def quick_operations(device: torch.device) -> Iterator[None]:
    """Replace the three in `torch.nn.functional` on a CPU while it lasts, for this thread alone.

    HFTRANSFER_CPU_KERNELS=0 switches them off. A `TorchFunctionMode` would be the tidier way, but the second forward pass
    of gradient checkpointing runs outside it. The seeds of masks come from torch's generator: what restores its state
    restores the masks.
    """
    if device.type != "cpu" or not replaced():
        yield
        return
    me = threading.get_ident()
    with _lock:
        _threads[me] += 1
        _install(_dropout, _attention, _conv2d)
    try:
        yield
    finally:
        with _lock:
            _threads[me] -= 1
            if not _threads[me]:
                del _threads[me]
            if not _threads:
                _install(_torchs_dropout, _torchs_attention, _torchs_conv2d)


def replaced() -> tuple[str, ...]:
    """Return the names of the operations that `quick_operations` replaces."""
    return () if os.environ.get("HFTRANSFER_CPU_KERNELS") == "0" else REPLACED


def _install(*operations: Callable) -> None:
    for name, operation in zip(REPLACED, operations, strict=True):
        setattr(functional, name, operation)


def _is_elsewhere() -> bool:
    """Return whether the running thread is none of those that asked for quick operations."""
    return threading.get_ident() not in _threads


def mask(like: Tensor, rate: float) -> Tensor:
    """Of the shape and type of `like`: 0 with probability `rate`, else 1 / (1 - rate)."""
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.Generator(np.random.SFC64(seed)).integers(
        2**64, size=math.ceil(like.numel() / 4), dtype=np.uint64
    )
    numbers = torch.from_numpy(words.view(np.int16)[: like.numel()]).view(like.shape)
    return (numbers >= round(rate * LEVELS) - LEVELS // 2).to(like.dtype).div_(1 - rate)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if _is_elsewhere() or not training or not 0 < p < 1:
        return _torchs_dropout(input, p, training, inplace)
    drawn = mask(input, p)
    return input.mul_(drawn) if inplace else input * drawn


def _attention(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, dropout_p: float = 0.0,
    is_causal: bool = False, scale: float | None = None, enable_gqa: bool = False,
) -> Tensor:  # fmt: skip
    """softmax(query key^T * scale + mask) value; torch itself leaves its fused form as soon as there is dropout."""
    few = query[..., 0].numel() * key.shape[-2] <= FEW_SCORES
    slow_way_back = query.requires_grad and query.dtype == torch.bfloat16 and few
    if _is_elsewhere() or enable_gqa or not (0 < dropout_p < 1 or slow_way_back):
        return _torchs_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        least = torch.finfo(scores.dtype).min  # not -inf: a row of padding would be no number
        scores = scores.masked_fill(~attn_mask, least) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
    return (weights * mask(weights, dropout_p) if dropout_p else weights) @ value


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0, dilation: Any = 1,
    groups: int = 1,
) -> Tensor:  # fmt: skip
    dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else weight.dtype
    depthwise = groups == len(weight) == input.shape[-3] and weight.shape[1] == 1
    plain = input.ndim == 4 and not isinstance(padding, str) and _pair(dilation) == (1, 1)
    slow_way_back = max(weight.shape[2:]) > TILE or _pair(stride) != (1, 1)
    if _is_elsewhere() or not (
        depthwise and plain and slow_way_back and dtype == torch.bfloat16 and torch.is_grad_enabled()
    ):
        return _torchs_conv2d(input, weight, bias, stride, padding, dilation, groups)
    found = _Depthwise.apply(input.to(dtype), weight.to(dtype), _pair(stride), _pair(padding))
    return found if bias is None else found + bias.to(dtype)[:, None, None]


def _pair(value: int | Sequence[int]) -> tuple[int, ...]:
    return (value, value) if isinstance(value, int) else tuple(value) * (3 - len(value))


class _Depthwise(torch.autograd.Function):
    """A depthwise convolution in bfloat16 whose backward pass avoids what oneDNN has no quick kernel for.

    The gradient of the input at a stride of 2 is taken in float32. That of weights beyond 3x3 is put together from tiles
    of 3x3, each the gradient of a convolution of 3x3 over the input moved by the tile's place.
    """

    @staticmethod
    def forward(ctx: Any, input: Tensor, weight: Tensor, stride: tuple, padding: tuple) -> Tensor:
        ctx.save_for_backward(input, weight)
        ctx.stride, ctx.padding = stride, padding
        return torch.conv2d(input, weight, None, stride, padding, 1, len(weight))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        how = (gradient, *ctx.saved_tensors, ctx.stride, ctx.padding)
        of_input = _gradient_of_input(*how) if ctx.needs_input_grad[0] else None
        of_weight = _gradient_of_weight(*how) if ctx.needs_input_grad[1] else None
        return of_input, of_weight, None, None


def _gradient_of_input(gradient: Tensor, input: Tensor, weight: Tensor, stride: tuple, padding: tuple) -> Tensor:
    dtype = input.dtype if stride == (1, 1) else torch.float32
    of_its_shape = torch.empty_like(input, dtype=dtype)
    found = _torchs_gradients(gradient.to(dtype), of_its_shape, weight.to(dtype), stride, padding, (True, False, False))
    return found[0].to(input.dtype)


def _gradient_of_weight(gradient: Tensor, input: Tensor, weight: Tensor, stride: tuple, padding: tuple) -> Tensor:
    wanted = (False, True, False)
    if max(weight.shape[2:]) <= TILE:
        return _torchs_gradients(gradient, input, weight, stride, padding, wanted)[1]
    padded = functional.pad(input, (padding[1], padding[1], padding[0], padding[0]))
    down, right = ((places - 1) * step for places, step in zip(gradient.shape[2:], stride, strict=True))
    found = torch.empty_like(weight)
    for top, left in itertools.product(*map(_tiles, weight.shape[2:])):
        tile = weight[:, :, top : top + TILE, left : left + TILE]
        height, width = tile.shape[2:]
        moved = padded[:, :, top : top + down + height, left : left + right + width]
        moved = moved.contiguous(memory_format=torch.channels_last)  # oneDNN would copy it for every call
        of_tile = _torchs_gradients(gradient, moved, tile, stride, (0, 0), wanted)[1]
        found[:, :, top : top + height, left : left + width] = of_tile
    return found


def _tiles(size: int) -> list[int]:
    """Where the tiles of so many weights begin; the last may overlap the one before, whose numbers are the same."""
    return [*range(0, size - TILE, TILE), max(0, size - TILE)]


def _torchs_gradients(
    gradient: Tensor, input: Tensor, weight: Tensor, stride: tuple, padding: tuple, wanted: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Those of input, weight and bias that are `wanted`."""
    return torch.ops.aten.convolution_backward(
        gradient, input, weight, None, stride, padding, (1, 1), False, (0, 0), len(weight), wanted
    )
