from __future__ import annotations

import asyncio
import threading

import anyio
import pytest

from aiockpt.bridge import Bridge
from aiockpt.errors import ClosedError
from aiockpt.scope import Cancellable, Scope
from bridge.work import Work, forever, value


def test_cancel(bridge: Bridge) -> None:
    work = Work()
    call = bridge.start(work)
    work.running.wait()
    assert not call.wait(0)
    call.cancel()
    assert call.wait()
    assert work.ended.is_set()
    with pytest.raises(ClosedError):
        call.result()


def test_a_wait_on_the_loop_thread_returns_at_once(bridge: Bridge) -> None:
    """Where the garbage collector runs a destructor that winds up: anywhere."""

    async def wait() -> bool:
        call = bridge.start(forever)
        call.cancel()
        return call.wait()

    assert bridge.run(wait) is False


def test_a_scope_cancels_what_was_started_in_it(bridge: Bridge) -> None:
    inside, outside, scope = Work(), Work(), Scope()
    other = bridge.start(outside)
    with scope.entered():
        assert bridge.run(lambda: value(3)) == 3
        call = bridge.start(inside)
        inside.running.wait()
        scope.cancel()
        with pytest.raises(ClosedError):
            call.result()
        with pytest.raises(ClosedError, match="by its caller"):
            bridge.start(forever)
    assert inside.ended.is_set()
    assert not other.done
    other.cancel()


def test_the_end_of_work_is_told_however_it_ends(bridge: Bridge) -> None:
    ends: list[str] = []
    assert bridge.start(lambda: value(1), on_end=lambda: ends.append("done")).result() == 1
    cancelled = bridge.start(forever, on_end=lambda: ends.append("cancelled"))  # perhaps before it has begun
    cancelled.cancel()
    assert cancelled.wait()
    lost = bridge.start(forever, on_end=lambda: ends.append("stopped"))
    bridge.close()
    assert lost.done
    with pytest.raises(ClosedError):
        bridge.start(forever, on_end=lambda: ends.append("too late"))
    assert ends == ["done", "cancelled", "stopped", "too late"]


def test_cancelling_twice_lets_work_wind_up(bridge: Bridge) -> None:
    work = Work()
    call = bridge.start(work)
    work.running.wait()
    call.cancel()
    call.cancel()
    assert call.wait()
    assert work.ended.is_set()


def test_cancelling_before_the_beginning(bridge: Bridge) -> None:
    """A scope that is cancelled by another thread may know of a call that has not begun."""
    begun = threading.Event()

    class Early(Scope):
        def add(self, member: Cancellable) -> None:
            super().add(member)
            self.cancel()

    async def work() -> None:
        begun.set()
        await forever()

    with Early().entered():
        call = bridge.start(work)
    assert call.wait(10)
    assert not begun.is_set()


# ---- for a task of another loop


def test_another_loop_does_the_work(bridge: Bridge, other: Bridge) -> None:
    async def name() -> str:
        return threading.current_thread().name

    async def fail() -> None:
        raise LookupError("there")

    assert bridge.run(lambda: other.perform(name)) == "aiockpt-loop-2"
    with pytest.raises(LookupError, match="there"):
        bridge.run(lambda: other.perform(fail))


def test_what_another_loop_does_ends_before_who_was_cancelled(bridge: Bridge, other: Bridge) -> None:
    """However often, and by whatever, it is cancelled meanwhile."""
    work = Work()
    ended: list[bool] = []

    async def ask() -> None:
        try:
            await other.perform(work)
        finally:
            ended.append(work.ended.is_set())

    async def scene() -> None:
        task = asyncio.ensure_future(ask())
        await asyncio.to_thread(work.running.wait)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        work.running.clear()
        work.ended.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await asyncio.to_thread(work.running.wait)
            group.cancel_scope.cancel()

    bridge.run(scene)
    assert ended == [True, True]


def test_another_loop_that_stops(bridge: Bridge, other: Bridge) -> None:
    work = Work()
    call = bridge.start(lambda: other.perform(work))
    work.running.wait()
    other.close()
    with pytest.raises(ClosedError, match="is stopping"):
        call.result()
    with pytest.raises(ClosedError, match="has stopped"):
        bridge.run(lambda: other.perform(work))


def test_a_scope_cancels_only_the_call_that_others_serve(bridge: Bridge, other: Bridge) -> None:
    """Which then cancels what is done for it, once."""
    work, scope = Work(), Scope()
    with scope.entered():
        call = bridge.start(lambda: other.perform(work))
        work.running.wait()
        assert len(scope._members) == 1
        scope.cancel()
        assert call.wait(10)
    assert work.ended.is_set()
    assert scope.is_idle


def test_a_wait_that_is_thrown_away_cancels(bridge: Bridge, other: Bridge) -> None:
    work = Work()

    async def scene() -> None:
        asking = other.perform(work)
        asking.send(None)
        await asyncio.to_thread(work.running.wait)
        asking.close()
        await asyncio.to_thread(work.ended.wait)

    bridge.run(scene)
