"""The engine: S3 as awaitable operations, with retries, bounded concurrency and zero-copy bulk transfers.

It composes ``plan`` (decisions), ``s3`` and ``transport`` (I/O). Per-loop: enter it on the loop that will use it; the
blocking world reaches it through the bridge. Any number of tasks use one engine at once.
"""

from __future__ import annotations

import logging
import math
import random
import time
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import AsyncExitStack, suppress
from datetime import datetime
from functools import partial
from typing import Self

import anyio
import anyio.to_thread

from aiockpt.config import S3ClientConfig, trace_path
from aiockpt.engine.assembler import PartAssembler
from aiockpt.engine.attempts import Attempts
from aiockpt.engine.budget import ByteBudget
from aiockpt.engine.clock import Clock, LoopClock
from aiockpt.engine.copy import copy_object
from aiockpt.engine.download import Download, DownloadStats, Job, Read
from aiockpt.engine.hedging import Hedging
from aiockpt.engine.standing import Conditions
from aiockpt.engine.upload import OutgoingPart, Upload
from aiockpt.errors import AccessDenied, AiockptError, ChecksumMismatch, NotFound, Throttled
from aiockpt.model import ANYTHING, ByteRange, MiB, ObjectId, ObjectInfo, Replaces
from aiockpt.observe.otel import watch_if_used
from aiockpt.observe.trace import trace_process
from aiockpt.plan.concurrency import ConcurrencyController, start_connections
from aiockpt.plan.hedge import HedgeController, Judge, slow_part, slow_read
from aiockpt.plan.parts import PartSizes, check_part_size, part_sizes
from aiockpt.plan.prefixes import PrefixLimits, prefix_of
from aiockpt.plan.request_size import request_bytes_around
from aiockpt.plan.retry import Backoff, Operation, RetryBudget, RetryPolicy
from aiockpt.s3.client import S3Client
from aiockpt.s3.control import ListedObject, ListedPart, PendingUpload
from aiockpt.transport.spread import OtherLoop

logger = logging.getLogger("aiockpt")

#: Where the pauses between retries are drawn from: the system's generator, which has no state that forked processes
#: would share. Ranks that were throttled together must not come back together.
_RANDOM = random.SystemRandom()

#: What S3 counts among the 5,500 requests a second of a prefix; the others are among the 3,500.
_READS = frozenset({Operation.GET, Operation.HEAD, Operation.LIST})

#: One pass of CRC32 over this much takes 0.2 ms (zlib-ng, 24 GB/s), about what it takes to have a thread do it; and
#: from Python 3.12 on there are no new threads at exit, when a last checkpoint's metadata may have to be written.
INLINE_BYTES = 4 * MiB


