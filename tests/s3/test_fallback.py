"""What both bulk paths do is in ``test_bulk``; here is what only the fallback may be asked."""

from __future__ import annotations

import pytest

from aiockpt.config import S3ClientConfig
from aiockpt.crc import crc32
from aiockpt.errors import ReadError
from aiockpt.model import ANYTHING, ByteRange, ObjectId
from aiockpt.s3.bulk import Payload, RangeTransfer
from aiockpt.s3.client import S3Client
from aiockpt.testing import Fault, FaultKind, LocalEndpoint
from transport.scripted import Guarded

DATA = bytes(range(256)) * 64


async def test_a_body_that_ends_early(
    local_config: S3ClientConfig, local_endpoint: LocalEndpoint, local_bucket: str
) -> None:
    target = ObjectId(local_bucket, "key")
    async with S3Client(local_config, None) as client:
        bulk = client._fallback
        await bulk.put(target, Payload([memoryview(DATA)], len(DATA), crc32(DATA)), ANYTHING)
        local_endpoint.add_fault(Fault(FaultKind.WRONG_LENGTH, "GetObject", length_error=100))
        memory = Guarded(len(DATA))
        with pytest.raises(Exception) as failure:  # noqa: PT011  # two lengths that contradict each other
            await bulk.get(target, RangeTransfer(ByteRange(0, len(DATA)), memory.landing()))
        assert isinstance(failure.value, ReadError)
        assert memory.intact


@pytest.mark.parametrize("checksum", ["crc32", "off"])
async def test_checksums_travel_in_headers(
    checksum: str, local_config: S3ClientConfig, local_endpoint: LocalEndpoint, local_bucket: str
) -> None:
    target = ObjectId(local_bucket, "key")
    async with S3Client(local_config.merged(checksum=checksum), None) as client:
        wrong = Payload([memoryview(DATA)], len(DATA), crc32(DATA) ^ 1)
        for bulk in (client._fallback, client._direct):
            if checksum == "off":
                await bulk.put(target, wrong, ANYTHING)
            else:
                with pytest.raises(Exception, match=r"BadDigest|XAmzContentChecksumMismatch"):
                    await bulk.put(target, wrong, ANYTHING)
