"""The load pipeline: DCP's read items become range reads that land in the tensors' own memory.

Runs on the thread that called DCP. Each item goes one of these ways (see ``tensor_load`` and ``whole_items``):

- *direct*: payloads, or the wanted stretches of them, are fetched into the target's memory; head and tail of the
  archive come with them and prove place, dtype, shape and CRC32;
- *staged*: targets that bytes cannot land in (another device or dtype, scattered elements, closely strided slices) get
  theirs through staging memory, block by block;
- *together*: neighbouring small items are fetched as one stretch and taken apart in memory, even if only slices of
  them are wanted and the rest is little;
- *buffered*: serialized objects, items with transforms, and whatever turned out not to be as assumed, are fetched whole
  and loaded by torch.

While bytes move, this thread checks, copies and commits what has landed.
"""

from __future__ import annotations

import enum
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Protocol

from torch.distributed.checkpoint.planner import LoadItemType

from aiockpt.archive.safetensors import StoredTensor, data_offset, parse_header
from aiockpt.archive.surprise import Surprise, require
from aiockpt.archive.torchload import dimension_order, is_common_head, locate, predict
from aiockpt.dcp.items import StoredItem
from aiockpt.dcp.proof import is_row_major
from aiockpt.dcp.slices import stretches
from aiockpt.dcp.tasks import BLOCK_BYTES, Loading, Task, target_of
from aiockpt.dcp.tensor_load import TensorLoad
from aiockpt.dcp.whole_items import BufferedItem, TogetherItems
from aiockpt.engine.budget import ByteBudget
from aiockpt.engine.download import Job, Read
from aiockpt.errors import ChecksumMismatch, MetadataError
from aiockpt.model import ByteRange, GiB, KiB, MiB
from aiockpt.observe.report import Phase

#: Items below this are fetched together with their neighbours and copied out: a copy of 256 KiB takes some 20 µs, a
#: separate landing costs about as much in calls.
TOGETHER_BELOW_BYTES = 256 * KiB

#: A slice of a small item is fetched alone, with what proves it, where that spares more bytes than this, by default the
#: widest gap that is fetched between items (``max_gap_bytes``).
TOGETHER_SPARE_BYTES = 64 * KiB

#: Largest stretch that is taken apart at once, and the widest gap in it.
TOGETHER_BYTES = 4 * MiB
TOGETHER_GAP_BYTES = 16 * KiB

#: Bytes that land directly are submitted this far ahead: enough for any number of connections, while planners that
#: make temporary targets need not make all of them at once.
WINDOW_BYTES = GiB

#: First bytes of an archive of unknown form, in which its payload's place is looked for; torch's heads are below 1 KiB.
PROBE_BYTES = 4 * KiB

#: First bytes of a safetensors file, which hold all of a small header.
HEADER_PROBE_BYTES = 64 * KiB


