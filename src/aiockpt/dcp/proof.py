"""Proof of what is loaded: CRC32s of blocks of each stored item, kept beside its place in ``.metadata``.

An archive's own CRC32 proves a tensor only as a whole, and would prove another checkpoint's that lies in its place;
safetensors files have none. So a save notes the CRC32s of blocks of each tensor's elements (they come from the pass
that is made anyway; of small ones there is one block), and of all bytes of serialized objects and transformed items.
They are an attribute of the item's ``_StorageInfo``, which stock DCP neither looks at nor loses: the commit makes them
stand with the checkpoint, and no load makes a request for them. No I/O.

What a load proves: every byte. A slice that begins or ends within a block fetches the rest of that block, too. Blocks
begin where shards of the first dimension do, for powers of two of them, up to ``MOST_PARTS``, as far as they divide it,
so that most slices need nothing beside them.
"""

from __future__ import annotations

import math
import sys
from array import array
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from operator import itemgetter

from torch.distributed.checkpoint.filesystem import _StorageInfo

from aiockpt.crc import BlockCrcs, crc32, crc32_by_blocks, crc32_combine, crc32_of_blocks
from aiockpt.errors import MetadataError
from aiockpt.model import ByteRange, KiB, MiB

#: The attribute of ``_StorageInfo``.
ATTRIBUTE = "aiockpt_crc32s"

#: Blocks are about a 256th of a tensor, within these bounds: 1 KiB of CRC32s for what is 4 to 128 MiB large, then 8 to
#: 16 bytes for each MiB. So any 12 ranks that share a tensor of 4 MiB and more fetch less than 1/20 beside what they
#: need. Blocks of 256 KiB make the pass 3 % slower than one stretch, of 64 KiB 15 %, of 16 KiB 70 % (zlib-ng, AVX-512).
SMALLEST_BLOCK_BYTES = 16 * KiB
LARGEST_BLOCK_BYTES = 512 * KiB
BLOCKS_OF_SMALLER = 256

#: No version has written larger ones. What is fetched beside a slice is less than two of them.
MOST_BLOCK_BYTES = MiB

#: Where rows cannot be divided into ``FEWEST_PARTS``, slices begin anywhere, and blocks are this much smaller, so that
#: what is fetched beside a slice is little. Such are few: embeddings of odd vocabularies.
FINER = 2
FEWEST_PARTS = 8

#: Shards that are foreseen: more of them would be smaller than blocks.
MOST_PARTS = BLOCKS_OF_SMALLER

#: Flag in the first byte: the elements lie in row-major order.
_ROW_MAJOR = 0x80

#: The rest of the first byte: the size of blocks follows, in four bytes. Other values are its logarithm, and no size
#: follows: what was written before sizes followed the rows.
_SIZE_FOLLOWS = 0x01
_SIZE_BYTES = 4
_LOGARITHMS = range(16, 21)

#: What is no larger than this can be noted as one block, by a byte that is a logarithm and its CRC32.
MOST_WHOLE_BYTES = 1 << _LOGARITHMS[0]
_WHOLE = {row_major: bytes([_LOGARITHMS[0] | row_major * _ROW_MAJOR]) for row_major in (False, True)}


