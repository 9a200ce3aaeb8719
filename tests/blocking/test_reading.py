from __future__ import annotations

import gc
import random

import pytest

from aiockpt.blocking import reading as room
from aiockpt.blocking.reading import ObjectStream
from aiockpt.blocking.store import Store
from aiockpt.bridge import get_bridge
from aiockpt.config import S3ClientConfig
from aiockpt.errors import NotFound, ObjectChanged, ShortRead
from aiockpt.model import KiB, MiB, ObjectId, ObjectInfo
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, Shape
from blocking.conftest import one_or_two_threads, reserved_bytes

DATA = random.Random(8).randbytes(5 * MiB + 77)


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "CHUNK_BYTES", 256 * KiB)
    monkeypatch.setattr(room, "CHUNKS_AHEAD", 4)


@pytest.fixture
def source(local_endpoint: LocalEndpoint, local_bucket: str) -> ObjectId:
    local_endpoint.replace_object(local_bucket, "key", DATA)
    local_endpoint.reset_stats()
    return ObjectId(local_bucket, "key")


@one_or_two_threads
@pytest.mark.parametrize(
    ("start", "end"),
    [(0, None), (0, len(DATA)), (100, 200), (MiB, 3 * MiB + 5), (7, 7), (len(DATA), None), (len(DATA) - 1, None)],
)
def test_the_bytes_in_order(store: Store, source: ObjectId, start: int, end: int | None) -> None:
    chunks = list(ObjectStream(store, source, start, end))
    assert b"".join(chunks) == DATA[start:end]
    assert all(len(chunk) == 256 * KiB for chunk in chunks[:-1])
    assert reserved_bytes(store) == 0


def test_chunks_stay_the_readers(store: Store, source: ObjectId) -> None:
    stream = ObjectStream(store, source)
    first = next(stream)
    first[:] = bytes(len(first))
    rest = b"".join(stream)
    assert first == bytes(256 * KiB)
    assert rest == DATA[256 * KiB :]


def test_nothing_is_asked_before_the_first_chunk(store: Store, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    stream = ObjectStream(store, source)
    assert local_endpoint.stats().requests_total == 0
    next(stream)
    stream.close()


def test_the_window(store: Store, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    stream = ObjectStream(store, source, 0, len(DATA))
    next(stream)
    assert reserved_bytes(store) == 4 * 256 * KiB
    stream.close()
    assert local_endpoint.stats().requests["GetObject"] <= 5
    assert reserved_bytes(store) == 0
    assert list(stream) == []
    stream.close()


def test_it_goes_on_without_memory(config: S3ClientConfig, source: ObjectId) -> None:
    store = Store(config.merged(memory_bytes=1))
    streams = [ObjectStream(store, source) for _ in range(3)]
    for chunks in zip(*streams, strict=True):
        assert chunks[0] == chunks[1] == chunks[2]
    assert reserved_bytes(store) == 0


def test_requests_overlap(store: Store, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.set_shape(Shape(first_byte_latency_s=0.02))
    assert b"".join(ObjectStream(store, source, 0, len(DATA))) == DATA
    assert 1 < local_endpoint.stats().requests_peak <= 4


@pytest.mark.parametrize("kind", [FaultKind.RESET, FaultKind.END_EARLY, FaultKind.ERROR])
def test_faults_are_outlived(
    config: S3ClientConfig, source: ObjectId, local_endpoint: LocalEndpoint, kind: FaultKind
) -> None:
    """Even if one request meets all of them."""
    local_endpoint.add_fault(Fault(kind, "GetObject", count=6, after_bytes=1000))
    store = Store(config.merged(max_attempts=7))
    assert b"".join(ObjectStream(store, source)) == DATA


def test_an_object_that_is_replaced_after_its_size_was_asked_for(
    store: Store, source: ObjectId, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    def head_and_replace(self: Store, target: ObjectId) -> ObjectInfo:
        info = self.run(lambda engine: engine.head(target))
        local_endpoint.replace_object(target.bucket, target.key, bytes(2 * info.size))
        return info

    monkeypatch.setattr(Store, "head", head_and_replace)
    with pytest.raises(ObjectChanged):
        list(ObjectStream(store, source))


def test_an_empty_object(store: Store, source: ObjectId, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.replace_object(source.bucket, "empty", b"")
    assert list(ObjectStream(store, ObjectId(source.bucket, "empty"))) == []


def test_errors(store: Store, source: ObjectId) -> None:
    with pytest.raises(NotFound):
        next(ObjectStream(store, ObjectId(source.bucket, "missing")))
    with pytest.raises(NotFound):
        next(ObjectStream(store, ObjectId(source.bucket, "missing"), 0, 10))
    stream = ObjectStream(store, source, 0, len(DATA) + 10)
    with pytest.raises(ShortRead):
        list(stream)
    assert list(stream) == []
    assert reserved_bytes(store) == 0


def test_one_that_is_dropped_lets_go(store: Store, source: ObjectId) -> None:
    stream = ObjectStream(store, source)
    next(stream)
    assert reserved_bytes(store)
    del stream
    assert reserved_bytes(store) == 0


@one_or_two_threads
def test_one_that_the_collector_finds_on_the_loop_thread_lets_go(store: Store, source: ObjectId) -> None:
    stream = ObjectStream(store, source)
    next(stream)
    cycle: list[object] = [stream]
    cycle.append(cycle)
    del stream, cycle

    async def collect() -> None:
        gc.collect()

    get_bridge().run(collect)
    assert reserved_bytes(store) == 0
