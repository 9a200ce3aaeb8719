from __future__ import annotations

import asyncio
import ssl
import weakref
from collections import Counter
from contextvars import ContextVar
from dataclasses import replace

import pytest

from aiockpt.errors import ClosedError, ConnectError, ReadError, TLSError, TransportError, TransportTimeout
from aiockpt.model import MiB
from aiockpt.transport.connection import Request
from aiockpt.transport.outlet import TLS_WRITE_BYTES
from aiockpt.transport.pool import ConnectionPool, Endpoint
from aiockpt.transport.tls import client_context
from aiockpt.wire.http1 import ResponseHead
from servers.certificate import Certificate
from transport.scripted import GET, Guarded, Peer, answer, server, until


def buffered(_: ResponseHead) -> None:
    return None


def make_pool(
    *, limit: int = 4, connect_timeout_s: float = 5.0, stall_timeout_s: float = 10.0, tls: ssl.SSLContext | None = None
) -> ConnectionPool:
    def context() -> ssl.SSLContext:
        assert tls is not None, "no context is needed for plain connections"
        return tls

    return ConnectionPool(
        limit=limit, connect_timeout_s=connect_timeout_s, stall_timeout_s=stall_timeout_s, tls=context
    )


async def polite(peer: Peer) -> None:
    """Answers every request."""
    while True:
        await peer.request()
        await peer.say(answer(b"ok"))


async def test_connections_are_reused() -> None:
    async with server(polite) as endpoint, make_pool() as pool:
        for _ in range(5):
            assert (await pool.request(endpoint, GET, buffered)).body == b"ok"
        assert pool.opened == 1


async def test_a_fresh_connection_on_demand() -> None:
    """Though others are idle; afterwards it is like any other."""
    async with server(polite) as endpoint, make_pool() as pool:
        await pool.request(endpoint, GET, buffered)
        for opened in (2, 3):
            assert (await pool.request(endpoint, replace(GET, fresh=True), buffered)).body == b"ok"
            assert pool.opened == opened
        await pool.request(endpoint, GET, buffered)
        assert pool.opened == 3


async def test_connections_that_the_server_closed_in_between_are_replaced_in_silence() -> None:
    async def once(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b"ok"))

    async with server(once) as endpoint, make_pool() as pool:
        for _ in range(5):
            assert (await pool.request(endpoint, GET, buffered)).body == b"ok"
        assert pool.opened == 5


async def test_a_connection_closed_as_the_request_leaves_is_replaced_once() -> None:
    requests: Counter[int] = Counter()

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            requests[peer.number] += 1
            if peer.number == 0 and requests[0] == 2:
                return
            await peer.say(answer(b"ok"))

    async with server(script) as endpoint, make_pool() as pool:
        for _ in range(3):
            assert (await pool.request(endpoint, GET, buffered)).body == b"ok"
        assert pool.opened == 2
    assert requests == {0: 2, 1: 2}


async def test_a_fresh_connection_that_breaks_is_a_failure() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number == 0:
            await peer.say(answer(b"ok"))
            await peer.request()

    async with server(script) as endpoint, make_pool() as pool:
        await pool.request(endpoint, GET, buffered)
        with pytest.raises(ReadError):
            await pool.request(endpoint, GET, buffered)  # the idle one breaks, then the fresh one
        assert pool.opened == 2


async def test_an_answer_that_breaks_off_is_not_asked_for_again_in_silence() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b"ok"))
        await peer.request()
        await peer.say(b"HTTP/1.1 200 OK\r\n")

    async with server(script) as endpoint, make_pool() as pool:
        await pool.request(endpoint, GET, buffered)
        with pytest.raises(ReadError):
            await pool.request(endpoint, GET, buffered)
        assert pool.opened == 1


async def test_the_limit() -> None:
    running = peak = 0

    async def script(peer: Peer) -> None:
        nonlocal running, peak
        while True:
            await peer.request()
            running += 1
            peak = max(peak, running)
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            running -= 1
            await peer.say(answer(b"ok"))

    async with server(script) as endpoint, make_pool(limit=3) as pool:
        await asyncio.gather(*(pool.request(endpoint, GET, buffered) for _ in range(20)))
        assert pool.opened <= 3
    assert 1 < peak <= 3


async def test_a_failure_gives_its_place_back() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        if peer.number < 3:
            peer.reset()
            return
        await peer.say(answer(b"ok"))

    async with server(script) as endpoint, make_pool(limit=1) as pool:
        for _ in range(3):
            with pytest.raises(TransportError):
                await pool.request(endpoint, GET, buffered)
        assert (await pool.request(endpoint, GET, buffered)).body == b"ok"


