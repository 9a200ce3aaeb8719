from __future__ import annotations

import asyncio
import gc
import multiprocessing
from concurrent.futures import Future

import anyio
import pytest

from aiockpt.awaitable import outcome as room
from aiockpt.awaitable.outcome import Pending, settle
from aiockpt.errors import ClosedError, WrongThreadError
from aiockpt.scope import Scope


class Member:
    """Something under way that ends when the test says so."""

    def __init__(self, scope: Scope) -> None:
        self.cancelled = asyncio.Event()
        scope.add(self)

    def cancel(self) -> None:
        self.cancelled.set()


def done(value: int) -> Future[int]:
    outcome: Future[int] = Future()
    outcome.set_result(value)
    return outcome


def failed() -> Future[int]:
    outcome: Future[int] = Future()
    outcome.set_exception(LookupError("here"))
    return outcome


async def test_results_and_errors() -> None:
    assert await settle(done(3), Scope()) == 3
    with pytest.raises(LookupError, match="here"):
        await settle(failed(), Scope())


async def test_an_outcome_that_others_cancel() -> None:
    outcome: Future[int] = Future()
    outcome.cancel()
    with pytest.raises(ClosedError):
        await settle(outcome, Scope())
    with pytest.raises(ClosedError):
        await Pending(outcome)


async def test_a_cancelled_wait_waits_for_the_end() -> None:
    outcome: Future[int] = Future()
    scope = Scope()
    member = Member(scope)
    task = asyncio.create_task(settle(outcome, scope))
    await asyncio.sleep(0)
    task.cancel()
    await member.cancelled.wait()
    for _ in range(3):  # however impatient the caller is
        task.cancel()
        await asyncio.sleep(0.02)
        assert not task.done()
    scope.discard(member)
    outcome.set_result(3)
    await asyncio.wait([task])
    assert task.cancelled()


async def test_a_cancelled_wait_does_not_wait_for_what_is_idle(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WIND_UP_S", 0.0)
    outcome: Future[int] = Future()
    with anyio.move_on_after(0) as cancelled:
        await settle(outcome, Scope())
    assert cancelled.cancelled_caught
    assert not outcome.cancelled()


async def test_what_nobody_waits_for_any_more_is_no_complaint(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(room, "WIND_UP_S", 0.0)
    complaints: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
    outcome: Future[int] = Future()
    with anyio.move_on_after(0):
        await settle(outcome, Scope())
    outcome.set_exception(LookupError("late"))
    await asyncio.sleep(0.01)
    del outcome
    gc.collect()
    assert complaints == []


async def test_pending_may_be_awaited_often() -> None:
    outcome: Future[int] = Future()
    pending = Pending(outcome)
    waits = [asyncio.ensure_future(pending) for _ in range(3)]
    await asyncio.sleep(0)
    waits[0].cancel()
    ended = [pending.done, pending.wait(0)]
    outcome.set_result(3)
    assert await asyncio.gather(*waits[1:]) == [3, 3]
    assert [*ended, pending.done] == [False, False, True]
    assert pending.result() == 3
    assert pending.wait()


def test_pending_in_a_thread() -> None:
    told: list[str] = []
    pending = Pending[int](Future())
    with pytest.raises(TimeoutError):
        pending.result(0.01)
    pending = Pending(failed())
    pending.when_done(lambda: told.append("done"))
    assert told == ["done"]
    with pytest.raises(LookupError):
        pending.result()


def test_without_a_loop() -> None:
    with pytest.raises(WrongThreadError, match="asyncio loop"):
        settle(done(3), Scope()).send(None)


def wait_in_child(pending: Pending[int]) -> None:
    with pytest.raises(ClosedError, match="fork"):
        pending.result()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_what_was_begun_before_a_fork() -> None:
    child = multiprocessing.get_context("fork").Process(target=wait_in_child, args=(Pending(Future()),))
    child.start()
    child.join(20)
    assert child.exitcode == 0
