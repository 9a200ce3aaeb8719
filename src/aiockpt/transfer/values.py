"""The values of a checkpoint's tensors and objects, loaded some at a time, for those who want to look at them."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Sequence
from functools import cache
from typing import cast

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.metadata import Metadata, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlanner, ReadItem

from aiockpt.blocking.store import Store
from aiockpt.crc import Bytes
from aiockpt.dcp.items import Catalogue
from aiockpt.dcp.load import LoadPipeline
from aiockpt.dcp.tasks import Loading, tensor_at
from aiockpt.inspection.sharding import World, read_items
from aiockpt.model import MiB, ObjectId
from aiockpt.observe.recorder import Recorder

#: Tensors are loaded together up to this many bytes, so that small ones share requests; a larger one is loaded alone.
TOGETHER_BYTES = 256 * MiB


def batches(metadata: Metadata, names: Iterable[str]) -> Iterator[list[str]]:
    """Names in groups that are loaded together."""
    batch: list[str] = []
    nbytes = 0
    for name in names:
        entry = metadata.state_dict_metadata[name]
        size = entry.size.numel() * entry.properties.dtype.itemsize if isinstance(entry, TensorStorageMetadata) else 0
        if batch and nbytes + size > TOGETHER_BYTES:
            yield batch
            batch, nbytes = [], 0
        batch.append(name)
        nbytes += size
    if batch:
        yield batch


def load_bytes(store: Store, base: ObjectId, metadata: Metadata, names: Sequence[str]) -> dict[str, Bytes]:
    """The bytes of tensors' elements, row-major, and those of serialized objects, by name.

    Raises:
        ChecksumMismatch, MetadataError, S3Exception: they cannot be loaded.
    """
    planner = _Planner(metadata, names)
    loading = Loading(
        cast("LoadPlanner", planner),
        _StorageReaderTransforms(),
        checksums=True,
        size_of=cache(lambda source: store.head(source).size),
        recorder=Recorder("load", base.uri),
    )
    chosen = Metadata({name: metadata.state_dict_metadata[name] for name in names})
    catalogue = Catalogue(base, metadata, metadata.storage_data or {})
    with store.download() as download:
        LoadPipeline(download, loading).run(catalogue.items(read_items(chosen, World(1), 0)))
    return planner.values


class _Planner:
    """Gives whole tensors to fill, and keeps what objects there are."""

    def __init__(self, metadata: Metadata, names: Iterable[str]) -> None:
        self.values: dict[str, Bytes] = {}
        self._tensors: dict[str, torch.Tensor] = {}
        for name in names:
            entry = metadata.state_dict_metadata[name]
            if isinstance(entry, TensorStorageMetadata):
                dtype = entry.properties.dtype
                memory = memoryview(bytearray(entry.size.numel() * dtype.itemsize))
                self.values[name] = memory
                self._tensors[name] = tensor_at(memory, dtype, entry.size)

    def resolve_tensor(self, read: ReadItem) -> torch.Tensor:
        return narrow_tensor_by_index(self._tensors[read.dest_index.fqn], read.dest_offsets, read.lengths)

    def commit_tensor(self, read: ReadItem, tensor: torch.Tensor) -> None:
        """It is in its place."""

    def load_bytes(self, read: ReadItem, value: io.BytesIO) -> None:
        self.values[read.dest_index.fqn] = value.getvalue()
