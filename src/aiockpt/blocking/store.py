"""The store: an engine for threads. What the adapters, readers and writers hold.

A ``Store`` is two settings and no resource: it can be made anywhere without network, copied, pickled and carried over
a fork. Each call leases the engine of these settings from the bridge, which keeps it warm between calls.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from aiockpt.blocking.download import BlockingDownload
from aiockpt.blocking.upload import BlockingUpload
from aiockpt.bridge import FOREGROUND, Bridge, Call, get_bridge
from aiockpt.config import S3ClientConfig
from aiockpt.engine.engine import LoopEngine
from aiockpt.model import ANYTHING, ObjectId, ObjectInfo, Replaces
from aiockpt.s3.control import ListedObject
from aiockpt.scope import session

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lease:
    """An engine on the loop thread, and the bridge to it."""

    bridge: Bridge
    engine: LoopEngine


@dataclass(frozen=True)
class Store:
    """Blocking S3 with one configuration. Safe to share between threads.

    Attributes:
        config: the settings.
        region: AWS region; None: botocore's choice.
        thread: name of the loop thread that its engine lives on; those that serve it (``config.loop_threads``) have its
            name with a number behind.
    """

    config: S3ClientConfig
    region: str | None = None
    thread: str = FOREGROUND

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Hold the engine for several calls."""
        bridge = get_bridge(self.thread)
        with bridge.lease(self._key, self._engine) as engine:
            yield Lease(bridge, engine)

    def run(self, work: Callable[[LoopEngine], Coroutine[Any, Any, T]]) -> T:
        """Run ``work(engine)`` on the loop thread and wait for it; Ctrl-C cancels it first."""
        bridge = get_bridge(self.thread)
        return bridge.run(lambda: self._leased(bridge, work))

    def start(self, work: Callable[[LoopEngine], Coroutine[Any, Any, T]]) -> Call[T]:
        """Start ``work(engine)`` on the loop thread, without waiting; the engine is built there first if need be."""
        bridge = get_bridge(self.thread)
        return bridge.start(lambda: self._leased(bridge, work))

    def head(self, target: ObjectId) -> ObjectInfo:
        """Size and ETag; see ``LoopEngine.head``."""
        return self.run(lambda engine: engine.head(target))

    def exists(self, target: ObjectId) -> bool:
        """Whether there is such an object; see ``LoopEngine.exists``."""
        return self.run(lambda engine: engine.exists(target))

    def get_small(self, source: ObjectId) -> bytes:
        """A small object; see ``LoopEngine.get_small``."""
        return self.run(lambda engine: engine.get_small(source))[0]

    def put(self, target: ObjectId, data: bytes | memoryview, replaces: Replaces = ANYTHING) -> ObjectInfo:
        """Write an object; see ``LoopEngine.put``."""
        return self.run(lambda engine: engine.put(target, [data], replaces))

    def delete(self, target: ObjectId) -> None:
        """Delete an object; see ``LoopEngine.delete``."""
        self.run(lambda engine: engine.delete(target))

    def copy(self, source: ObjectId, target: ObjectId) -> None:
        """Copy an object within the service; see ``LoopEngine.copy``."""
        self.run(lambda engine: engine.copy(source, target))

    def list_objects(self, prefix: ObjectId, delimiter: str = "") -> Sequence[ListedObject | str]:
        """All rows of a listing; see ``LoopEngine.list_objects``."""

        async def collect(engine: LoopEngine) -> list[ListedObject | str]:
            return [row async for row in engine.list_objects(prefix, delimiter)]

        return self.run(collect)

    @property
    def _key(self) -> tuple[Any, ...]:
        return (self.region, *self.config.cache_key)

    def _engine(self) -> LoopEngine:
        self.config.check()
        serving = [get_bridge(f"{self.thread}-{number}") for number in range(2, self.config.loop_threads + 1)]
        return LoopEngine(self.config, self.region, serving)

    async def _leased(self, bridge: Bridge, work: Callable[[LoopEngine], Coroutine[Any, Any, T]]) -> T:
        async with bridge.hold(self._key, self._engine) as engine:
            return await work(engine)

    @contextmanager
    def download(self, max_gap_bytes: float = math.inf) -> Iterator[BlockingDownload]:
        """A download to feed from this thread; leaving the block by an exception cancels it.

        ``max_gap_bytes``: bound of the gaps that are fetched, below the configuration's own.
        """
        with session(), self.lease() as lease, BlockingDownload(lease.bridge, lease.engine, max_gap_bytes) as download:
            yield download

    @contextmanager
    def upload(self) -> Iterator[BlockingUpload]:
        """An upload to feed from this thread; leaving the block with an exception aborts it."""
        with session(), self.lease() as lease, BlockingUpload(lease.bridge, lease.engine) as upload:
            yield upload
