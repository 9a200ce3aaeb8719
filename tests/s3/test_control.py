from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from aiockpt.config import S3ClientConfig
from aiockpt.crc import crc32, crc32_combine
from aiockpt.errors import AccessDenied, NotFound, PreconditionFailed, ServiceError
from aiockpt.model import ANYTHING, NOTHING, ByteRange, MiB, ObjectId
from aiockpt.s3.bulk import PartTransfer, Payload
from aiockpt.s3.client import S3Client
from aiockpt.s3.control import ListedObject, UploadedPart
from aiockpt.testing import Fault, FaultKind, LocalEndpoint

KEYS = ["a/1", "a/2 +%", "a/b/3", "ä", "z"]


@pytest.fixture
async def client(local_config: S3ClientConfig) -> AsyncIterator[S3Client]:
    async with S3Client(local_config, None) as made:
        yield made


async def put(client: S3Client, target: ObjectId, data: bytes) -> None:
    await client._direct.put(target, Payload([memoryview(data)], len(data), crc32(data)), ANYTHING)


async def rows(client: S3Client, prefix: ObjectId, delimiter: str = "") -> list[ListedObject | str]:
    found: list[ListedObject | str] = []
    token = ""
    while True:
        page, token = await client.control.list_page(prefix, delimiter, token)
        found += page
        if not token:
            return found


async def test_objects(client: S3Client, local_bucket: str) -> None:
    for key in KEYS:
        await put(client, ObjectId(local_bucket, key), key.encode())
    control = client.control
    for key in KEYS:
        info = await control.head(ObjectId(local_bucket, key))
        assert (info.size, bool(info.etag)) == (len(key.encode()), True)
    everything = await rows(client, ObjectId(local_bucket, ""))
    assert [row.key for row in everything if isinstance(row, ListedObject)] == sorted(KEYS, key=str.encode)
    below = await rows(client, ObjectId(local_bucket, "a/"), "/")
    assert [row if isinstance(row, str) else row.key for row in below] == ["a/b/", "a/1", "a/2 +%"]
    copied = ObjectId(local_bucket, "copy of ä")
    source = ObjectId(local_bucket, "a/2 +%")
    with pytest.raises(PreconditionFailed):
        await control.copy(source, copied, "0" * 32)
    await control.copy(source, copied, (await control.head(source)).etag)
    assert (await client._direct.get_whole(copied))[0] == b"a/2 +%"
    for _ in range(2):  # what is gone counts as deleted
        await control.delete(copied)
    with pytest.raises(NotFound):
        await control.head(copied)


async def test_a_listing_of_several_pages(client: S3Client, local_bucket: str) -> None:
    for number in range(5):
        await put(client, ObjectId(local_bucket, f"k{number}"), b"x")
    real = (await client._session.client()).list_objects_v2

    async def two_at_a_time(**arguments: object) -> object:
        return await real(MaxKeys=2, **arguments)

    (await client._session.client()).list_objects_v2 = two_at_a_time
    found = await rows(client, ObjectId(local_bucket, "k"))
    assert [row.key for row in found if isinstance(row, ListedObject)] == [f"k{number}" for number in range(5)]


async def sent_part(client: S3Client, target: ObjectId, upload_id: str, number: int, data: bytes) -> UploadedPart:
    transfer = PartTransfer(upload_id, number, Payload([memoryview(data)], len(data), crc32(data)))
    await client._direct.upload_part(target, transfer)
    return UploadedPart(number, transfer.etag)


async def test_a_multipart_upload(client: S3Client, local_bucket: str) -> None:
    control, target = client.control, ObjectId(local_bucket, "parts")
    pieces = [bytes(5 * MiB), b"tail"]
    upload_id = await control.create_upload(target, checksums=True)
    pending, _ = await control.pending_page(ObjectId(local_bucket, "par"), ("", ""))
    assert [(row.key, row.upload_id) for row in pending] == [("parts", upload_id)]
    parts = []
    for number, piece in enumerate(pieces, 1):
        parts.append(await sent_part(client, target, upload_id, number, piece))
    listed, following = await control.parts_page(target, upload_id, 0)
    assert ([(part.number, part.size) for part in listed], following) == ([(1, 5 * MiB), (2, 4)], 0)
    assert all(part.last_modified for part in listed)
    assert [part.number for part in (await control.parts_page(target, upload_id, 1))[0]] == [2]
    whole = crc32_combine(crc32(pieces[0]), crc32(pieces[1]), 4)
    with pytest.raises(ServiceError):
        await control.complete_upload(target, upload_id, parts, crc32=whole ^ 1)
    info = await control.complete_upload(target, upload_id, parts, crc32=whole, replaces=NOTHING)
    assert info.etag == (await control.head(target)).etag
    assert await control.head_with_crc32(target) == (await control.head(target), whole)
    assert (await control.head(target)).size == 5 * MiB + 4

    copy = ObjectId(local_bucket, "copy")
    upload_id = await control.create_upload(copy, checksums=False)
    spans = [ByteRange(0, 5 * MiB), ByteRange(5 * MiB, 5 * MiB + 4)]
    with pytest.raises(PreconditionFailed):
        await control.copy_part(target, copy, upload_id, 1, spans[0], "0" * 32)
    parts = [
        await control.copy_part(target, copy, upload_id, number, span, info.etag)
        for number, span in enumerate(spans, 1)
    ]
    await control.complete_upload(copy, upload_id, parts, crc32=None)
    assert (await control.head(copy)).size == 5 * MiB + 4
    with pytest.raises(NotFound):
        await control.abort_upload(copy, upload_id)


