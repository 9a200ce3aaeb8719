from __future__ import annotations

import io
import pickle
import re
from itertools import accumulate
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from aiockpt.errors import S3Exception
from aiockpt.s3reader.dcp_optimized import (
    DEFAULT_MAX_GAP_SIZE,
    FALLBACK_GUIDANCE,
    FIND_ITEM_ERROR_PREFIX,
    DCPOptimizedS3Reader,
    ItemRange,
    RangeGroup,
    group_ranges,
)
from s3reader.scripted_object import BrokenStream, ScriptedObject, chunkings, numbered

DATA = numbered(200)
ITEMS = [(10, 30), (30, 50), (60, 100)]


def items_of(ranges: list[tuple[int, int]]) -> list[ItemRange]:
    return [ItemRange(start, end) for start, end in ranges]


def reader_of(
    stored: ScriptedObject, ranges: list[tuple[int, int]] | None = None, max_gap_size: float = DEFAULT_MAX_GAP_SIZE
) -> DCPOptimizedS3Reader:
    items = items_of(ITEMS if ranges is None else ranges)
    return DCPOptimizedS3Reader("bucket", "key", items, stored.get_object_info, stored.get_stream, max_gap_size)


def read(reader: DCPOptimizedS3Reader, start: int, end: int) -> bytes:
    reader.seek(start)
    return reader.read(end - start)


gaps_and_lengths = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 12)), min_size=1, max_size=7)


def laid_out(pairs: list[tuple[int, int]]) -> list[tuple[int, int]]:
    """Ranges with these gaps before them and these lengths."""
    ends = list(accumulate(gap + length for gap, length in pairs))
    return [(end - length, end) for end, (_, length) in zip(ends, pairs, strict=True)]


def streams_expected(ranges: list[tuple[int, int]], max_gap_size: float) -> list[tuple[int, int]]:
    streams: list[tuple[int, int]] = []
    for start, end in ranges:
        if streams and start - streams[-1][1] <= max_gap_size:
            streams[-1] = (streams[-1][0], end)
        else:
            streams.append((start, end))
    return streams


class DCPMachine(RuleBasedStateMachine):
    """Reads in and out of the items, in any order, against the rule of the current and the next item."""

    @initialize(
        pairs=gaps_and_lengths.filter(lambda pairs: any(length for _, length in pairs)),
        chunk_sizes=chunkings,
        max_gap_size=st.integers(0, 12) | st.just(float("inf")),
    )
    def start(self, pairs: list[tuple[int, int]], chunk_sizes: list[int], max_gap_size: float) -> None:
        ranges = laid_out(pairs)
        self.items = [(start, end) for start, end in ranges if start < end]
        self.streams = streams_expected(self.items, max_gap_size)
        self.stored = ScriptedObject(DATA, chunk_sizes)
        self.reader = reader_of(self.stored, ranges, max_gap_size)
        self.position = 0
        self.current = 0
        self.loaded = False

    def allowed(self, size: int) -> bool:
        """Whether a read of ``size`` bytes is; notes the item that it makes the current one."""
        if size == 0:
            return True
        for index in range(self.current, min(self.current + 1 + self.loaded, len(self.items))):
            start, end = self.items[index]
            if start <= self.position and self.position + size <= end:
                self.current, self.loaded = index, True
                return True
        return False

    def expect(self, size: int, into: bool) -> None:
        if not self.allowed(size):
            with pytest.raises(ValueError, match=FIND_ITEM_ERROR_PREFIX):
                self.reader.read(size)
            return
        target = bytearray(size)
        if into:
            assert self.reader.readinto(target) == size
        else:
            target[:] = self.reader.read(size)
        assert target == DATA[self.position : self.position + size]
        self.position += size

    @rule(position=st.integers(0, 170))
    def seek(self, position: int) -> None:
        assert self.reader.seek(position) == position
        self.position = position

    @rule(offset=st.integers(-30, 30))
    def seek_on(self, offset: int) -> None:
        if self.position + offset >= 0:
            self.position += offset
            assert self.reader.seek(offset, io.SEEK_CUR) == self.position

    @rule(size=st.integers(0, 15), into=st.booleans())
    def read(self, size: int, into: bool) -> None:
        self.expect(size, into)

    @rule(data=st.data(), into=st.booleans())
    def read_in_the_current_item(self, data: st.DataObject, into: bool) -> None:
        start, end = self.items[self.current]
        self.seek(data.draw(st.integers(start, end)))
        self.expect(data.draw(st.integers(0, end - self.position)), into)

    @precondition(lambda self: self.loaded and self.current + 1 < len(self.items))
    @rule(data=st.data(), into=st.booleans())
    def read_in_the_next_item(self, data: st.DataObject, into: bool) -> None:
        start, end = self.items[self.current + 1]
        self.seek(data.draw(st.integers(start, end - 1)))
        self.expect(data.draw(st.integers(1, end - self.position)), into)

    @invariant()
    def same_position(self) -> None:
        assert self.reader.tell() == self.position

    @invariant()
    def one_stream_for_each_group_reached(self) -> None:
        reached = self.items[self.current][0]
        opened = [stream for stream in self.streams if stream[0] <= reached] if self.loaded else []
        assert self.stored.ranges == opened
        assert self.stored.infos == 0
        assert self.stored.open_streams <= 1

    def teardown(self) -> None:
        if hasattr(self, "reader"):
            self.reader.close()
            assert self.stored.open_streams == 0


