"""A server that says what a test tells it to, and a memory that shows where bytes landed."""

from __future__ import annotations

import asyncio
import socket
import ssl
import struct
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

from aiockpt.transport.connection import Request
from aiockpt.transport.landing import Landing
from aiockpt.transport.pool import Endpoint

HEAD = b"GET /key HTTP/1.1\r\nHost: test\r\n\r\n"
GET = Request("GET", HEAD)

#: What guards hold: anything else is a byte that was written where none belongs.
GUARD = 0xA5


class Peer:
    """One connection as the server sees it."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, number: int) -> None:
        self.reader = reader
        self.writer = writer
        self.number = number  # of the connection, from 0

    async def request(self) -> bytes:
        """The head of the next request."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def body(self, nbytes: int) -> bytes:
        return await self.reader.readexactly(nbytes)

    async def say(self, *pieces: bytes) -> None:
        """Send the pieces, in one go each."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()

    def reset(self) -> None:
        """Break the connection (RST)."""
        sock: socket.socket = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()

    def close(self) -> None:
        """End the connection in order (FIN)."""
        self.writer.close()

    async def gone(self) -> None:
        """Wait until the client has closed the connection."""
        try:
            while await self.reader.read(1 << 16):
                pass
        except ConnectionError:
            pass


Script = Callable[[Peer], Awaitable[None]]


@asynccontextmanager
async def server(script: Script, tls: ssl.SSLContext | None = None) -> AsyncIterator[Endpoint]:
    """Run ``script`` on each connection; what it raises but for lost connections is the block's."""
    failures: list[BaseException] = []
    tasks: set[asyncio.Task[None]] = set()
    numbers = iter(range(1 << 30))

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await script(Peer(reader, writer, next(numbers)))
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as error:  # noqa: BLE001  # raised below
            failures.append(error)
        finally:
            writer.close()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    listener = await asyncio.start_server(accept, "127.0.0.1", 0, ssl=tls)
    port = listener.sockets[0].getsockname()[1]
    try:
        yield Endpoint("https" if tls else "http", "127.0.0.1", port)
    finally:
        listener.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # lets the transports close
    if failures:
        raise failures[0]


async def until(condition: Callable[[], bool]) -> None:
    """Let the loop run until ``condition()``; the test's timeout bounds it."""
    while not condition():  # noqa: ASYNC110  # what is waited for are bytes in memory, which set no event
        await asyncio.sleep(0)


class Guarded:
    """Memory with a guard on either side."""

    def __init__(self, nbytes: int) -> None:
        self._memory = bytearray([GUARD]) * (nbytes + 2)
        self.view = memoryview(self._memory)[1:-1]

    @property
    def intact(self) -> bool:
        return self._memory[0] == self._memory[-1] == GUARD

    @property
    def untouched(self) -> bool:
        return self._memory.count(GUARD) == len(self._memory)

    def landing(self) -> Landing:
        return Landing([self.view])


def answer(body: bytes, status: str = "200 OK", *headers: str) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body)}", *headers, "", ""]
    return "\r\n".join(lines).encode() + body
