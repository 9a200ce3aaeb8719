r"""The archive around one tensor's payload: every byte of a torch.save item but the tensor's own memory.

One job: from dtype, shape and strides to an item's head and tail, its geometry and its length, in
microseconds, without a tensor. The records, in order: data.pkl, .format_version, .storage_alignment,
byteorder, data/0 (the payload), version, .data/serialization_id; then the central directory. Where each lies
follows from two numbers, the pickle's length and the payload's, so that heads and tails come from cached
templates with numbers patched in.

Invariant: ``head + payload + tail(crc32(payload))`` is what torch 2.13 writes with its CRC32 option on (the
default), but for payloads that begin with ``PK\x07\x08``: torch's writer takes those for a data descriptor
and mixes them into the serialization id, a best-effort fingerprint that no reader uses; ours is then another
one.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache, reduce
from itertools import accumulate
from math import prod
from operator import mul
from struct import Struct

import torch

from aiockpt.archive.records import (
    ALIGNMENT,
    DESCRIPTOR,
    END64,
    LOCATOR,
    ZIP64_FROM,
    central_entry,
    descriptor,
    end_of_directory,
    local_header,
)
from aiockpt.archive.tensor_pickle import tensor_pickle
from aiockpt.crc import crc32

_PICKLE, _PAYLOAD = b"archive/data.pkl", b"archive/data/0"
_BEFORE_PAYLOAD = (
    (b"archive/.format_version", b"1"),
    (b"archive/.storage_alignment", b"64"),
    (b"archive/byteorder", b"little"),
)
_CRCS_BEFORE_PAYLOAD = tuple(crc32(content) for _, content in _BEFORE_PAYLOAD)
_VERSION = b"3\n"
_VERSION_CRC = crc32(_VERSION)

# The serialization id's first half: libstdc++'s hash over the set of record names, the same for every item.
_NAMES_HASH = b"15728199511854643026"
_ID_NBYTES = 40

_PICKLE_HEADER = local_header(_PICKLE, 1, 0)  # any length but 0: it is not in the header

# A payload of up to this many bytes leaves all offsets below 4 GiB: head and tail are far below 64 KiB.
_NARROW_MAX_NBYTES = ZIP64_FROM - 64 * 1024

_U32, _U64, _SIZES = Struct("<I"), Struct("<Q"), Struct("<3I")
_MASK = (1 << 64) - 1


def _mixed(seed: int, crc: int) -> int:
    """*seed* with one more CRC mixed in, as torch does."""
    return seed ^ ((crc + 0x9E3779B9 + (seed << 6) + (seed >> 2)) & _MASK)


def _serialization_id(seed: int) -> bytes:
    """A fingerprint of the record names, then of the descriptors' CRCs in their order: *seed*."""
    return b"%b%020d" % (_NAMES_HASH, seed)


class _Geometry:
    """Where the records of an item lie, given its pickle's length and its payload's.

    Attributes:
        middle: the bytes between data.pkl's descriptor and the payload.
        payload_offset: where the payload starts in the item.
    """

    __slots__ = ("_offsets", "_payload_nbytes", "_pickle_nbytes", "middle", "payload_offset")

    def __init__(self, pickle_nbytes: int, payload_nbytes: int) -> None:
        self._pickle_nbytes = pickle_nbytes
        self._payload_nbytes = payload_nbytes
        start = cursor = len(_PICKLE_HEADER) + pickle_nbytes + DESCRIPTOR.size
        middle = b""
        self._offsets = [0]
        for name, content in _BEFORE_PAYLOAD:
            self._offsets.append(cursor)
            middle += (
                local_header(name, len(content), cursor) + content + descriptor(crc32(content), len(content), cursor)
            )
            cursor = start + len(middle)
        self._offsets.append(cursor)
        self.middle = middle + local_header(_PAYLOAD, payload_nbytes, cursor)
        self.payload_offset = start + len(self.middle)

    def tail_pieces(self, pickle_crc: int, payload_crc: int) -> Iterator[bytes]:
        """The bytes after the payload, a piece a structure."""
        cursor = self.payload_offset + self._payload_nbytes
        payload_header = self._offsets[-1]
        yield (piece := descriptor(payload_crc, self._payload_nbytes, payload_header))
        cursor += len(piece)

        payload_crcs = (payload_crc,) if self._payload_nbytes else ()
        seed = reduce(_mixed, (pickle_crc, *_CRCS_BEFORE_PAYLOAD, *payload_crcs, _VERSION_CRC), 0)
        serialization_id = _serialization_id(seed)
        records = ((b"archive/version", _VERSION), (b"archive/.data/serialization_id", serialization_id))
        offsets = list(self._offsets)
        for name, content in records:
            offsets.append(cursor)
            yield (header := local_header(name, len(content), cursor))
            yield content
            yield (end := descriptor(crc32(content), len(content), cursor))
            cursor += len(header) + len(content) + len(end)

        entries = [(_PICKLE, pickle_crc, self._pickle_nbytes)]
        entries += [(name, crc32(content), len(content)) for name, content in _BEFORE_PAYLOAD]
        entries += [(_PAYLOAD, payload_crc, self._payload_nbytes)]
        entries += [(name, crc32(content), len(content)) for name, content in records]
        directory = [central_entry(*entry, offset) for entry, offset in zip(entries, offsets, strict=True)]
        yield from directory
        yield end_of_directory(len(directory), cursor, sum(map(len, directory)))


