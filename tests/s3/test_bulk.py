"""One conformance suite for both ways of moving bulk bytes, and what only the direct one does."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import nullcontext
from typing import Any

import pytest

from aiockpt.config import S3ClientConfig
from aiockpt.crc import crc32
from aiockpt.errors import (
    AccessDenied,
    AiockptError,
    ChecksumMismatch,
    NotFound,
    ObjectChanged,
    PreconditionFailed,
    ReadError,
    RemoteProtocolError,
    S3Exception,
    ServiceError,
    ShortRead,
    Throttled,
    TransportError,
    TransportTimeout,
)
from aiockpt.model import ANYTHING, NOTHING, ByteRange, ObjectId, Replaces
from aiockpt.s3.bulk import Bulk, DirectBulk, PartTransfer, Payload, Pin, RangeTransfer, check_range_answer
from aiockpt.s3.client import S3Client
from aiockpt.s3.control import UploadedPart
from aiockpt.s3.failures import WrongRegion
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from aiockpt.transport import connection
from aiockpt.transport.landing import Landing
from aiockpt.wire.http1 import ResponseHead
from aiockpt.wire.s3 import parse_content_range
from s3.conftest import ACCESS_KEY, SECRET_KEY
from transport.scripted import Guarded, Peer, answer, server

DATA = bytes(range(256)) * 1024
SOURCE = ObjectId("bucket", "key")


@pytest.fixture
async def client(local_config: S3ClientConfig) -> AsyncIterator[S3Client]:
    async with S3Client(local_config, None) as made:
        yield made


@pytest.fixture(params=["direct", "client"])
def bulk(request: pytest.FixtureRequest, client: S3Client) -> Bulk:
    return client._direct if request.param == "direct" else client._fallback


def payload(*pieces: bytes) -> Payload:
    views = [memoryview(piece) for piece in pieces]
    return Payload(views, sum(map(len, views)), crc32(b"".join(pieces)))


def transfer(memory: Guarded, start: int, etag: str = "") -> RangeTransfer:
    return RangeTransfer(ByteRange(start, start + len(memory.view)), memory.landing(), Pin(etag))


@pytest.mark.parametrize("key", ["key", "a/b c+d%25", "ä€", "a//b", "~.-_!*'()"])
async def test_there_and_back(bulk: Bulk, local_bucket: str, key: str) -> None:
    target = ObjectId(local_bucket, key)
    put = await bulk.put(target, payload(DATA[:1000], DATA[1000:]), ANYTHING)
    assert put.size == len(DATA)
    assert put.etag
    memory = Guarded(5000)
    moved = transfer(memory, 100)
    await bulk.get(target, moved)
    assert memory.view == DATA[100:5100]
    assert memory.intact
    assert moved.etag == put.etag
    assert await bulk.get_whole(target) == (DATA, put.etag)


async def test_nothing(bulk: Bulk, local_bucket: str) -> None:
    target = ObjectId(local_bucket, "empty")
    assert (await bulk.put(target, payload(), ANYTHING)).size == 0
    assert (await bulk.get_whole(target))[0] == b""


async def test_a_transfer_goes_on_where_it_stopped(
    bulk: Bulk, local_bucket: str, local_endpoint: LocalEndpoint
) -> None:
    target = ObjectId(local_bucket, "key")
    await bulk.put(target, payload(DATA), ANYTHING)
    local_endpoint.add_fault(Fault(FaultKind.RESET, "GetObject", after_bytes=70_000))
    memory = Guarded(len(DATA) - 10)
    moved = transfer(memory, 10)
    with pytest.raises(S3Exception):
        await bulk.get(target, moved)
    landed = moved.landing.landed
    assert 0 < landed <= 70_000
    local_endpoint.reset_stats()
    await bulk.get(target, moved)
    assert memory.view == DATA[10:]
    assert memory.intact
    assert local_endpoint.stats().body_bytes_out == len(memory.view) - landed


async def test_a_replaced_object(bulk: Bulk, local_bucket: str, local_endpoint: LocalEndpoint) -> None:
    target = ObjectId(local_bucket, "key")
    etag = (await bulk.put(target, payload(DATA), ANYTHING)).etag
    local_endpoint.replace_object(local_bucket, "key", bytes(len(DATA)))
    memory = Guarded(100)
    for fault in (Fault(FaultKind.CLOSE), Fault(FaultKind.IGNORE_CONDITIONS, "GetObject")):
        local_endpoint.add_fault(fault)
        with pytest.raises(ObjectChanged, match=f"s3://{local_bucket}/key was replaced") as failure:
            await bulk.get(target, transfer(memory, 0, etag))
        assert (failure.value.bucket, failure.value.key) == (local_bucket, "key")
        assert failure.value.request_id
    assert memory.untouched


@pytest.mark.parametrize("start", [1000, len(DATA) - 10, len(DATA), len(DATA) + 10])
async def test_a_truncated_object(bulk: Bulk, local_bucket: str, start: int) -> None:
    target = ObjectId(local_bucket, "key")
    await bulk.put(target, payload(DATA), ANYTHING)
    memory = Guarded(len(DATA))
    with pytest.raises(ShortRead, match=f"s3://{local_bucket}/key ends") as failure:
        await bulk.get(target, transfer(memory, start))
    assert (failure.value.bucket, failure.value.key) == (local_bucket, "key")
    assert failure.value.request_id
    assert memory.untouched


async def test_the_whole_object_where_a_range_was_asked_for(
    bulk: Bulk, local_bucket: str, local_endpoint: LocalEndpoint
) -> None:
    target = ObjectId(local_bucket, "key")
    await bulk.put(target, payload(DATA), ANYTHING)
    local_endpoint.add_fault(Fault(FaultKind.WHOLE_OBJECT, "GetObject", count=None))
    memory = Guarded(len(DATA))
    await bulk.get(target, transfer(memory, 0))
    assert memory.view == DATA
    for start in (0, 100):
        part = Guarded(100)
        with pytest.raises(RemoteProtocolError):
            await bulk.get(target, transfer(part, start))
        assert part.untouched


@pytest.mark.parametrize("kind", [FaultKind.BARE_RANGE, FaultKind.WHOLE_CHECKSUM])
async def test_ranges_as_sloppy_stores_answer_them(
    bulk: Bulk, local_bucket: str, local_endpoint: LocalEndpoint, kind: FaultKind
) -> None:
    target = ObjectId(local_bucket, "key")
    await bulk.put(target, payload(DATA), ANYTHING)
    local_endpoint.add_fault(Fault(kind, "GetObject", count=None))
    memory = Guarded(5000)
    await bulk.get(target, transfer(memory, 100))
    assert memory.view == DATA[100:5100]
    assert memory.intact
    assert local_endpoint.stats().faults == 1


async def test_bodies_do_not_come_in_chunks(bulk: Bulk, local_bucket: str, local_endpoint: LocalEndpoint) -> None:
    """With a length, and checksums in headers: several stores take nothing else, or store the chunks' framing."""
    local_endpoint.add_fault(Fault(FaultKind.REFUSE_CHUNKED, count=None))
    target = ObjectId(local_bucket, "key")
    await bulk.put(target, payload(DATA), ANYTHING)
    assert (await bulk.get_whole(target))[0] == DATA


