"""Staging: tensors that bytes cannot leave from, or land in, directly go through host memory, in blocks.

How much may be staged at once is the callers' business, and the byte budget's.
"""

from __future__ import annotations

import mmap
import weakref
from collections.abc import Callable, Iterator

import torch

from aiockpt.model import KiB

#: Blocks below this come from the heap.
SMALLEST_SLAB_BYTES = 256 * KiB


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
        rows = rows and -(-tensor.shape[0] // -(-tensor.shape[0] // rows))  # of about equal size
        for part in torch.split(tensor, max(1, rows)):
            if rows:
                yield part
            else:
                yield from blocks(part[0], block_bytes)


def staged_blocks(
    tensor: torch.Tensor, block_bytes: int, reserve: Callable[[int], None], ring: Ring
) -> Iterator[torch.Tensor]:
    """Contiguous host copies of a tensor's blocks, in order; ``reserve`` is called with ``slab_bytes`` of each before.

    Their memory is the ring's, and goes back to it when nobody refers to a copy any more; views do not keep it.

    From CUDA the copies go to pinned memory on a stream of their own, behind what the current stream has queued, and
    the next one is under way while the caller works with this one. Pinned memory comes from torch's caching host
    allocator, which reuses it: the ring is as large as what ``reserve`` lets through.
    """
    stream = _side_stream(tensor.device) if tensor.is_cuda else None
    ahead: _Copy | None = None
    for block in blocks(tensor, block_bytes):
        reserve(slab_bytes(block.nbytes))
        begun = _Copy(block, stream, ring)
        if ahead is not None:
            yield ahead.finished()
        ahead = begun
    if ahead is not None:
        yield ahead.finished()


def slab_bytes(nbytes: int) -> int:
    """What a ``Ring`` takes for a block of ``nbytes``: the next power of two, as torch does for pinned memory."""
    return nbytes if nbytes < SMALLEST_SLAB_BYTES else 1 << (nbytes - 1).bit_length()


class Ring:
    """Memory for the blocks of one load or save, used again and again. One thread takes, any gives back.

    It holds no more at once than was taken at once. From the heap, where blocks of many sizes come and go, a load that
    staged 48 MiB kept twice as much; and pages that are new for each block have to be cleared.
    """

    def __init__(self) -> None:
        self._free: list[torch.Tensor] = []

    @property
    def free_bytes(self) -> int:
        """What it holds that nobody uses."""
        return sum(slab.nbytes for slab in self._free)

    def take(self, nbytes: int, *, pinned: bool = False) -> torch.Tensor:
        """``slab_bytes(nbytes)`` bytes; pinned, they can be copied to CUDA without another copy."""
        size = slab_bytes(nbytes)
        if pinned or size < SMALLEST_SLAB_BYTES:
            return torch.empty(size, dtype=torch.uint8, pin_memory=pinned)
        while self._free:
            slab = self._free.pop()
            if slab.nbytes == size:
                return slab  # those of other sizes go back to the system
        mapped = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not shared with a forked child
        return torch.frombuffer(mapped, dtype=torch.uint8)

    def give(self, slab: torch.Tensor) -> None:
        """What was taken, not pinned, and is used by nobody any more."""
        if slab.nbytes >= SMALLEST_SLAB_BYTES:
            self._free.append(slab)


def _side_stream(device: torch.device) -> torch.cuda.Stream:
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    return stream


class _Copy:
    """A copy of one block to host memory; from CUDA it may still be under way."""

    def __init__(self, block: torch.Tensor, stream: torch.cuda.Stream | None, ring: Ring) -> None:
        slab = ring.take(block.nbytes, pinned=stream is not None)
        self._copy = slab[: block.nbytes].view(block.dtype).view(block.shape)
        self._event: torch.cuda.Event | None = None
        if stream is None:
            weakref.finalize(self._copy, ring.give, slab).atexit = False
            self._copy.copy_(block)
            return
        with torch.cuda.stream(stream):
            self._copy.copy_(block, non_blocking=True)
            self._event = stream.record_event()

    def finished(self) -> torch.Tensor:
        if self._event is not None:
            self._event.synchronize()
        return self._copy
