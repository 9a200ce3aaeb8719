"""`RangedS3Reader`: a range request for what is asked, with a read-ahead buffer for small reads.

Right for reading parts of an object that is large.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator

from aiockpt.model import MiB
from aiockpt.s3reader.chunks import ChunkBuffer, ChunkStream
from aiockpt.s3reader.s3reader import ChunkedS3Reader, GetObjectInfo, GetStreamCallable

#: Bytes: the drop-in contract's default.
DEFAULT_BUFFER_SIZE = 8 * MiB


class RangedS3Reader(ChunkedS3Reader):
    """Opens a stream of just the bytes that a read needs.

    A read takes what the buffer has from its position on. If fewer than ``buffer_size`` bytes are still wanted,
    the buffer is filled anew from the first of them on; else they go to the caller directly, and the buffer
    stays as it is.

    Args:
        bucket: not empty.
        key: the object's key.
        get_object_info: called once, at the first read or seek.
        get_stream: called with positional ``start`` and ``end``.
        buffer_size: bytes; None means 8 MiB, 0 means no buffer.

    Raises:
        ValueError: no bucket.
        TypeError: ``buffer_size`` is not an integer.
    """

    def __init__(
        self,
        bucket: str,
        key: str,
        get_object_info: GetObjectInfo,
        get_stream: GetStreamCallable,
        buffer_size: int | None = None,
    ) -> None:
        super().__init__(bucket, key, get_object_info)
        self._get_stream = get_stream
        self._buffer_size = DEFAULT_BUFFER_SIZE if buffer_size is None else operator.index(buffer_size)
        self._buffer = ChunkBuffer(0)

    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        if start >= end:
            return
        end = min(end, self._size())
        for piece in self._buffer.pieces(start, end):
            start += piece.nbytes
            yield piece
        if 0 < end - start < self._buffer_size:
            ahead = min(start + self._buffer_size, self._size())
            self._buffer = ChunkBuffer(start, self._fetch(start, ahead))
            yield from self._buffer.pieces(start, end)
        elif start < end:
            yield from self._fetch(start, end)

    def _fetch(self, start: int, end: int) -> Iterator[memoryview]:
        stream = ChunkStream(self._get_stream(start, end), start)
        try:
            yield from stream.take(end, f"while reading {start}-{end}")
            stream.finish()
        finally:
            stream.close()

    def _reachable(self, target: int) -> int:
        return min(target, self._size())

    def _release(self) -> None:
        self._buffer = ChunkBuffer(0)
