from __future__ import annotations

import random

import pytest

from aiockpt.crc import crc32
from aiockpt.engine import standing as room
from aiockpt.engine.engine import LoopEngine
from aiockpt.engine.standing import Whole, learn_conditions, stand
from aiockpt.errors import NotFound, PreconditionFailed, ReadError, ServiceError
from aiockpt.model import ANYTHING, NOTHING, ObjectId, ObjectInfo, Replaces
from aiockpt.plan.retry import Operation
from aiockpt.testing import Fault, FaultKind, LocalEndpoint

DATA = random.Random(9).randbytes(1000)
WHOLE = Whole(len(DATA), crc32(DATA))
GONE = NotFound("no such upload", status=404, code="NoSuchUpload")


@pytest.fixture
def target(local_bucket: str) -> ObjectId:
    return ObjectId(local_bucket, "key")


class Tries:
    """Attempts with these outcomes, one after the other."""

    def __init__(self, *outcomes: Exception | ObjectInfo) -> None:
        self.outcomes = list(outcomes)
        self.conditions: list[Replaces] = []

    async def __call__(self, condition: Replaces) -> ObjectInfo:
        self.conditions.append(condition)
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome


async def complete(engine: LoopEngine, target: ObjectId, tries: Tries, whole: Whole = WHOLE) -> ObjectInfo:
    return await stand(engine, Operation.COMPLETE, target, tries, whole, NOTHING)


@pytest.mark.parametrize("read", [False, True], ids=["the service's CRC32", "the bytes"])
async def test_an_object_that_a_lost_answer_was_about(
    engine: LoopEngine, target: ObjectId, monkeypatch: pytest.MonkeyPatch, read: bool
) -> None:
    stood = await engine.put(target, [DATA])
    if read:
        real = engine.client.control.head_with_crc32

        async def untold(which: ObjectId) -> tuple[ObjectInfo, int | None]:
            return (await real(which))[0], None

        monkeypatch.setattr(engine.client.control, "head_with_crc32", untold)
    assert await complete(engine, target, Tries(ReadError("lost"), GONE)) == stood
    with pytest.raises(NotFound):  # a refusal at once is one
        await complete(engine, target, Tries(GONE))
    another = Whole(len(DATA), WHOLE.crc32 ^ 1) if WHOLE.crc32 is not None else WHOLE
    with pytest.raises(NotFound):  # of the same size, and not ours
        await complete(engine, target, Tries(ReadError("lost"), GONE), another)
    with pytest.raises(NotFound):
        await complete(engine, target, Tries(ReadError("lost"), GONE), Whole(len(DATA) + 1, WHOLE.crc32))


@pytest.mark.parametrize("known", [None, 123], ids=["no CRC32 of ours", "none of theirs"])
async def test_where_no_crc32_can_be_compared_the_size_tells(
    engine: LoopEngine, target: ObjectId, monkeypatch: pytest.MonkeyPatch, known: int | None
) -> None:
    stood = await engine.put(target, [DATA])

    async def untold(_: ObjectId) -> tuple[ObjectInfo, int | None]:
        return stood, None

    monkeypatch.setattr(engine.client.control, "head_with_crc32", untold)
    monkeypatch.setattr(room, "MAX_BUFFERED_BYTES", len(DATA) - 1)
    whole = Whole(len(DATA), known)
    assert await complete(engine, target, Tries(ReadError("lost"), GONE), whole) == stood
    with pytest.raises(PreconditionFailed):  # the pool may have repeated it, but most likely it is another writer's
        await stand(engine, Operation.PUT, target, Tries(PreconditionFailed("no", status=412)), whole, NOTHING)


async def test_a_refusal_after_throttling_is_a_refusal(engine: LoopEngine, target: ObjectId) -> None:
    await engine.put(target, [DATA])
    busy = ServiceError("busy", status=429)
    with pytest.raises(NotFound):
        await complete(engine, target, Tries(busy, GONE))


