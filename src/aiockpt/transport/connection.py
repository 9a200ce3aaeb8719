"""One HTTP/1.1 connection that lands response bodies in, and sends request bodies from, the caller's memory.

A ``BufferedProtocol`` on uvloop: ``get_buffer`` hands the kernel the destination itself, so a body is written once, by
``recv``. Requests leave through an ``outlet``, which sends their bodies from where they are. This module knows HTTP
framing (from ``wire``), never S3.

Invariants: one exchange at a time; a connection is reusable only after a response that was read to its end and a
request that was sent to its end; after an exchange has ended, however it ended, no byte is written to or read from
the caller's memory.
"""

from __future__ import annotations

import asyncio
import enum
import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import cast

from aiockpt.errors import LocalProtocolError, ReadError, RemoteProtocolError, TransportError, WriteError
from aiockpt.model import KiB, MiB
from aiockpt.observe.exchange import Exchange, clock
from aiockpt.transport.landing import Landing
from aiockpt.transport.meter import Meter
from aiockpt.transport.outlet import Outlet, outlet_of
from aiockpt.wire.http1 import MAX_HEAD_BYTES, ChunkedBody, Framing, ResponseHead, framing, head_end, parse_head

#: Bytes asked for while a head is awaited. What arrives behind the head in the same read is copied to its
#: destination, so this also bounds that copy: 4 KiB for a body of several MiB.
HEAD_READ_BYTES = 4 * KiB

#: Most informational answers (1xx) before the real one. None is asked for, and each counts as progress: without a bound
#: a server could keep a request waiting for ever. Proxies send a 100 or a few 102 at most.
MAX_INFORMATIONAL = 16

#: Most bytes of a body that no landing was chosen for: errors, and small objects read whole.
MAX_BUFFERED_BYTES = 16 * MiB

_numbers = itertools.count(1)


@dataclass(frozen=True, slots=True)
class Request:
    """One request: its serialized head, and its body as views that stay the caller's.

    Attributes:
        method: decides with the response how the response's body is framed.
        head: request line and headers, complete with the blank line; it holds the signature, so it is never shown.
        body: sent in order, each without being copied.
        meter: tells how far the body has come.
        exchange: what observers are shown of it, stamped on its way; None: nothing.
        fresh: whether it must have a connection of its own, looked up anew.
    """

    method: str
    head: bytes
    body: Sequence[memoryview] = ()
    meter: Meter = field(default_factory=Meter, compare=False)
    exchange: Exchange | None = field(default=None, compare=False)
    fresh: bool = False

    def __repr__(self) -> str:
        return f"Request(method={self.method!r}, body={sum(map(len, self.body))} bytes)"


@dataclass(frozen=True, slots=True)
class Response:
    """A response that was read to its end; ``body`` is empty when the bytes went into a landing."""

    head: ResponseHead
    body: bytes


#: Chooses where a body goes once its head is known: a landing, or None to have it buffered. May raise, which ends the
#: exchange and the connection with that error. Called on the loop thread, must not block.
ChooseLanding = Callable[[ResponseHead], Landing | None]


class _State(enum.Enum):
    IDLE = enum.auto()  # no exchange
    HEAD = enum.auto()  # awaiting a response head, into the head buffer
    LANDING = enum.auto()  # body of known length, straight into the landing
    DECODING = enum.auto()  # chunked or until-close body, through the head buffer
    CLOSED = enum.auto()


