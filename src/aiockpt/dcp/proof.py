"""Proof of what is loaded: CRC32s of blocks of each stored item, kept beside its place in ``.metadata``.

An archive's own CRC32 proves a tensor only as a whole, and safetensors files have none. So a save notes the CRC32s of
blocks of each larger tensor's elements (they come from the pass that is made anyway), and of all bytes of serialized
objects and transformed items. They are an attribute of the item's ``_StorageInfo``, which stock DCP neither looks at
nor loses: the commit makes them stand with the checkpoint, and no load makes a request for them. No I/O.

What a load proves: every block that it fetches whole. A slice that begins or ends within a block fetches the rest of it
too where that is cheap (``EDGE_FRACTION``); elsewhere the beginning and end of the slice, less than a block each, stay
unproven.
"""

from __future__ import annotations

import sys
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from torch.distributed.checkpoint.filesystem import _StorageInfo

from aiockpt.crc import BlockCrcs, crc32, crc32_combine
from aiockpt.errors import MetadataError
from aiockpt.model import ByteRange, KiB, MiB

#: The attribute of ``_StorageInfo``.
ATTRIBUTE = "aiockpt_crc32s"

#: Blocks are a 32nd of a tensor, within these bounds: 128 bytes of CRC32s for what is up to 32 MiB large, about what
#: its place takes in ``.metadata``; then 4 bytes for each MiB, 4 MB for a terabyte. Blocks of 256 KiB make the pass 3 %
#: slower than one stretch, of 64 KiB 11 % (zlib-ng, AVX-512).
SMALLEST_BLOCK_BYTES = 64 * KiB
LARGEST_BLOCK_BYTES = MiB
BLOCKS_OF_SMALLER = 32

#: A slice's edge is rounded out to its block if that costs at most this part of the slice: always from 64 MiB on, and
#: no more than 1/32 for both edges together.
EDGE_FRACTION = 1 / 64

#: Flag in the first byte, beside the block size's logarithm: the elements lie in row-major order.
_ROW_MAJOR = 0x80


