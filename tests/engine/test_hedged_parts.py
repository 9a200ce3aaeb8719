"""Hedged parts, from the engine to the local endpoint. Time stands still while siblings go: only a test moves it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence

import pytest

from aiockpt.bridge import Bridge
from aiockpt.config import S3ClientConfig
from aiockpt.crc import crc32
from aiockpt.engine.engine import LoopEngine
from aiockpt.engine.upload import OutgoingPart, Upload, UploadStats
from aiockpt.model import NOTHING, MiB, ObjectId
from aiockpt.plan.hedge import QUIET_S
from aiockpt.plan.prefixes import DOUBLING_S
from aiockpt.s3.bulk import Payload
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, RequestRecord, Shape
from engine.conftest import one_or_two_threads
from engine.virtual_clock import VirtualClock
from servers.certificate import Certificate

#: Enough for one hedge: a slow part and ``SIBLINGS_PER_SUSPECT`` others, and one to spare.
PARTS = 6
SIZE = 5 * MiB

#: Which request faults hit; which part that is, is up to the crew.
SLOW = 3


@pytest.fixture
def clock() -> VirtualClock:
    return VirtualClock()


@pytest.fixture
def patient(config: S3ClientConfig) -> S3ClientConfig:
    """So that what does not wait is not thanks to a stall that is noticed."""
    return config.merged(hedge_share=0.02, stall_timeout_s=60.0)


@pytest.fixture
async def engine(patient: S3ClientConfig, others: Sequence[Bridge], clock: VirtualClock) -> AsyncIterator[LoopEngine]:
    async with LoopEngine(patient, others=others, clock=clock) as made:
        yield made


@pytest.fixture
def target(local_bucket: str) -> ObjectId:
    return ObjectId(local_bucket, "hedged")


def whole(parts: int = PARTS) -> bytes:
    return b"".join(bytes([number]) * SIZE for number in range(parts))


class Save:
    """An object of some parts. The memory of each is overwritten at the moment when it counts as sent."""

    def __init__(self, engine: LoopEngine, target: ObjectId, parts: int = PARTS) -> None:
        self.upload = Upload(engine, on_sent=self._sent)
        self._parts = parts
        outgoing = self.upload.begin(target, NOTHING)
        self._memories = [memoryview(bytearray([number]) * SIZE) for number in range(parts)]
        for number, memory in enumerate(self._memories, 1):
            outgoing.submit(OutgoingPart(number, Payload([memory], SIZE, crc32(memory))))
        outgoing.seal(parts * SIZE, crc32(whole(parts)))
        self.upload.finish()
        self.sent: list[int] = []
        self.task = asyncio.ensure_future(self.upload.run())

    @property
    def stats(self) -> UploadStats:
        return self.upload.stats

    def _sent(self, part: OutgoingPart) -> None:
        self.sent.append(part.number)
        self._memories[part.number - 1][:] = b"\xff" * SIZE

    async def all_sent_but(self, slow: int) -> None:
        await until(lambda: len(self.sent) == self._parts - slow)


async def until(condition: Callable[[], bool]) -> None:
    """Wait for what the endpoint does on its own; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # another process's
        await asyncio.sleep(0.005)


def parts(endpoint: LocalEndpoint) -> list[RequestRecord]:
    return [record for record in endpoint.requests() if record.operation == "UploadPart"]


def sent_parts(endpoint: LocalEndpoint) -> int:
    return endpoint.stats().requests.get("UploadPart", 0)


def slow(kind: FaultKind, **kwargs: float) -> Fault:
    return Fault(kind, "UploadPart", skip=SLOW, **kwargs)  # type: ignore[arg-type]  # each to its own


FAULTS = {
    "it crawls": slow(FaultKind.CRAWL, bytes_per_s=5000),
    "it crawls after a good beginning": slow(FaultKind.CRAWL, after_bytes=3 * MiB, bytes_per_s=5000),
    "nothing of it is taken": slow(FaultKind.STALL),
    "it stalls": slow(FaultKind.STALL, after_bytes=4 * MiB),
    "no answer comes": slow(FaultKind.LATE, delay_s=60),
    "the last one": Fault(FaultKind.STALL, "UploadPart", skip=PARTS - 1),
}


