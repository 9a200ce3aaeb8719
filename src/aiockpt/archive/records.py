"""Zip records as torch's writer lays them out (stored, aligned, sizes after the data): from numbers to bytes.

One job: the bytes of a local header, a data descriptor, a central directory entry and the end of the
directory. It does not know which records a torch archive has. The dialect, read off torch 2.13's output and
the zip specification (APPNOTE 6.3, sections 4.3 and 4.5):

- a local header has flag bit 3: CRC and sizes are zero there and follow the data in a descriptor; a record
without
  data has neither the flag nor a descriptor;
- an extra field ``FB`` pads each header so that its data starts at a multiple of 64;
- zip64 fields appear where a size or an offset reaches 0xFFFFFFFF, and then the descriptor has 64-bit sizes;
- the zip64 end record and its locator are always there.
"""

from __future__ import annotations

from struct import Struct

ALIGNMENT = 64
ZIP64_FROM = 0xFFFFFFFF  # sizes and offsets from here on live in zip64 fields

LOCAL_SIGNATURE = b"PK\x03\x04"
DESCRIPTOR_SIGNATURE = b"PK\x07\x08"
CENTRAL_SIGNATURE = b"PK\x01\x02"
END64_SIGNATURE = b"PK\x06\x06"
LOCATOR_SIGNATURE = b"PK\x06\x07"
END_SIGNATURE = b"PK\x05\x06"

# signature, version needed, flags, method, time, date, CRC, stored size, size, name length, extra length
LOCAL = Struct("<4s5H3I2H")
# signature, CRC, stored size, size: the sizes have 64 bits in the wide form
DESCRIPTOR = Struct("<4s3I")
DESCRIPTOR64 = Struct("<4sI2Q")
# signature, made by, then as LOCAL, then comment length, disk, two attributes, header offset
CENTRAL = Struct("<4s6H3I5H2I")
# signature, size of the rest, made by, needed, two disks, two entry counts, directory size, directory offset
END64 = Struct("<4sQ2H2I4Q")
# signature, disk, offset of the zip64 end record, disks
LOCATOR = Struct("<4sIQI")
# signature, two disks, two entry counts, directory size, directory offset, comment length
END = Struct("<4s4H2IH")

ZIP64_EXTRA = 0x0001
_UTF8_NAME, DESCRIPTOR_FOLLOWS = 0x0800, 0x0008
_END64_MADE_BY, _END64_NEEDED = 0x031E, 45


def is_wide(nbytes: int, offset: int) -> bool:
    """Whether a record of *nbytes* with its local header at *offset* needs zip64 fields."""
    return nbytes >= ZIP64_FROM or offset >= ZIP64_FROM


def _flags(nbytes: int) -> int:
    return _UTF8_NAME | DESCRIPTOR_FOLLOWS if nbytes else _UTF8_NAME


def _zip64_extra(nbytes: int, stored_nbytes: int, offset: int) -> bytes:
    numbers = [nbytes, stored_nbytes] if nbytes >= ZIP64_FROM else []
    if offset >= ZIP64_FROM:
        numbers.append(offset)
    if not numbers:
        return b""
    return Struct(f"<2H{len(numbers)}Q").pack(ZIP64_EXTRA, 8 * len(numbers), *numbers)


def local_header(name: bytes, nbytes: int, offset: int) -> bytes:
    """The local header at *offset* of a record of *nbytes*, padded so that its data is aligned."""
    extra = _zip64_extra(nbytes, 0, offset)  # torch counts what is stored only while it writes
    padding = -(offset + LOCAL.size + len(name) + len(extra) + 4) % ALIGNMENT
    extra += b"FB" + padding.to_bytes(2, "little") + b"Z" * padding
    return LOCAL.pack(LOCAL_SIGNATURE, 0, _flags(nbytes), 0, 0, 0, 0, 0, 0, len(name), len(extra)) + name + extra


def descriptor(crc: int, nbytes: int, offset: int) -> bytes:
    """What follows the data of a record whose local header is at *offset*; nothing follows no data."""
    if not nbytes:
        return b""
    form = DESCRIPTOR64 if is_wide(nbytes, offset) else DESCRIPTOR
    return form.pack(DESCRIPTOR_SIGNATURE, crc, nbytes, nbytes)


def central_entry(name: bytes, crc: int, nbytes: int, offset: int) -> bytes:
    """The directory's entry for a record whose local header is at *offset*."""
    extra, flags = _zip64_extra(nbytes, nbytes, offset), _flags(nbytes)
    nbytes, offset = min(nbytes, ZIP64_FROM), min(offset, ZIP64_FROM)
    lengths = (nbytes, nbytes, len(name), len(extra))
    fixed = CENTRAL.pack(CENTRAL_SIGNATURE, 0, 0, flags, 0, 0, 0, crc, *lengths, 0, 0, 0, 0, offset)
    return fixed + name + extra


def end_of_directory(entries: int, directory_offset: int, directory_nbytes: int) -> bytes:
    """The zip64 end record, its locator and the end record, for a directory at *directory_offset*."""
    end64_offset = directory_offset + directory_nbytes
    counts = (0, 0, entries, entries, directory_nbytes)
    end64 = (END64_SIGNATURE, END64.size - 12, _END64_MADE_BY, _END64_NEEDED, *counts, directory_offset)
    return (
        END64.pack(*end64)
        + LOCATOR.pack(LOCATOR_SIGNATURE, 0, end64_offset, 1)
        + END.pack(END_SIGNATURE, *counts, min(directory_offset, ZIP64_FROM), 0)
    )
