"""How requests leave a connection: straight from the caller's memory into the kernel, or through a TLS transport.

One job: send views in order, stop at once when told to, and know how much has left. It knows no HTTP.

uvloop writes to plain TCP with the GIL held: for 0.3 s a GB, the time of the copy into the socket, no other thread runs
Python. The standard library's ``sendmsg`` releases the GIL meanwhile, so plain connections send on a duplicate of the
transport's socket (the loop does not let others wait for the transport's own descriptor).
"""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from aiockpt.errors import WriteError
from aiockpt.model import KiB
from aiockpt.transport.send_queue import SendQueue

Octets = bytes | memoryview

#: Views offered to the kernel at once; the system's limit is 1,024 (UIO_MAXIOV). A part of small tensors, which are
#: copied into runs of up to 1 MiB, has a few dozen.
MAX_VIEWS = 64

#: Bytes given to a TLS transport at once: it encrypts all of them into memory of its own before it sends any. With
#: whole parts of 8 MiB that was 1 GB for 64 connections. Also how much of it may be kept before more is given; the
#: kernel has some MiB under way beside that.
TLS_WRITE_BYTES = 128 * KiB


class Outlet(Protocol):
    """Sends for one connection, one call at a time."""

    async def send(self, views: Sequence[Octets], until: asyncio.Future[Any]) -> bool:
        """Send ``views`` in order; returns whether all of them were taken before ``until`` was done.

        Raises:
            WriteError: the system refuses. A lost connection is not told here: whoever reads from it will find out,
                after what the peer may still have said.
        """

    @property
    def sent_bytes(self) -> int:
        """How many bytes the kernel has taken so far."""

    @property
    def acknowledged_bytes(self) -> int:
        """How many of these have come to the peer's kernel, where the system tells."""

    @property
    def holds_memory(self) -> bool:
        """Whether something that was to be sent is still read from the caller's memory."""

    def pause(self) -> None:
        """The transport holds enough."""

    def resume(self) -> None:
        """The transport takes more."""

    def discard(self) -> None:
        """Have the kernel throw away at ``close`` what it has not sent yet."""

    def close(self) -> None:
        """Send nothing more; idempotent."""


def outlet_of(loop: asyncio.AbstractEventLoop, transport: asyncio.Transport) -> Outlet:
    """The outlet of a connection that has just been made."""
    plain: socket.socket | None = transport.get_extra_info("socket")
    if plain is None or transport.get_extra_info("ssl_object") is not None:
        return TransportOutlet(transport, SendQueue(plain and plain.dup()))
    return SocketOutlet(loop, plain.dup())


