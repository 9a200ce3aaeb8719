from __future__ import annotations

import asyncio
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import CredentialRetrievalError
from botocore.loaders import JSONFileLoader

from aiockpt.config import S3ClientConfig
from aiockpt.errors import AccessDenied, AiockptError, ConfigError, ServiceError
from aiockpt.model import ObjectId
from aiockpt.s3.session import Session
from s3.conftest import ACCESS_KEY
from servers.certificate import Certificate


@pytest.mark.usefixtures("credentials")
async def test_credentials_from_the_environment() -> None:
    async with Session(S3ClientConfig(), None) as session:
        assert (await session.credentials()).access_key == ACCESS_KEY


async def test_no_credentials() -> None:
    async with Session(S3ClientConfig(), None) as session:
        with pytest.raises(ConfigError, match="AWS_ACCESS_KEY_ID"):
            await session.credentials()


async def test_unsigned() -> None:
    async with Session(S3ClientConfig(unsigned=True), None) as session:
        assert await session.credentials() is None


@pytest.mark.usefixtures("credentials")
async def test_only_the_first_session_reads_what_botocore_knows_of_s3(monkeypatch: pytest.MonkeyPatch) -> None:
    async with Session(S3ClientConfig(), "us-east-1"):
        pass
    read: list[str] = []
    monkeypatch.setattr(JSONFileLoader, "load_file", lambda _, path: read.append(path))
    async with Session(S3ClientConfig(), "eu-west-1") as session:
        assert (await session.client()).meta.region_name == "eu-west-1"
    assert not read


async def test_an_unknown_profile() -> None:
    with pytest.raises(ConfigError, match="no-such"):
        async with Session(S3ClientConfig(profile="no-such"), None):
            pass


@pytest.mark.usefixtures("credentials")
@pytest.mark.parametrize("region", [None, "eu-west-3"])
async def test_one_client_a_region(region: str | None) -> None:
    async with Session(S3ClientConfig(), region) as session:
        clients = await asyncio.gather(
            *(session.client() for _ in range(5)), *(session.client("us-west-2") for _ in range(5))
        )
        assert len({id(client) for client in clients}) == 2
        assert clients[0].meta.region_name == region or "us-east-1"
        assert clients[5].meta.region_name == "us-west-2"


class FakeSource:
    """A botocore session whose credentials are numbered, and take a moment."""

    loads = 0

    async def get_credentials(self) -> Any:
        FakeSource.loads += 1
        number = FakeSource.loads
        await asyncio.sleep(0)

        async def frozen() -> str:
            return f"credentials {number}"

        return SimpleNamespace(get_frozen_credentials=frozen)


@pytest.fixture
def fake_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeSource, "loads", 0)
    monkeypatch.setattr(Session, "_new_session", lambda _: FakeSource())


EXPIRED = ServiceError("expired", status=400, code="ExpiredToken")


@pytest.mark.usefixtures("fake_source")
async def test_many_requests_renew_credentials_once() -> None:
    session = Session(S3ClientConfig(), None)
    everyone_has_signed = asyncio.Barrier(20)

    async def request(late: int) -> str:
        with suppress(ServiceError), session.requesting("GET", ObjectId("bucket", "key")):
            await session.credentials()
            await everyone_has_signed.wait()
            for _ in range(late):  # some hear of it when others have renewed already
                await session.credentials()
            raise EXPIRED
        return str(await session.credentials())

    assert set(await asyncio.gather(*(request(late) for late in range(20)))) == {"credentials 2"}
    with pytest.raises(ServiceError), session.requesting("GET", ObjectId("bucket", "key")):
        raise EXPIRED  # and their successors, too
    assert await session.credentials() == "credentials 3"


@pytest.mark.usefixtures("fake_source")
async def test_other_refusals_renew_nothing() -> None:
    session = Session(S3ClientConfig(), None)
    await session.credentials()
    with pytest.raises(AccessDenied), session.requesting("GET", ObjectId("bucket", "key")):
        raise AccessDenied("no", status=403, code="AccessDenied")
    assert await session.credentials() == "credentials 1"


@pytest.mark.usefixtures("fake_source")
async def test_clients_are_renewed_with_the_credentials() -> None:
    session = Session(S3ClientConfig(), None)
    session._access.clients[""] = old = object()
    assert await session.client() is old
    with suppress(ServiceError), session.requesting("GET", ObjectId("bucket", "key")):
        raise EXPIRED
    assert not session._access.clients


async def test_a_source_of_credentials_that_fails_is_a_typed_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        async def get_credentials(self) -> Any:
            raise CredentialRetrievalError(provider="p", error_msg="e")

    monkeypatch.setattr(Session, "_new_session", lambda _: Broken())
    with pytest.raises(AiockptError, match="credentials"):
        await Session(S3ClientConfig(), None).credentials()


def assert_readable(bundle: str) -> None:
    assert "BEGIN CERTIFICATE" in Path(bundle).read_text()


@pytest.mark.usefixtures("credentials")
async def test_tls_settings(certificate: Certificate, monkeypatch: pytest.MonkeyPatch) -> None:
    async with Session(S3ClientConfig(), None) as session:
        bundle, verify = session.tls_settings()
        assert bundle
        assert verify
    assert_readable(bundle)
    named = str(certificate.authority)
    async with Session(S3ClientConfig(ca_bundle=named, verify_tls=False), None) as session:
        assert session.tls_settings() == (named, False)
    monkeypatch.setenv("AWS_CA_BUNDLE", named)
    async with Session(S3ClientConfig(), None) as session:
        assert session.tls_settings() == (named, True)
