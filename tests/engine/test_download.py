from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Sequence

import pytest

from aiockpt.bridge import Bridge
from aiockpt.config import S3ClientConfig
from aiockpt.engine.download import Download, Job, Read, plan_requests
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import NotFound, ObjectChanged, ReadError, ShortRead, TransportTimeout
from aiockpt.model import ByteRange, KiB, MiB, ObjectId
from aiockpt.plan.prefixes import prefix_of
from aiockpt.s3.bulk import RangeTransfer
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, Shape
from engine.conftest import one_or_two_threads
from transport.scripted import Guarded

DATA = random.Random(7).randbytes(12 * MiB)


@pytest.fixture
def source(local_endpoint: LocalEndpoint, local_bucket: str) -> ObjectId:
    local_endpoint.replace_object(local_bucket, "key", DATA)
    local_endpoint.reset_stats()
    return ObjectId(local_bucket, "key")


class Told(Guarded):
    """Memory, and what is told of it: every byte once, when it is there."""

    def __init__(self, start: int, end: int) -> None:
        super().__init__(end - start)
        self._start = start
        self._told = bytearray(end - start)

    def tell(self, start: int, memory: memoryview) -> None:
        assert memory == DATA[self._start + start :][: len(memory)]
        assert not any(self._told[start : start + len(memory)])
        self._told[start : start + len(memory)] = b"\x01" * len(memory)

    @property
    def is_told(self) -> bool:
        return all(self._told)


def reads(source: ObjectId, spans: Sequence[tuple[int, int]]) -> tuple[list[Read], list[Told]]:
    memories = [Told(*span) for span in spans]
    made = [
        Read(source, ByteRange(*span), memory.view, memory.tell) for span, memory in zip(spans, memories, strict=True)
    ]
    return made, memories


def assert_landed(spans: Sequence[tuple[int, int]], memories: Sequence[Guarded]) -> None:
    for (start, end), memory in zip(spans, memories, strict=True):
        assert memory.view == DATA[start:end]
        assert memory.intact


@one_or_two_threads
async def test_any_ranges(engine: LoopEngine, source: ObjectId) -> None:
    rng = random.Random(3)
    for _ in range(15):
        spans = []
        for _ in range(rng.randint(1, 20)):
            start = rng.randrange(len(DATA))
            spans.append((start, min(len(DATA), start + rng.choice([0, 1, 100, 70 * KiB, 3 * MiB]))))
        made, memories = reads(source, spans)
        stats = await engine.fetch_into(made)
        assert_landed(spans, memories)
        assert all(memory.is_told for memory in memories)
        assert stats.wanted_bytes == sum(end - start for start, end in spans) <= stats.fetched_bytes
        assert stats.retries == 0


