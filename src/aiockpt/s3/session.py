"""The botocore side: one aiobotocore session, its credentials, and one S3 client for each region that is met.

Building a client costs 60-140 ms of CPU, so it is done once per region. Per-loop: make and use it inside one loop.
"""

from __future__ import annotations

import asyncio
import math
from contextlib import AsyncExitStack
from typing import Any, Self

import aiobotocore.session
from aiobotocore.config import AioConfig
from botocore import UNSIGNED
from botocore.exceptions import NoCredentialsError
from botocore.httpsession import get_cert_path

from aiockpt.config import AddressingStyle, S3ClientConfig, has_custom_endpoint
from aiockpt.model import ObjectId
from aiockpt.s3.failures import translated

_AWS_DOMAINS = (".amazonaws.com", ".amazonaws.com.cn", ".amazonaws.eu", ".api.aws", ".api.amazonwebservices.com.cn")

#: Connections for control operations; bulk bytes have a pool of their own.
_CONTROL_CONNECTIONS = 16

#: Requests that fail with expired credentials so soon after a renewal were signed before it.
RENEWAL_PAUSE_S = 1.0


class Session:
    """Clients and credentials. An async context manager."""

    def __init__(self, config: S3ClientConfig, region: str | None) -> None:
        self._config = config
        self._region = region
        self._exits = AsyncExitStack()
        self._clients: dict[str, Any] = {}
        self._botocore = self._new_session()
        self._credentials: Any = None
        self._renewed_at = -math.inf
        self._building = asyncio.Lock()
        self._fetching = asyncio.Lock()

    async def __aenter__(self) -> Self:
        await self.client()
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exits.aclose()

    async def client(self, region: str | None = None) -> Any:
        """The S3 client for ``region`` (None: the configured one)."""
        name = region or self._region or ""
        async with self._building:
            if name not in self._clients:
                with translated("building a client for", ObjectId("*", "")):
                    self._clients[name] = await self._new_client(name or None)
            return self._clients[name]

    async def credentials(self) -> Any:
        """Frozen credentials, refreshed by botocore when they are about to expire; None when unsigned.

        Raises:
            ConfigError: there are none.
        """
        if self._config.unsigned:
            return None
        with translated("finding credentials for", ObjectId("*", "")):
            async with self._fetching:
                if self._credentials is None:
                    self._credentials = await self._botocore.get_credentials()
            if self._credentials is None:
                raise NoCredentialsError
            return await self._credentials.get_frozen_credentials()

    async def renew_credentials(self) -> None:
        """Have credentials fetched anew, from where they came: the service says that they have expired.

        Many requests hear that at once; what the first of them has fetched serves all.
        """
        now = asyncio.get_running_loop().time()
        if now < self._renewed_at + RENEWAL_PAUSE_S:
            return
        self._renewed_at = now
        self._botocore = self._new_session()
        self._credentials = None
        self._clients.clear()  # they hold the old ones; they are closed with the session

    def tls_settings(self) -> tuple[str | None, bool]:
        """CA bundle and whether to verify, as botocore would for its own connections."""
        bundle = self._config.ca_bundle or self._botocore.get_config_variable("ca_bundle")
        return str(get_cert_path(bundle or True)), self._config.verify_tls

    def _new_session(self) -> Any:
        return aiobotocore.session.AioSession(profile=self._config.profile)

    async def _new_client(self, region: str | None) -> Any:
        style = self._config.addressing_style
        if style is None:
            style = "path" if self._config.force_path_style or has_custom_endpoint(self._config) else "auto"
        client = await self._enter_client(region, style)
        host = client.meta.endpoint_url.partition("://")[2].partition("/")[0].partition(":")[0]
        if style == "auto" and self._config.addressing_style is None and not host.endswith(_AWS_DOMAINS):
            client = await self._enter_client(region, "path")  # a custom endpoint named in a profile
        return client

    async def _enter_client(self, region: str | None, style: AddressingStyle) -> Any:
        config = self._config
        options: dict[str, Any] = {"signature_version": UNSIGNED} if config.unsigned else {}
        return await self._exits.enter_async_context(
            self._botocore.create_client(
                "s3",
                region_name=region or self._botocore.get_config_variable("region") or "us-east-1",
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
