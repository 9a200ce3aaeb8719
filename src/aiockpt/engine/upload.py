"""Uploads: objects written as parts that a crew sends, from the memory where the bytes are.

An object of one part is one PUT; more parts are a multipart upload, begun when its second part comes. The parts carry
their CRC32, the completed object the combination of all. What fails or is cancelled is aborted before ``run`` ends.

``Upload`` lives on the loop thread; ``submit``, ``seal`` and ``finish`` are called from elsewhere through
``bridge.call_soon``.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

import anyio

from aiockpt.crc import crc32
from aiockpt.engine.crew import Crew
from aiockpt.errors import AiockptError, NotFound, PreconditionFailed, ServiceError
from aiockpt.model import ANYTHING, ObjectId, ObjectInfo, Replaces
from aiockpt.observe.exchange import gauge
from aiockpt.plan.retry import Operation
from aiockpt.s3.bulk import Payload
from aiockpt.s3.control import UploadedPart
from aiockpt.transport.connection import MAX_BUFFERED_BYTES

if TYPE_CHECKING:
    from aiockpt.engine.engine import Engine

logger = logging.getLogger("aiockpt")

#: Longest wait for the aborts of a failed or cancelled upload: "everything in flight stops within a second".
ABORT_TIMEOUT_S = 1.0


@dataclass(frozen=True, slots=True)
class OutgoingPart:
    """A part ready to be sent.

    Attributes:
        number: from 1.
        payload: its memory (the caller's, kept alive through ``owners``) and CRC32.
        owners: whatever the payload's views point into.
        staged_bytes: how many of its bytes are copies that the byte budget accounts for.
    """

    number: int
    payload: Payload
    owners: Sequence[object] = ()
    staged_bytes: int = 0


@dataclass(slots=True)
class UploadStats:
    """What an upload session has done so far.

    Attributes:
        requests: data requests (PUT, UploadPart) performed.
        sent_bytes: bytes of them.
        objects: objects that stand.
        retries: attempts beyond the first.
    """

    requests: int = 0
    sent_bytes: int = 0
    objects: int = 0
    retries: int = 0


class OutgoingObject:
    """An object on its way: submit its parts in order, then seal it (or discard it). On the loop thread.

    Attributes:
        target: where it goes.
        info: size and ETag, once it stands.
    """

    def __init__(self, upload: Upload, target: ObjectId, replaces: Replaces) -> None:
        self.target = target
        self.info: ObjectInfo | None = None
        self._upload = upload
        self._replaces = replaces
        self._held: OutgoingPart | None = None  # the first part, until it is known whether there are more
        self._upload_id = ""
        self._created: anyio.Event | None = None  # there once a multipart upload was decided on
        self._expected = 0
        self._skipped = 0
        self._sent: dict[int, UploadedPart] = {}
        self._sealed: Payload | None = None  # size and CRC32 of the whole; its views are empty
        self._discarded = False

    @property
    def unfinished(self) -> bool:
        """Whether an upload was begun that neither completed nor was aborted."""
        return bool(self._upload_id) and self.info is None

    def submit(self, part: OutgoingPart) -> None:
        """Queue a part."""
        self._expected += 1
        if self._expected == 1:
            self._held = part
            return
        if self._created is None:
            self._created = anyio.Event()
            self._upload.queue(self._create)
            self._send_soon(self._take_held())
        self._send_soon(part)

    def seal(self, nbytes: int, crc32: int) -> None:
        """All parts were submitted (at least one, perhaps empty): this is the whole object's size and CRC32."""
        self._sealed = Payload((), nbytes, crc32)
        if self._created is None:
            part = self._take_held()
            self._upload.queue(lambda: self._put(part))
        else:
            self._settle()

    def discard(self) -> None:
        """Give up an object that is not sealed: nothing of it will appear."""
        self._discarded = True
        if self._held is not None:
            self._upload.sent_nothing(self._take_held())
        self._settle()

    async def abort(self) -> None:
        """Drop the multipart upload; one that is gone already counts as dropped."""
        upload_id, self._upload_id = self._upload_id, ""
        if upload_id and self.info is None:
            await self._upload.engine.abort_upload(self.target, upload_id)

    def _take_held(self) -> OutgoingPart:
        part, self._held = self._held, None
        assert part is not None
        return part

    def _send_soon(self, part: OutgoingPart) -> None:
        self._upload.queue(lambda: self._send(part))

    async def _put(self, part: OutgoingPart) -> None:
        payload = part.payload
        bulk = await self._upload.engine.client.bulk(self.target.bucket)
        info = await self._once(
            Operation.PUT,
            lambda: bulk.put(self.target, payload, self._replaces),
            payload,
            stats=self._upload.stats,
        )
        self._upload.sent(part)
        self._stands(info)

    async def _create(self) -> None:
        engine = self._upload.engine
        creating = asyncio.ensure_future(
            engine.attempts(
                Operation.CREATE,
                self.target,
                lambda: engine.client.control.create_upload(self.target, checksums=engine.checksums),
            )
        )
        try:
            self._upload_id = await asyncio.shield(creating)
        except asyncio.CancelledError:  # the service may have begun it: only with its id can it be aborted
            with anyio.move_on_after(ABORT_TIMEOUT_S, shield=True), suppress(AiockptError):
                self._upload_id = await creating
            raise
        assert self._created is not None
        self._created.set()

    async def _send(self, part: OutgoingPart) -> None:
        engine, payload = self._upload.engine, part.payload
        assert self._created is not None
        await self._created.wait()
        if self._discarded:
            self._skipped += 1
            self._upload.sent_nothing(part)
            self._settle()
            return
        bulk = await engine.client.bulk(self.target.bucket)
        etag = await engine.attempts(
            Operation.UPLOAD_PART,
            self.target,
            lambda: bulk.upload_part(self.target, self._upload_id, part.number, payload),
            stats=self._upload.stats,
        )
        self._sent[part.number] = UploadedPart(part.number, etag)
        self._upload.sent(part)
        self._settle()

    def _settle(self) -> None:
        """Once no part is under way: complete a sealed object, abort a discarded one."""
        if self._created is None or len(self._sent) + self._skipped < self._expected:
            return
        if self._discarded:
            self._upload.queue(lambda: self._upload.abort_quietly(self))
        elif self._sealed is not None:
            self._upload.queue(self._complete)

    async def _complete(self) -> None:
        engine, sealed = self._upload.engine, self._sealed
        assert sealed is not None
        checksum = sealed.crc32 if engine.checksums else None
        parts = [self._sent[number] for number in sorted(self._sent)]
        answer = await self._once(
            Operation.COMPLETE,
            lambda: engine.client.control.complete_upload(
                self.target, self._upload_id, parts, crc32=checksum, replaces=self._replaces
            ),
            sealed,
        )
        self._stands(ObjectInfo(sealed.nbytes, answer.etag))

    async def _once(
        self,
        operation: Operation,
        attempt: Callable[[], Awaitable[ObjectInfo]],
        payload: Payload,
        *,
        stats: UploadStats | None = None,
    ) -> ObjectInfo:
        """Do what makes the object stand, with retries.

        A try whose answer was lost may have done it: the next one then finds the upload gone, or an object where there
        must be none. So these are looked into before they are believed: with a PUT always, since the pool itself
        repeats what was sent on a connection that turns out to have been closed.
        """
        tries = 0

        async def attempt_or_look() -> ObjectInfo:
            nonlocal tries
            tries += 1
            try:
                return await attempt()
            except (NotFound, PreconditionFailed):
                repeated = tries > 1 or operation is Operation.PUT
                if repeated and (info := await self._already_there(payload, sure=tries == 1)) is not None:
                    return info
                raise
            except ServiceError as error:
                if error.status != 501 or self._replaces == ANYTHING:
                    raise
                logger.warning("%s: the store does not know conditional writes, writing without", self.target.uri)
                self._replaces = ANYTHING
                return await attempt()

        return await self._upload.engine.attempts(operation, self.target, attempt_or_look, stats=stats)

    async def _already_there(self, payload: Payload, *, sure: bool) -> ObjectInfo | None:
        """The object, if it stands there already: small ones are compared by CRC32, others by size unless ``sure``."""
        client = self._upload.engine.client
        with suppress(NotFound):
            info = await client.control.head(self.target)
            if info.size != payload.nbytes:
                return None
            if info.size <= MAX_BUFFERED_BYTES:
                data, _ = await (await client.bulk(self.target.bucket)).get_whole(self.target)
                return info if crc32(data) == payload.crc32 else None
            return None if sure else info
        return None

    def _stands(self, info: ObjectInfo) -> None:
        self.info = info
        self._upload.stands(self)


class Upload:
    """A session that writes any number of objects. See the module for threads.

    Args:
        engine: performs the requests.
        on_sent: called on the loop thread when a part has been sent and its memory is free again.
        on_object: called on the loop thread when an object stands.
    """

    def __init__(
        self,
        engine: Engine,
        on_sent: Callable[[OutgoingPart], None] = lambda _: None,
        on_object: Callable[[OutgoingObject], None] = lambda _: None,
    ) -> None:
        self.engine = engine
        self.stats = UploadStats()
        self._on_sent = on_sent
        self._on_object = on_object
        self._crew: Crew[Callable[[], Awaitable[None]]] = Crew(lambda: engine.put_control.limit, lambda step: step())
        self._objects: list[OutgoingObject] = []

    async def run(self) -> UploadStats:
        """Work until ``finish`` and until every sealed object stands; raises the first failure.

        After it has returned or raised, no memory of a part is read any more, and what was begun and does not stand
        has been aborted (as far as the service could be told within ``ABORT_TIMEOUT_S``).
        """
        try:
            await self._crew.run()
        finally:
            await self._abort_unfinished()
        return self.stats

    def begin(self, target: ObjectId, replaces: Replaces = ANYTHING) -> OutgoingObject:
        """A new object; it fails with ``PreconditionFailed`` if it would replace something else than it may."""
        outgoing = OutgoingObject(self, target, replaces)
        self._objects.append(outgoing)
        return outgoing

    def finish(self) -> None:
        """No more objects will come."""
        self._crew.finish()

    def queue(self, step: Callable[[], Awaitable[None]]) -> None:
        """Have the crew do a step of an object."""
        self._crew.put(step)

    def sent(self, part: OutgoingPart) -> None:
        """Account for a part that is with the service."""
        self.stats.requests += 1
        self.stats.sent_bytes += part.payload.nbytes
        self.engine.put_control.on_complete(part.payload.nbytes, self.engine.now())
        gauge("PUT limit", self.engine.put_control.limit)
        self._on_sent(part)

    def sent_nothing(self, part: OutgoingPart) -> None:
        """Account for a part whose object was given up: its memory is free again."""
        self._on_sent(part)

    def stands(self, outgoing: OutgoingObject) -> None:
        """Account for an object that stands."""
        self.stats.objects += 1
        self._objects.remove(outgoing)
        self._on_object(outgoing)

    async def _abort_unfinished(self) -> None:
        """Abort what is left, shielded from the cancellation that may have brought us here."""
        left = [outgoing for outgoing in self._objects if outgoing.unfinished]
        with anyio.move_on_after(ABORT_TIMEOUT_S, shield=True):
            async with anyio.create_task_group() as group:
                for outgoing in left:
                    group.start_soon(self.abort_quietly, outgoing)

    async def abort_quietly(self, outgoing: OutgoingObject) -> None:
        """Abort what was begun of an object; what cannot be aborted is logged, and a sweep's."""
        try:
            await outgoing.abort()
        except AiockptError as error:
            logger.warning("the upload of %s could not be aborted: %s", outgoing.target.uri, error)
