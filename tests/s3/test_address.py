"""No test here touches the network: addresses come from botocore's rules."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from botocore.exceptions import EndpointConnectionError

from aiockpt.config import S3ClientConfig
from aiockpt.errors import ConfigError
from aiockpt.s3.address import Address, resolve
from aiockpt.s3.session import Session
from aiockpt.transport.pool import Endpoint

pytestmark = pytest.mark.usefixtures("credentials")

ARN = "arn:aws:s3:eu-west-1:123456789012:accesspoint/point"


async def address(bucket: str, region: str | None, **config: Any) -> Address:
    async with Session(S3ClientConfig(**config), region) as session:
        return await resolve(await session.client(), bucket)


@pytest.mark.parametrize(
    ("bucket", "region", "config", "url", "prefix"),
    [
        ("bucket", "us-east-1", {}, "https://bucket.s3.amazonaws.com:443", "/"),
        ("bucket", "eu-west-3", {}, "https://bucket.s3.eu-west-3.amazonaws.com:443", "/"),
        ("bucket", "cn-north-1", {}, "https://bucket.s3.cn-north-1.amazonaws.com.cn:443", "/"),
        ("buc.ket", "eu-west-3", {}, "https://s3.eu-west-3.amazonaws.com:443", "/buc.ket/"),
        ("bucket", "eu-west-3", {"force_path_style": True}, "https://s3.eu-west-3.amazonaws.com:443", "/bucket/"),
        ("bucket", "eu-west-3", {"unsigned": True}, "https://bucket.s3.eu-west-3.amazonaws.com:443", "/"),
        (ARN, "eu-west-1", {}, "https://point-123456789012.s3-accesspoint.eu-west-1.amazonaws.com:443", "/"),
        ("bucket", "r", {"endpoint_url": "http://127.0.0.1:9000"}, "http://127.0.0.1:9000", "/bucket/"),
        ("bucket", "r", {"endpoint_url": "https://store.example"}, "https://store.example:443", "/bucket/"),
        ("bucket", "r", {"endpoint_url": "http://store.example/s3"}, "http://store.example:80", "/s3/bucket/"),
        (
            "bucket",
            "r",
            {"endpoint_url": "https://store.example", "addressing_style": "virtual"},
            "https://bucket.store.example:443",
            "/",
        ),
        ("bucket", "r", {"endpoint_url": "http://[::1]:9000"}, "http://::1:9000", "/bucket/"),
    ],
)
async def test_where(bucket: str, region: str, config: dict[str, Any], url: str, prefix: str) -> None:
    found = await address(bucket, region, **config)
    assert (str(found.endpoint), found.prefix) == (url, prefix)
    assert (found.region, found.service) == (region, "s3")
    assert found.direct


async def test_a_bucket_is_told_from_its_namesakes() -> None:
    urls = {
        (await address("b", "r", endpoint_url=url)).url
        for url in ("http://h", "http://h/s3", "http://h:8080", "https://h", "http://other")
    }
    assert urls == {"http://h/b/", "http://h/s3/b/", "http://h:8080/b/", "https://h/b/", "http://other/b/"}


async def test_hosts_as_the_host_header_has_them() -> None:
    hosts = [
        (await address("b", "r", endpoint_url=url)).host
        for url in ("http://h", "http://h:80", "http://h:8080", "https://h:443", "https://h:80", "http://[::1]:9000")
    ]
    assert hosts == ["h", "h", "h:8080", "h", "h:80", "[::1]:9000"]


async def test_an_endpoint_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://store.example:9000")
    found = await address("bucket", None)
    assert (str(found.endpoint), found.prefix, found.region) == ("http://store.example:9000", "/bucket/", "us-east-1")


async def test_an_endpoint_from_a_profile_gets_path_style(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = tmp_path / "config"
    settings.write_text(
        "[profile ours]\nendpoint_url = http://store.example:9000\nregion = here\n"
        "aws_access_key_id = key\naws_secret_access_key = secret\n"
    )
    monkeypatch.setenv("AWS_CONFIG_FILE", str(settings))
    found = await address("bucket", None, profile="ours")
    assert (str(found.endpoint), found.prefix, found.region) == ("http://store.example:9000", "/bucket/", "here")


async def test_several_at_once() -> None:
    async with Session(S3ClientConfig(), "eu-west-3") as session:
        client = await session.client()
        buckets = [f"bucket-{number}" for number in range(20)]
        found = await asyncio.gather(*(resolve(client, bucket) for bucket in buckets))
    assert [one.host for one in found] == [f"{bucket}.s3.eu-west-3.amazonaws.com" for bucket in buckets]
    assert {one.region for one in found} == {"eu-west-3"}


@pytest.mark.parametrize(
    ("key", "target"),
    [
        ("a/b.pt", "/p/a/b.pt"),
        ("a b+c%d", "/p/a%20b%2Bc%25d"),
        ("ä?#", "/p/%C3%A4%3F%23"),
        ("//x/../y", "/p///x/../y"),
    ],
)
def test_targets(key: str, target: str) -> None:
    found = Address(Endpoint("http", "h", 80), "h", "/p/", "r", "s3", "")
    assert found.target(key) == target
    assert found.target(key, "partNumber=1") == f"{target}?partNumber=1"


@pytest.mark.parametrize(
    ("algorithm", "direct"), [("AWS4-HMAC-SHA256", True), ("", True), ("AWS4-ECDSA-P256-SHA256", False), ("AWS", False)]
)
def test_what_the_direct_path_can_sign_for(algorithm: str, direct: bool) -> None:
    assert Address(Endpoint("https", "h", 443), "h", "/", "r", "s3", algorithm).direct is direct
    assert not Address(Endpoint("https", "h", 443), "h", "/", "r", "s3express", algorithm).direct


async def test_a_multi_region_access_point_is_not_for_the_direct_path() -> None:
    pytest.importorskip("awscrt", reason="botocore signs SigV4A with it")
    found = await address("arn:aws:s3::123456789012:accesspoint/point.mrap", "us-east-1")
    assert not found.direct


@pytest.mark.parametrize("bucket", ["", "a/b", "arn:aws:s3:eu-west-1"])
async def test_a_name_that_botocore_refuses(bucket: str) -> None:
    with pytest.raises(ConfigError):
        await address(bucket, "us-east-1")


async def test_no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    with pytest.raises(ConfigError, match="no AWS credentials found"):
        await address("bucket", "us-east-1")


async def test_requests_for_other_keys_are_sent() -> None:
    async with Session(S3ClientConfig(endpoint_url="http://127.0.0.1:1"), None) as session:
        client = await session.client()
        await resolve(client, "bucket")
        with pytest.raises(EndpointConnectionError):
            await client.get_object(Bucket="bucket", Key="key")
