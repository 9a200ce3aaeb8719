from __future__ import annotations

import asyncio
import logging

import pytest

from aiockpt.crc import crc32
from aiockpt.engine import multipart as room
from aiockpt.engine.engine import LoopEngine
from aiockpt.engine.multipart import MultipartUpload
from aiockpt.engine.standing import Whole
from aiockpt.errors import NotFound, PreconditionFailed, ServiceError, Throttled
from aiockpt.model import NOTHING, ByteRange, MiB, ObjectId
from aiockpt.s3.bulk import PartTransfer, Payload
from aiockpt.s3.control import UploadedPart
from aiockpt.testing import Fault, FaultKind, LocalEndpoint


@pytest.fixture
def target(local_bucket: str) -> ObjectId:
    return ObjectId(local_bucket, "key")


async def pending(engine: LoopEngine, target: ObjectId) -> list[str]:
    return [row.upload_id async for row in engine.pending_uploads(target)]


@pytest.mark.parametrize("kind", [FaultKind.LOST_REPLY, FaultKind.STALL])
async def test_what_a_lost_answer_may_have_left_is_named_and_not_touched(
    engine: LoopEngine,
    target: ObjectId,
    local_endpoint: LocalEndpoint,
    caplog: pytest.LogCaptureFixture,
    kind: FaultKind,
) -> None:
    """The upload that the lost answer was about looks the same as the one that another writer has just begun."""
    others = MultipartUpload(engine, target, checksums=False)
    await others.begin()
    local_endpoint.add_fault(Fault(kind, "CreateMultipartUpload", after_bytes=None))
    upload = MultipartUpload(engine, target, checksums=False)
    await upload.begin()
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert target.uri in record.getMessage()
    local_endpoint.clear_faults()
    await upload.abort_quietly()
    left = await pending(engine, target)
    assert others.upload_id in left
    assert upload.upload_id not in left
    for upload_id in left:
        await engine.abort_upload(target, upload_id)


@pytest.mark.parametrize(
    "fault", [Fault(FaultKind.ERROR), Fault(FaultKind.ERROR, status=403, code="AccessDenied")], ids=["503", "403"]
)
async def test_a_refusal_leaves_nothing_to_be_named(
    engine: LoopEngine,
    target: ObjectId,
    local_endpoint: LocalEndpoint,
    caplog: pytest.LogCaptureFixture,
    fault: Fault,
) -> None:
    local_endpoint.add_fault(fault)
    upload = MultipartUpload(engine, target, checksums=False)
    if fault.status == 403:
        with pytest.raises(PermissionError):
            await upload.begin()
    else:
        await upload.begin()
    await upload.abort_quietly()
    assert not caplog.records
    assert await pending(engine, target) == []


async def test_an_abort_that_takes_too_long_is_named(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    upload = MultipartUpload(engine, target, checksums=False)
    await upload.begin()
    upload_id = upload.upload_id
    local_endpoint.add_fault(Fault(FaultKind.STALL, "AbortMultipartUpload", after_bytes=None, count=None))
    await upload.abort_quietly(limit_s=0.05)
    assert all(word in caplog.text for word in (target.uri, upload_id, "no answer within 0.05 s"))
    local_endpoint.clear_faults()
    await engine.abort_upload(target, upload_id)


async def test_an_abort_that_is_refused_is_named(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, caplog: pytest.LogCaptureFixture
) -> None:
    upload = MultipartUpload(engine, target, checksums=False)
    await upload.begin()
    upload_id = upload.upload_id
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "AbortMultipartUpload", status=403, code="AccessDenied"))
    await upload.abort_quietly()
    assert all(word in caplog.text for word in (target.uri, upload_id, "AccessDenied"))
    await engine.abort_upload(target, upload_id)
    await upload.abort_quietly()  # there is nothing any more


