"""Where a slice of a stored row-major tensor lies, as runs of bytes. Pure.

A slice of a chunk is ``runs`` stretches of equal length at equal distances when all its cut dimensions but one are
trivial; in general the distances vary, so runs are given by their offsets.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class SliceRuns:
    """A slice of a row-major array, as byte runs in order; laid end to end they are the slice, row-major.

    Attributes:
        run_bytes: length of every run.
        count: how many there are.
        shape: of the whole array. outer: how many leading dimensions choose runs.
        starts, lengths: of the slice, per dimension.
        itemsize: bytes of an element.
    """

    run_bytes: int
    count: int
    shape: tuple[int, ...]
    outer: int
    starts: tuple[int, ...]
    lengths: tuple[int, ...]
    itemsize: int

    @property
    def nbytes(self) -> int:
        """Bytes of the slice."""
        return self.run_bytes * self.count

    @property
    def is_whole(self) -> bool:
        """Whether the slice is the array."""
        return self.lengths == self.shape

    def offsets(self) -> Iterator[int]:
        """The byte offset of each run in the array, ascending."""
        strides = byte_strides(self.shape, self.itemsize)
        inner = sum(s * d for s, d in zip(self.starts[self.outer :], strides[self.outer :], strict=True))
        steps = [
            range(start * stride, (start + length) * stride, stride)
            for start, length, stride in zip(self.starts, self.lengths, strides, strict=True)
        ][: self.outer]
        for outer in itertools.product(*steps):
            yield inner + sum(outer)

    @property
    def gap_bytes(self) -> int:
        """The smallest distance between two neighbouring runs; 0 if there is only one."""
        if self.count < 2:
            return 0
        first, second = itertools.islice(self.offsets(), 2)
        return second - first - self.run_bytes


def byte_strides(shape: Sequence[int], itemsize: int) -> tuple[int, ...]:
    """Distance in bytes between neighbours, per dimension, of a row-major array."""
    strides = [itemsize] * len(shape)
    for dim in range(len(shape) - 2, -1, -1):
        strides[dim] = strides[dim + 1] * shape[dim + 1]
    return tuple(strides)


def slice_runs(shape: Sequence[int], starts: Sequence[int], lengths: Sequence[int], itemsize: int) -> SliceRuns:
    """The runs of the slice ``[start, start + length)`` in every dimension of a row-major array.

    Raises:
        ValueError: the slice reaches out of the array.
    """
    shape, starts, lengths = tuple(shape), tuple(starts), tuple(lengths)
    if not len(shape) == len(starts) == len(lengths):
        raise ValueError(f"a slice {starts}+{lengths} has other dimensions than an array of shape {shape}")
    if any(s < 0 or n < 0 or s + n > d for d, s, n in zip(shape, starts, lengths, strict=True)):
        raise ValueError(f"the slice {starts}+{lengths} reaches out of an array of shape {shape}")
    inner = len(shape)  # dimensions from here on are taken whole
    while inner and lengths[inner - 1] == shape[inner - 1]:
        inner -= 1
    outer = max(0, inner - 1)  # the dimension at outer is cut, and still one stretch
    run = math.prod(lengths[outer:]) * itemsize
    count = math.prod(lengths[:outer]) if run else 0
    return SliceRuns(run, count, shape, outer, starts, lengths, itemsize)
