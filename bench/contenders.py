"""The contenders: what can stand behind ``dcp.save`` and ``dcp.load``. They find the store by the environment."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from importlib.util import find_spec

from torch.distributed.checkpoint.storage import StorageReader, StorageWriter

from bench.null import NullReader, NullWriter


class Contender(ABC):
    """A maker of storage readers and writers; picklable, and cheap until it is used.

    Attributes:
        requires: the package that it needs.
        moves_bytes: whether what is saved comes back.
    """

    requires = "torch"
    moves_bytes = True

    @abstractmethod
    def writer(self, url: str, objects: int = 1) -> StorageWriter:
        """A fresh writer that splits a rank's data into ``objects``."""

    @abstractmethod
    def reader(self, url: str) -> StorageReader:
        """A fresh reader."""

    def thread_cpu_s(self) -> Mapping[str, float]:
        """CPU seconds so far of the threads in this process that move its bytes, by name; none if it cannot tell."""
        return {}

    def import_modules(self) -> None:
        """Import what it needs, without network."""
        self.writer("s3://unused/unused")


class Aiockpt(Contender):
    """Ours, as it comes, or with more loop threads."""

    requires = "aiockpt"

    def __init__(self, loop_threads: int = 1) -> None:
        self._loop_threads = loop_threads

    def writer(self, url: str, objects: int = 1) -> StorageWriter:  # noqa: D102
        from aiockpt.dcp import S3StorageWriter  # noqa: PLC0415  # one contender must not pay for another's imports

        return S3StorageWriter(_region(), url, thread_count=objects, loop_threads=self._loop_threads)

    def reader(self, url: str) -> StorageReader:  # noqa: D102
        from aiockpt.dcp import S3StorageReader  # noqa: PLC0415  # likewise

        return S3StorageReader(_region(), url, loop_threads=self._loop_threads)

    def thread_cpu_s(self) -> Mapping[str, float]:  # noqa: D102
        from aiockpt.bridge import loop_cpu_s  # noqa: PLC0415  # likewise

        return loop_cpu_s()


class S3TorchConnector(Contender):
    """s3torchconnector, as it comes; path-style addresses where the endpoint is not AWS's own."""

    requires = "s3torchconnector"

    def writer(self, url: str, objects: int = 1) -> StorageWriter:  # noqa: D102
        from s3torchconnector import S3ClientConfig  # noqa: PLC0415  # optional
        from s3torchconnector.dcp import S3StorageWriter  # noqa: PLC0415  # optional

        config = S3ClientConfig(force_path_style=_custom_endpoint())
        writer: StorageWriter = S3StorageWriter(_region(), url, s3client_config=config, thread_count=objects)
        return writer

    def reader(self, url: str) -> StorageReader:  # noqa: D102
        from s3torchconnector import S3ClientConfig  # noqa: PLC0415  # optional
        from s3torchconnector.dcp import S3StorageReader  # noqa: PLC0415  # optional

        config = S3ClientConfig(force_path_style=_custom_endpoint())
        reader: StorageReader = S3StorageReader(_region(), url, s3client_config=config)
        return reader


class Fsspec(Contender):
    """PyTorch's own Fsspec classes on s3fs, as they come."""

    requires = "s3fs"

    def writer(self, url: str, objects: int = 1) -> StorageWriter:  # noqa: D102
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecWriter  # noqa: PLC0415  # optional

        return FsspecWriter(url, thread_count=objects)

    def reader(self, url: str) -> StorageReader:  # noqa: D102
        from torch.distributed.checkpoint._fsspec_filesystem import FsspecReader  # noqa: PLC0415  # optional

        return FsspecReader(url)


class Null(Contender):
    """A storage that does nothing: what DCP itself takes."""

    moves_bytes = False

    def writer(self, url: str, objects: int = 1) -> StorageWriter:  # noqa: ARG002, D102
        return NullWriter()

    def reader(self, url: str) -> StorageReader:  # noqa: D102
        return NullReader(Aiockpt().reader(url))


OURS, PEER, FSSPEC, NULL, BARE = "aiockpt", "s3torchconnector", "fsspec", "null", "bare loop"
TWO_THREADS = "aiockpt, 2 loop threads"

CONTENDERS: dict[str, Contender] = {
    OURS: Aiockpt(),
    TWO_THREADS: Aiockpt(loop_threads=2),
    PEER: S3TorchConnector(),
    FSSPEC: Fsspec(),
    NULL: Null(),
}


def installed(wanted: Sequence[str]) -> dict[str, Contender]:
    """Those of the wanted contenders whose packages are there."""
    return {name: CONTENDERS[name] for name in wanted if find_spec(CONTENDERS[name].requires)}


def _region() -> str:
    return os.environ["AWS_REGION"]


def _custom_endpoint() -> bool:
    return "AWS_ENDPOINT_URL" in os.environ
