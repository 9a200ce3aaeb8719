"""Outlets over socket pairs on both loops, and one over a stand-in for a TLS transport."""

from __future__ import annotations

import asyncio
import errno
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any, cast

import pytest

from aiockpt.errors import WriteError
from aiockpt.model import KiB, MiB
from aiockpt.transport.outlet import MAX_VIEWS, TLS_WRITE_BYTES, SocketOutlet, TransportOutlet, outlet_of
from aiockpt.transport.send_queue import SendQueue


@asynccontextmanager
async def pair() -> AsyncIterator[tuple[SocketOutlet, socket.socket]]:
    """An outlet, and the socket at which its bytes arrive."""
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)
    outlet = SocketOutlet(asyncio.get_running_loop(), ours)
    with theirs:
        yield outlet, theirs
        outlet.close()


def never() -> asyncio.Future[Any]:
    return asyncio.get_running_loop().create_future()


async def received(theirs: socket.socket, nbytes: int) -> bytes:
    heard = bytearray()
    while len(heard) < nbytes:
        heard += await asyncio.get_running_loop().sock_recv(theirs, MiB)
    return bytes(heard)


@pytest.mark.parametrize(
    "sizes",
    [[], [0, 1, 0], [5, 300 * KiB, 7], [3] * (3 * MAX_VIEWS + 1), [10 * KiB] * 500, [8 * MiB]],
    ids=["nothing", "empty views", "small and large", "many tiny", "many", "one large"],
)
async def test_what_is_sent_arrives_in_order(sizes: Sequence[int]) -> None:
    views = [memoryview(bytes([number % 251]) * size) for number, size in enumerate(sizes)]
    whole = b"".join(views)
    async with pair() as (outlet, theirs):
        sending = asyncio.ensure_future(outlet.send(views, never()))
        assert await received(theirs, len(whole)) == whole
        assert await sending
        assert outlet.sent_bytes == len(whole)
        assert not outlet.holds_memory


async def test_one_after_the_other() -> None:
    async with pair() as (outlet, theirs):
        for number in range(3):
            sending = asyncio.ensure_future(outlet.send([bytes([number]) * MiB], never()))
            assert await received(theirs, MiB) == bytes([number]) * MiB
            assert await sending


@pytest.mark.parametrize("how", ["answered", "closed", "cancelled"])
async def test_what_ends_early_reads_the_memory_no_more(how: str) -> None:
    memory = memoryview(bytearray(16 * MiB))
    async with pair() as (outlet, theirs):
        until = never()
        sending = asyncio.ensure_future(outlet.send([memory], until))
        await asyncio.sleep(0)
        taken = outlet.sent_bytes
        assert 0 < taken < len(memory)
        if how == "answered":
            until.set_result(None)
        elif how == "closed":
            outlet.close()
        else:
            sending.cancel()
        outcome = await asyncio.gather(sending, return_exceptions=True)
        assert outcome[0] is False or isinstance(outcome[0], asyncio.CancelledError)
        memory[:] = b"\xff" * len(memory)
        assert await received(theirs, taken) == bytes(taken)
        with suppress(BlockingIOError):
            assert not theirs.recv(1)  # the end, if it was closed