class SocketOutlet:
    """Sends on a socket of its own, which it closes. See ``Outlet``.

    Attributes:
        sent_bytes: as there.
        holds_memory: always False: what the kernel has not taken is not kept either.
    """

    holds_memory = False

    def __init__(self, loop: asyncio.AbstractEventLoop, plain: socket.socket) -> None:
        plain.setblocking(False)
        self._loop = loop
        self._socket = plain
        self._queue = SendQueue(plain)
        self._views: list[Octets] = []
        self._outcome: asyncio.Future[bool] | None = None  # there while the socket is waited for
        self.sent_bytes = 0

    async def send(self, views: Sequence[Octets], until: asyncio.Future[Any]) -> bool:  # noqa: D102  # Outlet's
        self._views = [view for view in views if len(view)]
        try:
            if self._push():
                return True
            self._outcome = self._loop.create_future()
            self._loop.add_writer(self._socket, self._on_writable)
            until.add_done_callback(self._give_up)
            return await self._outcome
        except ConnectionError:
            return False
        finally:
            until.remove_done_callback(self._give_up)
            self._stop()

    @property
    def acknowledged_bytes(self) -> int:  # noqa: D102  # Outlet's
        return self.sent_bytes - self._queue.unacknowledged_bytes

    def pause(self) -> None:
        """Nothing is ever given to the transport."""

    def resume(self) -> None:
        """Likewise."""

    def discard(self) -> None:  # noqa: D102  # Outlet's
        self._queue.discard()

    def close(self) -> None:  # noqa: D102  # Outlet's
        self._give_up()
        self._stop()
        self._queue.close()

    def _push(self) -> bool:
        """Offer the kernel what is left; returns whether it has taken all."""
        while self._views:
            try:
                sent = self._socket.sendmsg(self._views[:MAX_VIEWS])
            except BlockingIOError:
                return False
            except ConnectionError:
                raise
            except OSError as exc:
                raise WriteError(f"the system does not send: {exc}") from exc
            self.sent_bytes += sent
            if self._cut(sent):
                return False  # the kernel's buffer is full
        return True

    def _cut(self, nbytes: int) -> bool:
        """Drop the first ``nbytes`` of the views; returns whether one was cut through."""
        for number, view in enumerate(self._views):
            if nbytes < len(view):
                self._views[: number + 1] = [view[nbytes:]]
                return nbytes > 0
            nbytes -= len(view)
            if not nbytes:
                del self._views[: number + 1]
                return False
        return False

    def _on_writable(self) -> None:
        assert self._outcome is not None
        if self._outcome.done():
            return
        try:
            if self._push():
                self._outcome.set_result(True)
        except (ConnectionError, WriteError) as error:
            self._outcome.set_exception(error)

    def _give_up(self, _: object = None) -> None:
        if self._outcome is not None and not self._outcome.done():
            self._outcome.set_result(False)

    def _stop(self) -> None:
        """Let go of the caller's memory."""
        self._views = []
        if self._outcome is not None:
            self._outcome = None
            self._loop.remove_writer(self._socket)


class TransportOutlet:
    """Sends through a transport that encrypts, in pieces, since it copies all that it is given. See ``Outlet``.

    Args:
        transport: of the connection.
        queue: of a duplicate of its socket. It holds encrypted bytes, a percent more than they were.
    """

    def __init__(self, transport: asyncio.Transport, queue: SendQueue) -> None:
        transport.set_write_buffer_limits(TLS_WRITE_BYTES)
        self._transport = transport
        self._queue = queue
        self._room = asyncio.Event()
        self._room.set()
        self._given_bytes = 0
        self._closed = False

    async def send(self, views: Sequence[Octets], until: asyncio.Future[Any]) -> bool:  # noqa: D102  # Outlet's
        until.add_done_callback(self._give_up)
        try:
            for piece in _pieces(views):
                if until.done() or self._closed:
                    return False
                self._given_bytes += len(piece)
                self._transport.write(piece)
                await self._room.wait()
        finally:
            until.remove_done_callback(self._give_up)
        return True

    @property
    def sent_bytes(self) -> int:  # noqa: D102  # Outlet's
        return self._given_bytes - self._transport.get_write_buffer_size()

    @property
    def acknowledged_bytes(self) -> int:  # noqa: D102  # Outlet's
        return self.sent_bytes - self._queue.unacknowledged_bytes

    @property
    def holds_memory(self) -> bool:  # noqa: D102  # Outlet's
        return not self._closed and self._transport.get_write_buffer_size() > 0

    def pause(self) -> None:  # noqa: D102  # Outlet's
        self._room.clear()

    def resume(self) -> None:  # noqa: D102  # Outlet's
        self._room.set()

    def discard(self) -> None:  # noqa: D102  # Outlet's
        self._queue.discard()

    def close(self) -> None:  # noqa: D102  # Outlet's
        self._closed = True
        self._room.set()
        self._queue.close()

    def _give_up(self, _: object) -> None:
        self._room.set()  # that a peer which has answered may never make: what it has not taken is not sent any more


def _pieces(views: Sequence[Octets]) -> Iterator[Octets]:
    for view in views:
        for start in range(0, len(view), TLS_WRITE_BYTES):
            yield view[start : start + TLS_WRITE_BYTES]