class Connection(asyncio.BufferedProtocol):
    """See the module. Made by ``loop.create_connection``; used by one task at a time.

    Attributes:
        number: of the connection, counting from 1 in this process.
        heard: whether a byte of the present response has arrived.
        sent_s, heard_s: when, by ``observe.exchange.clock``, the last request had been given to the transport, and the
            first byte of its response arrived; 0: not (yet).
        received_bytes: of the last response's body.
        exchanges: how many have been started: 0 on a fresh connection.
        last_progress: loop time when a byte last moved.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.number = next(_numbers)
        self._loop = loop
        self._transport: asyncio.Transport | None = None
        self._outlet: Outlet | None = None
        self._state = _State.IDLE
        self._head_buffer = bytearray(MAX_HEAD_BYTES)
        self._head_view = memoryview(self._head_buffer)
        self._head_length = 0
        self._informational = 0
        self._method = ""
        self._head: ResponseHead | None = None
        self._choose: ChooseLanding | None = None
        self._landing: Landing | None = None
        self._landed_before = 0
        self._collected: bytearray | None = None
        self._chunked: ChunkedBody | None = None
        self._response: asyncio.Future[Response] | None = None
        self._acknowledged_bytes = 0  # when progress was last looked for
        self._sending = False
        self._reusable = True
        self.heard = False
        self.sent_s = self.heard_s = 0.0
        self.received_bytes = 0
        self.exchanges = 0
        self.last_progress = loop.time()

    # ---- the exchange

    @property
    def is_open(self) -> bool:
        """Whether another exchange can be tried."""
        return self._state is _State.IDLE and self._transport is not None and self._reusable

    async def exchange(self, request: Request, choose: ChooseLanding) -> Response:
        """Send ``request`` and receive its response.

        Cancellation and every error close the connection at once; the bytes that had landed stay where they are.

        Raises:
            ReadError, WriteError: the connection broke.
            RemoteProtocolError: the response is no HTTP/1.1, or larger than its kind may be.
        """
        if self._state is _State.CLOSED and not self.exchanges:  # between its being made and its first use
            raise WriteError("connection lost before a request was sent")
        if not self.is_open or self._transport is None:
            raise LocalProtocolError("exchange on a connection that is busy or closed")
        self._begin(request, choose)
        response = self._response
        assert response is not None
        try:
            await self._send(request, response)
            answer = await response
        except BaseException:
            self.abort()
            raise
        finally:
            request.meter.end()
            if response.done() and not response.cancelled():
                response.exception()  # retrieved, also when a cancellation came first
            self.received_bytes = self._landing.landed - self._landed_before if self._landing is not None else 0
            self._response = self._choose = self._landing = None
        if self._sending or self._outlet is None or self._outlet.holds_memory:
            self.abort()  # answered before all was sent: what is left of it is the caller's memory
        return answer

    def _begin(self, request: Request, choose: ChooseLanding) -> None:
        self.exchanges += 1
        self.heard = False
        self.sent_s = self.heard_s = 0.0
        self.last_progress = self._loop.time()
        self._method = request.method
        self._choose = choose
        self._head_length = self._informational = 0
        self._response = self._loop.create_future()
        self._state = _State.HEAD
        if request.body:
            self._measure(request)

    def _measure(self, request: Request) -> None:
        outlet = self._outlet
        assert outlet is not None
        start, nbytes = outlet.sent_bytes + len(request.head), sum(map(len, request.body))
        request.meter.begin(lambda: min(nbytes, max(0, outlet.acknowledged_bytes - start)))  # encryption adds some

    async def _send(self, request: Request, response: asyncio.Future[Response]) -> None:
        assert self._outlet is not None
        self._sending = True
        if await self._outlet.send([request.head, *request.body], response):
            self._sending = False
            self.sent_s = clock()
        else:  # answered before all of it was sent: an error, or the connection is gone
            self._reusable = False
        self._acknowledged_bytes = self._outlet.acknowledged_bytes

    def abort(self) -> None:
        """Close at once; nothing touches the caller's memory afterwards.

        Of a request that is not answered the kernel sends no more either: who is cut must not go on.
        """
        if self._outlet is not None:
            if self._state is _State.HEAD:
                self._outlet.discard()
            self._outlet.close()
        self._state = _State.CLOSED
        self._reusable = False
        if self._transport is not None:
            self._transport.abort()

    def check_stall(self, now: float, limit_s: float) -> bool:
        """Whether an exchange has moved no byte for ``limit_s``. Looks at what the peer has acknowledged, too."""
        if self._state in {_State.IDLE, _State.CLOSED} or self._outlet is None:
            return False
        acknowledged = self._outlet.acknowledged_bytes
        if acknowledged != self._acknowledged_bytes:
            self._acknowledged_bytes = acknowledged
            self.last_progress = now
        return now - self.last_progress > limit_s

    def fail(self, error: Exception) -> None:
        """End the present exchange with ``error``."""
        if self._response is not None and not self._response.done():
            self._response.set_exception(error)
        self.abort()

    # ---- asyncio.BufferedProtocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast("asyncio.Transport", transport)
        self._outlet = outlet_of(self._loop, self._transport)

    def pause_writing(self) -> None:
        """Called by the loop: the transport holds enough."""
        assert self._outlet is not None
        self._outlet.pause()

    def resume_writing(self) -> None:
        """Called by the loop: the transport takes more."""
        assert self._outlet is not None
        self._outlet.resume()

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # the loop's signature
        """Called by the loop: where the next bytes go."""
        if self._state is _State.LANDING:
            assert self._landing is not None
            return self._landing.buffer()
        if self._state is _State.HEAD:
            return self._head_view[self._head_length : self._head_length + HEAD_READ_BYTES]
        return self._head_view

    def buffer_updated(self, nbytes: int) -> None:
        """Called by the loop: ``nbytes`` are where ``get_buffer`` said."""
        self.last_progress = self._loop.time()
        try:
            if self._state is _State.LANDING:
                self._landed(nbytes)
            elif self._state is _State.HEAD:
                self._received_head_bytes(nbytes)
            elif self._state is _State.DECODING:
                self._decode(self._head_view[:nbytes])
            else:  # bytes that nobody asked for: not usable for another exchange
                self.abort()
        except Exception as error:  # noqa: BLE001  # whatever it is belongs to the exchange, not to the loop
            self.fail(error)

    def eof_received(self) -> bool:
        """Called by the loop: the peer sends no more."""
        if self._state is _State.DECODING and self._chunked is None:
            try:
                self._finish()
            except ReadError as error:
                self.fail(error)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        """Called by the loop: the connection is gone."""
        self._transport = None
        error: TransportError
        if self._sending and not self.heard:
            error = WriteError(f"connection lost while a request was sent: {exc or 'closed by the server'}")
        else:
            error = ReadError(f"connection lost before the response was complete: {exc or 'closed by the server'}")
        error.__cause__ = exc
        self.fail(error)

    # ---- receiving

    def _received_head_bytes(self, nbytes: int) -> None:
        if not self.heard:
            self.heard = True
            self.heard_s = clock()
        resume = max(0, self._head_length - 3)
        self._head_length += nbytes
        end = head_end(self._head_buffer, self._head_length, resume)
        if end >= 0:
            self._received_head(end)
        elif self._head_length + HEAD_READ_BYTES > MAX_HEAD_BYTES:
            raise RemoteProtocolError(f"response head is longer than {MAX_HEAD_BYTES - HEAD_READ_BYTES} bytes")

    def _received_head(self, end: int) -> None:
        head = parse_head(bytes(self._head_view[:end]))
        rest = bytes(self._head_view[end : self._head_length])
        if 100 <= head.status < 200:  # informational: the real one follows
            self._informational += 1
            if self._informational > MAX_INFORMATIONAL:
                raise RemoteProtocolError(f"{self._informational} informational answers came and no real one")
            self._head_view[: len(rest)] = rest
            self._head_length = 0
            if rest:
                self._received_head_bytes(len(rest))
            return
        self._head = head
        self._reusable = self._reusable and head.keep_alive
        kind, length = framing(head, self._method)
        assert self._choose is not None
        self._landing = None if kind is Framing.EMPTY else self._choose(head)
        self._landed_before = self._landing.landed if self._landing is not None else 0
        self._start_body(kind, length, memoryview(rest))

    def _start_body(self, kind: Framing, length: int, rest: memoryview) -> None:
        self._collected = None
        self._chunked = ChunkedBody() if kind is Framing.CHUNKED else None
        if kind is Framing.EMPTY:
            self._landing = Landing(())
        elif self._landing is None:
            self._collect(kind, length)
        elif kind is Framing.LENGTH and length != self._landing.remaining:
            raise RemoteProtocolError(f"Content-Length is {length}, but {self._landing.remaining} bytes were expected")
        if kind in {Framing.CHUNKED, Framing.UNTIL_CLOSE}:
            self._state = _State.DECODING
            self._decode(rest)
            return
        assert self._landing is not None
        self._state = _State.LANDING
        if self._landing.copy_in(rest) < len(rest):
            self._reusable = False  # more than was announced, as ``buffer_updated`` would find a read later
        self._landed(0)

    def _collect(self, kind: Framing, length: int) -> None:
        """Have the body buffered: in one landing if its length is known, else as it is decoded."""
        if kind is not Framing.LENGTH:
            self._collected = bytearray()
        elif length > MAX_BUFFERED_BYTES:
            raise RemoteProtocolError(f"a response body of {length} bytes came where a small one was expected")
        else:
            self._collected = bytearray(length)
            self._landing = Landing([memoryview(self._collected)])

    def _landed(self, nbytes: int) -> None:
        assert self._landing is not None
        if nbytes:
            self._landing.advance(nbytes)
        if not self._landing.remaining:
            self._finish()

    def _decode(self, data: memoryview) -> None:
        payload = memoryview(self._chunked.feed(data)) if self._chunked is not None else data
        if self._landing is None:
            assert self._collected is not None
            self._collected += payload
            if len(self._collected) > MAX_BUFFERED_BYTES:
                raise RemoteProtocolError(f"a response body exceeds {MAX_BUFFERED_BYTES} bytes")
        elif self._landing.copy_in(payload) < len(payload):
            raise RemoteProtocolError("the server sent more bytes than were asked for")
        if self._chunked is not None and self._chunked.done:
            self._reusable = self._reusable and not self._chunked.unused
            self._finish()

    def _finish(self) -> None:
        """The response is complete: hand it over and be ready for the next exchange."""
        assert self._head is not None
        if self._chunked is None and self._state is _State.DECODING:
            self._reusable = False  # framed by the end of the connection
        landing, collected = self._landing, self._collected
        if collected is None and landing is not None and landing.remaining:
            raise ReadError(f"the body ended after {landing.landed} of {landing.total} bytes")
        self._state = _State.IDLE
        if self._response is not None and not self._response.done():
            self._response.set_result(Response(self._head, bytes(collected) if collected is not None else b""))
        self._head = self._collected = self._chunked = None