@pytest.mark.parametrize("secure", [False, True])
async def test_what_the_peer_has_not_taken_is_sent_and_not_acknowledged(secure: bool) -> None:
    """And it stays so when it is closed."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        queue = SendQueue(ours.dup())
        transport = cast("asyncio.Transport", Encrypting(ours))
        outlet = TransportOutlet(transport, queue) if secure else SocketOutlet(asyncio.get_running_loop(), ours.dup())
        await outlet.send([bytes(20 * KiB)], never())
        if secure:
            ours.sendall(bytes(transport.given.pop()))  # type: ignore[attr-defined]
        unread = queue.unacknowledged_bytes
        assert (outlet.sent_bytes, outlet.acknowledged_bytes) == (20 * KiB, 20 * KiB - unread)
        assert unread >= 20 * KiB  # with what the kernel spends on them
        theirs.recv(MiB)
        assert outlet.acknowledged_bytes == 20 * KiB
        outlet.discard()
        outlet.close()
        queue.close()
        assert outlet.acknowledged_bytes == 20 * KiB


async def test_a_lost_connection_is_left_to_the_reader() -> None:
    async with pair() as (outlet, theirs):
        sending = asyncio.ensure_future(outlet.send([bytes(16 * MiB)], never()))
        await asyncio.sleep(0)
        theirs.close()
        assert not await sending
        assert not await outlet.send([b"more"], never())


async def test_what_the_system_refuses_is_a_write_error() -> None:
    class Refusing(socket.socket):
        def sendmsg(self, *_: Any) -> int:
            raise OSError(errno.ENOBUFS, "no buffer space")

    outlet = SocketOutlet(asyncio.get_running_loop(), Refusing())
    with pytest.raises(WriteError, match="no buffer space"):
        await outlet.send([b"data"], never())
    outlet.close()


async def test_closing_gives_the_descriptor_back() -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        outlet = SocketOutlet(asyncio.get_running_loop(), ours)
        outlet.close()
        outlet.close()
        assert ours.fileno() == -1


class Encrypting:
    """Stands in for a TLS transport: it keeps what it is given."""

    def __init__(self, plain: socket.socket | None = None) -> None:
        self._plain = plain
        self.given: list[int] = []

    def get_extra_info(self, name: str) -> object:
        return {"socket": self._plain, "ssl_object": object()}[name]

    def set_write_buffer_limits(self, high: int) -> None:
        assert high == TLS_WRITE_BYTES

    def get_write_buffer_size(self) -> int:
        return sum(self.given)

    def write(self, data: memoryview) -> None:
        self.given.append(len(data))


async def test_a_transport_that_encrypts_is_given_pieces_and_only_while_it_has_room() -> None:
    transport = Encrypting()
    outlet = TransportOutlet(cast("asyncio.Transport", transport), SendQueue(None))
    outlet.pause()
    sending = asyncio.ensure_future(outlet.send([memoryview(bytes(MiB))], never()))
    await asyncio.sleep(0)
    assert transport.given == [TLS_WRITE_BYTES]
    assert outlet.holds_memory
    transport.given[:] = []
    outlet.resume()
    assert await sending
    assert sum(transport.given) == MiB - TLS_WRITE_BYTES
    assert outlet.sent_bytes == TLS_WRITE_BYTES
    outlet.close()
    assert not await outlet.send([b"more"], never())


@pytest.mark.parametrize("how", ["answered", "closed"])
async def test_a_transport_that_has_no_room_is_not_waited_for_once_it_does_not_matter(how: str) -> None:
    """A server that answers early and reads no more would keep us waiting for as long as it likes."""
    outlet, until = TransportOutlet(cast("asyncio.Transport", Encrypting()), SendQueue(None)), never()
    outlet.pause()
    sending = asyncio.ensure_future(outlet.send([memoryview(bytes(MiB))], until))
    await asyncio.sleep(0)
    if how == "answered":
        until.set_result(None)
    else:
        outlet.close()
    assert not await sending
    assert outlet.holds_memory == (how == "answered")


async def test_only_plain_connections_send_on_their_socket() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        secure = outlet_of(asyncio.get_running_loop(), cast("asyncio.Transport", Encrypting(ours)))
        assert isinstance(secure, TransportOutlet)
        secure.close()
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server:
        host, port = server.sockets[0].getsockname()[:2]
        _, writer = await asyncio.open_connection(host, port)
        plain = outlet_of(asyncio.get_running_loop(), cast("asyncio.Transport", writer.transport))
        assert isinstance(plain, SocketOutlet)
        plain.close()
        writer.close()
        await writer.wait_closed()