async def test_a_store_that_refuses_conditions_is_asked_once(
    engine: LoopEngine, target: ObjectId, caplog: pytest.LogCaptureFixture
) -> None:
    refusal, info = ServiceError("no", status=501, code="NotImplemented"), ObjectInfo(3)
    tries = Tries(refusal, info, info)
    for _ in range(2):
        assert await complete(engine, target, tries) == info
    assert tries.conditions == [NOTHING, ANYTHING, ANYTHING]
    (record,) = caplog.records
    assert target.bucket in record.getMessage()
    elsewhere = Tries(info)
    await complete(engine, ObjectId("elsewhere", "key"), elsewhere)
    assert elsewhere.conditions == [NOTHING]
    with pytest.raises(ServiceError):  # 501 for another reason
        await complete(engine, target, Tries(refusal))


async def test_weak_etags_are_compared_before_writing(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.WEAK_ETAG, count=None))
    await engine.put(target, [b"1"])
    first = (await engine.head(target)).etag
    assert first.startswith('W/"')
    await engine.put(target, [b"2"], Replaces(etag=first))
    await engine.put(target, [b"3"], Replaces(etag=(await engine.head(target)).etag))
    with pytest.raises(PreconditionFailed, match="was replaced") as failure:
        await engine.put(target, [b"4"], Replaces(etag=first))
    assert (failure.value.bucket, failure.value.key) == (target.bucket, target.key)
    assert await engine.get(target) == b"3"
    (record,) = caplog.records
    assert "weak" in record.getMessage()


async def test_a_lost_answer_to_a_write_on_a_weak_etag(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.WEAK_ETAG, count=None))
    await engine.put(target, [b"1"])
    first = (await engine.head(target)).etag
    local_endpoint.add_fault(Fault(FaultKind.LOST_REPLY, "PutObject"))
    await engine.put(target, [b"2"], Replaces(etag=first))
    assert await engine.get(target) == b"2"


def puts(endpoint: LocalEndpoint) -> int:
    return sum(record.operation == "PutObject" for record in endpoint.requests())


async def test_a_store_that_ignores_conditions_is_found_out(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.IGNORE_CONDITIONS, count=None))
    stood = await engine.put(target, [b"1"])
    local_endpoint.reset_stats()
    for _ in range(2):
        await learn_conditions(engine, target)
    assert puts(local_endpoint) == 2
    (record,) = caplog.records
    assert "ignores the conditions" in record.getMessage()
    with pytest.raises(PreconditionFailed, match="stands there already") as failure:
        await engine.put(target, [b"2"], NOTHING)
    assert (failure.value.bucket, failure.value.key) == (target.bucket, target.key)
    with pytest.raises(PreconditionFailed, match="was replaced"):
        await engine.put(target, [b"2"], Replaces(etag=stood.etag))
    await engine.put(target, [b"2"], Replaces(etag=(await engine.head(target)).etag))
    await engine.delete(target)
    local_endpoint.add_fault(Fault(FaultKind.LOST_REPLY, "PutObject"))
    await engine.put(target, [b"3"], NOTHING)
    assert await engine.get(target) == b"3"


@pytest.mark.parametrize("there", [True, False])
async def test_a_store_that_heeds_conditions_is_not(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, there: bool
) -> None:
    if there:
        await engine.put(target, [b"1"])
    local_endpoint.reset_stats()
    for _ in range(2):
        await learn_conditions(engine, target)
    assert puts(local_endpoint) == (1 if there else 2)
    assert await engine.get(target) == (b"1" if there else b"")
    assert not engine.conditions.are_compared(target.bucket, NOTHING)


@pytest.mark.parametrize(("status", "code"), [(403, "AccessDenied"), (501, "NotImplemented")])
async def test_who_may_not_write_finds_nothing_out(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, status: int, code: str
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "PutObject", status=status, code=code))
    await learn_conditions(engine, target)
    assert not engine.conditions.are_compared(target.bucket, NOTHING)
