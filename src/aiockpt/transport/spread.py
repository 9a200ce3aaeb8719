"""Several pools as one, each on a loop thread of its own: bytes that one thread could not decrypt alone.

One job: say whose turn an exchange is, and have it performed there. Everything else (signing, retries, limits, what is
known of prefixes and slow requests) stays on the loop that asks; only sockets and TLS are on the others. The GIL does
not keep them from working at the same time: it is released while the kernel copies, and while OpenSSL works.

Invariant: when an exchange has ended for who asked for it, however it ended, it has ended on its own loop.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, Protocol, Self, TypeVar

from aiockpt.errors import ClosedError
from aiockpt.transport.connection import ChooseLanding, Request, Response
from aiockpt.transport.pool import ConnectionPool, Endpoint

T = TypeVar("T")


class OtherLoop(Protocol):
    """The loop of another thread."""

    async def perform(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        """Run ``work()`` there; when this has ended, by result, error or cancellation, so has the work.

        Raises:
            ClosedError: that thread has stopped.
        """


class Pool(Protocol):
    """Performs exchanges."""

    async def request(self, endpoint: Endpoint, request: Request, choose: ChooseLanding) -> Response:
        """Perform one; see ``ConnectionPool.request``."""

    async def aclose(self) -> None:
        """Close every connection."""


class ServedPool:
    """A pool that works on another loop. See ``Pool``; ``choose`` is called there."""

    def __init__(self, loop: OtherLoop, pool: ConnectionPool) -> None:
        self._loop = loop
        self._pool = pool

    async def request(  # noqa: D102  # Pool's
        self, endpoint: Endpoint, request: Request, choose: ChooseLanding
    ) -> Response:
        return await self._loop.perform(lambda: self._pool.request(endpoint, request, choose))

    async def aclose(self) -> None:  # noqa: D102  # Pool's
        with suppress(ClosedError):  # no thread, no connections
            await self._loop.perform(self._pool.aclose)


class SpreadPool:
    """Pools that share what comes: the next exchange is that one's which has the fewest under way.

    A thread that is slower, since it has other work to do as well, ends fewer and so gets fewer; one exchange at a time
    stays with the first pool, which is the loop's own. The pools' limits may differ by one at most, larger ones first:
    then none of them waits for a connection while another has one.

    Args:
        pools: at least one; closed with this.
        limit: most exchanges under way at once, which the pools' own limits add up to.
    """

    def __init__(self, pools: Sequence[Pool], limit: int) -> None:
        self._pools = pools
        self._slots = asyncio.Semaphore(limit)
        self._under_way = [0] * len(pools)

    async def request(  # noqa: D102  # Pool's
        self, endpoint: Endpoint, request: Request, choose: ChooseLanding
    ) -> Response:
        async with self._slots:
            number = self._under_way.index(min(self._under_way))
            self._under_way[number] += 1
            try:
                return await self._pools[number].request(endpoint, request, choose)
            finally:
                self._under_way[number] -= 1

    async def aclose(self) -> None:  # noqa: D102  # Pool's
        for pool in self._pools:
            await pool.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()


def shares(limit: int, count: int) -> list[int]:
    """``limit`` divided among ``count``, the larger shares first."""
    return [limit // count + (number < limit % count) for number in range(count)]
