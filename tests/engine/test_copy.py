from __future__ import annotations

import asyncio
import random

import pytest

from aiockpt.engine import copy as room
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import AccessDenied, NotFound, ObjectChanged
from aiockpt.model import MiB, ObjectId
from aiockpt.testing import Fault, FaultKind, LocalEndpoint, Shape

DATA = random.Random(9).randbytes(10 * MiB)


@pytest.fixture(autouse=True)
def small_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "MAX_COPY_BYTES", MiB)
    monkeypatch.setattr(room, "COPY_PART_BYTES", 5 * MiB)


@pytest.fixture
async def source(engine: LoopEngine, local_bucket: str) -> ObjectId:
    made = ObjectId(local_bucket, "source ü+")
    await engine.put(made, [DATA])
    return made


@pytest.fixture
def target(local_bucket: str) -> ObjectId:
    return ObjectId(local_bucket, "target")


async def pending(engine: LoopEngine, target: ObjectId) -> list[str]:
    return [row.upload_id async for row in engine.pending_uploads(target)]


async def test_a_copy_in_parts(
    engine: LoopEngine, source: ObjectId, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.reset_stats()
    await engine.copy(source, target)
    assert await engine.get(target) == DATA
    assert local_endpoint.stats().requests["UploadPartCopy"] == 2
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "UploadPartCopy", count=None, status=403, code="AccessDenied"))
    with pytest.raises(AccessDenied):
        await engine.copy(source, target)
    assert [row async for row in engine.pending_uploads(target)] == []


async def test_a_copy_whose_last_answer_is_lost_is_done(
    engine: LoopEngine, source: ObjectId, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.LOST_REPLY, "CompleteMultipartUpload"))
    await engine.copy(source, target)
    assert await engine.get(target) == DATA


async def test_a_failed_copy_tells_what_failed_and_not_its_cleaning_up(
    engine: LoopEngine, source: ObjectId, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "UploadPartCopy", count=None, status=403, code="AccessDenied"))
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "AbortMultipartUpload", status=500, code="InternalError"))
    with pytest.raises(AccessDenied):
        await engine.copy(source, target)
    local_endpoint.clear_faults()
    async for row in engine.pending_uploads(target):
        await engine.client.control.abort_upload(target, row.upload_id)


@pytest.mark.parametrize("skip", [0, 1])
@pytest.mark.parametrize("weak", [False, True])
async def test_a_source_replaced_while_it_is_copied(
    engine: LoopEngine, source: ObjectId, target: ObjectId, local_endpoint: LocalEndpoint, skip: int, weak: bool
) -> None:
    """A weak ETag cannot be a condition: the source is looked at again at the end."""
    real, calls = engine.client.control.copy_part, 0

    async def replacing(*arguments: object) -> object:
        nonlocal calls
        calls += 1
        if calls == skip + 1:
            local_endpoint.replace_object(source.bucket, source.key, DATA[::-1])
        return await real(*arguments)  # type: ignore[arg-type]

    engine.client.control.copy_part = replacing  # type: ignore[assignment]
    if weak:
        local_endpoint.add_fault(Fault(FaultKind.WEAK_ETAG, count=None))
    with pytest.raises(ObjectChanged, match="was replaced while it was copied") as failure:
        await engine.copy(source, target)
    assert (failure.value.bucket, failure.value.key) == (source.bucket, source.key)
    assert bool(failure.value.request_id) == (not weak)
    assert not await engine.exists(target)
    assert await pending(engine, target) == []


async def test_a_small_source_replaced_after_its_size_was_asked_for(
    engine: LoopEngine, source: ObjectId, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    await engine.put(source, [b"first"])
    real = engine.client.control.copy

    async def replacing(*arguments: object) -> None:
        local_endpoint.replace_object(source.bucket, source.key, b"second")
        await real(*arguments)  # type: ignore[arg-type]

    engine.client.control.copy = replacing  # type: ignore[assignment]
    with pytest.raises(ObjectChanged):
        await engine.copy(source, target)
    assert not await engine.exists(target)


@pytest.mark.parametrize("size", [100, len(DATA)])
async def test_weak_etags_do_not_hinder_a_copy(
    engine: LoopEngine, source: ObjectId, target: ObjectId, local_endpoint: LocalEndpoint, size: int
) -> None:
    await engine.put(source, [DATA[:size]])
    local_endpoint.add_fault(Fault(FaultKind.WEAK_ETAG, count=None))
    await engine.copy(source, target)
    assert await engine.get(target) == DATA[:size]


@pytest.mark.parametrize("operation", ["CreateMultipartUpload", "UploadPartCopy"])
async def test_a_cancelled_copy_leaves_nothing_behind(
    engine: LoopEngine, source: ObjectId, target: ObjectId, local_endpoint: LocalEndpoint, operation: str
) -> None:
    """Also while the upload is being created: then its id is on its way."""
    local_endpoint.reset_stats()
    local_endpoint.set_shape(Shape(first_byte_latency_s=0.2))
    task = asyncio.ensure_future(engine.copy(source, target))
    while not local_endpoint.stats().requests.get(operation):  # noqa: ASYNC110  # the endpoint is another process
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    local_endpoint.set_shape(Shape())
    assert await pending(engine, target) == []
    assert not await engine.exists(target)


async def test_a_missing_source(engine: LoopEngine, source: ObjectId, target: ObjectId) -> None:
    with pytest.raises(NotFound, match="nothing"):
        await engine.copy(source / "nothing", target)
