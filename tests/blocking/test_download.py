from __future__ import annotations

import random
import threading

import pytest

from aiockpt.blocking.store import Store
from aiockpt.engine.download import Job, Read
from aiockpt.errors import AccessDenied, ClosedError, NotFound
from aiockpt.model import ByteRange, MiB, ObjectId
from aiockpt.scope import Scope
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, Shape
from blocking.conftest import one_or_two_threads
from transport.scripted import Guarded

DATA = random.Random(5).randbytes(6 * MiB)


@pytest.fixture
def source(local_endpoint: LocalEndpoint, local_bucket: str) -> ObjectId:
    local_endpoint.replace_object(local_bucket, "key", DATA)
    return ObjectId(local_bucket, "key")


def job(source: ObjectId, start: int, end: int) -> tuple[Job, Guarded]:
    memory = Guarded(end - start)
    return Job([Read(source, ByteRange(start, end), memory.view)], (start, end)), memory


@one_or_two_threads
def test_jobs_come_back_as_they_finish(store: Store, source: ObjectId) -> None:
    made = [job(source, start, start + 50_000) for start in range(0, 5 * MiB, 500_000)]
    with store.download() as download:
        download.submit([one for one, _ in made[:5]])
        download.submit([one for one, _ in made[5:]])
        done = {download.next_done().token for _ in made}
        assert download.unfinished == 0
        late, memory = job(source, 0, 10)
        download.submit([late])
    assert memory.view == DATA[:10]  # leaving waits
    assert done == {one.token for one, _ in made}
    for one, landed in made:
        start, end = one.token
        assert landed.view == DATA[start:end]
    assert download.stats.requests == len(made) + 1


def test_nothing(store: Store) -> None:
    with store.download() as download:
        pass
    assert download.stats.requests == 0


def test_jobs_without_bytes(store: Store, source: ObjectId) -> None:
    with store.download() as download:
        download.submit([Job([], "no reads"), job(source, 3, 3)[0]])
        assert {download.next_done().token for _ in range(2)} == {"no reads", (3, 3)}
    assert download.stats.requests == 0


def test_gaps(store: Store, source: ObjectId) -> None:
    for max_gap_bytes, requests in ((1000, 1), (999, 2)):
        with store.download(max_gap_bytes) as download:
            download.submit([job(source, 0, 1000)[0], job(source, 2000, 3000)[0]])
        assert download.stats.requests == requests


@one_or_two_threads
def test_an_answer_that_breaks_is_asked_for_again(
    store: Store, source: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.RESET, "GetObject", after_bytes=1000))
    one, memory = job(source, 0, 100_000)
    with store.download() as download:
        download.submit([one])
        assert download.next_done() is one
    assert memory.view == DATA[:100_000]
    assert download.stats.retries == 1


def test_a_failure_is_told_to_whoever_asks_however_often(store: Store, source: ObjectId) -> None:
    missing, _ = job(ObjectId(source.bucket, "missing"), 0, 10)
    with pytest.raises(NotFound), store.download() as download:
        download.submit([missing])
        for _ in range(3):
            with pytest.raises(NotFound):
                download.next_done()
        download.submit([missing])  # dropped


def test_a_failure_is_told_at_the_end(store: Store, source: ObjectId) -> None:
    missing, _ = job(ObjectId(source.bucket, "missing"), 0, 10)
    with pytest.raises(NotFound), store.download() as download:
        download.submit([missing])


def test_the_first_of_two_failures_is_the_callers(store: Store, source: ObjectId) -> None:
    missing, _ = job(ObjectId(source.bucket, "missing"), 0, 10)
    with pytest.raises(LookupError, match="mine"), store.download() as download:  # that is the point
        download.submit([missing])
        with pytest.raises(NotFound):
            download.next_done()
        raise LookupError("mine")


@one_or_two_threads
@pytest.mark.parametrize("how", ["raise", "cancel"])
def test_leaving_early_leaves_the_memory_alone(
    store: Store, source: ObjectId, local_endpoint: LocalEndpoint, how: str
) -> None:
    local_endpoint.set_shape(Shape(connection_bytes_per_s=4 * MiB))
    one, memory = job(source, 0, len(DATA))
    with pytest.raises(LookupError), store.download() as download:  # that is the point
        download.submit([one])
        while memory.untouched:
            threading.Event().wait(0.001)
        if how == "cancel":
            download.cancel()
        raise LookupError
    before = bytes(memory.view)
    threading.Event().wait(0.05)
    assert bytes(memory.view) == before


@one_or_two_threads
def test_cancelling_raises_nothing(store: Store, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", count=None))
    one, memory = job(source, 0, 1000)
    with store.download() as download:
        download.submit([one])
        download.cancel()  # perhaps before it has begun
        download.cancel()
        for _ in range(2):
            with pytest.raises(ClosedError):
                download.next_done()
    assert memory.intact


def test_what_is_refused(store: Store, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "GetObject", status=403, code="AccessDenied", count=None))
    one, _ = job(source, 0, 1000)
    with pytest.raises(AccessDenied), store.download() as download:
        download.submit([one])
        download.next_done()


@one_or_two_threads
def test_a_scope_ends_a_download(store: Store, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", count=None))
    one, memory = job(source, 0, 1000)
    scope = Scope()
    with scope.entered(), pytest.raises(ClosedError), store.download() as download:
        download.submit([one])
        threading.Thread(target=scope.cancel).start()
        download.next_done()
    assert scope.is_idle
    assert memory.intact
    with scope.entered(), pytest.raises(ClosedError), store.download():
        pass