# The pieces of `_Geometry.tail_pieces` by position.
_ID_PIECE, _ID_END_PIECE, _DIRECTORY_PIECE, _END_PIECE = 5, 6, 7, 14
# Fields by position in their structure: a directory entry's CRC (sizes follow) and header offset, and so on.
_ENTRY_CRC, _ENTRY_OFFSET, _DESCRIPTOR_CRC = 16, 42, 4
_END64_DIRECTORY = END64.size - 8
_LOCATOR_END64 = END64.size + 8
_END_DIRECTORY = END64.size + LOCATOR.size + 16


class _NarrowTail:
    """A template of tails, for one pickle length and narrow payload lengths equal modulo the alignment."""

    __slots__ = ("_at", "_bytes", "_payload_offset")

    def __init__(self, pickle_nbytes: int, payload_residue: int) -> None:
        geometry = _Geometry(pickle_nbytes, payload_residue + ALIGNMENT)
        pieces = list(geometry.tail_pieces(0, 0))
        self._bytes = b"".join(pieces)
        self._at = list(accumulate(map(len, pieces), initial=0))
        self._payload_offset = geometry.payload_offset

    def __len__(self) -> int:
        return len(self._bytes)

    def of(self, pickle_crc: int, payload_nbytes: int) -> _FrameTail:
        """The template for one pickle and one payload length."""
        at, tail = self._at, bytearray(self._bytes)
        tail_offset = self._payload_offset + payload_nbytes
        entries_at, end_at = at[_DIRECTORY_PIECE:_END_PIECE], at[_END_PIECE]

        _SIZES.pack_into(tail, _DESCRIPTOR_CRC, 0, payload_nbytes, payload_nbytes)
        _U32.pack_into(tail, entries_at[0] + _ENTRY_CRC, pickle_crc)
        _SIZES.pack_into(tail, entries_at[4] + _ENTRY_CRC, 0, payload_nbytes, payload_nbytes)
        _U32.pack_into(tail, entries_at[5] + _ENTRY_OFFSET, tail_offset + at[1])
        _U32.pack_into(tail, entries_at[6] + _ENTRY_OFFSET, tail_offset + at[4])

        directory = tail_offset + entries_at[0]
        _U64.pack_into(tail, end_at + _END64_DIRECTORY, directory)
        _U64.pack_into(tail, end_at + _LOCATOR_END64, tail_offset + end_at)
        _U32.pack_into(tail, end_at + _END_DIRECTORY, directory)
        return _FrameTail(
            bytes(tail),
            seed=reduce(_mixed, (pickle_crc, *_CRCS_BEFORE_PAYLOAD), 0),
            id_at=at[_ID_PIECE],
            crc_at=entries_at[4] + _ENTRY_CRC,
            id_crcs_at=(at[_ID_END_PIECE] + _DESCRIPTOR_CRC, entries_at[6] + _ENTRY_CRC),
        )


