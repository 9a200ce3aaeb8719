"""Every stored byte of a checkpoint against its CRC32s: a load into tensors that have no memory.

It is the load itself (``dcp.load``) that fetches, proves and, where something does not match, fetches once more, so
what passes here is what loads. Bytes are checked in blocks, within the engine's byte budget; only serialized objects
are held whole. Damage is noted, and the rest checked all the same. What surrounds the elements in an archive is
compared with what it must be, or else taken apart; bits there that mean nothing to anyone are no damage.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from typing import cast

import torch
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.metadata import Metadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner, ReadItem

from aiockpt.blocking.download import BlockingDownload
from aiockpt.blocking.store import Store
from aiockpt.dcp.items import Catalogue, StoredItem
from aiockpt.dcp.load import LoadPipeline
from aiockpt.dcp.names import METADATA
from aiockpt.dcp.tasks import Loading
from aiockpt.engine.budget import ByteBudget
from aiockpt.engine.download import Job
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import AiockptError, MetadataError
from aiockpt.inspection.summary import Place, summarize
from aiockpt.model import ObjectId
from aiockpt.observe.recorder import Recorder
from aiockpt.transfer.metadata import MetadataByName, read_metadata

#: Told of bytes that have been fetched, and of how many there are in all.
Progress = Callable[[int, int], object]


@dataclass(frozen=True, slots=True)
class Finding:
    """Something about a stored item.

    Attributes:
        name: of the tensor or object.
        place: where it lies; None if the metadata do not say.
        reason: what is wrong; "" for what could not be checked, as whoever saved it noted no CRC32.
    """

    name: str
    place: Place | None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of a verification.

    Attributes:
        items: how many stored chunks and objects there are.
        nbytes: of those that were fetched.
        damaged, unproven: findings.
    """

    items: int
    nbytes: int
    damaged: Sequence[Finding]
    unproven: Sequence[Finding]


def verify(store: Store, base: ObjectId, progress: Progress) -> Verdict:
    """Check the checkpoint at ``base``.

    Raises:
        NotFound: there is no complete checkpoint.
        S3Exception: it cannot be read, or changes meanwhile.
    """
    try:
        parts, sizes = store.run(lambda engine: _look(engine, base))
    except MetadataError as error:
        return Verdict(0, 0, [Finding(METADATA, None, str(error))], [])
    summary = summarize(parts.values())
    missing = [
        Finding(tensor.name, None, f"the metadata have no place for its chunk at {list(chunk.offsets)}")
        for tensor in summary.tensors
        for chunk in tensor.chunks
        if chunk.place is None
    ]
    missing += [
        Finding(blob.name, None, "the metadata have no place for it") for blob in summary.blobs if not blob.place
    ]
    check = _Verification(store, base, sizes, progress)
    for part, items in [(part, check.items_of(part)) for part in parts.values()]:
        check.run(part, items)
    return Verdict(check.items, check.nbytes, [*missing, *check.damaged], check.unproven)


async def _look(engine: LoopEngine, base: ObjectId) -> tuple[MetadataByName, dict[str, int]]:
    """The metadata, and the sizes of the objects there by their path."""
    parts = await read_metadata(engine, base)
    folder = f"{base.key}/" if base.key else ""
    rows = [row async for row in engine.list_objects(ObjectId(base.bucket, folder)) if not isinstance(row, str)]
    return parts, {row.key.removeprefix(folder): row.size for row in rows}


