"""``S3FileSystem``: S3 behind DCP's file-system interface, for its stock readers and writers and for ours."""

from __future__ import annotations

import io
import logging
import os
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from torch.distributed.checkpoint.filesystem import FileSystemBase

from aiockpt.blocking.reading import ObjectSource
from aiockpt.blocking.store import Store
from aiockpt.blocking.writing import S3Writer
from aiockpt.config import S3ClientConfig
from aiockpt.errors import S3Exception
from aiockpt.model import SCHEME, ObjectId
from aiockpt.s3reader.constructor import S3ReaderConstructor
from aiockpt.s3reader.protocol import S3ReaderConstructorProtocol
from aiockpt.s3reader.s3reader import S3Reader

logger = logging.getLogger("aiockpt")

#: Tries of the deletion that ends a rename.
DELETE_TRIES = 3


class S3FileSystem(FileSystemBase):
    """DCP's file-system interface on S3. No network at construction; picklable; safe to share between threads.

    Args:
        region: AWS region.
        s3_client: a ``Store`` to share with others instead of settings of its own.
        s3client_config: settings.
        reader_constructor: makes the readers of ``create_stream(path, "rb")``; None: sequential ones.
        settings: fields of ``S3ClientConfig``, by name, on top of ``s3client_config``.
    """

    def __init__(
        self,
        region: str,
        s3_client: Store | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **settings: Any,
    ) -> None:
        self.store = s3_client or Store((s3client_config or S3ClientConfig()).merged(**settings), region)
        self._reader_constructor = reader_constructor or S3ReaderConstructor.default()

    @property
    def reader_constructor(self) -> S3ReaderConstructorProtocol:
        """What makes the readers."""
        return self._reader_constructor

    def open_reader(self, path: str | os.PathLike[str]) -> S3Reader:
        """A reader of one object, made by the reader constructor; no I/O until it is read."""
        source = object_at(path)
        origin = ObjectSource(self.store, source)
        return self._reader_constructor(source.bucket, source.key, origin.info, origin.stream)

    def open_writer(self, path: str | os.PathLike[str]) -> S3Writer:
        """A writer of one object."""
        return S3Writer(self.store, object_at(path))

    @contextmanager
    def create_stream(self, path: str | os.PathLike[str], mode: str) -> Generator[io.IOBase, None, None]:
        """A stream for reading ("rb") or writing ("wb") one object.

        An exception inside the block aborts a write: no object appears.

        Raises:
            ValueError: another mode, or a path that is no S3 URI.
        """
        if mode == "rb":
            with self.open_reader(path) as reader:
                yield reader
        elif mode == "wb":
            with self.open_writer(path) as writer:
                yield writer
        else:
            raise ValueError(
                f"Invalid {mode=} mode argument: create_stream only supports rb (read mode) & wb (write mode)"
            )

    def concat_path(self, path: str | os.PathLike[str], suffix: str) -> str:
        """``suffix`` below ``path``, joined with one slash."""
        return f"{_uri(path).rstrip('/')}/{suffix.lstrip('/')}"

    def init_path(self, path: str | os.PathLike[str]) -> str | os.PathLike[str]:
        """``path`` itself."""
        return path

    def mkdir(self, path: str | os.PathLike[str]) -> None:
        """Does nothing: S3 has no folders."""

    def rename(self, old_path: str | os.PathLike[str], new_path: str | os.PathLike[str]) -> None:
        """Copy an object within its bucket, of any size, and delete the original.

        Raises:
            ValueError: the paths are in different buckets.
            S3Exception: the copy failed, or the deletion did three times; the copy then stays.
        """
        source, target = object_at(old_path), object_at(new_path)
        if source.bucket != target.bucket:
            raise ValueError(
                f"Source and destination buckets cannot be different (rename does not support cross-bucket "
                f"operations): {source.uri}, {target.uri}"
            )
        self.store.copy(source, target)
        for left in reversed(range(DELETE_TRIES)):
            try:
                self.store.delete(source)
            except S3Exception as error:
                if not left:
                    raise
                logger.warning("%s could not be deleted, trying again: %s", source.uri, error)
            else:
                return

    def exists(self, path: str | os.PathLike[str]) -> bool:
        """Whether there is such an object; any other trouble than its absence raises."""
        return self.store.exists(object_at(path))

    def rm_file(self, path: str | os.PathLike[str]) -> None:
        """Delete an object; a missing one is fine."""
        self.store.delete(object_at(path))

    def ls(self, path: str | os.PathLike[str]) -> list[str]:
        """URIs of what lies directly below ``path``: objects, and prefixes with a trailing slash."""
        prefix = object_at(path)
        if prefix.key:
            prefix = ObjectId(prefix.bucket, prefix.key.rstrip("/") + "/")
        rows = self.store.list_objects(prefix, delimiter="/")
        return [ObjectId(prefix.bucket, row if isinstance(row, str) else row.key).uri for row in rows]

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: str | os.PathLike[str]) -> bool:
        """Whether it is an S3 URI with a bucket, or a path object."""
        if isinstance(checkpoint_id, Path):
            return True
        try:
            ObjectId.parse(checkpoint_id)
        except (ValueError, TypeError):
            return False
        return True


def object_at(path: str | os.PathLike[str]) -> ObjectId:
    """What a URI or a path object names.

    Raises:
        ValueError: nothing in S3.
    """
    return ObjectId.parse(_uri(path))


def _uri(path: str | os.PathLike[str]) -> str:
    """The path as text; ``pathlib`` makes one slash of two, which is undone."""
    text = os.fspath(path)
    single = SCHEME.rstrip("/") + "/"
    if text.startswith(single) and not text.startswith(SCHEME):
        return SCHEME + text.removeprefix(single)
    return text