async def test_an_upload_that_must_replace_nothing(client: S3Client, local_bucket: str) -> None:
    control, target = client.control, ObjectId(local_bucket, "parts")
    await put(client, target, b"first")
    upload_id = await control.create_upload(target, checksums=False)
    part = await sent_part(client, target, upload_id, 1, b"x")
    with pytest.raises(PreconditionFailed):
        await control.complete_upload(target, upload_id, [part], crc32=None, replaces=NOTHING)
    await control.abort_upload(target, upload_id)


@pytest.mark.parametrize("operation", ["CopyObject", "CompleteMultipartUpload"])
async def test_an_error_in_an_answer_of_200(
    client: S3Client, local_bucket: str, local_endpoint: LocalEndpoint, operation: str
) -> None:
    target = ObjectId(local_bucket, "key")
    await put(client, target, b"data")
    upload_id = await client.control.create_upload(target, checksums=False)
    local_endpoint.add_fault(Fault(FaultKind.ERROR_IN_200, operation, code="InternalError"))
    with pytest.raises(ServiceError, match="InternalError"):
        if operation == "CopyObject":
            await client.control.copy(target, target, "")
        else:
            await client.control.complete_upload(target, upload_id, [UploadedPart(1, '"e"')], crc32=None)
    await client.control.abort_upload(target, upload_id)


async def test_the_region_of_a_bucket(client: S3Client, local_bucket: str) -> None:
    assert await client.control.bucket_region(local_bucket) in {"", "us-east-1"}
    with pytest.raises(NotFound):
        await client.control.bucket_region("no-such-bucket")


async def test_the_services_clock(client: S3Client, local_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await put(client, ObjectId(local_bucket, "key"), b"x")
    now = await client.control.service_time(local_bucket)
    (row,) = await rows(client, ObjectId(local_bucket, "key"))
    assert now is not None
    assert isinstance(row, ListedObject)
    assert row.last_modified is not None
    assert abs(now - row.last_modified) < timedelta(seconds=60)

    async def without_date(**arguments: object) -> object:
        return {"ResponseMetadata": {"HTTPHeaders": {}}}

    monkeypatch.setattr(await client._session.client(), "head_bucket", without_date)
    assert await client.control.service_time(local_bucket) is None
    with pytest.raises(NotFound):
        await client.control.parts_page(ObjectId(local_bucket, "key"), "no-such-upload", 0)


async def test_a_store_without_uploads_may_answer_that_there_is_no_such_upload(
    client: S3Client, local_bucket: str, local_endpoint: LocalEndpoint
) -> None:
    """rclone does."""
    for turn, code in enumerate(("NoSuchUpload", "NoSuchBucket")):
        local_endpoint.add_fault(Fault(FaultKind.ERROR, "ListMultipartUploads", status=404, code=code, skip=turn))
    assert await client.control.pending_page(ObjectId(local_bucket, ""), ("", "")) == ([], ("", ""))
    with pytest.raises(NotFound):
        await client.control.pending_page(ObjectId(local_bucket, ""), ("", ""))


@pytest.mark.parametrize(
    ("code", "status", "kind"),
    [
        ("ExpiredToken", 400, ServiceError),
        ("AccessDenied", 403, AccessDenied),
        ("RequestTimeTooSkewed", 403, ServiceError),
    ],
)
async def test_a_head_that_is_refused_says_why(
    client: S3Client, local_bucket: str, local_endpoint: LocalEndpoint, code: str, status: int, kind: type[ServiceError]
) -> None:
    """Its own answer has no body, and so no code."""
    local_endpoint.add_fault(Fault(FaultKind.ERROR, status=status, code=code, count=None))
    control = client.control
    for attempt in (
        control.head(ObjectId(local_bucket, "key")),
        control.head_with_crc32(ObjectId(local_bucket, "key")),
        control.bucket_region(local_bucket),
        control.service_time(local_bucket),
    ):
        with pytest.raises(kind) as failure:
            await attempt
        assert type(failure.value) is kind
        assert failure.value.code == code
        assert "HEAD" in str(failure.value)


@pytest.mark.parametrize("key", ["", "missing", "empty", "there"])
async def test_a_head_alone_that_is_refused(
    client: S3Client, local_bucket: str, local_endpoint: LocalEndpoint, key: str
) -> None:
    """A GET that is served, or refused otherwise, says nothing about it."""
    if key in {"empty", "there"}:
        await put(client, ObjectId(local_bucket, key), key.removeprefix("empty").encode())
    for operation in ("HeadObject", "HeadBucket"):
        local_endpoint.add_fault(Fault(FaultKind.ERROR, operation, status=403, code="AccessDenied", count=None))
    control = client.control
    with pytest.raises(AccessDenied) as failure:
        await (control.head(ObjectId(local_bucket, key)) if key else control.service_time(local_bucket))
    assert failure.value.code == "403"
