"""The botocore side: one aiobotocore session, its credentials, and one S3 client for each region that is met.

Building a client costs 60-140 ms of CPU, so it is done once per region. Per-loop: make and use it inside one loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Self

import aiobotocore.session
from aiobotocore.config import AioConfig
from botocore import UNSIGNED
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import get_cert_path
from botocore.loaders import create_loader

from aiockpt.config import AddressingStyle, S3ClientConfig, has_custom_endpoint
from aiockpt.errors import ServiceError
from aiockpt.model import ObjectId
from aiockpt.plan.retry import needs_new_credentials
from aiockpt.s3.completion import complete_by_document
from aiockpt.s3.failures import S3_ITSELF, translated
from aiockpt.s3.watched import watch

_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".api.aws", ".api.amazonwebservices.com.cn")

#: Connections for control operations; bulk bytes have a pool of their own.
_CONTROL_CONNECTIONS = 16


@dataclass(eq=False, slots=True)
class _Access:
    """A botocore session with its credentials, and the clients that hold them; replaced as a whole."""

    botocore: Any
    credentials: Any = None
    clients: dict[str, Any] = field(default_factory=dict)
    building: asyncio.Lock = field(default_factory=asyncio.Lock)  # for both: either has the source asked


class Session:
    """Clients and credentials. An async context manager.

    botocore renews temporary credentials before they expire. Where the service calls them expired earlier, they are
    fetched anew from where they came: see ``requesting``.
    """

    def __init__(self, config: S3ClientConfig, region: str | None) -> None:
        self._config = config
        self._region = region
        self._exits = AsyncExitStack()
        self._access = _Access(self._new_session())

    async def __aenter__(self) -> Self:
        await self.client()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exits.aclose()

    async def client(self, region: str | None = None) -> Any:
        """The S3 client for ``region`` (None: the configured one)."""
        name = region or self._region or ""
        access = self._access
        async with access.building:
            if name not in access.clients:
                with translated("building a client for", S3_ITSELF):
                    access.clients[name] = await self._new_client(access.botocore, name or None)
            return access.clients[name]

    @contextmanager
    def requesting(self, action: str, target: ObjectId) -> Iterator[None]:
        """Around one request: foreign exceptions become aiockpt's, and credentials that have expired are dropped.

        The next request fetches new ones. Many requests hear at once that theirs have expired; the first to hear it
        drops them, and what was signed before that says nothing about their successors.
        """
        access = self._access
        try:
            with translated(action, target):
                yield
        except ServiceError as error:
            if needs_new_credentials(error) and access is self._access:
                self._access = _Access(self._new_session())  # the old clients are closed with this session
            raise

    async def credentials(self) -> Any:
        """Frozen credentials, refreshed by botocore when they are about to expire; None when unsigned.

        Raises:
            ConfigError: there are none.
        """
        if self._config.unsigned:
            return None
        access = self._access
        with translated("finding credentials for", S3_ITSELF):
            async with access.building:
                if access.credentials is None:
                    access.credentials = await access.botocore.get_credentials()
            if access.credentials is None:
                raise NoCredentialsError
            return await access.credentials.get_frozen_credentials()

    def tls_settings(self) -> tuple[str | None, bool]:
        """CA bundle and whether to verify, as botocore would for its own connections."""
        bundle = self._config.ca_bundle or self._access.botocore.get_config_variable("ca_bundle")
        return str(get_cert_path(bundle or True)), self._config.verify_tls

    def _new_session(self) -> Any:
        return aiobotocore.session.AioSession(profile=self._config.profile)

    async def _new_client(self, botocore: Any, region: str | None) -> Any:
        botocore.register_component("data_loader", _service_models(botocore.get_config_variable("data_path")))
        style = self._config.addressing_style
        if style is None:
            style = "path" if self._config.force_path_style or has_custom_endpoint(self._config) else "auto"
        client = await self._enter_client(botocore, region, style)
        host = client.meta.endpoint_url.partition("://")[2].partition("/")[0].partition(":")[0]
        if style == "auto" and self._config.addressing_style is None and not host.endswith(_AWS_DOMAINS):
            client = await self._enter_client(botocore, region, "path")  # a custom endpoint named in a profile
        return client

    async def _enter_client(self, botocore: Any, region: str | None, style: AddressingStyle) -> Any:
        config = self._config
        options: dict[str, Any] = {"signature_version": UNSIGNED} if config.unsigned else {}
        client = await self._exits.enter_async_context(
            botocore.create_client(
                "s3",
                region_name=region or botocore.get_config_variable("region") or "us-east-1",
                endpoint_url=config.endpoint_url,
                verify=False if not config.verify_tls else config.ca_bundle,
                config=AioConfig(
                    connect_timeout=config.connect_timeout_s,
                    read_timeout=config.stall_timeout_s,
                    max_pool_connections=_CONTROL_CONNECTIONS,
                    retries={"total_max_attempts": 1},  # retries are plan.retry's, one policy for both paths
                    s3={"addressing_style": style},
                    # aws-chunked trailers are refused or mangled by several servers: checksums go in headers
                    request_checksum_calculation="when_required",
                    response_checksum_validation="when_required",
                    user_agent_extra="aiockpt",
                    **options,
                ),
            )
        )
        watch(client)
        complete_by_document(client)
        return client


@cache
def _service_models(data_path: str | None) -> Any:
    """botocore's descriptions of services. They are the same for all sessions, and reading S3's takes some 60 ms."""
    return create_loader(data_path)
