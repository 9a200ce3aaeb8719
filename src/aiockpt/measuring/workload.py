"""A state dict to save and load: like a transformer's, in fp32 and bf16, always the same."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch

State = dict[str, torch.Tensor]

LAYERS = 12

#: Elements of a layer's matrices, in squares of the width: four of attention, two of the feed-forward network.
_SQUARES = 4 * 1 + 2 * 4

#: Even layers are fp32 and odd ones bf16, so that this is the mean.
_MEAN_ITEMSIZE = 3


def mixed(nbytes: int) -> State:
    """Tensors of about ``nbytes`` bytes in all, of 14 KB to 44 MB each at 1.2 GB; all dimensions divide by 8."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.empty(shape, dtype=dtype).uniform_(-1, 1, generator=generator)
        for name, dtype, shape in _shapes(nbytes)
    }


def _shapes(nbytes: int) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    width = max(8, round(math.sqrt(nbytes / (LAYERS * _SQUARES * _MEAN_ITEMSIZE)) / 8) * 8)
    for layer in range(LAYERS):
        dtype = torch.bfloat16 if layer % 2 else torch.float32
        for name in "qkvo":
            yield f"layers.{layer}.attention.{name}", dtype, (width, width)
        yield f"layers.{layer}.up", dtype, (4 * width, width)
        yield f"layers.{layer}.down", dtype, (width, 4 * width)
        yield f"layers.{layer}.norm", dtype, (width,)
