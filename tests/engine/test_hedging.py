from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextvars import Context, ContextVar

import pytest

from aiockpt.bridge import Bridge
from aiockpt.config import S3ClientConfig
from aiockpt.engine.download import Download, DownloadStats, Job, Read
from aiockpt.engine.engine import LoopEngine
from aiockpt.engine.hedging import Race
from aiockpt.errors import AiockptError, NotFound, ObjectChanged, ReadError, Throttled
from aiockpt.model import ByteRange, KiB, ObjectId
from aiockpt.s3.bulk import Pin, RangeTransfer
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, RequestRecord
from engine.conftest import one_or_two_threads
from engine.test_cancellation import at_every_step
from engine.virtual_clock import VirtualClock
from transport.scripted import Guarded, until

REQUESTS = 40
SIZE = 100 * KiB

#: Reads that are too far apart to share a request.
SPANS = [ByteRange(2 * SIZE * number, 2 * SIZE * number + SIZE) for number in range(REQUESTS)]
DATA = random.Random(11).randbytes(SPANS[-1].end)


@pytest.fixture
def source(local_endpoint: LocalEndpoint, local_bucket: str) -> ObjectId:
    local_endpoint.replace_object(local_bucket, "hedged", DATA)
    local_endpoint.reset_stats()
    return ObjectId(local_bucket, "hedged")


@pytest.fixture
async def engine(config: S3ClientConfig, others: Sequence[Bridge]) -> AsyncIterator[LoopEngine]:
    """Patient, so that what does not wait is not thanks to a stall that is noticed."""
    async with LoopEngine(config.merged(hedge_share=0.02, stall_timeout_s=30.0), others=others) as made:
        yield made


class Load:
    """A load of ``REQUESTS`` requests."""

    def __init__(self, engine: LoopEngine, source: ObjectId) -> None:
        self.memories = [Guarded(SIZE) for _ in SPANS]
        self.done = 0
        self.told_bytes = 0
        self.download = Download(engine, self._count)
        for span, memory in zip(SPANS, self.memories, strict=True):
            self.download.submit([Job([Read(source, span, memory.view, self._tell)])])
        self.download.finish()

    def _count(self, _: Job) -> None:
        self.done += 1

    def _tell(self, _: int, memory: memoryview) -> None:
        self.told_bytes += len(memory)

    async def run(self) -> DownloadStats:
        return await self.download.run()

    def assert_landed(self) -> None:
        for span, memory in zip(SPANS, self.memories, strict=True):
            assert memory.view == DATA[span.start : span.end]
            assert memory.intact


def gets(endpoint: LocalEndpoint) -> list[RequestRecord]:
    return [record for record in endpoint.requests() if record.operation == "GetObject"]


def requests_begun(endpoint: LocalEndpoint) -> int:
    return endpoint.stats().requests.get("GetObject", 0)


async def all_but_one_ended(load: Load) -> None:
    await until(lambda: load.done == REQUESTS - 1)


