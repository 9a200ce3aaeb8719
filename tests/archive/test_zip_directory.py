from __future__ import annotations

import io
import zipfile

import pytest
import torch

from aiockpt.archive.surprise import Surprise
from aiockpt.archive.zip_directory import Ends, content_of, directory, end_of_data, local_at
from archive.torch_items import rezipped, saved_by_torch

ITEM = saved_by_torch(torch.arange(50))


@pytest.mark.parametrize("item", [ITEM, rezipped(ITEM)], ids=["torch", "zipfile"])
def test_records_are_those_that_zipfile_finds(item: bytes) -> None:
    ends = Ends(item, b"", len(item))
    with zipfile.ZipFile(io.BytesIO(item)) as archive:
        theirs = {info.filename.encode(): info for info in archive.infolist()}
        ours = directory(ends)
        assert list(ours) == list(theirs)
        for name, entry in ours.items():
            assert (entry.crc, entry.nbytes) == (theirs[name].CRC, theirs[name].file_size)
            assert content_of(ends, entry) == archive.read(name.decode())
        offset = 0
        for name in theirs:
            local = local_at(ends, offset)
            assert local.name == name
            if name != list(theirs)[-1]:
                offset = end_of_data(item, local)


@pytest.mark.parametrize("item", [b"", b"PK", bytes(21)])
def test_items_too_short_for_an_archive(item: bytes) -> None:
    with pytest.raises(Surprise):
        directory(Ends(item, item, len(item)))


def test_slices_come_from_the_end_that_holds_them() -> None:
    ends = Ends(b"0123", b"89", 10)
    assert (ends.slice(1, 3), ends.slice(8, 2), ends.slice(10, 0)) == (b"123", b"89", b"")
    for start, nbytes in ((3, 2), (4, 1), (7, 2), (9, 2), (1 << 60, 1)):
        with pytest.raises(Surprise):
            ends.slice(start, nbytes)


def _two_of_a_name() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a/x", b"1")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a/x", b"2")
    return buffer.getvalue()


def _with_comment() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.comment = b"hello"
        archive.writestr("a/x", b"1")
    return buffer.getvalue()


@pytest.mark.parametrize("make", [_two_of_a_name, _with_comment], ids=["twice", "comment"])
def test_archives_that_are_refused(make: object) -> None:
    item: bytes = make()  # type: ignore[operator]
    with pytest.raises(Surprise):
        directory(Ends(item, b"", len(item)))


def test_a_small_record_with_a_wrong_crc() -> None:
    item = bytearray(ITEM)
    item[item.index(b"little")] ^= 1
    ends = Ends(bytes(item), b"", len(item))
    with pytest.raises(Surprise, match="CRC32"):
        content_of(ends, directory(ends)[b"archive/byteorder"])
