from __future__ import annotations

import asyncio
import ssl
import threading
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import replace
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st

from aiockpt.bridge import Bridge
from aiockpt.errors import ClosedError, ReadError
from aiockpt.transport.connection import ChooseLanding, Request, Response
from aiockpt.transport.pool import ConnectionPool, Endpoint
from aiockpt.transport.spread import ServedPool, SpreadPool, shares
from aiockpt.wire.http1 import ResponseHead
from transport.scripted import GET, Guarded, Peer, answer, server

T = TypeVar("T")

NOWHERE = Endpoint("http", "nowhere", 80)
ANSWER = Response(ResponseHead(200, "OK", {}, keep_alive=True), b"")


class Held:
    """A pool whose exchanges end when they are told to; it never has more than its limit."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.under_way: list[asyncio.Event] = []
        self.performed = 0
        self.closed = False

    async def request(self, endpoint: Endpoint, request: Request, choose: ChooseLanding) -> Response:
        go_on = asyncio.Event()
        self.under_way.append(go_on)
        self.performed += 1
        assert len(self.under_way) <= self.limit
        try:
            await go_on.wait()
        finally:
            self.under_way.remove(go_on)
        return ANSWER

    async def aclose(self) -> None:
        self.closed = True


def buffered(_: ResponseHead) -> None:
    return None


@given(st.integers(1, 200), st.data())
def test_shares_add_up_and_differ_by_one_at_most(limit: int, data: st.DataObject) -> None:
    count = data.draw(st.integers(1, limit))
    divided = shares(limit, count)
    assert (len(divided), sum(divided)) == (count, limit)
    assert divided == sorted(divided, reverse=True)
    assert divided[0] - divided[-1] <= 1
    assert divided[-1] >= 1


@given(st.integers(1, 4), st.integers(0, 9), st.data())
def test_no_pool_gets_more_than_its_share_and_none_waits_without_need(
    count: int, more: int, data: st.DataObject
) -> None:
    """Whichever exchanges end first, or are cancelled: what is asked for is under way up to the limit."""
    limit = count + more

    async def scene() -> None:
        pools = [Held(share) for share in shares(limit, count)]
        tasks: list[asyncio.Task[Response]] = []
        async with SpreadPool(pools, limit) as spread:
            for _ in range(40):
                step = data.draw(st.sampled_from(["ask", "answer", "cancel"]))
                under_way = [event for pool in pools for event in pool.under_way]
                if step == "ask":
                    tasks.append(asyncio.ensure_future(spread.request(NOWHERE, GET, buffered)))
                elif step == "answer" and under_way:
                    data.draw(st.sampled_from(under_way)).set()
                elif step == "cancel" and tasks:
                    data.draw(st.sampled_from(tasks)).cancel()
                for _ in range(4):
                    await asyncio.sleep(0)
                tasks = [task for task in tasks if not task.done()]
                assert sum(len(pool.under_way) for pool in pools) == min(len(tasks), limit)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            assert not any(pool.under_way for pool in pools)
        assert all(pool.closed for pool in pools)

    asyncio.run(scene())


async def test_one_at_a_time_stays_with_the_first() -> None:
    pools = [Held(2), Held(2)]
    spread = SpreadPool(pools, 4)
    for _ in range(3):
        asking = asyncio.ensure_future(spread.request(NOWHERE, GET, buffered))
        await asyncio.sleep(0)
        pools[0].under_way[0].set()
        assert await asking is ANSWER
    assert [pool.performed for pool in pools] == [3, 0]


# ---- on a loop of another thread


@pytest.fixture
def other() -> Iterator[Bridge]:
    made = Bridge("loop-2")
    yield made
    made.close()


def pool_on(other: Bridge) -> tuple[ConnectionPool, ServedPool]:
    pool = ConnectionPool(limit=4, connect_timeout_s=5, stall_timeout_s=10, tls=ssl.create_default_context)
    return pool, ServedPool(other, pool)


async def test_exchanges_are_performed_there(other: Bridge) -> None:
    chosen_on: list[str] = []
    memory = Guarded(4)

    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(answer(b"data"))

    def choose(_: ResponseHead) -> Any:
        chosen_on.append(threading.current_thread().name)
        return memory.landing()

    pool, served = pool_on(other)
    async with server(script) as endpoint:
        for _ in range(3):
            await served.request(endpoint, GET, choose)
        assert (await served.request(endpoint, replace(GET, fresh=True), buffered)).body == b"data"
        assert bytes(memory.view) == b"data"
        assert memory.intact
        assert pool.opened == 2
        await served.aclose()
        with pytest.raises(ClosedError):
            await served.request(endpoint, GET, buffered)
    assert set(chosen_on) == {"aiockpt-loop-2"}


async def test_what_fails_there_fails_here(other: Bridge) -> None:
    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(b"data")[:-2])
        peer.reset()

    _, served = pool_on(other)
    async with server(script) as endpoint:
        with pytest.raises(ReadError):
            await served.request(endpoint, GET, buffered)
        await served.aclose()


async def test_cancelled_here_it_has_ended_there(other: Bridge) -> None:
    """No byte lands afterwards, and its connection is gone."""
    landing, gone = asyncio.Event(), asyncio.Event()
    memory = Guarded(1000)

    async def script(peer: Peer) -> None:
        await peer.request()
        await peer.say(answer(bytes(1000))[:-500])
        landing.set()
        await peer.gone()
        gone.set()

    pool, served = pool_on(other)
    async with server(script) as endpoint:
        asking = asyncio.ensure_future(served.request(endpoint, GET, lambda _: memory.landing()))
        await landing.wait()
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking
        assert not pool._busy
        await gone.wait()
        assert memory.intact
        await served.aclose()


async def test_a_thread_that_has_stopped(other: Bridge) -> None:
    _, served = pool_on(other)
    await asyncio.to_thread(other.close)
    with pytest.raises(ClosedError, match="stopped"):
        await served.request(NOWHERE, GET, buffered)
    await served.aclose()


class _Here:
    """The loop that asks, in the place of another one's."""

    async def perform(self, work: Callable[[], Coroutine[Any, Any, T]]) -> T:
        return await work()


async def test_both_kinds_together() -> None:
    async def script(peer: Peer) -> None:
        while True:
            await peer.request()
            await peer.say(answer(b"ok"))

    pools = [
        ConnectionPool(limit=1, connect_timeout_s=5, stall_timeout_s=10, tls=ssl.create_default_context)
        for _ in range(3)
    ]
    async with (
        server(script) as endpoint,
        SpreadPool([pools[0], ServedPool(_Here(), pools[1]), ServedPool(_Here(), pools[2])], 3) as spread,
    ):
        answers = await asyncio.gather(*(spread.request(endpoint, GET, buffered) for _ in range(12)))
        assert [each.body for each in answers] == [b"ok"] * 12
        assert [pool.opened for pool in pools] == [1, 1, 1]
