"""One tensor, fetched in stretches: into its own memory where that can be, through staging memory where not.

The stretches are tasks of their own, in any order; with the last one the tensor is proved and committed, or fetched in
another way. See ``tasks``.
"""

from __future__ import annotations

import logging
import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence

import torch

from aiockpt.archive.surprise import StridedPayload, Surprise, require
from aiockpt.archive.torchload import confirm, is_common_head, order_of
from aiockpt.archive.torchsave import storage_view
from aiockpt.dcp.check import Check
from aiockpt.dcp.items import StoredItem
from aiockpt.dcp.slices import Stretch, stretches
from aiockpt.dcp.staging import slab_bytes
from aiockpt.dcp.tasks import BLOCK_BYTES, Loading, Task, landable, lasting, mismatch, not_those_saved, target_of
from aiockpt.dcp.whole_items import BufferedItem
from aiockpt.engine.download import Read, shifted
from aiockpt.errors import ChecksumMismatch
from aiockpt.model import ByteRange, KiB, ObjectId, OnLanded

logger = logging.getLogger("aiockpt")

#: What may follow the elements in an archive of one tensor. torch writes about 1 KiB; memory is made for it before the
#: object has shown that it has so much.
MAX_TAIL_BYTES = 64 * KiB


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
        self._tail = _Surround(payload_end, item.end if wants_tail else payload_end)
        require(len(self._tail.span) <= MAX_TAIL_BYTES, "more follows the elements than an archive of one tensor has")
        self._proof = item.proof(item.payload_nbytes) if loading.checksums else None
        self._as_whole = item.is_whole and not item.is_bare  # proven so: then blocks only tell where the damage is
        self._check = Check(self._proof if second_try or not self._as_whole else None)
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
        edges = self._proof.edges(_runs(parts)) if self._proof is not None and not item.is_whole else []
        tasks = list(self._tasks_of(parts, edges, direct=direct))
        self._missing = len(tasks)
        return tasks

    def _ordered(self, sides: Sequence[int]) -> tuple[int, ...]:
        return tuple([sides[dim] for dim in self._order])

    def _tasks_of(self, parts: Sequence[Stretch], edges: Sequence[ByteRange], *, direct: bool) -> Iterator[Task]:
        """A task for each stretch that is staged, and for as many others as need little memory beside them.

        What surrounds a stretch comes with it. Tasks wait for memory one by one: fetched before, a head or an edge
        would lie in the small gap between two later reads, and be fetched again with it.
        """
        ready: list[Stretch] = []
        around_ready: list[_Surround] = []
        for part, around in zip(parts, self._beside(parts, edges), strict=True):
            if not (direct and part.dense):
                yield _Staged(self, part, around)
                continue
            if ready and _nbytes(around_ready) + _nbytes(around) > BLOCK_BYTES:
                yield _Direct(self, ready, around_ready)
                ready, around_ready = [], []
            ready.append(part)
            around_ready += around
        if ready:
            yield _Direct(self, ready, around_ready)

    def _beside(self, parts: Sequence[Stretch], edges: Sequence[ByteRange]) -> list[list[_Surround]]:
        """What is to be fetched next to each stretch: edges, and what is still missing of the head and tail."""
        ends = [self._start + part.end for part in parts]
        beside: list[list[_Surround]] = [[] for _ in parts]
        surrounds = [self._head, self._tail, *(_Surround(*self._place(edge), payload_at=edge.start) for edge in edges)]
        for surround in surrounds:
            if len(surround.memory) < len(surround.span):
                beside[min(bisect_left(ends, surround.span.start), len(parts) - 1)].append(surround)
        return beside

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

    def direct_read(self, part: Stretch) -> Read:
        """A stretch that lands in the target's memory."""
        on_landed = shifted(part.start, self._check.note) if self._loading.checksums else None
        return self.read_of(part, self._memory_of(part), on_landed)

    def read_of(self, part: Stretch, into: memoryview, on_landed: OnLanded | None = None) -> Read:
        """A stretch of the payload."""
        span = ByteRange(self._start + part.start, self._start + part.end)
        return Read(self.item.source, span, into, on_landed)

    def _place(self, span: ByteRange) -> tuple[int, int]:
        """Where the object has these bytes of the payload."""
        return self._start + span.start, self._start + span.end

    def _memory_of(self, part: Stretch) -> memoryview:
        """A dense stretch's place in the target's memory."""
        return storage_view(self._laid[part.select])

    def staging(self, part: Stretch) -> torch.Tensor:
        """Memory for a staged stretch, and perhaps more, as bytes."""
        return self._loading.ring.take(part.nbytes, pinned=self._target.is_cuda)

    def copy(self, part: Stretch, slab: torch.Tensor) -> None:
        """A staged stretch into the target, and its memory back; to CUDA on the current stream, without waiting for it.

        Pinned memory is torch's to use again, which knows when that copy is done.
        """
        staged = slab[: part.nbytes]
        if self._loading.checksums:
            self._check.note(part.start, storage_view(staged))
        itemsize = self._dtype.itemsize
        stored = staged.view(self._dtype).as_strided(part.shape, [stride // itemsize for stride in part.strides])
        self._laid[part.select].copy_(stored, non_blocking=True)
        if not self._target.is_cuda:
            self._loading.ring.give(slab)

    def part_landed(self, surrounds: Iterable[_Surround]) -> Iterable[Task]:
        """One of the tasks is done, and what it has fetched beside its stretches; after the last, prove and commit."""
        for edge in surrounds:
            if edge.payload_at is not None:
                self._check.note(edge.payload_at, edge.memory)
                edge.memory = memoryview(b"")
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
        self._check.note_rest([(part.start, self._memory_of(part)) for part in self._landing])
        if damaged := self._check.damaged():
            return mismatch(self._start, damaged)
        if self._as_whole:
            crc = self._check.crc32()
            if recorded not in {None, crc}:
                return ChecksumMismatch("the elements do not match their recorded CRC32")
            if self._proof is not None and self._proof.crc32() != crc:
                return not_those_saved()
        if self._proof is None and recorded is None:
            self._loading.note_unproven(self.item)
        return None

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
    """Bytes beside those that the target gets, and memory for them.

    Attributes:
        span: where the object has them.
        payload_at: of a block's rest, where the payload has them: memory for it is given up once it has been noted.
    """

    def __init__(self, start: int, end: int, *, payload_at: int | None = None) -> None:
        if end < start:
            raise Surprise("too short for the tensor that the metadata describes")
        self.span = ByteRange(start, end)
        self.payload_at = payload_at
        self.memory = memoryview(b"")

    def read(self, source: ObjectId) -> Read:
        """Fetch it, into memory that is made now."""
        self.memory = memoryview(bytearray(len(self.span)))
        return Read(source, self.span, self.memory)


def _nbytes(surrounds: Iterable[_Surround]) -> int:
    return sum(len(surround.span) for surround in surrounds)


class _Direct(Task):
    """Stretches that land in the target itself, and what surrounds them."""

    def __init__(self, load: TensorLoad, parts: Sequence[Stretch], surrounds: Sequence[_Surround]) -> None:
        self.items = (load.item,)
        self._load = load
        self._parts = parts
        self._surrounds = surrounds
        self.staged_bytes = _nbytes(surrounds)

    def reads(self) -> list[Read]:
        around = [surround.read(self._load.item.source) for surround in self._surrounds]
        return [*around, *(self._load.direct_read(part) for part in self._parts)]

    def landed(self) -> Iterable[Task]:
        return self._load.part_landed(self._surrounds)


class _Staged(Task):
    """A stretch that goes through staging memory, and what surrounds it."""

    def __init__(self, load: TensorLoad, part: Stretch, surrounds: Sequence[_Surround]) -> None:
        self.items = (load.item,)
        self._load = load
        self._part = part
        self._surrounds = surrounds
        self._slab: torch.Tensor | None = None
        self.staged_bytes = slab_bytes(part.nbytes) + _nbytes(surrounds)

    def reads(self) -> list[Read]:
        self._slab = self._load.staging(self._part)
        part = self._load.read_of(self._part, storage_view(self._slab)[: self._part.nbytes])
        return [part, *(surround.read(self._load.item.source) for surround in self._surrounds)]

    def landed(self) -> Iterable[Task]:
        assert self._slab is not None
        self._load.copy(self._part, self._slab)
        self._slab = None
        return self._load.part_landed(self._surrounds)