DCPMachine.TestCase.settings = settings(max_examples=150, stateful_step_count=25, deadline=None)
TestItems = DCPMachine.TestCase


@given(pairs=gaps_and_lengths, chunk_sizes=chunkings, max_gap_size=st.integers(0, 12))
def test_a_whole_plan(pairs: list[tuple[int, int]], chunk_sizes: list[int], max_gap_size: int) -> None:
    ranges = [(start, end) for start, end in laid_out(pairs) if start < end]
    if not ranges:
        return
    stored = ScriptedObject(DATA, chunk_sizes)
    with reader_of(stored, ranges, max_gap_size) as reader:
        for start, end in ranges:
            assert read(reader, start, end) == DATA[start:end]
    streams = streams_expected(ranges, max_gap_size)
    assert stored.ranges == streams
    assert stored.ended_streams == len(streams)


GROUPS: list[tuple[list[tuple[int, int]], float, list[tuple[int, int]]]] = [
    (ITEMS, 32, [(10, 100)]),
    (ITEMS, 10, [(10, 100)]),
    (ITEMS, 9.5, [(10, 50), (60, 100)]),
    (ITEMS, 0, [(10, 50), (60, 100)]),
    ([(0, 1), (10**12, 10**12 + 1)], float("inf"), [(0, 10**12 + 1)]),
    ([(0, 0), (0, 10), (10, 10), (15, 20)], 4, [(0, 10), (15, 20)]),
    ([(20, 20), (0, 5)], 0, [(0, 5)]),
    ([(0, 1), (1 + DEFAULT_MAX_GAP_SIZE, 2 + DEFAULT_MAX_GAP_SIZE)], DEFAULT_MAX_GAP_SIZE, [(0, 33554434)]),
]


@pytest.mark.parametrize(("ranges", "max_gap_size", "groups"), GROUPS)
def test_near_ranges_share_a_group(
    ranges: list[tuple[int, int]], max_gap_size: float, groups: list[tuple[int, int]]
) -> None:
    grouped = group_ranges(items_of(ranges), max_gap_size)
    assert [(group.start, group.end) for group in grouped] == groups
    assert [item for group in grouped for item in group.item_ranges] == items_of(
        [(start, end) for start, end in ranges if start < end]
    )
    for group in grouped:
        assert (group.item_ranges[0].start, group.item_ranges[-1].end) == (group.start, group.end)