class Downloading(Protocol):
    """What performs the reads: a ``BlockingDownload``, or what only foresees one."""

    @property
    def unfinished(self) -> int:
        """Jobs that were submitted and not yet taken by ``next_done``."""

    @property
    def budget(self) -> ByteBudget:
        """The bound of what is staged."""

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; reads that are submitted together are coalesced with one another."""

    def next_done(self) -> Job:
        """Wait for the next finished job."""


class LoadPipeline:
    """Runs the tasks of one load.

    Args:
        download: performs the reads.
        loading: the planner and what else the tasks share.
        window_bytes: how far ahead bytes that land directly are submitted.
    """

    def __init__(self, download: Downloading, loading: Loading, window_bytes: int = WINDOW_BYTES) -> None:
        self._download = download
        self._loading = loading
        self._recorder = loading.recorder
        self._budget = download.budget
        self._next: deque[Task] = deque()
        self._source: Iterator[Task] = iter(())
        self._window_bytes = window_bytes
        self._in_flight_bytes = 0
        self._staged_bytes = 0

    def run(self, items: Iterable[StoredItem]) -> None:
        """Load items; sorted by object and offset they make the fewest requests.

        Raises:
            MetadataError: the checkpoint contradicts its metadata.
            TargetMismatch: a target has another shape than what is stored.
            ChecksumMismatch: stored bytes are damaged.
            S3Exception: they cannot be had.
        """
        self._source = _tasks(self._loading, items)
        try:
            self._submit()
            while self._download.unfinished:
                self._finish(self._download.next_done())
                self._submit()
        finally:
            self._budget.release(self._staged_bytes)

    def _submit(self) -> None:
        """Hand over what there is room for; together, so that neighbours share requests."""
        batch: list[Job] = []
        while self._in_flight_bytes < self._window_bytes and (task := self._peek()) is not None:
            if not self._reserve(task.staged_bytes, is_only_one=not (batch or self._download.unfinished)):
                break
            self._next.popleft()
            job = Job(task.reads(), task)
            self._in_flight_bytes += job.missing_bytes
            self._recorder.queue(job.missing_bytes)
            batch.append(job)
        if batch:
            self._download.submit(batch)

    def _peek(self) -> Task | None:
        if not self._next and (task := next(self._source, None)) is not None:
            self._next.append(task)
        return self._next[0] if self._next else None

    def _reserve(self, nbytes: int, *, is_only_one: bool) -> bool:
        """Staging memory for a task; one task of a load always gets it.

        Waiting for others to free some could be for ever: they may wait for this thread.
        """
        if nbytes and not self._budget.try_reserve(nbytes):
            if not is_only_one:
                return False
            self._budget.overdraw(nbytes)
        self._staged_bytes += nbytes
        return True

    def _finish(self, job: Job) -> None:
        task: Task = job.token
        self._in_flight_bytes -= job.total_bytes
        try:
            with self._recorder.phase(Phase.VERIFY):
                self._next.extend(task.landed())
        except (ChecksumMismatch, MetadataError) as error:
            self._loading.on_damage(task.items, error)
        self._budget.release(task.staged_bytes)
        self._staged_bytes -= task.staged_bytes


class _Route(enum.Enum):
    """How an item is fetched; see the module."""

    EMPTY = enum.auto()  # no element is wanted
    BUFFERED = enum.auto()
    TOGETHER = enum.auto()
    BARE = enum.auto()  # a safetensors file's: its header says where the elements are
    LARGE = enum.auto()


def _route(loading: Loading, item: StoredItem) -> _Route:
    if item.read.type is LoadItemType.BYTE_IO or item.transforms or item.dtype is None:
        return _Route.BUFFERED
    if 0 in item.read.lengths:
        return _Route.EMPTY
    if item.is_bare:
        return _Route.BARE
    if item.length <= TOGETHER_SPARE_BYTES:
        return _Route.TOGETHER
    if item.length >= TOGETHER_BELOW_BYTES or _is_better_alone(item, checksums=loading.checksums):
        return _Route.LARGE
    return _Route.TOGETHER


def _is_better_alone(item: StoredItem, *, checksums: bool) -> bool:
    """Whether a slice of a small item is to be fetched without the rest of it."""
    if item.length - item.wanted_nbytes <= TOGETHER_SPARE_BYTES or not is_row_major(item.crc32s):
        return False
    assert item.dtype is not None
    first, *more = stretches(
        item.shape,
        item.read.storage_offsets,
        item.read.lengths,
        item.dtype.itemsize,
        max_dense_bytes=None,
        max_sparse_bytes=BLOCK_BYTES,
    )
    if more or not first.dense:
        return False
    beside = _edges_nbytes(item, ByteRange(first.start, first.end)) if checksums else 0
    return item.length - item.wanted_nbytes - beside > TOGETHER_SPARE_BYTES


def _edges_nbytes(item: StoredItem, span: ByteRange) -> int:
    """What is fetched beside a slice to prove it by its blocks; all of the item, if those do not fit it."""
    try:
        proof = item.proof(item.payload_nbytes)
    except MetadataError:  # which the item's task will raise
        return item.length
    return sum(map(len, proof.edges([span]))) if proof is not None else item.length


def _tasks(loading: Loading, items: Iterable[StoredItem]) -> Iterator[Task]:
    """The tasks for items, made one by one as they are asked for."""
    for route, group in _groups(loading, items):
        first = group[0]
        if route is _Route.TOGETHER:
            yield TogetherItems(loading, group)
        elif route is _Route.BARE:
            yield HeaderProbe(loading, group, min(HEADER_PROBE_BYTES, 8 + max(item.length for item in group)))
        elif route is _Route.BUFFERED:
            yield BufferedItem(loading, first)
        elif route is _Route.LARGE:
            yield from _large(loading, first)
        else:
            loading.planner.commit_tensor(first.read, target_of(loading, first))


def _groups(loading: Loading, items: Iterable[StoredItem]) -> Iterator[tuple[_Route, list[StoredItem]]]:
    """Items one by one, but for those that are fetched together."""
    group: list[StoredItem] = []
    group_route = _Route.EMPTY
    end = 0
    for item in items:
        route = _route(loading, item)
        if group and not (route is group_route and _joins(route, group[0], end, item)):
            yield group_route, group
            group = []
        end = max(end, item.end) if group else item.end
        group_route = route
        group.append(item)
    if group:
        yield group_route, group


def _joins(route: _Route, first: StoredItem, end: int, item: StoredItem) -> bool:
    """Whether an item is fetched together with those before it."""
    if item.source != first.source:
        return False
    if route is _Route.BARE:
        return item.offset == first.offset
    return (
        route is _Route.TOGETHER
        and item.offset - end <= TOGETHER_GAP_BYTES
        and item.end - first.offset <= TOGETHER_BYTES
    )


def _large(loading: Loading, item: StoredItem) -> Iterator[Task]:
    """Whole items are nearly always in row-major order, and put right if not; slices would be of the wrong elements."""
    assert item.dtype is not None
    offset = predict(item.length, item.dtype, item.shape)
    row_major = is_row_major(item.crc32s)
    if offset is None or not (item.is_whole if row_major is None else row_major):
        yield ArchiveProbe(loading, item, offset or PROBE_BYTES)
    else:
        yield from TensorLoad(loading, item, item.offset + offset, known_form=True).tasks()


class ArchiveProbe(Task):
    """The first bytes of an archive of unknown form: where is its payload, and in which order are its elements?"""

    def __init__(self, loading: Loading, item: StoredItem, nbytes: int) -> None:
        self.items = (item,)
        self._loading = loading
        self._item = item
        self._memory = bytearray(min(nbytes, item.length))

    def reads(self) -> list[Read]:  # noqa: D102  # Task's
        span = ByteRange(self._item.offset, self._item.offset + len(self._memory))
        return [Read(self._item.source, span, memoryview(self._memory))]

    def landed(self) -> Iterable[Task]:  # noqa: D102  # Task's
        item = self._item
        try:
            return self._follow(item)
        except Surprise:
            return [BufferedItem(self._loading, item)]

    def _follow(self, item: StoredItem) -> Iterable[Task]:
        assert item.dtype is not None
        head = bytes(self._memory)
        head = head[: locate(head).payload_offset]
        order = dimension_order(head, item.dtype, item.shape)
        is_known = is_common_head(head, item.dtype, item.shape)
        start = item.offset + len(head)
        return TensorLoad(self._loading, item, start, known_form=is_known, order=order, head=head).tasks()

    def foreseen(self) -> Iterable[Task]:
        """That head and tail are about as long as each other, as torch's are."""
        item = self._item
        start = item.offset + max(0, item.length - item.payload_nbytes) // 2
        try:
            return TensorLoad(self._loading, item, start, known_form=False).tasks()
        except Surprise:
            return [BufferedItem(self._loading, item)]


