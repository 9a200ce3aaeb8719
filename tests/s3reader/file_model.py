"""A state machine that drives a reader and `io.BytesIO` side by side: whatever one gives, the other must."""

from __future__ import annotations

import io

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from aiockpt.s3reader.s3reader import ChunkedS3Reader
from s3reader.scripted_object import ScriptedObject, chunkings

positions = st.integers(-20, 120)


class FileMachine(RuleBasedStateMachine):
    """Any operations in any order, over any chunking. Seeks past the end stop at the end, unlike BytesIO's."""

    stored: ScriptedObject
    reader: ChunkedS3Reader
    model: io.BytesIO

    def make_reader(self, data: st.DataObject) -> ChunkedS3Reader:
        raise NotImplementedError

    @initialize(content=st.binary(max_size=100), chunk_sizes=chunkings, data=st.data())
    def start(self, content: bytes, chunk_sizes: list[int], data: st.DataObject) -> None:
        self.stored = ScriptedObject(content, chunk_sizes)
        self.model = io.BytesIO(content)
        self.reader = self.make_reader(data)

    @rule(size=st.none() | positions)
    def read(self, size: int | None) -> None:
        assert self.reader.read(size) == self.model.read(size)

    @rule(size=st.integers(0, 120))
    def readinto(self, size: int) -> None:
        ours, theirs = bytearray(size), bytearray(size)
        assert self.reader.readinto(ours) == self.model.readinto(theirs)
        assert ours == theirs

    @rule(whence=st.sampled_from([io.SEEK_SET, io.SEEK_CUR, io.SEEK_END]), offset=positions)
    def seek(self, whence: int, offset: int) -> None:
        size = len(self.stored.data)
        target = {io.SEEK_SET: 0, io.SEEK_CUR: self.model.tell(), io.SEEK_END: size}[whence] + offset
        if target < 0:
            with pytest.raises(ValueError, match=f"negative seek value {target}"):
                self.reader.seek(offset, whence)
        else:
            assert self.reader.seek(offset, whence) == self.model.seek(min(target, size))

    @rule()
    def readline(self) -> None:
        assert self.reader.readline() == self.model.readline()

    @rule(size=st.integers(-1, 20))
    def read1(self, size: int) -> None:
        assert self.reader.read1(size) == self.model.read1(size)

    @rule(size=st.integers(0, 20))
    def peek(self, size: int) -> None:
        rest = self.model.getvalue()[self.model.tell() :]
        peeked = self.reader.peek(size)
        assert rest.startswith(peeked)
        assert bool(peeked) == bool(rest)

    @invariant()
    def same_position(self) -> None:
        assert self.reader.tell() == self.model.tell()

    def teardown(self) -> None:
        if hasattr(self, "reader"):
            self.reader.close()
            assert self.stored.open_streams == 0
