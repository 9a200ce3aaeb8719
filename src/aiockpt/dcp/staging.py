"""Blocks: tensors that cannot be sent from, or landed in, directly go through host memory in blocks.

Pure shape arithmetic over torch views; who allocates and who waits is the callers' business.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch


def blocks(tensor: torch.Tensor, block_bytes: int) -> Iterator[torch.Tensor]:
    """Views of ``tensor`` that laid end to end are its elements in row-major order.

    Each is at most ``block_bytes`` large, or a single element; none is empty.
    """
    if not tensor.numel():
        return
    if tensor.nbytes <= block_bytes or tensor.dim() == 0:
        yield tensor
    elif tensor.is_contiguous():
        yield from torch.split(tensor.view(-1), max(1, block_bytes // tensor.itemsize))
    else:
        rows = block_bytes // (tensor.nbytes // tensor.shape[0])
        for part in torch.split(tensor, max(1, rows)):
            if rows:
                yield part
            else:
                yield from blocks(part[0], block_bytes)


def staged(tensor: torch.Tensor) -> torch.Tensor:
    """A contiguous copy of ``tensor`` in host memory, pinned when it comes from CUDA; the copy is complete."""
    copy = torch.empty(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=tensor.is_cuda)
    copy.copy_(tensor)
    return copy
