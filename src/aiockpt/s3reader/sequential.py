"""`SequentialS3Reader`: one stream of the whole object, which is kept for going back.

Right for objects that are read through, and for every access pattern when the object fits into memory.
"""

from __future__ import annotations

from collections.abc import Iterator

from aiockpt.s3reader.chunks import ChunkBuffer, ChunkStream, StreamExhausted
from aiockpt.s3reader.s3reader import ChunkedS3Reader, GetObjectInfo, GetStreamCallable


class SequentialS3Reader(ChunkedS3Reader):
    """Reads an object in one stream, from its start, and keeps what has come.

    Memory: all chunks up to the furthest byte read or sought, as they came. A seek forward reads up to there,
    unless the size is known: a seek from the end asks for it, and needs no stream. When a stream breaks, its
    error is raised, and the next read goes on there with a new stream.

    Args:
        bucket: not empty.
        key: the object's key.
        get_object_info: called once, at the first seek from the end, if the end has not been reached by then.
        get_stream: called without arguments; to go on at byte n, with n.

    Raises:
        ValueError: no bucket.
    """

    _stream: ChunkStream | None = None

    def __init__(self, bucket: str, key: str, get_object_info: GetObjectInfo, get_stream: GetStreamCallable) -> None:
        super().__init__(bucket, key, get_object_info)
        self._get_stream = get_stream
        self._kept = ChunkBuffer(0)

    def prefetch(self) -> None:
        """Open the stream, so that bytes are on their way, without reading any."""
        self._check_open()
        self._opened()

    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        while start < end and self._fetch_past(start):
            for piece in self._kept.pieces(start, end):
                start += piece.nbytes
                yield piece

    def _reachable(self, target: int) -> int:
        if self._known_size is None and target > self._kept.end:
            self._fetch_past(target - 1)
        return min(target, self._kept.end if self._known_size is None else self._known_size)

    def _release(self) -> None:
        self._drop_stream()
        self._kept = ChunkBuffer(0)

    def _fetch_past(self, position: int) -> bool:
        """Receive until the byte at ``position`` is kept; False if the object ends before it."""
        while self._kept.end <= position:
            if self._known_size is not None and position >= self._known_size:
                return False
            self._receive()
        return True

    def _receive(self) -> None:
        """Keep one more chunk; with the last one, or when there is none, the size is settled."""
        try:
            stream = self._opened()
            chunk = stream.next_chunk()
            if chunk is not None:
                self._kept.append(chunk)
            if chunk is None or self._kept.end == self._known_size:
                self._check_complete()
                stream.finish()
                self._known_size = self._kept.end
        except BaseException:
            self._drop_stream()  # an iterator that has raised would end quietly when asked again
            raise

    def _check_complete(self) -> None:
        if self._known_size is not None and self._kept.end < self._known_size:
            raise StreamExhausted(f"S3 stream exhausted at position {self._kept.end} of {self._known_size}")

    def _opened(self) -> ChunkStream:
        if self._stream is None:
            reached = self._kept.end
            self._stream = ChunkStream(self._get_stream(reached) if reached else self._get_stream(), reached)
        return self._stream

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
