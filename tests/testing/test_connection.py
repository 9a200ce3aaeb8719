from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest
import uvloop

from aiockpt.testing.connection import Connection, HeadTooLong
from aiockpt.testing.memory import BlockPool, Landing
from aiockpt.testing.shaping import Network, Shape

Serve = Callable[[Connection], Awaitable[bytes]]


def exchange(serve: Serve, pieces: list[bytes], shape: Shape | None = None) -> tuple[bytes, bytes]:
    """Serve one connection, over which ``pieces`` come; what ``serve`` returned, and what was sent back."""

    async def run() -> tuple[bytes, bytes]:
        loop = asyncio.get_running_loop()
        result = loop.create_future()

        async def task(connection: Connection) -> None:
            try:
                result.set_result(await serve(connection))
            except HeadTooLong as exc:
                result.set_exception(exc)
            connection.close()

        server = await loop.create_server(lambda: Connection(task, Network(shape or Shape())), "127.0.0.1", 0)
        reader, writer = await asyncio.open_connection(*server.sockets[0].getsockname())
        for piece in pieces:
            writer.write(piece)
            await writer.drain()
        try:
            return await result, await reader.read()
        finally:
            writer.close()
            server.close()
            await server.wait_closed()

    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(run())


def landing_of(size: int) -> Serve:
    async def serve(connection: Connection) -> bytes:
        await connection.read_head()
        landing = Landing(size, BlockPool())
        await connection.fill(landing, size // 2)
        await connection.fill(landing, size)
        content = landing.content()
        await connection.send(content.pieces)
        return content.to_bytes() + await connection.read_head()

    return serve


@pytest.mark.parametrize("size", [0, 10, 100_000, 5_000_000])
@pytest.mark.parametrize("shape", [Shape(), Shape(connection_bytes_per_s=50e6)])
def test_bodies_land_between_heads(size: int, shape: Shape) -> None:
    body = bytes(range(256)) * (size // 256) + bytes(size % 256)
    returned, sent = exchange(landing_of(size), [b"head\r\n\r\n", body, b"next\r\n\r\n"], shape)
    assert returned == body + b"next\r\n\r\n"
    assert sent == body


def test_heads_that_came_together_are_told_apart() -> None:
    async def serve(connection: Connection) -> bytes:
        return await connection.read_head() + b"|" + await connection.read_head()

    assert exchange(serve, [b"a\r\n\r", b"\nb\r\n\r\n"])[0] == b"a\r\n\r\n|b\r\n\r\n"


def test_a_head_that_is_too_long() -> None:
    async def serve(connection: Connection) -> bytes:
        return await connection.read_head()

    with pytest.raises(HeadTooLong):
        exchange(serve, [b"x" * 65536])


def test_chunks() -> None:
    async def serve(connection: Connection) -> bytes:
        await connection.read_head()
        return await connection.read_chunked()

    assert exchange(serve, [b"h\r\n\r\n3\r\nabc\r\n", b"0\r\n\r\n"])[0] == b"abc"
