"""The readers' common ground: the abstract `S3Reader`, and what all three readers of aiockpt do alike.

A reader turns two plain callables, "how large is the object" and "stream these bytes of it", into a binary,
read-only file object. It knows neither engine nor network, and making one does no I/O. No reader may be used
from two threads at once.
"""

from __future__ import annotations

import abc
import io
import operator
import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, BinaryIO, Protocol, TypeAlias

from aiockpt.s3reader.chunks import Chunk, joined, writable_view

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer

    class _BinaryFile(io.BufferedIOBase, BinaryIO):
        """To type checkers a reader is what ``torch.load`` wants, as every other binary file is."""

else:
    _BinaryFile = io.BufferedIOBase


class SizedObject(Protocol):
    """What a reader needs to know about its object."""

    @property
    def size(self) -> int:
        """Bytes in the object."""


GetObjectInfo: TypeAlias = Callable[[], SizedObject]


class GetStreamCallable(Protocol):
    """Opens a stream of an object's bytes."""

    def __call__(self, start: int | None = None, end: int | None = None, /) -> Iterable[Chunk]:
        """Chunks of ``[start, end)``, in any sizes; None stands for the object's own start or end.

        A chunk must not change once it has been yielded. If the iterator has a ``close``, the reader calls it
        as soon as it needs no more.
        """


class S3Reader(_BinaryFile, abc.ABC):
    """A binary, read-only, seekable file object over one S3 object."""

    @property
    @abc.abstractmethod
    def bucket(self) -> str:
        """Name of the bucket."""

    @property
    @abc.abstractmethod
    def key(self) -> str:
        """Key of the object."""

    @abc.abstractmethod
    def read(self, size: int | None = None) -> bytes:
        """Read up to ``size`` bytes; all that is left for None or a negative size."""

    @abc.abstractmethod
    def readinto(self, buf: WriteableBuffer) -> int:
        """Fill ``buf`` as far as there are bytes; returns how many."""

    @abc.abstractmethod
    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to ``offset`` bytes from where ``whence`` says; returns the new position."""

    @abc.abstractmethod
    def tell(self) -> int:
        """Position of the next byte to be read."""

    def readable(self) -> bool:
        """True."""
        return True

    def writable(self) -> bool:
        """False."""
        return False

    def seekable(self) -> bool:
        """True."""
        return True


class ChunkedS3Reader(S3Reader):
    """A file object over `_pieces`: what a subclass must say is which chunks hold the bytes ``[start, end)``.

    Every operation raises ValueError on a closed reader; one that fails leaves the position where it was.

    Raises:
        ValueError: no bucket.
    """

    def __init__(self, bucket: str, key: str, get_object_info: GetObjectInfo) -> None:
        if not bucket:
            raise ValueError("Bucket should be specified")
        self._bucket = bucket
        self._key = key
        self._get_object_info = get_object_info
        self._known_size: int | None = None
        self._position = 0

    @property
    def bucket(self) -> str:
        """Name of the bucket."""
        return self._bucket

    @property
    def key(self) -> str:
        """Key of the object."""
        return self._key

    def read(self, size: int | None = None) -> bytes:
        """Read ``size`` bytes, fewer only at the end; all that is left for None or a negative size.

        Raises:
            TypeError: ``size`` is neither None nor an integer.
        """
        self._check_open()
        count = sys.maxsize if size is None else operator.index(size)
        data = joined(self._pieces(self._position, self._position + count if count >= 0 else sys.maxsize))
        self._position += len(data)
        return data

    def readinto(self, buf: WriteableBuffer) -> int:
        """Fill ``buf``, whatever its item type; returns how many bytes, fewer than it holds only at the end.

        Each byte is copied once. What ``buf`` holds after a failure is undefined.

        Raises:
            TypeError: ``buf`` is not a writable, contiguous buffer.
        """
        self._check_open()
        filled = 0
        with writable_view(buf) as target:
            for piece in self._pieces(self._position, self._position + target.nbytes):
                target[filled : filled + piece.nbytes] = piece
                filled += piece.nbytes
        self._position += filled
        return filled

    def peek(self, size: int = 0, /) -> bytes:
        """Bytes from the position on, which stays: some ``size`` of them or more, none only at the end.

        With it, ``readline`` and unpickling ask for blocks instead of single bytes.
        """
        self._check_open()
        start = self._position
        return joined(self._pieces(start, self._peek_end(start, start + max(size, io.DEFAULT_BUFFER_SIZE))))

    def read1(self, size: int = -1, /) -> bytes:
        """Read up to ``size`` bytes; a convenient number of them for a negative size."""
        data = self.peek(size)
        if size >= 0:
            data = data[:size]
        self._position += len(data)
        return data

    def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
        """Move to ``offset`` bytes from the start, the position or the end; past the end means to the end.

        Raises:
            TypeError: not integers.
            ValueError: before the start, or an unknown ``whence``.
        """
        self._check_open()
        offset = operator.index(offset)
        target = self._origin(operator.index(whence)) + offset
        if target < 0:
            raise ValueError(f"negative seek value {target}")
        self._position = self._reachable(target)
        return self._position

    def tell(self) -> int:
        """Position of the next byte to be read."""
        self._check_open()
        return self._position

    def close(self) -> None:
        """Close the stream, if one is open, and forget the bytes. Closing again does nothing."""
        try:
            if not self.closed:
                self._release()
        finally:
            super().close()

    @abc.abstractmethod
    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        """Yield the bytes ``[start, end)``, as far as the object has them, lazily."""

    @abc.abstractmethod
    def _release(self) -> None:
        """Close streams and drop buffers. Also called when ``__init__`` did not complete."""

    def _reachable(self, target: int) -> int:
        """Where a seek to ``target`` ends."""
        return target

    def _peek_end(self, start: int, end: int) -> int:
        """How far, at most to ``end``, one may peek from ``start``."""
        del start
        return end

    def _origin(self, whence: int) -> int:
        match whence:
            case io.SEEK_SET:
                return 0
            case io.SEEK_CUR:
                return self._position
            case io.SEEK_END:
                return self._size()
            case _:
                raise ValueError(f"invalid whence {whence}")

    def _size(self) -> int:
        """Bytes in the object; asks once."""
        if self._known_size is None:
            self._known_size = self._get_object_info().size
        return self._known_size

    def _check_open(self) -> None:
        if self.closed:
            raise ValueError("I/O operation on closed file.")