async def ended(condition: Callable[[], bool]) -> None:
    """Wait for what the endpoint does on its own; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # another process's
        await asyncio.sleep(0.01)


SLOW = {
    "it crawls": Fault(FaultKind.CRAWL, "GetObject", skip=10, bytes_per_s=5000),
    "it crawls after a good beginning": Fault(
        FaultKind.CRAWL, "GetObject", skip=10, after_bytes=30_000, bytes_per_s=1000
    ),
    "it stalls": Fault(FaultKind.STALL, "GetObject", skip=10, after_bytes=50_000),
    "no first byte comes": Fault(FaultKind.LATE, "GetObject", skip=10, delay_s=60),
    "the last one": Fault(FaultKind.STALL, "GetObject", skip=REQUESTS - 1, after_bytes=0),
}


@one_or_two_threads
@pytest.mark.parametrize("fault", SLOW.values(), ids=SLOW)
async def test_a_load_does_not_wait_for_one_slow_request(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint, fault: Fault
) -> None:
    local_endpoint.add_fault(fault)
    load = Load(engine, source)
    stats = await load.run()
    load.assert_landed()
    assert (stats.requests, stats.retries) == (REQUESTS, 0)
    assert (stats.hedges, stats.hedges_won) == (1, 1)
    assert local_endpoint.stats().requests["GetObject"] == REQUESTS + 1  # 2 % of 40, and the one to begin with
    assert 0 < stats.hedged_bytes <= SIZE


async def test_a_hedge_takes_a_fresh_connection_and_only_what_is_missing(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", skip=20, after_bytes=60_000))
    load = Load(engine, source)
    stats = await load.run()
    load.assert_landed()
    records = gets(local_endpoint)
    assert len({record.range.partition("-")[2] for record in records}) == REQUESTS
    [hedge] = [record for record in records if record.range not in {f"bytes={s.start}-{s.end - 1}" for s in SPANS}]
    assert hedge.body_bytes_out == stats.hedged_bytes == SIZE - 60_000
    assert load.told_bytes == REQUESTS * SIZE - stats.hedged_bytes  # the loser might have written these again
    assert hedge.connection not in {
        record.connection for record in records if record is not hedge
    }  # though some lay idle
    await ended(lambda: local_endpoint.stats().requests_current == 0)  # the loser's connection is closed


@one_or_two_threads
async def test_the_loser_does_not_touch_memory_that_was_handed_over(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.CRAWL, "GetObject", skip=10, bytes_per_s=5000))
    load = Load(engine, source)
    tasks = asyncio.all_tasks()
    await load.run()
    assert asyncio.all_tasks() == tasks
    load.assert_landed()
    for memory in load.memories:
        memory.view[:] = bytes(SIZE)
    local_endpoint.clear_faults()  # what crawled would now come at once
    await engine.head(source)
    await ended(lambda: local_endpoint.stats().requests_current == 0)
    assert all(memory.view == bytes(SIZE) for memory in load.memories)


async def test_a_slow_service_is_not_hedged(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.CRAWL, "GetObject", count=None, bytes_per_s=SIZE / 0.3))
    load = Load(engine, source)
    stats = await load.run()
    load.assert_landed()
    assert stats.hedges == 0
    assert local_endpoint.stats().requests["GetObject"] == REQUESTS


async def test_a_throttling_service_gets_no_hedges(
    config: S3ClientConfig, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    """But the slow request is repeated when it stalls."""
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", count=10, probability=0.5, seed=2))
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", skip=30, after_bytes=50_000))
    async with LoopEngine(config.merged(hedge_share=1.0, stall_timeout_s=0.8, max_attempts=11)) as engine:
        load = Load(engine, source)
        stats = await load.run()
    load.assert_landed()
    throttled = local_endpoint.stats().errors["SlowDown"]
    assert throttled > 0
    assert stats.hedges == 0
    assert stats.retries == throttled + 1


async def test_switched_off(config: S3ClientConfig, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", skip=10, after_bytes=50_000))
    async with LoopEngine(config.merged(hedge_share=0.0, stall_timeout_s=0.8)) as engine:
        load = Load(engine, source)
        stats = await load.run()
    load.assert_landed()
    assert (stats.hedges, stats.retries) == (0, 1)


@one_or_two_threads
async def test_cancelled_with_a_hedge_under_way(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    """Leaves no task and no request, and writes nothing any more."""
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", skip=10, after_bytes=30_000))
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", skip=REQUESTS, after_bytes=20_000))
    load = Load(engine, source)
    tasks = asyncio.all_tasks()
    task = asyncio.ensure_future(load.run())
    await ended(lambda: load.download.stats.hedges == 1)
    slow = next(
        memory
        for memory, span in zip(load.memories, SPANS, strict=True)
        if memory.view[-1:] != DATA[span.end - 1 : span.end]
    )
    await ended(lambda: requests_begun(local_endpoint) == REQUESTS + 1)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert asyncio.all_tasks() == tasks
    before = bytes(slow.view)
    local_endpoint.clear_faults()
    await ended(lambda: local_endpoint.stats().requests_current == 0)
    await engine.head(source)
    assert bytes(slow.view) == before
    assert slow.intact


@pytest.mark.parametrize("ignored", [False, True])
async def test_an_object_that_is_replaced_before_its_hedge(
    config: S3ClientConfig, source: ObjectId, local_endpoint: LocalEndpoint, ignored: bool
) -> None:
    """Is told, whether or not the server minds If-Match; and nothing of the new one lands."""
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", skip=REQUESTS - 1, after_bytes=50_000))
    async with LoopEngine(config.merged(hedge_share=0.02, stall_timeout_s=1.0)) as engine:
        load = Load(engine, source)
        task = asyncio.ensure_future(load.run())
        await all_but_one_ended(load)
        local_endpoint.replace_object(source.bucket, source.key, bytes(len(DATA)))
        if ignored:
            local_endpoint.add_fault(Fault(FaultKind.IGNORE_CONDITIONS, "GetObject", count=None))
        with pytest.raises(ObjectChanged, match=str(source)):
            await task
    assert load.download.stats.hedges == 1
    for span, memory in zip(SPANS, load.memories, strict=True):
        assert memory.view[:50_000] == DATA[span.start : span.start + 50_000]
        assert bytes(1000) not in bytes(memory.view)


async def hedged_in_vain(config: S3ClientConfig, source: ObjectId, endpoint: LocalEndpoint) -> DownloadStats:
    """A load with a request that is hedged, by a clock of its own, and goes on when the hedge has come to nothing."""
    clock = VirtualClock()
    endpoint.add_fault(Fault(FaultKind.LATE, "GetObject", skip=10, delay_s=60))
    async with LoopEngine(config.merged(hedge_share=0.02, stall_timeout_s=60.0), clock=clock) as engine:
        load = Load(engine, source)
        task = asyncio.ensure_future(load.run())
        await all_but_one_ended(load)
        tasks = asyncio.all_tasks()
        await clock.work(0.35)
        await until(lambda: load.download.stats.hedges == 1)
        await ended(lambda: asyncio.all_tasks() == tasks)
        endpoint.clear_faults()
        stats = await task
    load.assert_landed()
    return stats


async def test_a_store_without_etags_is_not_hedged(
    config: S3ClientConfig, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    """Nothing would prove that the bytes are the same, so the hedge lands none."""
    local_endpoint.add_fault(Fault(FaultKind.EMPTY_ETAG, "GetObject", count=None))
    stats = await hedged_in_vain(config, source, local_endpoint)
    assert (stats.hedges, stats.hedges_won, stats.hedged_bytes) == (1, 0, 0)


async def test_a_hedge_that_is_refused_fails_nobody(
    config: S3ClientConfig, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", skip=REQUESTS, status=403, code="AccessDenied"))
    stats = await hedged_in_vain(config, source, local_endpoint)
    assert (stats.hedges, stats.hedges_won, stats.retries) == (1, 0, 0)


async def test_both_break_and_the_next_attempt_goes_on_where_the_further_one_came_to(
    engine: LoopEngine, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", skip=REQUESTS - 1, after_bytes=30_000))
    local_endpoint.add_fault(Fault(FaultKind.RESET, "GetObject", skip=REQUESTS, after_bytes=40_000))
    load = Load(engine, source)
    task = asyncio.ensure_future(load.run())
    await ended(lambda: requests_begun(local_endpoint) == REQUESTS + 1)
    await ended(lambda: load.download.stats.hedged_bytes > 0)
    (slow,) = engine.client.pool._busy
    slow.fail(ReadError("broken by the test"))
    stats = await task
    load.assert_landed()
    assert (stats.hedges, stats.hedges_won, stats.retries) == (1, 0, 1)
    slow_ones = sorted(record.body_bytes_out for record in gets(local_endpoint) if record.body_bytes_out < SIZE)
    assert slow_ones == sorted([30_000, stats.hedged_bytes, SIZE - 30_000 - stats.hedged_bytes])


# ---- the race itself, with requests that do what the test says

Step = Callable[[RangeTransfer], Awaitable[None]]


class ScriptedBulk:
    """Bulk whose first request does one thing and whose second another."""

    def __init__(self, *steps: Step) -> None:
        self._steps = list(steps)
        self.running = 0

    async def get(self, transfer: RangeTransfer) -> None:
        self.running += 1
        try:
            await self._steps.pop(0)(transfer)
        finally:
            self.running -= 1


def lands(*, after: asyncio.Event | None = None, nbytes: int = 10) -> Step:
    async def step(transfer: RangeTransfer) -> None:
        if after is not None:
            await after.wait()
        rest = transfer.rest
        transfer.landing.copy_in(memoryview(bytes(range(rest.start, rest.end))[:nbytes]))

    return step


def fails(error: BaseException, *, after: asyncio.Event | None = None, nbytes: int = 0) -> Step:
    async def step(transfer: RangeTransfer) -> None:
        await lands(after=after, nbytes=nbytes)(transfer)
        raise error

    return step


async def hangs(transfer: RangeTransfer) -> None:
    transfer.landing.copy_in(memoryview(b"\0\1"))
    await asyncio.Event().wait()


class Scene:
    """A race of two scripted requests for ten bytes."""

    def __init__(self, original: Step, hedge: Step) -> None:
        self.bulk = ScriptedBulk(original, hedge)
        self.memory = bytearray(b"\xff" * 10)
        self.stats = DownloadStats()
        self.failures: list[AiockptError] = []
        self.transfer = RangeTransfer(ByteRange(0, 10), Guarded(10).landing(), Pin("etag"))
        self.transfer.landing = type(self.transfer.landing)([memoryview(self.memory)])
        self.race = Race(
            self.bulk.get,
            ObjectId("bucket", "key"),
            self.transfer,
            self.stats,
            lambda _, error: self.failures.append(error),
        )

    def hedge_if_running(self) -> None:
        if self.bulk.running:
            self.race.hedge()

    async def start(self) -> asyncio.Task[None]:
        """Begin, hedge, and let both get to where they wait."""
        task = asyncio.ensure_future(self.race.run())
        await asyncio.sleep(0)
        self.race.hedge()
        await asyncio.sleep(0)
        return task


WHOLE = bytes(range(10))


async def test_the_original_wins() -> None:
    go = asyncio.Event()
    scene = Scene(lands(after=go), hangs)
    task = await scene.start()
    go.set()
    await task
    assert scene.memory == WHOLE
    assert (scene.stats.hedges, scene.stats.hedges_won, scene.stats.hedged_bytes) == (1, 0, 2)
    assert (scene.bulk.running, scene.failures) == (0, [])


async def test_the_hedge_wins() -> None:
    scene = Scene(hangs, lands())
    await (await scene.start())
    assert scene.memory == WHOLE
    assert (scene.stats.hedges, scene.stats.hedges_won, scene.stats.hedged_bytes) == (1, 1, 8)
    assert (scene.bulk.running, scene.failures) == (0, [])


async def test_the_hedge_fails_and_the_original_goes_on() -> None:
    go = asyncio.Event()
    error = NotFound("gone", status=404)
    scene = Scene(lands(after=go), fails(error))
    task = await scene.start()
    go.set()
    await task
    assert scene.memory == WHOLE
    assert scene.failures == [error]


async def test_the_original_fails_and_the_hedge_goes_on() -> None:
    broken, go = asyncio.Event(), asyncio.Event()
    error = Throttled("slow down", status=503)
    scene = Scene(fails(error, after=broken), lands(after=go))
    task = await scene.start()
    broken.set()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not task.done()
    go.set()
    await task
    assert scene.memory == WHOLE
    assert (scene.failures, scene.bulk.running) == ([error], 0)


@pytest.mark.parametrize(("by_original", "by_hedge"), [(2, 5), (5, 2), (0, 0)])
async def test_both_fail(by_original: int, by_hedge: int) -> None:
    """The original's error is the attempt's, and the further bytes are kept."""
    go, later = asyncio.Event(), asyncio.Event()
    first, second = ReadError("first"), ReadError("second")
    scene = Scene(fails(first, after=go, nbytes=by_original), fails(second, after=later, nbytes=by_hedge))
    task = await scene.start()
    go.set()
    later.set()
    with pytest.raises(ReadError, match="first"):
        await task
    assert scene.transfer.landing.landed == max(by_original, by_hedge)
    assert scene.transfer.rest == ByteRange(max(by_original, by_hedge), 10)
    assert scene.failures == [second]


async def test_a_failed_hedge_leaves_the_original_its_landing() -> None:
    """Whose bytes count from where it stands, until it ends."""
    go = asyncio.Event()
    scene = Scene(lands(after=go), fails(ReadError("broke"), nbytes=7))
    task = await scene.start()
    assert scene.transfer.landing.landed == 0
    go.set()
    await task
    assert scene.memory == WHOLE


async def test_both_end_at_the_same_moment() -> None:
    go = asyncio.Event()
    scene = Scene(lands(after=go), lands(after=go))
    task = await scene.start()
    go.set()
    await task
    assert scene.memory == WHOLE
    assert scene.bulk.running == 0


async def test_a_cancelled_race_ends_both() -> None:
    scene = Scene(hangs, hangs)
    task = await scene.start()
    assert scene.bulk.running == 2
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.bulk.running == 0


async def test_a_race_cancelled_while_only_the_hedge_goes_on_ends_it() -> None:
    scene = Scene(fails(ReadError("broke")), hangs)
    scene.race.hedge()
    task = asyncio.ensure_future(scene.race.run())
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert scene.bulk.running == 0


async def test_a_bug_in_a_hedge_is_told() -> None:
    go = asyncio.Event()
    scene = Scene(lands(after=go), fails(LookupError("bug")))
    task = await scene.start()
    go.set()
    with pytest.raises(LookupError, match="bug"):
        await task


@pytest.mark.parametrize("winner", ["original", "hedge"])
async def test_cancelled_at_every_step(winner: str) -> None:
    """Whichever was going to win: both have ended."""

    async def slowly(transfer: RangeTransfer) -> None:
        for _ in range(3):
            await asyncio.sleep(0)
        await lands()(transfer)

    scenes: list[Scene] = []

    async def race() -> None:
        scene = Scene(*((slowly, hangs) if winner == "original" else (hangs, slowly)))
        scenes.append(scene)
        asyncio.get_running_loop().call_soon(scene.hedge_if_running)
        await scene.race.run()

    async def check(cancelled: bool) -> None:
        assert scenes[-1].bulk.running == 0
        assert cancelled or scenes[-1].memory == WHOLE

    assert await at_every_step(race, check) > 5


async def test_a_hedge_belongs_to_the_load_of_its_request() -> None:
    """And not to the load whose request the timer was set for."""
    load: ContextVar[str] = ContextVar("load")
    seen: list[str] = []

    async def looks(transfer: RangeTransfer) -> None:
        seen.append(load.get("another"))
        await lands()(transfer)

    load.set("this")
    scene = Scene(hangs, looks)
    racing = asyncio.ensure_future(scene.race.run())
    await asyncio.sleep(0)
    Context().run(scene.race.hedge)
    await racing
    assert seen == ["this"]
