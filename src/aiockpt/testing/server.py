"""The endpoint: serves S3 on connections, counts, shapes, and misbehaves where it was told to."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import NoReturn

from aiockpt.errors import RemoteProtocolError
from aiockpt.testing.answers import Answer, Refusal
from aiockpt.testing.checksums import decode_aws_chunked
from aiockpt.testing.connection import Connection, HeadTooLong
from aiockpt.testing.content import EMPTY, Content, crc32, cut, with_flipped_bit
from aiockpt.testing.faults import Disturbance, Fault, FaultBook, FaultKind
from aiockpt.testing.memory import BlockPool, Landing
from aiockpt.testing.objects import MAX_REQUEST_BYTES
from aiockpt.testing.requests import Request, operation_of, parse_request
from aiockpt.testing.service import UPLOADS, Credentials, perform, refused
from aiockpt.testing.shaping import Network
from aiockpt.testing.state import State
from aiockpt.testing.stats import Recorder, RequestRecord

#: The kinds of faults that interrupt a body; a request meets one of them at most.
_INTERRUPTIONS = (FaultKind.RESET, FaultKind.END_EARLY, FaultKind.STALL)

#: A body that crawls moves in runs of so many seconds at its rate: smooth to whoever watches its progress.
_CRAWL_RUN_S = 0.02

_NO_REQUEST = Request("", "", "", "", {}, {}, keep_alive=False)


class _Broken(Exception):  # ends the serving of a connection
    """The connection was broken on purpose."""


@dataclass(slots=True)
class _Exchange:
    """One request and what has become of it."""

    request: Request
    operation: str = "Unknown"
    disturbance: Disturbance = field(default_factory=Disturbance)
    refusal: Refusal | None = None
    body_bytes_in: int = 0
    status: int = 0
    error_code: str = ""
    close: bool = False


class Endpoint:
    """Serves the connections of one listener.

    Attributes:
        state: what operations work on.
        network, faults, recorder: may be changed while serving.
    """

    def __init__(self, state: State, network: Network, credentials: Credentials, pool: BlockPool) -> None:
        self.state = state
        self.network = network
        self.faults = FaultBook()
        self.recorder = Recorder()
        self._credentials = credentials
        self._pool = pool
        self._calm = asyncio.Event()
        self._connection_numbers = itertools.count(1)
        self._request_numbers = itertools.count(1)

    def clear_faults(self) -> None:
        """Drop all faults, and let stalled connections go on."""
        self.faults.clear()
        self._credentials.expired.clear()
        self._calm.set()
        self._calm = asyncio.Event()

    async def serve(self, connection: Connection) -> None:
        """Serve a connection for as long as it lasts."""
        number = 0
        try:
            while True:
                head = await self._head(connection)
                if not number:
                    number = next(self._connection_numbers)
                    self.recorder.connection_started()
                if not await self._exchange(connection, head, number):
                    return
        except _Broken:
            pass
        finally:
            connection.close()
            if number:
                self.recorder.connection_ended()

    async def _head(self, connection: Connection) -> bytes:
        try:
            return await connection.read_head()
        except HeadTooLong:
            return b""

    async def _exchange(self, connection: Connection, head: bytes, number: int) -> bool:
        """Serve one request; returns whether another may follow."""
        exchange = self._understood(head)
        self.recorder.request_started(exchange.operation, disturbed=bool(exchange.disturbance))
        sent_before = connection.bytes_sent
        try:
            await self._answer(connection, exchange)
        finally:
            self.recorder.request_ended(
                _record(exchange, connection.bytes_sent - sent_before, number), exchange.error_code
            )
        return not exchange.close

    def _understood(self, head: bytes) -> _Exchange:
        """What a head (empty: one that was too long) asks for, and whether it is refused at once."""
        try:
            exchange = _Exchange(parse_request(head))
        except Refusal as refusal:
            return _Exchange(_NO_REQUEST, refusal=refusal, close=True)
        request = exchange.request
        try:
            exchange.operation = operation_of(request)
            exchange.disturbance = self.faults.match(exchange.operation, request.key)
            if exchange.disturbance.get(FaultKind.EXPIRE) and request.access_key:
                self._credentials.expired.add(request.access_key)
            self._credentials.check(request)
        except Refusal as refusal:
            exchange.refusal = refusal
        closes = exchange.disturbance.get(FaultKind.CLOSE, FaultKind.WRONG_LENGTH)
        exchange.close = not request.keep_alive or closes is not None
        return exchange

    async def _answer(self, connection: Connection, exchange: _Exchange) -> None:
        request_id = f"{next(self._request_numbers):016X}"
        try:
            await self._receive(connection, exchange)
            answer = self._perform(exchange)
        except Refusal as refusal:
            answer = refused(refusal, exchange.request, request_id)
        # The body's memory is the store's now, or nobody's.
        exchange.request = replace(exchange.request, content=EMPTY)
        if exchange.disturbance.get(FaultKind.LOST_REPLY):
            await self._break(connection)
        if late := exchange.disturbance.get(FaultKind.LATE):
            await _pause(self._calm, late.delay_s)
        if self.network.shape.first_byte_latency_s:
            await asyncio.sleep(self.network.shape.first_byte_latency_s)
        exchange.error_code = answer.error_code
        await self._send(connection, exchange, answer, request_id)

    def _perform(self, exchange: _Exchange) -> Answer:
        if exchange.refusal is not None:
            raise exchange.refusal
        return perform(self.state, exchange.operation, exchange.request, exchange.disturbance)

    async def _receive(self, connection: Connection, exchange: _Exchange) -> None:
        """Receive the body, whatever will become of it, so that the connection can be used again.

        Raises:
            Refusal: it cannot be received; then the connection cannot be used again.
        """
        try:
            size = _body_size(exchange.request, exchange.operation)
            if exchange.request.header("expect").lower() == "100-continue":
                connection.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            if exchange.request.is_chunked:
                content = Content.of(await connection.read_chunked())
                exchange.body_bytes_in = content.size
            else:
                content = await self._land(connection, exchange, size)
        except RemoteProtocolError as exc:
            exchange.close = True
            raise Refusal("IncompleteBody") from exc
        except Refusal:
            exchange.close = True
            raise
        exchange.request = _with_body(exchange.request, content)

    async def _land(self, connection: Connection, exchange: _Exchange, size: int) -> Content:
        landing = Landing(size, self._pool)
        is_upload = exchange.operation in UPLOADS
        try:
            if is_upload and (fault := exchange.disturbance.get(*_INTERRUPTIONS)):
                await connection.fill(landing, min(fault.after_bytes or 0, size))
                await self._interrupt(connection, fault)
            crawl = exchange.disturbance.get(FaultKind.CRAWL) if is_upload else None
            async for run in self._runs(crawl, size):
                await connection.fill(landing, run.stop)
        finally:
            exchange.body_bytes_in = landing.received
        content = landing.content()
        flip = exchange.disturbance.get(FaultKind.FLIP_BIT)
        return _flipped(content, flip) if is_upload and flip else content

    async def _send(self, connection: Connection, exchange: _Exchange, answer: Answer, request_id: str) -> None:
        disturbance = exchange.disturbance
        is_upload = exchange.operation in UPLOADS
        pieces = answer.body.pieces
        if not is_upload and (flip := disturbance.get(FaultKind.FLIP_BIT)):
            pieces = tuple(with_flipped_bit(pieces, flip.after_bytes or 0))
        interruption = None if is_upload else disturbance.get(*_INTERRUPTIONS)
        if interruption and interruption.after_bytes is None:
            await self._interrupt(connection, interruption)
        lie = disturbance.get(FaultKind.WRONG_LENGTH)
        connection.write(answer.head(request_id, length_error=lie.length_error if lie else 0, close=exchange.close))
        exchange.status = answer.status
        if interruption and interruption.after_bytes is not None:
            await connection.send(cut(pieces, 0, interruption.after_bytes))
            await self._interrupt(connection, interruption)
            pieces = tuple(cut(pieces, interruption.after_bytes, answer.body.size))
        crawl = None if is_upload else disturbance.get(FaultKind.CRAWL)
        async for run in self._runs(crawl, sum(map(len, pieces))):
            await connection.send(cut(pieces, run.start, run.stop))

    async def _interrupt(self, connection: Connection, fault: Fault) -> None:
        if fault.kind is FaultKind.RESET:
            await self._break(connection)
        if fault.kind is FaultKind.END_EARLY:
            raise _Broken
        await self._calm.wait()

    async def _runs(self, crawl: Fault | None, size: int) -> AsyncIterator[range]:
        """The bytes of a body of ``size``, run by run, each when it may move; all at once where nothing crawls."""
        calm = self._calm
        start = min(crawl.after_bytes or 0, size) if crawl else size
        yield range(start)
        while crawl and start < size:
            step = size if calm.is_set() else max(1, int(crawl.bytes_per_s * _CRAWL_RUN_S))
            yield range(start, min(start + step, size))
            start += step
            await _pause(calm, step / crawl.bytes_per_s)

    async def _break(self, connection: Connection) -> NoReturn:
        await connection.reset()
        raise _Broken


async def _pause(calm: asyncio.Event, seconds: float) -> None:
    """Wait so long, or until faults are cleared."""
    with suppress(TimeoutError):
        await asyncio.wait_for(calm.wait(), seconds)


def _body_size(request: Request, operation: str) -> int:
    """The announced size of the body; 0 for one in chunks.

    Raises:
        Refusal: EntityTooLarge, MissingContentLength or InvalidArgument.
    """
    size = request.content_length
    if size is None and operation in UPLOADS and not request.is_chunked:
        raise Refusal("MissingContentLength")
    if (size or 0) > MAX_REQUEST_BYTES:
        raise Refusal("EntityTooLarge")
    return size or 0


def _with_body(request: Request, content: Content) -> Request:
    """The request with its body, aws-chunked taken apart, trailers among the headers."""
    if "aws-chunked" not in request.header("content-encoding") and not request.header(
        "x-amz-content-sha256"
    ).startswith("STREAMING-"):
        return replace(request, content=content)
    payload, trailers = decode_aws_chunked(content.to_bytes())
    if request.header("x-amz-decoded-content-length") not in {"", str(len(payload))}:
        raise Refusal("IncompleteBody")
    return replace(request, content=Content.of(payload), headers={**request.headers, **trailers})


def _flipped(content: Content, fault: Fault) -> Content:
    pieces = tuple(with_flipped_bit(content.pieces, fault.after_bytes or 0))
    return replace(content, pieces=pieces, crc32=crc32(pieces))


def _record(exchange: _Exchange, bytes_out: int, connection: int) -> RequestRecord:
    request = exchange.request
    number = request.query.get("partNumber", "")
    return RequestRecord(
        operation=exchange.operation,
        method=request.method,
        bucket=request.bucket,
        key=request.key,
        range=request.header("range"),
        part_number=int(number) if number.isdigit() else 0,
        status=exchange.status,
        body_bytes_in=exchange.body_bytes_in,
        body_bytes_out=bytes_out,
        connection=connection,
    )
