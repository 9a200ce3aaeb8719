from __future__ import annotations

import io
import pickle
import tracemalloc
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant

from aiockpt.errors import S3Exception
from aiockpt.model import MiB
from aiockpt.s3reader.ranged import RangedS3Reader
from s3reader.file_model import FileMachine
from s3reader.scripted_object import BrokenStream, ScriptedObject, numbered

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = numbered(100)


class RangedMachine(FileMachine):
    def make_reader(self, data: st.DataObject) -> RangedS3Reader:
        return reader_of(self.stored, data.draw(st.none() | st.integers(0, 60), label="buffer size"))

    @invariant()
    def only_ranges_that_exist(self) -> None:
        assert self.stored.infos <= 1
        for start, end in self.stored.ranges:
            assert start is not None
            assert end is not None
            assert 0 <= start < end <= len(self.stored.data)

    @invariant()
    def no_stream_stays_open(self) -> None:
        assert self.stored.open_streams == 0
        assert self.stored.ended_streams == len(self.stored.ranges)


RangedMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
TestAsBytesIO = RangedMachine.TestCase


def reader_of(stored: ScriptedObject, buffer_size: int | None = None) -> RangedS3Reader:
    return RangedS3Reader("bucket", "key", stored.get_object_info, stored.get_stream, buffer_size)


#: Buffer size, reads as (position, size), the ranges that they ask for.
REQUESTS: dict[str, tuple[int, list[tuple[int, int | None]], list[tuple[int, int]]]] = {
    "small reads share a buffer": (20, [(0, 3), (3, 10), (13, 7)], [(0, 20)]),
    "going back within the buffer is free": (20, [(30, 20), (50, 3), (50, 1), (69, 1)], [(30, 50), (50, 70)]),
    "as large as the buffer goes past it": (20, [(0, 20), (0, 3)], [(0, 20), (0, 20)]),
    "larger goes past it": (20, [(0, 50), (0, 3)], [(0, 50), (0, 20)]),
    "past it leaves it": (20, [(0, 3), (50, 30), (0, 3)], [(0, 20), (50, 80)]),
    "runs on a little: the rest fills the buffer": (20, [(0, 3), (15, 10)], [(0, 20), (20, 40)]),
    "runs on far: the rest goes past the buffer": (20, [(0, 3), (18, 22), (0, 3)], [(0, 20), (20, 40)]),
    "runs on to the end": (20, [(0, 3), (3, None)], [(0, 20), (20, 100)]),
    "starts before the buffer": (20, [(50, 5), (45, 10)], [(50, 70), (45, 65)]),
    "starts before and runs over it": (20, [(50, 5), (40, 60)], [(50, 70), (40, 100)]),
    "the buffer stops at the end": (20, [(95, 1), (97, 3)], [(95, 100)]),
    "reads stop at the end": (20, [(90, 50)], [(90, 100)]),
    "no buffer": (0, [(0, 3), (0, 3), (3, 5)], [(0, 3), (0, 3), (3, 8)]),
    "at the end nothing is asked for": (20, [(100, 5), (100, None)], []),
    "a read of everything": (20, [(0, None)], [(0, 100)]),
    "a read of everything that fits the buffer": (200, [(0, None), (0, None)], [(0, 100)]),
}


@pytest.mark.parametrize("into", [False, True], ids=["read", "readinto"])
@pytest.mark.parametrize(("buffer_size", "reads", "ranges"), REQUESTS.values(), ids=REQUESTS.keys())
def test_the_ranges_it_asks_for(
    buffer_size: int, reads: list[tuple[int, int | None]], ranges: list[tuple[int, int]], into: bool
) -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored, buffer_size)
    for position, size in reads:
        expected = DATA[position:] if size is None else DATA[position : position + size]
        reader.seek(position)
        if into:
            target = bytearray(len(expected))
            assert reader.readinto(target) == len(expected)
            assert target == expected
        else:
            assert reader.read(size) == expected
    assert stored.ranges == ranges
    assert stored.infos == 1


def test_the_buffer_is_8_mib_unless_told() -> None:
    size = 8 * MiB
    stored = ScriptedObject(bytes(size + 1), [MiB], kinds=[bytes])
    reader = reader_of(stored)
    reader.read(1)
    reader.seek(0)
    reader.read(size)
    reader.seek(0)
    reader.read(size - 1)
    assert stored.ranges == [(0, size)]


def test_the_end_needs_the_info_but_no_stream() -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored)
    assert reader.seek(0, io.SEEK_END) == 100
    assert reader.read() == b""
    assert reader.seek(500) == 100
    assert (stored.infos, stored.ranges) == (1, [])


@pytest.mark.parametrize("wrong", [1.5, "8", [8]])
def test_the_buffer_size_is_an_integer(wrong: Any) -> None:
    with pytest.raises(TypeError):
        reader_of(ScriptedObject(DATA), wrong)


def test_large_reads_land_chunk_by_chunk() -> None:
    target = bytearray(100)
    landed: list[bytes] = []

    def get_stream(start: int | None = None, end: int | None = None, /) -> Iterator[bytes]:
        for position in range(start or 0, end or 0, 25):
            landed.append(bytes(target[:position]))
            yield DATA[position : position + 25]

    reader = RangedS3Reader("bucket", "key", ScriptedObject(DATA).get_object_info, get_stream, 0)
    assert reader.readinto(target) == 100
    assert landed == [DATA[:0], DATA[:25], DATA[:50], DATA[:75]]


def test_a_single_chunk_is_not_copied() -> None:
    chunk = b"x" * 50
    reader = RangedS3Reader("bucket", "key", ScriptedObject(chunk).get_object_info, lambda *_: iter([chunk]), 0)
    assert reader.read() is chunk


def test_a_large_read_takes_its_own_size_in_memory_not_twice() -> None:
    stored = ScriptedObject(bytes(32 * MiB), [MiB], kinds=[bytes])
    reader = reader_of(stored)
    tracemalloc.start()
    try:
        data = reader.read()
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert len(data) == 32 * MiB
    assert peak < 40 * MiB


@pytest.mark.parametrize("buffer_size", [0, 60])
def test_a_failed_read_moves_nothing_and_can_be_repeated(buffer_size: int) -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored, buffer_size)
    reader.seek(10)
    stored.breaks_at = 30
    with pytest.raises(BrokenStream):
        reader.read(50)
    stored.ends_at = 30
    with pytest.raises(S3Exception, match="exhausted at position 30 while reading 10-"):
        reader.read(50)
    assert reader.tell() == 10
    assert reader.read(50) == DATA[10:60]
    assert stored.open_streams == 0


@pytest.mark.parametrize("buffer_size", [None, 0, 100])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_loads_through_it(zipped: bool, buffer_size: int | None) -> None:
    state = {"weight": torch.arange(1000.0).reshape(10, 100), "step": 3}
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    stored = ScriptedObject(buffer.getvalue(), [1000], kinds=[bytes])
    loaded = torch.load(reader_of(stored, buffer_size), weights_only=True)
    assert torch.equal(loaded["weight"], state["weight"])  # type: ignore[arg-type]
    assert loaded["step"] == 3


def test_unpickling_without_a_buffer_asks_for_blocks() -> None:
    pickled = pickle.dumps(list(range(10000)))
    stored = ScriptedObject(pickled, [1000])
    assert pickle.load(reader_of(stored, 0)) == list(range(10000))
    assert len(stored.ranges) < 12
