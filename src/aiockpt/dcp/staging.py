"""Staging: tensors that bytes cannot leave from, or land in, directly go through host memory, in blocks.

How much may be staged at once is the callers' business, and the byte budget's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

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


def staged_blocks(tensor: torch.Tensor, block_bytes: int, reserve: Callable[[int], None]) -> Iterator[torch.Tensor]:
    """Contiguous host copies of a tensor's blocks, in order; ``reserve`` is called with the bytes of each before.

    From CUDA the copies go to pinned memory on a stream of their own, behind what the current stream has queued, and
    the next one is under way while the caller works with this one. Pinned memory comes from torch's caching host
    allocator, which reuses it: the ring is as large as what ``reserve`` lets through.
    """
    stream = _side_stream(tensor.device) if tensor.is_cuda else None
    ahead: _Copy | None = None
    for block in blocks(tensor, block_bytes):
        reserve(block.nbytes)
        begun = _Copy(block, stream)
        if ahead is not None:
            yield ahead.finished()
        ahead = begun
    if ahead is not None:
        yield ahead.finished()


def host_memory(nbytes: int, *, pinned: bool) -> torch.Tensor:
    """Bytes for what is on its way to a tensor; pinned, it can be copied to CUDA without another copy."""
    return torch.empty(nbytes, dtype=torch.uint8, pin_memory=pinned)


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


class _Copy:
    """A copy of one block to host memory; from CUDA it may still be under way."""

    def __init__(self, block: torch.Tensor, stream: torch.cuda.Stream | None) -> None:
        self._copy = torch.empty(block.shape, dtype=block.dtype, pin_memory=stream is not None)
        self._event: torch.cuda.Event | None = None
        if stream is None:
            self._copy.copy_(block)
            return
        with torch.cuda.stream(stream):
            self._copy.copy_(block, non_blocking=True)
            self._event = stream.record_event()

    def finished(self) -> torch.Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._copy