async def test_a_cancelled_begin_whose_answer_does_not_come(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(room, "ABORT_TIMEOUT_S", 0.05)
    local_endpoint.add_fault(Fault(FaultKind.STALL, "CreateMultipartUpload", after_bytes=None, count=None))
    upload = MultipartUpload(engine, target, checksums=False)
    task = asyncio.ensure_future(upload.begin())
    while not local_endpoint.stats().requests.get("CreateMultipartUpload"):  # noqa: ASYNC110  # another process
        await asyncio.sleep(0.005)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert upload.upload_id == ""
    local_endpoint.clear_faults()
    for upload_id in await pending(engine, target):
        await engine.abort_upload(target, upload_id)


async def test_completing_keeps_its_condition(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    await engine.put(target, [b"first"])
    upload = MultipartUpload(engine, target, checksums=False)
    await upload.begin()
    part = await engine.client.control.copy_part(target, target, upload.upload_id, 1, ByteRange(0, 5), "")
    with pytest.raises(PreconditionFailed):
        await upload.complete([part], Whole(5, None), NOTHING)
    local_endpoint.add_fault(Fault(FaultKind.ERROR, "CompleteMultipartUpload", count=None))
    with pytest.raises(Throttled):
        await upload.complete([part], Whole(5, None))
    local_endpoint.clear_faults()
    await upload.complete([part], Whole(5, None))
    assert upload.upload_id == ""
    assert await engine.get(target) == b"first"


async def sent(engine: LoopEngine, upload: MultipartUpload, number: int, data: bytes) -> UploadedPart:
    bulk = await engine.client.bulk(upload.target.bucket)
    transfer = PartTransfer(upload.upload_id, number, Payload([memoryview(data)], len(data), crc32(data)))
    await bulk.upload_part(upload.target, transfer)
    return UploadedPart(number, transfer.etag)


async def test_a_part_that_is_stored_again_after_it_was_reported(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint
) -> None:
    """By a try that was given up long ago: the same bytes under another ETag, where it is not of the bytes."""
    local_endpoint.add_fault(Fault(FaultKind.OPAQUE_ETAG, "UploadPart", count=None))
    upload = MultipartUpload(engine, target, checksums=True)
    await upload.begin()
    pieces = [bytes(5 * MiB), b"tail"]
    reported = [await sent(engine, upload, number, piece) for number, piece in enumerate(pieces, 1)]
    again = await sent(engine, upload, 1, pieces[0])
    assert again.etag != reported[0].etag
    whole = b"".join(pieces)
    await upload.complete(reported, Whole(len(whole), crc32(whole)))
    assert await engine.get(target) == whole
    assert local_endpoint.stats().requests["CompleteMultipartUpload"] == 2


@pytest.mark.parametrize("stored", [b"tail", b"liat", None], ids=["the same", "others", "none"])
async def test_parts_that_the_service_does_not_know(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, stored: bytes | None
) -> None:
    """What it has instead is taken only if the whole has the right CRC32, and the error is told otherwise."""
    upload = MultipartUpload(engine, target, checksums=True)
    await upload.begin()
    if stored:
        await sent(engine, upload, 1, stored)
    made = upload.complete([UploadedPart(1, '"never given"')], Whole(4, crc32(b"tail")))
    if stored == b"tail":
        await made
        assert await engine.get(target) == b"tail"
    else:
        with pytest.raises(ServiceError) as caught:
            await made
        assert caught.value.code == ("InvalidPart" if stored is None else "BadDigest")
        await upload.abort_quietly()
        assert not await engine.exists(target)


@pytest.mark.parametrize("how", ["refused", "empty"])
async def test_stored_parts_that_are_not_listed(
    engine: LoopEngine, target: ObjectId, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    """Some stores list a subset of the parts, and some credentials may not list them: then it is as it was."""

    async def empty(**_: object) -> dict[str, object]:
        return {"Parts": [], "IsTruncated": False}

    upload = MultipartUpload(engine, target, checksums=True)
    await upload.begin()
    await sent(engine, upload, 1, b"tail")
    if how == "refused":
        local_endpoint.add_fault(Fault(FaultKind.ERROR, "ListParts", status=403, code="AccessDenied"))
    else:
        monkeypatch.setattr(await engine.client._session.client(), "list_parts", empty)
    with pytest.raises(ServiceError, match="InvalidPart"):
        await upload.complete([UploadedPart(1, '"never given"')], Whole(4, crc32(b"tail")))
    await upload.abort_quietly()


async def test_an_upload_that_never_was(engine: LoopEngine, target: ObjectId) -> None:
    upload = MultipartUpload(engine, target, checksums=False)
    upload.upload_id = "no-such-upload"
    with pytest.raises(NotFound):
        await upload.complete([], Whole(5, None))
    await upload.abort_quietly()
