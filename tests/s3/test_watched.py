from __future__ import annotations

from collections import Counter

import pytest

from aiockpt.config import S3ClientConfig
from aiockpt.crc import crc32
from aiockpt.errors import AiockptError, NotFound
from aiockpt.model import ANYTHING, ByteRange, ObjectId
from aiockpt.observe.exchange import Exchange, watching
from aiockpt.s3.bulk import Payload, RangeTransfer
from aiockpt.s3.client import S3Client
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from aiockpt.transport.landing import Landing

DATA = bytes(range(256)) * 64


class Seen(list[Exchange]):
    """The exchanges that have ended."""

    def began(self, exchange: Exchange) -> None:
        assert exchange.asked_s > 0

    def ended(self, exchange: Exchange) -> None:
        self.append(exchange)


async def test_what_the_endpoint_counts_is_seen(
    local_config: S3ClientConfig, local_endpoint: LocalEndpoint, local_bucket: str
) -> None:
    target, seen = ObjectId(local_bucket, "a/key"), Seen()
    async with S3Client(local_config, None) as client:
        with watching(seen):
            for bulk in (client._direct, client._fallback):
                await bulk.put(target, Payload([memoryview(DATA)], len(DATA), crc32(DATA)), ANYTHING)
                memory = memoryview(bytearray(100))
                await bulk.get(target, RangeTransfer(ByteRange(50, 150), Landing([memory])))
                await bulk.get_whole(target)
            upload_id = await client.control.create_upload(target, checksums=False)
            await client.control.abort_upload(target, upload_id)
            await client.control.list_page(ObjectId(local_bucket, "a/"), "", "")
            await client.control.bucket_region(local_bucket)
            await client.control.head(target)
    assert Counter(exchange.operation for exchange in seen) == local_endpoint.stats().requests
    assert {exchange.target for exchange in seen} == {target, ObjectId(local_bucket, "a/"), ObjectId(local_bucket, "")}
    moved = [(e.operation, e.sent_bytes, e.received_bytes) for e in seen if e.operation in {"GetObject", "PutObject"}]
    once = [("PutObject", len(DATA), 0), ("GetObject", 0, 100), ("GetObject", 0, len(DATA))]
    assert moved == once * 2
    assert all(200 <= exchange.status < 300 and not exchange.error for exchange in seen)
    assert all(exchange.ended_s >= exchange.asked_s for exchange in seen)
    assert sum(exchange.ours for exchange in seen) == 3


async def test_our_own_connections_say_more(
    local_config: S3ClientConfig, local_endpoint: LocalEndpoint, local_bucket: str
) -> None:
    target, seen = ObjectId(local_bucket, "key"), Seen()
    async with S3Client(local_config, None) as client:
        with watching(seen):
            await client._direct.put(target, Payload([memoryview(DATA)], len(DATA), crc32(DATA)), ANYTHING)
            memory = memoryview(bytearray(100))
            await client._direct.get(target, RangeTransfer(ByteRange(50, 150), Landing([memory])))
    put, get = seen
    assert (put.span, get.span) == (None, ByteRange(50, 150))
    assert put.connection == get.connection > 0
    for one in seen:
        steps = [one.asked_s, one.granted_s, one.connected_s, one.sent_s, one.first_byte_s, one.ended_s]
        assert steps == sorted(steps)
        assert steps[0] > 0


async def test_failures_are_seen(
    local_config: S3ClientConfig, local_endpoint: LocalEndpoint, local_bucket: str
) -> None:
    target, seen = ObjectId(local_bucket, "nothing"), Seen()
    async with S3Client(local_config, None) as client:
        with watching(seen):
            for work in (client.control.head, client._direct.get_whole, client._fallback.get_whole):
                with pytest.raises(NotFound):
                    await work(target)
            for work in (client.control.head, client._direct.get_whole):
                # two, since what breaks an idle connection is sent again on a fresh one, unseen
                local_endpoint.add_fault(Fault(FaultKind.RESET, after_bytes=None, count=2))
                with pytest.raises(AiockptError):
                    await work(target)
    assert [(exchange.status, bool(exchange.error)) for exchange in seen] == [(404, False)] * 3 + [(0, True)] * 2
