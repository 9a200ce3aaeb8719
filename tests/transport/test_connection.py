"""The connection against scripted bytes: first without sockets (any chunking), then over loopback on both loops."""

from __future__ import annotations

import asyncio
import tracemalloc
from collections.abc import Iterable, Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.errors import (
    LocalProtocolError,
    ReadError,
    RemoteProtocolError,
    TransportError,
    TransportTimeout,
    WriteError,
)
from aiockpt.model import KiB, MiB
from aiockpt.transport.connection import (
    MAX_BUFFERED_BYTES,
    MAX_INFORMATIONAL,
    ChooseLanding,
    Connection,
    Request,
    Response,
)
from aiockpt.transport.landing import Landing
from aiockpt.wire.http1 import MAX_HEAD_BYTES, ResponseHead
from transport.scripted import GET, Guarded, Peer, answer, server, until

BODY = bytes(range(256)) * 4


def buffered(_: ResponseHead) -> None:
    return None


def into(*views: memoryview) -> ChooseLanding:
    return lambda _: Landing(views)


# ---- without sockets


class Wire:
    """Stands in for a transport."""

    def __init__(self) -> None:
        self.sent: list[bytes | memoryview] = []
        self.unsent_bytes = 0
        self.aborted = False

    def write(self, data: bytes | memoryview) -> None:
        self.sent.append(data)

    def set_write_buffer_limits(self, high: int) -> None:
        """It holds what it is told to."""

    def get_write_buffer_size(self) -> int:
        return self.unsent_bytes

    def get_extra_info(self, name: str) -> None:
        """Nothing is known: no TLS."""

    def abort(self) -> None:
        self.aborted = True


def feed(connection: Connection, data: bytes, sizes: Iterable[int]) -> None:
    """Deliver ``data`` as a loop would, in reads of ``sizes``; the last one repeats."""
    size = 1
    cuts = iter(sizes)
    position = 0
    while position < len(data):
        size = next(cuts, size)
        buffer = connection.get_buffer(-1)
        piece = data[position : position + min(size, len(buffer))]
        buffer[: len(piece)] = piece
        position += len(piece)
        connection.buffer_updated(len(piece))


class Outcome:
    """What became of an exchange."""

    def __init__(self, result: Response | Exception, connection: Connection, wire: Wire) -> None:
        self.result = result
        self.reusable = connection.is_open
        self.aborted = wire.aborted

    @property
    def response(self) -> Response:
        assert isinstance(self.result, Response), self.result
        return self.result


@pytest.fixture(scope="module")
def loop() -> Iterator[asyncio.AbstractEventLoop]:
    made = asyncio.new_event_loop()
    yield made
    made.close()


def play(
    loop: asyncio.AbstractEventLoop,
    said: bytes,
    sizes: Iterable[int],
    *,
    choose: ChooseLanding = buffered,
    method: str = "GET",
    close: bool = False,
) -> Outcome:
    """One exchange in which the server says ``said`` (and closes)."""

    async def exchange() -> Outcome:
        connection, wire = Connection(loop), Wire()
        connection.connection_made(wire)  # type: ignore[arg-type]
        task = loop.create_task(connection.exchange(Request(method, b"head"), choose))
        await asyncio.sleep(0)
        feed(connection, said, sizes)
        if close and not connection.eof_received():
            connection.connection_lost(None)
        await asyncio.wait([task], timeout=0)
        if not task.done():
            await asyncio.sleep(0)
        error = task.exception()
        assert error is None or isinstance(error, Exception)
        return Outcome(error or task.result(), connection, wire)

    return loop.run_until_complete(exchange())


CHUNK_SIZES = st.lists(st.integers(1, 200), min_size=1, max_size=12)
BODIES = st.binary(max_size=300)
INTERIM = st.lists(st.sampled_from([100, 102, 103]), max_size=3)


CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"


@pytest.mark.parametrize("size", [1, 7, len(CONTINUE), 10_000])
def test_answers_that_are_none_are_read_over(loop: asyncio.AbstractEventLoop, size: int) -> None:
    said = CONTINUE * MAX_INFORMATIONAL + answer(BODY)
    assert play(loop, said, [size]).response.body == BODY


