"""Which objects a rank's items are written to. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.planner import WriteItem, WriteItemType

from aiockpt.model import KiB

#: What an archive adds to a tensor, for estimates: 1,513-1,577 bytes were seen (torch 2.13).
ARCHIVE_OVERHEAD_BYTES = 2 * KiB

#: Items above this part of a file are dealt out one by one, the largest first; those below are too small to make files
#: uneven, and stay beside their neighbours.
LARGE_FRACTION = 1 / 64


@dataclass(frozen=True, slots=True)
class FilePlan:
    """One object to write: its path below the checkpoint, and its items."""

    path: str
    items: Sequence[WriteItem]

    def estimated_nbytes(self) -> int:
        """About how large it will be; 0 stands for what is not known (serialized objects)."""
        return sum(map(_stored_nbytes, self.items))


def item_nbytes(item: WriteItem) -> int:
    """Bytes of an item's elements; 0 for a serialized object, whose size is not known."""
    if item.tensor_data is None:
        return 0
    return math.prod(item.tensor_data.chunk.sizes) * item.tensor_data.properties.dtype.itemsize


def _stored_nbytes(item: WriteItem) -> int:
    return item_nbytes(item) + ARCHIVE_OVERHEAD_BYTES


def split(items: Sequence[WriteItem], count: int) -> list[list[WriteItem]]:
    """Divide items among at least one file, ``count``, of about equal sizes; some may stay empty, all keep their order.

    Neighbours stay together as far as that goes: who loads part of a model wants neighbours, and thousands of tensors
    take up to a fifth less CPU time in the order in which they lie in memory.
    """
    if count == 1:
        return [list(items)]
    sizes = [0 if item.type is WriteItemType.BYTE_IO else _stored_nbytes(item) for item in items]
    share = sum(sizes) / count
    filled = [0] * count
    file_of = [-1] * len(items)
    serialized = [number for number, item in enumerate(items) if item.type is WriteItemType.BYTE_IO]
    for turn, number in enumerate(serialized):
        file_of[number] = turn % count
    large = [number for number, nbytes in enumerate(sizes) if nbytes > share * LARGE_FRACTION]
    for number in sorted(large, key=sizes.__getitem__, reverse=True):
        file_of[number] = min(range(count), key=filled.__getitem__)
        filled[file_of[number]] += sizes[number]
    current = 0
    for number, nbytes in enumerate(sizes):
        if file_of[number] < 0:
            while filled[current] >= share and current < count - 1:
                current += 1
            file_of[number] = current
            filled[current] += nbytes
    files: list[list[WriteItem]] = [[] for _ in range(count)]
    for item, file in zip(items, file_of, strict=True):
        files[file].append(item)
    return files
