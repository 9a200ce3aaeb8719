"""Tunnels against OpenSSL's own server side, in memory; over sockets they are tested with the pool."""

from __future__ import annotations

import asyncio
import ssl
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.errors import ReadError
from aiockpt.model import KiB, MiB
from aiockpt.transport.connection import Connection, Request, Response
from aiockpt.transport.outlet import TLS_WRITE_BYTES
from aiockpt.transport.tls import client_context
from aiockpt.transport.tunnel import FEED_BYTES, RECEIVE_BYTES, Tunnel
from servers.certificate import Certificate
from transport.scripted import GET, Guarded, answer

#: What TLS adds to a record of 16 KiB, and the record that is there in part.
RECORD_BYTES = 17 * KiB


class Wire:
    """The transport below: keeps what is sent."""

    def __init__(self) -> None:
        self.sent = bytearray()
        self.aborted = False

    def write(self, data: bytes) -> None:
        assert not self.aborted
        self.sent += data

    def get_write_buffer_size(self) -> int:
        return 0

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        assert high == TLS_WRITE_BYTES

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": "there"}.get(name, default)

    def abort(self) -> None:
        self.aborted = True


class Ends:
    """A connection in a tunnel, and the server that it leads to."""

    def __init__(self, certificate: Certificate, host: str = "localhost", *, tls12: bool = False) -> None:
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate.chain, certificate.key)
        if tls12:
            context.maximum_version = ssl.TLSVersion.TLSv1_2
        self._to_server, self._from_server = ssl.MemoryBIO(), ssl.MemoryBIO()
        self.server = context.wrap_bio(self._to_server, self._from_server, server_side=True)
        self.wire = Wire()
        self.connection = Connection(asyncio.get_running_loop())
        self.tunnel = Tunnel(self.connection, client_context(str(certificate.authority), verify=True), host)

    def agree(self) -> None:
        self.tunnel.connection_made(cast("asyncio.Transport", self.wire))
        for _ in range(4):
            self.take()
            try:
                self.server.do_handshake()
            except ssl.SSLWantReadError:
                pass
            except ssl.SSLError:  # told why it is refused
                return
            self.give(self._from_server.read())

    def take(self) -> None:
        """Have the server receive what was sent."""
        self._to_server.write(bytes(self.wire.sent))
        self.wire.sent.clear()

    def encrypted(self, data: bytes) -> bytes:
        rest = memoryview(data)
        while rest:
            rest = rest[self.server.write(rest) :]
        return self._from_server.read()

    def end_of_tls(self) -> bytes:
        with pytest.raises(ssl.SSLWantReadError):
            self.server.unwrap()
        return self._from_server.read()

    def give(self, data: bytes, piece: int = RECEIVE_BYTES) -> None:
        """As a loop does: ``piece`` bytes at a time."""
        for start in range(0, len(data), piece):
            part = data[start : start + piece]
            self.tunnel.get_buffer(-1)[: len(part)] = part
            self.tunnel.buffer_updated(len(part))

    async def asked(self, memory: Guarded | None = None, request: Request = GET) -> asyncio.Task[Response]:
        """An exchange under way."""
        choose = (lambda _: memory.landing()) if memory is not None else (lambda _: None)
        task = asyncio.ensure_future(self.connection.exchange(request, choose))
        await asyncio.sleep(0)
        return task


@pytest.mark.parametrize("tls12", [False, True])
async def test_there_and_back(certificate: Certificate, tls12: bool) -> None:
    ends = Ends(certificate, tls12=tls12)
    ends.agree()
    await ends.tunnel.agreed
    assert ends.tunnel.get_extra_info("peername") == "there"
    body = bytes(range(256)) * 2048
    asking = await ends.asked(memory := Guarded(len(body)))
    ends.take()
    assert ends.server.read(1000) == GET.head
    ends.give(ends.encrypted(answer(body)))
    await asking
    assert bytes(memory.view) == body
    assert memory.intact
    assert ends.connection.is_open


@given(st.integers(1, 40_000), st.lists(st.integers(0, 70_000), min_size=1, max_size=4))
def test_however_it_is_cut(certificate: Certificate, piece: int, sizes: list[int]) -> None:
    async def scene() -> None:
        ends = Ends(certificate)
        ends.agree()
        for number, size in enumerate(sizes):
            asking = await ends.asked(memory := Guarded(size))
            ends.give(ends.encrypted(answer(bytes([number + 1]) * size)), piece)
            await asking
            assert bytes(memory.view) == bytes([number + 1]) * size
            assert memory.intact

    asyncio.run(scene())


