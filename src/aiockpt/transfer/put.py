"""A checkpoint from a folder, or from a store that ours cannot copy from, into a bucket.

Blocks are staged within the engine's byte budget and leave as parts while the next ones are read. Data first; once all
of it stands, the metadata, where there are none.
"""

from __future__ import annotations

import io
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

from aiockpt.blocking.reading import ObjectStream
from aiockpt.blocking.store import Store
from aiockpt.errors import ShortRead
from aiockpt.model import NOTHING, MiB, ObjectId
from aiockpt.transfer.contents import Contents, DataFile

BLOCK_BYTES = 4 * MiB


class Source(ABC):
    """Where a checkpoint's data are read."""

    @abstractmethod
    def blocks(self, file: DataFile, reserve: Callable[[int], None]) -> Iterator[memoryview]:
        """The file front to back, in memory that is the caller's to keep; ``reserve`` is called before each block."""


class Folder(Source):
    """A checkpoint in a folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def blocks(self, file: DataFile, reserve: Callable[[int], None]) -> Iterator[memoryview]:
        """See ``Source``."""
        with (self._folder / file.path).open("rb", buffering=0) as opened:
            for start in range(0, file.nbytes, BLOCK_BYTES):
                nbytes = min(BLOCK_BYTES, file.nbytes - start)
                reserve(nbytes)
                block = memoryview(bytearray(nbytes))
                _read_into(opened, block, f"{self._folder / file.path}")
                yield block


class Bucket(Source):
    """A checkpoint in a bucket of another store."""

    def __init__(self, store: Store, base: ObjectId) -> None:
        self._store = store
        self._base = base

    def blocks(self, file: DataFile, reserve: Callable[[int], None]) -> Iterator[memoryview]:
        """See ``Source``."""
        with closing(ObjectStream(self._store, self._base / file.path, 0, file.nbytes, file.etag)) as stream:
            for block in stream:
                reserve(len(block))
                yield block


def put(source: Source, contents: Contents, store: Store, base: ObjectId, on_bytes: Callable[[int], object]) -> None:
    """Write a checkpoint to ``base``, which ``target.prepare_bucket`` has found free or made so.

    A failure, or Ctrl-C, leaves no upload and no metadata. Data objects that stand already stay: another try overwrites
    them, a sweep removes them.

    Args:
        source: where its data are read.
        contents: of it.
        store: where it goes.
        base: the checkpoint there.
        on_bytes: told of the bytes that have been handed over; they are at most the budget ahead of those sent.

    Raises:
        PreconditionFailed: another writer has committed there meanwhile.
        ShortRead: a file has become shorter.
        OSError, S3Exception: it cannot be read, or written.
    """
    with store.upload(contents.nbytes) as upload:
        for file in contents.data:
            writer = upload.object(base / file.path, total_bytes=file.nbytes)
            for block in source.blocks(file, writer.reserve):
                writer.refer_to(block, block, staged_bytes=len(block))
                on_bytes(len(block))
            writer.close()
    commit(store, base, contents)


def commit(store: Store, base: ObjectId, contents: Contents) -> None:
    """Commit: make the metadata stand, where there are none.

    Raises:
        PreconditionFailed: another writer has committed there.
    """
    for name, data in contents.metadata.items():
        store.put(base / name, data, NOTHING)


def _read_into(file: io.FileIO, block: memoryview, where: str) -> None:
    while block:
        read = file.readinto(block)
        if not read:
            raise ShortRead(f"{where} has become shorter while it was read")
        block = block[read:]
