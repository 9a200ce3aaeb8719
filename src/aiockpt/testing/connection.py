"""One HTTP connection of the server: heads in, bodies landed, answers out, shaped. It knows no S3.

The protocol hands out the memory that bytes belong in: a body's own, while one lands, else a small buffer for
heads. One task serves the connection, and calls one method at a time; losing the connection cancels it.
"""

from __future__ import annotations

import asyncio
import fcntl
import socket
import struct
import termios
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, cast

from aiockpt.errors import RemoteProtocolError
from aiockpt.model import KiB, MiB
from aiockpt.testing.memory import BLOCK_BYTES, Landing
from aiockpt.testing.shaping import Lane, Network
from aiockpt.wire.http1 import ChunkedBody, head_end

_HEAD_BYTES = 64 * KiB

#: Bytes that the transport may hold: enough to keep the socket busy while the loop serves other connections.
_WRITE_HIGH_BYTES = 4 * MiB
_WRITE_LOW_BYTES = 1 * MiB

#: Bytes that the kernel may hold of one connection. Its own bound grows to 4 MiB, and then they have left the caches
#: before the client reads them: over loopback a load then takes it a quarter more CPU time, and the server as well.
_SEND_BUFFER_BYTES = 1 * MiB

#: Timers tick in milliseconds; shorter delays are left to accumulate.
_TICK_S = 0.001

#: How often, and how many times, the kernel's send queue is looked at before a reset.
_FLUSH_POLL_S = 0.001
_FLUSH_POLLS = 1000


class HeadTooLong(Exception):  # a condition that is answered
    """A head does not fit the buffer."""


class Connection(asyncio.BufferedProtocol):
    """See the module.

    Args:
        serve: the coroutine function that serves the connection, started when it is made.
        network: the shape of what moves.
    """

    def __init__(self, serve: Callable[[Connection], Coroutine[Any, Any, None]], network: Network) -> None:
        self._serve = serve
        self._in = Lane(network, network.shared_in)
        self._out = Lane(network, network.shared_out)
        self._loop = asyncio.get_running_loop()
        self._buffer = bytearray(_HEAD_BYTES)
        self._filled = 0
        self._landing: Landing | None = None
        self._landing_end = 0
        self._arrived = asyncio.Event()
        self._writable = asyncio.Event()
        self._writable.set()
        self.bytes_sent = 0

    # What the transport calls.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Start serving."""
        self._transport = cast("asyncio.Transport", transport)  # uvloop's are none by inheritance
        plain: socket.socket = self._transport.get_extra_info("socket")
        plain.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES // 2)  # Linux doubles it: socket(7)
        self._transport.set_write_buffer_limits(high=_WRITE_HIGH_BYTES, low=_WRITE_LOW_BYTES)
        self._task = self._loop.create_task(self._serve(self))

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # the protocol's signature
        """Stop serving."""
        self._task.cancel()

    def pause_writing(self) -> None:
        """The transport holds enough."""
        self._writable.clear()

    def resume_writing(self) -> None:
        """The transport wants more."""
        self._writable.set()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the protocol's signature
        """Where the next bytes go."""
        if self._landing is None:
            return memoryview(self._buffer)[self._filled :]
        return self._landing.room(min(self._landing_end - self._landing.received, self._in.run_bytes or BLOCK_BYTES))

    def buffer_updated(self, nbytes: int) -> None:
        """Bytes have come."""
        if self._landing is None:
            self._filled += nbytes
            self._arrived.set()
            if self._filled == len(self._buffer):
                self._transport.pause_reading()
        else:
            self._landed(self._landing, nbytes)

    def _landed(self, landing: Landing, nbytes: int) -> None:
        landing.advance(nbytes)
        if landing.received == self._landing_end:
            self._landing = None
            self._arrived.set()
        delay_s = self._in.delay_s(nbytes, self._loop.time())
        if delay_s >= _TICK_S:
            self._transport.pause_reading()
            self._loop.call_later(delay_s, self._resume_reading)

    def _resume_reading(self) -> None:
        has_room = self._landing is not None or self._filled < len(self._buffer)
        if has_room and not self._transport.is_closing():
            self._transport.resume_reading()

    # What the serving task calls.

    async def read_head(self) -> bytes:
        """The next head, blank line included. Waits for as long as the client likes.

        Raises:
            HeadTooLong: it does not fit.
        """
        while (end := head_end(self._buffer, self._filled)) < 0:
            if self._filled == len(self._buffer):
                raise HeadTooLong
            await self._arrival()
        return self._take(end)

    async def _arrival(self) -> None:
        self._arrived.clear()
        await self._arrived.wait()

    def _take(self, nbytes: int) -> bytes:
        taken = bytes(memoryview(self._buffer)[:nbytes])
        was_full = self._filled == len(self._buffer)
        self._buffer[: self._filled - nbytes] = self._buffer[nbytes : self._filled]
        self._filled -= nbytes
        if was_full:
            self._resume_reading()
        return taken

    async def fill(self, landing: Landing, end: int) -> None:
        """Receive a body until ``end`` of its bytes have landed."""
        while landing.received < end and self._filled:
            room = landing.room(end - landing.received)
            early = self._take(min(len(room), self._filled))
            room[: len(early)] = early
            landing.advance(len(early))
        if landing.received < end:
            self._landing, self._landing_end = landing, end
            await self._arrival()

    async def read_chunked(self) -> bytes:
        """Receive a body in HTTP's chunks; copies, and holds all of it.

        Raises:
            RemoteProtocolError: it is malformed (here the client is the remote).
        """
        decoder = ChunkedBody()
        payload = bytearray()
        while not decoder.done:
            if not self._filled:
                await self._arrival()
            payload += decoder.feed(self._take(self._filled))
        if decoder.unused:
            raise RemoteProtocolError("more came behind a chunked body, before its answer")
        return bytes(payload)

    def write(self, data: bytes) -> None:
        """Send a head."""
        self._transport.write(data)

    async def send(self, pieces: Iterable[memoryview]) -> None:
        """Send a body from where it is; returns when the transport holds the last of it."""
        for piece in pieces:
            run_bytes = self._out.run_bytes or BLOCK_BYTES
            for start in range(0, len(piece), run_bytes):
                await self._send_run(piece[start : start + run_bytes])

    async def _send_run(self, run: memoryview) -> None:
        delay_s = self._out.delay_s(len(run), self._loop.time())
        if delay_s >= _TICK_S:
            await asyncio.sleep(delay_s)
        await self._writable.wait()
        self._transport.write(run)
        self.bytes_sent += len(run)

    def close(self) -> None:
        """Close in order: what the transport holds is still sent."""
        self._transport.close()

    async def reset(self) -> None:
        """Break the connection (RST), once what was written has left; waits a second for that."""
        sock: socket.socket = self._transport.get_extra_info("socket")
        for _ in range(_FLUSH_POLLS):
            if not self._transport.get_write_buffer_size() and not _unsent(sock):
                break
            await asyncio.sleep(_FLUSH_POLL_S)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._transport.abort()


def _unsent(sock: socket.socket) -> int:
    """Bytes in the kernel's send queue (the ioctl that Linux and the BSDs share)."""
    answer = fcntl.ioctl(sock.fileno(), termios.TIOCOUTQ, struct.pack("i", 0))
    queued: int = struct.unpack("i", answer)[0]
    return queued