class _FrameTail:
    """A template in which only what follows from the payload's CRC32 is missing: it is filled in for every item."""

    __slots__ = ("_pack", "_seed", "_texts")

    def __init__(self, template: bytes, *, seed: int, id_at: int, crc_at: int, id_crcs_at: tuple[int, int]) -> None:
        self._seed = seed
        id_end, id_entry = id_crcs_at
        holes = ((_DESCRIPTOR_CRC, 4), (id_at, _ID_NBYTES), (id_end, 4), (crc_at, 4), (id_entry, 4))
        starts = [0, *(at + nbytes for at, nbytes in holes)]
        ends = [*(at for at, _ in holes), len(template)]
        self._texts = [template[start:end] for start, end in zip(starts, ends, strict=True)]
        a, b, c, d, e, f = map(len, self._texts)
        self._pack = Struct(f"<{a}sI{b}s{_ID_NBYTES}s{c}sI{d}sI{e}sI{f}s").pack

    def filled(self, crc: int) -> bytes:
        """The tail of a payload with this CRC32."""
        serialization_id = _serialization_id(_mixed(_mixed(self._seed, crc), _VERSION_CRC))
        id_crc = crc32(serialization_id)
        a, b, c, d, e, f = self._texts
        return self._pack(a, crc, b, serialization_id, c, id_crc, d, crc, e, id_crc, f)


_narrow_geometry = lru_cache(maxsize=1024)(_Geometry)
_narrow_tail = lru_cache(maxsize=4096)(_NarrowTail)


def _is_narrow(payload_nbytes: int) -> bool:
    """Whether the templates serve: zip64 fields and empty records need bytes of their own."""
    return 0 < payload_nbytes <= _NARROW_MAX_NBYTES


class Frame:
    """An item's bytes but for the payload. Immutable, holds no tensor, may be shared.

    Attributes:
        head: the bytes before the payload.
        payload_nbytes: the payload's length.
        item_nbytes: the length of the whole item.
    """

    __slots__ = ("_narrow", "_pickle_crc", "_pickle_nbytes", "head", "item_nbytes", "payload_nbytes")

    def __init__(self, pickle: bytes, payload_nbytes: int) -> None:
        self._pickle_nbytes = nbytes = len(pickle)
        self._pickle_crc = pickle_crc = crc32(pickle)
        self._narrow: _FrameTail | None = None
        self.payload_nbytes = payload_nbytes
        if _is_narrow(payload_nbytes):
            middle = _narrow_geometry(nbytes, 1).middle
            template = _narrow_tail(nbytes, payload_nbytes % ALIGNMENT)
            tail_nbytes = len(template)
            self._narrow = template.of(pickle_crc, payload_nbytes)
        else:
            geometry = _Geometry(nbytes, payload_nbytes)
            middle = geometry.middle
            tail_nbytes = sum(map(len, geometry.tail_pieces(0, 0)))
        self.head = _PICKLE_HEADER + pickle + descriptor(pickle_crc, nbytes, 0) + middle
        self.item_nbytes = len(self.head) + payload_nbytes + tail_nbytes

    def tail(self, crc: int) -> bytes:
        """The bytes after a payload whose CRC32 is *crc*."""
        if self._narrow is not None:
            return self._narrow.filled(crc)
        geometry = _Geometry(self._pickle_nbytes, self.payload_nbytes)
        return b"".join(geometry.tail_pieces(self._pickle_crc, crc))


@lru_cache(maxsize=4096)
def frame_of(
    dtype: torch.dtype,
    shape: tuple[int, ...],
    stride: tuple[int, ...],
    payload_nbytes: int,
    requires_grad: bool,
) -> Frame:
    """The frame of a tensor whose storage holds its *payload_nbytes* and nothing else.

    Raises:
        KeyError: a dtype that such items do not have.
    """
    return Frame(tensor_pickle(dtype, shape, stride, payload_nbytes, requires_grad=requires_grad), payload_nbytes)


@lru_cache(maxsize=4096)
def contiguous_frame(dtype: torch.dtype, shape: tuple[int, ...]) -> Frame:
    """The frame of a row-major tensor without gradient: what checkpoints are made of.

    Raises:
        KeyError: as `frame_of`.
    """
    return frame_of(dtype, shape, contiguous_stride(shape), prod(shape) * dtype.itemsize, False)


def contiguous_stride(shape: Sequence[int]) -> tuple[int, ...]:
    """Row-major strides in elements, as torch counts them: a dimension of size 0 counts as 1."""
    if not shape:
        return ()
    sizes = (max(size, 1) for size in reversed(shape[1:]))
    return tuple(accumulate(sizes, mul, initial=1))[::-1]