class LoopEngine:
    """Awaitable S3 on the loop where it is entered; an async context manager. Programs use ``aiockpt.Engine``.

    Args:
        config: settings; None: the defaults.
        region: AWS region; None: botocore's choice.
        others: loops of other threads that have their share of the bulk connections; decisions are made on this one.
        clock: what it waits, cuts and hedges by; the loop's unless a test has its own.

    Attributes:
        config: its settings.
        clock: what it waits, cuts and hedges by.
        client: the S3 client under it.
        budget: bound of the bytes staged by all who use this engine.
        get_control, put_control: how many requests run at once in each direction; they learn over the engine's life.
        get_prefixes, put_prefixes: how many of them under a key prefix where the service asks to slow down.
        attempts: runs an operation with retries.
        get_hedging, put_hedging: run one attempt at a range request, or a part, and a second one beside what is slow.
        conditions: what is known about conditional writes.
    """

    client: S3Client

    def __init__(
        self,
        config: S3ClientConfig | None = None,
        region: str | None = None,
        others: Sequence[OtherLoop] = (),
        clock: Clock | None = None,
    ) -> None:
        self.config = config or S3ClientConfig()
        self.clock = clock or LoopClock()
        check_part_size(self.config.part_size)
        self.client = S3Client(self.config, region, others)
        self.budget = ByteBudget(self.config.memory_bytes)
        self.get_control = self._new_control()
        self.put_control = self._new_control()
        self.get_prefixes = PrefixLimits(self.config.max_connections, self.clock.now)
        self.put_prefixes = PrefixLimits(self.config.max_connections, self.clock.now)
        self.attempts = Attempts(
            RetryPolicy(
                max_attempts=self.config.max_attempts,
                deadline_s=self.config.operation_timeout_s or math.inf,
                backoff=Backoff(self.config.backoff_base_s, self.config.backoff_cap_s, _RANDOM),
                attempt_limit_s=self.config.attempt_timeout_s or math.inf,
            ),
            RetryBudget(),
            self.clock,
            self._on_throttle,
        )
        self.get_hedging = self._new_hedging(slow_read, Operation.GET)
        self.put_hedging = self._new_hedging(slow_part, Operation.UPLOAD_PART)
        self.conditions = Conditions()
        self._exits = AsyncExitStack()
        self._scrap = memoryview(b"")

    async def __aenter__(self) -> Self:
        if path := trace_path():
            trace_process(path)
        watch_if_used()
        await self._exits.enter_async_context(self.client)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exits.aclose()

    # ---- reading

    async def fetch_into(self, reads: Sequence[Read]) -> DownloadStats:
        """Fetch ranges into memory: coalesced, split, concurrent.

        The memory stays the caller's; it must not be touched until this returns. After an error or a cancellation no
        byte is written to it any more, and what it holds is undefined.

        Raises:
            NotFound, AccessDenied, ServiceError: the service refuses.
            ShortRead: an object ends before a range does.
            ObjectChanged: an object was replaced meanwhile.
            TransportError: the network fails, after all retries.
        """
        download = Download(self, lambda _: None)
        download.submit([Job(reads)])
        download.finish()
        return await download.run()

    async def get(self, source: ObjectId) -> bytes:
        """A whole object of any size, in ranges.

        Raises:
            ObjectChanged: it was replaced after its size was asked for.
        """
        info = await self.head(source)
        buffer = bytearray(info.size)
        download = Download(self, lambda _: None)
        download.pin(source, info.etag)
        download.submit([Job([Read(source, ByteRange(0, info.size), memoryview(buffer))])])
        download.finish()
        await download.run()
        return bytes(buffer)

    async def get_small(self, source: ObjectId) -> tuple[bytes, str]:
        """A whole small object (16 MiB at most) in one request, with its ETag.

        Raises:
            ChecksumMismatch: the same wrong bytes came twice, so it is damaged where it is stored.
        """
        bulk = await self.client.bulk(source.bucket)
        damaged: set[int | None] = set()

        async def attempt() -> tuple[bytes, str]:
            try:
                return await bulk.get_whole(source)
            except ChecksumMismatch as error:
                if error.came in damaged:
                    error.at_rest = True
                    error.args = (f"{error.args[0]}, twice the same: it is damaged where it is stored",)
                damaged.add(error.came)
                raise

        return await self.attempts(Operation.GET, source, attempt)

    async def head(self, target: ObjectId) -> ObjectInfo:
        """Size and ETag of an object.

        Raises:
            NotFound: there is none.
        """
        return await self.attempts(Operation.HEAD, target, lambda: self.client.control.head(target))

    async def exists(self, target: ObjectId) -> bool:
        """Whether the object exists; any other trouble than its absence raises."""
        try:
            await self.head(target)
        except NotFound:
            with suppress(AccessDenied):  # to look at the bucket, which is there then
                bucket = ObjectId(target.bucket, "")
                await self.attempts(Operation.HEAD, bucket, lambda: self.client.control.bucket_region(target.bucket))
            return False
        return True

    async def list_objects(self, prefix: ObjectId, delimiter: str = "") -> AsyncGenerator[ListedObject | str, None]:
        """Objects whose key starts with ``prefix.key``, and common prefixes as ``str``, page by page."""
        token = ""
        while True:
            rows, token = await self.list_page(prefix, delimiter, token)
            for row in rows:
                yield row
            if not token:
                return

    async def list_page(
        self, prefix: ObjectId, delimiter: str = "", after: str = ""
    ) -> tuple[list[ListedObject | str], str]:
        """A page of ``list_objects``, and the token to ask for the next one ``after``; ``""``: there is none."""
        return await self.attempts(
            Operation.LIST, prefix, lambda: self.client.control.list_page(prefix, delimiter=delimiter, after=after)
        )

    async def pending_uploads(self, prefix: ObjectId) -> AsyncIterator[PendingUpload]:
        """Multipart uploads that were begun under a prefix and neither completed nor aborted."""
        markers = ("", "")
        while True:
            rows, markers = await self.attempts(
                Operation.LIST, prefix, partial(self.client.control.pending_page, prefix, after=markers)
            )
            for row in rows:
                yield row
            if not markers[0]:
                return

    async def upload_parts(self, target: ObjectId, upload_id: str) -> list[ListedPart]:
        """The parts that a pending upload has so far.

        Raises:
            NotFound: it was completed or aborted.
        """
        parts: list[ListedPart] = []
        after = 0
        while True:
            rows, after = await self.attempts(
                Operation.LIST, target, partial(self.client.control.parts_page, target, upload_id, after)
            )
            parts += rows
            if not after:
                return parts

    async def bucket_url(self, bucket: str) -> str:
        """What the URLs of a bucket's objects begin with: tells it from one of the same name elsewhere."""
        return await self.client.bucket_url(bucket)

    async def service_time(self, bucket: str) -> datetime | None:
        """What time it is for the service that holds ``bucket``; None if it does not say."""
        target = ObjectId(bucket, "")
        return await self.attempts(Operation.HEAD, target, lambda: self.client.control.service_time(bucket))

    # ---- writing

    async def put(
        self, target: ObjectId, views: Sequence[bytes | bytearray | memoryview], replaces: Replaces = ANYTHING
    ) -> ObjectInfo:
        """Write an object from memory, in order, without copying it; several parts when it is large.

        The memory must stay as it is until this returns. After an error or a cancellation there is no new object, and
        no upload is left behind.

        Raises:
            PreconditionFailed: it would have replaced something else than it may.
        """
        upload = Upload(self)
        outgoing = upload.begin(target, replaces)
        memory = [octets(view) for view in views]
        total = sum(map(len, memory))
        parts: list[OutgoingPart] = []
        assembler = PartAssembler(self.part_sizes(total), parts.append, lambda _: None)

        def assemble() -> None:
            for view in memory:
                assembler.write(view, view)
            assembler.finish()

        if total <= INLINE_BYTES:
            assemble()
        else:
            await anyio.to_thread.run_sync(assemble)
        for part in parts:
            outgoing.submit(part)
        outgoing.seal(assembler.nbytes, assembler.crc32)
        upload.finish()
        await upload.run()
        assert outgoing.info is not None
        return outgoing.info

    async def delete(self, target: ObjectId, *, once: bool = False) -> None:
        """Delete an object; one that is not there counts as deleted.

        ``once``: not again when the answer was lost, since another writer may have taken the name in between.
        """
        operation = Operation.DELETE_ONCE if once else Operation.DELETE
        await self.attempts(operation, target, lambda: self.client.control.delete(target))

    async def abort_upload(self, target: ObjectId, upload_id: str) -> None:
        """Drop a pending multipart upload and its parts; one that is not there counts as dropped."""
        with suppress(NotFound):
            await self.attempts(Operation.ABORT, target, lambda: self.client.control.abort_upload(target, upload_id))

    async def copy(self, source: ObjectId, target: ObjectId) -> None:
        """Copy an object within the service, whatever its size, as it is now. A failed copy leaves nothing behind.

        Raises:
            ObjectChanged: it was replaced meanwhile.
        """
        await copy_object(self, source, target)

    # ---- for the sessions

    @property
    def checksums(self) -> bool:
        """Whether what is written is sent with its CRC32, for the service to check."""
        return self.config.checksum == "crc32"

    def part_sizes(
        self, total_bytes: int | None, *, in_background: bool = False, upload_bytes: int | None = None
    ) -> PartSizes:
        """The sizes of the parts of an object of ``total_bytes``; None: not known.

        ``upload_bytes``: of all objects that share the link with it, itself among them. They are few where the thread
        is the bound, and in the background, where it is to hold Python's lock for little.
        """
        few_of = (upload_bytes or total_bytes or 0) if in_background or self.put_control.busy else 0
        return part_sizes(total_bytes, self.config.part_size, few_of=few_of, in_turn=in_background)

    def request_bytes(self, total_bytes: int) -> int:
        """How large the range requests for ``total_bytes`` should be."""
        control = self.get_control
        return request_bytes_around(total_bytes, control.limit, self.config.part_size, few=control.busy)

    def scrap(self, nbytes: int) -> memoryview:
        """Memory for bytes that nobody wants; shared, written to by anyone, never read."""
        if len(self._scrap) < nbytes:
            self._scrap = memoryview(bytearray(max(nbytes, self.config.max_gap_bytes)))
        return self._scrap[:nbytes]

    def _new_control(self) -> ConcurrencyController:
        largest = self.config.max_connections
        start = start_connections(self.config.throughput_target_gbps, largest)
        return ConcurrencyController(largest, start, time.thread_time)

    def _new_hedging(self, judge: Judge, operation: Operation) -> Hedging:
        control = HedgeController(self.config.hedge_share, judge)
        return Hedging(control, self.clock, partial(self._on_race_failure, operation))

    def _on_throttle(self, operation: Operation, target: ObjectId) -> None:
        prefixes = self.get_prefixes if operation in _READS else self.put_prefixes
        prefixes.on_throttle(prefix_of(target))
        self.get_hedging.on_throttle()
        self.put_hedging.on_throttle()

    def _on_race_failure(self, operation: Operation, target: ObjectId, error: AiockptError) -> None:
        """One of two requests for the same bytes has failed, which does not matter but for what it says."""
        logger.debug("one of two requests for the same bytes failed: %s", error)
        if isinstance(error, Throttled):
            self._on_throttle(operation, target)


def octets(view: bytes | bytearray | memoryview) -> memoryview:
    """``view`` as bytes, whatever its items are; only what is empty may have a shape that cannot be cast."""
    items = memoryview(view)
    return items.cast("B") if items.nbytes else memoryview(bytearray())