@pytest.mark.parametrize("said", [b"", b"HTTP/1.1 200", answer(bytes(100))[:-50]])
async def test_a_stall(said: bytes) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(said)
        await peer.gone()

    memory = Guarded(100)
    async with server(script) as endpoint, make_pool(stall_timeout_s=0.1) as pool:
        with pytest.raises(TransportTimeout, match=r"0\.1 s"):
            await pool.request(endpoint, GET, lambda _: memory.landing())
    assert memory.intact


async def test_a_stall_of_what_is_sent() -> None:
    async def script(peer: Peer) -> None:
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await asyncio.Event().wait()

    async with server(script) as endpoint, make_pool(stall_timeout_s=0.1) as pool:
        with pytest.raises(TransportTimeout):
            await pool.request(endpoint, Request("PUT", GET.head, [memoryview(bytes(32 * MiB))]), buffered)


async def test_slow_is_no_stall() -> None:
    """Bytes come for much longer than the limit, one by one."""

    async def script(peer: Peer) -> None:
        await peer.request()
        for octet in answer(bytes(20)):
            await peer.say(bytes([octet]))
            await asyncio.sleep(0.01)

    async with server(script) as endpoint, make_pool(stall_timeout_s=0.2) as pool:
        assert (await pool.request(endpoint, GET, buffered)).body == bytes(20)


async def test_closing_ends_what_is_under_way() -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        reached.set()
        await peer.gone()

    reached = asyncio.Event()
    async with server(script) as endpoint:
        pool = make_pool()
        task = asyncio.ensure_future(pool.request(endpoint, GET, buffered))
        await reached.wait()
        await pool.aclose()
        with pytest.raises(ReadError, match="closed"):
            await task
        with pytest.raises(ClosedError):
            await pool.request(endpoint, GET, buffered)


async def test_closing_opens_nothing() -> None:
    """A reused connection that ends because the pool is closed is not replaced by a fresh one."""

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b"ok"))
        await peer.request()
        reached.set()
        await peer.gone()

    reached = asyncio.Event()
    async with server(script) as endpoint:
        pool = make_pool()
        await pool.request(endpoint, GET, buffered)
        task = asyncio.ensure_future(pool.request(endpoint, GET, buffered))
        await reached.wait()
        await pool.aclose()
        with pytest.raises((ReadError, ClosedError)):
            await task
        assert pool.opened == 1


async def test_a_connection_made_while_the_pool_closes_is_dropped() -> None:
    async with server(polite) as endpoint:
        pool = make_pool()
        task = asyncio.ensure_future(pool.request(endpoint, GET, buffered))
        await asyncio.sleep(0)  # it has begun to connect
        await pool.aclose()
        with pytest.raises(ClosedError):
            await task


async def test_a_refused_connection(unused_tcp_port: int) -> None:
    async with make_pool() as pool:
        with pytest.raises(ConnectError, match="check the endpoint URL") as failure:
            await pool.request(Endpoint("http", "127.0.0.1", unused_tcp_port), GET, buffered)
    assert isinstance(failure.value.__cause__, OSError)


async def test_a_name_that_does_not_resolve() -> None:
    async with make_pool() as pool:
        with pytest.raises(ConnectError, match=r"no-such-host\.invalid"):
            await pool.request(Endpoint("http", "no-such-host.invalid", 80), GET, buffered)


async def test_a_connection_that_is_not_made_in_time(certificate: Certificate) -> None:
    async def mute(peer: Peer) -> None:
        await peer.gone()

    tls = client_context(str(certificate.authority), verify=True)
    async with server(mute) as endpoint, make_pool(connect_timeout_s=0.1, tls=tls) as pool:
        with pytest.raises(TransportTimeout, match=r"0\.1 s"):  # the handshake is never answered
            await pool.request(Endpoint("https", endpoint.host, endpoint.port), GET, buffered)


async def test_an_idle_connection_keeps_nothing_of_what_it_was_made_for() -> None:
    class Whatever:
        """A caller's."""

    variable: ContextVar[Whatever] = ContextVar("variable")
    kept: list[weakref.ref[Whatever]] = []

    async def caller(pool: ConnectionPool, endpoint: Endpoint) -> None:
        whatever = Whatever()
        kept.append(weakref.ref(whatever))
        variable.set(whatever)
        await pool.request(endpoint, GET, buffered)

    async with server(polite) as endpoint, make_pool(connect_timeout_s=0.3) as pool:
        await asyncio.create_task(caller(pool, endpoint))
        assert pool.opened == 1
        await until(lambda: kept[0]() is None)  # asyncio's loop keeps a cancelled timer until it is due


