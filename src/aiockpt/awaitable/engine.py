"""``aiockpt.Engine``: checkpoints and bytes on S3, from any asyncio loop, through one engine that is kept open.

All I/O is done on aiockpt's own loop thread, so the caller's loop is free whatever it is, and whatever goes through
engines of equal settings in this process shares connections, what was learned of the service, and one byte budget.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Sequence
from functools import partial
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar
from weakref import WeakSet

import torch
import torch.distributed as dist
from torch.distributed.checkpoint.planner import LoadPlanner, SavePlanner
from torch.distributed.checkpoint.staging import AsyncStager

from aiockpt.archive.torchsave import storage_view
from aiockpt.awaitable.bytes_reader import BytesReader
from aiockpt.awaitable.checkpoint_calls import OnProgress, StateDict, telling
from aiockpt.awaitable.loading import LoadCall, Prefetch
from aiockpt.awaitable.outcome import settle
from aiockpt.awaitable.saving import BackgroundSave, SaveCall
from aiockpt.awaitable.tensors import AHEAD_BYTES, TensorStream
from aiockpt.blocking.store import Store
from aiockpt.bridge import Call, refuse_loop_thread
from aiockpt.config import S3ClientConfig
from aiockpt.dcp.file_system import object_at
from aiockpt.engine.download import DownloadStats, Read
from aiockpt.engine.engine import LoopEngine, octets
from aiockpt.errors import ClosedError
from aiockpt.model import ANYTHING, ByteRange, ObjectId, ObjectInfo, Replaces
from aiockpt.observe.report import Report
from aiockpt.s3.control import ListedObject
from aiockpt.scope import Scope

if TYPE_CHECKING:
    from collections.abc import Buffer  # type: ignore[attr-defined]  # Python 3.12

T = TypeVar("T")

URI = str | os.PathLike[str]


class Engine:
    """Saves and loads checkpoints, and reads and writes objects, awaited.

    It works at once; as an async context manager it is also kept open, with its connections and what it has learned of
    the service, and leaving the block waits for its background saves (or cancels them, if it is left by an exception)
    and cancels its prefetches. Any number of tasks and loops may use it at once.

    Every await can be cancelled: what it has begun ends within a second, uploads are aborted, and the caller's memory
    is not touched afterwards. Errors are those of ``aiockpt.errors``; of several ranks' saves and loads DCP tells by
    its ``CheckpointException``.

    Args:
        config: settings; None: the defaults.
        region: AWS region; None: botocore's choice.
    """

    def __init__(self, config: S3ClientConfig | None = None, region: str | None = None) -> None:
        self._store = Store(config or S3ClientConfig(), region)
        self._kept: Call[Any] | None = None
        self._saves: set[BackgroundSave] = set()
        self._prefetches: WeakSet[Prefetch] = WeakSet()
        self._closed = False

    @property
    def config(self) -> S3ClientConfig:
        """Its settings."""
        return self._store.config

    async def __aenter__(self) -> Self:
        await self._run(_nothing)  # builds it, or tells what is wrong with its settings
        self._kept = self._store.start(lambda _: asyncio.Event().wait())
        return self

    async def __aexit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._closed = True
        for prefetch in self._prefetches:
            prefetch.cancel()
        try:
            await self._end_saves(cancel=exc_type is not None)
        finally:
            if self._kept is not None:
                self._kept.cancel()

    # ---- checkpoints

    async def save(
        self,
        state_dict: StateDict,
        uri: URI,
        *,
        planner: SavePlanner | None = None,
        process_group: dist.ProcessGroup | None = None,
        no_dist: bool = False,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Report:
        """Save a checkpoint as ``dcp.save`` does, to the same objects; see ``aiockpt.save``."""
        call = self._save_call(state_dict, uri, planner, process_group, no_dist, options)
        with telling(call.writer, on_progress):
            return await call.begin().settled()

    def save_in_background(
        self,
        state_dict: StateDict,
        uri: URI,
        *,
        planner: SavePlanner | None = None,
        process_group: dist.ProcessGroup | None = None,
        no_dist: bool = False,
        copy: bool = True,
        stager: AsyncStager | None = None,
        **options: Any,
    ) -> BackgroundSave:
        """Begin a save and go on; see ``aiockpt.save_in_background``."""
        call = self._save_call(state_dict, uri, planner, process_group, no_dist, options)
        save = call.begin_in_background(copy=copy, stager=stager)
        self._saves.add(save)
        save.when_done(lambda: self._saves.discard(save))
        return save

    async def load(
        self,
        state_dict: StateDict,
        uri: URI,
        *,
        planner: LoadPlanner | None = None,
        process_group: dist.ProcessGroup | None = None,
        no_dist: bool = False,
        on_progress: OnProgress | None = None,
        **options: Any,
    ) -> Report:
        """Load a checkpoint into ``state_dict`` as ``dcp.load`` does; see ``aiockpt.load``."""
        call = self._load_call(uri, planner, process_group, no_dist, options)
        with telling(call.reader, on_progress):
            return await call.begin(state_dict).settled()

    def load_tensors(
        self,
        uri: URI,
        *,
        names: Collection[str] | None = None,
        state_dict: StateDict | None = None,
        device: torch.device | str = "cpu",
        ahead_bytes: int = AHEAD_BYTES,
        **options: Any,
    ) -> TensorStream:
        """Tensors as they arrive; see ``aiockpt.load_tensors``."""
        self._refuse_closed()
        return TensorStream(
            self._store,
            uri,
            names=names,
            state_dict=state_dict,
            device=device,
            ahead_bytes=ahead_bytes,
            options=options,
        )

    def prefetch(
        self,
        uri: URI,
        state_dict: StateDict,
        *,
        planner: LoadPlanner | None = None,
        process_group: dist.ProcessGroup | None = None,
        no_dist: bool = False,
        **options: Any,
    ) -> Prefetch:
        """Begin to load the next checkpoint into memory of its own, shaped like ``state_dict``, and go on.

        ``await prefetch.into(state_dict)`` then takes a copy's time. The memory is as large as this rank's tensors in
        ``state_dict``, on the host (pinned if CUDA is in use); their contents are not looked at.
        """
        prefetch = self._load_call(uri, planner, process_group, no_dist, options).begin_ahead(state_dict)
        self._prefetches.add(prefetch)
        return prefetch

    # ---- bytes

    async def fetch_into(self, uri: URI, reads: Sequence[tuple[int, Buffer | torch.Tensor]]) -> DownloadStats:
        """Fetch ranges of an object into memory: coalesced, split, concurrent, without copies.

        Args:
            uri: of the object.
            reads: for each range its first byte, and writable contiguous memory (or a CPU tensor) of its length. It
                must not be touched until this returns; after an error or a cancellation its contents are undefined.

        Returns:
            requests made, and bytes wanted and fetched.

        Raises:
            NotFound: there is no such object.
            ShortRead: it ends before a range does.
            ObjectChanged: it was replaced meanwhile.
        """
        source = object_at(uri)
        wanted = [_read(source, start, memory) for start, memory in reads]
        return await self._run(lambda engine: engine.fetch_into(wanted))

    async def get(self, uri: URI) -> bytes:
        """A whole object of any size."""
        source = object_at(uri)
        return await self._run(lambda engine: engine.get(source))

    def open(self, uri: URI, start: int = 0, end: int | None = None) -> BytesReader:
        """The bytes ``[start, end)`` of an object (``end`` None: to its end), to be read front to back.

        No I/O until it is read. ``async with`` it, so that it is closed when it is left early.
        """
        self._refuse_closed()
        return BytesReader(self._store, object_at(uri), start, end)

    async def put(
        self, uri: URI, data: Buffer | torch.Tensor | Sequence[Buffer | torch.Tensor], replaces: Replaces = ANYTHING
    ) -> ObjectInfo:
        """Write an object from memory, or from several pieces in order, without copying it.

        The memory must stay as it is until this returns. After an error or a cancellation there is no new object, and
        no upload is left behind.

        Args:
            uri: of the object.
            data: contiguous memory, or CPU tensors.
            replaces: what it may replace: ``aiockpt.model.NOTHING``, or ``Replaces(etag=…)``, make the write
                conditional.

        Raises:
            PreconditionFailed: it would have replaced something else.
        """
        target = object_at(uri)
        pieces = data if isinstance(data, list | tuple) else [data]
        views = [_memory(piece) for piece in pieces]
        return await self._run(lambda engine: engine.put(target, views, replaces))

    async def head(self, uri: URI) -> ObjectInfo:
        """Size and ETag of an object.

        Raises:
            NotFound: there is none.
        """
        target = object_at(uri)
        return await self._run(lambda engine: engine.head(target))

    async def exists(self, uri: URI) -> bool:
        """Whether there is such an object; any other trouble than its absence raises."""
        target = object_at(uri)
        return await self._run(lambda engine: engine.exists(target))

    async def list(self, uri: URI, delimiter: str = "") -> AsyncIterator[ListedObject | str]:
        """Objects whose key starts with that of ``uri``, in key order, page by page as they are asked for.

        With a ``delimiter``, what has it behind the prefix is told as common prefixes, which are ``str``.
        """
        prefix, token = object_at(uri), ""
        while True:
            page = partial(LoopEngine.list_page, prefix=prefix, delimiter=delimiter, after=token)
            rows, token = await self._run(page)
            for row in rows:
                yield row
            if not token:
                return

    async def delete(self, uri: URI) -> None:
        """Delete an object; one that is not there counts as deleted."""
        target = object_at(uri)
        await self._run(lambda engine: engine.delete(target))

    async def copy(self, source: URI, target: URI) -> None:
        """Copy an object within the service, whatever its size."""
        origin, copy = object_at(source), object_at(target)
        await self._run(lambda engine: engine.copy(origin, copy))

    # ---- within

    def _save_call(
        self,
        state_dict: StateDict,
        uri: URI,
        planner: SavePlanner | None,
        process_group: dist.ProcessGroup | None,
        no_dist: bool,
        options: dict[str, Any],
    ) -> SaveCall:
        self._refuse_closed()
        return SaveCall(
            self._store,
            state_dict,
            uri,
            planner=planner,
            process_group=process_group,
            no_dist=no_dist,
            options=options,
        )

    def _load_call(
        self,
        uri: URI,
        planner: LoadPlanner | None,
        process_group: dist.ProcessGroup | None,
        no_dist: bool,
        options: dict[str, Any],
    ) -> LoadCall:
        self._refuse_closed()
        return LoadCall(
            self._store, uri, planner=planner, process_group=process_group, no_dist=no_dist, options=options
        )

    async def _run(self, work: Callable[[LoopEngine], Coroutine[Any, Any, T]]) -> T:
        """Do ``work`` on the loop thread, and wait for it here."""
        self._refuse_closed()
        refuse_loop_thread()
        scope = Scope()
        with scope.entered():
            call = self._store.start(work)
        return await settle(call.outcome, scope)

    async def _end_saves(self, *, cancel: bool) -> None:
        saves = list(self._saves)
        try:
            for save in saves if not cancel else ():
                await save
        finally:  # which does nothing to those that have ended
            for save in saves:
                save.cancel()
            for save in saves:
                await save.aclose()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ClosedError("this engine was closed when its `async with` block was left: make another one")


async def _nothing(_: LoopEngine) -> None:
    """Nothing, but an engine to do it."""


def _memory(data: Buffer | torch.Tensor) -> memoryview:
    """The bytes of contiguous memory.

    Raises:
        TypeError: it is not contiguous, or not in the host's memory.
    """
    if not isinstance(data, torch.Tensor):
        return octets(data)
    if data.device.type != "cpu" or not data.is_contiguous():
        raise TypeError(f"a contiguous CPU tensor is needed, got one on {data.device} with strides {data.stride()}")
    return storage_view(data.detach())


def _read(source: ObjectId, start: int, into: Buffer | torch.Tensor) -> Read:
    memory = _memory(into)
    return Read(source, ByteRange(start, start + len(memory)), memory)
