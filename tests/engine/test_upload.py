from __future__ import annotations

import asyncio
import random
import tracemalloc
from collections.abc import Callable, Sequence

import pytest

from aiockpt.config import S3ClientConfig
from aiockpt.crc import crc32
from aiockpt.engine.engine import LoopEngine
from aiockpt.engine.upload import OutgoingPart, Upload
from aiockpt.errors import AccessDenied, AiockptError, NotFound, PreconditionFailed, ServiceError, Throttled
from aiockpt.model import NOTHING, MiB, ObjectId
from aiockpt.s3.bulk import Payload
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, Shape
from engine.conftest import one_or_two_threads

DATA = random.Random(9).randbytes(12 * MiB)


@pytest.fixture
def target(local_bucket: str) -> ObjectId:
    return ObjectId(local_bucket, "key")


async def open_uploads(engine: LoopEngine, target: ObjectId) -> int:
    return len([row async for row in engine.pending_uploads(ObjectId(target.bucket, ""))])


async def until(condition: Callable[[], bool]) -> None:
    while not condition():  # noqa: ASYNC110  # the endpoint is another process
        await asyncio.sleep(0.005)


SMALL, LARGE = DATA[:1000], DATA


@one_or_two_threads
@pytest.mark.parametrize("data", [b"", b"x", SMALL, DATA[: 5 * MiB], DATA[: 5 * MiB + 1], LARGE])
async def test_any_size(engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, data: bytes) -> None:
    info = await engine.put(target, [data])
    assert info.size == len(data)
    assert info == await engine.head(target)
    assert await engine.get(target) == data
    requests = local_endpoint.stats().requests
    parts = -(-len(data) // (5 * MiB))
    assert requests.get("PutObject", 0) == (parts <= 1)
    assert requests.get("UploadPart", 0) == (parts if parts > 1 else 0)


@one_or_two_threads
@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.ERROR, count=2),
        Fault(FaultKind.ERROR, count=1, status=500, code="InternalError"),
        Fault(FaultKind.RESET, after_bytes=100, count=2),
        Fault(FaultKind.RESET, after_bytes=None, count=2),
        Fault(FaultKind.END_EARLY, after_bytes=None, count=2),
        Fault(FaultKind.STALL, after_bytes=100),
        Fault(FaultKind.FLIP_BIT, after_bytes=10),
        Fault(FaultKind.LOST_REPLY),
        Fault(FaultKind.CLOSE, count=None),
        Fault(FaultKind.EMPTY_ETAG, "CompleteMultipartUpload"),
        Fault(FaultKind.ERROR_IN_200, "CompleteMultipartUpload", code="InternalError"),
        Fault(FaultKind.LOST_REPLY, "CompleteMultipartUpload"),
        Fault(FaultKind.LOST_REPLY, "UploadPart", count=3),
        Fault(FaultKind.ERROR, "CreateMultipartUpload", count=2),
        Fault(FaultKind.ERROR, "CompleteMultipartUpload", count=2),
    ],
)
@pytest.mark.parametrize("data", [SMALL, LARGE], ids=["small", "large"])
async def test_faults_are_outlived(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, fault: Fault, data: bytes
) -> None:
    local_endpoint.add_fault(fault)
    info = await engine.put(target, [data], NOTHING)
    assert info.size == len(data)
    local_endpoint.clear_faults()
    assert await engine.get(target) == data
    # a CREATE whose answer is lost leaves an upload whose id nobody knows: for the sweep
    repeated = max(0, local_endpoint.stats().requests.get("CreateMultipartUpload", 0) - 1)
    assert await open_uploads(engine, target) <= repeated
    await unwanted_uploads_aborted(engine, target)


