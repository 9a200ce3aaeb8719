"""The pool: bounded, reusing, and quiet about connections that servers close between requests.

One job: lend connections. A connection that turns out to have been closed while it was idle is replaced once by a
fresh one, without the caller noticing: servers close idle connections whenever they like, and that is no failure.
Per-loop: make and use it inside one event loop.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import defaultdict
from collections.abc import Callable
from contextvars import Context
from dataclasses import dataclass
from typing import Self

from aiockpt.errors import ClosedError, ConnectError, ReadError, TLSError, TransportTimeout, WriteError
from aiockpt.observe.exchange import Exchange, clock
from aiockpt.transport.connection import ChooseLanding, Connection, Request, Response
from aiockpt.transport.tls import TLS_ADVICE, is_lasting
from aiockpt.transport.tunnel import Tunnel

#: How often stalls are looked for, as a share of the limit: a stall is noticed at most a quarter of the limit late.
STALL_CHECKS = 4


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where connections go."""

    scheme: str
    host: str
    port: int

    def __str__(self) -> str:
        return f"{self.scheme}://{self.host}:{self.port}"


class ConnectionPool:
    """Lends HTTP/1.1 connections, at most ``limit`` at once over all endpoints.

    Args:
        limit: see below.
        connect_timeout_s: longest wait for a connection, TLS included.
        stall_timeout_s: longest time without one byte moving in an exchange.
        tls: gives the context of connections over https; asked only for those, since reading the authorities that it
            trusts takes some 40 ms.

    Attributes:
        opened: connections made so far.
        limit: most connections lent at once.
    """

    def __init__(
        self, *, limit: int, connect_timeout_s: float, stall_timeout_s: float, tls: Callable[[], ssl.SSLContext]
    ) -> None:
        self.limit = limit
        self.opened = 0
        self._connect_timeout_s = connect_timeout_s
        self._stall_timeout_s = stall_timeout_s
        self._tls = tls
        self._slots = asyncio.Semaphore(limit)
        self._idle: defaultdict[Endpoint, list[Connection]] = defaultdict(list)
        self._busy: set[Connection] = set()
        self._watchdog: asyncio.TimerHandle | None = None
        self._closed = False

    async def request(self, endpoint: Endpoint, request: Request, choose: ChooseLanding) -> Response:
        """Perform one exchange on a pooled connection, or on a new one.

        Raises:
            ConnectError, ReadError, WriteError, TransportTimeout: the connection could not be made, broke or stalled.
            ClosedError: the pool is closed.
        """
        async with self._slots:
            if request.exchange is not None:
                request.exchange.granted_s = clock()
            connection = None if request.fresh else self._take_idle(endpoint)
            if connection is not None:
                try:
                    return await self._exchange(endpoint, connection, request, choose)
                except (ReadError, WriteError):
                    if connection.heard:  # the server had begun to answer: a failure like any other
                        raise
            return await self._exchange(endpoint, await self._connect(endpoint), request, choose)

    async def aclose(self) -> None:
        """Close every connection; exchanges under way end with ``ReadError``."""
        self._closed = True
        if self._watchdog is not None:
            self._watchdog.cancel()
        for connection in [*self._busy, *(c for idle in self._idle.values() for c in idle)]:
            connection.fail(ReadError("the connection pool was closed"))
        self._idle.clear()
        await asyncio.sleep(0)  # lets the transports call connection_lost

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.aclose()

    def _refuse_closed(self) -> None:
        if self._closed:
            raise ClosedError("the connection pool is closed")

    def _take_idle(self, endpoint: Endpoint) -> Connection | None:
        self._refuse_closed()
        idle = self._idle[endpoint]
        while idle:
            connection = idle.pop()  # the last one used: least likely to have been closed
            if connection.is_open:
                return connection
        return None

    async def _exchange(
        self, endpoint: Endpoint, connection: Connection, request: Request, choose: ChooseLanding
    ) -> Response:
        self._busy.add(connection)
        self._watch()
        connected_s = clock()
        try:
            return await connection.exchange(request, choose)
        finally:
            if request.exchange is not None:
                _stamp(request.exchange, connection, connected_s)
            self._busy.discard(connection)
            if connection.is_open and not self._closed:
                self._keep(self._idle[endpoint], connection)
            else:
                connection.abort()

    def _keep(self, idle: list[Connection], connection: Connection) -> None:
        """Keep a connection for later, but no more than can be lent at once: fresh ones are made beside idle ones."""
        idle.append(connection)
        if len(idle) > self.limit:
            idle.pop(0).abort()

    async def _connect(self, endpoint: Endpoint) -> Connection:
        self._refuse_closed()  # it may be what broke the idle connection that this one is to replace
        connection = Connection(asyncio.get_running_loop())
        try:
            await self._establish(connection, endpoint)
        except TimeoutError as exc:
            raise TransportTimeout(f"no connection to {endpoint} within {self._connect_timeout_s:g} s") from exc
        except ssl.SSLError as exc:
            reason = getattr(exc, "verify_message", "") or exc.reason or str(exc)
            kind = TLSError if is_lasting(exc) else ConnectError
            raise kind(f"TLS with {endpoint} failed: {reason}; {TLS_ADVICE}") from exc
        except OSError as exc:
            raise ConnectError(f"cannot connect to {endpoint}: {exc}; check the endpoint URL and the network") from exc
        self.opened += 1
        if self._closed:
            connection.abort()
        self._refuse_closed()
        return connection

    async def _establish(self, connection: Connection, endpoint: Endpoint) -> None:
        loop = asyncio.get_running_loop()
        tunnel = Tunnel(connection, self._tls(), endpoint.host) if endpoint.scheme == "https" else None
        protocol = tunnel or connection
        try:
            async with asyncio.timeout(self._connect_timeout_s):
                connecting = loop.create_connection(lambda: protocol, endpoint.host, endpoint.port)
                await loop.create_task(connecting, context=Context())  # it outlives what it is made for
                if tunnel is not None:
                    await tunnel.agreed
        except BaseException:
            protocol.abort()  # uvloop does not tell it that it is lost, if it had just been made
            raise

    def _watch(self) -> None:
        """Keep one timer that looks for stalls while anything is under way."""
        if self._watchdog is None:
            loop = asyncio.get_running_loop()
            after_s = self._stall_timeout_s / STALL_CHECKS
            self._watchdog = loop.call_later(after_s, self._check_stalls, context=Context())

    def _check_stalls(self) -> None:
        self._watchdog = None
        now = asyncio.get_running_loop().time()
        for connection in [c for c in self._busy if c.check_stall(now, self._stall_timeout_s)]:
            connection.fail(TransportTimeout(f"no byte moved for {self._stall_timeout_s:g} s"))
        if self._busy:
            self._watch()


def _stamp(exchange: Exchange, connection: Connection, connected_s: float) -> None:
    """What the connection knows of an exchange; of a second try on a fresh one, the second."""
    exchange.connection = connection.number
    exchange.connected_s = connected_s
    exchange.sent_s = connection.sent_s
    exchange.first_byte_s = connection.heard_s
    exchange.received_bytes = connection.received_bytes