def test_a_plan_may_have_very_many_items() -> None:
    items = [ItemRange(10 * number, 10 * number + 9) for number in range(200_000)]
    (group,) = group_ranges(items, 1)  # a quadratic way of growing the group takes minutes
    assert group == RangeGroup(0, 1_999_999, items)


INVALID_RANGES = [
    ([], "item_ranges must be a non-empty List[ItemRange] object"),
    ([(0, 0)], "No non-empty ranges to read"),
    ([(5, 5), (7, 7)], "No non-empty ranges to read"),
    ([(-1, 5)], "Invalid range: -1-5"),
    ([(5, 3)], "Invalid range: 5-3"),
    ([(10, 20), (15, 12)], "Invalid range: 15-12"),
    ([(0, 10), (-3, -1)], "Invalid range: -3--1"),
    ([(10, 20), (0, 5)], "Unsorted ranges: 10-20 and 0-5"),
    ([(10, 20), (5, 15)], "Unsorted ranges: 10-20 and 5-15"),
    ([(0, 10), (5, 15)], "Overlapping ranges: 0-10 and 5-15"),
    ([(0, 10), (0, 10)], "Overlapping ranges: 0-10 and 0-10"),
    ([(0, 20), (5, 10)], "Overlapping ranges: 0-20 and 5-10"),
    ([(0, 10), (3, 3), (9, 12)], "Overlapping ranges: 0-10 and 9-12"),
]


@pytest.mark.parametrize(("ranges", "message"), INVALID_RANGES)
def test_ranges_that_make_no_sense_are_named(ranges: list[tuple[int, int]], message: str) -> None:
    with pytest.raises(ValueError, match=f"^{re.escape(message)}"):
        reader_of(ScriptedObject(DATA), ranges)


@pytest.mark.parametrize("nothing", [None, []])
def test_ranges_are_needed(nothing: Any) -> None:
    stored = ScriptedObject(DATA)
    with pytest.raises(ValueError, match=r"^item_ranges must be a non-empty List\[ItemRange\] object$"):
        DCPOptimizedS3Reader("bucket", "key", nothing, stored.get_object_info, stored.get_stream)


@pytest.mark.parametrize("key", ["", None])
def test_a_key_is_needed(key: Any) -> None:
    stored = ScriptedObject(DATA)
    with pytest.raises(ValueError, match=r"^Key should be specified$"):
        DCPOptimizedS3Reader("bucket", key, [ItemRange(0, 1)], stored.get_object_info, stored.get_stream)


@pytest.mark.parametrize(("wrong", "name"), [("x", "str"), (None, "NoneType"), ([1], "list")])
def test_the_gap_is_a_number(wrong: Any, name: str) -> None:
    with pytest.raises(TypeError, match=f"^max_gap_size must be int or float, got {name}$"):
        reader_of(ScriptedObject(DATA), max_gap_size=wrong)


@pytest.mark.parametrize("negative", [-1, -0.5, float("-inf"), float("nan")])
def test_the_gap_is_not_negative(negative: float) -> None:
    with pytest.raises(ValueError, match=r"^max_gap_size must be non-negative"):
        reader_of(ScriptedObject(DATA), max_gap_size=negative)


def test_ranges_and_groups_are_values() -> None:
    item = ItemRange(start=1, end=2)
    assert item == ItemRange(1, 2)
    assert hash(item) == hash(ItemRange(1, 2))
    assert RangeGroup(1, 2, [item]) == RangeGroup(start=1, end=2, item_ranges=[ItemRange(1, 2)])


