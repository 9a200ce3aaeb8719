"""Load tasks: reads to be made, and what to do with the bytes once they have landed.

A task allocates its staging memory when its reads are asked for, and its ``landed`` runs on the thread that called DCP;
it may lead to further tasks (a fallback, a second try). Nothing is committed to the planner unproved.
"""

from __future__ import annotations

import io
import logging
import math
import zipfile
from abc import ABC, abstractmethod
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import IO, cast

import torch
from torch.distributed._shard._utils import narrow_tensor_by_index
from torch.distributed.checkpoint.filesystem import _StorageReaderTransforms
from torch.distributed.checkpoint.planner import LoadItemType, LoadPlanner

from aiockpt.archive.records import LOCAL_SIGNATURE
from aiockpt.archive.surprise import StridedPayload, Surprise, require
from aiockpt.archive.torchload import confirm, is_common_head, order_of, payload_of
from aiockpt.archive.torchsave import plain, storage_view
from aiockpt.dcp.items import StoredItem
from aiockpt.dcp.proof import Check
from aiockpt.dcp.slices import Stretch, stretches
from aiockpt.dcp.staging import host_memory
from aiockpt.engine.download import Read
from aiockpt.errors import AiockptError, ChecksumMismatch, MetadataError, TargetMismatch
from aiockpt.model import ByteRange, KiB, MiB, ObjectId
from aiockpt.observe.recorder import Recorder

logger = logging.getLogger("aiockpt")

#: Staged stretches are about this large: long enough to fill a request, short enough that several fit the budget.
BLOCK_BYTES = 4 * MiB

#: What may follow the elements in an archive of one tensor. torch writes about 1 KiB; memory is made for it before the
#: object has shown that it has so much.
MAX_TAIL_BYTES = 64 * KiB


def _raise(_: Sequence[StoredItem], error: AiockptError) -> None:
    raise error


@dataclass(frozen=True, slots=True)
class Loading:
    """What all tasks of one load share.

    Attributes:
        planner: gives and takes tensors.
        transforms: stream extensions.
        checksums: whether to compare CRC32s.
        size_of: an object's size; asked for before memory is made because of what is stored.
        recorder: is told what they do.
        unproven: items that were loaded without, as whoever wrote them noted none.
        on_damage: told of items that cannot be loaded, and why; by default it raises that.
    """

    planner: LoadPlanner
    transforms: _StorageReaderTransforms
    checksums: bool
    size_of: Callable[[ObjectId], int]
    recorder: Recorder
    unproven: list[StoredItem] = field(default_factory=list)
    on_damage: Callable[[Sequence[StoredItem], AiockptError], None] = _raise

    def has(self, source: ObjectId, end: int, nbytes: int) -> bool:
        """Whether an object has the ``nbytes`` bytes before ``end``; about a few, which do no harm, nobody asks."""
        return nbytes <= BLOCK_BYTES or end <= self.size_of(source)


class Task(ABC):
    """See the module.

    Attributes:
        items: what it is about.
        staged_bytes: memory that it takes beside the targets.
    """

    items: Sequence[StoredItem]
    staged_bytes: int = 0

    @abstractmethod
    def reads(self) -> list[Read]:
        """What to fetch, and into which memory."""

    @abstractmethod
    def landed(self) -> Iterable[Task]:
        """All reads have landed: check, copy, commit. Returns what is to be done next."""

    def foreseen(self) -> Iterable[Task]:
        """What ``landed`` most likely returns, told without the bytes; for forecasts."""
        return ()


def target_of(loading: Loading, item: StoredItem) -> torch.Tensor:
    """The tensor that the item fills, as the planner gives it.

    Raises:
        TargetMismatch: it has another shape than what is stored for it, or is sparse.
    """
    target = loading.planner.resolve_tensor(item.read).detach()
    if target.layout is not torch.strided:  # ``copy_`` would fill no more than this detached one
        raise TargetMismatch(f"{item}: the target is sparse: give a dense one, and make a sparse one of it afterwards")
    if target.size() != item.read.lengths:
        raise TargetMismatch(
            f"{item}: {tuple(item.read.lengths)} is stored for a target of shape {tuple(target.size())}: give the "
            "model the shape that was saved, or leave the tensor out of the state dict"
        )
    return target


def landable(target: torch.Tensor, dtype: torch.dtype) -> bool:
    """Whether stored bytes can go to the tensor's memory as they are."""
    return target.dtype == dtype and target.is_cpu and plain(target) and target.is_contiguous()


def tensor_at(memory: memoryview, dtype: torch.dtype, shape: Sequence[int]) -> torch.Tensor:
    """A row-major tensor over ``memory``, which it keeps alive."""
    if not len(memory):
        return torch.empty(tuple(shape), dtype=dtype)
    return torch.frombuffer(memory, dtype=torch.uint8).view(dtype).reshape(tuple(shape))