def block_bytes(nbytes: int) -> int:
    """The size of the blocks of what is ``nbytes`` large: a power of two."""
    share = 1 << max(0, -(-nbytes // BLOCKS_OF_SMALLER) - 1).bit_length()
    return min(LARGEST_BLOCK_BYTES, max(SMALLEST_BLOCK_BYTES, share))


class ProofWriter(BlockCrcs):
    """Takes the CRC32s of blocks of ``nbytes`` bytes; ``nbytes`` None: not known yet."""

    __slots__ = ("_size_log2",)

    def __init__(self, nbytes: int | None) -> None:
        size = LARGEST_BLOCK_BYTES if nbytes is None else block_bytes(nbytes)
        super().__init__(size)
        self._size_log2 = size.bit_length() - 1

    def packed(self, *, row_major: bool = True) -> bytes:
        """What is kept in ``.metadata``: a byte of form, then the CRC32s, little-endian."""
        return bytes([self._size_log2 | (_ROW_MAJOR if row_major else 0)]) + _swapped(array("I", self.crcs)).tobytes()


def is_row_major(packed: bytes | None) -> bool | None:
    """Whether a proof's elements lie in row-major order; None without one."""
    return bool(packed[0] & _ROW_MAJOR) if packed else None


def attach(place: _StorageInfo, packed: bytes | None) -> _StorageInfo:
    """Note an item's proof at its place; returns the place."""
    if packed is not None:
        setattr(place, ATTRIBUTE, packed)
    return place


@dataclass(frozen=True, slots=True)
class Proof:
    """CRC32s of consecutive blocks.

    Attributes:
        block_bytes: the size of all blocks but the last.
        nbytes: of all of them.
        crcs: of each.
        row_major: whether what is proven are elements in row-major order.
    """

    block_bytes: int
    nbytes: int
    crcs: Sequence[int]
    row_major: bool

    @classmethod
    def unpack(cls, packed: bytes, nbytes: int) -> Proof:
        """From ``.metadata``.

        Raises:
            MetadataError: it does not fit ``nbytes``.
        """
        form = packed[0] if isinstance(packed, bytes) and packed else 0
        size = 1 << (form & ~_ROW_MAJOR)
        if not SMALLEST_BLOCK_BYTES <= size <= LARGEST_BLOCK_BYTES or len(packed) - 1 != 4 * -(-nbytes // size):
            raise MetadataError(f"the CRC32s in the metadata are not those of {nbytes} bytes")
        crcs = array("I")
        crcs.frombytes(packed[1:])
        return cls(size, nbytes, _swapped(crcs), bool(form & _ROW_MAJOR))

    def block(self, number: int) -> ByteRange:
        """The bytes of a block."""
        start = number * self.block_bytes
        return ByteRange(start, min(start + self.block_bytes, self.nbytes))

    def edges(self, spans: Sequence[ByteRange]) -> list[ByteRange]:
        """What else to fetch for blocks to be whole, where that is cheap.

        Args:
            spans: what is fetched, ascending, without overlap.
        """
        edges: list[ByteRange] = []
        done = 0  # bytes before are fetched, or are another span's business
        for span, after in zip(spans, [*(span.start for span in spans[1:]), self.nbytes], strict=False):
            before = ByteRange(max(done, span.start // self.block_bytes * self.block_bytes), span.start)
            block_end = min(after, -(-span.end // self.block_bytes) * self.block_bytes)
            wanted = [edge for edge in (before, ByteRange(span.end, block_end)) if _is_cheap(edge, span)]
            edges += wanted
            done = max(span.end, *(edge.end for edge in wanted)) if wanted else span.end
        return edges


def _is_cheap(edge: ByteRange, span: ByteRange) -> bool:
    return 0 < len(edge) <= EDGE_FRACTION * len(span)


def _swapped(crcs: array[int]) -> array[int]:
    """Between this host's order of bytes and the little-endian one."""
    if sys.byteorder == "big":
        crcs.byteswap()
    return crcs


class Check:
    """Takes the CRC32s of what has landed, piece by piece in any order, and compares.

    Args:
        proof: what to compare with; None: only the whole's CRC32 is asked for.
    """

    def __init__(self, proof: Proof | None) -> None:
        self._proof = proof
        self._pieces: dict[int, tuple[int, int]] = {}  # by start: CRC32 and length

    def note(self, start: int, memory: memoryview) -> None:
        """These bytes are those from ``start`` on."""
        for piece_start, piece_end in self._cuts(start, start + len(memory)):
            piece = memory[piece_start - start : piece_end - start]
            self._pieces[piece_start] = crc32(piece), len(piece)

    def crc32(self) -> int:
        """Of all that was noted, end to end."""
        total = 0
        for _, (crc, nbytes) in sorted(self._pieces.items()):
            total = crc32_combine(total, crc, nbytes)
        return total

    def damaged(self) -> ByteRange | None:
        """The first block that was noted as a whole and does not match."""
        if self._proof is None:
            return None
        number, filled, total = -1, 0, 0
        for start, (crc, nbytes) in sorted(self._pieces.items()):
            if start // self._proof.block_bytes != number:
                number = start // self._proof.block_bytes
                filled, total = self._proof.block(number).start, 0
            if start != filled:  # a gap: nothing can be said of this block
                continue
            total = crc32_combine(total, crc, nbytes)
            filled += nbytes
            block = self._proof.block(number)
            if filled == block.end and total != self._proof.crcs[number]:
                return block
        return None

    def _cuts(self, start: int, end: int) -> Iterator[tuple[int, int]]:
        """The range cut at the bounds of blocks."""
        size = self._proof.block_bytes if self._proof is not None else max(1, end)
        while start < end:
            stop = min(end, (start // size + 1) * size)
            yield start, stop
            start = stop
