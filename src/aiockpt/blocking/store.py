"""The store: an engine for threads. What the adapters, readers and writers hold.

A ``Store`` is two settings and no resource: it can be made anywhere without network, copied, pickled and carried over
a fork. Each call leases the engine of these settings from the bridge, which keeps it warm between calls.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from aiockpt.blocking.download import BlockingDownload
from aiockpt.blocking.upload import BlockingUpload
from aiockpt.bridge import FOREGROUND, Bridge, Call, get_bridge, loop_cpu_s
from aiockpt.config import S3ClientConfig
from aiockpt.engine.engine import LoopEngine
from aiockpt.model import ANYTHING, ObjectId, ObjectInfo, Replaces
from aiockpt.plan.pace import Pace
from aiockpt.s3.control import ListedObject
from aiockpt.scope import session

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Lease:
    """An engine on the loop thread, and the bridge to it."""

    bridge: Bridge
    engine: LoopEngine


@dataclass(frozen=True, slots=True)
class Threads:
    """Which loop threads an engine lives on, and how they behave towards others.

    Attributes:
        name: of the first one; those that serve it (``config.loop_threads``) have a number behind it.
        nice: how much they give way to others; see ``give_way``.
        share: CPU seconds that an upload may take in a second, its own thread's included.
        in_background: whether something else goes on beside an upload; see ``LoopEngine.part_sizes``.
    """

    name: str = FOREGROUND
    nice: int = 0
    share: float = math.inf
    in_background: bool = False

    def bridge(self, behind: str = "") -> Bridge:
        """The bridge to one of them."""
        return get_bridge(self.name + behind, self.nice)

    def cpu_s(self) -> float:
        """CPU seconds that they and this thread have taken so far."""
        own = (cpu_s for name, cpu_s in loop_cpu_s().items() if name == self.name or name.startswith(f"{self.name}-"))
        return time.thread_time() + sum(own)

    def pauses(self) -> Callable[[], float]:
        """For an upload that begins now, on this thread: tells how many seconds to pause for its share."""
        if self.share == math.inf:
            return lambda: 0.0
        pace = Pace(self.share, time.perf_counter(), self.cpu_s())
        return lambda: pace.pause_s(time.perf_counter(), self.cpu_s())


@dataclass(frozen=True)
class Store:
    """Blocking S3 with one configuration. Safe to share between threads.

    Attributes:
        config: the settings.
        region: AWS region; None: botocore's choice.
        threads: those that its engine lives on.
    """

    config: S3ClientConfig
    region: str | None = None
    threads: Threads = Threads()

    def in_background(self) -> Store:
        """The same for a save beside something else: on threads that give way, within its share, in larger parts."""
        nice = self.config.background_nice
        threads = Threads(f"background-{nice}", nice, self.config.background_share, in_background=True)
        return replace(self, threads=threads)

    @contextmanager
    def lease(self) -> Iterator[Lease]:
        """Hold the engine for several calls."""
        bridge = self.threads.bridge()
        with bridge.lease(self._key, self._engine) as engine:
            yield Lease(bridge, engine)

    def run(self, work: Callable[[LoopEngine], Coroutine[Any, Any, T]]) -> T:
        """Run ``work(engine)`` on the loop thread and wait for it; Ctrl-C cancels it first."""
        bridge = self.threads.bridge()
        return bridge.run(lambda: self._leased(bridge, work))

    def start(self, work: Callable[[LoopEngine], Coroutine[Any, Any, T]]) -> Call[T]:
        """Start ``work(engine)`` on the loop thread, without waiting; the engine is built there first if need be."""
        bridge = self.threads.bridge()
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
        serving = [self.threads.bridge(f"-{number}") for number in range(2, self.config.loop_threads + 1)]
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
    def upload(self, total_bytes: int | None = None) -> Iterator[BlockingUpload]:
        """An upload to feed from this thread; leaving the block with an exception aborts it.

        ``total_bytes``: of all of its objects, or about that, if it is known.
        """
        threads = self.threads
        with (
            session(),
            self.lease() as lease,
            BlockingUpload(
                lease.bridge,
                lease.engine,
                threads.pauses(),
                in_background=threads.in_background,
                total_bytes=total_bytes,
            ) as upload,
        ):
            yield upload
