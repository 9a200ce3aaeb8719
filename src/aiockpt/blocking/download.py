"""A download fed from a thread: submit jobs, take the finished ones as they come.

The bytes move on the loop thread meanwhile, so what the caller does between two finished jobs (checking, planning,
committing) overlaps with the network.
"""

from __future__ import annotations

import math
import queue
from collections.abc import Sequence
from types import TracebackType
from typing import Self

from aiockpt.bridge import Bridge, Call, next_of
from aiockpt.engine.budget import ByteBudget
from aiockpt.engine.download import Download, DownloadStats, Job
from aiockpt.engine.engine import LoopEngine
from aiockpt.model import ObjectId


class BlockingDownload:
    """See the module. A context manager for one thread; made by ``Store.download``.

    Leaving the block waits for what was submitted; leaving it with an exception cancels. Either way no byte is
    written to the caller's memory afterwards.

    Attributes:
        unfinished: jobs that were submitted and not yet taken by ``next_done``.
    """

    def __init__(self, bridge: Bridge, engine: LoopEngine, max_gap_bytes: float = math.inf) -> None:
        self._bridge = bridge
        self._engine = engine
        self._max_gap_bytes = max_gap_bytes
        self._done: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._download: Download
        self._call: Call[DownloadStats]
        self._cancelled = False
        self.unfinished = 0

    @property
    def engine(self) -> LoopEngine:
        """The engine that performs it: for its settings and its byte budget, which are safe to use from here."""
        return self._engine

    @property
    def budget(self) -> ByteBudget:
        """The bound of what is staged; safe to use from here."""
        return self._engine.budget

    @property
    def stats(self) -> DownloadStats:
        """What has been done so far."""
        return self._download.stats

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; reads that are submitted together are coalesced with one another."""
        self.unfinished += len(jobs)
        self._bridge.call_soon(self._download.submit, jobs)

    def pin(self, source: ObjectId, etag: str) -> None:
        """Read ``source`` only as it was when it had this ETag; see ``Download.pin``."""
        self._bridge.call_soon(self._download.pin, source, etag)

    def next_done(self) -> Job:
        """Wait for the next finished job, in the order in which they finish.

        Raises:
            the failure of the download.
        """
        if self._call.done and self._done.empty():  # in a forked child, where nobody is left to tell that it has ended
            self._call.result()
        job = next_of(self._done)
        if job is None:  # the download has failed or was cancelled: nobody has called finish
            self._done.put(None)  # for who asks again
            self._call.result()
            raise AssertionError("a download ended before it was finished")
        self.unfinished -= 1
        return job

    def cancel(self) -> None:
        """Stop: what is under way is dropped; leaving the block then raises nothing, ``next_done`` a ClosedError."""
        self._call.cancel()
        self._call.wait()
        self._cancelled = True

    def __enter__(self) -> Self:
        self._download = Download(self._engine, self._done.put, self._max_gap_bytes)
        self._call = self._bridge.start(self._download.run, on_end=lambda: self._done.put(None))
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._cancelled:
            return
        if exc_type is None:
            self._bridge.call_soon(self._download.finish)
            self._call.result()
        else:
            self._call.cancel()
            self._call.wait()