async def test_missing(bulk: Bulk, local_bucket: str) -> None:
    with pytest.raises(NotFound) as failure:
        await bulk.get_whole(ObjectId(local_bucket, "missing"))
    assert (failure.value.code, failure.value.key, failure.value.status) == ("NoSuchKey", "missing", 404)
    assert failure.value.request_id
    with pytest.raises(NotFound, match="check its name"):
        await bulk.put(ObjectId("no-such-bucket", "key"), payload(b"x"), ANYTHING)


async def test_conditional_writes(bulk: Bulk, local_bucket: str) -> None:
    target = ObjectId(local_bucket, "key")
    first = await bulk.put(target, payload(b"1"), NOTHING)
    with pytest.raises(PreconditionFailed):
        await bulk.put(target, payload(b"2"), NOTHING)
    with pytest.raises(PreconditionFailed):
        await bulk.put(target, payload(b"2"), Replaces(etag="0" * 32))
    await bulk.put(target, payload(b"2"), Replaces(etag=first.etag))
    assert (await bulk.get_whole(target))[0] == b"2"


async def test_damage_on_the_way_out_is_refused(bulk: Bulk, local_bucket: str, local_endpoint: LocalEndpoint) -> None:
    local_endpoint.add_fault(Fault(FaultKind.FLIP_BIT, "PutObject", after_bytes=3))
    with pytest.raises(ServiceError):
        await bulk.put(ObjectId(local_bucket, "key"), payload(DATA), ANYTHING)
    with pytest.raises(NotFound):
        await bulk.get_whole(ObjectId(local_bucket, "key"))