def lasting(item: StoredItem, error: AiockptError) -> AiockptError:
    """What to raise when an item has been fetched twice and is still not what was written."""
    return type(error)(
        f"{item}: {error}: damaged in the bucket, as a second try shows; restore the object or load an older checkpoint"
    )


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
        if not loading.has(item.source, item.span.end, item.length):
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
            self._loading.unproven.append(self._item)
        if read.type is LoadItemType.BYTE_IO:
            planner.load_bytes(read, data)
            return
        stored = self._load(data)
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


def mismatch(start: int, block: ByteRange) -> ChecksumMismatch:
    """For a block that is not what was written; ``start``: where the object has what it is a block of."""
    where = f"bytes {start + block.start}-{start + block.end} of the object"
    return ChecksumMismatch(f"{where} do not match the CRC32 that the metadata have for them")


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
        self.staged_bytes = max(item.span.end for item in items) - self._start
        self._memory = memoryview(b"")

    def reads(self) -> list[Read]:  # noqa: D102  # Task's
        self._memory = memoryview(bytearray(self.staged_bytes))
        return [Read(self.items[0].source, ByteRange(self._start, self._start + self.staged_bytes), self._memory)]

    def landed(self) -> Iterable[Task]:  # noqa: D102  # Task's
        again: list[Task] = []
        for item in self.items:
            start = item.offset - self._start
            try:
                self._take(item, self._memory[start : start + item.length])
            except Surprise:
                again.append(BufferedItem(self._loading, item))
            except ChecksumMismatch as error:
                if not self._loading.checksums:
                    again.append(BufferedItem(self._loading, item))
                    continue
                if self._second_try:
                    raise lasting(item, error) from error
                again.append(TogetherItems(self._loading, [item], second_try=True))
        return again

    def _take(self, item: StoredItem, stored: memoryview) -> None:
        assert item.dtype is not None
        payload, is_proven = payload_of(stored, item.dtype, item.shape)
        if self._loading.checksums and not is_proven:
            self._loading.unproven.append(item)
        target = target_of(self._loading, item)
        if item.is_whole and landable(target, item.dtype):
            storage_view(target)[:] = payload
        else:
            tensor = tensor_at(payload, item.dtype, item.shape)
            target.copy_(narrow_tensor_by_index(tensor, item.read.storage_offsets, item.read.lengths))
        self._loading.planner.commit_tensor(item.read, target)


