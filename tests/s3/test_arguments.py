"""The bulk path's headers against those that botocore makes of the same settings."""

from __future__ import annotations

import base64
import hashlib
from typing import Any

import botocore.session
import pytest

from aiockpt.config import EXTRA_ARGS, S3ClientConfig
from aiockpt.model import ANYTHING, NOTHING, ByteRange, ObjectId, Replaces
from aiockpt.s3 import arguments
from aiockpt.s3.control import ControlPlane
from aiockpt.s3.session import Session

pytestmark = pytest.mark.usefixtures("credentials")

KEY = "k" * 32
EVERYTHING: dict[str, Any] = {
    "ACL": "bucket-owner-full-control",
    "BucketKeyEnabled": True,
    "CacheControl": "no-store",
    "ContentType": "application/x-tensor",
    "ExpectedBucketOwner": "123456789012",
    "Metadata": {"step": "10", "Run": "a b"},
    "ServerSideEncryption": "aws:kms",
    "SSECustomerAlgorithm": "AES256",
    "SSECustomerKey": KEY,
    "SSEKMSEncryptionContext": "e30=",
    "SSEKMSKeyId": "key-id",
    "StorageClass": "STANDARD_IA",
    "Tagging": "a=b&c=d",
}
MD5 = base64.b64encode(hashlib.md5(KEY.encode(), usedforsecurity=False).digest()).decode()
ENCODED = {**EVERYTHING, "SSECustomerKey": base64.b64encode(KEY.encode()).decode(), "SSECustomerKeyMD5": MD5}


SESSION = botocore.session.get_session()  # one for all, since it holds the parsed service model


class Sent(Exception):
    """What botocore was about to send."""

    def __init__(self, headers: dict[str, str]) -> None:
        super().__init__()
        self.headers = headers


def stop(request: Any, **_: Any) -> None:
    headers = {
        name.lower(): value.decode() if isinstance(value, bytes) else value for name, value in request.headers.items()
    }
    raise Sent(headers)


def botocore_sends(operation: str, **named: Any) -> dict[str, str]:
    client = SESSION.create_client("s3", region_name="us-east-1")
    client.meta.events.register("before-send.s3", stop)
    with pytest.raises(Sent) as sent:
        getattr(client, operation)(Bucket="bucket", Key="key", **named)
    client.close()
    return sent.value.headers


def lower(headers: dict[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


@pytest.mark.parametrize(
    "extra", [EVERYTHING, ENCODED, {}, {"SSECustomerKey": KEY.encode(), "SSECustomerAlgorithm": "AES256"}]
)
@pytest.mark.parametrize("pays", [False, True])
def test_headers_are_those_of_botocore(extra: dict[str, Any], pays: bool) -> None:
    config = S3ClientConfig(extra_args=extra, requester_pays=pays)
    stored = botocore_sends("put_object", Body=b"", **arguments.storage_arguments(config))
    ours = lower(arguments.storage_headers(config))
    names = ("x-amz-acl", "x-amz-meta", "x-amz-server", "x-amz-storage", "x-amz-tagging", "x-amz-request-payer")
    also = ("x-amz-expected", "cache-control", "content-type")
    assert ours == {name: value for name, value in stored.items() if name.startswith((*names, *also))}
    part = botocore_sends("upload_part", Body=b"", UploadId="u", PartNumber=1, **arguments.request_arguments(config))
    read = botocore_sends("get_object", **arguments.request_arguments(config))
    for theirs in (part, read):
        expected = {name: value for name, value in theirs.items() if name.startswith((*names, "x-amz-expected"))}
        assert lower(arguments.request_headers(config)) == expected


def test_every_extra_argument_is_known() -> None:
    assert EVERYTHING.keys() | {"SSECustomerKeyMD5"} == EXTRA_ARGS


@pytest.mark.parametrize(
    ("replaces", "expected"),
    [(ANYTHING, {}), (NOTHING, {"IfNoneMatch": "*"}), (Replaces(etag="e"), {"IfMatch": '"e"'})],
)
def test_conditions(replaces: Replaces, expected: dict[str, Any]) -> None:
    assert arguments.condition_arguments(replaces) == expected


@pytest.mark.parametrize("extra", [EVERYTHING, ENCODED])
@pytest.mark.parametrize(
    ("operation", "named"),
    [
        ("head", {}),
        ("delete", {}),
        ("copy", {"etag": "e"}),
        ("create_upload", {"checksums": True}),
        ("copy_part", {"upload_id": "u", "number": 1, "span": ByteRange(0, 9), "etag": "e"}),
        ("complete_upload", {"upload_id": "u", "parts": [], "crc32": 7, "replaces": NOTHING}),
        ("abort_upload", {"upload_id": "u"}),
        ("list_page", {"delimiter": "/", "after": "token"}),
        ("pending_page", {"after": ("a", "b")}),
    ],
)
async def test_botocore_takes_them_in_every_operation(extra: Any, operation: str, named: dict[str, Any]) -> None:
    config = S3ClientConfig(extra_args=extra, requester_pays=True)
    target = ObjectId("bucket", "key")
    async with Session(config, "us-east-1") as session:
        (await session.client()).meta.events.register("before-send.s3", stop)
        control = ControlPlane(session, config)
        positional = (target, ObjectId("bucket", "other")) if operation.startswith("copy") else (target,)
        with pytest.raises(Exception) as failure:  # noqa: PT011  # a Sent, as the cause
            await getattr(control, operation)(*positional, **named)
    sent = failure.value.__cause__
    assert isinstance(sent, Sent), failure.value
    assert sent.headers["x-amz-request-payer"] == "requester"
    assert sent.headers["x-amz-expected-bucket-owner"] == "123456789012"
