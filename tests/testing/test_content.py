from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from aiockpt.testing.content import EMPTY, Content, cut, with_flipped_bit

chunks = st.lists(st.binary(max_size=8), max_size=5)


@given(chunks)
def test_concat_keeps_bytes_size_and_crc(parts: list[bytes]) -> None:
    whole = Content.concat(map(Content.of, parts))
    assert (whole.to_bytes(), whole.size) == (b"".join(parts), len(b"".join(parts)))
    assert whole.crc32 == zlib.crc32(b"".join(parts))


@given(chunks, st.integers(0, 45), st.integers(0, 45))
def test_cut_is_slicing(parts: list[bytes], start: int, end: int) -> None:
    pieces = [memoryview(part) for part in parts]
    assert b"".join(cut(pieces, start, end)) == b"".join(parts)[start:end]


@given(chunks, st.integers(0, 45))
def test_flipping_changes_one_bit_and_not_the_original(parts: list[bytes], at_byte: int) -> None:
    whole = b"".join(parts)
    flipped = b"".join(with_flipped_bit([memoryview(part) for part in parts], at_byte))
    expected = bytearray(whole)
    if at_byte < len(whole):
        expected[at_byte] ^= 1
    assert flipped == expected
    assert b"".join(parts) == whole


def test_cutting_a_content_checksums_the_cut() -> None:
    assert Content.of(b"0123456789").cut(2, 5) == Content((memoryview(b"234"),), 3, zlib.crc32(b"234"))
    assert EMPTY.to_bytes() == b""
