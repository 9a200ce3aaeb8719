"""Bodies as lists of buffers: what is stored, received and sent, never joined. Pure, no I/O.

A ``Content`` is an immutable run of bytes held in several pieces of memory. Ranges of it are lists of slices,
and a multipart object is the concatenation of its parts' pieces, so bytes are where they landed until they
are sent.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from zlib_ng import zlib_ng


@dataclass(frozen=True, slots=True)
class Content:
    """Some bytes, and their CRC32.

    Attributes:
        pieces: the bytes, in order.
        size: how many there are.
        crc32: of all of them.
        owners: whatever must live as long as the pieces are used (leases of memory, files' maps).
    """

    pieces: tuple[memoryview, ...] = ()
    size: int = 0
    crc32: int = 0
    owners: tuple[object, ...] = ()

    @classmethod
    def of(cls, data: bytes) -> Content:
        """The content that is ``data``."""
        return cls((memoryview(data),) if data else (), len(data), crc32([data]))

    @classmethod
    def concat(cls, contents: Iterable[Content]) -> Content:
        """All of ``contents`` one after the other, in their own memory."""
        whole = list(contents)
        size = checksum = 0
        for content in whole:
            checksum = zlib_ng.crc32_combine(checksum, content.crc32, content.size)
            size += content.size
        return cls(
            tuple(piece for content in whole for piece in content.pieces),
            size,
            checksum,
            tuple(owner for content in whole for owner in content.owners),
        )

    def cut(self, start: int, end: int) -> Content:
        """The bytes ``[start, end)`` as a content of its own; reads them once for their CRC32."""
        pieces = tuple(cut(self.pieces, start, end))
        return Content(pieces, end - start, crc32(pieces), self.owners)

    def to_bytes(self) -> bytes:
        """A copy in one piece, for documents and other small bodies."""
        return b"".join(self.pieces)


EMPTY = Content()


def crc32(pieces: Iterable[bytes | memoryview], start: int = 0) -> int:
    """CRC32 of the concatenated pieces; ``start`` is that of what comes before them."""
    for piece in pieces:
        start = zlib_ng.crc32(piece, start)
    return start


def cut(pieces: Sequence[memoryview], start: int, end: int) -> Iterator[memoryview]:
    """The slices of ``pieces`` that make up the bytes ``[start, end)`` of their concatenation."""
    position = 0
    for piece in pieces:
        if position >= end:
            return
        first, last = max(start - position, 0), min(end - position, len(piece))
        if first < last:
            yield piece[first:last]
        position += len(piece)


def with_flipped_bit(pieces: Sequence[memoryview], at_byte: int) -> list[memoryview]:
    """``pieces`` with the lowest bit of byte ``at_byte`` inverted: in a copy of that byte, not in place.

    Beyond the end nothing is flipped.
    """
    total = sum(map(len, pieces))
    hit = bytes(byte ^ 1 for part in cut(pieces, at_byte, at_byte + 1) for byte in part)
    return [*cut(pieces, 0, at_byte), memoryview(hit), *cut(pieces, at_byte + 1, total)]