#: Items read whole first, the range then asked for, what the message says of it.
REFUSALS: list[tuple[int, tuple[int, int], str]] = [
    (0, (0, 5), "current item 10-30"),
    (0, (25, 35), "current item 10-30"),
    (0, (30, 35), "current item 10-30"),
    (1, (0, 5), "current item 10-30"),
    (1, (29, 31), "current item 10-30"),
    (1, (60, 70), "current item 10-30 nor the next item 30-50"),
    (1, (45, 55), "current item 10-30 nor the next item 30-50"),
    (2, (10, 15), "current item 30-50"),
    (2, (50, 60), "current item 30-50 nor the next item 60-100"),
    (2, (99, 101), "current item 30-50 nor the next item 60-100"),
    (3, (30, 31), "current item 60-100"),
    (3, (99, 101), "current item 60-100"),
    (3, (100, 101), "last item with range 60-100"),
    (3, (150, 160), "last item with range 60-100"),
]


@pytest.mark.parametrize(("read_before", "asked", "where"), REFUSALS)
def test_what_is_out_of_reach_is_refused_and_changes_nothing(
    read_before: int, asked: tuple[int, int], where: str
) -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored)
    for start, end in ITEMS[:read_before]:
        read(reader, start, end)
    message = f"{FIND_ITEM_ERROR_PREFIX}Range {asked[0]}-{asked[1]} not contained in {where}.\n{FALLBACK_GUIDANCE}"
    reader.seek(asked[0])
    for _ in range(2):
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            reader.read(asked[1] - asked[0])
        with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
            reader.readinto(bytearray(asked[1] - asked[0]))
    assert reader.tell() == asked[0]
    for start, end in ITEMS[max(read_before - 1, 0) :]:
        assert read(reader, start, end) == DATA[start:end]
    assert stored.ranges == [(10, 100)]


def test_the_guidance_is_ours() -> None:
    assert FIND_ITEM_ERROR_PREFIX == ("DCPOptimizedS3Reader only supports sequentially accessing provided ranges: ")
    assert "S3ReaderConstructor.default()" in FALLBACK_GUIDANCE
    assert DEFAULT_MAX_GAP_SIZE == 32 * 1024 * 1024


@pytest.mark.parametrize("size", [None, -1, -5])
def test_there_is_no_reading_to_the_end(size: int | None) -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored)
    reader.seek(10)
    with pytest.raises(ValueError, match=re.escape(FALLBACK_GUIDANCE) + "$"):
        reader.read(size)
    with pytest.raises(ValueError, match="Size must not be None"):
        reader.read()
    assert stored.ranges == []


@pytest.mark.parametrize("offset", [0, -5, 5])
def test_there_is_no_seeking_from_the_end(offset: int) -> None:
    with pytest.raises(ValueError, match="SEEK_END is not supported"):
        reader_of(ScriptedObject(DATA)).seek(offset, io.SEEK_END)


def test_within_an_item_one_goes_anywhere() -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored)
    for start in (20, 10, 29, 15):
        assert read(reader, start, start + 1) == DATA[start : start + 1]
    reader.seek(30)
    assert reader.seek(-5, io.SEEK_CUR) == 25
    assert reader.read(5) == DATA[25:30]
    assert stored.ranges == [(10, 100)]


def test_an_item_goes_on_into_its_neighbour_by_itself() -> None:
    reader = reader_of(ScriptedObject(DATA))
    assert read(reader, 10, 30) == DATA[10:30]
    assert reader.read(20) == DATA[30:50]


#: Where the first stream ends, the item being read, the message.
EARLY_ENDS = [
    (10, 0, "S3 stream exhausted at position 10 while reading item 10-30"),
    (20, 0, "S3 stream exhausted at position 20 while reading item 10-30"),
    (30, 1, "S3 stream exhausted at position 30 while reading item 30-50"),
    (50, 2, "S3 stream exhausted at position 50 before reaching item 60-100"),
    (55, 2, "S3 stream exhausted at position 55 before reaching item 60-100"),
    (60, 2, "S3 stream exhausted at position 60 while reading item 60-100"),
    (99, 2, "S3 stream exhausted at position 99 while reading item 60-100"),
]


