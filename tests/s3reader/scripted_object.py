"""An object whose streams come in scripted chunks, and which notes what was asked of it."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

from hypothesis import strategies as st

from aiockpt.model import ObjectInfo

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from aiockpt.s3reader.chunks import Chunk

#: Sizes of a stream's chunks, in turn; 0 is an empty chunk.
chunkings = st.lists(st.integers(0, 9), min_size=1, max_size=6).filter(any)

KINDS = (bytes, bytearray, memoryview)


class BrokenStream(Exception):
    """What a scripted stream raises."""


class ScriptedObject:
    """Bytes behind ``get_object_info`` and ``get_stream``.

    Attributes:
        infos: calls of ``get_object_info``.
        ranges: the arguments of each ``get_stream``, None where there was none.
        open_streams: streams that have been read from, but neither ended nor were closed.
        ended_streams: streams that have been read to their end.
        ends_at: streams end before this position, once: the next ones do not.
        breaks_at: streams raise there, once: the next ones do not.
    """

    def __init__(self, data: bytes, chunk_sizes: Sequence[int] = (7,), kinds: Sequence[type] = KINDS) -> None:
        self.data = data
        self.chunk_sizes = chunk_sizes
        self.kinds = kinds
        self.infos = 0
        self.ranges: list[tuple[int | None, int | None]] = []
        self.open_streams = 0
        self.ended_streams = 0
        self.ends_at: int | None = None
        self.breaks_at: int | None = None

    def get_object_info(self) -> ObjectInfo:
        self.infos += 1
        return ObjectInfo(len(self.data))

    def get_stream(self, start: int | None = None, end: int | None = None) -> Iterator[Chunk]:
        self.ranges.append((start, end))
        return self._stream(start or 0, len(self.data) if end is None else end)

    def _stream(self, start: int, end: int) -> Iterator[Chunk]:
        ends_at, self.ends_at = self.ends_at, None
        breaks_at, self.breaks_at = self.breaks_at, None
        stop = min(x for x in (end, len(self.data), ends_at, breaks_at) if x is not None)
        self.open_streams += 1
        try:
            for size, kind in zip(itertools.cycle(self.chunk_sizes), itertools.cycle(self.kinds), strict=False):
                chunk = self.data[start : min(start + size, stop)]
                start += len(chunk)
                yield kind(chunk)
                if start >= stop:
                    break
            if breaks_at is not None:
                raise BrokenStream
            self.ended_streams += 1
        finally:
            self.open_streams -= 1


def numbered(size: int) -> bytes:
    """Bytes that tell where they come from."""
    return bytes(position * 7 % 251 for position in range(size))
