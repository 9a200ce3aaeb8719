"""State dicts to save and load: like a transformer's, in fp32 and bf16, always the same; and many small tensors."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from aiockpt.archive.torchsave import storage_view
from aiockpt.crc import crc32
from aiockpt.measuring.workload import State, mixed
from aiockpt.model import MiB

__all__ = ["State", "crcs", "memory_of", "mixed", "size", "small", "wipe"]

SMALL_BYTES = 4096


def small(count: int) -> State:
    """``count`` tensors of 4 KiB."""
    generator = torch.Generator().manual_seed(0)
    return {f"small.{number}": torch.rand(SMALL_BYTES // 4, generator=generator) for number in range(count)}


def size(state: Mapping[str, torch.Tensor]) -> int:
    """Bytes of all tensors."""
    return sum(tensor.nbytes for tensor in state.values())


def crcs(state: Mapping[str, torch.Tensor]) -> dict[str, int]:
    """CRC32 of each tensor's elements, row-major, to see whether they came back."""
    return {name: _crc(tensor) for name, tensor in state.items()}


def _crc(tensor: torch.Tensor) -> int:
    """Scattered elements are copied in small blocks, which leave no memory behind that would be measured."""
    crc = 0
    for rows in torch.split(tensor, max(1, MiB * len(tensor) // tensor.nbytes)):
        copied = rows.contiguous()
        crc = crc32(memory_of(copied), crc)
    return crc


def memory_of(tensor: torch.Tensor) -> memoryview:
    """The bytes of a tensor, as they are in memory; the caller keeps the tensor alive."""
    return storage_view(tensor.detach())


def wipe(state: Mapping[str, torch.Tensor]) -> None:
    """Fill with zeros: pages that are there, values that are wrong."""
    for tensor in state.values():
        tensor.zero_()