@one_or_two_threads
@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart", "CompleteMultipartUpload"])
@pytest.mark.parametrize(
    ("code", "status", "kind"), [("AccessDenied", 403, AccessDenied), ("SlowDown", 503, Throttled)]
)
async def test_a_failure_leaves_nothing_behind(
    engine: LoopEngine,
    target: ObjectId,
    local_endpoint: LocalEndpoint,
    operation: str,
    code: str,
    status: int,
    kind: type[AiockptError],
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, operation, count=None, status=status, code=code))
    with pytest.raises(kind) as failure:
        await engine.put(target, [LARGE])
    assert isinstance(failure.value, ServiceError)
    assert failure.value.key == "key"
    assert failure.value.request_id
    assert failure.value.attempts == (4 if status == 503 else 1)
    assert await open_uploads(engine, target) == 0
    assert not await engine.exists(target)


@one_or_two_threads
@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPart"])
async def test_cancellation_leaves_nothing_behind(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, operation: str
) -> None:
    """Also while the upload is being created: then its id is on its way."""
    local_endpoint.set_shape(Shape(first_byte_latency_s=0.2))
    task = asyncio.ensure_future(engine.put(target, [LARGE]))
    await until(lambda: bool(local_endpoint.stats().requests.get(operation)))
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await until(lambda: local_endpoint.stats().requests_current == 0)
    assert await open_uploads(engine, target) == 0
    local_endpoint.set_shape(Shape())
    assert not await engine.exists(target)


@one_or_two_threads
async def test_a_failure_of_one_object_aborts_the_others(
    engine: LoopEngine, local_bucket: str, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(
        Fault(FaultKind.ERROR, "UploadPart", key="bad", count=None, status=403, code="AccessDenied")
    )
    upload = Upload(engine)
    for key in ("good", "bad"):
        outgoing = upload.begin(ObjectId(local_bucket, key))
        for number in (1, 2):
            outgoing.submit(part(number, DATA[: 5 * MiB]))
    with pytest.raises(AccessDenied):
        await upload.run()  # neither was sealed
    assert await open_uploads(engine, ObjectId(local_bucket, "")) == 0


def part(number: int, data: bytes) -> OutgoingPart:
    return OutgoingPart(number, Payload([memoryview(data)], len(data), crc32(data)), [data], 0)


@one_or_two_threads
async def test_a_session_of_many_objects(engine: LoopEngine, local_bucket: str) -> None:
    sent: list[int] = []
    stood: list[str] = []
    upload = Upload(engine, lambda part: sent.append(part.number), lambda outgoing: stood.append(outgoing.target.key))
    task = asyncio.ensure_future(upload.run())
    for number in range(10):
        outgoing = upload.begin(ObjectId(local_bucket, f"k{number}"))
        data = bytes([number]) * 100
        outgoing.submit(part(1, data))
        outgoing.seal(100, crc32(data))
    upload.finish()
    stats = await task
    assert (stats.objects, stats.requests, stats.sent_bytes, stats.retries) == (10, 10, 1000, 0)
    assert sorted(stood) == [f"k{number}" for number in range(10)]
    assert sent == [1] * 10
    for number in range(10):
        assert await engine.get(ObjectId(local_bucket, f"k{number}")) == bytes([number]) * 100


@pytest.mark.parametrize("parts", [1, 2, 3])
async def test_a_discarded_object_does_not_appear(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, parts: int
) -> None:
    sent: list[int] = []
    upload = Upload(engine, lambda part: sent.append(part.number))
    task = asyncio.ensure_future(upload.run())
    outgoing = upload.begin(target)
    for number in range(1, parts + 1):
        outgoing.submit(part(number, DATA[: 5 * MiB]))
    outgoing.discard()
    upload.finish()
    await task
    assert sorted(sent) == list(range(1, parts + 1))  # all memory is free again
    assert not await engine.exists(target)
    assert await open_uploads(engine, target) == 0


async def test_what_must_replace_nothing(engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint) -> None:
    await engine.put(target, [b"first"], NOTHING)
    for data in (SMALL, LARGE):
        with pytest.raises(PreconditionFailed, match=str(target)):
            await engine.put(target, [data], NOTHING)
    assert await engine.get(target) == b"first"
    assert await open_uploads(engine, target) == 0


async def test_what_gives_way_fails_nobody(engine: LoopEngine, local_bucket: str) -> None:
    """Objects of one part and of several, whose names are taken; their siblings stand."""
    names = [ObjectId(local_bucket, name) for name in ("small", "large", "small too", "large too")]
    await engine.put(names[0], [SMALL], NOTHING)  # the same bytes: they are another's all the same
    await engine.put(names[1], [b"first"], NOTHING)
    sent: list[OutgoingPart] = []
    upload = Upload(engine, on_sent=sent.append)
    for name in names:
        data = LARGE if "large" in name.key else SMALL
        outgoing = upload.begin(name, NOTHING, gives_way=True)
        pieces = [data[start : start + 5 * MiB] for start in range(0, len(data), 5 * MiB)]
        for number, piece in enumerate(pieces, 1):
            outgoing.submit(part(number, piece))
        outgoing.seal(len(data), crc32(data))
    upload.finish()
    stats = await upload.run()
    assert sorted(upload.gave_way, key=lambda target: target.key) == [names[1], names[0]]
    assert [await engine.get(name) for name in names] == [SMALL, b"first", SMALL, LARGE]
    assert stats.objects == 2
    assert len(sent) == 8  # all memory is free again
    assert await open_uploads(engine, names[0]) == 0


async def test_what_gives_way_stands_if_only_the_answer_was_lost(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.LOST_REPLY, "PutObject"))
    upload = Upload(engine)
    outgoing = upload.begin(target, NOTHING, gives_way=True)
    outgoing.submit(part(1, SMALL))
    outgoing.seal(len(SMALL), crc32(SMALL))
    upload.finish()
    await upload.run()
    assert upload.gave_way == []
    assert outgoing.info == await engine.head(target)


