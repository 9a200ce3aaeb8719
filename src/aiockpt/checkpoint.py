"""``S3Checkpoint``: file objects for ``torch.save`` and ``torch.load`` of single objects."""

from __future__ import annotations

import dataclasses
from typing import Any

from aiockpt.blocking.reading import ObjectSource
from aiockpt.blocking.store import Store
from aiockpt.blocking.writing import S3Writer
from aiockpt.config import S3ClientConfig
from aiockpt.model import ObjectId
from aiockpt.s3reader.constructor import S3ReaderConstructor
from aiockpt.s3reader.protocol import S3ReaderConstructorProtocol
from aiockpt.s3reader.s3reader import S3Reader


class S3Checkpoint:
    """Readers and writers of checkpoint objects.

    Args:
        region: AWS region.
        endpoint: URL of another S3 than AWS's.
        s3client_config: settings.
        reader_constructor: makes the readers; None: sequential ones.
        settings: fields of ``S3ClientConfig``, by name, on top of ``s3client_config``.
    """

    def __init__(
        self,
        region: str,
        endpoint: str | None = None,
        s3client_config: S3ClientConfig | None = None,
        reader_constructor: S3ReaderConstructorProtocol | None = None,
        **settings: Any,
    ) -> None:
        config = (s3client_config or S3ClientConfig()).merged(**settings)
        if endpoint is not None:
            config = dataclasses.replace(config, endpoint_url=endpoint)
        self._store = Store(config, region)
        self._reader_constructor = reader_constructor or S3ReaderConstructor.default()

    def reader(self, s3_uri: str) -> S3Reader:
        """A readable file object, for ``torch.load``; no I/O until it is read.

        Raises:
            ValueError: not an ``s3://`` URI of an object.
        """
        source = ObjectId.parse(s3_uri)
        if not source.key:
            raise ValueError(f"An object needs a key, got {s3_uri!r}")
        origin = ObjectSource(self._store, source)
        return self._reader_constructor(source.bucket, source.key, origin.info, origin.stream)

    def writer(self, s3_uri: str) -> S3Writer:
        """A writable file object, for ``torch.save``; the object appears when it is closed.

        Raises:
            ValueError: not an ``s3://`` URI of an object.
        """
        return S3Writer(self._store, ObjectId.parse(s3_uri))
