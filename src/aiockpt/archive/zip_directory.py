"""Reading zip structures out of an item without its payload: bounds-checked, in linear time.

One job: which records an item has and where they lie, from its first and last bytes. It knows nothing about
tensors. Every number comes from untrusted bytes; what does not fit raises `Surprise`.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from aiockpt.archive.records import (
    CENTRAL,
    CENTRAL_SIGNATURE,
    DESCRIPTOR,
    DESCRIPTOR64,
    DESCRIPTOR_FOLLOWS,
    DESCRIPTOR_SIGNATURE,
    END,
    END64,
    END64_SIGNATURE,
    END_SIGNATURE,
    LOCAL,
    LOCAL_SIGNATURE,
    LOCATOR,
    LOCATOR_SIGNATURE,
    ZIP64_EXTRA,
    ZIP64_FROM,
)
from aiockpt.archive.surprise import Surprise, require
from aiockpt.crc import crc32

_ENCRYPTED = 0x0001


@dataclass(frozen=True, slots=True)
class Entry:
    """A record as the directory has it: *offset* is its local header's, *crc* is 0 when none was recorded."""

    name: bytes
    crc: int
    nbytes: int
    offset: int


@dataclass(frozen=True, slots=True)
class Local:
    """A local header: the record's name, its data's start and length (None: only the descriptor knows)."""

    name: bytes
    data_offset: int
    nbytes: int | None


@dataclass(frozen=True, slots=True)
class Ends:
    """The first and the last bytes of an item of *nbytes*; those between are not at hand."""

    head: bytes
    tail: bytes
    nbytes: int

    def slice(self, start: int, nbytes: int) -> bytes:
        """Bytes ``[start, start + nbytes)`` of the item, from whichever end holds all of them."""
        require(start >= 0, "a zip structure begins before the item")
        if start + nbytes <= len(self.head):
            return self.head[start : start + nbytes]
        start -= self.nbytes - len(self.tail)
        require(0 <= start <= len(self.tail) - nbytes, "a zip structure lies outside the item's ends")
        return self.tail[start : start + nbytes]


def _unpack(form: struct.Struct, ends: Ends, offset: int, signature: bytes) -> tuple[int, ...]:
    fields = form.unpack(ends.slice(offset, form.size))
    require(fields[0] == signature, "a zip structure lacks its signature")
    return fields[1:]


def local_at(ends: Ends, offset: int) -> Local:
    """The local header at *offset*."""
    _, flags, method, _, _, _, stored, size, name_nbytes, extra_nbytes = _unpack(LOCAL, ends, offset, LOCAL_SIGNATURE)
    require(method == 0 and not flags & _ENCRYPTED, "a record is compressed or encrypted")
    name = ends.slice(offset + LOCAL.size, name_nbytes)
    known = not flags & DESCRIPTOR_FOLLOWS and stored == size < ZIP64_FROM
    return Local(name, offset + LOCAL.size + name_nbytes + extra_nbytes, size if known else None)


def end_of_data(head: bytes, local: Local) -> int:
    """Where the next local header lies, in *head*, after the data of *local*."""
    return _ends(head, local)[1]


def data_of(head: bytes, local: Local) -> bytes:
    """The data of *local*, which lie in *head*, as does the next local header."""
    return head[local.data_offset : _ends(head, local)[0]]


def _ends(head: bytes, local: Local) -> tuple[int, int]:
    """Where the data of *local* end, and where the next local header lies."""
    start = local.data_offset
    if local.nbytes is not None:
        return start + local.nbytes, start + local.nbytes
    at = head.find(DESCRIPTOR_SIGNATURE, start)
    while at >= 0:
        for form in (DESCRIPTOR, DESCRIPTOR64):
            end = at + form.size
            sizes = form.unpack(head[at:end])[2:] if end <= len(head) else ()
            if sizes == (at - start, at - start) and head.startswith(LOCAL_SIGNATURE, end):
                return at, end
        at = head.find(DESCRIPTOR_SIGNATURE, at + 1)
    raise Surprise("a record's end is not in the item's head")


def directory(ends: Ends) -> dict[bytes, Entry]:
    """The records by name, in the directory's order."""
    cursor, nbytes, entries = _directory_place(ends)
    end = cursor + nbytes
    found: dict[bytes, Entry] = {}
    while cursor < end:
        entry, cursor = _entry_at(ends, cursor)
        require(entry.name not in found, "two records have the same name")
        found[entry.name] = entry
    require(cursor == end and len(found) == entries, "the directory's length is not what the archive's end says")
    return found


def _directory_place(ends: Ends) -> tuple[int, int, int]:
    """Offset and length of the directory, and how many entries it has."""
    end_offset = ends.nbytes - END.size
    *_, entries, nbytes, offset, comment = _unpack(END, ends, end_offset, END_SIGNATURE)
    require(comment == 0, "the archive has a comment")
    locator_offset = end_offset - LOCATOR.size
    if locator_offset >= offset and ends.slice(locator_offset, 4) == LOCATOR_SIGNATURE:
        _, end_offset, _ = _unpack(LOCATOR, ends, locator_offset, LOCATOR_SIGNATURE)
        *_, entries, nbytes, offset = _unpack(END64, ends, end_offset, END64_SIGNATURE)
    require(offset + nbytes == end_offset, "the directory does not end where the archive's end begins")
    return offset, nbytes, entries


def _entry_at(ends: Ends, cursor: int) -> tuple[Entry, int]:
    """The directory entry at *cursor*, and where the next one lies."""
    # fmt: off
    (_, _, flags, method, _, _, crc, stored, size, name_nbytes, extra_nbytes, comment_nbytes, _, _, _,
     offset) = _unpack(CENTRAL, ends, cursor, CENTRAL_SIGNATURE)
    # fmt: on
    require(method == 0 and not flags & _ENCRYPTED, "a record is compressed or encrypted")
    cursor += CENTRAL.size
    name = ends.slice(cursor, name_nbytes)
    extra = ends.slice(cursor + name_nbytes, extra_nbytes)
    stored, size, offset = _widened(extra, stored, size, offset)
    require(stored == size, "a record is stored in another length than its own")
    return Entry(name, crc, size, offset), cursor + name_nbytes + extra_nbytes + comment_nbytes


def _widened(extra: bytes, stored: int, size: int, offset: int) -> tuple[int, int, int]:
    """The three numbers, those that did not fit 32 bits taken from the zip64 extra field."""
    missing = [n == ZIP64_FROM for n in (size, stored, offset)]
    if not any(missing):
        return stored, size, offset
    numbers = iter(_zip64_numbers(extra, sum(missing)))
    size, stored, offset = (
        next(numbers) if wide else n for wide, n in zip(missing, (size, stored, offset), strict=True)
    )
    return stored, size, offset


def _zip64_numbers(extra: bytes, count: int) -> tuple[int, ...]:
    at = 0
    while at + 4 <= len(extra):
        kind, nbytes = struct.unpack_from("<2H", extra, at)
        at += 4
        if kind == ZIP64_EXTRA and nbytes >= 8 * count and at + 8 * count <= len(extra):
            return struct.unpack_from(f"<{count}Q", extra, at)
        at += nbytes
    raise Surprise("a large record lacks its zip64 field")


def content_of(ends: Ends, entry: Entry) -> bytes:
    """A small record's data, checked against its CRC where one was recorded."""
    local = local_at(ends, entry.offset)
    require(local.name == entry.name, "a record's two names differ")
    data = ends.slice(local.data_offset, entry.nbytes)
    require(entry.crc in (0, crc32(data)), "a small record does not match its CRC32")
    return data
