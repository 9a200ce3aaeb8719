"""Outcomes of what runs elsewhere (another thread, aiockpt's loop), awaited on the caller's asyncio loop.

Two ways to wait: ``settle`` owns what runs, so that cancelling the wait cancels it; ``Pending`` is a handle that many
may wait for, and whose waits can be given up without harm.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
from collections.abc import Callable, Generator
from contextlib import suppress
from typing import Generic, TypeVar

import anyio

from aiockpt.bridge import wait_for
from aiockpt.errors import ClosedError, WrongThreadError
from aiockpt.scope import Scope

T = TypeVar("T")

#: How long a cancelled wait goes on for a thread that moves no bytes any more: "everything stops within a second".
#: Longer takes only a thread that plans, or that waits for other ranks in a collective; see ``operation``.
WIND_UP_S = 1.0

#: How often it is looked meanwhile whether all has stopped.
POLL_S = 0.01


async def settle(outcome: concurrent.futures.Future[T], scope: Scope) -> T:
    """Wait for ``outcome``; a cancellation of the wait cancels ``scope``, and waits until nothing of it is under way.

    Raises:
        WrongThreadError: there is no asyncio loop here.
        ClosedError: it was cancelled by others than this wait.
    """
    waiting = _on_this_loop(outcome)
    try:
        await asyncio.wait([waiting])
    except asyncio.CancelledError:
        scope.cancel()
        await wound_up(outcome, scope)
        raise
    except BaseException:  # the coroutine is thrown away: nobody can wait
        scope.cancel()
        raise
    return _result(waiting)


async def wound_up(outcome: concurrent.futures.Future[T], scope: Scope) -> None:
    """Wait until nothing is under way of what was cancelled, whoever else wants to cut that short."""
    loop = asyncio.get_running_loop()
    patient_until = loop.time() + WIND_UP_S
    with anyio.CancelScope(shield=True):
        while not (scope.is_idle and (outcome.done() or loop.time() >= patient_until)):
            with suppress(asyncio.CancelledError):
                await asyncio.sleep(POLL_S)


class Pending(Generic[T]):
    """Something under way: await it on any loop, or wait for its ``result`` in a thread; as often as you like.

    Giving up a wait (by cancellation or timeout) leaves what is waited for alone.
    """

    def __init__(self, outcome: concurrent.futures.Future[T]) -> None:
        self._outcome = outcome
        self._process = os.getpid()
        self._looked_at = False

    @property
    def done(self) -> bool:
        """Whether it has ended, however."""
        return self._outcome.done()

    def result(self, timeout_s: float | None = None) -> T:
        """Wait, blocking this thread, and return the result.

        Raises:
            TimeoutError: it has not ended within ``timeout_s``; it goes on.
            ClosedError: it was cancelled, or belongs to the process that this one was forked from.
        """
        if os.getpid() != self._process and not self.done:
            raise ClosedError("this was begun before the fork, and goes on in the parent process only")
        self.wait(timeout_s)
        self._looked_at = self.done
        return self._outcome.result(0)

    def wait(self, timeout_s: float | None = None) -> bool:
        """Wait, blocking this thread, until it has ended, however; False if it has not within ``timeout_s``."""
        return wait_for(self._outcome, timeout_s)

    def when_done(self, callback: Callable[[], object]) -> None:
        """Have ``callback()`` called once it has ended, at once if it has; on whatever thread ends it."""
        self._outcome.add_done_callback(lambda _: callback())

    def __await__(self) -> Generator[object, None, T]:
        return self._wait().__await__()

    async def _wait(self) -> T:
        waiting = _on_this_loop(self._outcome)
        await asyncio.wait([waiting])
        self._looked_at = True
        return _result(waiting)


def _on_this_loop(outcome: concurrent.futures.Future[T]) -> asyncio.Future[T]:
    try:
        waiting = asyncio.wrap_future(outcome, loop=asyncio.get_running_loop())
    except RuntimeError as error:
        raise WrongThreadError("await this on an asyncio loop (asyncio's own or uvloop); there is none here") from error
    waiting.add_done_callback(_retrieve)
    return waiting


def _retrieve(waiting: asyncio.Future[T]) -> None:
    """Look at a failure, so that asyncio does not complain of one that nobody waits for any more."""
    if not waiting.cancelled():
        waiting.exception()


def _result(waiting: asyncio.Future[T]) -> T:
    if waiting.cancelled():
        raise ClosedError("the call was cancelled, or aiockpt's loop thread is stopping")
    return waiting.result()
