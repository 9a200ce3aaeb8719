"""Chunks as a stream brings them: cut, kept and handed out without copying.

One job: turn chunks of any sizes into the bytes ``[start, end)`` that a reader is asked for. It knows neither
S3 nor files. Positions are byte positions in the object. Views that leave this module share the memory of the
chunks, so a chunk must not change after its stream has yielded it.
"""

from __future__ import annotations

import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, TypeAlias

from aiockpt.errors import ShortRead

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

#: What a stream may yield; ``b""`` is allowed and means nothing.
Chunk: TypeAlias = bytes | bytearray | memoryview

_NOTHING = memoryview(b"")


class StreamExhausted(ShortRead, ValueError):
    """A stream ended before the bytes that it was opened for."""


class ChunkStream:
    """One stream and the position that it has reached. Not thread-safe.

    Attributes:
        position: where the next byte to be handed out lies in the object.
    """

    __slots__ = ("_chunks", "_rest", "position")

    def __init__(self, chunks: Iterable[Chunk], start: int) -> None:
        self._chunks = iter(chunks)
        self._rest = _NOTHING
        self.position = start

    def next_chunk(self) -> memoryview | None:
        """Hand out what is left of the current chunk, else the next one; None at the end of the stream."""
        view = self._rest or self._pull()
        self._rest = _NOTHING
        if view is not None:
            self.position += view.nbytes
        return view

    def take(self, end: int, purpose: str) -> Iterator[memoryview]:
        """Hand out what lies before ``end``.

        Raises:
            StreamExhausted: the stream ended sooner; the message ends with ``purpose``.
        """
        while self.position < end:
            view = self.next_chunk()
            if view is None:
                raise StreamExhausted(f"S3 stream exhausted at position {self.position} {purpose}")
            if (excess := self.position - end) > 0:
                view, self._rest = view[:-excess], view[-excess:]
                self.position = end
            yield view

    def finish(self) -> None:
        """Close at the expected end: first let the stream end by itself, as it may have bytes to verify."""
        self._pull()
        self.close()

    def close(self) -> None:
        """Let go of the stream, and close it if it can be closed."""
        chunks, self._chunks, self._rest = self._chunks, iter(()), _NOTHING
        close = getattr(chunks, "close", None)
        if close is not None:
            close()

    def _pull(self) -> memoryview | None:
        for chunk in self._chunks:
            view = memoryview(chunk).cast("B")
            if view.nbytes:
                return view
        return None


class ChunkBuffer:
    """Consecutive bytes of the object, in the chunks in which they came. Grows at its end only, never copies.

    Attributes:
        start: position of the first byte.
    """

    __slots__ = ("_ends", "_views", "start")

    def __init__(self, start: int, views: Iterable[memoryview] = ()) -> None:
        self.start = start
        self._views: list[memoryview] = []
        self._ends: list[int] = []
        for view in views:
            self.append(view)

    @property
    def end(self) -> int:
        """Position after the last byte."""
        return self._ends[-1] if self._ends else self.start

    def append(self, view: memoryview) -> None:
        """Keep ``view``, whose bytes come right after those kept so far."""
        self._ends.append(self.end + view.nbytes)
        self._views.append(view)

    def pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Yield the kept bytes from ``start`` up to ``end``: none if ``start`` is not among them."""
        if start < self.start:
            return
        for index in range(bisect_right(self._ends, start), len(self._ends)):
            if start >= end:
                return
            view, view_end = self._views[index], self._ends[index]
            view_start = view_end - view.nbytes
            yield view[start - view_start : end - view_start]
            start = view_end


def joined(pieces: Iterable[memoryview]) -> bytes:
    """All pieces in one object: copied once, or not at all if the only piece is a whole bytes object.

    Pieces are let go as they are copied: a BytesIO grows in place and gives its bytes away uncopied. ``bytes.join``
    would hold all of them until the end (measured for 1 GiB in pieces of 1 MiB: 2 GiB, and three times as long).
    """
    pieces = iter(pieces)
    first = next(pieces, _NOTHING)
    second = next(pieces, None)
    if second is None:
        whole = first.obj
        return whole if type(whole) is bytes and len(whole) == first.nbytes else bytes(first)
    sink = io.BytesIO()
    sink.write(first)
    sink.write(second)
    del first, second
    for piece in pieces:
        sink.write(piece)
    return sink.getvalue()


def writable_view(target: WriteableBuffer) -> memoryview:
    """The bytes of ``target``, whatever its item type.

    Raises:
        TypeError: not a buffer, read-only, or not contiguous.
    """
    try:
        view = memoryview(target)
    except TypeError:
        view = None
    if view is None or view.readonly or not view.c_contiguous:
        raise TypeError(f"argument must be a writable bytes-like object, not {type(target).__name__}")
    return view.cast("B")
