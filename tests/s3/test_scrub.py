from __future__ import annotations

from collections.abc import Awaitable, Callable

import aiohttp
import pytest
from botocore import exceptions as botocore_errors

from aiockpt.config import S3ClientConfig
from aiockpt.errors import AiockptError
from aiockpt.model import ObjectId
from aiockpt.s3.client import S3Client
from aiockpt.s3.scrub import chain, scrub
from s3.conftest import ACCESS_KEY
from s3.telltale import told
from transport.scripted import Peer, answer, server


def test_a_chain_may_go_in_a_circle() -> None:
    first, second, third = ValueError(1), ValueError(2), ValueError(3)
    first.__cause__, first.__context__, second.__context__, third.__context__ = second, third, first, first
    assert sorted(one.args for one in chain(first)) == [(1,), (2,), (3,)]


def test_what_is_worth_keeping_stays() -> None:
    said = {"Code": "SignatureDoesNotMatch", "Message": "m", "StringToSign": "AWS4", "AWSAccessKeyId": "A"}
    error = botocore_errors.ClientError({"Error": said, "ResponseMetadata": {"RequestId": "id"}}, "HeadObject")
    scrub(error)
    assert error.response["Error"] == {"Code": "SignatureDoesNotMatch", "Message": "m"}
    assert error.response["ResponseMetadata"]["RequestId"] == "id"
    assert "SignatureDoesNotMatch" in str(error)


async def closed(peer: Peer) -> None:
    await peer.request()


async def garbage(peer: Peer) -> None:
    await peer.request()
    await peer.say(b"HTTP/9.9 what\r\n\r\n")


async def refused(peer: Peer) -> None:
    head = await peer.request()
    body = (
        b"<Error><Code>SignatureDoesNotMatch</Code><StringToSign>"
        + head.replace(b"<", b"")
        + b"</StringToSign></Error>"
    )
    await peer.say(answer(body, "403 Forbidden"))


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("script", [closed, garbage, refused])
async def test_nothing_of_a_request_is_left_in_an_error(script: Callable[[Peer], Awaitable[None]]) -> None:
    async with server(script) as endpoint:
        config = S3ClientConfig(endpoint_url=f"http://127.0.0.1:{endpoint.port}")
        async with S3Client(config, "us-east-1") as client:
            for bulk in (client._direct, client._fallback):
                with pytest.raises(AiockptError) as failure:
                    await bulk.get_whole(ObjectId("bucket", "key"))
                text = told(failure.value)
                assert "s3://bucket/key" in text
                for secret in ("Signature=", "AWS4-HMAC", "x-amz-date", ACCESS_KEY):
                    assert secret.lower() not in text.lower()


def test_aiohttp_s_request_info() -> None:
    info = aiohttp.RequestInfo.__new__(aiohttp.RequestInfo, "u", "GET", {"Authorization": "AWS4"}, "u")  # type: ignore[arg-type]
    error = aiohttp.ClientResponseError(info, (), status=400, message="bad")
    scrub(error)
    assert "AWS4" not in told(error)
    assert "bad" in str(error)
    assert (error.status, error.request_info.method) == (400, "GET")