@pytest.mark.parametrize("size", [1, 7, len(CONTINUE), 10_000])
@pytest.mark.parametrize("said", [CONTINUE, b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n"])
def test_no_end_of_answers_that_are_none(loop: asyncio.AbstractEventLoop, said: bytes, size: int) -> None:
    outcome = play(loop, said * (MAX_INFORMATIONAL + 1) + answer(BODY), [size])
    assert isinstance(outcome.result, RemoteProtocolError)
    assert "informational" in str(outcome.result)
    assert outcome.aborted


def chunked(body: bytes, cuts: list[int]) -> bytes:
    pieces, rest = [], body
    for cut in cuts:
        piece, rest = rest[:cut], rest[cut:]
        pieces += [f"{len(piece):x}\r\n".encode(), piece, b"\r\n"] * bool(piece)
    pieces += [f"{len(rest):x}\r\n".encode(), rest, b"\r\n"] * bool(rest)
    return b"".join([*pieces, b"0\r\nx-trailer: 1\r\n\r\n"])


@st.composite
def answers(draw: st.DrawFn) -> tuple[bytes, bytes, str, bool]:
    """What the server says, the body in it, the method asked with, and whether the server then closes."""
    body = draw(BODIES)
    interim = b"".join(f"HTTP/1.1 {status} Wait\r\nx: y\r\n\r\n".encode() for status in draw(INTERIM))
    match draw(st.sampled_from(["length", "chunked", "close", "head", "204"])):
        case "length":
            return interim + answer(body), body, "GET", False
        case "chunked":
            head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
            return interim + head + chunked(body, draw(CHUNK_SIZES)), body, "GET", False
        case "close":
            return interim + b"HTTP/1.1 200 OK\r\n\r\n" + body, body, "GET", True
        case "head":
            return interim + f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\n\r\n".encode(), b"", "HEAD", False
        case _:
            return interim + b"HTTP/1.1 204 No Content\r\n\r\n", b"", "DELETE", False


@given(said=answers(), sizes=CHUNK_SIZES, lands=st.booleans(), data=st.data())
def test_any_chunking_gives_the_same(
    loop: asyncio.AbstractEventLoop, said: tuple[bytes, bytes, str, bool], sizes: list[int], lands: bool, data: Any
) -> None:
    octets, body, method, close = said
    cut = data.draw(st.integers(0, len(body)))
    first, second = Guarded(cut), Guarded(len(body) - cut)
    choose = into(first.view, second.view) if lands else buffered
    outcome = play(loop, octets, sizes, choose=choose, method=method, close=close)
    assert outcome.response.head.status in {200, 204}
    assert bytes(first.view) + bytes(second.view) == body if lands else outcome.response.body == body
    assert first.intact
    assert second.intact
    assert outcome.reusable is not close


@given(sizes=CHUNK_SIZES, surplus=st.binary(min_size=1, max_size=9), body=BODIES)
def test_bytes_behind_the_body_cost_the_connection_only(
    loop: asyncio.AbstractEventLoop, sizes: list[int], surplus: bytes, body: bytes
) -> None:
    memory = Guarded(len(body))
    outcome = play(loop, answer(body) + surplus, sizes, choose=into(memory.view))
    assert outcome.response.head.status == 200
    assert bytes(memory.view) == body
    assert memory.intact
    assert not outcome.reusable


@given(garbage=st.binary(min_size=1, max_size=400), sizes=CHUNK_SIZES, keep=st.booleans())
def test_garbage_ends_in_a_typed_error(
    loop: asyncio.AbstractEventLoop, garbage: bytes, sizes: list[int], keep: bool
) -> None:
    memory = Guarded(64)
    start = b"HTTP/1.1 206 Partial\r\n" if keep else b""
    outcome = play(loop, start + garbage + b"\r\n\r\n", sizes, choose=into(memory.view), close=True)
    assert isinstance(outcome.result, (TransportError, RemoteProtocolError))
    assert not outcome.reusable
    assert memory.intact


@pytest.mark.parametrize("cut", range(0, len(answer(BODY[:40])), 7))
def test_a_connection_that_ends_at_any_byte(loop: asyncio.AbstractEventLoop, cut: int) -> None:
    memory = Guarded(40)
    outcome = play(loop, answer(BODY[:40])[:cut], [5], choose=into(memory.view), close=True)
    assert isinstance(outcome.result, ReadError)
    assert memory.intact


@pytest.mark.parametrize("announced", [39, 41, 0])
def test_another_length_than_expected_lands_nothing(loop: asyncio.AbstractEventLoop, announced: int) -> None:
    memory = Guarded(40)
    outcome = play(loop, answer(bytes(announced)), [7], choose=into(memory.view))
    assert isinstance(outcome.result, RemoteProtocolError)
    assert memory.untouched
    assert outcome.aborted


@pytest.mark.parametrize("nbytes", [39, 41])
def test_a_chunked_body_of_another_length(loop: asyncio.AbstractEventLoop, nbytes: int) -> None:
    memory = Guarded(40)
    said = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunked(bytes(nbytes), [10])
    outcome = play(loop, said, [64], choose=into(memory.view))
    assert isinstance(outcome.result, (ReadError, RemoteProtocolError))
    assert memory.intact
    assert not outcome.reusable


def test_an_endless_head(loop: asyncio.AbstractEventLoop) -> None:
    said = b"HTTP/1.1 200 OK\r\n" + b"x: " + b"y" * MAX_HEAD_BYTES + b"\r\n\r\n"
    outcome = play(loop, said, [1000])
    assert isinstance(outcome.result, RemoteProtocolError)
    assert "longer than" in str(outcome.result)


@pytest.mark.parametrize(
    "head",
    [
        f"HTTP/1.1 200 OK\r\nContent-Length: {MAX_BUFFERED_BYTES + 1}\r\n\r\n".encode(),
        b"HTTP/1.1 200 OK\r\n\r\n" + bytes(MAX_BUFFERED_BYTES + 1),
    ],
)
def test_a_buffered_body_is_bounded(loop: asyncio.AbstractEventLoop, head: bytes) -> None:
    outcome = play(loop, head, [MiB])
    assert isinstance(outcome.result, RemoteProtocolError)


def test_what_choose_raises_ends_the_exchange(loop: asyncio.AbstractEventLoop) -> None:
    def choose(_: ResponseHead) -> None:
        raise LookupError

    outcome = play(loop, answer(b"x"), [100], choose=choose)
    assert isinstance(outcome.result, LookupError)
    assert outcome.aborted


@pytest.mark.parametrize(
    ("head", "reusable"),
    [
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", True),
        ("HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n", False),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\n\r\n", False),
        ("HTTP/1.0 200 OK\r\nContent-Length: 0\r\nConnection: keep-alive\r\n\r\n", True),
    ],
)
def test_reuse(loop: asyncio.AbstractEventLoop, head: str, reusable: bool) -> None:
    assert play(loop, head.encode(), [100]).reusable is reusable


def test_a_request_shows_neither_its_head_nor_its_body() -> None:
    request = Request("PUT", b"Authorization: secret", (memoryview(b"secret"),))
    assert repr(request) == "Request(method='PUT', body=6 bytes)"


# ---- over loopback, on both loops


async def connect(endpoint: Any) -> Connection:
    loop = asyncio.get_running_loop()
    _, connection = await loop.create_connection(lambda: Connection(loop), endpoint.host, endpoint.port)
    return connection


async def lost(connection: Connection) -> None:
    """Wait until the loop has told the connection that it is gone."""
    await until(lambda: connection._transport is None)


async def test_the_body_lands_in_the_memory_given_without_another_in_between() -> None:
    nbytes = 64 * MiB
    source = memoryview(bytes(range(256)) * (MiB // 256))

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(f"HTTP/1.1 200 OK\r\nContent-Length: {nbytes}\r\n\r\n".encode())
        for _ in range(nbytes // len(source)):
            await peer.say(source[: len(source)])  # type: ignore[arg-type]

    memory = memoryview(bytearray(nbytes))
    async with server(script) as endpoint:
        connection = await connect(endpoint)
        tracemalloc.start()
        try:
            await connection.exchange(GET, into(memory))
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        connection.abort()
        await lost(connection)
    assert memory[: len(source)] == memory[-len(source) :] == source
    assert peak < 8 * MiB  # the server's side is in it


async def test_a_body_is_sent_as_it_is() -> None:
    views = [memoryview(bytes([number]) * (300 * KiB + number)) for number in range(5)]
    heard = bytearray()

    async def script(peer: Peer) -> None:
        await peer.request()
        heard.extend(await peer.body(sum(map(len, views))))
        await peer.say(answer(b"", "200 OK"))

    async with server(script) as endpoint:
        connection = await connect(endpoint)
        await connection.exchange(Request("PUT", GET.head, views), buffered)
        assert connection.is_open
        connection.abort()
        await lost(connection)
    assert heard == b"".join(views)


async def test_an_error_while_the_body_is_sent_ends_the_sending() -> None:
    """The server does not read on, so the rest of the body can only be dropped: the memory is the caller's again."""
    body = memoryview(bytearray(32 * MiB))
    heard = bytearray()

    async def script(peer: Peer) -> None:
        await peer.request()
        peer.writer.transport.pause_reading()  # type: ignore[attr-defined]
        await peer.say(answer(b"<Error/>", "400 Bad Request"))
        await ended.wait()
        peer.writer.transport.resume_reading()  # type: ignore[attr-defined]
        while more := await peer.reader.read(MiB):
            heard.extend(more)

    ended = asyncio.Event()
    async with server(script) as endpoint:
        connection = await connect(endpoint)
        response = await connection.exchange(Request("PUT", GET.head, [body[:MiB], body[MiB:]]), buffered)
        assert response.head.status == 400
        assert not connection.is_open
        body[:] = b"\xff" * len(body)
        ended.set()
        await lost(connection)
        await asyncio.sleep(0.05)  # what the kernel held arrives
    assert len(heard) < len(body)
    assert 0xFF not in heard


STAGES = ["connected", "request", "head", "body"]


async def say_until(peer: Peer, stage: str, body: bytes) -> None:
    """Carry out an exchange as far as ``stage``."""
    if stage == "connected":
        return
    await peer.request()
    if stage == "request":
        return
    said = answer(body)
    await peer.say(said[:20] if stage == "head" else said[: -len(body) // 2])


@pytest.mark.parametrize("stage", STAGES)
@pytest.mark.parametrize("how", ["reset", "close"])
async def test_a_lost_connection_at_every_stage(stage: str, how: str) -> None:
    async def script(peer: Peer) -> None:
        await say_until(peer, stage, BODY)
        if stage == "body":
            await until(lambda: not memory.untouched)
        getattr(peer, how)()

    memory = Guarded(len(BODY))
    async with server(script) as endpoint:
        connection = await connect(endpoint)
        with pytest.raises(TransportError):
            await connection.exchange(GET, into(memory.view))
        assert not connection.is_open
        with pytest.raises(LocalProtocolError):
            await connection.exchange(GET, into(memory.view))
        await lost(connection)
    assert memory.intact
    assert memory.untouched is (stage != "body")


@pytest.mark.parametrize("stage", STAGES)
async def test_cancellation_at_every_stage_leaves_the_memory_alone(stage: str) -> None:
    async def script(peer: Peer) -> None:
        await say_until(peer, stage, BODY)
        reached.set()
        await cancelled.wait()
        await peer.say(answer(BODY)[20:])

    reached, cancelled = asyncio.Event(), asyncio.Event()
    memory = Guarded(len(BODY))
    async with server(script) as endpoint:
        connection = await connect(endpoint)
        task = asyncio.ensure_future(connection.exchange(GET, into(memory.view)))
        await reached.wait()
        await until(lambda: stage != "body" or not memory.untouched)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        before = bytes(memory.view)
        cancelled.set()
        await lost(connection)
        await asyncio.sleep(0.02)  # the server says the rest
    assert bytes(memory.view) == before


async def test_cancellation_while_a_body_is_sent() -> None:
    body = memoryview(bytearray(16 * MiB))

    async def script(peer: Peer) -> None:
        await peer.request()
        reached.set()
        await cancelled.wait()
        heard = bytearray()
        try:
            while more := await peer.reader.read(MiB):
                heard.extend(more)
        except ConnectionError:
            pass
        assert 0xFF not in heard

    reached, cancelled = asyncio.Event(), asyncio.Event()
    async with server(script) as endpoint:
        connection = await connect(endpoint)
        task = asyncio.ensure_future(connection.exchange(Request("PUT", GET.head, [body]), buffered))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        body[:] = b"\xff" * len(body)
        cancelled.set()
        await lost(connection)


@pytest.mark.parametrize("answered", [False, True])
async def test_a_meter_tells_what_the_peer_has_taken_and_what_is_cut_is_sent_no_further(answered: bool) -> None:
    """The peer reads only when it is told to; the kernels on both sides have room for some of the body."""
    read, reset = asyncio.Event(), asyncio.Event()

    async def lazy(peer: Peer) -> None:
        await peer.request()
        await read.wait()
        try:
            await peer.body(len(body))
            await peer.say(answer(b""))
        except ConnectionResetError:
            reset.set()

    body = memoryview(bytearray(32 * MiB))
    request = Request("PUT", GET.head, [body])
    assert request.meter.nbytes == 0
    async with server(lazy) as endpoint:
        connection = await connect(endpoint)
        task = asyncio.ensure_future(connection.exchange(request, buffered))
        await until(lambda: request.meter.nbytes > 0)
        assert request.meter.nbytes < len(body)
        if answered:
            read.set()
            await task
            assert request.meter.nbytes == len(body)
        else:
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert 0 < request.meter.nbytes < len(body)
            read.set()
            await reset.wait()  # a reset, and not what was left
        connection.abort()
        await lost(connection)


async def test_a_connection_that_is_lost_before_its_first_request() -> None:
    """A broken connection like any other, to be tried again; nobody's mistake."""

    async def script(peer: Peer) -> None:
        peer.reset()

    async with server(script) as endpoint:
        connection = await connect(endpoint)
        await lost(connection)
        with pytest.raises(WriteError):
            await connection.exchange(GET, buffered)


async def test_two_exchanges_at_once_are_refused() -> None:
    async def script(peer: Peer) -> None:
        await peer.gone()

    async with server(script) as endpoint:
        connection = await connect(endpoint)
        task = asyncio.ensure_future(connection.exchange(GET, buffered))
        await asyncio.sleep(0)
        with pytest.raises(LocalProtocolError):
            await connection.exchange(GET, buffered)
        connection.fail(TransportTimeout("stalled"))
        with pytest.raises(TransportTimeout):
            await task
        await lost(connection)


def test_a_stall_is_when_neither_side_moves(loop: asyncio.AbstractEventLoop) -> None:
    async def watch() -> None:
        connection, wire = Connection(loop), Wire()
        connection.connection_made(wire)  # type: ignore[arg-type]
        assert not connection.check_stall(connection.last_progress + 100, 10)  # idle
        task = loop.create_task(connection.exchange(Request("PUT", b"head", [memoryview(b"body")]), buffered))
        await asyncio.sleep(0)
        start = connection.last_progress
        assert not connection.check_stall(start + 9, 10)
        assert connection.check_stall(start + 11, 10)
        wire.unsent_bytes = 3  # the kernel has taken some
        assert not connection.check_stall(start + 11, 10)
        assert connection.check_stall(start + 22, 10)
        connection.fail(TransportTimeout("no byte moved"))
        with pytest.raises(TransportTimeout):
            await task
        assert not connection.check_stall(start + 1000, 10)

    loop.run_until_complete(watch())