@pytest.mark.parametrize(("ends_at", "failing", "message"), EARLY_ENDS)
def test_a_stream_that_ends_early_is_named_and_the_item_can_be_asked_for_again(
    ends_at: int, failing: int, message: str
) -> None:
    stored = ScriptedObject(DATA)
    stored.ends_at = ends_at
    reader = reader_of(stored)
    for start, end in ITEMS[:failing]:
        assert read(reader, start, end) == DATA[start:end]
    start, end = ITEMS[failing]
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$") as caught:
        read(reader, start, end)
    assert isinstance(caught.value, S3Exception)
    assert (reader.tell(), stored.open_streams) == (start, 0)
    for start, end in ITEMS[failing:]:
        assert read(reader, start, end) == DATA[start:end]
    assert stored.ranges == [(10, 100), (ITEMS[failing][0], 100)]


def test_a_stream_that_breaks_is_opened_again_at_the_item() -> None:
    stored = ScriptedObject(DATA)
    stored.breaks_at = 40
    reader = reader_of(stored)
    assert read(reader, 10, 30) == DATA[10:30]
    with pytest.raises(BrokenStream):
        read(reader, 30, 50)
    assert stored.open_streams == 0
    with pytest.raises(ValueError, match="Range 10-11 not contained in current item 30-50"):
        read(reader, 10, 11)
    assert read(reader, 30, 50) == DATA[30:50]
    assert stored.ranges == [(10, 100), (30, 100)]


def test_the_next_group_closes_the_stream_of_the_one_before() -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored, max_gap_size=0)
    read(reader, 10, 30)
    assert stored.open_streams == 1
    read(reader, 30, 50)
    assert (stored.open_streams, stored.ended_streams) == (0, 1)
    read(reader, 60, 100)
    assert stored.ranges == [(10, 50), (60, 100)]


def test_a_stream_whose_last_items_are_skipped_is_closed() -> None:
    stored = ScriptedObject(DATA)
    with reader_of(stored) as reader:
        read(reader, 10, 11)
        assert stored.open_streams == 1
    assert stored.open_streams == 0


def test_chunks_are_kept_not_copied() -> None:
    chunks = [bytearray(b"a" * 20), bytearray(b"b" * 20)]
    reader = DCPOptimizedS3Reader(
        "bucket", "key", [ItemRange(0, 40)], ScriptedObject(b"").get_object_info, lambda *_: iter(chunks)
    )
    reader.read(1)
    assert reader._loaded is not None
    assert [piece.obj for piece in reader._loaded.pieces(0, 40)] == chunks
    assert all(piece.obj is chunk for piece, chunk in zip(reader._loaded.pieces(0, 40), chunks, strict=True))


def test_an_item_of_one_chunk_is_that_chunk() -> None:
    chunks = [b"a" * 20, b"b" * 20]
    reader = DCPOptimizedS3Reader(
        "bucket",
        "key",
        [ItemRange(0, 20), ItemRange(20, 40)],
        ScriptedObject(b"").get_object_info,
        lambda *_: iter(chunks),
    )
    assert reader.read(20) is chunks[0]
    assert reader.read(20) is chunks[1]


def test_pickles_are_read_item_by_item() -> None:
    first, second = (pickle.dumps(list(range(count))) for count in (3000, 10))
    stored = ScriptedObject(first + second, [1000])
    reader = reader_of(stored, [(0, len(first)), (len(first), len(first + second))])
    assert pickle.load(reader) == list(range(3000))
    assert pickle.load(reader) == list(range(10))


def test_torch_loads_an_item() -> None:
    tensor = torch.arange(1000.0)
    buffer = io.BytesIO()
    torch.save(tensor, buffer)
    item = buffer.getvalue()
    reader = reader_of(ScriptedObject(b"gap" + item, [500]), [(3, 3 + len(item))])
    reader.seek(3)
    assert torch.equal(torch.load(io.BytesIO(reader.read(len(item))), weights_only=True), tensor)