@one_or_two_threads
@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_a_save_does_not_wait_for_one_slow_part(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock, fault: Fault
) -> None:
    """Its loser is cut before the part counts as sent, and what lies in its memory then is nobody's to send."""
    local_endpoint.add_fault(fault)
    save = Save(engine, target)
    await save.all_sent_but(1)
    await clock.work(1.0)
    stats = await save.task
    assert (stats.hedges, stats.hedges_won, stats.hedged_bytes) == (1, 1, SIZE)
    assert (stats.requests, stats.retries, stats.sent_bytes) == (PARTS, 0, PARTS * SIZE)
    assert sorted(save.sent) == list(range(1, PARTS + 1))
    local_endpoint.clear_faults()  # what was held up would now be taken
    await until(lambda: local_endpoint.stats().requests_current == 0)
    assert sent_parts(local_endpoint) == PARTS + 1
    assert await engine.get(target) == whole()


async def test_over_tls(patient: S3ClientConfig, clock: VirtualClock, certificate: Certificate) -> None:
    with LocalEndpoint(tls_cert=certificate.chain, tls_key=certificate.key) as endpoint:
        endpoint.add_fault(FAULTS["it crawls after a good beginning"])
        config = patient.merged(endpoint_url=endpoint.url, ca_bundle=str(certificate.authority))
        async with LoopEngine(config, clock=clock) as engine:
            save = Save(engine, ObjectId("bucket", "hedged"))
            await save.all_sent_but(1)
            await clock.work(1.0)
            stats = await save.task
            assert (stats.hedges, stats.hedges_won, stats.hedged_bytes) == (1, 1, SIZE)
            assert await engine.get(ObjectId("bucket", "hedged")) == whole()


async def test_a_hedge_takes_a_fresh_connection(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock
) -> None:
    local_endpoint.add_fault(FAULTS["it stalls"])
    save = Save(engine, target)
    await save.all_sent_but(1)
    await clock.work(1.0)
    await save.task
    local_endpoint.clear_faults()  # it does not see that a connection is gone from which it reads nothing
    await until(lambda: local_endpoint.stats().requests_current == 0)
    sent = parts(local_endpoint)
    (loser,) = [record for record in sent if record.status != 200]  # the upload was complete by then
    (hedge,) = [record for record in sent if record.part_number == loser.part_number and record is not loser]
    others = {record.connection for record in sent if record is not hedge}
    assert hedge.connection not in others  # though all but one of these lay idle


async def test_nothing_is_hedged_before_it_is_slow(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock
) -> None:
    local_endpoint.add_fault(FAULTS["it stalls"])
    save = Save(engine, target)
    await save.all_sent_but(1)
    await clock.work(0.15)
    assert save.stats.hedges == 0
    local_endpoint.clear_faults()
    assert (await save.task).hedges == 0
    assert sent_parts(local_endpoint) == PARTS


async def test_hedges_are_capped(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock
) -> None:
    """Two are slow, and one may be hedged; then the other waits."""
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", skip=SLOW, count=2))
    save = Save(engine, target, parts=10)
    await save.all_sent_but(2)
    await clock.work(1.0)
    await save.all_sent_but(1)
    await clock.work(100.0)
    assert save.stats.hedges == 1
    local_endpoint.clear_faults()
    await save.task
    assert sent_parts(local_endpoint) == 10 + 1
    assert await engine.get(target) == whole(10)


async def test_a_throttling_service_gets_no_hedges(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock
) -> None:
    """Until it has been quiet for a while. What it takes grows sooner, so that siblings go although one stalls."""
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "UploadPart", skip=1))
    local_endpoint.add_fault(FAULTS["it stalls"])
    save = Save(engine, target)
    await until(lambda: save.stats.retries == 1)
    await clock.work(DOUBLING_S)
    await save.all_sent_but(1)
    await clock.work(QUIET_S - DOUBLING_S - 0.5)
    assert (save.stats.hedges, save.stats.retries) == (0, 1)
    await clock.work(1.0)
    stats = await save.task
    assert (stats.hedges, stats.hedges_won) == (1, 1)
    assert await engine.get(target) == whole()


