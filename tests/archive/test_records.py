from __future__ import annotations

import io
import zipfile

import pytest

from aiockpt.archive.records import (
    ALIGNMENT,
    DESCRIPTOR,
    DESCRIPTOR64,
    ZIP64_FROM,
    central_entry,
    descriptor,
    end_of_directory,
    is_wide,
    local_header,
)
from aiockpt.crc import crc32


@pytest.mark.parametrize("offset", [0, 1, 63, 64, ZIP64_FROM - 1, ZIP64_FROM, 1 << 40])
@pytest.mark.parametrize("nbytes", [0, 1, ZIP64_FROM - 1, ZIP64_FROM, 1 << 40])
def test_data_is_aligned_and_wide_records_have_wide_descriptors(nbytes: int, offset: int) -> None:
    assert (offset + len(local_header(b"a/name", nbytes, offset))) % ALIGNMENT == 0
    wide = nbytes >= ZIP64_FROM or offset >= ZIP64_FROM
    assert is_wide(nbytes, offset) is wide
    assert len(descriptor(1, nbytes, offset)) == (0 if not nbytes else (DESCRIPTOR, DESCRIPTOR64)[wide].size)


def test_pythons_zipfile_reads_the_records() -> None:
    content = {b"a/one": b"1", b"a/none": b"", b"a/more": bytes(300)}
    archive, entries = b"", b""
    for name, data in content.items():
        offset, crc = len(archive), crc32(data)
        archive += local_header(name, len(data), offset) + data + descriptor(crc, len(data), offset)
        entries += central_entry(name, crc, len(data), offset)
    archive += entries + end_of_directory(len(content), len(archive), len(entries))
    with zipfile.ZipFile(io.BytesIO(archive)) as file:
        assert file.testzip() is None
        assert {name.encode(): file.read(name) for name in file.namelist()} == content
