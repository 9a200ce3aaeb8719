"""The frame of a multipart upload: begun, completed or aborted, whichever answers get lost. Its parts are others'."""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import anyio

from aiockpt.engine.attempts import StepAside, stay
from aiockpt.engine.standing import Whole, stand
from aiockpt.errors import AiockptError, ServiceError
from aiockpt.model import ANYTHING, ObjectId, ObjectInfo, Replaces
from aiockpt.plan.retry import Operation, may_have_happened
from aiockpt.s3.control import UploadedPart

if TYPE_CHECKING:
    from aiockpt.engine.engine import LoopEngine

logger = logging.getLogger("aiockpt")

#: Longest wait for the aborts of a failed or cancelled upload: "everything in flight stops within a second".
ABORT_TIMEOUT_S = 1.0


class MultipartUpload:
    """One multipart upload.

    Args:
        engine: performs the requests.
        target: the object that it will be.
        checksums: whether parts and whole come with their CRC32.
        step_aside: where to wait after a throttled attempt; see ``Attempts``.

    Attributes:
        upload_id: the service's id of it; ``""`` before it was begun and after it was ended.
    """

    def __init__(self, engine: LoopEngine, target: ObjectId, *, checksums: bool, step_aside: StepAside = stay) -> None:
        self.upload_id = ""
        self.target = target
        self._engine = engine
        self._checksums = checksums
        self._step_aside = step_aside

    async def begin(self) -> None:
        """Begin it. A cancellation waits for the id, ``ABORT_TIMEOUT_S`` at most: only with it can it be aborted."""
        creating = asyncio.ensure_future(self._create())
        try:
            self.upload_id = await asyncio.shield(creating)
        except asyncio.CancelledError:
            with anyio.move_on_after(ABORT_TIMEOUT_S, shield=True), suppress(AiockptError):
                self.upload_id = await creating
            raise

    async def _create(self) -> str:
        """Begin it; returns its id.

        A try whose answer was lost may leave an upload whose id nobody knows. It cannot be told from one that another
        writer has just begun for the same key (a listing shows key, time and account, nothing of a writer's own), and
        to abort that would lose the other's work. So it is left for the sweep, which knows by age.
        """
        lost = 0

        async def attempt() -> str:
            nonlocal lost
            try:
                return await self._engine.client.control.create_upload(self.target, checksums=self._checksums)
            except BaseException as error:
                lost += may_have_happened(error)
                raise

        try:
            return await self._engine.attempts(Operation.CREATE, self.target, attempt, step_aside=self._step_aside)
        finally:
            if lost:
                logger.warning(
                    "%s: %d answers to CreateMultipartUpload were lost: as many uploads without parts may be there, "
                    "until a sweep",
                    self.target.uri,
                    lost,
                )

    async def complete(self, parts: Sequence[UploadedPart], whole: Whole, replaces: Replaces = ANYTHING) -> ObjectInfo:
        """Make the object of its parts.

        A part that was sent twice, since the first answer was lost or late, may be stored anew after the second one was
        reported. Where ETags are not those of the bytes (SSE-KMS) it then has another. So when the service does not
        know the parts that it is told, it is asked which ones it has; the CRC32 of the whole proves their bytes.

        Raises:
            PreconditionFailed: it would have replaced something else than it may.
        """

        async def attempt(condition: Replaces) -> ObjectInfo:
            try:
                return await self._complete(parts, whole, condition)
            except ServiceError as error:
                if error.code != "InvalidPart" or (stored := await self._as_stored(parts)) == list(parts):
                    raise
            return await self._complete(stored, whole, condition)

        answer = await stand(
            self._engine, Operation.COMPLETE, self.target, attempt, whole, replaces, step_aside=self._step_aside
        )
        self.upload_id = ""
        return ObjectInfo(whole.nbytes, answer.etag)

    async def _complete(self, parts: Sequence[UploadedPart], whole: Whole, condition: Replaces) -> ObjectInfo:
        crc32 = whole.crc32 if self._checksums else None
        control = self._engine.client.control
        return await control.complete_upload(self.target, self.upload_id, parts, crc32=crc32, replaces=condition)

    async def _as_stored(self, parts: Sequence[UploadedPart]) -> list[UploadedPart]:
        """These parts with the ETags that the service lists for them, as far as it does."""
        listed: dict[int, str] = {}
        with suppress(AiockptError):
            listed = {part.number: part.etag for part in await self._engine.upload_parts(self.target, self.upload_id)}
        return [UploadedPart(part.number, listed.get(part.number) or part.etag) for part in parts]

    async def abort_quietly(self, limit_s: float = math.inf) -> None:
        """Drop it and its parts, if it was begun and does not stand; what cannot be dropped is logged, for a sweep.

        Cancelled, it may be called again.
        """
        if not self.upload_id:
            return
        trouble: object = f"no answer within {limit_s:g} s"
        with anyio.move_on_after(limit_s):
            try:
                await self._engine.abort_upload(self.target, self.upload_id)
            except AiockptError as error:
                trouble = error
            else:
                trouble = ""
        if trouble:
            logger.warning("%s: multipart upload %s could not be aborted: %s", self.target.uri, self.upload_id, trouble)
        self.upload_id = ""