async def test_fresh_connections_do_not_gather() -> None:
    """Requests that want one of their own (hedges) leave idle ones unused; those would become ever more."""
    left: list[int] = []

    async def script(peer: Peer) -> None:
        try:
            await polite(peer)
        finally:
            left.append(peer.number)

    async with server(script) as endpoint, make_pool(limit=2) as pool:
        for _ in range(5):
            await pool.request(endpoint, replace(GET, fresh=True), buffered)
        await until(lambda: len(left) == 3)
        assert left == [0, 1, 2]
        assert (await pool.request(endpoint, GET, buffered)).body == b"ok"
        assert pool.opened == 5


def server_context(certificate: Certificate) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    context.load_cert_chain(certificate.chain, certificate.key)
    return context


async def test_tls(certificate: Certificate) -> None:
    body = bytes(range(256)) * 4096

    async def script(peer: Peer) -> None:
        await peer.request()
        assert await peer.body(len(body)) == body
        await peer.say(answer(body))
        await polite(peer)

    memory = Guarded(len(body))
    tls = client_context(str(certificate.authority), verify=True)
    async with server(script, server_context(certificate)) as endpoint, make_pool(tls=tls) as pool:
        request = Request("PUT", GET.head, [memoryview(body)[:1000], memoryview(body)[1000:]])
        await pool.request(endpoint, request, lambda _: memory.landing())
        assert memory.view == body
        assert (await pool.request(endpoint, GET, buffered)).body == b"ok"
        assert pool.opened == 1


async def test_a_server_that_speaks_no_tls() -> None:
    async def plain(peer: Peer) -> None:
        await peer.say(b"HTTP/1.1 400 Bad Request\r\n\r\n")
        await peer.gone()

    async with server(plain) as endpoint, make_pool(tls=client_context(None, verify=True)) as pool:
        secured = Endpoint("https", endpoint.host, endpoint.port)
        with pytest.raises(TLSError, match="check the endpoint URL"):
            await pool.request(secured, GET, buffered)


async def test_a_server_that_goes_away_while_tls_is_agreed_on() -> None:
    """That may be better at the next try."""

    async def leaves(peer: Peer) -> None:
        await peer.reader.read(1)

    async with server(leaves) as endpoint, make_pool(tls=client_context(None, verify=True)) as pool:
        with pytest.raises(ConnectError) as failure:
            await pool.request(Endpoint("https", endpoint.host, endpoint.port), GET, buffered)
    assert not isinstance(failure.value, TLSError)


async def test_tls_with_an_authority_that_is_not_known(certificate: Certificate) -> None:
    tls = client_context(None, verify=True)
    async with server(polite, server_context(certificate)) as endpoint, make_pool(tls=tls) as pool:
        with pytest.raises(ConnectError, match="ca_bundle"):
            await pool.request(endpoint, GET, buffered)


async def test_tls_unverified(certificate: Certificate) -> None:
    tls = client_context(None, verify=False)
    async with server(polite, server_context(certificate)) as endpoint, make_pool(tls=tls) as pool:
        assert (await pool.request(endpoint, GET, buffered)).body == b"ok"


async def test_tls_cancelled_in_a_body(certificate: Certificate) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(bytes(MiB))[: MiB // 2])
        await peer.gone()

    memory = Guarded(MiB)
    tls = client_context(str(certificate.authority), verify=True)
    async with server(script, server_context(certificate)) as endpoint, make_pool(tls=tls) as pool:
        task = asyncio.ensure_future(pool.request(endpoint, GET, lambda _: memory.landing()))
        await until(lambda: not memory.untouched)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = bytes(memory.view)
        await asyncio.sleep(0.02)
        assert bytes(memory.view) == before


async def test_tls_holds_little_of_a_body_that_the_server_takes_slowly(certificate: Certificate) -> None:
    held: list[int] = []
    body = bytes(8 * MiB)

    async def script(peer: Peer) -> None:
        await peer.request()
        for _ in range(32):  # now and then a little: the client has to wait
            await peer.body(len(body) // 32)
            (connection,) = pool._busy
            assert connection._transport is not None
            held.append(connection._transport.get_write_buffer_size())
        await peer.say(answer(b""))

    tls = client_context(str(certificate.authority), verify=True)
    async with server(script, server_context(certificate)) as endpoint, make_pool(tls=tls) as pool:
        request = Request("PUT", b"PUT /key HTTP/1.1\r\nContent-Length: %d\r\n\r\n" % len(body), [memoryview(body)])
        await pool.request(endpoint, request, lambda _: None)
    assert 0 < max(held) <= 3 * TLS_WRITE_BYTES
