"""Proof of what is loaded: CRC32s of blocks of each stored item, kept beside its place in ``.metadata``.

An archive's own CRC32 proves a tensor only as a whole, and would prove another checkpoint's that lies in its place;
safetensors files have none. So a save notes the CRC32s of blocks of each tensor's elements (they come from the pass
that is made anyway; of small ones there is one block), and of all bytes of serialized objects and transformed items.
They are an attribute of the item's ``_StorageInfo``, which stock DCP neither looks at nor loses: the commit makes them
stand with the checkpoint, and no load makes a request for them. No I/O.

What a load proves: every byte. A slice that begins or ends within a block fetches the rest of that block, too; see
``blocks`` for where they begin.

A proof is packed as a byte of form, what the blocks' bounds follow from, and CRC32s, all little-endian. Form 2: from
the number of rows, in eight bytes; the CRC32s are running ones, of all bytes up to the end of each block. Form 1: they
are of one size, in four bytes, but for the last one; the CRC32s are of each alone. Forms 16 to 20 are that size's
logarithm, and nothing follows but such CRC32s. Written are form 2 for tensors, 16 for small ones, and 1 for what nobody
slices; any form is read for anything.
"""

from __future__ import annotations

import sys
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.filesystem import _StorageInfo

from aiockpt.crc import BlockCrcs, crc32_by_blocks, crcs_of_each, running_crcs
from aiockpt.dcp.blocks import block_bounds, largest_block_bytes
from aiockpt.errors import MetadataError
from aiockpt.model import ByteRange, KiB, MiB

#: The attribute of ``_StorageInfo``.
ATTRIBUTE = "aiockpt_crc32s"

#: What nobody slices has blocks of this size, which tell where damage is.
BLOCK_BYTES = 512 * KiB

#: No version has written larger ones.
MOST_BLOCK_BYTES = MiB

#: Flag in the first byte: the elements lie in row-major order. The rest of it is the form.
_ROW_MAJOR = 0x80
_SIZE_FOLLOWS = 1
_ROWS_FOLLOW = 2
_LOGARITHMS = range(16, 21)

#: Bytes before the CRC32s, by form.
_HEADER_BYTES = {_SIZE_FOLLOWS: 1 + 4, _ROWS_FOLLOW: 1 + 8, **dict.fromkeys(_LOGARITHMS, 1)}

#: What is no larger than this can be noted as one block, by a byte that is a logarithm and its CRC32.
MOST_WHOLE_BYTES = 1 << _LOGARITHMS[0]
_WHOLE = {row_major: bytes([_LOGARITHMS[0] | row_major * _ROW_MAJOR]) for row_major in (False, True)}


class ProofWriter(BlockCrcs):
    """Takes the CRC32s of the blocks of a tensor of ``nbytes`` bytes and that shape; None: of what nobody slices.

    Attributes:
        rows: how many the tensor has, one if it has no dimensions; None: of what nobody slices.
    """

    __slots__ = ("rows",)

    def __init__(self, nbytes: int | None, shape: Sequence[int] = ()) -> None:
        rows = shape[0] if shape else 1
        super().__init__(range(0, sys.maxsize, BLOCK_BYTES) if nbytes is None else block_bounds(nbytes, rows))
        self.rows = rows if nbytes is not None else None

    def packed(self, *, row_major: bool = True) -> bytes:
        """What is kept in ``.metadata``."""
        if self.rows is None:
            bounds = [*self.bounds[: len(self.running)], self._nbytes]
            form, follows, crcs = _SIZE_FOLLOWS, BLOCK_BYTES, crcs_of_each(self.running, bounds)
        else:
            form, follows, crcs = _ROWS_FOLLOW, self.rows, self.running
        header = bytes([form | row_major * _ROW_MAJOR]) + follows.to_bytes(_HEADER_BYTES[form] - 1, "little")
        return header + _swapped(array("I", crcs)).tobytes()


class KnownProof(ProofWriter):
    """A tensor's proof that has been taken before, of bytes that are added once more.

    Of these only what lies in blocks that are cut through is read.
    """

    __slots__ = ()

    def __init__(self, taken: ProofWriter) -> None:
        super().__init__(None)
        self.bounds, self.rows, self.running = taken.bounds, taken.rows, taken.running

    def add(self, view: memoryview) -> int:
        """Go on with *view*; returns its CRC32."""
        start = self._nbytes
        self._nbytes += len(view)
        return crc32_by_blocks(view, start, self.running, self.bounds)


def packed_whole(crc: int, *, row_major: bool = True) -> bytes:
    """What is kept in ``.metadata`` of up to ``MOST_WHOLE_BYTES`` bytes that are always fetched as a whole."""
    return _WHOLE[row_major] + crc.to_bytes(4, "little")


