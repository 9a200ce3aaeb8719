"""What the three readers do alike. What each does on its own is in the tests of its module."""

from __future__ import annotations

import inspect
import io
import threading
from typing import TYPE_CHECKING, Any

import pytest

from aiockpt.s3reader import DCPOptimizedS3Reader, ItemRange, RangedS3Reader, S3Reader, SequentialS3Reader
from s3reader.scripted_object import ScriptedObject, numbered

if TYPE_CHECKING:
    from collections.abc import Callable

    from _typeshed import WriteableBuffer

DATA = numbered(100)


def sequential(stored: ScriptedObject, bucket: str = "bucket") -> S3Reader:
    return SequentialS3Reader(bucket, "key", stored.get_object_info, stored.get_stream)


def ranged(stored: ScriptedObject, bucket: str = "bucket") -> S3Reader:
    return RangedS3Reader(bucket, "key", stored.get_object_info, stored.get_stream, buffer_size=20)


def dcp_optimized(stored: ScriptedObject, bucket: str = "bucket") -> S3Reader:
    item = ItemRange(0, len(stored.data))
    return DCPOptimizedS3Reader(bucket, "key", [item], stored.get_object_info, stored.get_stream)


each_reader = pytest.mark.parametrize("make", [sequential, ranged, dcp_optimized])


@pytest.fixture
def stored() -> ScriptedObject:
    return ScriptedObject(DATA)


@each_reader
def test_it_is_a_readable_seekable_binary_file(
    make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject
) -> None:
    reader = make(stored)
    assert isinstance(reader, io.BufferedIOBase)
    assert isinstance(reader, S3Reader)
    assert (reader.readable(), reader.writable(), reader.seekable()) == (True, False, True)
    assert (reader.bucket, reader.key) == ("bucket", "key")
    with pytest.raises(io.UnsupportedOperation):
        reader.write(b"x")


@each_reader
def test_making_one_does_no_io(make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject) -> None:
    reader = make(stored)
    assert reader.tell() == 0
    assert reader.read(0) == b""
    assert reader.readinto(bytearray()) == 0
    assert (stored.infos, stored.ranges) == (0, [])


@each_reader
@pytest.mark.parametrize("bucket", ["", None])
def test_a_bucket_is_needed(
    make: Callable[[ScriptedObject, Any], S3Reader], stored: ScriptedObject, bucket: str | None
) -> None:
    with pytest.raises(ValueError, match=r"^Bucket should be specified$"):
        make(stored, bucket)


@each_reader
@pytest.mark.parametrize("wrong", ["x", 1.0, b"1", [1]])
def test_numbers_must_be_integers(
    make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject, wrong: Any
) -> None:
    reader = make(stored)
    for operation in (
        lambda: reader.read(wrong),
        lambda: reader.seek(wrong),
        lambda: reader.seek(0, wrong),
    ):
        with pytest.raises(TypeError):
            operation()
    for operation in (lambda: reader.seek(None), lambda: reader.seek(0, None)):  # type: ignore[arg-type]
        with pytest.raises(TypeError):
            operation()
    assert reader.tell() == 0


@each_reader
@pytest.mark.parametrize("whence", [3, -1, 100])
def test_an_unknown_whence_is_refused(
    make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject, whence: int
) -> None:
    with pytest.raises(ValueError, match=f"whence {whence}"):
        make(stored).seek(0, whence)


@each_reader
@pytest.mark.parametrize(("offset", "whence", "target"), [(-1, io.SEEK_SET, -1), (-8, io.SEEK_CUR, -3)])
def test_before_the_start_there_is_nothing(
    make: Callable[[ScriptedObject], S3Reader],
    stored: ScriptedObject,
    offset: int,
    whence: int,
    target: int,
) -> None:
    reader = make(stored)
    reader.seek(5)
    with pytest.raises(ValueError, match=f"negative seek value {target}"):
        reader.seek(offset, whence)
    assert reader.tell() == 5


