from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from aiockpt.crc import crc32, crc32_combine


@given(st.binary(), st.binary())
def test_crcs_are_zlibs_continue_and_combine(first: bytes, second: bytes) -> None:
    whole = zlib.crc32(first + second)
    assert crc32(memoryview(first + second)) == whole
    assert crc32(second, crc32(first)) == whole
    assert crc32_combine(crc32(first), crc32(second), len(second)) == whole