async def test_what_broke_behind_its_last_byte_is_not_asked_for_again(
    engine: LoopEngine, source: ObjectId, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing left to ask for: a chunked body may lack its end, and no range is empty in HTTP."""
    asked: list[ByteRange] = []

    class Breaking:
        async def get(self, _: ObjectId, transfer: RangeTransfer) -> None:
            asked.append(transfer.rest)
            transfer.landing.copy_in(memoryview(DATA))
            raise ReadError("its end is missing")

    async def bulk(_: str) -> Breaking:
        return Breaking()

    monkeypatch.setattr(engine.client, "bulk", bulk)
    made, memories = reads(source, [(0, 1000)])
    stats = await engine.fetch_into(made)
    assert_landed([(0, 1000)], memories)
    assert (stats.retries, asked) == (1, [ByteRange(0, 1000)])


async def test_near_ranges_share_a_request(engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    spans = [(start, start + 1000) for start in range(0, 100_000, 2000)]
    made, memories = reads(source, spans)
    stats = await engine.fetch_into(made)
    assert_landed(spans, memories)
    assert stats.requests == local_endpoint.stats().requests["GetObject"] == 1
    assert (stats.wanted_bytes, stats.fetched_bytes) == (50_000, 99_000)
    far = [(0, 10), (MiB, MiB + 10)]
    made, memories = reads(source, far)
    assert (await engine.fetch_into(made)).requests == 2
    assert_landed(far, memories)


async def test_a_download_may_bound_its_gaps(engine: LoopEngine, source: ObjectId) -> None:
    spans = [(0, 10), (500, 510), (5000, 5010)]
    made, memories = reads(source, spans)
    download = Download(engine, lambda _: None, max_gap_bytes=1000)
    download.submit([Job(made)])
    download.finish()
    assert (await download.run()).requests == 2
    assert_landed(spans, memories)


async def test_jobs_are_told_when_all_of_them_has_landed(engine: LoopEngine, source: ObjectId) -> None:
    done: list[object] = []
    download = Download(engine, lambda job: done.append((job.token, job.missing_bytes)))
    first, memories = reads(source, [(0, 10), (6 * MiB, 6 * MiB + 10)])
    empty, _ = reads(source, [(5, 5)])
    download.submit([Job(first, "first"), Job(empty, "empty"), Job([], "none")])
    assert done == [("empty", 0), ("none", 0)]
    download.finish()
    await download.run()
    assert done[2:] == [("first", 0)]
    assert_landed([(0, 10), (6 * MiB, 6 * MiB + 10)], memories)


@pytest.mark.parametrize("into", [bytearray(9), bytearray(11), bytes(10), memoryview(bytearray(40)).cast("f")])
def test_memory_that_does_not_fit(into: bytes | bytearray | memoryview) -> None:
    with pytest.raises(ValueError, match="10 bytes need as many bytes of writable memory"):
        Read(ObjectId("b", "k"), ByteRange(0, 10), memoryview(into))


@one_or_two_threads
@pytest.mark.parametrize("kind", [FaultKind.RESET, FaultKind.END_EARLY, FaultKind.STALL])
async def test_a_broken_transfer_goes_on_at_the_byte_it_reached(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint, kind: FaultKind
) -> None:
    size = 2 * MiB
    local_endpoint.add_fault(Fault(kind, "GetObject", after_bytes=700_000))
    made, memories = reads(source, [(0, size)])
    stats = await engine.fetch_into(made)
    assert_landed([(0, size)], memories)
    assert stats.retries == 1
    ranges = [record.range for record in local_endpoint.requests() if record.operation == "GetObject"]
    resumed = int(ranges[-1].removeprefix("bytes=").partition("-")[0])
    assert 0 < resumed <= 700_000
    assert local_endpoint.stats().body_bytes_out <= size + 700_000 - resumed


async def test_many_breaks_are_outlived_while_bytes_move(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.RESET, "GetObject", count=8, after_bytes=200_000))
    made, memories = reads(source, [(0, 2 * MiB)])
    stats = await engine.fetch_into(made)
    assert_landed([(0, 2 * MiB)], memories)
    assert stats.retries >= 8 > engine.config.max_attempts


@one_or_two_threads
@pytest.mark.parametrize(
    "fault",
    [
        Fault(FaultKind.ERROR, "GetObject", count=2),
        Fault(FaultKind.ERROR, "GetObject", count=2, status=500, code="InternalError"),
        Fault(FaultKind.RESET, "GetObject", count=2, after_bytes=None),
        Fault(FaultKind.END_EARLY, "GetObject", count=2, after_bytes=None),
        Fault(FaultKind.STALL, "GetObject", count=1, after_bytes=None),
        Fault(FaultKind.CLOSE, "GetObject", count=None),
        Fault(FaultKind.EMPTY_ETAG, "GetObject", count=2),
        Fault(FaultKind.EMPTY_ETAG, "GetObject", count=None),
    ],
)
async def test_faults_are_outlived(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint, fault: Fault
) -> None:
    local_endpoint.add_fault(fault)
    await fetch_some(engine, source)


@one_or_two_threads
async def test_a_service_that_often_fails_is_outlived(
    config: S3ClientConfig, others: Sequence[Bridge], source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    """With attempts enough for one request to meet many failures in turn."""
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", count=None, probability=0.3, seed=5))
    async with LoopEngine(config.merged(max_attempts=30), others=others) as engine:
        await fetch_some(engine, source)


async def fetch_some(engine: LoopEngine, source: ObjectId) -> None:
    """Fetch spans large and small, and see that they have landed."""
    spans = [(0, 5 * MiB), (6 * MiB, 12 * MiB), (5_500_000, 5_600_000)]
    made, memories = reads(source, spans)
    stats = await engine.fetch_into(made)
    assert_landed(spans, memories)
    assert stats.hedges or all(memory.is_told for memory in memories)


async def test_a_server_that_always_sends_all_of_it(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    """Is an error that says so, and no byte lands."""
    local_endpoint.add_fault(Fault(FaultKind.WHOLE_OBJECT, "GetObject", count=None))
    made, memories = reads(source, [(100, 200)])
    with pytest.raises(Exception, match="does not serve ranges"):
        await engine.fetch_into(made)
    assert memories[0].untouched


async def test_a_stall_that_stays_is_an_error_with_the_attempts(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", count=None, after_bytes=None))
    made, memories = reads(source, [(0, 1000)])
    with pytest.raises(TransportTimeout, match=r"s3://.*gave up after 4 attempts") as failure:
        await engine.fetch_into(made)
    assert failure.value.attempts == 4
    assert failure.value.elapsed_s >= 4 * 0.4
    assert memories[0].untouched


@one_or_two_threads
async def test_throttling_lowers_the_limit_of_the_prefix(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    elsewhere = ObjectId(source.bucket, "elsewhere/key")
    before = engine.get_control.limit, engine.put_control.limit
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", count=1))
    spans = [(start, start + 1000) for start in range(0, 8 * MiB, MiB)]
    made, memories = reads(source, spans)
    await engine.fetch_into(made)
    assert_landed(spans, memories)
    assert engine.get_prefixes.limit(prefix_of(source)) < len(spans)
    assert engine.get_prefixes.limit(prefix_of(elsewhere)) == math.inf
    assert engine.put_prefixes.limit(prefix_of(source)) == math.inf
    assert (engine.get_control.limit, engine.put_control.limit) == before


async def test_a_throttled_prefix_holds_up_no_other(
    config: S3ClientConfig, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    """Though its reads were there first, and more than there are connections."""
    hot, cold = ObjectId(source.bucket, "hot/key"), ObjectId(source.bucket, "cold/key")
    for target in (hot, cold):
        local_endpoint.replace_object(target.bucket, target.key, DATA)
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", key="hot/", count=None))
    spans = [(start, start + 1000) for start in range(0, 12 * MiB, MiB)]
    done: list[object] = []
    all_of_cold = asyncio.Event()

    def note(job: Job) -> None:
        done.append(job.token)
        if done.count("cold") == len(spans):
            all_of_cold.set()

    async with LoopEngine(config.merged(max_connections=4, max_attempts=1000, backoff_base_s=0.02)) as engine:
        download = Download(engine, note)
        landed = []
        for target, name in ((hot, "hot"), (cold, "cold")):
            made, memories = reads(target, spans)
            landed.append(memories)
            download.submit([Job([read], name) for read in made])
        download.finish()
        task = asyncio.ensure_future(download.run())
        await all_of_cold.wait()
        assert "hot" not in done
        local_endpoint.clear_faults()
        await task
    for memories in landed:
        assert_landed(spans, memories)


@one_or_two_threads
@pytest.mark.parametrize("ignored", [False, True])
async def test_an_object_replaced_meanwhile(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint, ignored: bool
) -> None:
    """Its ETag is another for the second half, whether or not the server minds If-Match."""
    first_landed = asyncio.Event()
    download = Download(engine, lambda _: first_landed.set())
    made, _ = reads(source, [(0, 100)])
    download.submit([Job(made)])
    task = asyncio.ensure_future(download.run())
    await first_landed.wait()
    local_endpoint.replace_object(source.bucket, source.key, DATA[::-1])
    if ignored:
        local_endpoint.add_fault(Fault(FaultKind.IGNORE_CONDITIONS, "GetObject"))
    later, memories = reads(source, [(1000, 2000)])
    download.submit([Job(later)])
    download.finish()
    with pytest.raises(ObjectChanged, match=str(source)):
        await task
    assert memories[0].untouched


async def test_a_truncated_object(engine: LoopEngine, source: ObjectId) -> None:
    for start in (len(DATA) - 10, len(DATA) + 10):
        made, memories = reads(source, [(start, start + 100)])
        with pytest.raises(ShortRead):
            await engine.fetch_into(made)
        assert memories[0].untouched


@one_or_two_threads
async def test_a_failure_ends_the_rest(engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", key="key", count=None, after_bytes=1000))
    made, memories = reads(source, [(0, 4 * MiB)])
    made += reads(ObjectId(source.bucket, "missing"), [(0, 10)])[0]
    with pytest.raises(NotFound):
        await engine.fetch_into(made)
    before = bytes(memories[0].view)
    local_endpoint.clear_faults()
    made, _ = reads(source, [(0, 100)])
    await engine.fetch_into(made)
    assert bytes(memories[0].view) == before


@one_or_two_threads
async def test_cancellation_leaves_the_memory_alone(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.set_shape(Shape(connection_bytes_per_s=20 * MiB))
    made, memories = reads(source, [(0, len(DATA))])
    task = asyncio.ensure_future(engine.fetch_into(made))
    while memories[0].untouched:  # noqa: ASYNC110  # bytes in memory set no event
        await asyncio.sleep(0.001)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    before = bytes(memories[0].view)
    await asyncio.sleep(0.05)
    assert bytes(memories[0].view) == before
    assert memories[0].intact


@one_or_two_threads
async def test_connections_are_bounded(
    config: S3ClientConfig, others: Sequence[Bridge], source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    async with LoopEngine(config.merged(max_connections=3), others=others) as engine:
        spans = [(start, start + 1000) for start in range(0, len(DATA) - 1000, 200_000)]
        made, memories = reads(source, spans)
        await engine.fetch_into(made)
        assert_landed(spans, memories)
    stats = local_endpoint.stats()
    assert stats.requests["GetObject"] == len(spans)
    assert stats.connections_opened <= 3


def test_a_request_keeps_only_what_it_fetches(source: ObjectId) -> None:
    """Not all that was submitted with it: that memory is to be free when it has landed."""
    jobs = [
        Job([Read(source, ByteRange(start, start + MiB), memoryview(bytearray(MiB)))])
        for start in range(0, 8 * MiB, MiB)
    ]
    requests = list(plan_requests(jobs, max_gap_bytes=0, max_request_bytes=2 * MiB))
    assert [[jobs.index(job) for job in request.jobs] for request in requests] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    for request in requests:
        assert [read.span.start for read in request.reads] == [request.fetch.start, request.fetch.start + MiB]
