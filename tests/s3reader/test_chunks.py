from __future__ import annotations

import array
import pickle
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.errors import S3Exception, ShortRead
from aiockpt.s3reader.chunks import ChunkBuffer, ChunkStream, StreamExhausted, joined, writable_view
from s3reader.scripted_object import ScriptedObject, chunkings, numbered

if TYPE_CHECKING:
    from collections.abc import Iterator

DATA = numbered(60)


@given(chunk_sizes=chunkings, cuts=st.lists(st.integers(0, 60)).map(sorted))
def test_a_stream_is_cut_anywhere(chunk_sizes: list[int], cuts: list[int]) -> None:
    stream = ChunkStream(ScriptedObject(DATA, chunk_sizes).get_stream(), 0)
    for start, end in pairwise([0, *cuts]):
        assert b"".join(stream.take(end, "")) == DATA[start:end]
        assert stream.position == end
    rest = stream.position
    while (chunk := stream.next_chunk()) is not None:
        assert chunk == DATA[rest : rest + chunk.nbytes]
        rest += chunk.nbytes
        assert stream.position == rest
    assert rest == 60


@given(chunk_sizes=chunkings, start=st.integers(0, 60), end=st.integers(0, 60))
def test_a_buffer_gives_what_it_has(chunk_sizes: list[int], start: int, end: int) -> None:
    views = ChunkStream(ScriptedObject(DATA, chunk_sizes).get_stream(10, 50), 10).take(50, "")
    buffer = ChunkBuffer(10, views)
    assert buffer.end == 50
    kept = DATA[start : min(end, 50)] if start >= 10 else b""
    assert joined(buffer.pieces(start, end)) == kept


def test_positions_count_from_the_start_of_the_stream() -> None:
    stream = ChunkStream([b"abc", b"def"], 100)
    assert b"".join(stream.take(104, "")) == b"abcd"
    assert stream.position == 104


def test_a_stream_that_ends_early_says_where_and_why() -> None:
    stream = ChunkStream([b"abc", b"def"], 100)
    with pytest.raises(StreamExhausted, match="S3 stream exhausted at position 106 while testing") as caught:
        list(stream.take(107, "while testing"))
    assert isinstance(caught.value, ShortRead)
    assert isinstance(caught.value, S3Exception)
    assert isinstance(caught.value, ValueError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_finishing_lets_the_stream_end_by_itself() -> None:
    stored = ScriptedObject(DATA)
    stream = ChunkStream(stored.get_stream(), 0)
    list(stream.take(60, ""))
    assert stored.ended_streams == 0
    stream.finish()
    assert stored.ended_streams == 1


def test_closing_closes_the_stream_and_drops_its_bytes() -> None:
    stored = ScriptedObject(DATA)
    stream = ChunkStream(stored.get_stream(), 0)
    list(stream.take(3, ""))
    assert stored.open_streams == 1
    stream.close()
    stream.close()
    assert stored.open_streams == 0
    assert stream.next_chunk() is None


def test_a_stream_without_close_can_be_closed() -> None:
    ChunkStream([b"abc"], 0).close()


def test_chunks_of_wider_items_count_as_bytes() -> None:
    chunk = memoryview(array.array("I", [1, 2]))
    stream = ChunkStream([chunk], 0)
    assert joined(stream.take(6, "")) == bytes(chunk)[:6]


def test_nothing_is_copied_on_the_way() -> None:
    chunk = bytearray(b"abcdef")
    buffer = ChunkBuffer(0, ChunkStream([chunk], 0).take(4, ""))
    (piece,) = buffer.pieces(1, 3)
    assert piece.obj is chunk


def test_joining_the_whole_of_one_bytes_object_returns_it() -> None:
    whole = b"abcdef"
    assert joined([memoryview(whole)]) is whole
    assert joined([memoryview(whole)[1:]]) == b"bcdef"
    assert joined([memoryview(bytearray(whole))]) == whole
    assert joined([]) == b""


def test_joining_takes_an_iterator() -> None:
    def views() -> Iterator[memoryview]:
        yield memoryview(b"ab")
        yield memoryview(b"cd")

    assert joined(views()) == b"abcd"


def test_a_writable_view_is_bytes_whatever_the_items() -> None:
    numbers = array.array("H", [0, 0])
    with writable_view(numbers) as view:
        view[:] = b"\x01\x00\x02\x00"
    assert list(numbers) == [1, 2]


@pytest.mark.parametrize(
    ("target", "name"),
    [
        (b"abc", "bytes"),
        (memoryview(b"abc"), "memoryview"),
        (memoryview(bytearray(8))[::2], "memoryview"),
        ("abc", "str"),
        (3, "int"),
        ([1], "list"),
        (None, "NoneType"),
    ],
)
def test_what_cannot_be_written_to_is_named(target: bytes, name: str) -> None:
    with pytest.raises(TypeError, match=f"^argument must be a writable bytes-like object, not {name}$"):
        writable_view(target)