async def test_a_read_that_is_throttled_keeps_parts_from_being_hedged(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock
) -> None:
    local_endpoint.add_fault(FAULTS["it stalls"])
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "HeadObject"))
    save = Save(engine, target)
    assert not await engine.exists(target)
    await save.all_sent_but(1)
    await clock.work(QUIET_S - 0.5)
    assert save.stats.hedges == 0
    local_endpoint.clear_faults()
    await save.task


async def test_switched_off(
    patient: S3ClientConfig, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock
) -> None:
    local_endpoint.add_fault(FAULTS["it stalls"])
    async with LoopEngine(patient.merged(hedge_share=0.0), clock=clock) as engine:
        save = Save(engine, target)
        await save.all_sent_but(1)
        await clock.work(100.0)
        local_endpoint.clear_faults()
        assert (await save.task).hedges == 0
    assert sent_parts(local_endpoint) == PARTS


async def test_a_hedge_that_is_refused_fails_nobody(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock
) -> None:
    local_endpoint.add_fault(FAULTS["it stalls"])
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "UploadPart", skip=PARTS, status=403, code="AccessDenied"))
    save = Save(engine, target)
    await save.all_sent_but(1)
    await clock.work(1.0)
    await until(lambda: local_endpoint.stats().errors.get("AccessDenied") == 1)
    local_endpoint.clear_faults()
    stats = await save.task
    assert (stats.hedges, stats.hedges_won, stats.retries) == (1, 0, 0)
    assert await engine.get(target) == whole()


async def test_cancelled_with_a_hedge_under_way(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock
) -> None:
    """Leaves no task, no request and no upload."""
    tasks = asyncio.all_tasks()
    local_endpoint.add_fault(FAULTS["it stalls"])
    local_endpoint.add_fault(Fault(FaultKind.STALL, "UploadPart", skip=PARTS, after_bytes=2 * MiB))
    save = Save(engine, target)
    await save.all_sent_but(1)
    await clock.work(1.0)
    await until(lambda: sent_parts(local_endpoint) == PARTS + 1)
    save.task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await save.task
    assert asyncio.all_tasks() == tasks
    assert not engine.client.pool._busy
    local_endpoint.clear_faults()
    await until(lambda: local_endpoint.stats().requests_current == 0)
    assert local_endpoint.stats().uploads_open == 0
    assert not await engine.exists(target)


async def test_a_loser_that_is_stored_under_another_etag(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, clock: VirtualClock
) -> None:
    """As where ETags are not those of the bytes: both are stored, and the last one's counts."""
    local_endpoint.add_fault(Fault(FaultKind.OPAQUE_ETAG, "UploadPart", count=None))
    local_endpoint.add_fault(FAULTS["no answer comes"])
    save = Save(engine, target)
    await save.all_sent_but(1)
    await clock.work(1.0)
    stats = await save.task
    assert (stats.hedges, stats.hedges_won) == (1, 1)
    assert await engine.get(target) == whole()


@pytest.mark.parametrize(
    "shape",
    [Shape(total_bytes_per_s=60e6), Shape(connection_bytes_per_s=12e6, first_byte_latency_s=0.1)],
    ids=["a link that all share", "a limit for each connection"],
)
async def test_a_saturated_link_gets_no_hedges(
    patient: S3ClientConfig, target: ObjectId, local_endpoint: LocalEndpoint, shape: Shape
) -> None:
    """All of the parts are slow, the last ones too, by the real clock; and as many hedges are allowed as there are."""
    local_endpoint.set_shape(shape)
    async with LoopEngine(patient.merged(hedge_share=1.0, max_connections=6)) as engine:
        save = Save(engine, target)
        stats = await save.task
    assert (stats.hedges, stats.retries) == (0, 0)
    assert sent_parts(local_endpoint) == PARTS