async def test_parts(bulk: Bulk, client: S3Client, local_bucket: str) -> None:
    target = ObjectId(local_bucket, "parts")
    upload_id = await client.control.create_upload(target, checksums=True)
    answers: list[str] = []
    part = PartTransfer(upload_id, 1, payload(DATA[:5], DATA[5:]))
    part.on_answer = lambda: answers.append(part.etag)
    await bulk.upload_part(target, part)
    assert part.etag
    assert answers == [part.etag]
    with pytest.raises(NotFound):
        await bulk.upload_part(target, PartTransfer("no-such-upload", 1, payload(DATA)))
    await client.control.abort_upload(target, upload_id)


async def test_parts_whose_etags_a_proxy_made_weak(
    bulk: Bulk, client: S3Client, local_bucket: str, local_endpoint: LocalEndpoint
) -> None:
    target = ObjectId(local_bucket, "parts")
    upload_id = await client.control.create_upload(target, checksums=True)
    local_endpoint.add_fault(Fault(FaultKind.WEAK_ETAG, "UploadPart"))
    part = PartTransfer(upload_id, 1, payload(DATA))
    await bulk.upload_part(target, part)
    await client.control.complete_upload(target, upload_id, [UploadedPart(1, part.etag)], crc32=crc32(DATA))
    assert (await bulk.get_whole(target))[0] == DATA


@pytest.mark.parametrize(
    ("fault", "kind"),
    [
        (Fault(FaultKind.ERROR, status=503, code="SlowDown"), Throttled),
        (Fault(FaultKind.ERROR, status=500, code="InternalError"), ServiceError),
        (Fault(FaultKind.ERROR, status=403, code="AccessDenied"), AccessDenied),
        (Fault(FaultKind.RESET, after_bytes=None, count=2), TransportError),
        (Fault(FaultKind.END_EARLY, after_bytes=None, count=2), TransportError),
        (Fault(FaultKind.END_EARLY, after_bytes=1000), ReadError),
        (Fault(FaultKind.RESET, after_bytes=1000), ReadError),
    ],
)
# two of those that lose a connection: the first may meet an idle one, which is replaced in silence
async def test_faults_have_types(
    bulk: Bulk, local_bucket: str, local_endpoint: LocalEndpoint, fault: Fault, kind: type[AiockptError]
) -> None:
    target = ObjectId(local_bucket, "key")
    await bulk.put(target, payload(DATA), ANYTHING)
    local_endpoint.add_fault(fault)
    memory = Guarded(len(DATA))
    with pytest.raises(kind, match=f"s3://{local_bucket}/key") as failure:
        await bulk.get(target, transfer(memory, 0))
    error = failure.value
    assert isinstance(error, kind)
    assert isinstance(error, S3Exception)
    assert (error.bucket, error.key) == (local_bucket, "key")
    was_answered = fault.kind is FaultKind.ERROR or fault.after_bytes is not None
    assert bool(error.request_id) == was_answered
    assert (f"request {error.request_id}" in str(error)) == was_answered
    assert memory.intact


