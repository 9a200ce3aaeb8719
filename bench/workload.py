"""State dicts to save and load: like a transformer's, in fp32 and bf16, always the same; and many small tensors."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import torch

from aiockpt.archive.torchsave import storage_view
from aiockpt.crc import crc32

State = dict[str, torch.Tensor]

LAYERS = 12

#: Elements of a layer's matrices, in squares of the width: four of attention, two of the feed-forward network.
_SQUARES = 4 * 1 + 2 * 4

#: Even layers are fp32 and odd ones bf16, so that this is the mean.
_MEAN_ITEMSIZE = 3

SMALL_BYTES = 4096


def _shapes(nbytes: int) -> Iterator[tuple[str, torch.dtype, tuple[int, ...]]]:
    width = max(8, round(math.sqrt(nbytes / (LAYERS * _SQUARES * _MEAN_ITEMSIZE)) / 8) * 8)
    for layer in range(LAYERS):
        dtype = torch.bfloat16 if layer % 2 else torch.float32
        for name in "qkvo":
            yield f"layers.{layer}.attention.{name}", dtype, (width, width)
        yield f"layers.{layer}.up", dtype, (4 * width, width)
        yield f"layers.{layer}.down", dtype, (width, 4 * width)
        yield f"layers.{layer}.norm", dtype, (width,)


def mixed(nbytes: int) -> State:
    """Tensors of about ``nbytes`` bytes in all, of 14 KB to 44 MB each at 1.2 GB; all dimensions divide by 8."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: torch.empty(shape, dtype=dtype).uniform_(-1, 1, generator=generator)
        for name, dtype, shape in _shapes(nbytes)
    }


def small(count: int) -> State:
    """``count`` tensors of 4 KiB."""
    generator = torch.Generator().manual_seed(0)
    return {f"small.{number}": torch.rand(SMALL_BYTES // 4, generator=generator) for number in range(count)}


def size(state: Mapping[str, torch.Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())


def crcs(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """CRC32 of each tensor's bytes, to see whether they came back."""
    return {name: crc32(memory_of(tensor)) for name, tensor in state.items()}


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, as they are in memory; the caller keeps the tensor alive."""
    return storage_view(tensor.detach())


def wipe(state: Mapping[str, torch.Tensor]) -> None:
    """Fill with zeros: pages that are there, values that are wrong."""
    for tensor in state.values():
        tensor.zero_()