def is_packed_whole(packed: bytes, crc: int, nbytes: int) -> bool:
    """Whether this is what is kept of ``nbytes`` bytes of that CRC32, noted as one block."""
    whole = crc.to_bytes(4, "little")
    return nbytes <= MOST_WHOLE_BYTES and packed in (_WHOLE[True] + whole, _WHOLE[False] + whole)


def form_of(packed: bytes) -> bytes:
    """What a packed proof says beside the CRC32s: those of two forms cannot be compared."""
    return packed[: _header_nbytes(packed) or None]


def is_row_major(packed: bytes | None) -> bool | None:
    """Whether a proof's elements lie in row-major order; None without one, or with what is none."""
    return bool(packed[0] & _ROW_MAJOR) if isinstance(packed, bytes) and packed else None


def attach(place: _StorageInfo, packed: bytes | None) -> _StorageInfo:
    """Note an item's proof at its place; returns the place."""
    if packed is not None:
        setattr(place, ATTRIBUTE, packed)
    return place


@dataclass(frozen=True, slots=True)
class Proof:
    """Running CRC32s at the bounds of consecutive blocks.

    Attributes:
        bounds: where each block begins, and where the last one ends.
        running: CRC32s of all bytes up to the end of each block.
        row_major: whether what is proven are elements in row-major order.
    """

    bounds: Sequence[int]
    running: Sequence[int]
    row_major: bool

    @classmethod
    def unpack(cls, packed: bytes, nbytes: int) -> Proof:
        """From ``.metadata``.

        Raises:
            MetadataError: it does not fit ``nbytes``.
        """
        header_nbytes = _header_nbytes(packed)
        bounds = _bounds(packed, header_nbytes, nbytes) if header_nbytes else None
        if bounds is None or len(packed) - header_nbytes != 4 * (len(bounds) - 1):
            raise MetadataError(f"the CRC32s in the metadata are not those of {nbytes} bytes")
        crcs = array("I")
        crcs.frombytes(packed[header_nbytes:])
        _swapped(crcs)
        is_running = packed[0] & ~_ROW_MAJOR == _ROWS_FOLLOW
        return cls(bounds, crcs if is_running else running_crcs(crcs, bounds), bool(packed[0] & _ROW_MAJOR))

    def block(self, number: int) -> ByteRange:
        """The bytes of a block."""
        return ByteRange(self.bounds[number], self.bounds[number + 1])

    def before(self, number: int) -> int:
        """The CRC32 of all bytes before a block."""
        return self.running[number - 1] if number else 0

    def crc32(self) -> int:
        """Of all bytes."""
        return self.before(len(self.running))

    def edges(self, spans: Sequence[ByteRange]) -> list[ByteRange]:
        """What else to fetch for all blocks to be whole, ascending.

        Args:
            spans: what is fetched, ascending, without overlap.
        """
        edges: list[ByteRange] = []
        done = 0  # bytes before are fetched
        for span, after in zip(spans, [*(span.start for span in spans[1:]), self.bounds[-1]], strict=False):
            before = ByteRange(max(done, self.bounds[bisect_right(self.bounds, span.start) - 1]), span.start)
            behind = ByteRange(span.end, min(after, self.bounds[bisect_left(self.bounds, span.end)]))
            edges += [edge for edge in (before, behind) if len(edge)]
            done = behind.end
        return edges


def _header_nbytes(packed: object) -> int:
    """Where a packed proof's CRC32s begin; 0 if it is none."""
    return _HEADER_BYTES.get(packed[0] & ~_ROW_MAJOR, 0) if isinstance(packed, bytes) and packed else 0


def _bounds(packed: bytes, header_nbytes: int, nbytes: int) -> Sequence[int] | None:
    """The bounds of the blocks of ``nbytes`` bytes; None if there cannot be so many CRC32s.

    Whoever wrote the metadata may have them say anything: no more bounds are made than there are CRC32s, nearly.
    """
    form, follows = packed[0] & ~_ROW_MAJOR, int.from_bytes(packed[1:header_nbytes], "little")
    count = (len(packed) - header_nbytes) // 4
    if form == _ROWS_FOLLOW:
        is_enough = 0 <= nbytes <= count * largest_block_bytes(nbytes)
        return block_bounds(nbytes, follows) if is_enough and (follows <= nbytes or not nbytes) else None
    size = follows if form == _SIZE_FOLLOWS else 1 << form
    fits = 0 < size <= MOST_BLOCK_BYTES and nbytes >= 0 and count == -(-nbytes // size)
    return [*range(0, nbytes, size), nbytes] if fits else None


def _swapped(crcs: array[int]) -> array[int]:
    """Between this host's order of bytes and the little-endian one."""
    if sys.byteorder == "big":
        crcs.byteswap()
    return crcs