async def test_what_a_connection_holds_is_little_and_none_of_it_what_was_received(
    certificate: Certificate, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though 2 MiB come at once: the memory that they are received in is all connections' together."""
    received_in = set()
    for _ in range(3):
        ends = Ends(certificate)
        ends.agree()
        asking = await ends.asked(Guarded(2 * MiB))
        held: list[int] = []
        get_buffer = ends.connection.get_buffer

        def watched(sizehint: int) -> memoryview:
            held.append(ends.tunnel._incoming.pending)  # noqa: B023  # called within this turn of the loop
            return get_buffer(sizehint)  # noqa: B023  # likewise

        monkeypatch.setattr(ends.connection, "get_buffer", watched)
        ends.give(ends.encrypted(answer(bytes(2 * MiB))))
        await asking
        assert FEED_BYTES // 2 < max(held) <= FEED_BYTES + RECORD_BYTES
        assert ends.tunnel._incoming.pending == 0
        received_in.add(id(ends.tunnel.get_buffer(-1).obj))
    assert len(received_in) == 1


async def test_the_server_ends_tls(certificate: Certificate) -> None:
    """Which completes a body that lasts until then, as nobody else can say it."""
    ends = Ends(certificate)
    ends.agree()
    asking = await ends.asked()
    ends.give(ends.encrypted(b"HTTP/1.1 200 OK\r\n\r\nall of it") + ends.end_of_tls())
    assert (await asking).body == b"all of it"
    assert ends.wire.aborted


async def test_an_end_that_anybody_could_have_made(certificate: Certificate) -> None:
    ends = Ends(certificate)
    ends.agree()
    asking = await ends.asked()
    ends.give(ends.encrypted(b"HTTP/1.1 200 OK\r\n\r\nnot all"))
    assert ends.tunnel.eof_received() is False
    ends.tunnel.connection_lost(None)
    with pytest.raises(ReadError):
        await asking


async def test_bytes_damaged_on_the_way(certificate: Certificate) -> None:
    ends = Ends(certificate)
    ends.agree()
    asking = await ends.asked(memory := Guarded(100 * KiB))
    came = bytearray(ends.encrypted(answer(bytes(100 * KiB))))
    came[-100] ^= 1
    ends.give(bytes(came))
    assert ends.wire.aborted
    ends.tunnel.connection_lost(None)
    with pytest.raises(ReadError, match="MAC"):
        await asking
    assert memory.intact


async def test_a_certificate_for_another_host(certificate: Certificate) -> None:
    ends = Ends(certificate, "elsewhere.example")
    ends.agree()
    with pytest.raises(ssl.SSLCertVerificationError, match="elsewhere"):
        await ends.tunnel.agreed
    assert ends.wire.aborted
    ends.tunnel.connection_lost(None)
    assert not ends.connection.is_open


async def test_lost_before_it_was_agreed(certificate: Certificate) -> None:
    ends = Ends(certificate)
    ends.tunnel.connection_made(cast("asyncio.Transport", ends.wire))
    ends.tunnel.connection_lost(None)
    with pytest.raises(ConnectionResetError):
        await ends.tunnel.agreed


async def test_given_up_before_it_was_connected(certificate: Certificate) -> None:
    """Nobody waits for it, and nobody is told."""
    ends = Ends(certificate)
    ends.tunnel.abort()
    ends.tunnel.connection_made(cast("asyncio.Transport", ends.wire))
    assert ends.wire.aborted
    assert not ends.wire.sent
    ends.tunnel.connection_lost(None)
    assert ends.tunnel.agreed.cancelled()


async def test_after_its_end_nothing_is_sent(certificate: Certificate) -> None:
    ends = Ends(certificate)
    ends.agree()
    ends.wire.sent.clear()
    ends.tunnel.abort()
    ends.tunnel.write(b"too late")
    assert not ends.wire.sent
    assert ends.tunnel.get_write_buffer_size() == 0


async def test_tls_that_has_been_shut_down_fails_the_connection(certificate: Certificate) -> None:
    ends = Ends(certificate)
    ends.agree()
    with pytest.raises(ssl.SSLWantReadError):
        ends.tunnel.get_extra_info("ssl_object").unwrap()
    ends.tunnel.write(b"nobody can read this")
    assert ends.wire.aborted
