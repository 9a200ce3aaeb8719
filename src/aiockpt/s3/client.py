"""S3 as the engine sees it: one object that owns the session, the pool, and both planes.

Per-loop: enter and use it inside one event loop.
"""

from __future__ import annotations

from contextlib import AsyncExitStack
from functools import cache, partial
from typing import Self

from aiockpt.config import S3ClientConfig, proxy_for
from aiockpt.s3.bulk import Bulk, DirectBulk
from aiockpt.s3.control import ControlPlane
from aiockpt.s3.fallback import ClientBulk
from aiockpt.s3.session import Session
from aiockpt.transport.pool import ConnectionPool
from aiockpt.transport.tls import client_context


class S3Client:
    """Control plane and bulk operations of one configuration.

    Attributes:
        control: HEAD, LIST, COPY, DELETE, multipart frames.
        pool: the bulk connections.
    """

    control: ControlPlane
    pool: ConnectionPool

    def __init__(self, config: S3ClientConfig, region: str | None) -> None:
        config.check()
        self._config = config
        self._session = Session(config, region)
        self._exits = AsyncExitStack()
        self._direct: DirectBulk
        self._fallback: ClientBulk
        self._bulk: dict[str, Bulk] = {}

    async def __aenter__(self) -> Self:
        config = self._config
        await self._exits.enter_async_context(self._session)
        bundle, verify = self._session.tls_settings()
        tls = cache(partial(client_context, bundle, verify=verify))
        if config.ca_bundle:
            tls()  # to say at once that it cannot be used
        self.pool = await self._exits.enter_async_context(
            ConnectionPool(
                limit=config.max_connections,
                connect_timeout_s=config.connect_timeout_s,
                stall_timeout_s=config.stall_timeout_s,
                tls=tls,
            )
        )
        self.control = ControlPlane(self._session, config)
        self._direct = DirectBulk(self._session, self.control, self.pool, config)
        self._fallback = ClientBulk(self._session, config)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exits.aclose()

    async def bucket_url(self, bucket: str) -> str:
        """What the URLs of a bucket's objects begin with: tells it from one of the same name elsewhere."""
        return (await self._direct.address(bucket)).url

    async def bulk(self, bucket: str) -> Bulk:
        """The bulk operations that can serve ``bucket``: the direct ones wherever possible."""
        if bucket not in self._bulk:
            address = await self._direct.address(bucket)
            proxied = proxy_for(address.endpoint.scheme, address.endpoint.host) is not None
            self._bulk[bucket] = self._direct if address.direct and not proxied else self._fallback
        return self._bulk[bucket]
