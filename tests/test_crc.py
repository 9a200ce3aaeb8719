from __future__ import annotations

import zlib

from hypothesis import given
from hypothesis import strategies as st

from aiockpt.crc import BlockCrcs, crc32, crc32_by_blocks, crc32_combine, crc32_of_blocks


@given(st.binary(), st.binary())
def test_crcs_are_zlibs_continue_and_combine(first: bytes, second: bytes) -> None:
    whole = zlib.crc32(first + second)
    assert crc32(memoryview(first + second)) == whole
    assert crc32(second, crc32(first)) == whole
    assert crc32_combine(crc32(first), crc32(second), len(second)) == whole


@given(st.lists(st.binary(max_size=50), max_size=10), st.integers(1, 40))
def test_blocks_whatever_views_they_come_in(views: list[bytes], block_bytes: int) -> None:
    blocks = BlockCrcs(block_bytes)
    assert [blocks.add(memoryview(view)) for view in views] == [zlib.crc32(view) for view in views]
    whole = b"".join(views)
    assert blocks.crcs == [
        zlib.crc32(whole[start : start + block_bytes]) for start in range(0, len(whole), block_bytes)
    ]


@given(st.binary(), st.binary(), st.integers(1, 40))
def test_blocks_make_the_whole(before: bytes, content: bytes, block_bytes: int) -> None:
    crcs = [zlib.crc32(content[start : start + block_bytes]) for start in range(0, len(content), block_bytes)]
    assert crc32_of_blocks(crcs, block_bytes, len(content), zlib.crc32(before)) == zlib.crc32(before + content)


@given(st.binary(), st.integers(1, 40), st.data())
def test_of_a_view_by_known_blocks(content: bytes, block_bytes: int, data: st.DataObject) -> None:
    crcs = [zlib.crc32(content[start : start + block_bytes]) for start in range(0, len(content), block_bytes)]
    start = data.draw(st.integers(0, len(content)))
    end = data.draw(st.integers(start, len(content)))
    # What lies in whole blocks is known, and not looked at.
    first = -(-start // block_bytes) * block_bytes
    last = len(content) if end == len(content) else end // block_bytes * block_bytes
    seen = content[:first] + bytes(max(0, last - first)) + content[max(first, last) :]
    view = memoryview(seen)[start:end]
    assert crc32_by_blocks(view, start, crcs, block_bytes, len(content)) == zlib.crc32(content[start:end])
