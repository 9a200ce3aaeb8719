"""A checkpoint from a bucket into a folder, as stock DCP's file system writer would have left it there.

Ranges land in a few buffers that are used again, and are written to their places in preallocated files on the calling
thread, while the loop thread fetches the next ones: a full or broken disk is an ``OSError``, which it would not be with
mapped files. Data first, flushed to the disk; the metadata appear last, each by a rename.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from aiockpt.blocking.download import BlockingDownload
from aiockpt.blocking.store import Store
from aiockpt.engine.download import Job, Read
from aiockpt.model import ByteRange, MiB, ObjectId
from aiockpt.transfer.contents import Contents, DataFile

#: Size of a buffer, and how many there are: 256 MiB in all, a request each for as many connections as there may be.
BLOCK_BYTES = 4 * MiB
BLOCKS = 64

#: Files that are flushed to the disk at once, while the next ones are fetched.
FLUSHES = 4

#: Files that may wait for it, open: far below the 1,024 that a process may have open by default.
FLUSHES_AHEAD = 256


def get(store: Store, base: ObjectId, contents: Contents, folder: Path, on_bytes: Callable[[int], object]) -> None:
    """Fetch a checkpoint into a folder, which is made if it is not there.

    A failure, or Ctrl-C, removes what was written: the folder holds the whole checkpoint or nothing of it. A killed
    process leaves data files without metadata, which no reader takes for a checkpoint.

    Args:
        store: where it is.
        base: the checkpoint.
        contents: of it.
        folder: where it goes.
        on_bytes: told of the bytes that have been written.

    Raises:
        FileExistsError: a file would be overwritten.
        OSError: the disk fails.
        S3Exception: an object cannot be had, or has changed since ``contents`` was made.
    """
    with _Draft(folder) as draft:
        with store.download() as download:
            for file in contents.data:
                download.pin(base / file.path, file.etag)
            for span in _fetch(download, base, _blocks(contents.data, draft), draft):
                on_bytes(len(span))
        draft.wait_for_disk()
        for name, data in contents.metadata.items():
            draft.write_metadata(name, data)


class _File:
    """A data file that is being written.

    Attributes:
        missing_bytes: what has not been written yet.
    """

    def __init__(self, target: Path) -> None:
        self.missing_bytes = 0
        self._descriptor = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)

    def reserve(self, nbytes: int) -> None:
        """Take the space of all of it: a full disk is found now, not in the middle."""
        self.missing_bytes = nbytes
        if nbytes:
            os.posix_fallocate(self._descriptor, 0, nbytes)

    def write(self, data: memoryview, position: int) -> None:
        """Write a block."""
        self.missing_bytes -= len(data)
        while data:
            written = os.pwrite(self._descriptor, data, position)
            position += written
            data = data[written:]

    def close(self) -> None:
        """Close it once it is on the disk."""
        try:
            os.fsync(self._descriptor)
        finally:
            self.abandon()

    def abandon(self) -> None:
        """Close it as it is."""
        os.close(self._descriptor)


class _Draft:
    """The folder while it is being filled: what was made in it is removed again if that fails."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._made: list[Path] = []
        self._files: list[_File] = []
        self._flushing = ThreadPoolExecutor(FLUSHES)
        self._flushes: deque[tuple[_File, Future[None]]] = deque()

    def file(self, path: str, nbytes: int) -> _File:
        """Make a data file."""
        target = self._folder / path
        self._make_folders(target.parent)
        file = _File(target)
        self._made.append(target)
        self._files.append(file)
        file.reserve(nbytes)
        return file

    def close_soon(self, file: _File) -> None:
        """Close a file once it is on the disk; waits for others if that is far behind."""
        self._files.remove(file)
        self._flushes.append((file, self._flushing.submit(file.close)))
        if len(self._flushes) > FLUSHES_AHEAD:
            self._flushes.popleft()[1].result()

    def wait_for_disk(self) -> None:
        """Wait until all files are there."""
        while self._flushes:
            self._flushes.popleft()[1].result()

    def write_metadata(self, name: str, data: bytes) -> None:
        """Have metadata appear, whole."""
        target = self._folder / name
        temporary = target.with_name(f"{name}.tmp")
        self._made += [temporary, target]
        with temporary.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        temporary.rename(target)
        _sync(self._folder)

    def __enter__(self) -> Self:
        self._make_folders(self._folder)
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._flushing.shutdown(wait=exc is None, cancel_futures=exc is not None)
        if exc is None:
            return
        for file in [*self._files, *(file for file, flush in self._flushes if flush.cancelled())]:
            file.abandon()
        for path in reversed(self._made):
            with suppress(OSError):  # what went wrong before is worth more; folders with other things in them stay
                path.rmdir() if path.is_dir() else path.unlink()

    def _make_folders(self, folder: Path) -> None:
        missing = [path for path in (folder, *folder.parents) if not path.exists()]
        for path in reversed(missing):
            path.mkdir()
            self._made.append(path)


@dataclass(frozen=True, slots=True)
class _Block:
    """A range of a data file."""

    path: str
    span: ByteRange
    file: _File


def _blocks(data: Sequence[DataFile], draft: _Draft) -> Iterator[_Block]:
    """The blocks of all files; each file is made when its first block is asked for, closed behind its last one."""
    for one in data:
        file = draft.file(one.path, one.nbytes)
        for start in range(0, one.nbytes, BLOCK_BYTES):
            yield _Block(one.path, ByteRange(start, min(start + BLOCK_BYTES, one.nbytes)), file)
        if not one.nbytes:
            draft.close_soon(file)


def _fetch(download: BlockingDownload, base: ObjectId, blocks: Iterator[_Block], draft: _Draft) -> Iterator[ByteRange]:
    """Fetch and write blocks; yields the ranges that have been written."""

    def submit(buffer: memoryview) -> None:
        block = next(blocks, None)
        if block is not None:
            read = Read(base / block.path, block.span, buffer[: len(block.span)])
            download.submit([Job([read], (block, buffer))])

    for _ in range(BLOCKS):
        submit(memoryview(bytearray(BLOCK_BYTES)))
    while download.unfinished:
        block, buffer = download.next_done().token
        block.file.write(buffer[: len(block.span)], block.span.start)
        if not block.file.missing_bytes:
            draft.close_soon(block.file)
        yield block.span
        submit(buffer)


def _sync(folder: Path) -> None:
    """The names in a folder, on the disk."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
