from __future__ import annotations

import itertools
import zlib
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from aiockpt.crc import BlockCrcs, crc32, crc32_between, crc32_by_blocks, crc32_combine, crcs_of_each, running_crcs


@given(st.binary(), st.binary())
def test_crcs_are_zlibs_continue_and_combine(first: bytes, second: bytes) -> None:
    whole = zlib.crc32(first + second)
    assert crc32(memoryview(first + second)) == whole
    assert crc32(second, crc32(first)) == whole
    assert crc32_combine(crc32(first), crc32(second), len(second)) == whole
    assert crc32_between(crc32(first), whole, len(second)) == crc32(second)


@st.composite
def bounded(draw: st.DrawFn) -> tuple[bytes, list[int]]:
    """Bytes, and where blocks of them begin and end."""
    content = draw(st.binary(max_size=200))
    return content, sorted({0, len(content), *draw(st.lists(st.integers(0, len(content)), max_size=10))})


def running_of(content: bytes, bounds: Sequence[int]) -> list[int]:
    return [zlib.crc32(content[:end]) for end in bounds[1:]]


def cut(content: bytes, data: st.DataObject) -> list[memoryview]:
    """Into views of any sizes, empty ones, too."""
    cuts = sorted([0, len(content), *data.draw(st.lists(st.integers(0, len(content)), max_size=10))])
    return [memoryview(content)[start:end] for start, end in itertools.pairwise(cuts)]


@given(bounded(), st.data())
def test_blocks_whatever_views_they_come_in(case: tuple[bytes, list[int]], data: st.DataObject) -> None:
    content, bounds = case
    blocks = BlockCrcs(bounds)
    views = cut(content, data)
    assert [blocks.add(view) for view in views] == [zlib.crc32(view) for view in views]
    assert blocks.running == running_of(content, bounds)


@given(st.binary(max_size=300), st.integers(1, 40), st.data())
def test_blocks_of_one_size_whatever_views_they_come_in(content: bytes, size: int, data: st.DataObject) -> None:
    """Of bytes of which nobody knows how many will come."""
    blocks = BlockCrcs(range(0, 1 << 40, size))
    for view in cut(content, data):
        blocks.add(view)
    assert blocks.running == running_of(content, [*range(0, len(content), size), len(content)])


@given(bounded())
def test_running_crcs_and_those_of_each_block(case: tuple[bytes, list[int]]) -> None:
    content, bounds = case
    each = [zlib.crc32(content[start:end]) for start, end in itertools.pairwise(bounds)]
    running = running_of(content, bounds)
    assert running_crcs(each, bounds) == running
    assert crcs_of_each(running, bounds) == each


@given(bounded(), st.data())
def test_of_a_view_by_known_blocks(case: tuple[bytes, list[int]], data: st.DataObject) -> None:
    content, bounds = case
    start = data.draw(st.integers(0, len(content)) | st.sampled_from(bounds))
    end = data.draw(st.integers(start, len(content)) | st.sampled_from([bound for bound in bounds if bound >= start]))
    # What lies in whole blocks is known, and not looked at.
    first = min(bound for bound in bounds if bound >= start)
    last = max([bound for bound in bounds if first <= bound <= end], default=first)
    seen = content[:first] + bytes(last - first) + content[last:]
    view = memoryview(seen)[start:end]
    assert crc32_by_blocks(view, start, running_of(content, bounds), bounds) == zlib.crc32(content[start:end])
