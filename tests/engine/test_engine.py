"""The basic operations, on the local endpoint and on servers that nobody here wrote."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from array import array
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import pytest

from aiockpt.config import S3ClientConfig
from aiockpt.engine.download import Read
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import (
    AccessDenied,
    ChecksumMismatch,
    ConfigError,
    ConnectError,
    NotFound,
    ObjectChanged,
    PreconditionFailed,
    S3Exception,
    Throttled,
    TLSError,
)
from aiockpt.model import ANYTHING, NOTHING, ByteRange, MiB, ObjectId
from aiockpt.plan.parts import LARGE_PART_BYTES
from aiockpt.s3.control import ListedObject
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from servers.base import S3Server
from servers.certificate import Certificate

DATA = random.Random(11).randbytes(6 * MiB)
ODD_KEYS = {
    "long/" + "k" * 895: "900 characters",
    "a/../b": "dots within",
    "../up": "dots at the start",
    "a/./b": "a dot",
    "a//b": "an empty folder",
    "/rooted": "a slash at the start",
    "a/": "a slash at the end",
    "question?mark&amp=1": "like a query",
    "hash#mark": "like a fragment",
    "back\\slash": "a backslash",
    'quote"<&>': "what XML escapes",
    "tab\tand\x01": "control characters",
    "%2e%2e/escaped": "escaped dots",
    "emoji-\U0001f9ea": "beyond 16 bits",
    " spaces around ": "spaces around",
}
KEYS = ["plain", "with space", "a+b", "100%", "100%25", "ünïcode-鍵", "a/b/c", "~.-_!*'()"]


@pytest.fixture
async def elsewhere(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[LoopEngine]:
    for name, value in s3_server.environ().items():
        monkeypatch.setenv(name, value)
    async with LoopEngine(S3ClientConfig(part_size=5 * MiB, backoff_base_s=0.01)) as engine:
        yield engine


async def keys(engine: LoopEngine, prefix: ObjectId, delimiter: str = "") -> list[str]:
    rows = [row async for row in engine.list_objects(prefix, delimiter)]
    return sorted(row.key if isinstance(row, ListedObject) else row for row in rows)


async def test_elsewhere(elsewhere: LoopEngine, bucket: str, s3_server: S3Server) -> None:
    engine = elsewhere
    for key in KEYS:
        target = ObjectId(bucket, key)
        assert not await engine.exists(target)
        info = await engine.put(target, [key.encode(), DATA[:100]])
        assert info.size == len(key.encode()) + 100
        assert (await engine.head(target)).size == info.size
        assert await engine.get(target) == key.encode() + DATA[:100]
        assert (await engine.get_small(target))[0] == key.encode() + DATA[:100]
    assert await keys(engine, ObjectId(bucket, "")) == sorted(KEYS)
    assert await keys(engine, ObjectId(bucket, "a"), "/") == ["a+b", "a/"]

    for key in KEYS:
        copy = ObjectId(bucket, f"copies/{key}")
        await engine.copy(ObjectId(bucket, key), copy)
        assert await engine.get(copy) == key.encode() + DATA[:100]
        for _ in range(2):
            await engine.delete(copy)
        assert not await engine.exists(copy)

    once = ObjectId(bucket, "once")
    await engine.put(once, [b"first"], NOTHING)
    if s3_server.keeps_if_none_match:
        with pytest.raises(PreconditionFailed):
            await engine.put(once, [b"second"], NOTHING)
        assert await engine.get(once) == b"first"


@pytest.mark.parametrize("key", ODD_KEYS, ids=ODD_KEYS.values())
async def test_odd_keys_elsewhere(elsewhere: LoopEngine, bucket: str, key: str) -> None:
    """Either the object is there, or the error names it; no other one is touched.

    rclone refuses names of more than 255 characters with a 500, and lists a key without its last slash.
    """
    engine, target, beside = elsewhere, ObjectId(bucket, key), ObjectId(bucket, "beside")
    await engine.put(beside, [b"beside"])
    try:
        await engine.put(target, [DATA[:1000]])
    except S3Exception as error:
        assert (error.bucket, error.key) == (bucket, key)  # noqa: PT017  # one of two outcomes
    else:
        assert await engine.get(target) == DATA[:1000]
        assert (await engine.head(target)).size == 1000
        assert {each.rstrip("/") for each in await keys(engine, ObjectId(bucket, ""))} == {"beside", key.rstrip("/")}
        await engine.delete(target)
        assert not await engine.exists(target)
    assert await engine.get(beside) == b"beside"


async def test_metadata_of_mixed_case_elsewhere(elsewhere: LoopEngine, bucket: str) -> None:
    """Stores may change the case of metadata's keys: they are sent, and what is read never depends on them."""
    config = elsewhere.config.merged(extra_args={"Metadata": {"Mixed-Case": "Kept"}})
    async with LoopEngine(config) as engine:
        for key, data in {"one-put": DATA[:1000], "parts": DATA}.items():
            target = ObjectId(bucket, key)
            await engine.put(target, [data])
            assert await engine.get(target) == data
            client = await engine.client._session.client()
            kept = (await client.head_object(Bucket=bucket, Key=key))["Metadata"]
            assert {name.lower(): text for name, text in kept.items() if "ase" in name} == {"mixed-case": "Kept"}