class HeaderProbe(Task):
    """The header of a safetensors file: where are its tensors? One that makes no sense is fetched once more."""

    def __init__(self, loading: Loading, items: Sequence[StoredItem], nbytes: int, *, second_try: bool = False) -> None:
        self.items = items
        self._loading = loading
        self._second_try = second_try
        self._memory = memoryview(b"")
        self.staged_bytes = nbytes

    def reads(self) -> list[Read]:  # noqa: D102  # Task's
        self._memory = memoryview(bytearray(self.staged_bytes))
        first = self.items[0]
        return [Read(first.source, ByteRange(first.offset, first.offset + self.staged_bytes), self._memory)]

    def landed(self) -> Iterable[Task]:  # noqa: D102  # Task's
        try:
            return self._follow()
        except (Surprise, MetadataError) as exc:
            if self._second_try:
                raise MetadataError(f"{self.items[0]}: neither an archive nor a safetensors file: {exc}") from exc
            return [HeaderProbe(self._loading, self.items, self.staged_bytes, second_try=True)]

    def foreseen(self) -> Iterable[Task]:
        """That the file has the tensors that are wanted, in their order, behind what has been fetched."""
        sizes = {item.read.storage_index.fqn: item.payload_nbytes for item in self.items}
        starts = dict(zip(sizes, accumulate(sizes.values(), initial=self.staged_bytes), strict=False))
        for item in self.items:
            start = item.offset + starts[item.read.storage_index.fqn]
            yield from TensorLoad(self._loading, item, start, known_form=True).tasks()

    def _follow(self) -> list[Task]:
        needed = data_offset(bytes(self._memory[:8]))
        first = self.items[0]
        require(self._loading.has(first.source, first.offset + needed, needed), "the header is longer than the object")
        if needed > len(self._memory):
            return [HeaderProbe(self._loading, self.items, needed, second_try=self._second_try)]
        header = parse_header(bytes(self._memory[:needed]))
        places = {tensor.name: tensor for tensor in header.tensors}
        return [task for item in self.items for task in self._load(item, places, header.data_offset)]

    def _load(self, item: StoredItem, places: Mapping[str, StoredTensor], data_start: int) -> list[Task]:
        place = places.get(item.read.storage_index.fqn)
        if place is None or place.dtype != item.dtype or place.shape != item.shape:
            raise MetadataError(f"{item}: the file's header does not have the tensor that the metadata describes")
        start = item.offset + data_start + place.start
        return TensorLoad(self._loading, item, start, known_form=True).tasks()
