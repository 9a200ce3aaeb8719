"""`DCPOptimizedS3Reader`: the items of a load plan, in order, from as few streams as the gaps allow.

Which ranges share a stream is decided by `group_ranges`, purely. The reader then holds one item at a time, in
the chunks in which it came.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from aiockpt.model import MiB
from aiockpt.s3reader.chunks import ChunkBuffer, ChunkStream
from aiockpt.s3reader.s3reader import ChunkedS3Reader, GetObjectInfo, GetStreamCallable

#: Bytes: the drop-in contract's default.
DEFAULT_MAX_GAP_SIZE = 32 * MiB

FIND_ITEM_ERROR_PREFIX = "DCPOptimizedS3Reader only supports sequentially accessing provided ranges: "

FALLBACK_GUIDANCE = (
    "The DCP-optimized reader serves the items of one torch.distributed.checkpoint load plan in order. "
    "Code that reads checkpoint files in another way should choose the generic reader, which goes anywhere: "
    "S3StorageReader(region, path, reader_constructor=S3ReaderConstructor.default())"
)


@dataclass(frozen=True, slots=True)
class ItemRange:
    """Bytes ``[start, end)`` of an object that hold one item of a load plan."""

    start: int
    end: int

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@dataclass(frozen=True, slots=True)
class RangeGroup:
    """Items near each other, and the bytes ``[start, end)`` of the one stream that serves them."""

    start: int
    end: int
    item_ranges: list[ItemRange]


def check_max_gap_size(max_gap_size: float) -> None:
    """Raise TypeError or ValueError unless ``max_gap_size`` is a number of bytes, 0 to infinity."""
    if not isinstance(max_gap_size, int | float):
        raise TypeError(f"max_gap_size must be int or float, got {type(max_gap_size).__name__}")
    if not max_gap_size >= 0:
        raise ValueError(f"max_gap_size must be non-negative, got {max_gap_size}")


def group_ranges(item_ranges: Iterable[ItemRange], max_gap_size: float) -> list[RangeGroup]:
    """Put ranges with at most ``max_gap_size`` bytes between them into one group; leave out empty ranges.

    Raises:
        ValueError: only empty ranges, or one that is negative, reversed, unsorted or overlaps the one before.
    """
    groups: list[list[ItemRange]] = []
    for item in _checked(item_ranges):
        if groups and item.start - groups[-1][-1].end <= max_gap_size:
            groups[-1].append(item)
        else:
            groups.append([item])
    if not groups:
        raise ValueError("No non-empty ranges to read: every given range has length 0")
    return [RangeGroup(items[0].start, items[-1].end, items) for items in groups]


def _checked(item_ranges: Iterable[ItemRange]) -> Iterator[ItemRange]:
    previous: ItemRange | None = None
    for item in item_ranges:
        if item.start == item.end:
            continue
        if not 0 <= item.start < item.end:
            raise ValueError(f"Invalid range: {item}")
        if previous is not None and item.start < previous.start:
            raise ValueError(f"Unsorted ranges: {previous} and {item}")
        if previous is not None and item.start < previous.end:
            raise ValueError(f"Overlapping ranges: {previous} and {item}")
        yield item
        previous = item


def _contains(item: ItemRange, start: int, end: int) -> bool:
    return item.start <= start and end <= item.end


class DCPOptimizedS3Reader(ChunkedS3Reader):
    """Reads the given items in order: anywhere within an item, forward to the next, never back to an earlier.

    An item is received whole when any of it is first asked for, and dropped when the next one is. A group's
    stream is opened with its first item; after a failure, a new one is opened at the item that failed. A seek
    does no I/O and refuses negative positions only; the read after it refuses what may not be reached.

    Args:
        bucket: not empty.
        key: not empty.
        item_ranges: what will be read, sorted by start, without overlaps.
        get_object_info: not called: the ranges say what there is.
        get_stream: called with positional ``start`` and ``end``.
        max_gap_size: most bytes between two items to be received in vain to spare a stream; may be infinite.

    Raises:
        ValueError: no bucket, key or range, or ranges that make no sense; a negative ``max_gap_size``.
        TypeError: ``max_gap_size`` is not a number.
    """

    _stream: ChunkStream | None = None

    def __init__(
        self,
        bucket: str,
        key: str,
        item_ranges: Sequence[ItemRange],
        get_object_info: GetObjectInfo,
        get_stream: GetStreamCallable,
        max_gap_size: float = DEFAULT_MAX_GAP_SIZE,
    ) -> None:
        super().__init__(bucket, key, get_object_info)
        if not key:
            raise ValueError("Key should be specified")
        if not item_ranges:
            raise ValueError("item_ranges must be a non-empty List[ItemRange] object")
        check_max_gap_size(max_gap_size)
        groups = group_ranges(item_ranges, max_gap_size)
        self._get_stream = get_stream
        self._items = [item for group in groups for item in group.item_ranges]
        self._stream_ends = [group.end for group in groups for _ in group.item_ranges]
        self._stream_end = 0
        self._index = 0
        self._loaded: ChunkBuffer | None = None

    def read(self, size: int | None = None) -> bytes:
        """Read exactly ``size`` bytes of one item.

        Raises:
            ValueError: None or negative, or bytes that are not in the current or the next item.
            TypeError: not an integer.
        """
        self._check_open()
        if size is None or (isinstance(size, int) and size < 0):
            raise ValueError(f"Size must not be {size}: there is no reading to the end.\n{FALLBACK_GUIDANCE}")
        return super().read(size)

    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        return self._item_holding(start, end).pieces(start, end) if start < end else iter(())

    def _peek_end(self, start: int, end: int) -> int:
        return min(end, self._item_holding(start, start + 1).end)

    def _origin(self, whence: int) -> int:
        if whence == io.SEEK_END:
            raise io.UnsupportedOperation(f"SEEK_END is not supported.\n{FALLBACK_GUIDANCE}")
        return super()._origin(whence)

    def _release(self) -> None:
        self._drop_stream()
        self._loaded = None

    def _item_holding(self, start: int, end: int) -> ChunkBuffer:
        """The item with the bytes ``[start, end)``, received if it has not been yet."""
        index = self._find(start, end)
        if self._loaded is None or index != self._index:
            self._loaded = None  # frees the item before, so that two never take memory at once
            self._index = index
            self._loaded = self._receive(index)
        return self._loaded

    def _find(self, start: int, end: int) -> int:
        """Index of the item with the bytes ``[start, end)``: the current one, or once loaded, the next."""
        current = self._items[self._index]
        if _contains(current, start, end):
            return self._index
        where = f"current item {current}"
        if self._loaded is not None and start >= current.end:
            if self._index + 1 == len(self._items):
                where = f"last item with range {current}"
            else:
                following = self._items[self._index + 1]
                if _contains(following, start, end):
                    return self._index + 1
                where += f" nor the next item {following}"
        raise ValueError(f"{FIND_ITEM_ERROR_PREFIX}Range {start}-{end} not contained in {where}.\n{FALLBACK_GUIDANCE}")

    def _receive(self, index: int) -> ChunkBuffer:
        item, stream_end = self._items[index], self._stream_ends[index]
        try:
            stream = self._stream_before(item, stream_end)
            for _ in stream.take(item.start, f"before reaching item {item}"):
                pass  # the gap
            buffer = ChunkBuffer(item.start, stream.take(item.end, f"while reading item {item}"))
            if item.end == stream_end:
                stream.finish()
        except BaseException:
            self._drop_stream()
            raise
        return buffer

    def _stream_before(self, item: ItemRange, end: int) -> ChunkStream:
        """The open stream if it is that of the item's group, which ends at ``end``; else a new one."""
        if self._stream is None or self._stream_end != end:
            self._drop_stream()
            self._stream = ChunkStream(self._get_stream(item.start, end), item.start)
            self._stream_end = end
        return self._stream

    def _drop_stream(self) -> None:
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.close()
