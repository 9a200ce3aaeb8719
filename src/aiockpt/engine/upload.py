"""Uploads: objects written as parts that a crew sends, from the memory where the bytes are.

An object of one part is one PUT; more parts are a multipart upload, begun when its second part comes, or before the
first if it was said that there will be several. The parts carry their CRC32, the completed object the combination of
all. What fails or is cancelled is aborted before ``run`` ends. An object that would replace something fails the upload,
or if it was begun so, gives way alone: its bytes can be written again under another name.

``Upload`` lives on the loop thread; ``submit``, ``seal`` and ``finish`` are called from elsewhere through
``bridge.call_soon``.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

import anyio

from aiockpt.engine.crew import Crew
from aiockpt.engine.hedging import HedgeStats
from aiockpt.engine.multipart import ABORT_TIMEOUT_S, MultipartUpload
from aiockpt.engine.standing import Whole, stand
from aiockpt.errors import PreconditionFailed
from aiockpt.model import ANYTHING, ObjectId, ObjectInfo, Replaces
from aiockpt.observe.exchange import gauge
from aiockpt.plan.prefixes import prefix_of
from aiockpt.plan.retry import Operation
from aiockpt.s3.bulk import PartTransfer, Payload
from aiockpt.s3.control import UploadedPart

if TYPE_CHECKING:
    from aiockpt.engine.engine import LoopEngine


@dataclass(frozen=True, slots=True)
class OutgoingPart:
    """A part ready to be sent.

    Attributes:
        number: from 1.
        payload: its memory (the caller's, kept alive through ``owners``) and CRC32.
        owners: whatever the payload's views point into; none any more once it has been sent.
        staged_bytes: what the byte budget accounts for until it has been sent: the memory of copies in it.
    """

    number: int
    payload: Payload
    owners: list[object] = field(default_factory=list)
    staged_bytes: int = 0


@dataclass(slots=True)
class UploadStats(HedgeStats):
    """What an upload session has done so far.

    Attributes:
        requests: data requests (PUT, UploadPart) performed.
        sent_bytes: bytes of them.
        objects: objects that stand.
        retries: attempts beyond the first.
        hedges, hedges_won, hedged_bytes: see ``HedgeStats``.
    """

    requests: int = 0
    sent_bytes: int = 0
    objects: int = 0
    retries: int = 0


@dataclass(frozen=True, slots=True)
class _Step:
    """Something to do for an object under a key prefix."""

    prefix: str
    do: Callable[[], Awaitable[None]]


class OutgoingObject:
    """An object on its way: submit its parts in order, then seal it (or discard it). On the loop thread.

    Attributes:
        target: where it goes.
        info: size and ETag, once it stands.
    """

    def __init__(self, upload: Upload, target: ObjectId, replaces: Replaces, *, gives_way: bool) -> None:
        self.target = target
        self.info: ObjectInfo | None = None
        self._gives_way = gives_way
        self._upload = upload
        self._prefix = prefix_of(target)
        self._step_aside = partial(upload.pause, self._prefix)
        self._replaces = replaces
        self._held: OutgoingPart | None = None  # the first part, until it is known whether there are more
        self._multipart: MultipartUpload | None = None  # there once one was decided on
        self._begun = False
        self._early: list[OutgoingPart] = []  # parts that came before the multipart upload was begun
        self._expected = 0
        self._skipped = 0
        self._sent: dict[int, UploadedPart] = {}
        self._sealed: Whole | None = None
        self._discarded = False

    def expect_parts(self) -> None:
        """There will be several parts: begin the multipart upload now, before they are there."""
        self._parts()

    def submit(self, part: OutgoingPart) -> None:
        """Queue a part."""
        self._expected += 1
        if self._expected == 1 and self._multipart is None:
            self._held = part
        else:
            self._send_soon(self._parts(), part)

    def seal(self, nbytes: int, crc32: int) -> None:
        """All parts were submitted (at least one, perhaps empty): this is the whole object's size and CRC32."""
        whole = self._sealed = Whole(nbytes, crc32)
        if self._multipart is None:
            part = self._take_held()
            self._queue(lambda: self._put(part, whole))
        else:
            self._settle()

    def discard(self) -> None:
        """Give up an object that is not sealed: nothing of it will appear."""
        self._discarded = True
        if self._held is not None:
            self._upload.sent_nothing(self._take_held())
        self._settle()

    async def abort_quietly(self, limit_s: float = math.inf) -> None:
        """Drop what was begun and does not stand; see ``MultipartUpload.abort_quietly``."""
        if self._multipart is not None:
            await self._multipart.abort_quietly(limit_s)

    def _parts(self) -> MultipartUpload:
        """The multipart upload, begun now if it was not before."""
        if self._multipart is None:
            engine = self._upload.engine
            multipart = self._multipart = MultipartUpload(
                engine, self.target, checksums=engine.checksums, step_aside=self._step_aside
            )
            self._queue(lambda: self._begin(multipart))
            if self._held is not None:
                self._send_soon(multipart, self._take_held())
        return self._multipart

    def _take_held(self) -> OutgoingPart:
        part, self._held = self._held, None
        assert part is not None
        return part

    def _queue(self, do: Callable[[], Awaitable[None]]) -> None:
        self._upload.queue(self._prefix, do)

    def _send_soon(self, multipart: MultipartUpload, part: OutgoingPart) -> None:
        """Send a part when it is its turn; not before there is an id to send it under, as it would hold a place."""
        if self._begun:
            self._queue(lambda: self._send(multipart, part))
        else:
            self._early.append(part)

    async def _put(self, part: OutgoingPart, whole: Whole) -> None:
        engine, payload = self._upload.engine, part.payload
        bulk = await engine.client.bulk(self.target.bucket)
        info = await self._unless_taken(
            stand(
                engine,
                Operation.PUT,
                self.target,
                lambda condition: bulk.put(self.target, payload, condition),
                whole,
                self._replaces,
                self._upload.stats,
                self._step_aside,
                gives_way=self._gives_way,
            )
        )
        self._upload.sent(part)
        self._ends(info)

    async def _begin(self, multipart: MultipartUpload) -> None:
        await multipart.begin()
        self._begun = True
        early, self._early = self._early, []
        for part in early:
            self._send_soon(multipart, part)
        self._settle()  # it may have been discarded meanwhile

    async def _send(self, multipart: MultipartUpload, part: OutgoingPart) -> None:
        if self._discarded:
            self._skipped += 1
            self._upload.sent_nothing(part)
            self._settle()
            return
        etag = await self._upload.engine.attempts(
            Operation.UPLOAD_PART,
            self.target,
            lambda: self._send_once(PartTransfer(multipart.upload_id, part.number, part.payload)),
            stats=self._upload.stats,
            step_aside=self._step_aside,
        )
        self._sent[part.number] = UploadedPart(part.number, etag)
        self._upload.sent(part)
        self._settle()

    async def _send_once(self, transfer: PartTransfer) -> str:
        """One attempt at a part; returns its ETag."""
        engine = self._upload.engine
        bulk = await engine.client.bulk(self.target.bucket)
        await engine.put_hedging.run(partial(bulk.upload_part, self.target), self.target, transfer, self._upload.stats)
        return transfer.etag

    def _settle(self) -> None:
        """Once no part is under way: complete a sealed object, abort a discarded one."""
        multipart, whole = self._multipart, self._sealed
        if multipart is None or not self._begun or len(self._sent) + self._skipped < self._expected:
            return
        if self._discarded:
            self._queue(multipart.abort_quietly)
        elif whole is not None:
            self._queue(lambda: self._complete(multipart, whole))

    async def _complete(self, multipart: MultipartUpload, whole: Whole) -> None:
        parts = [self._sent[number] for number in sorted(self._sent)]
        info = await self._unless_taken(multipart.complete(parts, whole, self._replaces))
        if info is None:
            await multipart.abort_quietly()
        self._ends(info)

    async def _unless_taken(self, standing: Awaitable[ObjectInfo]) -> ObjectInfo | None:
        """The object when it stands; None: it gives way to what stands there."""
        try:
            return await standing
        except PreconditionFailed:
            if not self._gives_way:
                raise
            return None

    def _ends(self, info: ObjectInfo | None) -> None:
        self.info = info
        if info is None:
            self._upload.gives_way(self)
        else:
            self._upload.stands(self)


class Upload:
    """A session that writes any number of objects. See the module for threads.

    Args:
        engine: performs the requests.
        on_sent: called on the loop thread when a part has been sent and its memory is free again.
        on_object: called on the loop thread when an object stands.

    Attributes:
        stats: what has been done so far.
        gave_way: the objects that were not written, since something stands there that they may not replace.
    """

    def __init__(
        self,
        engine: LoopEngine,
        on_sent: Callable[[OutgoingPart], None] = lambda _: None,
        on_object: Callable[[OutgoingObject], None] = lambda _: None,
    ) -> None:
        self.engine = engine
        self.stats = UploadStats()
        self.gave_way: list[ObjectId] = []
        self._on_sent = on_sent
        self._on_object = on_object
        self._crew: Crew[_Step] = Crew(
            lambda: engine.put_control.limit,
            lambda step: step.do(),
            engine.put_prefixes,
            lambda step: step.prefix,
            engine.clock,
        )
        self._objects: list[OutgoingObject] = []

    async def run(self) -> UploadStats:
        """Work until ``finish`` and until every sealed object stands; raises the first failure.

        After it has returned or raised, no memory of a part is read any more, and what was begun and does not stand
        has been aborted (as far as the service could be told within ``ABORT_TIMEOUT_S``).
        """
        self.engine.put_control.on_begin(self.engine.clock.now())
        try:
            await self._crew.run()
        finally:
            await self._abort_unfinished()
        return self.stats

    def begin(self, target: ObjectId, replaces: Replaces = ANYTHING, *, gives_way: bool = False) -> OutgoingObject:
        """A new object.

        If it would replace something else than it may, the upload fails with ``PreconditionFailed``; or with
        ``gives_way``, nothing fails, and this object alone is not written.
        """
        outgoing = OutgoingObject(self, target, replaces, gives_way=gives_way)
        self._objects.append(outgoing)
        return outgoing

    def finish(self) -> None:
        """No more objects will come."""
        self._crew.finish()

    def queue(self, prefix: str, do: Callable[[], Awaitable[None]]) -> None:
        """Have the crew do a step of an object under ``prefix``."""
        self._crew.put(_Step(prefix, do))

    async def pause(self, prefix: str, wait: Callable[[], Awaitable[None]]) -> None:
        """Wait within a step, while others go on; see ``Crew.pause``."""
        await self._crew.pause(prefix, wait)

    def sent(self, part: OutgoingPart) -> None:
        """Account for a part that is with the service."""
        self.stats.requests += 1
        self.stats.sent_bytes += part.payload.nbytes
        self.engine.put_control.on_complete(part.payload.nbytes, self.engine.clock.now())
        gauge("PUT limit", self.engine.put_control.limit)
        self._free(part)

    def sent_nothing(self, part: OutgoingPart) -> None:
        """Account for a part whose object was given up: its memory is free again."""
        self._free(part)

    def _free(self, part: OutgoingPart) -> None:
        part.owners.clear()  # first: who then stages more uses that memory again
        self._on_sent(part)

    def gives_way(self, outgoing: OutgoingObject) -> None:
        """Account for an object that is not written, since its name is taken."""
        self.gave_way.append(outgoing.target)
        self._objects.remove(outgoing)

    def stands(self, outgoing: OutgoingObject) -> None:
        """Account for an object that stands."""
        self.stats.objects += 1
        self._objects.remove(outgoing)
        self._on_object(outgoing)

    async def _abort_unfinished(self) -> None:
        """Abort what is left, shielded from the cancellation that may have brought us here."""
        with anyio.CancelScope(shield=True):
            async with anyio.create_task_group() as group:
                for outgoing in self._objects:
                    group.start_soon(outgoing.abort_quietly, ABORT_TIMEOUT_S)
