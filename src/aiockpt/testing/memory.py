"""Memory that request bodies land in: fixed blocks that are used again, and the landing of one body.

Fresh pages are what costs most when bytes are received: faulting them in took 0.33 to 0.7 CPU seconds a GiB
on the machine where this was measured, the receiving itself 0.15. So blocks are kept for reuse when what they
held is gone, and a benchmark may have some faulted in before it starts. All blocks have one size, so that any
free one fits.
"""

from __future__ import annotations

import mmap
import sys
from collections import deque
from collections.abc import Iterable

from zlib_ng import zlib_ng

from aiockpt.model import KiB, MiB
from aiockpt.testing.content import Content

BLOCK_BYTES = 2 * MiB

#: The end of a body, where it is shorter than this, lands in a buffer of its own size: many small objects
#: must not take a block each.
SMALL_BYTES = 256 * KiB

_FLAGS = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_POPULATE", 0)  # populate: Linux

#: References to a block that nobody uses, while ``BlockPool.take`` looks at it: its variable and the call's
#: argument.
_IDLE_REFERENCES = 2


class BlockPool:
    """Blocks of ``BLOCK_BYTES``, handed out and taken back.

    A block that was given back may still be on its way out of a socket. Every view of a block holds a
    reference to it, so one that only the pool refers to is idle: that is looked at, rather than tracked,
    before it is used again.

    Args:
        reserve_bytes: memory to fault in at once.
    """

    def __init__(self, reserve_bytes: int = 0) -> None:
        blocks = -(-reserve_bytes // BLOCK_BYTES)
        self._retired = deque(mmap.mmap(-1, BLOCK_BYTES, flags=_FLAGS) for _ in range(blocks))

    def take(self) -> mmap.mmap:
        """A block that nobody else uses; what is in it is arbitrary."""
        for _ in range(len(self._retired)):
            block = self._retired.popleft()
            if sys.getrefcount(block) == _IDLE_REFERENCES:
                return block
            self._retired.append(block)
        return mmap.mmap(-1, BLOCK_BYTES, flags=_FLAGS)

    def retire(self, blocks: Iterable[mmap.mmap]) -> None:
        """Take blocks back. Views of them may still be in use; no new ones may be made."""
        self._retired.extend(blocks)


class _Lease:
    """Blocks taken for one body, given back when the last content that is made of them is gone."""

    def __init__(self, pool: BlockPool) -> None:
        self._pool = pool
        self._blocks: list[mmap.mmap] = []

    def take(self) -> mmap.mmap:
        block = self._pool.take()
        self._blocks.append(block)
        return block

    def __del__(self) -> None:
        self._pool.retire(self._blocks)


class Landing:
    """One body of known size on its way in. Its CRC32 is taken while the bytes are still in the cache.

    Attributes:
        size: bytes in the whole body.
        received: bytes that have landed.
    """

    def __init__(self, size: int, pool: BlockPool) -> None:
        self.size = size
        self.received = 0
        self._lease = _Lease(pool)
        self._pieces: list[memoryview] = []
        self._room = memoryview(b"")
        self._crc32 = 0

    def room(self, limit: int) -> memoryview:
        """Where the next bytes belong: at least one, at most ``limit``; the body must not be complete."""
        if not self._room:
            self._room = self._new_piece(min(self.size - self.received, BLOCK_BYTES))
            self._pieces.append(self._room)
        return self._room[:limit]

    def _new_piece(self, nbytes: int) -> memoryview:
        if nbytes < SMALL_BYTES:
            return memoryview(bytearray(nbytes))
        return memoryview(self._lease.take())[:nbytes]

    def advance(self, nbytes: int) -> None:
        """Note that ``nbytes`` have been put where ``room`` said."""
        self._crc32 = zlib_ng.crc32(self._room[:nbytes], self._crc32)
        self._room = self._room[nbytes:]
        self.received += nbytes

    def content(self) -> Content:
        """The complete body."""
        return Content(tuple(self._pieces), self.size, self._crc32, (self._lease,))
