from __future__ import annotations

import io
import pickle
import zipfile
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import settings
from hypothesis.stateful import invariant

from aiockpt.errors import S3Exception
from aiockpt.s3reader.sequential import SequentialS3Reader
from s3reader.file_model import FileMachine
from s3reader.scripted_object import BrokenStream, ScriptedObject, numbered

if TYPE_CHECKING:
    from hypothesis import strategies as st

DATA = numbered(100)


class SequentialMachine(FileMachine):
    def make_reader(self, data: st.DataObject) -> SequentialS3Reader:
        del data
        return reader_of(self.stored)

    @invariant()
    def one_stream_of_the_whole_object(self) -> None:
        assert self.stored.ranges in ([], [(None, None)])
        assert self.stored.infos <= 1


SequentialMachine.TestCase.settings = settings(max_examples=100, stateful_step_count=20, deadline=None)
TestAsBytesIO = SequentialMachine.TestCase


def reader_of(stored: ScriptedObject) -> SequentialS3Reader:
    return SequentialS3Reader("bucket", "key", stored.get_object_info, stored.get_stream)


def test_the_end_needs_the_info_but_no_stream() -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored)
    assert reader.seek(0, io.SEEK_END) == 100
    assert reader.read() == b""
    assert reader.read(5) == b""
    assert reader.readinto(bytearray(5)) == 0
    assert reader.seek(-10, io.SEEK_END) == 90
    assert reader.seek(500) == 100
    assert (stored.infos, stored.ranges) == (1, [])
    reader.seek(90)
    assert reader.read() == DATA[90:]
    assert stored.ranges == [(None, None)]


def test_the_end_of_the_stream_needs_no_info() -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored)
    assert reader.read() == DATA
    assert reader.seek(-1, io.SEEK_END) == 99
    assert reader.seek(500) == 100
    assert stored.infos == 0


def test_a_seek_past_the_end_of_unknown_size_finds_the_end_in_the_stream() -> None:
    stored = ScriptedObject(DATA)
    assert reader_of(stored).seek(500) == 100
    assert stored.infos == 0


def test_going_back_asks_for_nothing_again() -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored)
    for start in (80, 0, 40, 99, 7):
        reader.seek(start)
        assert reader.read(20) == DATA[start : start + 20]
    assert stored.ranges == [(None, None)]


def test_prefetch_opens_the_stream_once_and_reads_nothing() -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored)
    reader.prefetch()
    reader.prefetch()
    assert stored.ranges == [(None, None)]
    assert stored.open_streams == 0  # no chunk has been asked for
    assert reader.read(5) == DATA[:5]
    assert stored.ranges == [(None, None)]
    reader.close()
    with pytest.raises(ValueError, match="closed file"):
        reader.prefetch()


def test_only_as_much_is_received_as_is_asked_for() -> None:
    stored = ScriptedObject(DATA, [10])
    reader = reader_of(stored)
    reader.read(15)
    assert len(b"".join(reader._kept.pieces(0, 100))) == 20


def test_a_chunk_read_whole_is_not_copied() -> None:
    chunks = [b"a" * 10, b"b" * 10]
    reader = SequentialS3Reader("bucket", "key", ScriptedObject(b"").get_object_info, lambda *_: iter(chunks))
    assert reader.read(10) is chunks[0]
    assert reader.read(10) is chunks[1]


def test_a_get_stream_without_parameters_will_do() -> None:
    stored = ScriptedObject(DATA)
    reader = SequentialS3Reader(
        "bucket",
        "key",
        stored.get_object_info,
        lambda: iter([DATA]),  # type: ignore[arg-type]
    )
    assert reader.read() == DATA


def test_it_goes_on_where_a_stream_broke() -> None:
    stored = ScriptedObject(DATA)
    stored.breaks_at = 40
    reader = reader_of(stored)
    assert reader.read(20) == DATA[:20]
    with pytest.raises(BrokenStream):
        reader.read()
    assert reader.tell() == 20
    assert reader.read() == DATA[20:]
    assert stored.ranges == [(None, None), (40, None)]


@pytest.mark.parametrize("ask_first", [True, False])
def test_a_stream_shorter_than_the_object_is_an_error_where_that_can_be_known(ask_first: bool) -> None:
    stored = ScriptedObject(DATA)
    stored.ends_at = 40
    reader = reader_of(stored)
    if ask_first:
        reader.seek(0, io.SEEK_END)
        reader.seek(0)
        with pytest.raises(S3Exception, match="exhausted at position 40 of 100"):
            reader.read()
        assert reader.tell() == 0
        assert reader.read() == DATA
    else:
        assert reader.read() == DATA[:40]


def test_a_stream_of_known_size_is_read_to_its_end_so_that_it_may_verify() -> None:
    stored = ScriptedObject(DATA)
    reader = reader_of(stored)
    reader.seek(0, io.SEEK_END)
    reader.seek(0)
    assert reader.read(100) == DATA
    assert (stored.ended_streams, stored.open_streams) == (1, 0)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_torch_loads_through_it(zipped: bool) -> None:
    state = {"weight": torch.arange(1000.0).reshape(10, 100), "step": 3, "nested": [torch.ones(5), "text"]}
    buffer = io.BytesIO()
    torch.save(state, buffer, _use_new_zipfile_serialization=zipped)
    stored = ScriptedObject(buffer.getvalue(), [1000], kinds=[bytes])
    loaded = torch.load(reader_of(stored), weights_only=True)
    assert torch.equal(loaded["weight"], state["weight"])  # type: ignore[arg-type]
    assert loaded["step"] == 3
    assert torch.equal(loaded["nested"][0], torch.ones(5))
    assert stored.ranges == [(None, None)]


def test_pickle_and_zipfile_read_through_it() -> None:
    value = {"numbers": list(range(10000)), "bytes": numbered(1000)}
    assert pickle.load(reader_of(ScriptedObject(pickle.dumps(value), [100]))) == value
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as writing:
        writing.writestr("a", DATA)
    with zipfile.ZipFile(reader_of(ScriptedObject(archive.getvalue()))) as reading:
        assert reading.read("a") == DATA
