"""The pool against a model of what it lends: bounded, each connection to one request at a time, none lost."""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import replace
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from aiockpt.errors import ClosedError, ReadError
from aiockpt.transport.connection import Connection, Response
from aiockpt.transport.pool import ConnectionPool, Endpoint
from aiockpt.wire.http1 import ResponseHead
from transport.scripted import GET

LIMIT = 3
ENDPOINTS = [Endpoint("http", name, 80) for name in ("a", "b")]


class FakeConnection:
    """A connection whose answers, and ends, the machine decides."""

    number = 0
    sent_s = heard_s = 0.0
    received_bytes = 0

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.is_open = True
        self.heard = False
        self.aborted = False
        self.answer: asyncio.Future[Response] | None = None

    async def exchange(self, request: Any, choose: Any) -> Response:
        assert self.is_open, "a closed connection was lent"
        assert self.answer is None, "a connection was lent twice"
        self.heard = False
        self.answer = asyncio.get_running_loop().create_future()
        try:
            return await self.answer
        except BaseException:
            self.is_open = False  # what of the answer is still to come is nobody's
            raise
        finally:
            self.answer = None

    def fail(self, error: Exception) -> None:
        self.is_open = False
        if self.answer is not None and not self.answer.done():
            self.answer.set_exception(error)

    def abort(self) -> None:
        self.is_open = False
        self.aborted = True

    def check_stall(self, now: float, limit_s: float) -> bool:
        return False


class PoolModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.runner = asyncio.Runner()
        self.connections: list[FakeConnection] = []
        self.requests: list[asyncio.Task[Response]] = []
        self.pool = self.runner.run(self.made())
        self.closed = False

    async def made(self) -> ConnectionPool:
        pool = ConnectionPool(limit=LIMIT, connect_timeout_s=5, stall_timeout_s=1000, tls=ssl.create_default_context)

        async def connect(endpoint: Endpoint) -> Connection:
            pool._refuse_closed()
            self.connections.append(FakeConnection(endpoint))
            return cast("Connection", self.connections[-1])

        pool._connect = connect  # type: ignore[method-assign]
        return pool

    async def settled(self) -> None:
        for _ in range(10):  # more than the steps of any request between two waits
            await asyncio.sleep(0)

    @property
    def lent(self) -> list[FakeConnection]:
        return [connection for connection in self.connections if connection.answer is not None]

    @property
    def idle(self) -> list[FakeConnection]:
        return [connection for connection in self.connections if connection.is_open and connection.answer is None]

    @rule(endpoint=st.sampled_from(ENDPOINTS), fresh=st.booleans())
    def ask(self, endpoint: Endpoint, fresh: bool) -> None:
        made, reusable = len(self.connections), [c for c in self.idle if c.endpoint == endpoint]
        has_room = len(self.lent) < LIMIT

        async def begin() -> None:
            request = self.pool.request(endpoint, replace(GET, fresh=fresh), lambda _: None)
            self.requests.append(asyncio.ensure_future(request))

        self.runner.run(begin())
        self.runner.run(self.settled())
        if self.closed:
            assert isinstance(self.requests.pop().exception(), ClosedError)
        elif has_room:
            assert len(self.connections) == made + (fresh or not reusable)

    @rule(which=st.integers(0, LIMIT))
    @precondition(lambda self: self.lent)
    def answer(self, which: int) -> None:
        connection = self.lent[which % len(self.lent)]
        assert connection.answer is not None
        connection.heard = True
        connection.answer.set_result(Response(ResponseHead(200, "OK", {}, keep_alive=True), b"ok"))
        done = self.finished()
        assert len(done) == 1
        assert done[0].result().body == b"ok"

    @rule(which=st.integers(0, LIMIT), heard=st.booleans())
    @precondition(lambda self: self.lent)
    def break_under_way(self, which: int, heard: bool) -> None:
        connection = self.lent[which % len(self.lent)]
        assert connection.answer is not None
        connection.heard = heard
        before = len(self.requests)
        connection.fail(ReadError("broken"))
        done = self.finished()
        assert len(done) <= 1
        assert all(isinstance(request.exception(), ReadError) for request in done)
        assert len(self.requests) + len(done) == before
        assert done or not heard  # repeated in silence only if the server had not begun to answer

    @rule(which=st.integers(0, 10))
    @precondition(lambda self: self.idle)
    def close_idle(self, which: int) -> None:
        self.idle[which % len(self.idle)].is_open = False

    @rule(which=st.integers(0, 10))
    @precondition(lambda self: self.requests)
    def cancel(self, which: int) -> None:
        request = self.requests[which % len(self.requests)]
        request.cancel()
        assert self.finished() == [request]
        assert request.cancelled()

    @rule(sure=st.integers(0, 5))
    def close(self, sure: int) -> None:
        if sure:
            return
        self.runner.run(self.pool.aclose())
        self.closed = True
        while done := self.finished():
            assert all(isinstance(request.exception(), ReadError | ClosedError) for request in done)
        assert self.requests == []

    def finished(self) -> list[asyncio.Task[Response]]:
        self.runner.run(self.settled())
        done = [request for request in self.requests if request.done()]
        self.requests = [request for request in self.requests if not request.done()]
        return done

    @invariant()
    def agrees(self) -> None:
        assert len(self.lent) <= LIMIT
        assert len(self.lent) == min(LIMIT, len(self.requests))  # nobody waits while there is room
        assert {id(connection) for connection in self.pool._busy} == {id(connection) for connection in self.lent}
        kept = [connection for idle in self.pool._idle.values() for connection in idle]
        assert {id(connection) for connection in kept} >= {id(connection) for connection in self.idle}
        assert len({id(connection) for connection in kept}) == len(kept)
        if self.closed:
            assert not self.idle

    def teardown(self) -> None:
        try:
            self.runner.run(self.pool.aclose())
            self.finished()
            assert all(not connection.is_open for connection in self.connections)
        finally:
            self.runner.close()


PoolModel.TestCase.settings = settings(max_examples=50, stateful_step_count=30, deadline=None)
TestPool = PoolModel.TestCase
