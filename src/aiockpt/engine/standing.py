"""How an object comes to stand: the one request that does it, a PUT or a completion, whose answer may get lost.

Shared by uploads and copies. What a store cannot do with conditions is learnt here, and said once.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from aiockpt.crc import crc32
from aiockpt.engine.attempts import CountsRetries, StepAside, stay
from aiockpt.errors import NotFound, PreconditionFailed, S3Exception, ServiceError
from aiockpt.model import ANYTHING, NOTHING, ObjectId, ObjectInfo, Replaces
from aiockpt.plan.retry import Operation, may_have_happened
from aiockpt.s3.bulk import Payload
from aiockpt.transport.connection import MAX_BUFFERED_BYTES
from aiockpt.wire.s3 import if_match

if TYPE_CHECKING:
    from aiockpt.engine.engine import LoopEngine

logger = logging.getLogger("aiockpt")


@dataclass(frozen=True, slots=True)
class Whole:
    """What the object will be: its size, and its CRC32 (None: not known)."""

    nbytes: int
    crc32: int | None


class Conditions:
    """What the stores behind an engine's buckets cannot do with conditional writes."""

    def __init__(self) -> None:
        self._refusing: set[str] = set()
        self._weak: set[str] = set()
        self._ignoring: set[str] = set()
        self._asked: set[str] = set()

    def possible(self, bucket: str, replaces: Replaces) -> Replaces:
        """What may be asked of a bucket: ``replaces``, or nothing if conditions are refused there."""
        return ANYTHING if bucket in self._refusing else replaces

    def asked(self, bucket: str) -> bool:
        """Whether it was asked before if conditions are heeded in ``bucket``; it counts as asked from now on."""
        before = bucket in self._asked | self._refusing
        self._asked.add(bucket)
        return before

    def are_compared(self, bucket: str, replaces: Replaces) -> bool:
        """Whether the writer has to see by itself that it replaces no more than it may, as well as it can."""
        if replaces.etag and not if_match(replaces.etag):
            self.weak(bucket)
            return True
        return bucket in self._ignoring

    def refused(self, bucket: str) -> None:
        """A conditional write to ``bucket`` was answered with 501."""
        _say_once(self._refusing, bucket, "the store refuses conditional writes; of two writers the last one wins")

    def ignored(self, bucket: str) -> None:
        """A write to ``bucket`` was performed although its condition did not hold."""
        _say_once(self._ignoring, bucket, f"the store ignores the conditions of writes; {_COMPARED}")

    def weak(self, bucket: str) -> None:
        """``bucket`` has a weak ETag where a strong one is needed."""
        _say_once(self._weak, bucket, f"ETags are weak, so that no write can be on condition of them; {_COMPARED}")


_COMPARED = "what stands is looked at before each write, but of two writers at the same moment the last one wins"


def _say_once(known: set[str], bucket: str, what: str) -> None:
    if bucket not in known:
        known.add(bucket)
        logger.warning("bucket %s: %s", bucket, what)


async def stand(
    engine: LoopEngine,
    operation: Operation,
    target: ObjectId,
    attempt: Callable[[Replaces], Awaitable[ObjectInfo]],
    whole: Whole,
    replaces: Replaces,
    stats: CountsRetries | None = None,
    step_aside: StepAside = stay,
    *,
    gives_way: bool = False,
) -> ObjectInfo:
    """Do what makes an object stand, with retries.

    A try whose answer was lost may have done it: the next one then finds the upload gone, or an object where there must
    be none. So these are looked into before they are believed: with a PUT always, since the pool itself repeats what
    was sent on a connection that turns out to have been closed.

    Args:
        engine: performs it.
        operation: PUT or COMPLETE.
        target: the object.
        attempt: one try, on the condition that it is given.
        whole: what the object will be.
        replaces: the condition.
        stats: told of every further attempt.
        step_aside: see ``Attempts``.
        gives_way: the object can be written elsewhere. Then a refusal is believed unless an answer was lost: what
            stands there may be another writer's, with the same bytes, and it is that one's to delete.

    Raises:
        PreconditionFailed: it would have replaced something else than it may.
    """
    lost = False  # an answer

    async def attempt_or_look() -> ObjectInfo:
        nonlocal lost
        condition = engine.conditions.possible(target.bucket, replaces)
        try:
            if engine.conditions.are_compared(target.bucket, condition):
                await _compare(engine, target, condition)
            return await attempt(condition)
        except (NotFound, PreconditionFailed):
            if lost or (operation is Operation.PUT and not gives_way):
                info = await _already_there(engine, target, whole, by_size=lost)
                if info is not None:
                    return info
            raise
        except ServiceError as error:
            if error.status == 501 and condition != ANYTHING:
                engine.conditions.refused(target.bucket)
                return await attempt(ANYTHING)
            lost |= may_have_happened(error)
            raise
        except BaseException as error:
            lost |= may_have_happened(error)
            raise

    return await engine.attempts(operation, target, attempt_or_look, stats=stats, step_aside=step_aside)


async def _compare(engine: LoopEngine, target: ObjectId, replaces: Replaces) -> None:
    """Stand in for a condition that cannot be sent, or is ignored: of writers at the same moment it stops none.

    Raises:
        PreconditionFailed: it does not hold.
    """
    if replaces.etag:
        await must_still_be(engine, target, replaces.etag)
    elif replaces.nothing:
        with suppress(NotFound):
            await engine.client.control.head(target)
            raise _refused(target, "stands there already")


def _refused(target: ObjectId, why: str) -> PreconditionFailed:
    return PreconditionFailed(f"{target.uri} {why}", status=412, bucket=target.bucket, key=target.key)


async def learn_conditions(engine: LoopEngine, doomed: ObjectId) -> None:
    """Find out, once for a bucket, whether its store heeds conditions: by a write to ``doomed`` that has to fail.

    Where it does not, it has replaced the object by one without bytes; so that must be an object that is about to be
    deleted. Twice, since somebody may have deleted it already: then the first of them creates it.
    """
    if engine.conditions.asked(doomed.bucket):
        return
    bulk = await engine.client.bulk(doomed.bucket)
    nothing = Payload([], 0, 0)
    try:
        for _ in range(2):
            await engine.attempts(Operation.PUT, doomed, lambda: bulk.put(doomed, nothing, NOTHING))
    except S3Exception as error:
        logger.debug("a write whose condition does not hold was refused: %s", error)
    else:
        engine.conditions.ignored(doomed.bucket)


async def must_still_be(engine: LoopEngine, target: ObjectId, etag: str) -> None:
    """Stand in for a condition on an ETag that cannot be sent, being weak.

    Raises:
        PreconditionFailed: the object is another.
    """
    now = await engine.client.control.head(target)
    if now.etag != etag:
        raise _refused(target, f"was replaced: ETag {now.etag} instead of {etag}")


async def _already_there(engine: LoopEngine, target: ObjectId, whole: Whole, *, by_size: bool) -> ObjectInfo | None:
    """The object, if it stands there already.

    By its CRC32 where the store tells it or the object is small enough to be read, else ``by_size``.
    """
    with suppress(NotFound):
        info, stored = await engine.client.control.head_with_crc32(target)
        if info.size != whole.nbytes:
            return None
        if whole.crc32 is None:
            return info if by_size else None
        if stored is None and info.size <= MAX_BUFFERED_BYTES:
            data, _ = await (await engine.client.bulk(target.bucket)).get_whole(target)
            stored = crc32(data)
        if stored is not None:
            return info if stored == whole.crc32 else None
        return info if by_size else None
    return None
