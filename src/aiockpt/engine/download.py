"""Downloads: reads with destinations, coalesced and split into range requests that a crew performs.

A read is a byte range of an object and the memory that it lands in; reads that lie close together share a request,
large ones are split over several. Objects are pinned by ETag: if one is replaced in the meantime, the download fails
rather than mix the two.

``Download`` lives on the loop thread; only ``submit`` and ``finish`` are safe from elsewhere, through
``bridge.call_soon``. Completion is told by a callback on the loop thread, which must not block.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from aiockpt.engine.crew import Crew
from aiockpt.engine.hedging import HedgeStats
from aiockpt.errors import ObjectChanged
from aiockpt.model import ByteRange, MiB, ObjectId, OnLanded
from aiockpt.observe.exchange import gauge
from aiockpt.plan.coalesce import Fetch, coalesce
from aiockpt.plan.prefixes import prefix_of
from aiockpt.plan.retry import Operation
from aiockpt.s3.bulk import Bulk, Pin, RangeTransfer
from aiockpt.transport.landing import Landing

if TYPE_CHECKING:
    from aiockpt.engine.engine import LoopEngine


#: Reads of this size pay for requests of their own: no gap beside them is fetched. At 90 MB/s a connection 1 MiB takes
#: 12 ms, about as long as the first byte of another request, which overlaps with the others'.
ALONE_BYTES = MiB


@dataclass(frozen=True, slots=True)
class Read:
    """A range of an object, and where it goes.

    Attributes:
        source: the object.
        span: half-open byte range.
        into: writable memory of the span's length. It stays the caller's, who keeps it alive until the job is done or
            the download has ended.
        on_landed: told of its bytes as they land, on loop threads: where they begin in it, and their memory. Of no byte
            twice, and not of all: where a second request races the first, they may be written again.

    Raises:
        ValueError: the memory is read-only or of another length.
    """

    source: ObjectId
    span: ByteRange
    into: memoryview
    on_landed: OnLanded | None = None

    def __post_init__(self) -> None:
        if len(self.into) != len(self.span) or self.into.itemsize != 1 or self.into.readonly:
            raise ValueError(f"{self.source.uri}: {len(self.span)} bytes need as many bytes of writable memory")


class Job:
    """Reads that are reported together once all of them have landed.

    Attributes:
        reads: what to fetch.
        token: the caller's, to recognise the job by.
        total_bytes: of all reads.
        missing_bytes: what has not landed yet.
    """

    __slots__ = ("missing_bytes", "reads", "token", "total_bytes")

    def __init__(self, reads: Sequence[Read], token: Any = None) -> None:
        self.reads = reads
        self.token = token
        self.total_bytes = self.missing_bytes = sum(len(read.span) for read in reads)


@dataclass(slots=True)
class DownloadStats(HedgeStats):
    """What a download has done so far.

    Attributes:
        requests: range requests performed.
        wanted_bytes: bytes that landed in a destination.
        fetched_bytes: bytes that were asked for, gaps included.
        retries: attempts beyond the first.
        hedges, hedges_won, hedged_bytes: see ``HedgeStats``.
    """

    requests: int = 0
    wanted_bytes: int = 0
    fetched_bytes: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class Request:
    """A range request: what it fetches of an object, and which job and read each piece is of; it keeps no others."""

    source: ObjectId
    fetch: Fetch
    jobs: Sequence[Job]
    reads: Sequence[Read]


def plan_requests(jobs: Sequence[Job], *, max_gap_bytes: int, max_request_bytes: int) -> Iterator[Request]:
    """The requests that bring what jobs read, coalesced with one another. Pure."""
    by_object: defaultdict[ObjectId, list[tuple[Job, Read]]] = defaultdict(list)
    for job in jobs:
        for read in job.reads:
            by_object[read.source].append((job, read))
    for source, pairs in by_object.items():
        owners = [job for job, _ in pairs]
        reads = [read for _, read in pairs]
        fetches = coalesce(
            [read.span for read in reads],
            max_gap_bytes=max_gap_bytes,
            max_request_bytes=max_request_bytes,
            alone_bytes=ALONE_BYTES,
        )
        for fetch in fetches:
            indices = [piece.read for piece in fetch.pieces]
            yield Request(source, fetch, [owners[index] for index in indices], [reads[index] for index in indices])


class Download:
    """One download: submit jobs while it runs, then finish it. See the module for threads.

    Args:
        engine: performs the requests.
        on_done: called on the loop thread with each job whose reads have all landed.
        max_gap_bytes: further bound of the gaps that are fetched, below the engine's own.
    """

    def __init__(self, engine: LoopEngine, on_done: Callable[[Job], None], max_gap_bytes: float = math.inf) -> None:
        self._engine = engine
        self._max_gap_bytes = int(min(engine.config.max_gap_bytes, max_gap_bytes))
        self._on_done = on_done
        self._crew: Crew[Request] = Crew(
            lambda: engine.get_control.limit,
            self._perform,
            engine.get_prefixes,
            lambda request: prefix_of(request.source),
            engine.clock,
        )
        self._pins: defaultdict[ObjectId, Pin] = defaultdict(Pin)
        self.stats = DownloadStats()

    async def run(self) -> DownloadStats:
        """Work until ``finish``; raises the first failure, having cancelled the rest.

        After it has returned or raised, no destination is written to any more.
        """
        self._engine.get_control.on_begin(self._engine.clock.now())
        await self._crew.run()
        return self.stats

    def submit(self, jobs: Sequence[Job]) -> None:
        """Queue jobs; reads of one call are coalesced with one another."""
        for job in jobs:
            if not job.missing_bytes:
                self._on_done(job)
        size = self._engine.request_bytes(sum(job.missing_bytes for job in jobs))
        for request in plan_requests(jobs, max_gap_bytes=self._max_gap_bytes, max_request_bytes=size):
            self._crew.put(request)

    def pin(self, source: ObjectId, etag: str) -> None:
        """Read ``source`` only as it was when it had this ETag; by default it is that of the first answer."""
        pin = self._pins[source]
        if not etag:
            return  # a server that leaves it out
        if pin.etag not in {"", etag}:
            raise ObjectChanged(
                f"{source.uri} was replaced while it was read: ETags {pin.etag} and {etag}",
                bucket=source.bucket,
                key=source.key,
            )
        pin.etag = etag

    def finish(self) -> None:
        """No more jobs will be submitted."""
        self._crew.finish()

    async def _perform(self, request: Request) -> None:
        source, fetch = request.source, request.fetch
        landing = self._landing(request)
        transfer = RangeTransfer(ByteRange(fetch.start, fetch.end), landing, self._pins[source])
        bulk = await self._engine.client.bulk(source.bucket)
        await self._engine.attempts(
            Operation.GET,
            source,
            lambda: self._fetch(bulk, source, transfer),
            progress=lambda: transfer.landing.landed,
            stats=self.stats,
            step_aside=partial(self._crew.pause, prefix_of(source)),
        )
        self._engine.get_control.on_complete(fetch.end - fetch.start, self._engine.clock.now())
        gauge("GET limit", self._engine.get_control.limit)
        self.stats.requests += 1
        self.stats.fetched_bytes += fetch.end - fetch.start
        for piece, job in zip(fetch.pieces, request.jobs, strict=True):
            self._landed(job, piece.length)

    async def _fetch(self, bulk: Bulk, source: ObjectId, transfer: RangeTransfer) -> None:
        """One attempt to land the rest of a range.

        Nothing is asked for if nothing is missing: an attempt may break when all bytes have come, but not yet the end
        of their framing, and no range is empty in HTTP.
        """
        if transfer.rest:
            await self._engine.get_hedging.run(partial(bulk.get, source), source, transfer, self.stats)

    def _landing(self, request: Request) -> Landing:
        """The memory of a request's pieces in object order, with throwaway memory for the gaps between them."""
        views: list[memoryview] = []
        told: list[OnLanded | None] = []
        position = request.fetch.start
        for piece, read in zip(request.fetch.pieces, request.reads, strict=True):
            start = read.span.start + piece.offset
            if start > position:
                views.append(self._engine.scrap(start - position))
                told.append(None)
            views.append(read.into[piece.offset : piece.offset + piece.length])
            told.append(shifted(piece.offset, read.on_landed) if read.on_landed else None)
            position = start + piece.length
        return Landing(views, told if any(told) else ())

    def _landed(self, job: Job, nbytes: int) -> None:
        self.stats.wanted_bytes += nbytes
        job.missing_bytes -= nbytes
        if not job.missing_bytes:
            self._on_done(job)


def shifted(offset: int, tell: OnLanded) -> OnLanded:
    """The same for what begins at ``offset`` of what ``tell`` is told of."""
    return (lambda start, memory: tell(offset + start, memory)) if offset else tell
