"""botocore as the judge: what it sends is understood, and what it is sent it understands."""

from __future__ import annotations

from typing import Any

import pytest
from aiobotocore.session import get_session
from botocore.config import Config
from botocore.exceptions import ClientError

from aiockpt.testing import LocalEndpoint

PART = 5 << 20
ODD_KEY = "a b/ü+&=?#%.bin"


def client(endpoint: LocalEndpoint) -> Any:
    return get_session().create_client(
        "s3",
        endpoint_url=endpoint.url,
        region_name=endpoint.region,
        aws_access_key_id=endpoint.access_key,
        aws_secret_access_key=endpoint.secret_key,
        config=Config(s3={"addressing_style": "path"}, retries={"max_attempts": 0}),
    )


@pytest.mark.parametrize("algorithm", ["CRC32", "SHA256"])
async def test_objects(endpoint: LocalEndpoint, algorithm: str) -> None:
    async with client(endpoint) as s3:
        await s3.put_object(
            Bucket="bucket", Key=ODD_KEY, Body=b"hello", ChecksumAlgorithm=algorithm, Metadata={"colour": "blue"}
        )
        answer = await s3.get_object(Bucket="bucket", Key=ODD_KEY, ChecksumMode="ENABLED")
        assert await answer["Body"].read() == b"hello"
        assert (answer["Metadata"], f"Checksum{algorithm}" in answer) == ({"colour": "blue"}, True)
        await s3.copy_object(Bucket="bucket", Key="copy", CopySource={"Bucket": "bucket", "Key": ODD_KEY})
        head = await s3.head_object(Bucket="bucket", Key="copy")
        assert (head["ContentLength"], head["ETag"]) == (5, answer["ETag"])
        deleted = await s3.delete_objects(Bucket="bucket", Delete={"Objects": [{"Key": ODD_KEY}, {"Key": "copy"}]})
        assert [entry["Key"] for entry in deleted["Deleted"]] == [ODD_KEY, "copy"]
        with pytest.raises(s3.exceptions.NoSuchKey):
            await s3.get_object(Bucket="bucket", Key=ODD_KEY)


async def test_buckets_and_listing(endpoint: LocalEndpoint) -> None:
    async with client(endpoint) as s3:
        await s3.create_bucket(Bucket="listed")
        assert "listed" in [bucket["Name"] for bucket in (await s3.list_buckets())["Buckets"]]
        assert (await s3.get_bucket_location(Bucket="listed")).get("LocationConstraint") is None
        keys = sorted([ODD_KEY, *(f"p/{number:02}" for number in range(5))])
        for key in keys:
            await s3.put_object(Bucket="listed", Key=key, Body=b"x")
        pages = s3.get_paginator("list_objects_v2").paginate(Bucket="listed", PaginationConfig={"PageSize": 2})
        assert [entry["Key"] async for page in pages for entry in page["Contents"]] == keys
        rolled_up = await s3.list_objects_v2(Bucket="listed", Delimiter="/")
        assert [entry["Prefix"] for entry in rolled_up["CommonPrefixes"]] == ["a b/", "p/"]
        with pytest.raises(ClientError, match="BucketNotEmpty"):
            await s3.delete_bucket(Bucket="listed")
        for key in keys:
            await s3.delete_object(Bucket="listed", Key=key)
        await s3.delete_bucket(Bucket="listed")
        with pytest.raises(ClientError, match="404"):
            await s3.head_bucket(Bucket="listed")


async def test_multipart(endpoint: LocalEndpoint) -> None:
    target = {"Bucket": "bucket", "Key": "big"}
    async with client(endpoint) as s3:
        created = await s3.create_multipart_upload(**target, ChecksumAlgorithm="CRC32", ChecksumType="FULL_OBJECT")
        upload = {**target, "UploadId": created["UploadId"]}
        parts = []
        for number, body in ((1, b"a" * PART), (2, b"b")):
            part = await s3.upload_part(**upload, PartNumber=number, Body=body)
            parts.append({"PartNumber": number, "ETag": part["ETag"], "ChecksumCRC32": part["ChecksumCRC32"]})
        assert len((await s3.list_parts(**upload))["Parts"]) == 2
        assert (await s3.list_multipart_uploads(Bucket="bucket"))["Uploads"][0]["Key"] == "big"
        done = await s3.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        answer = await s3.get_object(**target, ChecksumMode="ENABLED")
        assert answer["ChecksumCRC32"] == done["ChecksumCRC32"]
        assert await answer["Body"].read() == b"a" * PART + b"b"