async def test_what_the_service_asks_for_is_in_the_error(
    bulk: Bulk, client: S3Client, local_bucket: str, local_endpoint: LocalEndpoint
) -> None:
    target = ObjectId(local_bucket, "key")
    local_endpoint.add_fault(Fault(FaultKind.ERROR, count=2, retry_after_s=7))
    for attempt in (bulk.get_whole(target), client.control.head(target)):
        with pytest.raises(Throttled) as failure:
            await attempt
        assert failure.value.retry_after_s == 7


async def test_a_stall(local_config: S3ClientConfig, local_bucket: str, local_endpoint: LocalEndpoint) -> None:
    target = ObjectId(local_bucket, "key")
    async with S3Client(local_config.merged(stall_timeout_s=0.2), None) as client:
        for bulk in (client._direct, client._fallback):
            await bulk.put(target, payload(DATA), ANYTHING)
            local_endpoint.add_fault(Fault(FaultKind.STALL, "GetObject", after_bytes=1000))
            with pytest.raises(TransportTimeout):
                await bulk.get(target, transfer(Guarded(len(DATA)), 0))


# ---- answers to a range request


def head(status: int = 206, **headers: str) -> ResponseHead:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ResponseHead(status, "", named, keep_alive=True)


def wanted(etag: str = "e", landed: int = 0) -> RangeTransfer:
    """Bytes 100 to 200, of which some have landed."""
    landing = Landing([memoryview(bytearray(100))])
    landing.copy_in(memoryview(bytes(landed)))
    return RangeTransfer(ByteRange(100, 200), landing, Pin(etag))


@pytest.mark.parametrize(
    ("answered", "etag"),
    [
        (head(content_range="bytes 100-199/1000", content_length="100", etag='"e"'), "e"),
        (head(content_range="bytes 100-199/*", etag="e"), "e"),
        (head(content_range="bytes 100-199/1000"), "e"),  # a server that sends no ETag
        (head(200, content_range="bytes 100-199/1000", etag='"e"'), "e"),
        (head(200, content_length="100", etag='"e"'), "e"),  # just the range, but status 200
    ],
)
def test_answers_that_are_right(answered: ResponseHead, etag: str) -> None:
    moved = wanted()
    check_range_answer(answered, SOURCE, moved)
    assert moved.etag == etag


def test_the_first_answer_names_the_object() -> None:
    """Also for those that share its pin."""
    moved = wanted(etag="")
    other = wanted(etag="")
    other.pin = moved.pin
    check_range_answer(head(content_range="bytes 100-199/1000", etag='"new"'), SOURCE, moved)
    assert moved.etag == other.etag == "new"
    with pytest.raises(ObjectChanged):
        check_range_answer(head(content_range="bytes 100-199/1000", etag='"newer"'), SOURCE, other)


def test_of_two_first_answers_at_once_one_names_the_object(monkeypatch: pytest.MonkeyPatch) -> None:
    """On two loop threads: the other one's comes when this one has been found right, but for that."""
    moved = wanted(etag="")

    def late(text: str) -> tuple[ByteRange, int | None]:
        moved.pin.settle("other")
        return parse_content_range(text)

    monkeypatch.setattr("aiockpt.s3.bulk.parse_content_range", late)
    with pytest.raises(ObjectChanged):
        check_range_answer(head(content_range="bytes 100-199/1000", etag='"e"'), SOURCE, moved)
    assert moved.etag == "other"
    check_range_answer(head(content_range="bytes 100-199/1000", etag='"other"'), SOURCE, moved)


def test_a_pin_is_settled_once() -> None:
    pin = Pin()
    assert pin.settle("")
    assert [pin.settle(etag) for etag in ("a", "b", "", "a")] == [True, False, True, True]
    assert pin.etag == "a"


