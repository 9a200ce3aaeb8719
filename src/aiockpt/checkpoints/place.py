"""What the blocking and the awaitable face of a run share: its settings, and the readers and writers of its steps."""

from __future__ import annotations

import os
from collections.abc import Iterable
from typing import Any, cast

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.utils import _DistWrapper

from aiockpt.blocking.store import Store
from aiockpt.checkpoints.retention import Retention
from aiockpt.checkpoints.run import Run
from aiockpt.checkpoints.steps import NAME, Step, check_template
from aiockpt.config import S3ClientConfig
from aiockpt.dcp.file_system import object_at
from aiockpt.dcp.storage_reader import S3StorageReader
from aiockpt.dcp.storage_writer import S3StorageWriter
from aiockpt.errors import ConfigError, NotFound
from aiockpt.model import ObjectId


class Place:
    """A run's path, with settings. No network at construction; picklable but for a process group.

    Args:
        uri: ``s3://bucket/run``.
        config: settings.
        region: AWS region; None: botocore's choice.
        keep_last: how many of the latest complete steps ``prune`` keeps; None: all.
        keep_every: of the older ones it keeps multiples of this, too.
        name: a format that gives a step's folder its name, with the step at its end.
        process_group: of the ranks that save and load together; None: the default one, if there is any. Its first rank
            deletes, prunes and sweeps; on the others these do nothing, without waiting for it.
        allowed_metadata_types: as ``S3StorageReader`` takes them.
        settings: fields of ``S3ClientConfig``, by name (``endpoint_url`` …), on top of ``config``.

    Raises:
        ConfigError: a setting that cannot work.
    """

    def __init__(
        self,
        uri: str | os.PathLike[str],
        *,
        config: S3ClientConfig | None = None,
        region: str | None = None,
        keep_last: int | None = None,
        keep_every: int | None = None,
        name: str = NAME,
        process_group: dist.ProcessGroup | None = None,
        allowed_metadata_types: Iterable[type] = (),
        **settings: Any,
    ) -> None:
        try:
            base = object_at(uri)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"a run needs a URI s3://bucket/run: {error}") from error
        check_template(name)
        allowed = tuple(allowed_metadata_types)
        base = ObjectId(base.bucket, base.key.rstrip("/"))
        self._run = Run(base, Retention(keep_last, keep_every), name, allowed)
        self._store = Store((config or S3ClientConfig()).merged(**settings), region)
        self._process_group = process_group

    @property
    def uri(self) -> str:
        """The run's."""
        return self._run.base.uri

    def path(self, step: int | Step) -> str:
        """The URI of a step, there or not.

        Raises:
            ConfigError: no number of 0 or more.
        """
        return self._run.path(step).uri

    def writer(self, step: int | Step, **options: Any) -> S3StorageWriter:
        """A writer for ``dcp.save``; ``options`` are further arguments of ``S3StorageWriter``."""
        return S3StorageWriter(self._region, self.path(step), self._store.config, **options)

    def reader(self, step: int | Step, **options: Any) -> S3StorageReader:
        """A reader for ``dcp.load``; ``options`` are further arguments of ``S3StorageReader``."""
        allowed = {"allowed_metadata_types": self._run.allowed_metadata_types}
        return S3StorageReader(self._region, self.path(step), self._store.config, **(allowed | options))

    @property
    def is_coordinator(self) -> bool:
        """Whether this process is the one that deletes, prunes and sweeps."""
        return not is_distributed() or dist.get_rank(self._process_group) == 0

    def _find_latest(self) -> Step:
        """The last complete step as the first rank finds it, on all ranks; its error, too. A collective."""
        ranks = _DistWrapper(self._process_group, is_distributed(), 0)
        try:
            return ranks.broadcast("find the latest checkpoint", lambda: self._store.run(self._run.require_latest))
        except CheckpointException as error:
            cause = next(iter(error.failures.values()))[0]
            raise cause from error

    @property
    def _region(self) -> str:
        return cast("str", self._store.region)  # None leaves the choice to botocore


def is_distributed() -> bool:
    """Whether there are other ranks."""
    return dist.is_available() and dist.is_initialized()


def vanished(error: BaseException) -> bool:
    """Whether all that a load failed at was to find objects."""
    if not isinstance(error, CheckpointException):
        return isinstance(error, NotFound)
    return all(isinstance(failure, NotFound) for failure, _ in error.failures.values())