async def test_cancelled_while_it_gives_way(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    await engine.put(target, [b"first"], NOTHING)
    local_endpoint.reset_stats()
    local_endpoint.add_fault(Fault(FaultKind.STALL, "AbortMultipartUpload", after_bytes=None))
    upload = Upload(engine)
    outgoing = upload.begin(target, NOTHING, gives_way=True)
    outgoing.expect_parts()
    outgoing.submit(part(1, b"x"))
    outgoing.seal(1, crc32(b"x"))
    upload.finish()
    running = asyncio.ensure_future(upload.run())
    await until(lambda: local_endpoint.stats().faults > 0)
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running
    assert await open_uploads(engine, target) == 0


async def test_an_upload_that_somebody_else_aborted(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(
        Fault(FaultKind.ERROR, "CompleteMultipartUpload", status=404, code="NoSuchUpload", count=None)
    )
    with pytest.raises(NotFound):
        await engine.put(target, [LARGE])
    local_endpoint.clear_faults()
    assert not await engine.exists(target)


async def test_bytes_leave_from_where_they_are(config: S3ClientConfig, local_bucket: str) -> None:
    """Nothing of a large object is copied in this process."""
    data = memoryview(bytearray(64 * MiB))
    async with LoopEngine(config.merged(part_size=16 * MiB)) as engine:
        await engine.put(ObjectId(local_bucket, "warm"), [b"x"])
        tracemalloc.start()
        try:
            await engine.put(ObjectId(local_bucket, "large"), [data])
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
    assert peak < 8 * MiB


async def unwanted_uploads_aborted(engine: LoopEngine, below: ObjectId) -> None:
    async for row in engine.pending_uploads(below):
        await engine.client.control.abort_upload(ObjectId(below.bucket, row.key), row.upload_id)


async def test_a_discarded_object_that_cannot_be_aborted_does_not_fail_its_siblings(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    local_endpoint.add_fault(
        Fault(FaultKind.ERROR, "AbortMultipartUpload", count=None, status=403, code="AccessDenied")
    )
    upload = Upload(engine)
    task = asyncio.ensure_future(upload.run())
    unwanted, wanted = upload.begin(target / "unwanted"), upload.begin(target / "wanted")
    for number in (1, 2):
        unwanted.submit(part(number, DATA[: 5 * MiB]))
    unwanted.discard()
    wanted.submit(part(1, SMALL))
    wanted.seal(len(SMALL), crc32(SMALL))
    upload.finish()
    await task
    assert await engine.get(target / "wanted") == SMALL
    assert "could not be aborted" in caplog.text
    local_endpoint.clear_faults()
    await unwanted_uploads_aborted(engine, target)


async def test_an_object_discarded_before_it_was_begun_is_aborted_at_once(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    upload = Upload(engine)
    task = asyncio.ensure_future(upload.run())
    outgoing = upload.begin(target)
    for number in (1, 2):
        outgoing.submit(part(number, DATA[: 5 * MiB]))
    outgoing.discard()
    async with asyncio.timeout(10):
        while not local_endpoint.stats().requests.get("AbortMultipartUpload"):  # noqa: ASYNC110  # another process
            await asyncio.sleep(0.01)
    assert not task.done()  # the session goes on
    upload.finish()
    await task


@pytest.mark.parametrize(
    "operations", [("PutObject", "UploadPart"), ("PutObject", "CreateMultipartUpload"), ("CompleteMultipartUpload",)]
)
async def test_a_throttled_prefix_holds_up_no_other(
    config: S3ClientConfig, target: ObjectId, local_endpoint: LocalEndpoint, operations: Sequence[str]
) -> None:
    """Whatever of its objects is throttled, though they were there first and are more than the connections."""
    for operation in operations:
        local_endpoint.add_fault(Fault(FaultKind.ERROR, operation, key="hot/", count=None))
    cold = [ObjectId(target.bucket, f"cold/{number}") for number in range(6)]
    stands: list[ObjectId] = []

    def submit(upload: Upload, each: ObjectId, parts: int) -> None:
        outgoing = upload.begin(each)
        pieces = [DATA[: 5 * MiB]] * (parts - 1) + [SMALL]
        for number, piece in enumerate(pieces, 1):
            view = memoryview(piece)
            outgoing.submit(OutgoingPart(number, Payload((view,), len(view), crc32(view))))
        whole = b"".join(pieces)
        outgoing.seal(len(whole), crc32(whole))

    async with LoopEngine(config.merged(max_connections=3, max_attempts=1000, backoff_base_s=0.02)) as engine:
        upload = Upload(engine, on_object=lambda outgoing: stands.append(outgoing.target))
        for number in range(6):
            submit(upload, ObjectId(target.bucket, f"hot/{number}"), parts=1 + number % 2)
        for each in cold:
            submit(upload, each, parts=1)
        upload.finish()
        task = asyncio.ensure_future(upload.run())
        await until(lambda: set(cold) <= set(stands))
        assert len(stands) <= 9  # the small ones of the others, where it is only completions that are throttled
        local_endpoint.clear_faults()
        await task
        assert len(stands) == 12
        assert await open_uploads(engine, target) == 0


async def test_an_object_discarded_while_it_is_begun_is_aborted_at_once(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "CreateMultipartUpload", after_bytes=None))
    upload = Upload(engine)
    task = asyncio.ensure_future(upload.run())
    outgoing = upload.begin(target)
    outgoing.expect_parts()
    await until(lambda: "CreateMultipartUpload" in local_endpoint.stats().requests)
    outgoing.discard()
    local_endpoint.clear_faults()
    await until(lambda: "AbortMultipartUpload" in local_endpoint.stats().requests)
    assert not task.done()  # the session goes on
    upload.finish()
    await task
    assert await open_uploads(engine, target) == 0