def test_a_hedge_lands_only_what_is_proven_the_same() -> None:
    moved = wanted(etag="", landed=30)
    hedge = moved.hedge()
    assert hedge.rest == moved.rest == ByteRange(130, 200)
    without = head(content_range="bytes 130-199/1000")
    check_range_answer(without, SOURCE, moved)
    with pytest.raises(RemoteProtocolError, match="without ETag"):
        check_range_answer(without, SOURCE, hedge)
    check_range_answer(head(content_range="bytes 130-199/1000", etag='"e"'), SOURCE, hedge)
    with pytest.raises(ObjectChanged):
        check_range_answer(head(content_range="bytes 130-199/1000", etag='"other"'), SOURCE, moved)


def test_an_answer_is_told_once_it_has_been_found_right() -> None:
    told: list[int] = []
    moved = wanted()
    moved.on_answer = lambda: told.append(1)
    with pytest.raises(ObjectChanged):
        check_range_answer(head(content_range="bytes 100-199/1000", etag='"other"'), SOURCE, moved)
    assert told == []
    check_range_answer(head(content_range="bytes 100-199/1000", etag='"e"'), SOURCE, moved)
    assert told == [1]


@pytest.mark.parametrize(
    ("answered", "kind"),
    [
        (head(content_range="bytes 100-199/1000", etag='"other"'), ObjectChanged),
        (head(content_range="bytes 100-149/150", etag='"e"'), ShortRead),
        (head(content_range="bytes 0-99/1000"), RemoteProtocolError),
        (head(content_range="bytes 101-199/1000"), RemoteProtocolError),
        (head(content_range="bytes 100-200/1000"), RemoteProtocolError),
        (head(content_range="bytes x-y/z"), RemoteProtocolError),
        (head(content_length="100"), RemoteProtocolError),
        (head(200, content_length="1000"), RemoteProtocolError),
        (head(200), RemoteProtocolError),
    ],
)
def test_answers_that_are_wrong(answered: ResponseHead, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=r"s3://bucket/key|Content-Range"):
        check_range_answer(answered, SOURCE, wanted())


def test_the_rest_of_a_range() -> None:
    moved = wanted(landed=40)
    assert moved.rest == ByteRange(140, 200)
    check_range_answer(head(content_range="bytes 140-199/1000"), SOURCE, moved)
    with pytest.raises(RemoteProtocolError):
        check_range_answer(head(content_range="bytes 100-199/1000"), SOURCE, moved)


# ---- the direct path against a scripted server

Respond = Callable[[bytes], bytes]


async def against(respond: Respond, use: Callable[[DirectBulk], Awaitable[Any]], **config: Any) -> Any:
    async def script(peer: Peer) -> None:
        while True:
            await peer.say(respond(await peer.request()))

    async with server(script) as endpoint:
        settings = S3ClientConfig(endpoint_url=f"http://127.0.0.1:{endpoint.port}", **config)
        async with S3Client(settings, "us-east-1") as client:
            return await use(client._direct)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("status", ["204 No Content", "202 Accepted", "201 Created", "203 Whatever", "299 Odd"])
async def test_a_success_without_the_bytes_is_none(status: str) -> None:
    memory = Guarded(10)

    def respond(_: bytes) -> bytes:
        return f"HTTP/1.1 {status}\r\n\r\n".encode() if status.startswith("204") else answer(bytes(10), status)

    with pytest.raises(RemoteProtocolError, match=status[:3]):
        await against(respond, lambda bulk: bulk.get(SOURCE, transfer(memory, 0)))
    assert memory.untouched


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("body", [b"", b"<html>busy</html>", b"\xff\x00", b"<Error><Code>SlowDown</Code></Error>"])
async def test_any_error_document(body: bytes) -> None:
    with pytest.raises(Throttled) as failure:
        await against(lambda _: answer(body, "503 Busy"), lambda bulk: bulk.get_whole(SOURCE))
    assert failure.value.status == 503


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize(
    ("header", "damaged"), [("", False), ("NhCmhg==", False), ("AAAAAA==", True), ("AAAAAA==-2", False)]
)
async def test_a_whole_object_is_compared_with_its_stored_checksum(header: str, damaged: bool) -> None:
    def respond(request: bytes) -> bytes:
        assert b"x-amz-checksum-mode: ENABLED" in request
        return answer(b"hello", f"200 OK\r\nx-amz-checksum-crc32: {header}" if header else "200 OK")

    expectation = pytest.raises(ChecksumMismatch, match=SOURCE.uri) if damaged else nullcontext()
    with expectation:
        await against(respond, lambda bulk: bulk.get_whole(SOURCE))