async def test_large_objects_elsewhere(elsewhere: LoopEngine, bucket: str) -> None:
    engine, target = elsewhere, ObjectId(bucket, "large +%")
    info = await engine.put(target, [DATA[: 3 * MiB], DATA[3 * MiB :]])
    assert info.size == len(DATA)
    memory = bytearray(MiB + 1000)
    spans = [ByteRange(5 * MiB - 500, 5 * MiB + 500), ByteRange(MiB, 2 * MiB)]
    views = [memoryview(memory)[:1000], memoryview(memory)[1000:]]
    await engine.fetch_into([Read(target, span, view) for span, view in zip(spans, views, strict=True)])
    assert memory == DATA[5 * MiB - 500 : 5 * MiB + 500] + DATA[MiB : 2 * MiB]
    uploads = [row async for row in engine.pending_uploads(ObjectId(bucket, ""))]
    assert uploads == []


async def test_refusals_elsewhere(
    elsewhere: LoopEngine, bucket: str, s3_server: S3Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(NotFound):
        await elsewhere.get(ObjectId(bucket, "missing"))
    with pytest.raises(NotFound):
        await elsewhere.put(ObjectId("no-such-bucket-here", "key"), [b"x"])
    if s3_server.checks_signature:
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
        async with LoopEngine(elsewhere.config) as engine:
            for attempt in (engine.put(ObjectId(bucket, "key"), [b"x"]), engine.head(ObjectId(bucket, "key"))):
                with pytest.raises(AccessDenied):
                    await attempt


# ---- on the local endpoint


@pytest.mark.parametrize(
    ("views", "whole"),
    [
        ([], b""),
        ([b""], b""),
        ([b"a", bytearray(b"b"), memoryview(b"c")], b"abc"),
        ([memoryview(array("d", [1.0, 2.0]))], array("d", [1.0, 2.0]).tobytes()),
        ([memoryview(array("i", range(100_000))), b"x"], array("i", range(100_000)).tobytes() + b"x"),
        ([memoryview(bytes(12)).cast("B", (3, 4))], bytes(12)),
    ],
)
async def test_put_takes_any_memory(engine: LoopEngine, local_bucket: str, views: Sequence[Any], whole: bytes) -> None:
    target = ObjectId(local_bucket, "key")
    assert (await engine.put(target, views)).size == len(whole)
    assert await engine.get(target) == whole


async def test_requests_are_larger_where_the_thread_is_the_bound(engine: LoopEngine) -> None:
    usual = engine.config.part_size
    most = LARGE_PART_BYTES

    def size(total_bytes: int | None, upload_bytes: int | None = None) -> int:
        return engine.part_sizes(total_bytes, upload_bytes=upload_bytes).at(1)

    assert size(100 * usual) == usual
    engine.put_control.busy = engine.get_control.busy = True
    assert [size(times * usual) for times in (1, 16, 24, 32)] == [usual, usual, usual * 3 // 2, 2 * usual]
    assert size(16 * most) == size(100 * most) == most
    assert size(4 * usual, upload_bytes=24 * usual) == usual * 3 // 2
    assert engine.part_sizes(100 * most).copied == 2 * usual
    assert engine.part_sizes(100 * most, in_background=True).copied > most
    assert engine.request_bytes(100 * usual) == 4 * usual
    assert size(None) == usual


async def test_many_tasks_share_an_engine(engine: LoopEngine, local_bucket: str) -> None:
    async def there_and_back(number: int) -> None:
        target = ObjectId(local_bucket, f"k{number}")
        data = DATA[number : number + 100_000]
        await engine.put(target, [data])
        assert await engine.get(target) == data

    await asyncio.gather(*(there_and_back(number) for number in range(30)))


async def test_an_object_replaced_between_its_size_and_its_bytes(
    engine: LoopEngine, local_bucket: str, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ObjectId(local_bucket, "key")
    await engine.put(target, [b"short"])
    real = engine.client.control.head

    async def head_then_replace(which: ObjectId) -> Any:
        info = await real(which)
        local_endpoint.replace_object(local_bucket, "key", b"something longer")
        return info

    monkeypatch.setattr(engine.client.control, "head", head_then_replace)
    with pytest.raises(ObjectChanged):
        await engine.get(target)


async def test_small_objects_damaged_on_the_way_are_fetched_again(
    engine: LoopEngine, local_bucket: str, local_endpoint: LocalEndpoint
) -> None:
    target = ObjectId(local_bucket, "key")
    await engine.put(target, [DATA[:1000]])
    for at in (3, 500):
        local_endpoint.add_fault(Fault(FaultKind.FLIP_BIT, "GetObject", after_bytes=at, skip=at == 500))
    assert (await engine.get_small(target))[0] == DATA[:1000]
    assert local_endpoint.stats().faults == 2


async def test_small_objects_damaged_at_rest_are_fetched_twice(
    engine: LoopEngine, local_bucket: str, local_endpoint: LocalEndpoint
) -> None:
    target = ObjectId(local_bucket, "key")
    await engine.put(target, [DATA[:1000]])
    local_endpoint.flip_bit(local_bucket, "key", 3)
    with pytest.raises(ChecksumMismatch, match="where it is stored") as failure:
        await engine.get_small(target)
    assert (failure.value.attempts, failure.value.at_rest) == (2, True)
    assert target.uri in str(failure.value)


@pytest.mark.parametrize(
    "operation", ["HeadObject", "DeleteObject", "CopyObject", "ListObjectsV2", "ListMultipartUploads"]
)
async def test_control_operations_are_tried_again(
    engine: LoopEngine, local_bucket: str, local_endpoint: LocalEndpoint, operation: str
) -> None:
    target = ObjectId(local_bucket, "key")
    await engine.put(target, [b"x"])
    local_endpoint.add_fault(Fault(FaultKind.ERROR, operation, count=2))
    await engine.copy(target, ObjectId(local_bucket, "copy"))
    assert await keys(engine, ObjectId(local_bucket, "")) == ["copy", "key"]
    assert [row async for row in engine.pending_uploads(ObjectId(local_bucket, ""))] == []
    assert await engine.exists(target)
    await engine.delete(target)
    local_endpoint.add_fault(Fault(FaultKind.ERROR, operation, count=None))
    with pytest.raises(Throttled) as failure:
        copy = ObjectId(local_bucket, "copy")
        await engine.head(copy)
        await engine.copy(copy, target)
        await engine.delete(copy)
        await keys(engine, target)
        _ = [row async for row in engine.pending_uploads(target)]
    assert failure.value.attempts == 4


async def test_a_missing_bucket(engine: LoopEngine) -> None:
    nowhere = ObjectId("no-such-bucket", "key")
    for attempt in (engine.get(nowhere), engine.put(nowhere, [b"x"]), engine.exists(nowhere), engine.delete(nowhere)):
        with pytest.raises(NotFound, match="no-such-bucket"):
            await attempt


async def test_expired_credentials_are_renewed(
    engine: LoopEngine, local_bucket: str, local_endpoint: LocalEndpoint, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SESSION_TOKEN", "fresh")
    for operation in ("PutObject", "GetObject", "HeadObject"):
        local_endpoint.add_fault(Fault(FaultKind.ERROR, operation, status=400, code="ExpiredToken"))
    target = ObjectId(local_bucket, "key")
    await engine.put(target, [b"x"], ANYTHING)
    assert await engine.get(target) == b"x"
    assert (await engine.client._session.credentials()).token == "fresh"


@pytest.mark.parametrize("wrong", [{"part_size": MiB}, {"max_attempts": 0}, {"part_size": 6 * 1024 * MiB}])
def test_settings_that_cannot_work(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        LoopEngine(S3ClientConfig(**wrong))


async def test_an_endpoint_that_is_not_there(config: S3ClientConfig, unused_tcp_port: int) -> None:
    url = f"http://127.0.0.1:{unused_tcp_port}"
    target = ObjectId("bucket", "key")
    async with LoopEngine(config.merged(endpoint_url=url, max_attempts=2)) as engine:
        for attempt in (engine.get(target), engine.put(target, [b"x"]), engine.get_small(target)):
            with pytest.raises(ConnectError, match=r"s3://bucket/key.*[Cc]heck the endpoint URL") as failure:
                await attempt
            assert failure.value.attempts == 2


async def test_no_connection_is_left(config: S3ClientConfig, local_bucket: str, local_endpoint: LocalEndpoint) -> None:
    of_others = local_endpoint.stats().connections_current  # of engines that other tests left warm
    async with LoopEngine(config) as engine:
        await engine.put(ObjectId(local_bucket, "key"), [DATA])
    for _ in range(100):
        if local_endpoint.stats().connections_current <= of_others:
            return
        await asyncio.sleep(0.01)
    pytest.fail("connections are open")


async def test_the_parts_of_an_upload_page_by_page(
    engine: LoopEngine, local_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = ObjectId(local_bucket, "key")
    control = engine.client.control
    upload_id = await control.create_upload(target, checksums=False)
    assert await engine.upload_parts(target, upload_id) == []
    await engine.put(ObjectId(local_bucket, "source"), [DATA])
    for number in (1, 2, 5):
        await control.copy_part(
            ObjectId(local_bucket, "source"), target, upload_id, number, ByteRange(0, number * 100), ""
        )
    client = await engine.client._session.client()
    real = client.list_parts

    async def one_at_a_time(**arguments: Any) -> Any:
        return await real(MaxParts=1, **arguments)

    monkeypatch.setattr(client, "list_parts", one_at_a_time)
    assert [(part.number, part.size) for part in await engine.upload_parts(target, upload_id)] == [
        (1, 100),
        (2, 200),
        (5, 500),
    ]
    for _ in range(2):  # what is gone counts as dropped
        await engine.abort_upload(target, upload_id)
    with pytest.raises(NotFound):
        await engine.upload_parts(target, upload_id)


@pytest.mark.parametrize("said", [{"IsTruncated": True}, {}], ids=["truncated", "not said"])
async def test_a_listing_of_parts_that_does_not_move_on_ends(
    engine: LoopEngine, local_bucket: str, monkeypatch: pytest.MonkeyPatch, said: dict[str, Any]
) -> None:
    async def always_the_same(**arguments: Any) -> Any:
        return {"Parts": [{"PartNumber": 1, "Size": 3}], **said}

    monkeypatch.setattr(await engine.client._session.client(), "list_parts", always_the_same)
    assert [part.number for part in await engine.upload_parts(ObjectId(local_bucket, "key"), "id")] == [1]


async def test_a_listing_of_parts_that_does_not_say_whether_it_is_truncated(
    engine: LoopEngine, local_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The youngest part may be on the next page, and a sweep goes by it."""

    async def two_at_a_time(**arguments: Any) -> Any:
        after = arguments["PartNumberMarker"]
        return {"Parts": [{"PartNumber": number, "Size": 3} for number in range(after + 1, min(after + 3, 6))]}

    monkeypatch.setattr(await engine.client._session.client(), "list_parts", two_at_a_time)
    listed = await engine.upload_parts(ObjectId(local_bucket, "key"), "id")
    assert [part.number for part in listed] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("page", [1, 2, 1000], ids=["one a page", "two a page", "all, whatever was asked for"])
@pytest.mark.parametrize("says", [True, False], ids=["IsTruncated", "no IsTruncated"])
async def test_listings_of_uploads_whose_pages_are_the_stores_choice(
    engine: LoopEngine, local_bucket: str, monkeypatch: pytest.MonkeyPatch, page: int, says: bool
) -> None:
    """MaxUploads may be ignored, so it is not asked for, and each upload is listed once."""
    control = engine.client.control
    made = [await control.create_upload(ObjectId(local_bucket, f"k{number}"), checksums=False) for number in range(3)]
    client = await engine.client._session.client()
    real = client.list_multipart_uploads

    async def choosy(**arguments: Any) -> Any:
        assert "MaxUploads" not in arguments
        answer = await real(MaxUploads=page, **arguments)
        if not says:
            del answer["IsTruncated"]
        return answer

    monkeypatch.setattr(client, "list_multipart_uploads", choosy)
    listed = [row async for row in engine.pending_uploads(ObjectId(local_bucket, ""))]
    assert [row.upload_id for row in listed] == made
    for row in listed:
        await engine.abort_upload(ObjectId(local_bucket, row.key), row.upload_id)


async def test_a_listing_of_uploads_that_does_not_move_on_ends(
    engine: LoopEngine, local_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def always_the_same(**arguments: Any) -> Any:
        return {"Uploads": [], "IsTruncated": True, "NextKeyMarker": "key", "NextUploadIdMarker": "id"}

    monkeypatch.setattr(await engine.client._session.client(), "list_multipart_uploads", always_the_same)
    assert [row async for row in engine.pending_uploads(ObjectId(local_bucket, ""))] == []


@pytest.mark.parametrize("how", ["get_small", "put", "head", "list"])
async def test_a_certificate_that_is_not_trusted_is_final(
    config: S3ClientConfig, certificate: Certificate, how: str
) -> None:
    """Verification is on unless it is switched off by name, and nothing gets better by trying again."""
    target = ObjectId("bucket", "key")
    with LocalEndpoint(tls_cert=certificate.chain, tls_key=certificate.key) as endpoint:
        untrusting = config.merged(endpoint_url=endpoint.url)
        async with LoopEngine(untrusting) as engine:
            attempts: dict[str, Callable[[], Awaitable[object]]] = {
                "get_small": lambda: engine.get_small(target),
                "put": lambda: engine.put(target, [b"x"]),
                "head": lambda: engine.head(target),
                "list": lambda: keys(engine, target),
            }
            with pytest.raises(TLSError, match=r"s3://bucket/key.*ca_bundle") as failure:
                await attempts[how]()
            assert failure.value.attempts == 1
            assert (failure.value.bucket, failure.value.key) == ("bucket", "key")
        for trusting in (untrusting.merged(ca_bundle=str(certificate.authority)), untrusting.merged(verify_tls=False)):
            async with LoopEngine(trusting) as engine:
                await engine.put(target, [b"x"])
                assert (await engine.head(target)).size == 1


def test_ranks_that_were_forked_do_not_come_back_together() -> None:
    """Also with an engine that was made before the fork: the pauses between retries are drawn anew in each process."""
    script = """
import os
from aiockpt.engine.engine import LoopEngine
from aiockpt.errors import ReadError
from aiockpt.plan.retry import Operation

policy = LoopEngine().attempts._policy
def pauses():
    return [policy.next_delay(ReadError("broke"), Operation.GET, 5, 0.0) for _ in range(3)]
reading, writing = os.pipe()
if not os.fork():
    os.write(writing, repr(pauses()).encode())
    os._exit(0)
os.wait()
assert eval(os.read(reading, 1000)) != pauses()
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=60)