class _Verification:
    """Checks the items of metadata, and keeps what was found; see ``Verdict``."""

    def __init__(self, store: Store, base: ObjectId, sizes: dict[str, int], progress: Progress) -> None:
        self.items = self.nbytes = 0
        self.damaged: list[Finding] = []
        self.unproven: list[Finding] = []
        self._store = store
        self._base = base
        self._sizes = sizes
        self._progress = progress

    def items_of(self, metadata: Metadata) -> list[StoredItem]:
        """What one metadata refers to, as far as it is there to be checked."""
        items = list(Catalogue(self._base, metadata, metadata.storage_data or {}).items(_whole_items(metadata)))
        there = [item for item in items if self._is_there(item)]
        self.items += len(items)
        self.nbytes += sum(item.length for item in there if 0 not in item.shape)  # no elements, nothing to fetch
        return there

    def run(self, metadata: Metadata, items: Sequence[StoredItem]) -> None:
        """Check items."""
        loading = Loading(
            cast("LoadPlanner", _Sink(metadata)),
            _StorageReaderTransforms(),
            checksums=True,
            archives=True,
            size_of=cache(lambda source: self._store.head(source).size),
            recorder=Recorder("load", self._base.uri),
            on_damage=self._on_damage,
        )
        with self._store.download() as download:
            LoadPipeline(_Told(download, lambda nbytes: self._progress(nbytes, self.nbytes)), loading).run(items)
        self.unproven += [self._finding(item) for item in loading.unproven]

    def _is_there(self, item: StoredItem) -> bool:
        """Whether the object is long enough to hold the item; if not, that is noted."""
        found = self._finding(item)
        assert found.place is not None
        size = self._sizes.get(found.place.path)
        if size is None:
            self.damaged.append(self._finding(item, f"{item.source.uri} is missing"))
        elif size < found.place.end:
            self.damaged.append(self._finding(item, f"{item.source.uri} has only {size} bytes"))
        return size is not None and size >= found.place.end

    def _on_damage(self, items: Sequence[StoredItem], error: AiockptError) -> None:
        self.damaged += [self._finding(item, str(error)) for item in items]

    def _finding(self, item: StoredItem, reason: str = "") -> Finding:
        path = item.source.key.removeprefix(f"{self._base.key}/" if self._base.key else "")
        return Finding(item.read.storage_index.fqn, Place(path, item.offset, item.offset + item.length), reason)


def _whole_items(metadata: Metadata) -> Iterator[ReadItem]:
    """Reads of everything that the metadata have a place for, as it is stored."""
    places = metadata.storage_data or {}
    for name, entry in metadata.state_dict_metadata.items():
        if not isinstance(entry, TensorStorageMetadata):
            index, nothing = MetadataIndex(name), torch.Size((0,))
            if index in places:
                yield ReadItem(LoadItemType.BYTE_IO, index, nothing, index, nothing, nothing)
            continue
        for number, chunk in enumerate(entry.chunks):
            index = MetadataIndex(name, chunk.offsets, number)
            if index in places:
                begin = torch.Size((0,) * len(chunk.sizes))
                yield ReadItem(LoadItemType.TENSOR, index, begin, index, begin, chunk.sizes)


class _Sink:
    """A planner whose tensors have no memory: what is written to them is gone."""

    def __init__(self, metadata: Metadata) -> None:
        self._entries = metadata.state_dict_metadata

    def resolve_tensor(self, read: ReadItem) -> torch.Tensor:
        entry = self._entries[read.storage_index.fqn]
        assert isinstance(entry, TensorStorageMetadata)
        return torch.empty(read.lengths, dtype=entry.properties.dtype, device="meta")

    def commit_tensor(self, read: ReadItem, tensor: torch.Tensor) -> None:
        """What matters has been proven before."""

    def load_bytes(self, read: ReadItem, value: object) -> None:
        """Likewise."""


class _Told:
    """A download that tells how many bytes have come."""

    def __init__(self, download: BlockingDownload, on_bytes: Callable[[int], object]) -> None:
        self._download = download
        self._on_bytes = on_bytes

    @property
    def unfinished(self) -> int:
        return self._download.unfinished

    @property
    def budget(self) -> ByteBudget:
        return self._download.budget

    def submit(self, jobs: Sequence[Job]) -> None:
        self._download.submit(jobs)

    def next_done(self) -> Job:
        job = self._download.next_done()
        self._on_bytes(job.total_bytes)
        return job
