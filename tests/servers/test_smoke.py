"""Do the servers work, and keep (or break) the rules of S3 that ``S3Server`` says they do?

Asked with aiobotocore alone, so that a failure here is the server's and not ours.
"""

from __future__ import annotations

import base64
import dataclasses
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.client import HTTPConnection
from typing import Any
from urllib.parse import urlsplit

import pytest
from aiobotocore.config import AioConfig
from aiobotocore.session import get_session
from botocore.exceptions import ClientError, SSLError

from aiockpt.model import KiB, MiB
from servers.base import S3Server

SESSION = get_session()  # one for all tests, because it holds the parsed service model
BODY = bytes(range(256)) * 256


@asynccontextmanager
async def s3_client(server: S3Server, **changes: Any) -> AsyncIterator[Any]:
    config = AioConfig(
        s3={"addressing_style": "path"},
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
        retries={"total_max_attempts": 1},
    )
    arguments = dataclasses.replace(server, **changes).client_arguments()
    async with SESSION.create_client(**arguments, config=config) as client:
        yield client


@contextmanager
def refused(status: int, *, if_: bool) -> Iterator[None]:
    """The block ends in an answer with this status if the server keeps the rule, and in success if not."""
    if not if_:
        yield
        return
    with pytest.raises(ClientError) as failure:
        yield
    assert failure.value.response["ResponseMetadata"]["HTTPStatusCode"] == status


def crc32(body: bytes) -> str:
    return base64.b64encode(zlib.crc32(body).to_bytes(4, "big")).decode()


async def upload(client: Any, bucket: str, key: str, parts: list[bytes]) -> None:
    name = {"Bucket": bucket, "Key": key}
    name["UploadId"] = (await client.create_multipart_upload(**name))["UploadId"]
    etags = [
        {
            "PartNumber": number,
            "ETag": (await client.upload_part(**name, PartNumber=number, Body=part))["ETag"],
        }
        for number, part in enumerate(parts, start=1)
    ]
    await client.complete_multipart_upload(**name, MultipartUpload={"Parts": etags})


async def test_put_get_range_and_list(s3_server: S3Server, bucket: str) -> None:
    async with s3_client(s3_server) as client:
        await client.put_object(Bucket=bucket, Key="a/b", Body=BODY)
        answer = await client.get_object(Bucket=bucket, Key="a/b", Range="bytes=100-299")
        assert await answer["Body"].read() == BODY[100:300]
        listing = await client.list_objects_v2(Bucket=bucket, Prefix="a/")
        assert [(entry["Key"], entry["Size"]) for entry in listing["Contents"]] == [("a/b", len(BODY))]


async def test_multipart(s3_server: S3Server, bucket: str) -> None:
    parts = [bytes(5 * MiB), BODY]
    async with s3_client(s3_server) as client:
        await upload(client, bucket, "parts", parts)
        around_the_seam = f"bytes={5 * MiB - 2}-{5 * MiB + 2}"
        answer = await client.get_object(Bucket=bucket, Key="parts", Range=around_the_seam)
        assert await answer["Body"].read() == b"\0\0\0\1\2"


async def test_missing_object(s3_server: S3Server, bucket: str) -> None:
    async with s3_client(s3_server) as client:
        with refused(404, if_=True):
            await client.get_object(Bucket=bucket, Key="missing")


async def test_wrong_secret(s3_server: S3Server) -> None:
    async with s3_client(s3_server, secret_key="wrong") as client:
        with refused(403, if_=s3_server.checks_signature):
            await client.list_buckets()


async def test_wrong_region(s3_server: S3Server) -> None:
    async with s3_client(s3_server, region="eu-west-3") as client:
        with refused(400, if_=s3_server.checks_region):
            await client.list_buckets()  # where a bucket is named, botocore finds its region and tries again


async def test_wrong_checksum_of_an_object(s3_server: S3Server, bucket: str) -> None:
    async with s3_client(s3_server) as client:
        await client.put_object(Bucket=bucket, Key="right", Body=BODY, ChecksumCRC32=crc32(BODY))
        with refused(400, if_=s3_server.checks_crc32):
            await client.put_object(Bucket=bucket, Key="wrong", Body=BODY, ChecksumCRC32=crc32(b"other"))


async def test_wrong_checksum_of_a_part(s3_server: S3Server, bucket: str) -> None:
    name = {"Bucket": bucket, "Key": "parts"}
    async with s3_client(s3_server) as client:
        created = await client.create_multipart_upload(**name, ChecksumAlgorithm="CRC32")
        name["UploadId"] = created["UploadId"]
        await client.upload_part(**name, PartNumber=1, Body=BODY, ChecksumCRC32=crc32(BODY))
        with refused(400, if_=s3_server.checks_crc32):
            await client.upload_part(**name, PartNumber=2, Body=BODY, ChecksumCRC32=crc32(b"other"))


async def test_if_none_match(s3_server: S3Server, bucket: str) -> None:
    async with s3_client(s3_server) as client:
        await client.put_object(Bucket=bucket, Key="once", Body=b"first", IfNoneMatch="*")
        with refused(412, if_=s3_server.keeps_if_none_match):
            await client.put_object(Bucket=bucket, Key="once", Body=b"second", IfNoneMatch="*")


async def test_small_part_before_the_last(s3_server: S3Server, bucket: str) -> None:
    async with s3_client(s3_server) as client:
        with refused(400, if_=s3_server.keeps_part_minimum):
            await upload(client, bucket, "parts", [bytes(64 * KiB), BODY])


def test_connections_stay_open(s3_server: S3Server) -> None:
    where = urlsplit(s3_server.endpoint_url)
    connection = HTTPConnection(where.hostname or "", where.port, timeout=10)
    try:
        connection.request("GET", "/")
        answer = connection.getresponse()
        answer.read()
        assert answer.will_close is not s3_server.keeps_connections
    finally:
        connection.close()


async def test_tls_with_the_right_authority(tls_server: S3Server, tls_bucket: str) -> None:
    async with s3_client(tls_server) as client:
        await client.put_object(Bucket=tls_bucket, Key="key", Body=BODY)
        answer = await client.get_object(Bucket=tls_bucket, Key="key")
        assert await answer["Body"].read() == BODY


async def test_tls_without_the_authority(tls_server: S3Server) -> None:
    async with s3_client(tls_server, ca_bundle=None) as client:
        with pytest.raises(SSLError):
            await client.list_buckets()
