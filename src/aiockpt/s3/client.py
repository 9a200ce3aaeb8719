"""S3 as the engine sees it: one object that owns the session, the pool, and both planes.

Per-loop: enter and use it inside one event loop. Its bulk connections may be spread over the loops of other threads.
"""

from __future__ import annotations

import ssl
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from functools import cache, partial
from typing import Self

from aiockpt.config import S3ClientConfig, proxy_for
from aiockpt.s3.bulk import Bulk, DirectBulk
from aiockpt.s3.control import ControlPlane
from aiockpt.s3.fallback import ClientBulk
from aiockpt.s3.session import Session
from aiockpt.transport.pool import ConnectionPool
from aiockpt.transport.spread import OtherLoop, Pool, ServedPool, SpreadPool, shares
from aiockpt.transport.tls import client_context


class S3Client:
    """Control plane and bulk operations of one configuration.

    Args:
        config: the settings.
        region: AWS region; None: botocore's choice.
        others: loops of other threads, which have their share of the bulk connections.

    Attributes:
        control: HEAD, LIST, COPY, DELETE, multipart frames.
        pool: the bulk connections of its own loop.
    """

    control: ControlPlane
    pool: ConnectionPool

    def __init__(self, config: S3ClientConfig, region: str | None, others: Sequence[OtherLoop] = ()) -> None:
        config.check()
        self._config = config
        self._others = others
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
        self.control = ControlPlane(self._session, config)
        self._direct = DirectBulk(self._session, self.control, await self._open_pools(tls), config)
        self._fallback = ClientBulk(self._session, config)
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self._exits.aclose()

    async def _open_pools(self, tls: Callable[[], ssl.SSLContext]) -> Pool:
        """The bulk connections, which all loops share evenly. So they do the TLS context, which is thread-safe."""
        config = self._config
        limits = shares(config.max_connections, 1 + len(self._others))
        self.pool, *served = (
            ConnectionPool(
                limit=limit,
                connect_timeout_s=config.connect_timeout_s,
                stall_timeout_s=config.stall_timeout_s,
                tls=tls,
            )
            for limit in limits
        )
        if not served:
            return await self._exits.enter_async_context(self.pool)
        elsewhere = [ServedPool(loop, pool) for loop, pool in zip(self._others, served, strict=True)]
        return await self._exits.enter_async_context(SpreadPool([self.pool, *elsewhere], config.max_connections))

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
