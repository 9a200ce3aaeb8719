from __future__ import annotations

import pytest

from aiockpt.config import S3ClientConfig
from aiockpt.errors import ConfigError, ConnectError
from aiockpt.model import ObjectId
from aiockpt.s3.bulk import DirectBulk
from aiockpt.s3.client import S3Client
from aiockpt.s3.fallback import ClientBulk
from servers.base import S3Server
from servers.certificate import Certificate


@pytest.mark.usefixtures("credentials")
async def test_the_direct_path_wherever_possible() -> None:
    async with S3Client(S3ClientConfig(), "eu-west-3") as client:
        bulk = await client.bulk("bucket")
        assert isinstance(bulk, DirectBulk)
        assert await client.bulk("bucket") is bulk


@pytest.mark.usefixtures("credentials")
async def test_a_proxy_has_the_fallback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:3128")
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    async with S3Client(S3ClientConfig(), "eu-west-3") as client:
        assert isinstance(await client.bulk("bucket"), ClientBulk)
    async with S3Client(S3ClientConfig(endpoint_url="https://127.0.0.1:1"), None) as client:
        assert isinstance(await client.bulk("bucket"), DirectBulk)


async def test_no_credentials() -> None:
    async with S3Client(S3ClientConfig(), "eu-west-3") as client:
        with pytest.raises(ConfigError, match="unsigned=True"):
            await client.bulk("bucket")


def test_settings_that_cannot_work() -> None:
    with pytest.raises(ConfigError, match="max_connections"):
        S3Client(S3ClientConfig(max_connections=0), None)


async def test_a_bundle_that_is_missing() -> None:
    with pytest.raises(ConfigError, match="no-such-file"):
        async with S3Client(S3ClientConfig(ca_bundle="/no-such-file.pem"), None):
            pass


@pytest.mark.usefixtures("credentials")
async def test_both_planes_trust_the_same(moto_tls: S3Server, certificate: Certificate) -> None:
    missing = ObjectId("bucket", "key")
    url = moto_tls.endpoint_url
    async with S3Client(S3ClientConfig(endpoint_url=url), None) as client:
        for bulk in (client._direct, client._fallback):
            with pytest.raises(ConnectError, match="ca_bundle"):
                await bulk.get_whole(missing)
        with pytest.raises(ConnectError, match="ca_bundle"):
            await client.control.head(missing)
    for config in (
        S3ClientConfig(endpoint_url=url, ca_bundle=str(certificate.authority)),
        S3ClientConfig(endpoint_url=url, verify_tls=False),
    ):
        async with S3Client(config, None) as client:
            for bulk in (client._direct, client._fallback):
                with pytest.raises(FileNotFoundError):
                    await bulk.get_whole(missing)
            with pytest.raises(FileNotFoundError):
                await client.control.head(missing)
