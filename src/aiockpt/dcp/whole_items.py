"""Items that are fetched whole into memory, and taken from there: what torch loads, and what is small.

Memory for them is reserved by whoever runs the tasks; see ``tasks``.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from typing import IO, cast

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.planner import LoadItemType

from aiockpt.archive.records import LOCAL_SIGNATURE
from aiockpt.archive.surprise import Surprise
from aiockpt.archive.torchload import common_payload, payload_of
from aiockpt.archive.torchsave import storage_view
from aiockpt.crc import crc32
from aiockpt.dcp.check import Check
from aiockpt.dcp.items import StoredItem
from aiockpt.dcp.staging import slab_bytes
from aiockpt.dcp.tasks import Loading, Task, landable, lasting, mismatch, not_those_saved, target_of, tensor_at
from aiockpt.engine.download import Read
from aiockpt.errors import ChecksumMismatch, MetadataError
from aiockpt.model import ByteRange


class BufferedItem(Task):
    """A whole item in memory, loaded by torch as stock DCP does: always right, and a copy or two slower.

    torch itself does not look at the CRC32s of its archives, so that is done here.

    Raises:
        MetadataError: the object is smaller than the metadata say.
    """

    def __init__(self, loading: Loading, item: StoredItem, *, second_try: bool = False) -> None:
        self.items = (item,)
        self._loading = loading
        self._item = item
        self._second_try = second_try
        self._memory = memoryview(b"")
        self.staged_bytes = item.length + self._copies_bytes()
        if not loading.has(item.source, item.end, item.length):
            raise MetadataError(f"{item}: the object ends before that: truncated, or the metadata are damaged")

    def reads(self) -> list[Read]:  # noqa: D102  # Task's
        self._memory = memoryview(bytearray(self._item.length))
        return [Read(self._item.source, self._item.span, self._memory)]

    def _copies_bytes(self) -> int:
        """The item as a stream, what transforms make of it, and what torch loads.

        Objects are the planner's to load, from a stream that is its to keep.
        """
        item = self._item
        made = item.payload_nbytes if item.dtype is not None else item.length
        return item.length + made * (bool(item.transforms) + (item.read.type is not LoadItemType.BYTE_IO))

    def landed(self) -> Iterable[Task]:  # noqa: D102  # Task's
        try:
            self._take()
        except (ChecksumMismatch, MetadataError) as error:
            if self._second_try:
                raise lasting(self._item, error) from error
            return (BufferedItem(self._loading, self._item, second_try=True),)
        return ()

    @property
    def _is_own_proof(self) -> bool:
        """Whether the metadata's CRC32s are those of the item's bytes as they are stored, not of its elements."""
        item = self._item
        return item.crc32s is not None and bool(item.read.type is LoadItemType.BYTE_IO or item.transforms)

    @property
    def _has_elements_proof(self) -> bool:
        """Whether they are those of its elements."""
        return self._item.crc32s is not None and self._item.dtype is not None and not self._is_own_proof

    def _take(self) -> None:
        read, planner = self._item.read, self._loading.planner
        if self._loading.checksums and self._is_own_proof:
            check = Check(self._item.proof(self._item.length))
            check.note(0, self._memory)
            if damaged := check.damaged():
                raise mismatch(self._item.offset, damaged)
        data = io.BytesIO(self._memory)
        if self._item.transforms:
            data = io.BytesIO(self._transformed(cast("IO[bytes]", data)))
        if self._loading.checksums and not (self._is_own_proof or _check_records(data)):
            self._loading.note_unproven(self._item)
        if read.type is LoadItemType.BYTE_IO:
            planner.load_bytes(read, data)
            return
        stored = self._load(data)
        if self._loading.checksums and self._has_elements_proof:
            storage = torch.empty(0, dtype=torch.uint8).set_(stored.untyped_storage())
            if not self._item.may_have(crc32(storage_view(storage)), storage.nbytes):
                raise not_those_saved()
        target = target_of(self._loading, self._item)
        target.copy_(narrow_tensor_by_index(stored, read.storage_offsets, read.lengths))
        planner.commit_tensor(read, target)

    def _transformed(self, stream: IO[bytes]) -> bytes:
        transforms = self._loading.transforms
        return transforms.transform_load_stream(self._item.read, self._item.transforms, stream).read(-1)

    def _load(self, data: io.BytesIO) -> torch.Tensor:
        try:
            stored = torch.load(data, map_location="cpu", weights_only=True)
        except Exception as exc:
            raise MetadataError(f"torch cannot load it ({type(exc).__name__}: {exc})") from exc
        if not isinstance(stored, torch.Tensor) or (self._item.dtype and tuple(stored.shape) != self._item.shape):
            raise MetadataError("it is not the tensor that the metadata describes")
        return stored


def _check_records(data: io.BytesIO) -> bool:
    """Compare an archive's records with their CRC32s; whether there were any. What is no archive at all passes.

    Raises:
        ChecksumMismatch: one does not match, or something around the records: torch would read them all the same.
    """
    signature = data.read(len(LOCAL_SIGNATURE))  # not of getbuffer(), which would copy the bytes that are shared
    data.seek(0)
    if signature != LOCAL_SIGNATURE:
        return False
    try:
        with zipfile.ZipFile(data) as archive:
            any_recorded = any(record.CRC for record in archive.infolist())
            bad = archive.testzip() if any_recorded else None
    except Exception as exc:  # zipfile raises much more than its own
        raise ChecksumMismatch(f"the archive is damaged ({type(exc).__name__}: {exc})") from exc
    data.seek(0)
    if bad is not None:
        raise ChecksumMismatch(f"the CRC32 of its record {bad!r} does not match")
    return any_recorded


class TogetherItems(Task):
    """Neighbouring small tensors, fetched as one stretch and taken apart in memory."""

    def __init__(self, loading: Loading, items: Sequence[StoredItem], *, second_try: bool = False) -> None:
        self._loading = loading
        self.items = items
        self._second_try = second_try
        self._start = items[0].offset
        self._end = max(item.end for item in items)
        self._slab: torch.Tensor | None = None
        self.staged_bytes = slab_bytes(self._end - self._start)

    def reads(self) -> list[Read]:  # noqa: D102  # Task's
        span = ByteRange(self._start, self._end)
        self._slab = self._loading.ring.take(len(span))
        return [Read(self.items[0].source, span, storage_view(self._slab)[: len(span)])]

    def landed(self) -> Iterable[Task]:  # noqa: D102  # Task's
        assert self._slab is not None
        again: list[Task] = []
        memory = storage_view(self._slab)
        for item in self.items:
            start = item.offset - self._start
            try:
                self._take(item, memory[start : start + item.length])
            except Surprise:
                again.append(BufferedItem(self._loading, item))
            except ChecksumMismatch as error:
                if not self._loading.checksums:
                    again.append(BufferedItem(self._loading, item))
                    continue
                if self._second_try:
                    raise lasting(item, error) from error
                again.append(TogetherItems(self._loading, [item], second_try=True))
        self._loading.ring.give(self._slab)
        self._slab = None
        return again

    def _take(self, item: StoredItem, stored: memoryview) -> None:
        assert item.dtype is not None
        payload = self._payload(item, stored)
        target = target_of(self._loading, item)
        if item.is_whole and landable(target, item.dtype):
            storage_view(target)[:] = payload
        else:
            tensor = tensor_at(payload, item.dtype, item.shape)
            target.copy_(narrow_tensor_by_index(tensor, item.read.storage_offsets, item.read.lengths))
        self._loading.planner.commit_tensor(item.read, target)

    def _payload(self, item: StoredItem, stored: memoryview) -> memoryview:
        """The elements. Where the metadata's CRC32 proves them, nobody needs the rest of their archive."""
        assert item.dtype is not None
        loading = self._loading
        if loading.checksums and not loading.archives and item.crc32s is not None:
            payload = common_payload(stored, item.dtype, item.shape)
            if payload is not None and item.is_known_by(payload):
                return payload
        payload, recorded = payload_of(stored, item.dtype, item.shape)
        if loading.checksums:
            self._prove(item, payload, recorded)
        return payload

    def _prove(self, item: StoredItem, payload: memoryview, recorded: int | None) -> None:
        """That the elements, which have the CRC32 that their archive recorded, if it did, also have the metadata's."""
        if recorded is None and item.crc32s is None:
            self._loading.note_unproven(item)
        elif not item.may_have(crc32(payload) if recorded is None else recorded, len(payload)):
            raise not_those_saved()
