"""Two operations that a CPU trains faster than torch does it: dropout, and attention in bfloat16.

torch draws the numbers of a dropout mask one after the other on a single thread, which takes a third of a training step of
a BERT on two cores; here a mask is drawn sixteen bits at a time. The way back of its fused attention in bfloat16 takes
longer than that of the same steps one by one, as long as the scores are few. On a GPU nothing of this is used.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

LEVELS = 2**16  # of a random number: a rate is kept to within 1 in 131,072
FEW_SCORES = 2**24  # rows x heads x tokens x tokens; with more, the fused attention's small memory is worth its time

_torchs_dropout, _torchs_attention = functional.dropout, functional.scaled_dot_product_attention


@contextmanager
def quick_operations(device: torch.device) -> Iterator[None]:
    """Replaces the two in `torch.nn.functional` on a CPU while it lasts, in this process.

    A `TorchFunctionMode` would be the tidier way, but the second forward pass of gradient checkpointing runs outside it. The
    seeds of masks come from torch's generator: what restores its state restores the masks.
    """
    before = functional.dropout, functional.scaled_dot_product_attention
    if device.type == "cpu":
        functional.dropout, functional.scaled_dot_product_attention = _dropout, _attention
    try:
        yield
    finally:
        functional.dropout, functional.scaled_dot_product_attention = before


def mask(like: Tensor, rate: float) -> Tensor:
    """Of the shape and type of `like`: 0 with probability `rate`, else 1 / (1 - rate)."""
    seed = int(torch.randint(2**63 - 1, ()))
    words = np.random.Generator(np.random.SFC64(seed)).integers(
        2**64, size=math.ceil(like.numel() / 4), dtype=np.uint64
    )
    numbers = torch.from_numpy(words.view(np.int16)[: like.numel()]).view(like.shape)
    return (numbers >= round(rate * LEVELS) - LEVELS // 2).to(like.dtype).div_(1 - rate)


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    if not training or not 0 < p < 1:
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
    if enable_gqa or not (0 < dropout_p < 1 or slow_way_back):
        return _torchs_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)
    scores = query @ key.transpose(-2, -1) * (1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    if is_causal:
        attn_mask = torch.ones(scores.shape[-2:], dtype=torch.bool).tril()
    if attn_mask is not None:
        least = torch.finfo(scores.dtype).min  # not -inf: a row of padding would be no number
        scores = scores.masked_fill(~attn_mask, least) if attn_mask.dtype == torch.bool else scores + attn_mask
    weights = torch.softmax(scores, -1, dtype=torch.float32).to(value.dtype)
    return (weights * mask(weights, dropout_p) if dropout_p else weights) @ value