class TensorLoad:
    """One tensor, fetched in stretches: what lands in its memory directly, what is staged, and the proof of both.

    Args:
        loading: shared by the load.
        item: what is stored.
        payload_start: where its elements begin, in the object.
        known_form: whether the archive is expected to be of the common form, whose head alone proves a slice.
        order: the dimensions as they lie in memory, outermost first; None: row-major.
        head: the archive up to its elements, if that is at hand.
        second_try: whether this is one, after the CRC did not match.

    Attributes:
        item: what is stored.

    Raises:
        TargetMismatch: see ``target_of``.
        Surprise: the item ends before its elements do, or long after.
    """

    def __init__(
        self,
        loading: Loading,
        item: StoredItem,
        payload_start: int,
        *,
        known_form: bool,
        order: tuple[int, ...] | None = None,
        head: bytes = b"",
        second_try: bool = False,
    ) -> None:
        assert item.dtype is not None
        self._loading = loading
        self.item = item
        self._dtype = item.dtype
        self._known_form = known_form
        self._second_try = second_try
        self._order = order or tuple(range(len(item.shape)))
        self._is_row_major = self._order == tuple(range(len(item.shape)))
        self._target = target_of(loading, item)
        self._laid = self._target.permute(self._order)  # as what is stored lies in memory
        self._start = payload_start
        payload_end = payload_start + item.payload_nbytes
        wants_tail = not item.is_bare and (item.is_whole or not known_form)
        self._head = _Surround(item.offset, payload_start if not item.is_bare else item.offset)
        self._head.memory = memoryview(head)
        self._tail = _Surround(payload_end, item.span.end if wants_tail else payload_end)
        require(len(self._tail.span) <= MAX_TAIL_BYTES, "more follows the elements than an archive of one tensor has")
        self._proof = item.proof(item.payload_nbytes) if loading.checksums else None
        self._check = Check(self._proof)
        self._edges: list[_Surround] = []
        self._landing: list[Stretch] = []  # directly, in the target's memory
        self._missing = 0

    def tasks(self) -> list[Task]:
        """What to do, to be done in any order."""
        direct = landable(self._laid, self._dtype)
        item = self.item
        parts = list(
            stretches(
                self._ordered(item.shape),
                self._ordered(item.read.storage_offsets),
                self._ordered(item.read.lengths),
                self._dtype.itemsize,
                max_dense_bytes=None if direct else BLOCK_BYTES,
                max_sparse_bytes=BLOCK_BYTES,
            )
        )
        if not item.is_whole:
            self._tell_choice(parts)
        self._landing = [part for part in parts if direct and part.dense]
        if self._proof is not None and not item.is_whole:
            self._edges = [_Surround(*self._place(edge)) for edge in self._proof.edges(_runs(parts))]
        staged = [part for part in parts if not (direct and part.dense)]
        tasks = self._tasks_beside(staged) if self._landing else self._tasks_of(staged)
        self._missing = len(tasks)
        return tasks

    def _ordered(self, sides: Sequence[int]) -> tuple[int, ...]:
        return tuple([sides[dim] for dim in self._order])

    def _tasks_beside(self, staged: Sequence[Stretch]) -> list[Task]:
        """What surrounds the elements comes with those that land directly."""
        return [_Direct(self, self._surrounds()), *(_Staged(self, part) for part in staged)]

    def _tasks_of(self, staged: Sequence[Stretch]) -> list[Task]:
        """What surrounds the elements comes with the stretch next to it.

        Staged stretches wait for memory one by one: fetched before them, a head or tail would lie in the small gap
        between two later reads, and be fetched again with it.
        """
        ends = [self._start + part.end for part in staged]
        beside: list[list[_Surround]] = [[] for _ in staged]
        for surround in self._surrounds():
            beside[min(bisect_left(ends, surround.span.start), len(staged) - 1)].append(surround)
        return [_Staged(self, part, around) for part, around in zip(staged, beside, strict=True)]

    def _tell_choice(self, parts: Sequence[Stretch]) -> None:
        """Which ranges a slice is fetched as."""
        self._loading.recorder.sliced(len(parts))
        if logger.isEnabledFor(logging.DEBUG):
            wanted = math.prod(self.item.read.lengths) * self._dtype.itemsize
            fetched = sum(part.nbytes for part in parts)
            logger.debug(
                "%s: a slice %s+%s of %s: %d bytes in %d ranges with %d bytes of gaps",
                self.item,
                tuple(self.item.read.storage_offsets),
                tuple(self.item.read.lengths),
                self.item.shape,
                wanted,
                len(parts),
                fetched - wanted,
            )

    def _surrounds(self) -> list[_Surround]:
        """What is still missing of the archive's head and tail, as far as they are needed, and of edges."""
        around = (self._head, self._tail, *self._edges)
        return [surround for surround in around if len(surround.memory) < len(surround.span)]

    def direct_reads(self) -> Iterator[Read]:
        """What lands in the target's memory."""
        for part in self._landing:
            yield self.read_of(part, self._memory_of(part))

    def read_of(self, part: Stretch, into: memoryview) -> Read:
        """A stretch of the payload."""
        return Read(self.item.source, ByteRange(self._start + part.start, self._start + part.end), into)

    def _place(self, span: ByteRange) -> tuple[int, int]:
        """Where the object has these bytes of the payload."""
        return self._start + span.start, self._start + span.end

    def _memory_of(self, part: Stretch) -> memoryview:
        """A dense stretch's place in the target's memory."""
        return storage_view(self._laid[part.select])

    def staging(self, part: Stretch) -> torch.Tensor:
        """Memory for a staged stretch, as bytes."""
        return host_memory(part.nbytes, pinned=self._target.is_cuda)

    def copy(self, part: Stretch, staged: torch.Tensor) -> None:
        """A staged stretch into the target; to CUDA on the current stream, without waiting for it."""
        if self._loading.checksums:
            self._check.note(part.start, storage_view(staged))
        itemsize = self._dtype.itemsize
        stored = staged.view(self._dtype).as_strided(part.shape, [stride // itemsize for stride in part.strides])
        self._laid[part.select].copy_(stored, non_blocking=True)

    def part_landed(self) -> Iterable[Task]:
        """One of the tasks is done; after the last, prove and commit."""
        self._missing -= 1
        if self._missing:
            return ()
        stride = None
        try:
            recorded = self._prove()
        except StridedPayload as found:
            recorded = found.crc32 if self.item.is_whole else None
            if order_of(self.item.shape, found.stride) != self._order:
                if not (self.item.is_whole and self._is_row_major):
                    return (BufferedItem(self._loading, self.item),)
                stride = found.stride
        except Surprise:
            return (BufferedItem(self._loading, self.item),)
        if self._loading.checksums and (error := self._mismatch(recorded)):
            return self._fetch_again(error)
        if stride is not None:
            return (_Reordered(self._loading, self.item, self._target, stride),)
        self._loading.planner.commit_tensor(self.item.read, self._target)
        return ()

    def _prove(self) -> int | None:
        """That the payload is what it was taken for; returns the CRC32 that it must have, if that is known."""
        item = self.item
        if item.is_bare:
            return None
        if self._is_row_major and not self._tail.span and is_common_head(self._head.memory, self._dtype, item.shape):
            return None
        recorded = confirm(
            self._head.memory,
            self._tail.memory,
            item_nbytes=item.length,
            payload_offset=self._start - item.offset,
            payload_nbytes=item.payload_nbytes,
            dtype=self._dtype,
            shape=item.shape,
        )
        require(self._is_row_major, "the elements are in row-major order after all")
        return recorded if item.is_whole else None

    def _mismatch(self, recorded: int | None) -> ChecksumMismatch | None:
        """Compare what has landed with the archive's CRC32, or those of blocks; None if nothing speaks against it."""
        for part in self._landing:
            self._check.note(part.start, self._memory_of(part))
        for edge in self._edges:
            self._check.note(edge.span.start - self._start, edge.memory)
        if recorded is None and self._proof is None:
            self._loading.unproven.append(self.item)
        if recorded is not None and self._check.crc32() == recorded:
            return None
        if damaged := self._check.damaged():
            return mismatch(self._start, damaged)
        return None if recorded is None else ChecksumMismatch("the elements do not match their recorded CRC32")

    def _fetch_again(self, error: ChecksumMismatch) -> Iterable[Task]:
        """Bytes that do not match their CRC32: damaged on the way, or at rest. A second try tells."""
        if self._second_try:
            raise lasting(self.item, error)
        again = TensorLoad(
            self._loading,
            self.item,
            self._start,
            known_form=self._known_form,
            order=self._order,
            second_try=True,
        )
        return again.tasks()


def _runs(parts: Iterable[Stretch]) -> list[ByteRange]:
    """Stretches that follow one another are one."""
    runs: list[ByteRange] = []
    for part in parts:
        if runs and runs[-1].end == part.start:
            runs[-1] = ByteRange(runs[-1].start, part.end)
        else:
            runs.append(ByteRange(part.start, part.end))
    return runs


class _Reordered(Task):
    """Elements that have arrived, but were stored in another order than row-major, as a transposed tensor's are."""

    def __init__(
        self, loading: Loading, item: StoredItem, target: torch.Tensor, stored_stride: tuple[int, ...]
    ) -> None:
        self.items = (item,)
        self._loading = loading
        self._item = item
        self._target = target
        self._stored_stride = stored_stride
        self.staged_bytes = target.nbytes

    def reads(self) -> list[Read]:
        return []

    def landed(self) -> Iterable[Task]:
        elements = self._target.clone(memory_format=torch.contiguous_format)
        self._target.copy_(elements.as_strided(self._target.shape, self._stored_stride))
        self._loading.planner.commit_tensor(self._item.read, self._target)
        return ()


class _Surround:
    """Bytes beside those that the target gets, and memory for them."""

    def __init__(self, start: int, end: int) -> None:
        if end < start:
            raise Surprise("too short for the tensor that the metadata describes")
        self.span = ByteRange(start, end)
        self.memory = memoryview(b"")

    def read(self, source: ObjectId) -> Read:
        """Fetch it, into memory that is made now."""
        self.memory = memoryview(bytearray(len(self.span)))
        return Read(source, self.span, self.memory)


class _Direct(Task):
    """The stretches that land in the target itself, and what surrounds the elements."""

    def __init__(self, load: TensorLoad, surrounds: Sequence[_Surround]) -> None:
        self.items = (load.item,)
        self._load = load
        self._surrounds = surrounds
        self.staged_bytes = sum(len(surround.span) for surround in surrounds)

    def reads(self) -> list[Read]:
        return [*(surround.read(self._load.item.source) for surround in self._surrounds), *self._load.direct_reads()]

    def landed(self) -> Iterable[Task]:
        return self._load.part_landed()


class _Staged(Task):
    """A stretch that goes through staging memory, and what surrounds it."""

    def __init__(self, load: TensorLoad, part: Stretch, surrounds: Sequence[_Surround] = ()) -> None:
        self.items = (load.item,)
        self._load = load
        self._part = part
        self._surrounds = surrounds
        self._memory: torch.Tensor | None = None
        self.staged_bytes = part.nbytes + sum(len(surround.span) for surround in surrounds)

    def reads(self) -> list[Read]:
        self._memory = self._load.staging(self._part)
        part = self._load.read_of(self._part, storage_view(self._memory))
        return [part, *(surround.read(self._load.item.source) for surround in self._surrounds)]

    def landed(self) -> Iterable[Task]:
        assert self._memory is not None
        self._load.copy(self._part, self._memory)
        self._memory = None
        return self._load.part_landed()