@pytest.mark.usefixtures("credentials")
async def test_a_part_without_an_etag() -> None:
    async def use(bulk: DirectBulk) -> None:
        await bulk.upload_part(SOURCE, PartTransfer("id", 1, payload()))

    with pytest.raises(RemoteProtocolError, match="ETag") as failure:
        await against(lambda _: answer(b"", "200 OK", "x-amz-request-id: 7"), use)
    assert (failure.value.bucket, failure.value.key, failure.value.request_id) == ("bucket", "key", "7")


class Regions:
    """A bucket that is in another region than asked."""

    def __init__(self, status: str, *, in_header: bool) -> None:
        self.status = status
        self.in_header = in_header
        self.heads: list[bytes] = []

    def respond(self, head: bytes) -> bytes:
        self.heads.append(head)
        if b"/eu-west-3/s3/" in head:
            return answer(b"whole")
        code = "AuthorizationHeaderMalformed" if self.status.startswith("400") else "PermanentRedirect"
        headers = ["x-amz-bucket-region: eu-west-3"] if self.in_header else []
        region = b"" if self.in_header else b"<Region>eu-west-3</Region>"
        return answer(b"<Error><Code>" + code.encode() + b"</Code>" + region + b"</Error>", self.status, *headers)


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("status", ["301 Moved", "307 Moved", "400 Bad Request"])
@pytest.mark.parametrize("in_header", [False, True])
async def test_a_bucket_in_another_region(status: str, in_header: bool) -> None:
    regions = Regions(status, in_header=in_header)

    async def use(bulk: DirectBulk) -> None:
        several = await asyncio.gather(*(bulk.get_whole(SOURCE) for _ in range(8)))  # all are redirected at once
        assert {body for body, _ in several} == {b"whole"}
        asked = len(regions.heads)
        await bulk.get_whole(SOURCE)
        assert len(regions.heads) == asked + 1  # known from now on

    await against(regions.respond, use)


async def test_a_whole_object_may_be_larger_than_what_is_buffered_unasked(
    bulk: Bulk, local_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connection, "MAX_BUFFERED_BYTES", len(DATA) - 1)
    target = ObjectId(local_bucket, "metadata-of-many-ranks")
    await bulk.put(target, payload(DATA), ANYTHING)
    assert (await bulk.get_whole(target))[0] == DATA


@pytest.mark.usefixtures("credentials")
async def test_a_redirect_in_a_circle_ends() -> None:
    def respond(_: bytes) -> bytes:
        return answer(b"", "301 Moved", "x-amz-bucket-region: us-east-1")

    with pytest.raises(WrongRegion):
        await against(respond, lambda bulk: bulk.get_whole(SOURCE))


async def test_credentials_are_sent_and_named_nowhere(credentials: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("DEBUG", "aiockpt")
    heads: list[bytes] = []

    def respond(head: bytes) -> bytes:
        heads.append(head)
        return answer(b"<Error><Code>SignatureDoesNotMatch</Code></Error>", "403 Forbidden")

    with pytest.raises(AccessDenied) as failure:
        await against(respond, lambda bulk: bulk.get_whole(SOURCE))
    signature = heads[0].split(b"Signature=")[1].split()[0].decode()
    shown = f"{failure.value!s} {failure.value!r} {failure.value.__dict__} {caplog.text}"
    for secret in (ACCESS_KEY, SECRET_KEY, signature, "AWS4-HMAC"):
        assert secret not in shown
