"""How a slice of a stored row-major tensor is best fetched: as which stretches of bytes. Pure arithmetic.

A slice with gaps between its rows can be fetched row by row, or with the gaps and taken apart in memory. Fetching a
gap costs its bytes, not fetching it costs another request: a gap is worth fetching while it takes less time than a
request's first byte does, which on S3 is about 20 ms at 90 MB/s a connection, 1.8 MB. We stay below that, since with
many connections latencies overlap and bytes do not; and stretches of ``ALONE_BYTES`` pay for a request of their own.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from aiockpt.model import KiB, MiB

#: Widest gap within one tensor that is fetched and thrown away.
MAX_STRIDE_GAP_BYTES = 512 * KiB

#: Stretches of at least this size are fetched without the gap to the next one.
ALONE_BYTES = MiB


@dataclass(frozen=True, slots=True)
class Stretch:
    """Consecutive bytes of a stored tensor, and the part of the slice that lies in them.

    Attributes:
        select: index of that part in the slice: ints, then at most one ``slice``.
        start, end: bytes of the stored tensor.
        shape, strides: of the part; strides in bytes, as it lies in the stretch.
        dense: whether the stretch is the part and nothing else.
    """

    select: tuple[int | slice, ...]
    start: int
    end: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]
    dense: bool

    @property
    def nbytes(self) -> int:
        """Length of the stretch."""
        return self.end - self.start


def byte_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Distance in bytes between neighbours, per dimension, of a row-major array."""
    strides = [itemsize] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return tuple(strides)


def check_slice(shape: Sequence[int], starts: Sequence[int], lengths: Sequence[int]) -> None:
    """Refuse a slice that reaches out of the array.

    Raises:
        ValueError: it does, or it has other dimensions.
    """
    if not len(shape) == len(starts) == len(lengths):
        raise ValueError(f"a slice {tuple(starts)}+{tuple(lengths)} of an array of shape {tuple(shape)}")
    if any(s < 0 or n < 0 or s + n > d for d, s, n in zip(shape, starts, lengths, strict=True)):
        raise ValueError(f"the slice {tuple(starts)}+{tuple(lengths)} reaches out of the shape {tuple(shape)}")


def stretches(
    shape: Sequence[int],
    starts: Sequence[int],
    lengths: Sequence[int],
    itemsize: int,
    *,
    max_dense_bytes: int | None,
    max_sparse_bytes: int,
) -> Iterator[Stretch]:
    """The stretches that hold the slice ``[start, start + length)`` of every dimension, in ascending order.

    Args:
        shape: of the stored row-major array.
        starts: first index of the slice, per dimension.
        lengths: of the slice, per dimension; no slice without elements is asked for.
        itemsize: bytes of an element.
        max_dense_bytes: bound of a stretch without gaps; None: unbounded.
        max_sparse_bytes: bound of a stretch with gaps, which has to be staged in memory. A bound gives way to a
            single element.
    """
    strides = byte_strides(shape, itemsize)
    start = sum(s * d for s, d in zip(starts, strides, strict=True))
    yield from _cut((), start, tuple(lengths), strides, itemsize, max_dense_bytes, max_sparse_bytes)


def _cut(
    select: tuple[int, ...],
    start: int,
    lengths: tuple[int, ...],
    strides: tuple[int, ...],
    itemsize: int,
    max_dense: int | None,
    max_sparse: int,
) -> Iterator[Stretch]:
    span = _span(lengths, strides, itemsize)
    dense = span == math.prod(lengths) * itemsize
    limit = max_dense if dense else max_sparse
    if not lengths or ((limit is None or span <= limit) and not _rows_apart(lengths, strides, itemsize)):
        yield Stretch(select, start, start + span, lengths, strides, dense)
        return
    rows = 1 if _rows_apart(lengths, strides, itemsize) else max(1, (limit or span) // strides[0])
    for first in range(0, lengths[0], rows):
        count = min(rows, lengths[0] - first)
        at = start + first * strides[0]
        if count == 1:  # may be dense where several are not
            yield from _cut((*select, first), at, lengths[1:], strides[1:], itemsize, max_dense, max_sparse)
            continue
        part = (count, *lengths[1:])
        span = _span(part, strides, itemsize)
        yield Stretch(
            (*select, slice(first, first + count)),
            at,
            at + span,
            part,
            strides,
            dense,
        )


def _span(lengths: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> int:
    return itemsize + sum((n - 1) * s for n, s in zip(lengths, strides, strict=True))


def _rows_apart(lengths: tuple[int, ...], strides: tuple[int, ...], itemsize: int) -> bool:
    """Whether the rows of the first dimension are better fetched one by one."""
    if not lengths or lengths[0] == 1:
        return False
    row = _span(lengths[1:], strides[1:], itemsize)
    gap = strides[0] - row
    return gap > MAX_STRIDE_GAP_BYTES or (gap > 0 and row >= ALONE_BYTES)
