"""What a load would fetch, without fetching it. Pure.

This is the load's own code (``dcp.load``, its tasks, slices and coalescing, the engine's budget and request sizes) with
two stand-ins: tensors lie in address space that has no memory behind it, and a download notes the requests that it is
given and takes them for done, in their order. What may differ in a real load, and makes a forecast inexact: which of
the later reads of a large load meet in one batch, and so share requests, depends there on when the earlier ones end,
and the request size on the concurrency that has been learned; and where the metadata do not say where in an item its
elements are, it is assumed that they are where they usually are. What no metadata tell, and no forecast sees: a tensor
that was transposed when it was saved, of which a slice is fetched in vain, and then the whole.
"""

from __future__ import annotations

import mmap
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from aiockpt.config import S3ClientConfig
from aiockpt.dcp.items import Catalogue, StoredItem
from aiockpt.dcp.load import LoadPipeline
from aiockpt.dcp.tasks import Loading, Task
from aiockpt.engine.budget import ByteBudget
from aiockpt.engine.download import Job, Read, plan_requests
from aiockpt.model import ObjectId
from aiockpt.observe.recorder import Recorder
from aiockpt.plan.concurrency import start_connections
from aiockpt.plan.request_size import request_bytes_around


@dataclass(frozen=True, slots=True)
class Forecast:
    """What one rank would fetch, without the metadata.

    Attributes:
        gets: range requests.
        heads: requests for objects' sizes, made before much memory is taken on the metadata's word.
        fetched_bytes: by all range requests.
        wanted_bytes: of the elements and objects that are asked for.
        objects: how many objects are read.
        exact: see the module.
    """

    gets: int
    heads: int
    fetched_bytes: int
    wanted_bytes: int
    objects: int
    exact: bool


def forecast(metadata: Metadata, base: ObjectId, reads: Iterable[ReadItem], config: S3ClientConfig) -> Forecast:
    """Foresee the load of ``reads`` from the checkpoint at ``base``, into CPU tensors of the stored dtypes.

    Raises:
        MetadataError: the metadata have no place for an item, or contradict themselves.
    """
    items = list(Catalogue(base, metadata, metadata.storage_data or {}).items(reads))
    download = _Foreseen(config)
    loading = Loading(
        cast("LoadPlanner", _Targets(metadata, items)),
        _StorageReaderTransforms(),
        checksums=config.checksum == "crc32",
        size_of=download.size_of,
        recorder=Recorder("load", base.uri),
    )
    LoadPipeline(download, loading).run(items)
    return Forecast(
        gets=download.gets,
        heads=len(download.sized),
        fetched_bytes=download.fetched_bytes,
        wanted_bytes=sum(item.wanted_nbytes for item in items),
        objects=len({item.source for item in items}),
        exact=download.exact,
    )


class _Targets:
    """A planner whose tensors all lie at the same addresses, behind which there is no memory until it is written to."""

    def __init__(self, metadata: Metadata, items: Sequence[StoredItem]) -> None:
        self._entries: Mapping[str, object] = metadata.state_dict_metadata
        nbytes = max((item.wanted_nbytes for item in items), default=0)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NO_RESERVE
        self._space = torch.frombuffer(mmap.mmap(-1, nbytes + 1, flags=flags), dtype=torch.uint8)

    def resolve_tensor(self, read: ReadItem) -> torch.Tensor:
        entry = self._entries[read.storage_index.fqn]
        assert isinstance(entry, TensorStorageMetadata)
        dtype = entry.properties.dtype
        return self._space[: read.lengths.numel() * dtype.itemsize].view(dtype).view(read.lengths)

    def commit_tensor(self, read: ReadItem, tensor: torch.Tensor) -> None:
        """What is not wanted is there at once."""


#: Linux's MAP_NORESERVE, which Python has no name for: no memory is set aside for the addresses, however many.
_NO_RESERVE = 0x4000 if sys.platform == "linux" else 0


class _Foreseen:
    """A download that takes requests for done.

    Attributes:
        budget: of a real one.
        gets, fetched_bytes: of the requests so far.
        sized: the objects whose size was asked for.
        exact: whether all requests so far are certain.
    """

    def __init__(self, config: S3ClientConfig) -> None:
        self.budget = ByteBudget(config.memory_bytes)
        self.gets = self.fetched_bytes = 0
        self.sized: set[ObjectId] = set()
        self.exact = True
        self._config = config
        self._connections = start_connections(config.throughput_target_gbps, config.max_connections)
        self._done: deque[Job] = deque()

    @property
    def unfinished(self) -> int:
        return len(self._done)

    def size_of(self, source: ObjectId) -> int:
        """Large enough."""
        self.sized.add(source)
        return sys.maxsize

    def submit(self, jobs: Sequence[Job]) -> None:
        self.exact = self.exact and not self.gets  # all in one batch
        total_bytes = sum(job.missing_bytes for job in jobs)
        size = request_bytes_around(total_bytes, self._connections, self._config.part_size)
        for request in plan_requests(jobs, max_gap_bytes=self._config.max_gap_bytes, max_request_bytes=size):
            self.gets += 1
            self.fetched_bytes += request.fetch.end - request.fetch.start
        self._done.extend(jobs)

    def next_done(self) -> Job:
        job = self._done.popleft()
        job.token = _Landed(job.token)
        return job


class _Landed(Task):
    """A task whose bytes are taken for landed."""

    def __init__(self, task: Task) -> None:
        self.items = task.items
        self.staged_bytes = task.staged_bytes
        self._task = task

    def reads(self) -> list[Read]:
        return []

    def landed(self) -> Iterator[Task]:
        yield from self._task.foreseen()