@each_reader
@pytest.mark.parametrize("target", [b"abc", "abc", memoryview(b"abc"), 5, None, [1]])
def test_readinto_needs_a_writable_buffer(
    make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject, target: Any
) -> None:
    name = type(target).__name__
    with pytest.raises(TypeError, match=f"^argument must be a writable bytes-like object, not {name}$"):
        make(stored).readinto(target)
    assert stored.ranges == []


@each_reader
def test_readinto_leaves_its_buffer_free_to_grow(
    make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject
) -> None:
    target = bytearray(10)
    assert make(stored).readinto(target) == 10
    target.append(1)
    assert target[:10] == DATA[:10]


@each_reader
def test_readinto_counts_bytes_whatever_the_items(
    make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject
) -> None:
    target = memoryview(bytearray(16)).cast("I")
    assert make(stored).readinto(target) == 16
    assert bytes(target) == DATA[:16]


@each_reader
def test_after_close_everything_is_refused(make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject) -> None:
    reader = make(stored)
    reader.read(3)
    reader.close()
    reader.close()
    assert reader.closed
    for operation in (
        lambda: reader.read(1),
        lambda: reader.readinto(bytearray(1)),
        lambda: reader.seek(0),
        lambda: reader.seek(0, io.SEEK_END),
        reader.tell,
        lambda: reader.read1(1),
        reader.readline,
        reader.__enter__,
    ):
        with pytest.raises(ValueError, match="closed file"):
            operation()


@each_reader
def test_leaving_the_context_closes_the_stream(
    make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject
) -> None:
    with make(stored) as reader:
        assert reader.read(3) == DATA[:3]
    assert reader.closed
    assert stored.open_streams == 0


@each_reader
def test_a_failing_close_of_the_stream_still_closes_the_reader(
    make: Callable[[Any], S3Reader],
) -> None:
    class Unclosable:
        data = DATA

        def get_object_info(self) -> Unclosable:
            return self

        size = len(DATA)

        def get_stream(self, *_: int) -> Unclosable:
            return self

        def __iter__(self) -> Unclosable:
            return self

        def __next__(self) -> bytes:
            return b"abc"

        def close(self) -> None:
            raise OSError("still busy")

    reader = make(Unclosable())
    if isinstance(reader, SequentialS3Reader):
        reader.prefetch()
        with pytest.raises(OSError, match="still busy"):
            reader.close()
    else:
        with pytest.raises(OSError, match="still busy"):
            reader.read(5)
        reader.close()
    assert reader.closed


@each_reader
def test_text_and_lines_come_from_blocks_not_single_bytes(
    make: Callable[[ScriptedObject], S3Reader],
) -> None:
    lines = [f"line {number}\n".encode() for number in range(50)]
    stored = ScriptedObject(b"".join(lines), [100])
    reader = make(stored)
    assert [reader.readline() for _ in lines] == lines
    reader = make(stored)
    assert io.TextIOWrapper(reader).readline() == "line 0\n"


@each_reader
def test_any_chunk_types_and_empty_chunks_will_do(make: Callable[[ScriptedObject], S3Reader]) -> None:
    stored = ScriptedObject(DATA, [0, 3, 0, 0, 11])
    reader = make(stored)
    assert reader.read(50) == DATA[:50]
    assert reader.read(50) == DATA[50:]


@each_reader
def test_it_may_move_to_another_thread(make: Callable[[ScriptedObject], S3Reader], stored: ScriptedObject) -> None:
    reader = make(stored)
    reader.read(10)
    results: list[bytes] = []
    thread = threading.Thread(target=lambda: results.append(reader.read(10)))
    thread.start()
    thread.join()
    assert results == [DATA[10:20]]


def test_the_base_class_is_abstract_and_can_be_extended() -> None:
    assert inspect.isabstract(S3Reader)

    class Empty(S3Reader):
        bucket = "bucket"
        key = "key"

        def read(self, size: int | None = None) -> bytes:
            del size
            return b""

        def readinto(self, buf: WriteableBuffer) -> int:
            del buf
            return 0

        def seek(self, offset: int, whence: int = io.SEEK_SET, /) -> int:
            return offset + whence

        def tell(self) -> int:
            return 0

    with Empty() as reader:
        assert reader.read() == b""
        assert reader.readable()