@lru_cache(maxsize=4096)
def block_bytes(nbytes: int, rows: int = 1) -> int:
    """The size of the blocks of ``nbytes`` bytes, which are ``rows`` equal rows.

    The largest size up to what is aimed at that divides the parts which shards of the rows would be.
    """
    aim = _clamped(nbytes // BLOCKS_OF_SMALLER)
    most = MOST_PARTS
    while most > 1 and nbytes < most * aim:
        most //= 2
    parts = math.gcd(rows, most)
    part = nbytes // parts
    least = -(-part // aim)
    counts = range(max(1, least), 2 * least + 1)
    if parts >= min(FEWEST_PARTS, most) and (fitting := [count for count in counts if part % count == 0]):
        return part // fitting[0]
    return max(SMALLEST_BLOCK_BYTES, aim // FINER)


def _clamped(nbytes: int) -> int:
    return min(LARGEST_BLOCK_BYTES, max(SMALLEST_BLOCK_BYTES, nbytes))


class ProofWriter(BlockCrcs):
    """Takes the CRC32s of the blocks of ``nbytes`` bytes in ``rows`` rows; None: of what nobody slices."""

    __slots__ = ()

    def __init__(self, nbytes: int | None, rows: int = 1) -> None:
        super().__init__(LARGEST_BLOCK_BYTES if nbytes is None else block_bytes(nbytes, rows))

    def packed(self, *, row_major: bool = True) -> bytes:
        """What is kept in ``.metadata``: a byte of form, the blocks' size, the CRC32s, little-endian."""
        form = _SIZE_FOLLOWS | (_ROW_MAJOR if row_major else 0)
        size = self.block_bytes.to_bytes(_SIZE_BYTES, "little")
        return bytes([form]) + size + _swapped(array("I", self.crcs)).tobytes()


class KnownProof(ProofWriter):
    """A proof that has been taken before, of ``nbytes`` bytes that are added once more.

    Of these only what lies in blocks that are cut through is read.
    """

    __slots__ = ("_added", "_nbytes")

    def __init__(self, taken: ProofWriter, nbytes: int) -> None:
        super().__init__(None)
        self.block_bytes, self.crcs = taken.block_bytes, taken.crcs
        self._nbytes = nbytes
        self._added = 0

    def add(self, view: memoryview) -> int:
        """Go on with *view*; returns its CRC32."""
        start = self._added
        self._added += len(view)
        return crc32_by_blocks(view, start, self.crcs, self.block_bytes, self._nbytes)


def rows(shape: Sequence[int]) -> int:
    """How many rows a tensor of this shape has; one without dimensions is a row."""
    return shape[0] if shape else 1


def packed_whole(crc: int, *, row_major: bool = True) -> bytes:
    """What is kept in ``.metadata`` of up to ``MOST_WHOLE_BYTES`` bytes that are always fetched as a whole."""
    return _WHOLE[row_major] + crc.to_bytes(4, "little")


def is_packed_whole(packed: bytes, crc: int, nbytes: int) -> bool:
    """Whether this is what is kept of ``nbytes`` bytes of that CRC32, noted as one block."""
    whole = crc.to_bytes(4, "little")
    return nbytes <= MOST_WHOLE_BYTES and packed in (_WHOLE[True] + whole, _WHOLE[False] + whole)


def form_of(packed: bytes) -> bytes:
    """What a packed proof says beside the CRC32s: those of two forms cannot be compared."""
    return packed[: _form(packed)[1]]


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
        size, crcs_at = _form(packed)
        if not 0 < size <= MOST_BLOCK_BYTES or len(packed) - crcs_at != 4 * -(-nbytes // size):
            raise MetadataError(f"the CRC32s in the metadata are not those of {nbytes} bytes")
        crcs = array("I")
        crcs.frombytes(packed[crcs_at:])
        return cls(size, nbytes, _swapped(crcs), bool(packed[0] & _ROW_MAJOR))

    def block(self, number: int) -> ByteRange:
        """The bytes of a block."""
        start = number * self.block_bytes
        return ByteRange(start, min(start + self.block_bytes, self.nbytes))

    def crc32(self) -> int:
        """Of all bytes."""
        return crc32_of_blocks(self.crcs, self.block_bytes, self.nbytes)

    def edges(self, spans: Sequence[ByteRange]) -> list[ByteRange]:
        """What else to fetch for all blocks to be whole, ascending.

        Args:
            spans: what is fetched, ascending, without overlap.
        """
        edges: list[ByteRange] = []
        done = 0  # bytes before are fetched
        for span, after in zip(spans, [*(span.start for span in spans[1:]), self.nbytes], strict=False):
            before = ByteRange(max(done, span.start // self.block_bytes * self.block_bytes), span.start)
            behind = ByteRange(span.end, min(after, -(-span.end // self.block_bytes) * self.block_bytes))
            edges += [edge for edge in (before, behind) if len(edge)]
            done = behind.end
        return edges


def _form(packed: object) -> tuple[int, int]:
    """The size of a packed proof's blocks, and where its CRC32s begin; a size of 0 if it is none."""
    form = packed[0] & ~_ROW_MAJOR if isinstance(packed, bytes) and packed else 0
    if isinstance(packed, bytes) and form == _SIZE_FOLLOWS:
        return int.from_bytes(packed[1 : 1 + _SIZE_BYTES], "little"), 1 + _SIZE_BYTES
    return (1 << form if form in _LOGARITHMS else 0), 1


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
        self._block_bytes = proof.block_bytes if proof is not None else sys.maxsize
        self._pieces: dict[int, tuple[int, int]] = {}  # by end: start and CRC32; none reaches over a block's bounds

    def note(self, start: int, memory: memoryview) -> None:
        """These bytes are those from ``start`` on; nobody else notes them. From any thread."""
        end = start + len(memory)
        while start < end:
            stop = min(end, (start // self._block_bytes + 1) * self._block_bytes)
            before = self._pieces.pop(start, None) if start % self._block_bytes else None
            first, crc = before or (start, 0)
            self._pieces[stop] = first, crc32(memory[: stop - start], crc)
            memory = memory[stop - start :]
            start = stop

    def note_rest(self, landed: Sequence[tuple[int, memoryview]]) -> None:
        """Note what has not been noted yet of all that has landed: where it begins, and its memory."""
        noted = deque(self._noted())
        for start, memory in sorted(landed, key=itemgetter(0)):
            at, end = start, start + len(memory)
            while at < end:
                while noted and noted[0][1] <= at:
                    noted.popleft()
                next_start, next_end = noted[0] if noted else (end, end)
                if next_start > at:
                    self.note(at, memory[at - start : min(end, next_start) - start])
                at = next_end

    def _noted(self) -> list[tuple[int, int]]:
        """Start and end of what has been noted, ascending, as few stretches as possible."""
        stretches: list[tuple[int, int]] = []
        first = last = 0
        for start, end, _ in self._ascending():
            if start != last:
                stretches.append((first, last))
                first = start
            last = end
        return [*stretches, (first, last)]

    def crc32(self) -> int:
        """Of all that was noted, end to end."""
        total = 0
        for start, end, crc in self._ascending():
            total = crc32_combine(total, crc, end - start)
        return total

    def damaged(self) -> ByteRange | None:
        """The first block that was noted as a whole and does not match."""
        if self._proof is None:
            return None
        number, filled, total = -1, 0, 0
        for start, end, crc in self._ascending():
            if start // self._block_bytes != number:
                number = start // self._block_bytes
                filled, total = self._proof.block(number).start, 0
            if start != filled:  # a gap: nothing can be said of this block
                continue
            total = crc32_combine(total, crc, end - start)
            filled = end
            block = self._proof.block(number)
            if filled == block.end and total != self._proof.crcs[number]:
                return block
        return None

    def _ascending(self) -> list[tuple[int, int, int]]:
        """Start, end and CRC32 of each piece."""
        return sorted((start, end, crc) for end, (start, crc) in self._pieces.items())
